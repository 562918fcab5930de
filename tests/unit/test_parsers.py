"""Anybody may have written the attributes in layers: every parser limits what it accepts.

A parser returns a result or signals "malformed" in its own way; no value causes another exception.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuseoverlay.layers import capability
from fuseoverlay.layers.idmap import IdMap, IdRange
from fuseoverlay.layers.overridestat import OverrideStat
from fuseoverlay.overlay import hardlinks
from fuseoverlay.system import acl, handles

IDS = IdMap((IdRange(0, 1000, 10),))
LONG = b"1" * 5000


def _inherited(value: bytes) -> None:
    mode, access = acl.inherit(value, 0o640)
    assert mode & ~0o7777 == 0
    assert access is None or len(access) == len(value)


def _index_name(value: bytes) -> None:
    origin = hardlinks.origin_named(value)
    assert origin is None or hardlinks.index_name(origin) == value


#: Each parser, with the errors by which it signals "malformed".
PARSERS: dict[str, tuple[Callable[[bytes], object], tuple[type[Exception], ...]]] = {
    "override of a file": (lambda value: OverrideStat.parse(value, stat.S_IFREG), ()),
    "override of a directory": (lambda value: OverrideStat.parse(value, stat.S_IFDIR), ()),
    "nlink": (hardlinks.parse_nlink, ()),
    "origin": (handles.decode, ()),
    "index name": (_index_name, ()),
    "default ACL": (_inherited, (OSError,)),
    "ids of an ACL": (lambda value: acl.with_ids(value, IDS.shown, IDS.shown), ()),
    "given ids of an ACL": (lambda value: acl.with_ids(value, IDS.stored, IDS.stored), (OSError,)),
    "capability": (lambda value: capability.shown(value, IDS), (OSError,)),
    "given capability": (lambda value: capability.stored(value, IDS), (OSError,)),
}
_ENTRY = st.builds(
    lambda tag, permissions, number: struct.pack("<HHI", tag, permissions, number),
    st.sampled_from([1, 2, 4, 8, 0x10, 0x20, 0, 0xFFFF]),
    st.integers(0, 0xFFFF),
    st.integers(0, 2**32 - 1),
)
_ACLS = st.builds(
    lambda version, entries, rest: struct.pack("<I", version) + b"".join(entries) + rest,
    st.sampled_from([0, 2, 2, 2]),
    st.lists(_ENTRY),
    st.sampled_from([b"", b"", b"x"]),
)
_NUMBERS = st.one_of(
    st.integers(-1, 2**40).map(lambda number: b"%d" % number),
    st.sampled_from([LONG, b"0" * 5000, b"07777", b"", b"\xe0\xa5\xa7", b"1_0", b" 1", b"+1"]),
)
_TYPES = st.sampled_from([b"file", b"dir", b"char-%b-%b", b"block-%b-%b", b"symlink", b"", b"x"])
_OVERRIDES = st.builds(
    lambda uid, gid, mode, kind, numbers: b":".join(
        (uid, gid, mode, kind % numbers if b"%" in kind else kind)
    ),
    _NUMBERS, _NUMBERS, _NUMBERS, _TYPES, st.tuples(_NUMBERS, _NUMBERS),
)  # fmt: skip
_COUNTS = st.builds(bytes.__add__, st.sampled_from([b"U+", b"L-", b"U"]), _NUMBERS)
_HANDLES = st.builds(
    lambda length, rest: bytes((0, 0xFB, length, 0, 1)) + rest,
    st.integers(0, 255),
    st.binary(max_size=300),
)
VALUES = st.one_of(
    *(st.binary(max_size=64), _ACLS, _OVERRIDES, _COUNTS, _HANDLES),
    _HANDLES.map(bytes.hex).map(str.encode),
)


@pytest.mark.parametrize("name", PARSERS)
@given(value=VALUES)
def test_parsers(name: str, value: bytes) -> None:
    parse, malformed = PARSERS[name]
    with contextlib.suppress(*malformed):
        parse(value)


@pytest.mark.parametrize("field", range(5))
def test_long_numbers(field: int) -> None:
    """More digits than any id has, and than Python will convert."""
    fields = [b"0", b"0", b"0644", b"1", b"3"]
    fields[field] = LONG
    value = b"%b:%b:%b:char-%b-%b" % tuple(fields)
    assert OverrideStat.parse(value, stat.S_IFREG) is None


@given(value=_OVERRIDES)
def test_override_is_one_that_can_be(value: bytes) -> None:
    """A value that is accepted can be shown by stat(2) and written again."""
    found = OverrideStat.parse(value, stat.S_IFREG)
    if found is not None:
        assert 0 <= found.uid < 2**32 - 1 and 0 <= found.gid < 2**32 - 1
        assert os.major(found.rdev) < 2**12 and os.minor(found.rdev) < 2**20
        assert OverrideStat.parse(found.format(), stat.S_IFREG) == found
