"""The index of a layer: what unpacking it as root would make, in memory, from one pass over its
archive.

`Layer` decides, as for a directory on disk. The content of files is hashed and passes by.
"""

from __future__ import annotations

import errno
import hashlib
import stat
from collections.abc import Mapping
from typing import Final

from fuseoverlay.errors import ImageError, os_error
from fuseoverlay.oci.entries import Entry, Path
from fuseoverlay.oci.job import Job
from fuseoverlay.oci.layer import Layer, read_blob
from fuseoverlay.oci.metadata import Warnings
from fuseoverlay.oci.model import Digest
from fuseoverlay.oci.nodes import NO_MORE, Directory, Lowers, More, Node, Shown, Tree, TreesBelow
from fuseoverlay.oci.settable import settable
from fuseoverlay.oci.sparse import Pieces
from fuseoverlay.oci.streams import CHUNK, BlobReader, ForwardStream

#: Linux's NAME_MAX.
_NAME_MAX: Final = 255
#: A larger file is refused: no file system holds it.
_LARGEST: Final = 1 << 60
#: Bytes of holes that are hashed in a layer: else each kilobyte of it could take us hours.
_HOLES: Final = 1 << 30
_LINK: Final = stat.S_IFLNK | 0o777
_ZEROS: Final = bytes(CHUNK)
#: Bytes for an index: two million files and more.
_ROOM: Final = 1 << 30
#: Approximate bytes in memory: of a node or a name, of an attribute, of a piece of a sparse file.
_NODE: Final = 380
_ATTRIBUTE: Final = 200
_PIECE: Final = 130


def list_blob(blob: BlobReader, diff_id: Digest, job: Job, below: Lowers | None = None) -> Tree:
    """The index of the layer in `blob`, above what `below` shows; `job.lowers` do not count.

    The digests are verified as by `unpack_blob`. ImageError, DigestError.
    """
    return read_blob(blob, diff_id, job, lambda stream: list_stream(stream, job, below))


def list_stream(stream: ForwardStream, job: Job, below: Lowers | None = None) -> Tree:
    """`list_blob` for a plain tar stream. Does not read the stream to its end."""
    warnings = Warnings()
    listed = _ListedBelow(below or TreesBelow(()))
    target = TreeTarget(listed, job.where)
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

    def __init__(self, below: _ListedBelow, where: str) -> None:
        self.root = Directory(1)
        self._below = below
        self._where = where
        self._room = _ROOM
        self._attributes: dict[frozenset[tuple[bytes, bytes]], Mapping[bytes, bytes]] = {}
        self._inodes = 1
        self._holes_left = _HOLES
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

    def _next(self, path: Path) -> int:
        """The number of a new node."""
        self._hold(_NODE + len(path[-1]))
        self._inodes += 1
        return self._inodes

    def _hold(self, size: int) -> None:
        """Count what is kept. What is removed again still counts."""
        self._room -= size
        if self._room < 0:
            raise ImageError("too many files in one layer to list them", where=self._where)

    def _shared(self, attributes: Mapping[bytes, bytes]) -> Mapping[bytes, bytes]:
        """`attributes`, as an object that all nodes with the same ones share: a global header gives
        them to each."""
        key = frozenset(attributes.items())
        found = self._attributes.get(key)
        if found is None:
            self._hold(sum(_ATTRIBUTE + len(name) + len(value) for name, value in key))
            found = self._attributes[key] = attributes
        return found

    def mkdir(self, path: Path) -> None:
        """See `Target`."""
        self._free(path)[path[-1]] = Directory(self._next(path))

    def file(self, entry: Entry, stream: ForwardStream) -> bool:
        """See `Target`."""
        children = self._free(entry.path)
        node = self._new(entry, stat.S_IFREG, entry.size)
        if entry.segments is not None:
            self._hold(_PIECE * len(entry.segments))
            node.more = More(xattrs=node.xattrs, pieces=entry.segments)
        node.offset = stream.tell()
        found = self._hashed(stream, entry)
        if found is None:
            return False
        if entry.size > _LARGEST:
            raise os_error(errno.EFBIG)
        node.digest = found or None
        children[entry.path[-1]] = node
        return True

    def _hashed(self, stream: ForwardStream, entry: Entry) -> bytes | None:
        """The digest of the content of `entry`, which comes next in `stream`; empty if it has none;
        None if the stream ends too early."""
        if entry.segments is None:
            return _hashed(stream, entry.size)
        stored = sum(length for _, length in entry.segments)
        if entry.size - stored > self._holes_left:
            end = stream.tell() + stored
            return b"" if stream.seek(end) == end else None
        self._holes_left -= entry.size - stored
        return _hashed_pieces(stream, entry.size, entry.segments)

    def _new(self, entry: Entry, kind: int, size: int) -> Node:
        mode, more = self._fitting(kind | stat.S_IMODE(entry.mode), entry.xattrs)
        return Node(mode, entry.uid, entry.gid, size, entry.mtime, self._next(entry.path), more)

    def _fitting(self, mode: int, attributes: Mapping[bytes, bytes]) -> tuple[int, More]:
        if not attributes:
            return mode, NO_MORE
        kept = settable(mode, attributes)
        return kept.mode, More(xattrs=self._shared(kept.xattrs))

    def node(self, entry: Entry) -> None:
        """See `Target`."""
        children = self._free(entry.path)
        node = self._new(entry, stat.S_IFMT(entry.mode), len(entry.link))
        if stat.S_ISLNK(entry.mode):
            node.mode = _LINK
        if entry.link or entry.rdev:
            self._hold(len(entry.link))
            node.more = More(entry.rdev, entry.link, node.xattrs)
        children[entry.path[-1]] = node

    def link(self, path: Path, target: Path) -> None:
        """See `Target`."""
        node = self._place(target)[target[-1]]
        self._free(path)[path[-1]] = node
        self._hold(_NODE + len(path[-1]))
        node.nlink += 1
        self._note_link(path)

    def _note_link(self, path: Path) -> None:
        directory = self._directory(path[:-1])
        if directory.links is None:
            directory.links = set()
        directory.links.add(path[-1])

    def copy_below(self, path: Path, source: Path) -> bool:
        """See `Target`."""
        found = self._below.at(source)
        if found is None or stat.S_ISDIR(found.mode):
            return False
        more = More(found.rdev, found.link, found.xattrs, copied=source)
        node = Node(
            found.mode, found.uid, found.gid, found.size, found.mtime, self._next(path), more
        )
        node.digest = found.digest
        self._free(path)[path[-1]] = node
        self._note_link(path)
        return True

    def unlink(self, path: Path) -> None:
        """See `Target`."""
        node = self._place(path).pop(path[-1], None)
        if node is None:
            raise os_error(errno.ENOENT)
        node.nlink -= 1
        links = self._directory(path[:-1]).links
        if links is not None:
            links.discard(path[-1])

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
        self._free(path)[path[-1]] = Node(stat.S_IFCHR, 0, 0, 0, 0, self._next(path))

    def set_opaque(self, path: Path) -> None:
        """See `Target`."""
        self._directory(path).opaque = True

    def finish_directory(self, entry: Entry, implied: bytes | None) -> None:
        """See `Target`."""
        node = self._directory(entry.path)
        node.mode, node.more = self._fitting(entry.mode, entry.xattrs)
        node.uid, node.gid = entry.uid, entry.gid
        node.mtime = entry.mtime
        node.implied = implied


def _hashed(stream: ForwardStream, size: int) -> bytes | None:
    """The digest of the next `size` bytes of `stream`; None if it ends too early."""
    data = stream.read_some(size) if size else b""
    found = hashlib.sha256(data)
    rest = size - len(data)
    return found.digest() if not rest or _hash(found, stream, rest) else None


def _hashed_pieces(stream: ForwardStream, size: int, pieces: Pieces) -> bytes | None:
    """The digest of a sparse file of `size` bytes, whose pieces come next in `stream`; None if that
    ends too early."""
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
