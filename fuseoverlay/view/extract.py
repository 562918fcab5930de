"""Copy files and trees out of layers: to a place on disk, or into a tar archive.

The files of one layer after the other are copied in the order of its archive, so that each archive
is read once. A target that exists is never touched.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import secrets
import stat
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Final

from fuseoverlay.errors import FuseOverlayError, describe, escaped, os_error, printable
from fuseoverlay.oci.contents import write_all
from fuseoverlay.oci.records import XATTR
from fuseoverlay.oci.tree import DirCache
from fuseoverlay.system import syscalls
from fuseoverlay.system.removal import remove_tree
from fuseoverlay.system.syscalls import DIR_FLAGS, at
from fuseoverlay.view import archived
from fuseoverlay.view.layerindex import Entry
from fuseoverlay.view.opened import View
from fuseoverlay.view.stack import Node, Path, Stack

Warn = Callable[[str], None]

_PIECE: Final = 1 << 20
#: Shorter runs of zeros are written.
_HOLE: Final = 4096
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
#: Bits that a file gets only together with its owner.
_WITH_OWNER: Final = stat.S_ISUID | stat.S_ISGID
_TYPES: Final = {
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}


class ExistsError(FuseOverlayError):
    """Something is at the target already."""


class CopyError(FuseOverlayError):
    """Something cannot be copied, for want of room or permission."""


class _Plan:
    """What is to be copied, sorted by kind. Paths are relative to the node; its own is empty."""

    def __init__(self, stack: Stack, top: Node) -> None:
        self.directories: list[tuple[Path, Node]] = []
        #: By layer, and there by row: the paths of a file, which has several names.
        self.files: dict[int, dict[int, list[Path]]] = defaultdict(dict)
        self.others: list[tuple[Path, Node]] = []
        first: dict[tuple[int, int], int] = {}
        for node in stack.walk(top):
            path = node.path[len(top.path) :]
            layer = stack.layers[node.layer]
            if node.is_dir:
                self.directories.append((path, node))
            elif layer.is_file(node.row):
                row = first.setdefault((node.layer, layer.ino[node.row]), node.row)
                self.files[node.layer].setdefault(row, []).append(path)
            else:
                self.others.append((path, node))

    def contents(self, view: View) -> Iterator[tuple[Sequence[Path], int, int, IO[bytes]]]:
        """(paths, layer, row, content) of each file."""
        for number, rows in self.files.items():
            for row, file in view.contents.contents(number, list(rows)):
                yield rows[row], number, row, file


# to a tar archive


def write_tar(
    view: View, stack: Stack, top: Node, name: bytes, target: IO[bytes], warn: Warn
) -> None:
    """Write the node and all below it as an archive, in which it is called `name`; "." stands for
    the content of a directory, and so does nothing. Attributes that no archive can have are
    left out, with a warning. ImageError, OSError."""
    plan = _Plan(stack, top)
    infos = _Infos(name, warn)
    with tarfile.open(fileobj=target, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for paths, number, row, file in plan.contents(view):
            info = infos.of(paths[0], stack.layers[number].entry(row))
            _add(archive, info, file)
            # So that a content that is not what it should be is noticed.
            file.read(1)
            for other in paths[1:]:
                link = infos.of(other, stack.layers[number].entry(row))
                link.type, link.size, link.linkname = tarfile.LNKTYPE, 0, info.name
                _add(archive, link)
        for path, node in plan.others:
            entry = stack.entry(node)
            if not stat.S_ISSOCK(entry.mode):
                _add(archive, infos.of(path, entry))
        # What comes into a directory moves its time, and may need permission: so they come last,
        # the deepest first.
        for path, node in reversed(plan.directories):
            _add(archive, infos.of(path, stack.entry(node)))


def _add(archive: tarfile.TarFile, info: tarfile.TarInfo, file: IO[bytes] | None = None) -> None:
    """Add an entry. With names that are not UTF-8, tarfile writes PAX headers that GNU tar does not
    know."""
    plain = _is_utf8(info.name) and _is_utf8(info.linkname)
    archive.format = tarfile.PAX_FORMAT if plain or info.pax_headers else tarfile.GNU_FORMAT
    archive.addfile(info, file)


def _is_utf8(text: str) -> bool:
    return not any("\udc80" <= char <= "\udcff" for char in text)


class _Infos:
    """Makes the headers of an archive in which the top is called `name`."""

    def __init__(self, name: bytes, warn: Warn) -> None:
        self._name, self._warn = name, warn

    def of(self, path: Path, entry: Entry) -> tarfile.TarInfo:
        """The header of one entry."""
        parts = (self._name, *path) if self._name else path
        info = tarfile.TarInfo(os.fsdecode(b"/".join(parts)) or "./")
        info.type = _TYPES[stat.S_IFMT(entry.mode)]
        info.mode, info.uid, info.gid = stat.S_IMODE(entry.mode), entry.uid, entry.gid
        info.size = entry.size if stat.S_ISREG(entry.mode) else 0
        info.linkname = os.fsdecode(entry.link)
        info.devmajor, info.devminor = os.major(entry.rdev), os.minor(entry.rdev)
        info.mtime = entry.mtime // 10**9
        info.pax_headers = dict(self._records(info.name, entry))
        return info

    def _records(self, name: str, entry: Entry) -> Iterator[tuple[str, str]]:
        """What only PAX records can say. tarfile takes text, and writes values that are not UTF-8
        as they were, but no such keys."""
        seconds, fraction = divmod(entry.mtime, 10**9)
        if fraction:
            time = f"{seconds}.{fraction:09}" if seconds >= 0 else f"{entry.mtime / 10**9:.9f}"
            yield "mtime", time
        for key, value in entry.xattrs.items():
            text = os.fsdecode(XATTR + key)
            if _is_utf8(text) and "=" not in text:
                yield text, os.fsdecode(value)
            else:
                shown = escaped(printable(key))
                self._warn(f"{escaped(name)}: the attribute {shown} is left out")


# to a place on disk


def extract(
    view: View, stack: Stack, node: Node, target: pathlib.Path, warn: Warn, *, owners: bool = False
) -> None:
    """Copy the node and all below it to `target`, which must not exist.

    Modes and times are kept, with `owners` also owners, attributes and devices; what cannot be made
    here is left out, with a warning. The copy is made beside the target in a directory that nobody
    else can enter, and gets its name when it is whole. ExistsError, ImageError, OSError.
    """
    parent, name = map(os.fsencode, os.path.split(os.path.abspath(target)))
    parent_fd = os.open(parent, DIR_FLAGS & ~os.O_NOFOLLOW)
    try:
        if _exists(parent_fd, name):
            raise _already(target)
        with _private(parent_fd) as fd:
            writer = _Writer(view, stack, node, fd, name, warn, owners=owners)
            with _named_errors(writer, target):
                writer.write()
            try:
                writer.move(parent_fd)
            except FileExistsError:
                raise _already(target) from None
    finally:
        os.close(parent_fd)


def _already(target: pathlib.Path) -> ExistsError:
    what = "there is something already"
    return ExistsError(what, where=target, hint="name a path that does not exist")


def _exists(fd: int, name: bytes) -> bool:
    try:
        os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


@contextlib.contextmanager
def _private(parent_fd: int) -> Iterator[int]:
    """A new directory that nobody else can enter; it goes at the end, with what is left in it."""
    name = b".fuseoverlay-" + secrets.token_hex(8).encode()
    os.mkdir(name, 0o700, dir_fd=parent_fd)
    try:
        fd = os.open(name, DIR_FLAGS, dir_fd=parent_fd)
        try:
            st = os.fstat(fd)
            if st.st_uid != os.geteuid() or st.st_mode & 0o077:
                raise os_error(errno.ESTALE, name)
            yield fd
        finally:
            os.close(fd)
    finally:
        with contextlib.suppress(FileNotFoundError):
            remove_tree(parent_fd, name)


@contextlib.contextmanager
def _named_errors(writer: _Writer, target: pathlib.Path) -> Iterator[None]:
    """Say of an OSError what could not be made."""
    try:
        yield
    except OSError as exc:
        where = os.path.join(os.fsencode(target.parent), *writer.current)
        raise CopyError(f"cannot be made: {describe(exc)}", where=where) from exc


class _Writer:
    """Makes copies below an open directory, which nobody else can enter."""

    def __init__(
        self, view: View, stack: Stack, node: Node, fd: int, name: bytes, warn: Warn, *,
        owners: bool,
    ) -> None:  # fmt: skip
        self._view, self._stack, self._node = view, stack, node
        self._fd, self._name, self._warn, self._owners = fd, name, warn, owners
        #: What is being made.
        self.current: Path = (name,)

    def write(self) -> None:
        """Make everything, but for the metadata of the top directory."""
        plan = _Plan(self._stack, self._node)
        with DirCache(self._fd) as cache:
            for path, _ in plan.directories:
                *above, name = self._place(path)
                os.mkdir(name, 0o700, dir_fd=cache.fd(tuple(above)))
            for paths, number, row, file in plan.contents(self._view):
                self._file(cache, paths, self._stack.layers[number].entry(row), file)
            for path, node in plan.others:
                *above, name = self._place(path)
                self._other(cache.fd(tuple(above)), name, self._stack.entry(node))
            # The deepest first: what is made in a directory moves its time.
            for path, node in reversed(plan.directories):
                if path:
                    self._dress(cache.fd(self._place(path)), self._stack.entry(node))

    def move(self, parent_fd: int) -> None:
        """Give what was made its name in this directory. FileExistsError."""
        self.current = (self._name,)
        if not self._node.is_dir:
            _move(self._fd, self._name, parent_fd)
            return
        fd = os.open(self._name, DIR_FLAGS, dir_fd=self._fd)
        try:
            _move(self._fd, self._name, parent_fd)
            # A directory that its owner may not write could not be moved.
            self._dress(fd, self._stack.entry(self._node))
        finally:
            os.close(fd)

    def _place(self, path: Path) -> Path:
        """Where something goes, which is what messages are about from now on."""
        self.current = (self._name, *path)
        return self.current

    def _file(self, cache: DirCache, paths: Sequence[Path], entry: Entry, file: IO[bytes]) -> None:
        *above, name = self._place(paths[0])
        dir_fd = cache.fd(tuple(above))
        fd = os.open(name, _CREATE, 0o600, dir_fd=dir_fd)
        try:
            _fill(fd, file, entry.size)
            self._dress(fd, entry)
        finally:
            os.close(fd)
        for other in paths[1:]:
            *beside, link = self._place(other)
            os.link(
                name, link, src_dir_fd=cache.fd(tuple(above)), dst_dir_fd=cache.fd(tuple(beside)),
                follow_symlinks=False,
            )  # fmt: skip

    def _other(self, dir_fd: int, name: bytes, entry: Entry) -> None:
        if stat.S_ISLNK(entry.mode):
            os.symlink(entry.link, name, dir_fd=dir_fd)
        elif stat.S_ISFIFO(entry.mode):
            os.mkfifo(name, 0o600, dir_fd=dir_fd)
        else:
            try:
                if not self._owners:
                    raise PermissionError(errno.EPERM, "only with owners")
                os.mknod(name, stat.S_IFMT(entry.mode) | 0o600, entry.rdev, dir_fd=dir_fd)
            except OSError as exc:
                self._leave_out("a device or socket", exc)
                return
        self._dress(at(dir_fd, name), entry)

    def _dress(self, target: int | bytes, entry: Entry) -> None:
        """Set owner, mode, attributes and times of what was just made."""
        follow = isinstance(target, int)
        mode, owned = stat.S_IMODE(entry.mode), False
        if self._owners:
            try:
                os.chown(target, entry.uid, entry.gid, follow_symlinks=follow)
                owned = True
            except OSError as exc:
                self._leave_out("the owner", exc)
        if not stat.S_ISLNK(entry.mode):
            os.chmod(target, mode if owned else mode & ~_WITH_OWNER)
        if self._owners:
            for key, value in entry.xattrs.items():
                try:
                    os.setxattr(target, key, value, follow_symlinks=follow)
                except OSError as exc:
                    self._leave_out(f"the attribute {escaped(printable(key))}", exc)
        os.utime(target, ns=(entry.mtime, entry.mtime), follow_symlinks=follow)

    def _leave_out(self, what: str, exc: OSError) -> None:
        path = escaped(printable(b"/".join(self.current)))
        self._warn(f"{path}: {what} is left out: {describe(exc)}")


def _fill(fd: int, file: IO[bytes], size: int) -> None:
    """Write the content; what is a hole in the archive, or looks like one, becomes one."""
    place = 0
    for offset, data in archived.pieces_of(file) or _pieces(file):
        if len(data) < _HOLE or data.count(0) != len(data):
            write_all(fd, data, offset)
        place = offset + len(data)
    os.ftruncate(fd, max(place, size))


def _pieces(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while data := file.read(_PIECE):
        yield offset, data
        offset += len(data)


def _move(source_fd: int, name: bytes, target_fd: int) -> None:
    """Move, replacing nothing. FileExistsError."""
    try:
        syscalls.renameat2(source_fd, name, target_fd, name, syscalls.RENAME_NOREPLACE)
    except OSError as exc:
        if exc.errno != errno.EINVAL:
            raise
        # A file system without RENAME_NOREPLACE. A plain rename of a directory replaces nothing but
        # an empty one, and a link nothing at all.
        if stat.S_ISDIR(os.stat(name, dir_fd=source_fd, follow_symlinks=False).st_mode):
            os.rename(name, name, src_dir_fd=source_fd, dst_dir_fd=target_fd)
        else:
            os.link(
                name, name, src_dir_fd=source_fd, dst_dir_fd=target_fd, follow_symlinks=False
            )  # fmt: skip
