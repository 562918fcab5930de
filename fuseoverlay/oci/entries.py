"""Entries of a layer archive, read from a tar stream and checked.

Names become tuples of components from the layer's root, which is `/`: without `.`, `..` and empty
components, as after Go's path.Clean. Names that lead out of the root are refused.

Sources: OCI image-spec layer.md; tar(5) of libarchive; pax in POSIX.1-2017.
"""

from __future__ import annotations

import functools
import os
import re
import stat
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from fuseoverlay.errors import ImageError, printable
from fuseoverlay.oci import headers
from fuseoverlay.oci.headers import Header, read_headers
from fuseoverlay.oci.streams import ForwardStream

#: PATH_MAX: no program could name a file with a longer path.
MAX_PATH: Final = 4096
#: Linux device numbers: 12 bits major, 20 bits minor.
_MAX_MAJOR: Final = 0xFFF
_MAX_MINOR: Final = 0xFFFFF
_NO_ID: Final = 0xFFFFFFFF
_MAX_NUMBER: Final = 1 << 63
_NO_NAMES: Final = (b"", b".", b"..")
_MAX_SECONDS: Final = (1 << 63) - 1

_TIME: Final = re.compile(rb"([+-]?)([0-9]+)(?:\.([0-9]*))?\Z")

_KINDS: Final = {
    headers.REGULAR: stat.S_IFREG,
    headers.CONTIGUOUS: stat.S_IFREG,
    headers.OLD_SPARSE: stat.S_IFREG,
    headers.DIRECTORY: stat.S_IFDIR,
    headers.SYMBOLIC_LINK: stat.S_IFLNK,
    headers.CHARACTER: stat.S_IFCHR,
    headers.BLOCK: stat.S_IFBLK,
    headers.FIFO: stat.S_IFIFO,
}

Path = tuple[bytes, ...]

_NO_XATTRS: Final[Mapping[bytes, bytes]] = MappingProxyType({})


class Entry(NamedTuple):
    """One entry. `mode` holds type and permission bits; `mtime` is in ns.

    `path` is empty for the root. `link` is the target of a symbolic link. `hardlink`, if not None,
    is the path of the file of which this is another name; the other fields then mean nothing.
    `segments`: offset and length of each piece of a sparse file; None if it is not sparse. `size`
    is the size of the file in bytes, holes included.
    """

    path: Path
    mode: int
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime: int = 0
    rdev: int = 0
    link: bytes = b""
    hardlink: Path | None = None
    segments: tuple[tuple[int, int], ...] | None = None
    xattrs: Mapping[bytes, bytes] = _NO_XATTRS

    @property
    def name(self) -> str:
        """The path for messages."""
        return show(self.path)


def show(path: Path) -> str:
    """`path` for messages."""
    return printable(b"/".join(path)) or "."


def read_entries(stream: ForwardStream, where: str) -> Iterator[Entry]:
    """Entries in the order of the archive. The caller reads an entry's data from `stream`.

    ImageError for anything that cannot be unpacked, naming the entry if there is one.
    """
    for header in read_headers(stream, where, hint="the image is damaged"):
        yield _entry(header, where)


def _entry(header: Header, where: str) -> Entry:
    path = _path(header.name, "name", where)
    try:
        return _checked(header, path)
    except ImageError as exc:
        exc.where = f"{where}: {show(path)}"
        raise


def _checked(header: Header, path: Path) -> Entry:
    if header.type == headers.HARD_LINK:
        target = _path(header.linkname, "hard link target", None)
        return Entry(path, stat.S_IFREG, hardlink=target)
    kind = _KINDS.get(header.type)
    if kind is None:
        raise ImageError(f"unknown tar entry type {header.type!r}")
    link = header.linkname if kind == stat.S_IFLNK else b""
    if kind == stat.S_IFLNK and (not link or b"\0" in link or len(link) >= MAX_PATH):
        raise ImageError("a symbolic link whose target is empty or too long")
    if not path and kind != stat.S_IFDIR:
        raise ImageError("the root of a layer must be a directory")
    return Entry(
        path,
        kind | (header.mode & 0o7777),
        _id(header.uid),
        _id(header.gid),
        header.size,
        _mtime(header),
        _rdev(header) if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0,
        link,
        None,
        header.pieces,
        _xattrs(header.xattrs) if header.xattrs else _NO_XATTRS,
    )


def _path(name: bytes, what: str, where: str | None) -> Path:
    if b"\0" in name or len(name) >= MAX_PATH:
        raise ImageError(f"bad {what}, it is too long or holds a zero byte", where=where)
    above, _, last = name.rstrip(b"/").rpartition(b"/")
    if last in _NO_NAMES:
        above, last = name, b""
    parts = _components(above)
    if parts is None:
        raise ImageError(f"{what} leads out of the layer: {_quote(name)}", where=where)
    return (*parts, last) if last else parts


@functools.lru_cache(maxsize=64)
def _components(name: bytes) -> Path | None:
    """The names in a path; None if it leads out of the layer. Those of a directory's entries are
    asked for one after the other."""
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            if not parts:
                return None
            parts.pop()
        elif part not in _NO_NAMES:
            parts.append(part)
    return tuple(parts)


def _quote(name: bytes) -> str:
    return printable(name if len(name) <= 200 else name[:200] + b"...")


def _id(number: int) -> int:
    """A user or group id as Go passes it to chown(2): the lower 32 bits. 0 for the greatest number,
    which leaves the file root's. On macOS nobody is -2."""
    if not -_MAX_NUMBER <= number < _MAX_NUMBER:
        raise ImageError(f"{str(number)[:40]} is no user or group number")
    number &= _NO_ID
    return 0 if number == _NO_ID else number


def _mtime(header: Header) -> int:
    """The modification time in ns; as in Go, 0 for times before 1677, among them Go's zero time."""
    ns = _mtime_said(header)
    return ns if ns >= -(1 << 63) else 0


def _mtime_said(header: Header) -> int:
    if not header.mtime:
        return _clamp(header.seconds) * 10**9
    match = _TIME.match(header.mtime)
    if match is None:
        raise ImageError(f"not a time: {printable(header.mtime[:40])!r}")
    sign, seconds, fraction = match.groups()
    # Digits beyond ns are cut off. Python refuses int() of thousands of digits.
    ns = _clamp(int(seconds[:20])) * 10**9 + int((fraction or b"")[:9].ljust(9, b"0"))
    return -ns if sign == b"-" else ns


def _clamp(seconds: int) -> int:
    return max(-_MAX_SECONDS, min(_MAX_SECONDS - 1, seconds))


def _rdev(header: Header) -> int:
    """The device number as Go passes it to mknod(2): cut to the bits that Linux has."""
    major, minor = header.major & _MAX_MAJOR, header.minor & _MAX_MINOR
    if header.type == headers.CHARACTER and not major and not minor:
        raise ImageError("a character device 0:0, which an overlay takes for a deletion")
    return os.makedev(major, minor)


def _xattrs(found: Mapping[bytes, bytes]) -> Mapping[bytes, bytes]:
    if any(not name or b"\0" in name for name in found):
        raise ImageError("an extended attribute without a name")
    return found
