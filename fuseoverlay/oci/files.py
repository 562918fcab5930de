"""The files of an image, by name, in a directory or in a tar archive.

Names are relative to the image, like `blobs/sha256/HEX`; its root is `/`. In an archive, links
(docker writes them between equal layers) are followed only among the archive's own members, by name
and never through the filesystem.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import posixpath
import re
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, Final, Protocol, cast

from fuseoverlay.errors import ImageError, StoreError, describe
from fuseoverlay.oci import headers, model
from fuseoverlay.oci.headers import Header, read_headers
from fuseoverlay.oci.model import Descriptor, Digest
from fuseoverlay.oci.streams import (
    CHUNK,
    HEAD,
    MemberStream,
    Readable,
    compression_of,
    decode_errors,
    open_plain,
)

#: How `version` begins in a directory that skopeo writes as `dir:`.
_COPIED: Final = b"Directory Transport Version: "
_INDEX: Final = "index.json"
_BLOB: Final = re.compile(r"blobs/(\w+)/([0-9a-f]+)\Z", re.ASCII)
#: Real manifests stay below 1 MiB.
_MAX_MANIFEST: Final = 16 << 20
_MAX_LINKS: Final = 40
#: A longer name cannot be the path of a file.
_MAX_PATH: Final = 4096
#: Members are kept in memory: about so many bytes for each besides its names, for each piece of it,
#: and for all together.
_MEMBER: Final = 400
_PIECE: Final = 130
_MAX_NAMES: Final = 64 << 20
#: Zeros in holes take up no space, but take time.
_MAX_HOLES: Final = 16 << 30


class Files(Protocol):
    """The files of one image. `open` raises ImageError if there is no such name."""

    def has(self, name: str) -> bool:
        """Whether there is such a file."""

    def open(self, name: str) -> tuple[IO[bytes], int]:
        """The content, positioned at its beginning, and its size in bytes."""


class DirectoryFiles:
    """An OCI layout directory (or an unpacked `docker save` archive)."""

    def __init__(self, root: str) -> None:
        self._root = root

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        inner = _inner(name)
        return inner is not None and os.path.exists(os.path.join(self._root, inner))

    def open(self, name: str) -> tuple[IO[bytes], int]:
        """Open a regular file. A fifo or device of that name is refused, not waited for."""
        inner = _inner(name)
        if inner is None:
            raise ImageError("not a name inside the image", where=name)
        path = os.path.join(self._root, inner)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as exc:
            hint = "see to it that you may read it" if exc.errno == errno.EACCES else None
            raise ImageError(_missing(exc), where=path, hint=hint) from exc
        st = os.fstat(fd)
        if not stat.S_ISREG(st.st_mode):
            os.close(fd)
            raise ImageError("not a regular file", where=path)
        return cast("IO[bytes]", io.FileIO(fd, "rb")), st.st_size


def is_copied(path: str) -> bool:
    """Whether the directory is one that skopeo writes as `dir:`."""
    try:
        with open(os.path.join(path, "version"), "rb") as file:
            return file.read(len(_COPIED)) == _COPIED
    except OSError:
        return False


class CopiedFiles:
    """A directory that skopeo writes as `dir:`, seen as an OCI layout with one image.

    `manifest.json` is its manifest or index, `HEX.manifest.json` one that an index names, `HEX` any
    other blob.
    """

    def __init__(self, root: str) -> None:
        self._files = DirectoryFiles(root)
        where = f"{root}/manifest.json"
        file, size = self._files.open("manifest.json")
        with file:
            if size > _MAX_MANIFEST:
                raise ImageError(f"larger than {_MAX_MANIFEST} bytes", where=where)
            data = file.read()
        fields = model.expect_fields(model.decode_json(data, where), "manifest")
        kind = model.OCI_MANIFEST if fields.get("manifests") is None else model.OCI_INDEX
        top = Descriptor(fields.get("mediaType") or kind, Digest.of(data), len(data))
        self._top = top.digest.hex
        self._index = json.dumps({"schemaVersion": 2, "manifests": [top.to_json()]}).encode()

    def has(self, name: str) -> bool:
        """Whether there is such a file in the layout."""
        return name == _INDEX or self._place(name) is not None

    def open(self, name: str) -> tuple[IO[bytes], int]:
        """Open a file of the layout."""
        if name == _INDEX:
            return io.BytesIO(self._index), len(self._index)
        return self._files.open(self._place(name) or name)

    def _place(self, name: str) -> str | None:
        """Where a blob of the layout is here."""
        match = _BLOB.match(name)
        if match is None:
            return None
        algorithm, hex_digits = match.groups()
        places = [f"{hex_digits}.manifest.json", hex_digits, f"{algorithm}-{hex_digits}"]
        if hex_digits == self._top:
            places.insert(0, "manifest.json")
        return next((place for place in places if self._files.has(place)), None)


@dataclass(frozen=True, slots=True)
class _Member:
    """Where a file lies in an archive, or which other name it links to.

    `pieces`: offset and length of the stored pieces; None if this is not a readable file.
    """

    offset: int = 0
    size: int = 0
    pieces: tuple[tuple[int, int], ...] | None = None
    link: str | None = None


class ArchiveFiles:
    """A seekable tar archive, whose members are listed once."""

    def __init__(self, file: IO[bytes], path: str) -> None:
        self._file = file
        self._path = path
        self._members = _scan(file, path)

    def has(self, name: str) -> bool:
        """Whether there is such a member, links followed."""
        return self._find(name) is not None

    def open(self, name: str) -> tuple[IO[bytes], int]:
        """Open a member."""
        member = self._find(name)
        if member is None:
            raise ImageError(f"{name} is missing", where=self._path, hint="the archive is damaged")
        if member.pieces is None:
            raise ImageError(f"{name} is no regular file", where=self._path)
        window = _Window(self._file.fileno(), member.offset, member.pieces, member.size)
        return cast("IO[bytes]", window), member.size

    def _find(self, name: str) -> _Member | None:
        inner = _inner(name)
        for _ in range(_MAX_LINKS):
            member = None if inner is None else self._members.get(inner)
            if member is None or member.link is None:
                return member
            inner = _inner(member.link)
        raise ImageError(f"{name}: too many links", where=self._path)


class _Window(io.RawIOBase):
    """A file of `size` bytes in an archive, with a position of its own.

    The data of its `pieces` lie in the archive one after the other, from `offset` on. Between
    pieces the file has zeros.
    """

    def __init__(
        self, fd: int, offset: int, pieces: tuple[tuple[int, int], ...], size: int
    ) -> None:
        super().__init__()
        self._fd = fd
        self._offset = offset
        self._left = list(reversed(pieces))
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        """Always True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read at the position of this file."""
        view = memoryview(buffer).cast("B")
        begin, length = self._left[-1] if self._left else (self._size, 0)
        if self._position < begin:
            count = min(len(view), begin - self._position)
            view[:count] = bytes(count)
        else:
            count = os.preadv(self._fd, [view[: begin + length - self._position]], self._offset)
            self._offset += count
        self._position += count
        if self._left and self._position == begin + length:
            self._left.pop()
        return count


def _scan(file: IO[bytes], path: str) -> dict[str, _Member]:
    """List the members: regular files, symbolic and hard links. The last one of a name counts."""
    members: dict[str, _Member] = {}
    room = _MAX_NAMES
    hint = "it is cut short or damaged, or no image at all"
    try:
        stream = MemberStream(file, path)
        for header in read_headers(stream, path, kind="image archive", hint=hint):
            name = _inner(_text(header.name))
            if name is None or header.type == headers.DIRECTORY or len(name) > _MAX_PATH:
                # Nothing that anybody can ask for.
                continue
            members[name] = _member(header, name, f"{path}: {name}")
            pieces = len(members[name].pieces or ())
            room -= _MEMBER + len(name) + len(header.linkname) + pieces * _PIECE
            if room < 0:
                raise ImageError("too many members for an image archive", where=path)
    except OSError as exc:
        hint = "the disk that it is on may be broken"
        raise ImageError(f"cannot read: {describe(exc)}", where=path, hint=hint) from exc
    return members


def _member(header: Header, name: str, where: str) -> _Member:
    if header.type == headers.SYMBOLIC_LINK:
        return _Member(link=posixpath.join(posixpath.dirname(name), _text(header.linkname)))
    if header.type == headers.HARD_LINK:
        return _Member(link=_text(header.linkname))
    if header.type not in (headers.REGULAR, headers.CONTIGUOUS, headers.OLD_SPARSE):
        # Builders' archives hold all kinds of things beside the image.
        return _Member()
    pieces = header.pieces
    if pieces is None:
        pieces = ((0, header.size),) if header.size else ()
    elif header.size - sum(length for _, length in pieces) > _MAX_HOLES:
        raise ImageError(f"a sparse file with more than {_MAX_HOLES} bytes of holes", where=where)
    return _Member(header.offset, header.size, pieces)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _inner(name: str) -> str | None:
    """`name` relative to the root, without `.` and `..`; None if it leads out of the image."""
    if "\0" in name:
        return None
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        # JSON may contain single halves of surrogate pairs.
        return None
    clean = posixpath.normpath(name.lstrip("/"))
    return None if clean == ".." or clean.startswith("../") else clean


@contextlib.contextmanager
def open_files(path: str, scratch: str | None) -> Iterator[Files]:
    """The files of the image at `path`.

    A compressed archive is first decompressed into an unnamed file in the directory `scratch`,
    since its members are not read in the order of the archive.
    """
    if os.path.isdir(path):
        yield CopiedFiles(path) if is_copied(path) else DirectoryFiles(path)
        return
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise ImageError(
                "neither a directory nor a regular file", where=path, hint="name an image"
            )
    except OSError as exc:
        raise ImageError(_missing(exc), where=path, hint="name a file that you may read") from exc
    with open(fd, "rb") as file, contextlib.ExitStack() as stack:
        kind = compression_of(file.read(HEAD))
        file.seek(0)
        if kind is None:
            yield ArchiveFiles(file, path)
            return
        plain = stack.enter_context(_temporary(scratch))
        with decode_errors(path):
            decoded = open_plain(file, kind)
        _copy(decoded, plain, path, scratch)
        yield ArchiveFiles(plain, path)


def _temporary(scratch: str | None) -> IO[bytes]:
    try:
        return cast("IO[bytes]", tempfile.TemporaryFile(dir=scratch))
    except OSError as exc:
        raise StoreError(f"no temporary file: {describe(exc)}", where=scratch) from exc


def _copy(source: Readable, target: IO[bytes], path: str, scratch: str | None) -> None:
    while True:
        with decode_errors(path):
            chunk = source.read(CHUNK)
        try:
            target.write(chunk)
            if not chunk:
                # Seeking flushes the buffer, which may find the disk full.
                target.seek(0)
                return
        except OSError as exc:
            raise StoreError(
                f"cannot decompress {path}: {describe(exc)}",
                where=scratch or tempfile.gettempdir(),
                hint="make room there",
            ) from exc


def _missing(exc: OSError) -> str:
    return f"cannot open: {describe(exc)}"
