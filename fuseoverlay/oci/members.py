"""Read compressed streams one after the other: xz and bzip2 files may hold several.

`lzma.LZMAFile` and `bz2.BZ2File` ignore what comes after the last one, and do not bound the memory
that an xz header asks for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import IO, Final, Protocol

from fuseoverlay.errors import ImageError

_PIECE: Final = 256 * 1024
#: Enough for a dictionary of 128 MiB: `xz -9` uses half of that, and zstd has the same bound.
_MEMORY: Final = 130 << 20


class _Decompressor(Protocol):
    """What `lzma.LZMADecompressor` and `bz2.BZ2Decompressor` have in common."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


def open_xz(raw: IO[bytes]) -> Members:
    """The plain bytes of an xz stream."""
    try:
        import lzma
    except ImportError as exc:
        raise _missing("xz", "lzma") from exc
    return Members(raw, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY))


def open_bzip2(raw: IO[bytes]) -> Members:
    """The plain bytes of a bzip2 stream."""
    try:
        import bz2
    except ImportError as exc:
        raise _missing("bzip2", "bz2") from exc
    return Members(raw, bz2.BZ2Decompressor)


def _missing(what: str, module: str) -> ImageError:
    return ImageError(
        f"{what} compression needs Python's module {module}", hint="use a Python that has it"
    )


class Members:
    """The plain bytes of the streams in `raw`, each decompressed by an object that `new` makes.

    Zeros between streams and at the end are padding. Other data there goes to a new decompressor,
    which raises its own error. EOFError if the last stream is cut short.
    """

    def __init__(self, raw: IO[bytes], new: Callable[[], _Decompressor]) -> None:
        self._raw = raw
        self._new = new
        self._inner = new()

    def read(self, size: int = -1, /) -> bytes:
        """Read at most `size` bytes; none only at the end."""
        while True:
            ahead = b""
            if self._inner.eof:
                ahead = self._after_padding(self._inner.unused_data)
                if not ahead:
                    return b""
                self._inner = self._new()
            elif self._inner.needs_input:
                ahead = self._raw.read(_PIECE)
                if not ahead:
                    raise EOFError
            if plain := self._inner.decompress(ahead, size):
                return plain

    def _after_padding(self, data: bytes) -> bytes:
        while not (data := data.lstrip(b"\0")):
            data = self._raw.read(_PIECE)
            if not data:
                break
        return data
