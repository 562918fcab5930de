"""The content of a file as lines to read: as text or in hexadecimal digits, and of which kind it
is."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from fuseoverlay.commands import output
from fuseoverlay.commands.view import subject
from fuseoverlay.errors import ImageError
from fuseoverlay.view import life
from fuseoverlay.view.opened import View
from fuseoverlay.view.stack import Node, Stack

#: So many bytes are shown.
MOST: Final = 1 << 20
#: Bytes of a line; the rest of a longer one stands below it.
_LONG: Final = 500
_TAB: Final = 8
_HEX: Final = 16
#: Bytes by which text is told from anything else.
_PROBED: Final = 8192


@dataclass(frozen=True, slots=True)
class Content:
    """The first bytes of a file of `size` bytes."""

    data: bytes
    size: int

    @property
    def is_text(self) -> bool:
        """Whether it can be read as text."""
        return b"\0" not in self.data[:_PROBED]

    @property
    def cut(self) -> bool:
        """Whether there is more."""
        return self.size > len(self.data)

    @property
    def kind(self) -> str:
        """What it is, of pictures with their size in pixels."""
        found = picture(self.data)
        return found or ("text" if self.is_text else "data")

    def lines(self, *, hex: bool) -> Sequence[tuple[str, str]]:
        """Lines, each with its number, or with its offset in hexadecimal digits."""
        return list(_hex(self.data) if hex else _text(self.data))


def followed(stack: Stack, node: Node) -> Node:
    """What a symbolic link leads to inside the stack; anything else is that itself. ImageError if
    it leads nowhere."""
    target = stack.entry(node).link
    if not target:
        return node
    path = life.resolved(stack, node.path)
    found = None if path is None else stack.node(path)
    if found is None:
        where = f"{subject.shown(node.path)} -> {output.named(target)}"
        raise ImageError("leads nowhere in the image", where=where)
    return found


def read(view: View, stack: Stack, node: Node) -> Content:
    """The first bytes of a regular file. ImageError, OSError."""
    size = stack.entry(node).size
    with view.content(node.layer, node.row) as file:
        pieces, left = [], MOST
        while left and (piece := file.read(left)):
            pieces.append(piece)
            left -= len(piece)
    return Content(b"".join(pieces), size)


def _text(data: bytes) -> Iterator[tuple[str, str]]:
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    for number, line in enumerate(lines, 1):
        shown = line.removesuffix(b"\r").expandtabs(_TAB)
        pieces = _pieces(shown)
        yield str(number), output.named(next(pieces))
        for piece in pieces:
            yield "", output.named(piece)


def _pieces(line: bytes) -> Iterator[bytes]:
    """The line in pieces, cut between characters."""
    at = 0
    while len(line) - at > _LONG:
        end = at + _LONG
        # A character has up to four bytes.
        while end > at + _LONG - 4 and line[end] & 0xC0 == 0x80:
            end -= 1
        yield line[at:end]
        at = end
    yield line[at:]


def _hex(data: bytes) -> Iterator[tuple[str, str]]:
    for at in range(0, len(data), _HEX):
        row = data[at : at + _HEX]
        shown = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
        halves = [row[: _HEX // 2].hex(" "), row[_HEX // 2 :].hex(" ")]
        yield f"{at:08x}", f"{'  '.join(halves):<{3 * _HEX}}  {shown}"


def picture(data: bytes) -> str | None:
    """Kind and size in pixels of a PNG, GIF or JPEG; None if it is none.

    Sources: the PNG specification, IHDR; GIF89a, logical screen descriptor; ITU T.81, B.2.2.
    """
    size = None
    if data.startswith(b"\x89PNG\r\n\x1a\n") and data[12:16] == b"IHDR":
        kind, size = "PNG", _unpacked(">II", data, 16)
    elif data[:6] in (b"GIF87a", b"GIF89a"):
        kind, size = "GIF", _unpacked("<HH", data, 6)
    elif data.startswith(b"\xff\xd8\xff"):
        kind, size = "JPEG", _jpeg(data)
    else:
        return None
    return f"{kind} picture" + (f", {size[0]} x {size[1]} pixels" if size else "")


def _unpacked(form: str, data: bytes, at: int) -> tuple[int, int] | None:
    if len(data) < at + struct.calcsize(form):
        return None
    width, height = struct.unpack_from(form, data, at)
    return width, height


def _jpeg(data: bytes) -> tuple[int, int] | None:
    """Width and height from the frame header, which follows other segments."""
    at = 2
    while at + 9 <= len(data):
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at] != 0xFF or length < 2:
            return None
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            found = _unpacked(">HH", data, at + 5)
            return found[::-1] if found else None
        at += 2 + length
    return None
