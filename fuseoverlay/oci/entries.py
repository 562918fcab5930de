"""Entries of a layer archive, read from a tar stream and checked.

Names come out as tuples of components from the layer's root, which is `/`: `.`, `..` and
empty ones are gone, as in what Go's path.Clean leaves. What leads out of the root is refused.

Sources: OCI image-spec layer.md; tar(5) of libarchive; pax in POSIX.1-2017.
"""

from __future__ import annotations

import os
import re
import stat
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from fuseoverlay.errors import ImageError, printable
from fuseoverlay.oci.headers import read_headers, sparse_map
from fuseoverlay.oci.streams import ForwardStream

#: PATH_MAX: no program could name the file.
MAX_PATH: Final = 4096
#: Linux device numbers: 12 bits major, 20 bits minor.
_MAX_MAJOR: Final = 0xFFF
_MAX_MINOR: Final = 0xFFFFF
_NO_ID: Final = 0xFFFFFFFF
_MAX_NUMBER: Final = 1 << 63
_MAX_SECONDS: Final = (1 << 63) - 1

_SCHILY: Final = "SCHILY.xattr."
_TIME: Final = re.compile(r"([+-]?)(\d+)(?:\.(\d*))?\Z", re.ASCII)

_KINDS: Final = {
    tarfile.REGTYPE: stat.S_IFREG,
    tarfile.AREGTYPE: stat.S_IFREG,
    tarfile.CONTTYPE: stat.S_IFREG,
    tarfile.GNUTYPE_SPARSE: stat.S_IFREG,
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
    tarfile.FIFOTYPE: stat.S_IFIFO,
}

Path = tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry. `mode` holds type and permission bits; `mtime` is in ns.

    `path` is empty for the root. `link` is a symbolic link's text; `hardlink`, where it
    is not None, the path of the file that this is another name of (the rest then
    means nothing). `segments`: offset and length of the pieces of a sparse file, None
    for a whole one. `size` is the size of the file in bytes, holes included.
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
    xattrs: dict[bytes, bytes] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The path for messages."""
        return show(self.path)


def show(path: Path) -> str:
    """`path` for messages."""
    return printable(b"/".join(path)) or "."


def read_entries(stream: ForwardStream, where: str) -> Iterator[Entry]:
    """Entries in the order of the archive; the caller reads an entry's data from `stream`.

    ImageError, naming the entry where there is one, for all that is not fit to unpack.
    """
    for info in read_headers(stream, where, hint="the image is damaged"):
        yield _entry(info, where)


def _entry(info: tarfile.TarInfo, where: str) -> Entry:
    path = _path(_bytes(info.name), "name", where)
    label = f"{where}: {show(path)}"
    if info.islnk():
        target = _path(_bytes(info.linkname), "hard link target", label)
        return Entry(path, stat.S_IFREG, hardlink=target)
    kind = _KINDS.get(info.type)
    if kind is None:
        raise ImageError(f"unknown tar entry type {info.type!r}", where=label)
    link = _bytes(info.linkname) if kind == stat.S_IFLNK else b""
    if kind == stat.S_IFLNK and (not link or b"\0" in link or len(link) >= MAX_PATH):
        raise ImageError("a symbolic link whose target is empty or too long", where=label)
    if not path and kind != stat.S_IFDIR:
        raise ImageError("the root of a layer must be a directory", where=label)
    return Entry(
        path=path,
        mode=kind | (info.mode & 0o7777),
        uid=_id(info.uid, label),
        gid=_id(info.gid, label),
        size=info.size if kind == stat.S_IFREG else 0,
        mtime=_mtime(info, label),
        rdev=_rdev(info, label) if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0,
        link=link,
        segments=sparse_map(info, label),
        xattrs=_xattrs(info.pax_headers, label),
    )


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _path(name: bytes, what: str, where: str) -> Path:
    if b"\0" in name or len(name) >= MAX_PATH:
        raise ImageError(f"bad {what}, it is too long or holds a zero byte", where=where)
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            if not parts:
                raise ImageError(f"{what} leads out of the layer: {_quote(name)}", where=where)
            parts.pop()
        elif part not in (b"", b"."):
            parts.append(part)
    return tuple(parts)


def _quote(name: bytes) -> str:
    return printable(name if len(name) <= 200 else name[:200] + b"...")


def _id(number: int, where: str) -> int:
    """A user or group number as chown(2) gets it from Go: its lower 32 bits, and not the highest
    number, which leaves the file root's. On macOS nobody is -2."""
    if not -_MAX_NUMBER <= number < _MAX_NUMBER:
        raise ImageError(f"{str(number)[:40]} is no user or group number", where=where)
    number &= _NO_ID
    return 0 if number == _NO_ID else number


def _mtime(info: tarfile.TarInfo, where: str) -> int:
    """The modification time in ns. tarfile's own is a float, which is too coarse."""
    text = info.pax_headers.get("mtime")
    if text is None:
        return _clamp(int(info.mtime)) * 10**9
    match = _TIME.match(text)
    if match is None:
        raise ImageError(f"not a time: {text[:40]!r}", where=where)
    sign, seconds, fraction = match.groups()
    # Digits beyond ns are cut; int() of thousands of digits would be refused by Python.
    ns = _clamp(int(seconds[:20])) * 10**9 + int((fraction or "")[:9].ljust(9, "0"))
    return -ns if sign == "-" else ns


def _clamp(seconds: int) -> int:
    return max(-_MAX_SECONDS, min(_MAX_SECONDS - 1, seconds))


def _rdev(info: tarfile.TarInfo, where: str) -> int:
    major, minor = info.devmajor, info.devminor
    if not (0 <= major <= _MAX_MAJOR and 0 <= minor <= _MAX_MINOR):
        raise ImageError(f"{major}:{minor} is no device number", where=where)
    if info.ischr() and not major and not minor:
        raise ImageError(
            "a character device 0:0, which an overlay takes for a deletion", where=where
        )
    return os.makedev(major, minor)


def _xattrs(headers: Mapping[str, str], where: str) -> dict[bytes, bytes]:
    """Extended attributes, in the form of star, GNU tar and Go, which holds raw bytes.

    libarchive's own, `LIBARCHIVE.xattr.`, none of those reads; what it writes has both.
    """
    found = {
        _bytes(key[len(_SCHILY) :]): _bytes(value)
        for key, value in headers.items()
        if key.startswith(_SCHILY)
    }
    if any(not name or b"\0" in name for name in found):
        raise ImageError("an extended attribute without a name", where=where)
    return found
