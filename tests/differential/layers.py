"""The objects that cases find in their directory, each spread over three lowers and an upper.

A case names the objects it needs; each is made by a function of this module in the case's
own directory of the layers. The lowers are shared by everything that is mounted, the
upper is a template that each mount gets a copy of. All times are set at the end, another
one for each object of each layer, so that one from the wrong layer shows.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import stat
import struct
import zlib
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from tests.helpers.mounts import MODE, make_whiteout, set_overlay_xattr
from tests.ops.conftest import make_socket

#: 2001 and 2008: a changed time is never equal by accident.
ATIME, MTIME = 1_000_000_000, 1_200_000_000
LONG = "long-" + 250 * "n"
ODD = (b"new\nline", b"not-utf8-\xff\xfe", b"sp ace", b"-dash", b"back\\slash", b"com,ma:colon")

FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602
FS_IMMUTABLE, FS_APPEND = 0x10, 0x20
FS_SYNC, FS_NODUMP, FS_NOATIME = 0x08, 0x40, 0x80


class Layers:
    """The case's directory in each layer, made when it is first asked for."""

    def __init__(self, lowers: list[Path], upper: Path, data: Path, name: str) -> None:
        self._lowers, self._upper, self._data, self._name = lowers, upper, data, name

    def _directory(self, root: Path) -> Path:
        path = root / self._name
        path.mkdir(exist_ok=True)
        return path

    @cached_property
    def top(self) -> Path:
        """In the top lower."""
        return self._directory(self._lowers[0])

    @cached_property
    def middle(self) -> Path:
        """In the middle lower."""
        return self._directory(self._lowers[1])

    @cached_property
    def bottom(self) -> Path:
        """In the bottom lower."""
        return self._directory(self._lowers[2])

    @cached_property
    def upper(self) -> Path:
        """In the upper."""
        return self._directory(self._upper)

    @cached_property
    def data(self) -> Path:
        """In the layer that is data-only where a mount has one."""
        return self._directory(self._data)


Maker = Callable[[Layers, str], None]
OBJECTS: dict[str, Maker] = {}


def _object(maker: Maker) -> Maker:
    OBJECTS[maker.__name__] = maker
    return maker


def make(layers: Layers, needs: str) -> None:
    """Make the objects `needs` names: `KIND`, or `NAME=KIND`, with spaces between."""
    _ = layers.bottom
    for need in needs.split():
        name, _, kind = need.rpartition("=")
        OBJECTS[kind](layers, name or kind)


def mark_impure(upper: Path) -> None:
    """Say of all directories that lower objects may be in them, as whoever had made such an
    upper by mounting it would have done."""
    for path in (upper, *upper.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            set_overlay_xattr(path, "impure", b"y")


def set_times(roots: list[Path]) -> None:
    """Give everything below the roots times of its own, the deepest first."""
    for root in roots:
        for path in sorted(root.rglob("*"), key=lambda path: len(path.parts), reverse=True):
            number = zlib.crc32(os.fsencode(path.relative_to(root.parent)))
            second, ns = 1_000_000_000, number % 1_000_000_000
            times = (ATIME * second + ns, (MTIME + number % 1000) * second + ns)
            with contextlib.suppress(PermissionError):  # immutable
                os.utime(path, ns=times, follow_symlinks=False)


# Regular files


def _write(path: Path, text: str | bytes, mode: int = 0o644) -> None:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(mode)


@_object
def file(layers: Layers, name: str) -> None:
    """A lower file with an attribute."""
    _write(layers.bottom / name, f"bottom {name}\n" * 100, 0o640)
    os.setxattr(layers.bottom / name, "user.colour", b"red")


@_object
def ufile(layers: Layers, name: str) -> None:
    """A file that only the upper has."""
    _write(layers.upper / name, f"upper {name}\n", 0o604)


@_object
def ucover(layers: Layers, name: str) -> None:
    """An upper file over a lower one."""
    _write(layers.bottom / name, f"bottom {name}\n")
    _write(layers.upper / name, f"upper {name}\n", 0o606)


@_object
def covered(layers: Layers, name: str) -> None:
    """A file in all three lowers, another one in each."""
    for layer, mode in ((layers.top, 0o600), (layers.middle, 0o660), (layers.bottom, 0o666)):
        _write(layer / name, f"{layer.parent.name} {name}", mode)


@_object
def big(layers: Layers, name: str) -> None:
    """A lower file of more than one request."""
    _write(layers.middle / name, bytes(range(256)) * 1200)


@_object
def empty(layers: Layers, name: str) -> None:
    """A lower file without content."""
    _write(layers.middle / name, b"", 0o600)


@_object
def sparse(layers: Layers, name: str) -> None:
    """A lower file with holes."""
    with open(layers.bottom / name, "wb") as stream:
        stream.seek(1 << 18)
        stream.write(b"data between two holes")
        stream.truncate(1 << 20)


@_object
def suid(layers: Layers, name: str) -> None:
    """A lower program that sets user and group id."""
    _write(layers.bottom / name, "#!/bin/true\n", 0o6755)


@_object
def usuid(layers: Layers, name: str) -> None:
    """The same in the upper."""
    _write(layers.upper / name, "#!/bin/true\n", 0o6755)


@_object
def caps(layers: Layers, name: str) -> None:
    """A lower program with a capability."""
    _write(layers.bottom / name, "#!/bin/true\n", 0o755)
    value = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
    os.setxattr(layers.bottom / name, "security.capability", value)


@_object
def acl(layers: Layers, name: str) -> None:
    """A lower file with an access ACL."""
    _write(layers.bottom / name, "acl", 0o640)
    os.setxattr(layers.bottom / name, "system.posix_acl_access", posix_acl(group=0o6))


@_object
def noaccess(layers: Layers, name: str) -> None:
    """A lower file of mode 0."""
    _write(layers.bottom / name, "secret", 0)


@_object
def readonly(layers: Layers, name: str) -> None:
    """A lower file that nobody may write."""
    _write(layers.bottom / name, "read only", 0o444)


@_object
def open_to_all(layers: Layers, name: str) -> None:
    """A lower file that everybody may write."""
    _write(layers.bottom / name, "for all", 0o666)


@_object
def owned(layers: Layers, name: str) -> None:
    """A lower file of user and group 1000."""
    _write(layers.bottom / name, "mine", 0o664)
    os.chown(layers.bottom / name, 1000, 1000)


@_object
def suid_owned(layers: Layers, name: str) -> None:
    """A lower program of user and group 1000 that sets user and group id."""
    _write(layers.bottom / name, "#!/bin/true\n")
    os.chown(layers.bottom / name, 1000, 1000)
    (layers.bottom / name).chmod(0o6775)


@_object
def immutable(layers: Layers, name: str) -> None:
    """A lower file that cannot be changed."""
    _write(layers.bottom / name, "immutable")
    set_flags(layers.bottom / name, FS_IMMUTABLE)


@_object
def append(layers: Layers, name: str) -> None:
    """A lower file that can only grow."""
    _write(layers.bottom / name, "append-only")
    set_flags(layers.bottom / name, FS_APPEND)


@_object
def immutable_dir(layers: Layers, name: str) -> None:
    """A lower directory that cannot be changed."""
    _fill(layers.bottom / name)
    set_flags(layers.bottom / name, FS_IMMUTABLE)


@_object
def flagged(layers: Layers, name: str) -> None:
    """A lower file with flags that protect nothing: written at once, no access times, no dump."""
    _write(layers.bottom / name, "flagged")
    set_flags(layers.bottom / name, FS_SYNC | FS_NODUMP | FS_NOATIME)


@_object
def flagged_dir(layers: Layers, name: str) -> None:
    """A lower directory with the same."""
    _fill(layers.bottom / name)
    set_flags(layers.bottom / name, FS_SYNC | FS_NODUMP | FS_NOATIME)


@_object
def long_name(layers: Layers, name: str) -> None:
    """A lower file with a name as long as can be; `name` does not matter."""
    _write(layers.bottom / LONG, name)


@_object
def odd_names(layers: Layers, name: str) -> None:
    """Lower files and directories with names that need care, in a directory."""
    (layers.bottom / name).mkdir()
    base = os.fsencode(layers.bottom / name)
    for odd in ODD:
        with open(base + b"/" + odd, "wb") as stream:
            stream.write(odd)
        os.mkdir(base + b"/dir-" + odd)


# Hard links


@_object
def hard(layers: Layers, name: str) -> None:
    """A lower file with three names, NAME, NAME-2 and NAME-dir/NAME-3."""
    _write(layers.bottom / name, "hard " * 10)
    (layers.bottom / f"{name}-dir").mkdir()
    os.link(layers.bottom / name, layers.bottom / f"{name}-2")
    os.link(layers.bottom / name, layers.bottom / f"{name}-dir" / f"{name}-3")


@_object
def uhard(layers: Layers, name: str) -> None:
    """An upper file with two names, NAME and NAME-2."""
    _write(layers.upper / name, "upper hard")
    os.link(layers.upper / name, layers.upper / f"{name}-2")


@_object
def hard_link(layers: Layers, name: str) -> None:
    """A lower symbolic link with two names, NAME and NAME-2."""
    os.symlink("target", layers.bottom / name)
    os.link(layers.bottom / name, layers.bottom / f"{name}-2", follow_symlinks=False)


@_object
def hard_fifo(layers: Layers, name: str) -> None:
    """A lower fifo with two names, NAME and NAME-2."""
    os.mkfifo(layers.bottom / name)
    os.link(layers.bottom / name, layers.bottom / f"{name}-2")


# Links and special files


@_object
def link(layers: Layers, name: str) -> None:
    """A lower symbolic link to a name that may be there or not."""
    os.symlink("file", layers.bottom / name)


@_object
def ulink(layers: Layers, name: str) -> None:
    """A symbolic link that only the upper has."""
    os.symlink("file", layers.upper / name)


@_object
def dirlink(layers: Layers, name: str) -> None:
    """A lower symbolic link to `dir`."""
    os.symlink("dir", layers.middle / name)


@_object
def longlink(layers: Layers, name: str) -> None:
    """A lower symbolic link with a target as long as can be."""
    os.symlink("t/" * 2047, layers.middle / name)


@_object
def fifo(layers: Layers, name: str) -> None:
    """A lower fifo."""
    os.mkfifo(layers.bottom / name, 0o620)


@_object
def ufifo(layers: Layers, name: str) -> None:
    """A fifo that only the upper has."""
    os.mkfifo(layers.upper / name, 0o602)


@_object
def sock(layers: Layers, name: str) -> None:
    """A lower socket."""
    make_socket(layers.bottom / name)


@_object
def char(layers: Layers, name: str) -> None:
    """A lower character device: /dev/null."""
    os.mknod(layers.bottom / name, stat.S_IFCHR | 0o666, os.makedev(1, 3))


@_object
def block(layers: Layers, name: str) -> None:
    """A lower block device."""
    os.mknod(layers.bottom / name, stat.S_IFBLK | 0o600, os.makedev(7, 200))


# Directories


def _fill(path: Path, text: str = "child") -> None:
    (path / "sub").mkdir(parents=True)
    _write(path / "child", text)
    _write(path / "sub" / "leaf", f"{text} leaf")


@_object
def dir(layers: Layers, name: str) -> None:
    """A directory with content in one lower."""
    _fill(layers.bottom / name)
    (layers.bottom / name).chmod(0o750)


@_object
def edir(layers: Layers, name: str) -> None:
    """An empty directory in one lower."""
    (layers.middle / name).mkdir(mode=0o705)


@_object
def merged(layers: Layers, name: str) -> None:
    """A directory in all lowers: files of each, one covered, one hidden in the middle."""
    for layer in (layers.bottom, layers.middle, layers.top):
        where = layer.parent.name
        _fill(layer / name, where)
        _write(layer / name / f"only-{where}", where)
        _write(layer / name / "sub" / f"only-{where}", where)
    _write(layers.bottom / name / "gone", "must not be seen")
    make_whiteout(layers.middle / name / "gone")
    _fill(layers.bottom / name / "gone-dir")
    make_whiteout(layers.top / name / "gone-dir")
    (layers.top / name).chmod(0o711)


@_object
def udir(layers: Layers, name: str) -> None:
    """A directory with content that only the upper has."""
    _fill(layers.upper / name, "upper")


@_object
def uempty(layers: Layers, name: str) -> None:
    """An empty directory that only the upper has."""
    (layers.upper / name).mkdir()


@_object
def umerged(layers: Layers, name: str) -> None:
    """A directory with content in a lower and in the upper, one lower name hidden."""
    _fill(layers.bottom / name, "bottom")
    _write(layers.bottom / name / "gone", "must not be seen")
    _fill(layers.upper / name, "upper")
    make_whiteout(layers.upper / name / "gone")


@_object
def emptied(layers: Layers, name: str) -> None:
    """A directory whose lower content is all hidden by whiteouts of the upper."""
    _fill(layers.bottom / name)
    (layers.upper / name).mkdir()
    make_whiteout(layers.upper / name / "child")
    make_whiteout(layers.upper / name / "sub")


@_object
def low_emptied(layers: Layers, name: str) -> None:
    """A directory whose content in one lower is all hidden by whiteouts of another."""
    _fill(layers.bottom / name)
    (layers.top / name).mkdir()
    make_whiteout(layers.top / name / "child")
    make_whiteout(layers.top / name / "sub")


@_object
def opaque(layers: Layers, name: str) -> None:
    """A directory of a middle lower that hides the bottom's."""
    _fill(layers.bottom / name, "must not be seen")
    _write(layers.bottom / name / "hidden", "must not be seen")
    (layers.middle / name).mkdir()
    set_overlay_xattr(layers.middle / name, "opaque", b"y")
    _write(layers.middle / name / "own", "middle")


@_object
def uopaque(layers: Layers, name: str) -> None:
    """An upper directory that hides the lowers'."""
    _fill(layers.bottom / name, "must not be seen")
    _fill(layers.upper / name, "upper")
    set_overlay_xattr(layers.upper / name, "opaque", b"y")


@_object
def opaque_white(layers: Layers, name: str) -> None:
    """An opaque directory of a lower with a whiteout inside."""
    opaque(layers, name)
    make_whiteout(layers.middle / name / "hidden")


@_object
def low_white(layers: Layers, name: str) -> None:
    """A directory of one lower with a whiteout of nothing inside."""
    _fill(layers.bottom / name)
    make_whiteout(layers.bottom / name / "nothing")


@_object
def file_over_dir(layers: Layers, name: str) -> None:
    """A file of a middle lower over a directory of the bottom."""
    _fill(layers.bottom / name, "must not be seen")
    _write(layers.middle / name, "file over directory")


@_object
def dir_over_file(layers: Layers, name: str) -> None:
    """A directory of the top lower over a file, over a directory of the bottom."""
    _fill(layers.bottom / name, "must not be seen")
    _write(layers.middle / name, "must not be seen")
    (layers.top / name).mkdir()
    _write(layers.top / name / "own", "top")


@_object
def link_over_dir(layers: Layers, name: str) -> None:
    """A symbolic link of the upper over a lower directory."""
    _fill(layers.bottom / name, "must not be seen")
    os.symlink("file", layers.upper / name)


@_object
def sgid_dir(layers: Layers, name: str) -> None:
    """A lower directory that gives its group to what is made in it."""
    (layers.bottom / name).mkdir()
    with contextlib.suppress(OSError):  # in a user namespace there is no such group
        os.chown(layers.bottom / name, 0, 1234)
    (layers.bottom / name).chmod(0o2777)
    _write(layers.bottom / name / "child", "child")


@_object
def sticky(layers: Layers, name: str) -> None:
    """A lower directory like /tmp with a file of root's."""
    (layers.bottom / name).mkdir()
    _write(layers.bottom / name / "child", "root's")
    (layers.bottom / name).chmod(0o1777)


@_object
def default_acl(layers: Layers, name: str) -> None:
    """A lower directory with a default ACL."""
    (layers.bottom / name).mkdir(mode=0o755)
    os.setxattr(layers.bottom / name, "system.posix_acl_default", posix_acl(group=0o7, other=0o5))


@_object
def noaccess_dir(layers: Layers, name: str) -> None:
    """A lower directory of mode 0 with content."""
    _fill(layers.bottom / name)
    (layers.bottom / name).chmod(0)


@_object
def open_dir(layers: Layers, name: str) -> None:
    """A lower directory that everybody may write, with a file that nobody may."""
    (layers.bottom / name).mkdir()
    _write(layers.bottom / name / "child", "root's", 0o600)
    (layers.bottom / name).chmod(0o777)


@_object
def many(layers: Layers, name: str) -> None:
    """A directory of 120 files in two lowers and the upper, some covered, some hidden."""
    for layer, numbers in (
        (layers.bottom, range(80)),
        (layers.top, range(60, 100)),
        (layers.upper, range(96, 120)),
    ):
        (layer / name).mkdir()
        for number in numbers:
            (layer / name / f"n{number:03}").touch()
    for number in (*range(0, 80, 17), *range(81, 96, 7)):
        make_whiteout(layers.upper / name / f"n{number:03}")


@_object
def deep(layers: Layers, name: str) -> None:
    """Directories in directories, in two lowers."""
    for layer in (layers.bottom, layers.top):
        path = layer / name / "a" / "b" / "c" / "d"
        path.mkdir(parents=True)
        _write(path / f"leaf-{layer.parent.name}", "deep")


# Whiteouts


@_object
def white(layers: Layers, name: str) -> None:
    """A lower file hidden by the top lower: nothing to be seen."""
    _write(layers.bottom / name, "must not be seen")
    make_whiteout(layers.top / name)


@_object
def white_dir(layers: Layers, name: str) -> None:
    """A lower directory hidden by the top lower."""
    _fill(layers.bottom / name, "must not be seen")
    make_whiteout(layers.top / name)


@_object
def white_between(layers: Layers, name: str) -> None:
    """A directory hidden by a whiteout over which the top has another one."""
    _fill(layers.bottom / name, "must not be seen")
    make_whiteout(layers.middle / name)
    (layers.top / name).mkdir()
    _write(layers.top / name / "own", "top")


@_object
def uwhite(layers: Layers, name: str) -> None:
    """A lower file hidden by the upper."""
    _write(layers.bottom / name, "must not be seen")
    make_whiteout(layers.upper / name)


@_object
def uwhite_dir(layers: Layers, name: str) -> None:
    """A lower directory hidden by the upper."""
    _fill(layers.bottom / name, "must not be seen")
    make_whiteout(layers.upper / name)


@_object
def uwhite_nothing(layers: Layers, name: str) -> None:
    """A whiteout of the upper over nothing."""
    make_whiteout(layers.upper / name)


@_object
def xwhite(layers: Layers, name: str) -> None:
    """A directory in which a lower hides one file and one directory by attributes."""
    _fill(layers.bottom / name)
    _write(layers.bottom / name / "hidden", "must not be seen")
    _fill(layers.bottom / name / "hidden-dir")
    (layers.middle / name).mkdir()
    set_overlay_xattr(layers.middle / name, "opaque", b"x")
    for hidden in ("hidden", "hidden-dir"):
        _write(layers.middle / name / hidden, b"")
        set_overlay_xattr(layers.middle / name / hidden, "whiteout", b"y")
    _write(layers.middle / name / "own", "middle")


# Redirects and data elsewhere


@_object
def redirected(layers: Layers, name: str) -> None:
    """A directory of a middle lower that goes on in the bottom as NAME-old."""
    _fill(layers.bottom / f"{name}-old", "bottom")
    (layers.middle / name).mkdir()
    set_overlay_xattr(layers.middle / name, "redirect", f"{name}-old".encode())
    make_whiteout(layers.middle / f"{name}-old")
    _write(layers.middle / name / "own", "middle")


@_object
def uredirected(layers: Layers, name: str) -> None:
    """A directory of the upper that goes on in a lower elsewhere, by an absolute path."""
    (layers.bottom / f"{name}-at").mkdir()
    _fill(layers.bottom / f"{name}-at" / "old", "bottom")
    (layers.upper / name).mkdir()
    path = f"/{layers.bottom.name}/{name}-at/old"
    set_overlay_xattr(layers.upper / name, "redirect", path.encode())
    (layers.upper / f"{name}-at").mkdir()
    make_whiteout(layers.upper / f"{name}-at" / "old")


@_object
def metacopied(layers: Layers, name: str) -> None:
    """A file of the top lower that has its data in the bottom, under the same name."""
    _write(layers.bottom / name, "the data is here\n" * 100)
    with open(layers.top / name, "wb") as stream:
        stream.truncate(os.stat(layers.bottom / name).st_size)
    set_overlay_xattr(layers.top / name, "metacopy", b"")
    (layers.top / name).chmod(0o711)


@_object
def data_only(layers: Layers, name: str) -> None:
    """A file of a lower whose data is in the data-only layer, under another name."""
    _write(layers.data / f"{name}-data", "data of the data-only layer\n" * 100)
    with open(layers.bottom / name, "wb") as stream:
        stream.truncate(os.stat(layers.data / f"{name}-data").st_size)
    set_overlay_xattr(layers.bottom / name, "metacopy", b"")
    path = f"/{layers.data.name}/{name}-data"
    set_overlay_xattr(layers.bottom / name, "redirect", path.encode())


def posix_acl(*, group: int, other: int = 0, user: int = 1000) -> bytes:
    """An ACL that names one more user, who may read and write (acl(5))."""
    entries = [(1, 6, -1), (2, 6, user if MODE == "root" else 0), (4, 4, -1), (0x10, group, -1)]
    entries.append((0x20, other, -1))
    packed = (struct.pack("<HHI", tag, perm, who & 0xFFFFFFFF) for tag, perm, who in entries)
    return struct.pack("<I", 2) + b"".join(packed)


def get_flags(path: Path) -> int:
    """The flags that chattr(1) sets."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        flags = array.array("i", [0])
        fcntl.ioctl(fd, FS_IOC_GETFLAGS, flags)
        return flags[0]
    finally:
        os.close(fd)


def set_flags(path: Path, flags: int) -> None:
    """Set the flags that chattr(1) sets: of the two here these, the others stay."""
    flags |= get_flags(path) & ~(FS_IMMUTABLE | FS_APPEND)
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        fcntl.ioctl(fd, FS_IOC_SETFLAGS, array.array("i", [flags]))
    finally:
        os.close(fd)


def free_all(root: Path) -> None:
    """Take the flags away that keep files from being removed."""
    for where, directories, files in os.walk(root):
        for name in (*directories, *files):
            path = Path(where, name)
            with contextlib.suppress(OSError):
                regular = stat.S_IFMT(os.lstat(path).st_mode) in (stat.S_IFREG, stat.S_IFDIR)
                if regular and get_flags(path) & (FS_IMMUTABLE | FS_APPEND):
                    set_flags(path, 0)
