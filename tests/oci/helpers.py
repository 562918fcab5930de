"""Make layers in memory, unpack them, and look at what came out."""

from __future__ import annotations

import dataclasses
import io
import os
import stat
import tarfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from fuseoverlay.errors import ImageError
from fuseoverlay.layers import whiteout, xattrs
from fuseoverlay.layers.overridestat import OverrideStat
from fuseoverlay.oci.job import Job
from fuseoverlay.oci.layout import Node, layer_tar
from fuseoverlay.oci.metadata import can_own
from fuseoverlay.oci.model import Digest
from fuseoverlay.oci.nodes import Tree, TreesBelow
from fuseoverlay.oci.streams import BlobReader, ForwardStream
from fuseoverlay.oci.treetarget import list_blob, list_stream
from fuseoverlay.oci.unpack import Unpacked, unpack_blob, unpack_stream
from tests.oci.listed import agree, outcome

T = TypeVar("T")


def header(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, **fields: Any) -> bytes:
    """One header block."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT, errors="surrogateescape")


def block(data: bytes) -> bytes:
    """Data in the form in which it follows a header."""
    return data + bytes(-len(data) % tarfile.BLOCKSIZE)


def pax(*records: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    """A header of PAX records, each `KEY=VALUE`."""
    lines = []
    for record in records:
        size = len(record) + 2
        while len(b"%d %s\n" % (size, record)) != size:
            size += 1
        lines.append(b"%d %s\n" % (size, record))
    body = b"".join(lines)
    return header("pax", kind, len(body)) + block(body)


def owner_possible(directory: Path) -> bool:
    """Whether the user who runs the tests can set real owners."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        return can_own(fd)
    finally:
        os.close(fd)


@dataclasses.dataclass
class Unpacker:
    """Unpacks layers below `base`, in one of the two ways.

    It also lists each in memory, and asserts that this comes to the same.
    """

    base: Path
    override: bool
    count: int = 0

    def __post_init__(self) -> None:
        self.warnings: list[str] = []
        self.used_lowers = False
        self.trees: dict[Path, Tree] = {}

    def target(self) -> Path:
        """A new empty directory."""
        self.count += 1
        path = self.base / f"layer{self.count}"
        path.mkdir()
        return path

    def job(self, lowers: Sequence[Path] = ()) -> Job:
        return Job(self.override, lowers, self.warnings.append, "image")

    def tar(self, tar: bytes, lowers: Sequence[Path] = ()) -> Path:
        """Unpack an archive."""

        def unpack(target: Path, stream: ForwardStream) -> Unpacked:
            return unpack_stream(stream, str(target), self.job(lowers))

        def read(use: Callable[[ForwardStream], T]) -> T:
            with ForwardStream(io.BytesIO(tar), Digest.of(tar), "image") as stream:
                found = use(stream)
                stream.finish()
            return found

        below = TreesBelow([self.trees[lower] for lower in lowers])
        return self._both(
            lambda target: read(lambda stream: unpack(target, stream)),
            lambda: read(lambda stream: list_stream(stream, Job(False, where="image"), below)),
        )

    def _both(self, unpack: Callable[[Path], Unpacked], index: Callable[[], Tree]) -> Path:
        target = self.target()
        try:
            done = unpack(target)
        except ImageError as exc:
            assert outcome(index) == str(exc)
            raise
        self.used_lowers = done.used_lowers
        tree = outcome(index)
        assert isinstance(tree, Tree), tree
        assert agree(target, tree, noted=self.override)
        assert (tree.size, tree.used_lowers) == (done.size, done.used_lowers)
        self.trees[target] = tree
        return target

    def nodes(self, *nodes: Node, lowers: Sequence[Path] = ()) -> Path:
        """Unpack an archive of `nodes`."""
        return self.tar(layer_tar(nodes), lowers)

    def blob(self, data: bytes, diff_id: Digest, size: int | None = None) -> Path:
        """Unpack a compressed blob with the right digest."""
        real = len(data) if size is None else size

        def blob() -> BlobReader:
            return BlobReader(io.BytesIO(data), real, Digest.of(data), "image")

        return self._both(
            lambda target: unpack_blob(blob(), diff_id, str(target), self.job()),
            lambda: list_blob(blob(), diff_id, Job(False, where="image")),
        )


@dataclasses.dataclass(frozen=True)
class Seen:
    """A file as the overlay shows it."""

    kind: str
    mode: int
    uid: int
    gid: int
    rdev: int
    mtime: int
    data: bytes

    @property
    def owner(self) -> tuple[int, int]:
        return self.uid, self.gid


_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
}


def see(path: Path | bytes, override: bool) -> Seen:
    """What is at `path`; in override mode owner, mode and type come from the attribute."""
    raw = os.fsencode(path)
    st = os.lstat(raw)
    real = stat.S_IFMT(st.st_mode)
    data = b""
    if real == stat.S_IFREG:
        with open(raw, "rb") as file:
            data = file.read()
    elif real == stat.S_IFLNK:
        data = os.readlink(raw)
    mode, uid, gid, rdev = st.st_mode, st.st_uid, st.st_gid, st.st_rdev
    if override:
        if real in (stat.S_IFREG, stat.S_IFDIR):
            note = OverrideStat.parse(os.getxattr(raw, xattrs.OVERRIDE_STAT), st.st_mode)
            assert note is not None
            assert stat.S_IMODE(st.st_mode) & 0o600 == 0o600
            mode, uid, gid, rdev = note.mode, note.uid, note.gid, note.rdev
        else:
            # A whiteout.
            assert real == stat.S_IFCHR
            uid = gid = 0
    kind = _KINDS[stat.S_IFMT(mode)]
    return Seen(kind, stat.S_IMODE(mode), uid, gid, rdev, st.st_mtime_ns, data)


def is_whiteout(path: Path) -> bool:
    """Whether `path` is a whiteout, in any dialect."""
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        name = os.fsencode(path.name)
        try:
            st = os.stat(name, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            return os.path.lexists(path.parent / f".wh.{path.name}")
        return whiteout.is_char_whiteout(st) or whiteout.is_xattr_whiteout(
            fd, name, xattrs.NAMESPACES
        )
    finally:
        os.close(fd)


def is_opaque(path: Path) -> bool:
    """Whether the directory is opaque."""
    value = xattrs.get_overlay(os.fsencode(path), xattrs.OPAQUE, xattrs.NAMESPACES)
    return whiteout.is_opaque_value(value) or (path / ".wh..wh..opq").exists()


def implied(path: Path) -> bytes | None:
    """The mark of a directory that was not listed."""
    return xattrs.get(os.fsencode(path), xattrs.IMPLIED)


def names(path: Path) -> set[bytes]:
    """The names in a directory."""
    return set(os.listdir(os.fsencode(path)))


def permutations(nodes: Iterable[Node]) -> list[list[Node]]:
    """All rotations and their reversals: enough to have every pair in both orders."""
    items = list(nodes)
    turned = [items[at:] + items[:at] for at in range(len(items))]
    return turned + [list(reversed(order)) for order in turned]
