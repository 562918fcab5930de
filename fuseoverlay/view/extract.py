"""Copy files and trees out of layers: to a place on disk, or into a tar archive.

Directories come first, then the files of one layer after the other in the order of its archive, so
that each archive is read once; links come last. A target that exists is never touched.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import shutil
import stat
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Final

from fuseoverlay.errors import FuseOverlayError, describe, escaped, printable
from fuseoverlay.oci.records import XATTR
from fuseoverlay.oci.tree import DirCache
from fuseoverlay.system.removal import remove_tree
from fuseoverlay.system.syscalls import DIR_FLAGS, at
from fuseoverlay.view.layerindex import Entry
from fuseoverlay.view.opened import View
from fuseoverlay.view.stack import Node, Path, Stack

Warn = Callable[[str], None]

_PIECE: Final = 1 << 20
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


def write_tar(view: View, stack: Stack, top: Node, name: bytes, target: IO[bytes]) -> None:
    """Write the node and all below it as an archive, in which it is called `name`; "." stands for
    the content of a directory. ImageError, OSError."""
    plan = _Plan(stack, top)
    with tarfile.open(fileobj=target, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for paths, number, row, file in plan.contents(view):
            info = _info(_named(name, paths[0]), stack.layers[number].entry(row))
            _add(archive, info, file)
            # So that a content that is not what it should be is noticed.
            file.read(1)
            for other in paths[1:]:
                link = _info(_named(name, other), stack.layers[number].entry(row))
                link.type, link.size, link.linkname = tarfile.LNKTYPE, 0, info.name
                _add(archive, link)
        for path, node in plan.others:
            entry = stack.entry(node)
            if not stat.S_ISSOCK(entry.mode):
                _add(archive, _info(_named(name, path), entry))
        # What comes into a directory moves its time, and may need permission: so they come last,
        # the deepest first.
        for path, node in reversed(plan.directories):
            _add(archive, _info(_named(name, path), stack.entry(node)))


def _add(archive: tarfile.TarFile, info: tarfile.TarInfo, file: IO[bytes] | None = None) -> None:
    """Add an entry. With names that are not UTF-8, tarfile writes PAX headers that GNU tar does not
    know."""
    plain = _is_utf8(info.name) and _is_utf8(info.linkname)
    archive.format = tarfile.PAX_FORMAT if plain or info.pax_headers else tarfile.GNU_FORMAT
    archive.addfile(info, file)


def _is_utf8(text: str) -> bool:
    return not any("\udc80" <= char <= "\udcff" for char in text)


def _named(name: bytes, path: Path) -> str:
    return os.fsdecode(b"/".join((name, *path)))


def _info(name: str, entry: Entry) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = _TYPES[stat.S_IFMT(entry.mode)]
    info.mode, info.uid, info.gid = stat.S_IMODE(entry.mode), entry.uid, entry.gid
    info.size = entry.size if stat.S_ISREG(entry.mode) else 0
    info.linkname = os.fsdecode(entry.link)
    info.devmajor, info.devminor = os.major(entry.rdev), os.minor(entry.rdev)
    info.mtime = entry.mtime // 10**9
    info.pax_headers = dict(_records(entry))
    return info


def _records(entry: Entry) -> Iterator[tuple[str, str]]:
    """What only PAX records can say. tarfile takes text, and writes what was no UTF-8 as it was."""
    seconds, fraction = divmod(entry.mtime, 10**9)
    if fraction:
        yield "mtime", f"{seconds}.{fraction:09}" if seconds >= 0 else f"{entry.mtime / 10**9:.9f}"
    for key, value in entry.xattrs.items():
        yield os.fsdecode(XATTR + key), os.fsdecode(value)


# to a place on disk


def extract(
    view: View, stack: Stack, node: Node, target: pathlib.Path, warn: Warn, *, owners: bool = False
) -> None:
    """Copy the node and all below it to `target`, which must not exist.

    Modes and times are kept, with `owners` also owners, attributes and devices; what cannot be made
    here is left out, with a warning. If anything else fails, what was made is removed. ExistsError,
    ImageError, OSError.
    """
    parent, name = os.path.split(os.path.abspath(target))
    fd = os.open(parent, DIR_FLAGS & ~os.O_NOFOLLOW)
    try:
        if _exists(fd, name):
            what = "there is something already"
            raise ExistsError(what, where=target, hint="name a path that does not exist")
        try:
            _Writer(view, stack, node, fd, os.fsencode(name), warn, owners=owners).write()
        except BaseException:
            _remove(fd, name)
            raise
    finally:
        os.close(fd)


def _exists(fd: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _remove(fd: int, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        remove_tree(fd, os.fsencode(name))


class _Writer:
    """Makes copies below an open directory. Nothing follows a link: every directory on the way was
    made here."""

    def __init__(
        self, view: View, stack: Stack, node: Node, fd: int, name: bytes, warn: Warn, *,
        owners: bool,
    ) -> None:  # fmt: skip
        self._view, self._stack, self._node = view, stack, node
        self._fd, self._name, self._warn, self._owners = fd, name, warn, owners
        self._current: Path = ()

    def write(self) -> None:
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
                *above, name = self._place(path)
                self._dress(cache.fd(tuple(above)), name, self._stack.entry(node))

    def _place(self, path: Path) -> Path:
        """Where something goes, which is what messages are about from now on."""
        self._current = (self._name, *path)
        return self._current

    def _file(self, cache: DirCache, paths: Sequence[Path], entry: Entry, file: IO[bytes]) -> None:
        *above, name = self._place(paths[0])
        dir_fd = cache.fd(tuple(above))
        with open(os.open(name, _CREATE, 0o600, dir_fd=dir_fd), "wb") as copy:
            shutil.copyfileobj(file, copy, _PIECE)
        self._dress(dir_fd, name, entry)
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
        self._dress(dir_fd, name, entry)

    def _dress(self, dir_fd: int, name: bytes, entry: Entry) -> None:
        """Set owner, mode, attributes and times of what was just made."""
        mode, owned = stat.S_IMODE(entry.mode), False
        if self._owners:
            try:
                os.chown(name, entry.uid, entry.gid, dir_fd=dir_fd, follow_symlinks=False)
                owned = True
            except OSError as exc:
                self._leave_out("the owner", exc)
        if not stat.S_ISLNK(entry.mode):
            os.chmod(name, mode if owned else mode & ~_WITH_OWNER, dir_fd=dir_fd)
        if self._owners:
            for key, value in entry.xattrs.items():
                try:
                    os.setxattr(at(dir_fd, name), key, value, follow_symlinks=False)
                except OSError as exc:
                    self._leave_out(f"the attribute {escaped(printable(key))}", exc)
        os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=dir_fd, follow_symlinks=False)

    def _leave_out(self, what: str, exc: OSError) -> None:
        path = escaped(printable(b"/".join(self._current)))
        self._warn(f"{path}: {what} is left out: {describe(exc)}")
