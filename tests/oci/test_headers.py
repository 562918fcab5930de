"""Header blocks, parsed as the format says in the plainest way, and as `headers` does."""

from __future__ import annotations

import io
import random
import re
import tarfile
from collections.abc import Callable

import pytest

from fuseoverlay.errors import ImageError
from fuseoverlay.oci.entries import Entry, Path, read_entries
from fuseoverlay.oci.headers import read_headers
from fuseoverlay.oci.model import Digest
from fuseoverlay.oci.streams import ForwardStream

FIELDS = [(100, 108), (108, 116), (116, 124), (124, 136), (136, 148)]
Numbers = tuple[int, ...]


def plain_number(data: bytes) -> int:
    """In octal digits between spaces and zeros, up to the first zero; or in binary. ValueError."""
    if data[0] & 0x80:
        value = int.from_bytes(data, "big", signed=True)
        value += 0 if data[0] & 0x40 else 1 << (8 * len(data) - 1)
        if not -(1 << 63) <= value < 1 << 63:
            raise ValueError(data)
        return value
    text = data.strip(b" \0").partition(b"\0")[0].strip(b" ")
    if text and not re.fullmatch(rb"[0-7]+", text):
        raise ValueError(data)
    return int(text or b"0", 8)


def plain_sum(block: bytes) -> int:
    return sum(block[:148] + b" " * 8 + block[156:])


def with_sum(block: bytes, number: int | None = None) -> bytes:
    text = b"%06o\0 " % (plain_sum(block) if number is None else number)
    return block[:148] + text + block[156:]


def parsed(block: bytes) -> Numbers | None:
    """The numbers that `headers` finds; None if it refuses the block."""
    stream = ForwardStream(io.BytesIO(block), Digest.of(block), "x")
    try:
        header = next(read_headers(stream, "x", hint=""))
    except ImageError:
        return None
    return header.mode, header.uid, header.gid, header.size, header.seconds


def plainly(block: bytes) -> Numbers | None:
    try:
        found = tuple(plain_number(block[begin:end]) for begin, end in FIELDS)
    except ValueError:
        return None
    return found if found[3] >= 0 else None


def real(chance: random.Random) -> bytes:
    """As Python writes it, with numbers of every size."""
    info = tarfile.TarInfo("".join(chance.choices("ab/c", k=20)))
    form = chance.choice([tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
    for field in ("uid", "gid", "mtime", "size"):
        bits = 21 if form == tarfile.USTAR_FORMAT else 50
        setattr(info, field, chance.getrandbits(chance.randrange(1, bits + 1)))
    return info.tobuf(form)


def odd(chance: random.Random) -> bytes:
    """With numbers as hardly anybody writes them, and some that are none."""
    block = bytearray(real(chance))
    for begin, end in FIELDS:
        length = end - begin
        digits = b"%o" % chance.getrandbits(18)
        block[begin:end] = chance.choices(
            [
                block[begin:end],
                bytes(chance.choices(b" \0" + b"01234567" * 3 + b"89_+-ox", k=length)),
                bytes(chance.choices(b" \0" + b"01234567", k=length)),
                digits.rjust(length)[-length:],
                digits.ljust(length, b"\0")[:length],
                chance.choice([b"\x80", b"\xff", b"\xc0"]) + chance.randbytes(length - 1),
                b"\x80".ljust(length - 4, b"\0") + chance.randbytes(4),
            ],
            [20, 1, 1, 2, 2, 1, 2],
        )[0]
    return with_sum(bytes(block))


@pytest.mark.parametrize("make", [real, odd])
def test_numbers(make: Callable[[random.Random], bytes]) -> None:
    taken = 0
    for seed in range(3000):
        block = make(random.Random(seed))
        assert parsed(block) == plainly(block), block
        taken += plainly(block) is not None
    assert taken > 300
    assert make is real or taken < 2700


@pytest.mark.parametrize("text", [b"0o17", b"0x17", b"1_7", b"+17", b"-17", b"18", b"1 7", b"\t17"])
def test_what_python_takes_for_numbers(text: bytes) -> None:
    block = real(random.Random(0))
    for begin, end in FIELDS:
        assert (
            parsed(with_sum(block[:begin] + text.ljust(end - begin, b"\0") + block[end:])) is None
        )
        assert plainly(with_sum(block[:begin] + b"17 ".rjust(end - begin) + block[end:]))


@pytest.mark.parametrize("fill", [b"\0", b"\x7f", b"\x80", b"\xff"])
def test_checksums(fill: bytes) -> None:
    """Right only if it is the sum, or the sum of signed bytes; also where the sum is large."""
    start = tarfile.TarInfo("a").tobuf(tarfile.GNU_FORMAT)
    block = start[:157] + fill * 100 + start[257:265] + fill * 64 + start[329:345] + fill * 167
    total = plain_sum(block)
    signed = total - 256 * sum(byte > 127 for byte in block[:148] + block[156:])
    for number in {
        total,
        signed,
        *(total + by for by in (-65521, -65536, -256, -1, 1, 256, 65521)),
    }:
        if number >= 0:
            right = number in (total, signed)
            assert (parsed(with_sum(block, number)) is not None) == right, number
    for at in (0, 147, 156, 255, 256, 400, 511):
        damaged = bytearray(with_sum(block))
        damaged[at] ^= 1
        assert parsed(bytes(damaged)) is None, at


def paths(*names: bytes) -> list[Path]:
    blocks = []
    for name in names:
        info = tarfile.TarInfo(name.decode())
        blocks.append(info.tobuf(tarfile.GNU_FORMAT))
    data = b"".join(blocks) + bytes(1024)
    found: list[Entry] = list(
        read_entries(ForwardStream(io.BytesIO(data), Digest.of(data), "x"), "x")
    )
    return [entry.path for entry in found]


def test_paths() -> None:
    """Components as Go's path.Clean has them, whatever came before."""
    chance = random.Random(1)
    names = ["/".join(chance.choices(["a", "b", ".", "", ".."], k=5)) for _ in range(5000)]
    done = 0
    for name in names:
        parts: list[bytes] = []
        try:
            for part in name.encode().split(b"/"):
                if part == b"..":
                    parts.pop()
                elif part not in (b"", b"."):
                    parts.append(part)
        except IndexError:
            with pytest.raises(ImageError, match="leads out"):
                paths(b"b/c", name.encode() + b"/f")
            continue
        assert paths(b"a/f", name.encode() + b"/f") == [(b"a", b"f"), (*parts, b"f")]
        if parts:
            assert paths(name.encode()) == [tuple(parts)]
            done += 1
    assert done > 1000
