"""The index of a layer: what unpacking it as root would make, in memory, from one pass over its
archive.

`Layer` decides, as for a directory on disk. The content of files is hashed and passes by.
"""

from __future__ import annotations

import errno
import hashlib
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

from fuseoverlay.errors import os_error
from fuseoverlay.oci.entries import Entry, Path
from fuseoverlay.oci.job import Job
from fuseoverlay.oci.layer import Layer, read_blob
from fuseoverlay.oci.metadata import Warnings
from fuseoverlay.oci.model import Digest
from fuseoverlay.oci.settable import Settable, settable
from fuseoverlay.oci.sparse import Pieces
from fuseoverlay.oci.streams import CHUNK, BlobReader, ForwardStream

#: Linux's NAME_MAX.
_NAME_MAX: Final = 255
#: A larger file is refused: no file system holds it.
_LARGEST: Final = 1 << 60
#: A file with more holes gets no digest: a header of a kilobyte could keep us busy for hours.
_MOST_HOLES: Final = 1 << 30
_LAST_TIME: Final = (1 << 63) - 1
_LINK: Final = stat.S_IFLNK | 0o777
_ZEROS: Final = bytes(CHUNK)
_NONE: Final[Mapping[bytes, bytes]] = {}


class Shown(Protocol):
    """A file as layers below show it. The fields are those of `Node`."""

    @property
    def mode(self) -> int: ...
    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def mtime(self) -> int: ...
    @property
    def digest(self) -> bytes | None: ...
    @property
    def rdev(self) -> int: ...
    @property
    def link(self) -> bytes: ...
    @property
    def xattrs(self) -> Mapping[bytes, bytes]: ...


class Lowers(Protocol):
    """The layers below a layer, as one tree."""

    def find(self, path: Path) -> Shown | None:
        """What they show at `path`; None if nothing. Whiteouts and opaque directories count;
        symbolic links on the way are not followed."""


class More(NamedTuple):
    """What few files have: see `Node`."""

    rdev: int = 0
    link: bytes = b""
    xattrs: Mapping[bytes, bytes] = _NONE
    pieces: Pieces | None = None
    copied: Path | None = None


_NO_MORE: Final = More()


class Node:
    """A file of a layer; all its names share one object, which holds `nlink` of them.

    `mode`: type and permissions. `mtime`: ns, in 64 bits. `ino`: a number that no other node of the
    layer has. `digest`: SHA-256 of the content of a regular file; None if there are more than 1 GiB
    of holes. `offset`: of the first byte of its data in the plain tar stream; -1 if there are none
    there. A whiteout is a character device 0:0, as it is on disk, and no other file is one.
    """

    __slots__ = ("digest", "gid", "ino", "mode", "more", "mtime", "nlink", "offset", "size", "uid")

    def __init__(
        self, mode: int, uid: int, gid: int, size: int, mtime: int, ino: int, more: More = _NO_MORE
    ) -> None:
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.size = size
        self.mtime = mtime
        self.ino = ino
        self.more = more
        self.nlink = 1
        self.digest: bytes | None = None
        self.offset = -1

    def __reduce__(self) -> tuple[Any, ...]:
        fields = (self.mode, self.uid, self.gid, self.size, self.mtime, self.ino, self.more)
        return _node, (*fields, self.nlink, self.digest, self.offset)

    @property
    def is_whiteout(self) -> bool:
        """Whether it hides its name in the layers below."""
        return stat.S_ISCHR(self.mode) and not self.more.rdev

    @property
    def rdev(self) -> int:
        """The number of a device."""
        return self.more.rdev

    @property
    def link(self) -> bytes:
        """The target of a symbolic link."""
        return self.more.link

    @property
    def xattrs(self) -> Mapping[bytes, bytes]:
        """Its extended attributes. A mode has no ACL beside it that says the same."""
        return self.more.xattrs

    @property
    def pieces(self) -> Pieces | None:
        """Offset and length in the file of what the archive holds of a sparse one, in this order
        from `offset` on; None if the file is not sparse."""
        return self.more.pieces

    @property
    def copied(self) -> Path | None:
        """Where the layers below have the data of this file; None if the archive has them."""
        return self.more.copied


def _node(*fields: Any) -> Node:
    node = Node(*fields[:-3])
    node.nlink, node.digest, node.offset = fields[-3:]
    return node


class Directory(Node):
    """A directory. `opaque`: it hides those below. `implied`: the value of `xattrs.IMPLIED` that it
    would have on disk."""

    __slots__ = ("children", "implied", "opaque")

    def __init__(self, ino: int) -> None:
        super().__init__(stat.S_IFDIR | 0o700, 0, 0, 0, 0, ino)
        self.children: dict[bytes, Node] = {}
        self.opaque = False
        self.implied: bytes | None = None


@dataclass(frozen=True, slots=True)
class Tree:
    """The index of a layer. `size` and `used_lowers` as in `Unpacked`. Can be pickled, however deep
    it is; its nodes can only with it."""

    root: Directory
    size: int
    used_lowers: bool

    def walk(self) -> Iterator[tuple[Path, Directory, list[tuple[bytes, Node]]]]:
        """Each directory's path, itself and what is in it: parents before what they hold, in the
        order of the names' bytes."""
        waiting: list[tuple[Path, Directory]] = [((), self.root)]
        while waiting:
            path, directory = waiting.pop()
            children = sorted(directory.children.items())
            yield path, directory, children
            for name, node in reversed(children):
                if isinstance(node, Directory):
                    waiting.append(((*path, name), node))

    def find(self, path: Path) -> Node | None:
        """What the layer has at `path`, be it a whiteout; None if nothing. Follows no links."""
        node: Node | None = self.root
        for name in path:
            if not isinstance(node, Directory):
                return None
            node = node.children.get(name)
        return node

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpacked, (list(self._packed()), self.size, self.used_lowers)

    def _packed(self) -> Iterator[_Packed]:
        """The directories in the order of `walk`; in each, those in it have their numbers."""
        numbers = {node.ino: at for at, (_, node, _) in enumerate(self.walk())}
        for _, node, children in self.walk():
            inside = [
                (name, numbers[child.ino] if isinstance(child, Directory) else child)
                for name, child in children
            ]
            fields = (node.mode, node.uid, node.gid, node.mtime, node.ino, node.more)
            yield (*fields, node.opaque, node.implied), inside


#: The fields of a directory, and what is in it.
_Packed = tuple[tuple[Any, ...], list[tuple[bytes, Node | int]]]


def _unpacked(packed: Sequence[_Packed], size: int, used_lowers: bool) -> Tree:
    directories = [_directory(*fields) for fields, _ in packed]
    for directory, (_, inside) in zip(directories, packed, strict=True):
        directory.children = {
            name: directories[child] if isinstance(child, int) else child for name, child in inside
        }
    return Tree(directories[0], size, used_lowers)


def _directory(
    mode: int, uid: int, gid: int, mtime: int, ino: int, more: More,
    opaque: bool, implied: bytes | None,
) -> Directory:  # fmt: skip
    node = Directory(ino)
    node.mode, node.uid, node.gid, node.mtime, node.more = mode, uid, gid, mtime, more
    node.opaque, node.implied = opaque, implied
    return node


class TreesBelow:
    """The indexes of the layers below, top first."""

    def __init__(self, trees: Sequence[Tree]) -> None:
        self._trees = trees

    def find(self, path: Path) -> Node | None:
        """See `Lowers`."""
        for tree in self._trees:
            found, go_on = _look(tree.root, path)
            if found is not None or not go_on:
                return found
        return None


def _look(root: Directory, path: Path) -> tuple[Node | None, bool]:
    """What one layer shows at `path`, and whether to look further down if nothing."""
    node: Node | None = root
    transparent = True
    for name in path:
        if not isinstance(node, Directory):
            return None, transparent and node is None
        transparent = transparent and not node.opaque
        node = node.children.get(name)
    if node is None:
        return None, transparent
    return (None if node.is_whiteout else node), False


def list_blob(blob: BlobReader, diff_id: Digest, job: Job, below: Lowers | None = None) -> Tree:
    """The index of the layer in `blob`, above what `below` shows; `job.lowers` do not count.

    The digests are verified as by `unpack_blob`. ImageError, DigestError.
    """
    return read_blob(blob, diff_id, job, lambda stream: list_stream(stream, job, below))


def list_stream(stream: ForwardStream, job: Job, below: Lowers | None = None) -> Tree:
    """`list_blob` for a plain tar stream. Does not read the stream to its end."""
    warnings = Warnings()
    listed = _ListedBelow(below or TreesBelow(()))
    target = TreeTarget(listed)
    layer = Layer(target, listed, stream, job, warnings)
    with layer.made.errors():
        layer.read()
    warnings.report(job.warn, job.where)
    return Tree(target.root, layer.size, listed.used)


class _ListedBelow:
    """The layers below. Records whether they were asked."""

    def __init__(self, lowers: Lowers) -> None:
        self._lowers = lowers
        self.used = False

    def at(self, path: Path) -> Shown | None:
        self.used = True
        return self._lowers.find(path)

    def is_directory(self, path: Path) -> bool:
        found = self.at(path)
        return found is not None and stat.S_ISDIR(found.mode)


class TreeTarget:
    """The `Target` that is a tree in memory."""

    def __init__(self, below: _ListedBelow) -> None:
        self.root = Directory(1)
        self._below = below
        self._inodes = 1
        self._last: tuple[Path, dict[bytes, Node]] = (), self.root.children

    def _children(self, path: Path) -> dict[bytes, Node]:
        """What is in the directory `path`. Entries come depth first, so it is often the last."""
        last, children = self._last
        if path != last:
            children = self._directory(path).children
            self._last = path, children
        return children

    def _directory(self, path: Path) -> Directory:
        node: Node = self.root
        for name in path:
            if not isinstance(node, Directory):
                raise os_error(errno.ENOTDIR)
            node = node.children[name]
        if not isinstance(node, Directory):
            raise os_error(errno.ENOTDIR)
        return node

    def _place(self, path: Path) -> dict[bytes, Node]:
        """What is beside `path`, which can be a name."""
        if len(path[-1]) > _NAME_MAX:
            raise os_error(errno.ENAMETOOLONG)
        return self._children(path[:-1])

    def _free(self, path: Path) -> dict[bytes, Node]:
        """What is beside `path`, where nothing is yet."""
        children = self._place(path)
        if path[-1] in children:
            raise os_error(errno.EEXIST)
        return children

    def _next(self) -> int:
        self._inodes += 1
        return self._inodes

    def mkdir(self, path: Path) -> None:
        """See `Target`."""
        self._free(path)[path[-1]] = Directory(self._next())

    def file(self, entry: Entry, stream: ForwardStream) -> bool:
        """See `Target`."""
        children = self._free(entry.path)
        node = self._new(entry, stat.S_IFREG, entry.size)
        if entry.segments is not None:
            node.more = More(xattrs=node.xattrs, pieces=entry.segments)
        node.offset = stream.tell()
        found = _hashed(stream, entry)
        if found is None:
            return False
        if entry.size > _LARGEST:
            raise os_error(errno.EFBIG)
        node.digest = found or None
        children[entry.path[-1]] = node
        return True

    def _new(self, entry: Entry, kind: int, size: int) -> Node:
        mode, more = kind | stat.S_IMODE(entry.mode), _NO_MORE
        if entry.xattrs:
            kept = settable(mode, entry.xattrs)
            mode, more = kept.mode, More(xattrs=kept.xattrs)
        return Node(
            mode, entry.uid, entry.gid, size, min(entry.mtime, _LAST_TIME), self._next(), more
        )

    def node(self, entry: Entry) -> None:
        """See `Target`."""
        children = self._free(entry.path)
        node = self._new(entry, stat.S_IFMT(entry.mode), len(entry.link))
        if stat.S_ISLNK(entry.mode):
            node.mode = _LINK
        if entry.link or entry.rdev:
            node.more = More(entry.rdev, entry.link, node.xattrs)
        children[entry.path[-1]] = node

    def link(self, path: Path, target: Path) -> None:
        """See `Target`."""
        node = self._place(target)[target[-1]]
        self._free(path)[path[-1]] = node
        node.nlink += 1

    def copy_below(self, path: Path, source: Path) -> bool:
        """See `Target`."""
        found = self._below.at(source)
        if found is None or stat.S_ISDIR(found.mode):
            return False
        more = More(found.rdev, found.link, found.xattrs, copied=source)
        node = Node(found.mode, found.uid, found.gid, found.size, found.mtime, self._next(), more)
        node.digest = found.digest
        self._free(path)[path[-1]] = node
        return True

    def unlink(self, path: Path) -> None:
        """See `Target`."""
        node = self._place(path).pop(path[-1], None)
        if node is None:
            raise os_error(errno.ENOENT)
        node.nlink -= 1

    def remove_tree(self, path: Path) -> None:
        """See `Target`."""
        waiting = [self._place(path).pop(path[-1])]
        while waiting:
            node = waiting.pop()
            node.nlink -= 1
            if isinstance(node, Directory):
                waiting += node.children.values()
                node.children = {}
        self._last = (), self.root.children

    def exists(self, path: Path) -> bool:
        """See `Target`."""
        return path[-1] in self._place(path)

    def link_text(self, path: Path) -> bytes | None:
        """See `Target`."""
        node = self._place(path).get(path[-1])
        return node.link if node is not None and stat.S_ISLNK(node.mode) else None

    def whiteout(self, path: Path) -> None:
        """See `Target`."""
        self._free(path)[path[-1]] = Node(stat.S_IFCHR, 0, 0, 0, 0, self._next())

    def set_opaque(self, path: Path) -> None:
        """See `Target`."""
        self._directory(path).opaque = True

    def finish_directory(self, entry: Entry, implied: bytes | None) -> None:
        """See `Target`."""
        node = self._directory(entry.path)
        kept = settable(entry.mode, entry.xattrs) if entry.xattrs else Settable(entry.mode, _NONE)
        node.mode, node.uid, node.gid = kept.mode, entry.uid, entry.gid
        node.mtime = min(entry.mtime, _LAST_TIME)
        node.implied = implied
        if kept.xattrs:
            node.more = More(xattrs=kept.xattrs)


def _hashed(stream: ForwardStream, entry: Entry) -> bytes | None:
    """The digest of the content of `entry`, read from `stream`; empty if it has none; None if the
    stream ends too early."""
    if entry.segments is not None:
        return _hashed_pieces(stream, entry.size, entry.segments)
    data = stream.read_some(entry.size) if entry.size else b""
    found = hashlib.sha256(data)
    rest = entry.size - len(data)
    return found.digest() if not rest or _hash(found, stream, rest) else None


def _hashed_pieces(stream: ForwardStream, size: int, pieces: Pieces) -> bytes | None:
    holes = size - sum(length for _, length in pieces)
    if holes > _MOST_HOLES:
        end = stream.tell() + size - holes
        return b"" if stream.seek(end) == end else None
    found = hashlib.sha256()
    at = 0
    for offset, length in (*pieces, (size, 0)):
        _hash_zeros(found, offset - at)
        if not _hash(found, stream, length):
            return None
        at = offset + length
    return found.digest()


def _hash(found: hashlib._Hash, stream: ForwardStream, count: int) -> bool:
    while count:
        data = stream.read_some(min(count, CHUNK))
        if not data:
            return False
        found.update(data)
        count -= len(data)
    return True


def _hash_zeros(found: hashlib._Hash, count: int) -> None:
    for at in range(0, count, CHUNK):
        found.update(_ZEROS[: count - at])
