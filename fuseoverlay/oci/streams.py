"""Byte streams between an image file and the tar parser.

`BlobReader` checks a blob's size and digest while it is read. `decompress` decompresses gzip, zstd,
xz or bzip2. `ForwardStream` hashes the result and reads it without ever going back. Each raises
`ImageError` for bad content.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import re
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, Final, Protocol, Self, cast

from fuseoverlay.errors import DigestError, ImageError, describe
from fuseoverlay.oci.ahead import Ahead
from fuseoverlay.oci.members import open_bzip2, open_xz
from fuseoverlay.oci.model import Digest

CHUNK: Final = 256 * 1024

#: How many bytes tell the compression.
HEAD: Final = 10
GZIP_MAGIC: Final = b"\x1f\x8b"
ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
#: A zstd stream may begin with a skippable frame (pzstd, zstd:chunked): 0x184D2A5?.
_ZSTD_SKIPPABLE: Final = b"\x2a\x4d\x18"
_XZ_MAGIC: Final = b"\xfd7zXZ\0"
#: The block size, then a block or the end. A shorter pattern could match the name in a tar header.
_BZIP2_MAGIC: Final = re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)")


class Readable(Protocol):
    """Any object with `read`."""

    def read(self, size: int = -1, /) -> bytes: ...


class BlobReader(io.RawIOBase):
    """A blob of `size` bytes in `raw`, checked while it is read.

    DigestError at the end if the digest is wrong; ImageError if there are fewer bytes than `size`.
    Without `digest` nothing is compared. `progress` is told how many bytes each read took. Closes
    `raw` when closed.
    """

    def __init__(
        self,
        raw: IO[bytes],
        size: int,
        digest: Digest | None,
        where: str,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        super().__init__()
        self._raw = raw
        self._left = size
        self._digest = digest
        self._hasher = digest.hasher() if digest else None
        self._where = where
        self._progress = progress

    def readable(self) -> bool:
        """Always True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer`; 0 at the end, after the digest was checked."""
        view = memoryview(buffer).cast("B")[: self._left]
        if not view:
            if not self._left:
                self._check()
            return 0
        try:
            count = cast("io.BufferedReader", self._raw).readinto(view)
        except OSError as exc:
            raise ImageError(f"cannot read: {describe(exc)}", where=self._where) from exc
        if not count:
            raise ImageError(f"cut short, {self._left} bytes are missing", where=self._where)
        self._left -= count
        if self._hasher is not None:
            self._hasher.update(view[:count])
        if self._progress is not None:
            self._progress(count)
        return count

    def finish(self) -> None:
        """Read what is left, so that everything is checked."""
        buffer = bytearray(CHUNK)
        while self.readinto(buffer):
            pass

    def _check(self) -> None:
        if self._hasher is None or self._digest is None:
            return
        found, self._hasher = self._hasher.hexdigest(), None
        if found != self._digest.hex:
            raise DigestError(
                f"wrong digest {self._digest.algorithm}:{found}, it should be {self._digest}",
                where=self._where,
                hint="the image is damaged, fetch it again",
            )

    def close(self) -> None:
        """Close the underlying file, too."""
        if not self.closed:
            self._raw.close()
        super().close()


def compression_of(head: bytes) -> str | None:
    """`gzip`, `zstd`, `xz`, `bzip2` or None, told from the first `HEAD` bytes.

    The media type does not count: docker writes plain layers under a gzip type, and in the end the
    digest of the plain stream decides.
    """
    if head.startswith(GZIP_MAGIC):
        return "gzip"
    if head.startswith(ZSTD_MAGIC) or (head[1:4] == _ZSTD_SKIPPABLE and head[0] >> 4 == 5):
        return "zstd"
    if head.startswith(_XZ_MAGIC):
        return "xz"
    return "bzip2" if _BZIP2_MAGIC.match(head) else None


def open_plain(raw: IO[bytes], kind: str) -> Readable:
    """The plain bytes of `raw`, which is compressed as `kind` of `compression_of` says."""
    openers: dict[str, Callable[[IO[bytes]], Readable]] = {
        "gzip": open_gzip,
        "zstd": open_zstd,
        "xz": open_xz,
        "bzip2": open_bzip2,
    }
    return openers[kind](raw)


def open_gzip(raw: IO[bytes]) -> Readable:
    """The plain bytes of a gzip stream, decompressed by isal if it is installed (5 times as
    fast)."""
    try:
        from isal import igzip
    except ImportError:
        return gzip.GzipFile(fileobj=raw, mode="rb")
    opener: Any = igzip.IGzipFile
    return cast("Readable", opener(fileobj=raw, mode="rb"))


def gzip_writer(target: IO[bytes]) -> IO[bytes]:
    """A file that compresses into `target` what is written to it. The same bytes give the same."""
    try:
        from isal import igzip
    except ImportError:
        found: Any = gzip.GzipFile(fileobj=target, mode="wb", filename="", mtime=0)
        return cast("IO[bytes]", found)
    opener: Any = igzip.IGzipFile
    return cast("IO[bytes]", opener(fileobj=target, mode="wb", filename="", mtime=0))


def open_zstd(raw: IO[bytes]) -> Readable:
    """The plain bytes of a zstd stream."""
    return cast("Readable", zstd_module().ZstdFile(raw))


def zstd_module() -> Any:
    """The standard library's zstd (Python 3.14), else backports.zstd."""
    try:
        from compression import zstd  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        try:
            from backports import zstd
        except ImportError as exc:
            raise ImageError(
                "zstd compression needs a library", hint="install backports.zstd"
            ) from exc
    return zstd


@contextlib.contextmanager
def decode_errors(where: str) -> Iterator[None]:
    """Turn what the decompressors raise into ImageError.

    Their exceptions share no base class, and those of the accelerated ones are private to modules
    that may not be installed. So some are recognised by name.
    """
    try:
        yield
    except EOFError as exc:
        raise ImageError("the compressed data is cut short", where=where) from exc
    except (OSError, ValueError, zlib.error) as exc:
        raise ImageError(f"the compressed data is damaged: {exc}", where=where) from exc
    except Exception as exc:
        if type(exc).__name__ not in ("ZstdError", "IsalError", "LZMAError", "error"):
            raise
        raise ImageError(f"the compressed data is damaged: {exc}", where=where) from exc


class _Decoded:
    """A decompressor that raises ImageError."""

    def __init__(self, inner: Readable, where: str) -> None:
        self._inner = inner
        self._where = where

    def read(self, size: int = -1, /) -> bytes:
        with decode_errors(self._where):
            return self._inner.read(size)


def decompress(raw: io.RawIOBase, where: str) -> Readable:
    """The plain bytes of `raw`, whatever its compression."""
    buffered = io.BufferedReader(raw, CHUNK)
    kind = compression_of(buffered.peek(HEAD)[:HEAD])
    if kind is None:
        return buffered
    with decode_errors(where):
        return _Decoded(open_plain(buffered, kind), where)


class _Budgeted:
    """A stream with a `budget`: if it is a number, only so many bytes may still be read into
    memory. It keeps a tar header from claiming gigabytes."""

    def __init__(self, where: str) -> None:
        self._where = where
        self.budget: int | None = None

    def _charge(self, size: int) -> None:
        if size < 0:
            raise ImageError("negative size in a tar header", where=self._where)
        if self.budget is not None:
            self.budget -= size
            if self.budget < 0:
                raise ImageError("a tar header is too large", where=self._where)

    def _check_forward(self, position: int, now: int) -> None:
        if position < now:
            raise ImageError("a tar header points backwards", where=self._where)


class MemberStream(_Budgeted):
    """A seekable archive as a stream for `headers`: headers are read within `budget`, and never
    backwards, or it might not end."""

    def __init__(self, file: IO[bytes], where: str) -> None:
        super().__init__(where)
        self._file = file
        self._size = os.fstat(file.fileno()).st_size

    def tell(self) -> int:
        """The position in the file."""
        return self._file.tell()

    def read(self, size: int) -> bytes:
        """Read exactly `size` bytes, fewer only at the end."""
        self._charge(size)
        return self._file.read(size)

    def seek(self, position: int) -> int:
        """Skip to `position`, which must not lie behind, or to the end; returns the new
        position."""
        self._check_forward(position, self._file.tell())
        return self._file.seek(min(position, self._size))


class ForwardStream(_Budgeted):
    """A stream for `headers` that is read once, from front to back.

    Everything that passes, skipped data too, goes into the hash for `diff_id`. With a `limit`,
    ImageError if there are more bytes. A context manager: a thread reads the source. After an
    ImageError nobody does any more, so that the source can be read to its end; after other errors
    it may still be waiting for bytes that do not come.
    """

    def __init__(
        self, source: Readable, diff_id: Digest, where: str, limit: int | None = None
    ) -> None:
        super().__init__(where)
        self._left = limit
        self._source = source
        self._hasher = diff_id.hasher()
        self._diff_id = diff_id
        self._pieces = Ahead(self._piece)
        self._buffer = b""
        self._at = 0
        self._position = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, exc: BaseException | None, _traceback: object) -> None:
        self._pieces.close(wait=exc is None or isinstance(exc, ImageError))

    def _piece(self) -> bytes:
        data = self._source.read(CHUNK)
        self._hasher.update(data)
        return data

    def tell(self) -> int:
        """The number of bytes read or skipped so far."""
        return self._position

    def read(self, size: int) -> bytes:
        """Read exactly `size` bytes, fewer only at the end."""
        self._charge(size)
        end = self._at + size
        if end <= len(self._buffer):
            part = self._buffer[self._at : end]
            self._at = end
            self._position += size
            return part
        parts = []
        while size:
            part = self.read_some(size)
            if not part:
                break
            parts.append(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_some(self, size: int) -> bytes:
        """Read at most `size` bytes, at least one before the end. Not counted in `budget`."""
        if self._at == len(self._buffer):
            self._buffer, self._at = self._pieces.take(), 0
            self._count(len(self._buffer))
        part = self._buffer[self._at : self._at + size]
        self._at += len(part)
        self._position += len(part)
        return part

    def _count(self, size: int) -> None:
        if self._left is not None:
            self._left -= size
            if self._left < 0:
                raise ImageError(
                    "it is many times larger when decompressed",
                    where=self._where,
                    hint="if it is meant to be, set FUSEOVERLAY_MAX_LAYER=SIZE, 100G for example",
                )

    def seek(self, position: int) -> int:
        """Skip to `position`, which must not lie behind, or to the end; returns the new
        position."""
        ahead = position - self._position
        if 0 <= ahead <= len(self._buffer) - self._at:
            self._at += ahead
            self._position = position
            return position
        self._check_forward(position, self._position)
        while self._position < position:
            if not self.read_some(min(position - self._position, CHUNK)):
                break
        return self._position

    def finish(self) -> None:
        """Read to the end; DigestError if the plain stream has another digest."""
        while self.read_some(CHUNK):
            pass
        found = self._hasher.hexdigest()
        if found != self._diff_id.hex:
            raise DigestError(
                f"the unpacked layer has the digest {self._diff_id.algorithm}:{found}, the image"
                f" config says {self._diff_id}",
                where=self._where,
                hint="the image is damaged, fetch it again",
            )
