"""The index of a layer: a tree of nodes in memory, as unpacking the layer as root would make it on
disk. `treetarget` makes it."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from fuseoverlay.oci.entries import Path
from fuseoverlay.oci.sparse import Pieces

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


#: Of most nodes.
NO_MORE: Final = More()


class Node:
    """A file of a layer; all its names share one object, which holds `nlink` of them.

    `mode`: type and permissions. `mtime`: ns, of which the seconds have 64 bits. `ino`: a number
    that no other node of the layer has. `digest`: SHA-256 of the content of a regular file; None if
    that would make it more than 1 GiB of holes in this layer. `offset`: of the first byte of its
    data in the plain tar stream; -1 if there are none there. A whiteout is a character device 0:0,
    as it is on disk, and no other file is one.
    """

    __slots__ = ("digest", "gid", "ino", "mode", "more", "mtime", "nlink", "offset", "size", "uid")

    def __init__(
        self, mode: int, uid: int, gid: int, size: int, mtime: int, ino: int, more: More = NO_MORE
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


class Directory(Node):
    """A directory. `opaque`: it hides those below. `implied`: the value of `xattrs.IMPLIED` that it
    would have on disk. `links`: the names in it that the archive lists as hard links; None for
    none."""

    __slots__ = ("children", "implied", "links", "opaque")

    def __init__(self, ino: int) -> None:
        super().__init__(stat.S_IFDIR | 0o700, 0, 0, 0, 0, ino)
        self.children: dict[bytes, Node] = {}
        self.opaque = False
        self.implied: bytes | None = None
        self.links: set[bytes] | None = None


@dataclass(frozen=True, slots=True)
class Tree:
    """The index of a layer. `size` and `used_lowers` as in `Unpacked`."""

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
