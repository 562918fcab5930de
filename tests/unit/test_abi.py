"""What Python and C have to agree on, compared by a compiler (docs/native.md, "Said twice")."""

from __future__ import annotations

import re
import struct
import subprocess
from pathlib import Path

import pytest

from fuseoverlay.fuse import direct, wire
from fuseoverlay.native import opcodes, terms
from fuseoverlay.overlay import inodetable, prepared
from fuseoverlay.overlay.listed import Listed
from tests.helpers.mounts import PROJECT

CSRC = PROJECT / "fuseoverlay" / "native" / "csrc"
#: Newer than the headers of Debian 12, which has Linux 6.1.
YOUNGER = {"STATX", "COPY_FILE_RANGE_64"}
OPCODES = {
    name: number
    for name, number in vars(opcodes).items()
    if isinstance(number, int) and name not in YOUNGER
}
STRUCTS = {
    "fuse_in_header": wire._IN_HEADER,
    "fuse_fallocate_in": wire._FALLOCATE_IN,
    "fuse_lseek_in": wire._LSEEK_IN,
    "fuse_copy_file_range_in": wire._COPY_FILE_RANGE_IN,
    "fuse_ioctl_in": wire._IOCTL_IN,
    "fuse_create_in": wire._CREATE_IN,
    "fuse_ioctl_out": wire._IOCTL_OUT,
    "fuse_write_out": wire._WRITE_OUT,
    "fuse_lseek_out": wire._NUMBER_OUT,
    "fuse_attr": wire._ATTR,
    "fuse_open_out": wire._OPEN_OUT,
    "fuse_forget_in": direct._FORGET_IN,
    "fuse_forget_one": direct._FORGET_ONE,
    "fuse_getxattr_in": direct._XATTR_SIZE,
    "fuse_getxattr_out": direct._XATTR_SIZE,
}
FLAGS = {
    "FUSE_ATOMIC_O_TRUNC": terms._ATOMIC_O_TRUNC,
    "FUSE_DONT_MASK": terms._DONT_MASK,
    "FUSE_AUTO_INVAL_DATA": terms._AUTO_INVAL_DATA,
    "FUSE_ASYNC_DIO": terms._ASYNC_DIO,
    "FUSE_CACHE_SYMLINKS": terms._CACHE_SYMLINKS,
    "FUSE_HANDLE_KILLPRIV_V2": terms._HANDLE_KILLPRIV_V2,
    "FUSE_WRITE_KILL_SUIDGID": terms._WRITE_KILL_SUIDGID,
    "FATTR_KILL_SUIDGID": terms._SETATTR_KILL_SUIDGID,
    "FATTR_ATIME_NOW | FATTR_MTIME_NOW": terms._SETATTR_NOW,
    "FOPEN_KEEP_CACHE": wire._FOPEN_KEEP_CACHE,
}
BOUND = {
    "BOUND_READ": prepared._READ,
    "BOUND_WRITE": prepared._WRITE,
    "BOUND_ATTR": prepared._ATTRIBUTES,
    "BOUND_NO_XATTR": prepared._NO_XATTRS,
    "BOUND_BITS": prepared._BITS,
}


def said_by_c(header: str, expressions: list[str], where: Path) -> list[int]:
    """The values that these have in a C program that includes the header."""
    prints = "".join(f'printf("%llu\\n", (unsigned long long)({e}));' for e in expressions)
    source = where / "say.c"
    source.write_text(f"{header}\n#include <stdio.h>\nint main(void) {{ {prints} return 0; }}\n")
    program = where / "say"
    subprocess.run(["cc", "-o", program, source], check=True, timeout=60)
    said = subprocess.run([program], check=True, timeout=10, stdout=subprocess.PIPE).stdout
    return [int(line) for line in said.split()]


def test_requests_and_structures_are_the_kernels(tmp_path: Path) -> None:
    expected = {f"FUSE_{name}": number for name, number in OPCODES.items()}
    expected |= {f"sizeof(struct {name})": s.size for name, s in STRUCTS.items()} | FLAGS
    expected["sizeof(struct fuse_entry_out)"] = wire.ENTRY_SIZE
    said = said_by_c("#include <linux/fuse.h>", list(expected), tmp_path)
    assert dict(zip(expected, said, strict=True)) == expected


@pytest.mark.parametrize("name", ["ino", "size", "blocks", "atime", "atimensec", "mode", "blksize"])
def test_the_parts_of_a_status_are_where_the_kernel_has_them(name: str, tmp_path: Path) -> None:
    """`wire.attr` takes them in the order of the structure, with seconds and nanoseconds apart."""
    order = (
        "ino", "size", "blocks", "atime", "mtime", "ctime", "atimensec", "mtimensec", "ctimensec",
        "mode", "nlink", "uid", "gid", "rdev", "blksize",
    )  # fmt: skip
    before = struct.calcsize("=" + wire._ATTR.format.lstrip("=")[: order.index(name)])
    header = "#include <linux/fuse.h>\n#include <stddef.h>"
    assert said_by_c(header, [f"offsetof(struct fuse_attr, {name})"], tmp_path) == [before]


def enum_of(prefix: str) -> dict[str, int]:
    """Names and numbers of the enum in native.h whose names have this prefix."""
    header = (CSRC / "native.h").read_text()
    (body,) = (b for b in re.findall(r"enum\s*\{([^}]*)\}", header) if prefix in b)
    found: dict[str, int] = {}
    for item in filter(None, map(str.strip, body.split(","))):
        name, _, value = item.partition("=")
        found[name.strip()] = int(value) if value else len(found)
    return found


def test_listed_files_have_their_parts_where_c_finds_them() -> None:
    fields = {f"LISTED_{name.upper()}": n for n, name in enumerate(Listed._fields)}
    assert enum_of("LISTED_") == fields


def test_descriptors_that_are_bound_mean_the_same() -> None:
    assert enum_of("BOUND_") == BOUND


def test_inode_numbers_are_split_at_the_same_bit() -> None:
    (bits,) = re.findall(r"#define INO_BITS (\d+)", (CSRC / "native.h").read_text())
    assert int(bits) == inodetable._INO_BITS
