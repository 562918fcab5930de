"""The content of a file in the archive of a layer, which is decompressed up to there."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Iterator, Sequence
from typing import IO, Any, Final

from fuseoverlay.errors import DigestError, ImageError, printable
from fuseoverlay.oci.blobs import ImageSource, Layer
from fuseoverlay.oci.headers import read_headers
from fuseoverlay.oci.malformed import malformed
from fuseoverlay.oci.streams import CHUNK, ForwardStream, Readable, decompress
from fuseoverlay.view.layerindex import SPARSE, LayerIndex


def archived(
    source: ImageSource, layer: Layer, index: LayerIndex, rows: Sequence[int]
) -> Iterator[tuple[int, IO[bytes]]]:
    """The contents of the regular files at these rows of the layer's index, in the order of the
    archive, which is read once; each is good until the next one. A content has the digest that the
    index says, or reading its end raises DigestError. ImageError."""
    plain_ones = [row for row in rows if not index.flags[row] & SPARSE]
    if plain_ones:
        with _opened(source, layer) as (plain, where):
            at = 0
            for row in sorted(plain_ones, key=index.data.__getitem__):
                begin = index.data[row] - 1
                if begin < at:
                    # Another name of the same file.
                    yield from archived(source, layer, index, [row])
                    continue
                _skip(plain, begin - at, where)
                inside = _Inside(plain, [(0, index.sizes[row])], index, row, where)
                yield row, io.BufferedReader(inside, CHUNK)
                at = begin + inside.tell_stored()
    for row in rows:
        if index.flags[row] & SPARSE:
            with _opened(source, layer) as (plain, where):
                pieces, rest = _pieces(plain, layer, index.data[row] - 1, where)
                yield row, io.BufferedReader(_Inside(rest, pieces, index, row, where), CHUNK)


def pieces_of(file: IO[bytes]) -> Iterator[tuple[int, bytes]] | None:
    """Offset and data of what the archive has of a sparse file, in pieces; None for other files.
    DigestError at the end if the whole has a wrong digest; ImageError."""
    inside = file.raw if isinstance(file, io.BufferedReader) else None
    return inside.stored() if isinstance(inside, _Inside) and inside.is_sparse else None


@contextlib.contextmanager
def _opened(source: ImageSource, layer: Layer) -> Iterator[tuple[Readable, str]]:
    """The plain archive, and what it is called in messages."""
    where = f"{source.path}: layer {layer.digest or layer.diff_id}"
    with malformed(where), source.open_layer(layer) as blob:
        yield decompress(blob, where), where


def _skip(plain: Readable, count: int, where: str) -> None:
    while count:
        data = plain.read(min(count, CHUNK))
        if not data:
            raise ImageError("the layer is cut short", where=where)
        count -= len(data)


def _pieces(
    plain: Readable, layer: Layer, offset: int, where: str
) -> tuple[Sequence[tuple[int, int]], Readable]:
    """Where the stored pieces of a sparse file belong, and what follows its headers."""
    stream = ForwardStream(plain, layer.diff_id, where)
    for header in read_headers(stream, where, hint="the image is damaged"):
        if header.offset == offset:
            return header.pieces or (), _Stream(stream)
    raise ImageError("the layer is cut short", where=where)


class _Stream:
    def __init__(self, stream: ForwardStream) -> None:
        self._stream = stream

    def read(self, size: int = -1, /) -> bytes:
        return self._stream.read(size)


class _Inside(io.RawIOBase):
    """A file: its pieces are what comes next in the archive, with zeros between them."""

    def __init__(
        self, plain: Readable, pieces: Sequence[tuple[int, int]], index: LayerIndex, row: int,
        where: str,
    ) -> None:  # fmt: skip
        super().__init__()
        self._plain = plain
        self._left = [*reversed(pieces)]
        self._size = index.sizes[row]
        self._digest = index.digest(row)
        self._where = f"{where}: {printable(b'/'.join(index.path(row)))}"
        self._at = self._stored = 0
        self._hasher: Final = hashlib.sha256()

    @property
    def is_sparse(self) -> bool:
        """Whether there are zeros that the archive does not have."""
        return sum(length for _, length in self._left) != self._size - self._at

    def stored(self) -> Iterator[tuple[int, bytes]]:
        """What the archive has, from here on, with its offset in the file."""
        while self._at < self._size:
            begin = self._next_piece()
            if self._at < begin and self._digest is None:
                self._at = begin
                continue
            is_hole, at, data = self._at < begin, self._at, self._next(CHUNK)
            if not is_hole:
                yield at, data
        # Compares the digest.
        self._next(1)

    def _next_piece(self) -> int:
        """Where the next piece, or the one that we are in, begins."""
        while self._left and self._at == sum(self._left[-1]):
            self._left.pop()
        return self._left[-1][0] if self._left else self._size

    def tell_stored(self) -> int:
        """How many bytes of the archive were read."""
        return self._stored

    def readable(self) -> bool:
        """Always True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """What comes next; 0 at the end."""
        view = memoryview(buffer).cast("B")
        data = self._next(len(view))
        view[: len(data)] = data
        return len(data)

    def _next(self, room: int) -> bytes:
        self._next_piece()
        begin, length = self._left[-1] if self._left else (self._size, 0)
        if self._at < begin:
            data = bytes(min(room, begin - self._at))
        else:
            data = self._plain.read(min(room, begin + length - self._at, CHUNK))
            if not data and self._at < self._size:
                raise ImageError("the layer is cut short", where=self._where)
            self._stored += len(data)
        self._at += len(data)
        if self._digest is not None:
            self._hasher.update(data)
            if not data and self._hasher.digest() != self._digest:
                raise DigestError("the content has changed", where=self._where)
        return data
