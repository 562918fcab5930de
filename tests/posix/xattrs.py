"""Extended attributes and access control lists, as the system calls have them."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from pathlib import Path

from tests.helpers import libc
from tests.helpers.mounts import MODE, fails, needs_root_ids, root_only
from tests.posix.table import (
    ALICE,
    BOB,
    CONTENT,
    STAFF,
    as_user,
    behaviour,
    expect,
    in_child,
    mode_of,
    on_each_kind,
    opened,
    opens,
    seen,
)

_OWN = {"follow_symlinks": False}
_ACCESS, _DEFAULT = "system.posix_acl_access", "system.posix_acl_default"


@behaviour()
def user_attribute_of_each_kind(d: Path) -> object:
    got = on_each_kind(d, lambda p: os.setxattr(p, "user.x", b"y", **_OWN))
    return expect(got, others="EPERM", file=None, dir=None)


@behaviour()
def read_attribute_of_each_kind(d: Path) -> object:
    got = on_each_kind(d, lambda p: os.getxattr(p, "user.colour", **_OWN))
    assert got["file"] == b"red"
    assert got["dir"] == "ENODATA"
    return got


@behaviour()
def list_attributes_of_each_kind(d: Path) -> object:
    return expect(
        on_each_kind(d, lambda p: os.listxattr(p, **_OWN)), others=[], file=["user.colour"]
    )


@behaviour()
def remove_attribute_of_each_kind(d: Path) -> object:
    got = on_each_kind(d, lambda p: os.removexattr(p, "user.colour", **_OWN))
    assert got["file"] is None
    assert got["dir"] == "ENODATA"
    return got


@behaviour()
def attribute_round_trip(d: Path) -> object:
    for path in (d / "f", d / "d"):
        os.setxattr(path, "user.one", b"1")
        os.setxattr(path, "user.two", b"\0binary\xff" * 10)
        os.setxattr(path, "user.empty", b"")
        assert os.getxattr(path, "user.two") == b"\0binary\xff" * 10
        assert os.getxattr(path, "user.empty") == b""
        os.setxattr(path, "user.one", b"longer than before")
        os.removexattr(path, "user.two")
        with fails(errno.ENODATA):
            os.getxattr(path, "user.two")
    return sorted(os.listxattr(d / "f")), os.getxattr(d / "d", "user.one")


@behaviour()
def attribute_follows_links(d: Path) -> object:
    os.setxattr(d / "s", "user.x", b"y")
    assert os.getxattr(d / "f", "user.x") == b"y"
    assert os.listxattr(d / "s", **_OWN) == []


@behaviour()
def attribute_of_descriptors(d: Path) -> object:
    for name in ("f", "d"):
        with opened(d / name) as fd:
            os.setxattr(fd, "user.x", b"y")
            assert os.getxattr(fd, "user.x") == b"y"
            assert "user.x" in os.listxattr(fd)
        assert os.getxattr(d / name, "user.x") == b"y"


@behaviour()
def setting_flags(d: Path) -> object:
    with fails(errno.EEXIST):
        os.setxattr(d / "f", "user.colour", b"x", os.XATTR_CREATE)
    with fails(errno.ENODATA):
        os.setxattr(d / "f", "user.new", b"x", os.XATTR_REPLACE)
    os.setxattr(d / "f", "user.new", b"x", os.XATTR_CREATE)
    os.setxattr(d / "f", "user.colour", b"blue", os.XATTR_REPLACE)
    with fails(errno.EINVAL):
        libc.setxattr(d / "f", b"user.x", b"y", 0x77)
    return os.getxattr(d / "f", "user.colour"), os.getxattr(d / "f", "user.new")


@behaviour(answers=("EEXIST", "ENODATA"))
def attribute_with_both_flags(d: Path) -> object:
    flags = os.XATTR_CREATE | os.XATTR_REPLACE
    return (
        seen(os.setxattr, d / "f", "user.colour", b"x", flags),
        seen(os.setxattr, d / "f", "user.new", b"x", flags),
    )


@behaviour()
def attribute_buffers(d: Path) -> object:
    """Size 0 asks how much there is, a small buffer is an error."""
    assert libc.getxattr(d / "f", "user.colour", 0) == 3
    assert libc.getxattr(d / "f", "user.colour", 3) == 3
    with fails(errno.ERANGE):
        libc.getxattr(d / "f", "user.colour", 2)


@behaviour(answers=(12, 12, 0))
def attribute_list_buffers(d: Path) -> object:
    """The same for the list of names."""
    with fails(errno.ERANGE):
        libc.listxattr(d / "f", 5)
    return libc.listxattr(d / "f", 0), libc.listxattr(d / "f", 100), libc.listxattr(d / "e", 0)


@behaviour()
def attribute_names(d: Path) -> object:
    names = ["user." + "n" * 250, "user.a b", "user.é", "user.a.b.c", "user.\udcff", "user.user."]
    for name in names:
        os.setxattr(d / "f", name, b"v")
        assert os.getxattr(d / "f", name) == b"v"
    assert set(os.listxattr(d / "f")) == {*names, "user.colour"}
    with fails(errno.ERANGE):
        os.setxattr(d / "f", "user." + "n" * 251, b"v")
    with fails(errno.ERANGE):
        os.setxattr(d / "f", "", b"v")
    with fails(errno.EINVAL):
        os.setxattr(d / "f", "user.", b"v")


@behaviour()
def attribute_namespaces(d: Path) -> object:
    """Only some are known."""
    return {
        name: (seen(os.setxattr, d / "f", name, b"v"), seen(os.getxattr, d / "f", name))
        for name in ("x", "nospace.x", "system.x", "User.x", "os2.x")
    }


@behaviour()
def attribute_sizes(d: Path) -> object:
    for size in (0, 1, 255, 1000, 3000):
        os.setxattr(d / "g", "user.big", b"v" * size)
        assert os.getxattr(d / "g", "user.big") == b"v" * size
    with fails(errno.E2BIG):
        os.setxattr(d / "g", "user.big", b"v" * 65537)
    assert len(os.getxattr(d / "g", "user.big")) == 3000


@behaviour()
def attribute_of_64_kib(d: Path) -> object:
    answer = seen(os.setxattr, d / "g", "user.big", b"v" * 65536)
    assert len(seen(os.getxattr, d / "g", "user.big")) in (65536, len("ENODATA"))
    return answer


@behaviour()
def many_attributes(d: Path) -> object:
    for index in range(40):
        os.setxattr(d / "g", f"user.n{index}", b"%d" % index)
    assert set(os.listxattr(d / "g")) == {f"user.n{index}" for index in range(40)}
    for index in range(0, 40, 2):
        os.removexattr(d / "g", f"user.n{index}")
    assert os.getxattr(d / "g", "user.n39") == b"39"
    return len(os.listxattr(d / "g"))


@behaviour()
def attributes_stay_with_the_object(d: Path) -> object:
    os.setxattr(d / "d", "user.x", b"y")
    os.rename(d / "f", d / "e" / "f")
    os.chmod(d / "e" / "f", 0o600)
    (d / "e" / "f").write_bytes(b"other")
    os.truncate(d / "e" / "f", 0)
    os.link(d / "e" / "f", d / "f")
    os.rename(d / "d", d / "moved")
    return os.getxattr(d / "f", "user.colour"), os.getxattr(d / "moved", "user.x")


@behaviour()
def attribute_of_nothing(d: Path) -> object:
    for path, code in ((d / "missing", errno.ENOENT), (d / "f" / "x", errno.ENOTDIR)):
        for call in (
            lambda path=path: os.getxattr(path, "user.x"),
            lambda path=path: os.setxattr(path, "user.x", b"y"),
            lambda path=path: os.removexattr(path, "user.x"),
            lambda path=path: os.listxattr(path),
        ):
            with fails(code):
                call()
    with fails(errno.ENODATA):
        os.removexattr(d / "f", "user.missing")


@behaviour()
def attributes_of_a_layer_are_ordinary_names(d: Path) -> object:
    """An overlay's own names, set by a user, are kept and mean nothing."""
    names = ["user.overlay.opaque", "user.overlay.whiteout", "user.overlay.x", "user.overlay"]
    for name in names:
        os.setxattr(d / "d", name, b"y")
        assert os.getxattr(d / "d", name) == b"y"
    assert set(os.listxattr(d / "d")) == set(names)
    assert sorted(os.listdir(d / "d")) == ["child", "sub"]
    for name in names:
        os.removexattr(d / "d", name)
    return os.listxattr(d / "d")


@behaviour(root_only)
def attributes_of_root(d: Path) -> object:
    """The namespaces trusted and security, on every kind."""
    trusted = on_each_kind(d, lambda p: os.setxattr(p, "trusted.x", b"y", **_OWN))
    security = on_each_kind(d, lambda p: os.setxattr(p, "security.x", b"y", **_OWN))
    expect(trusted)
    expect(security)
    os.setxattr(d / "f", "trusted.overlay.opaque", b"y")
    assert os.getxattr(d / "f", "trusted.overlay.opaque") == b"y"
    os.removexattr(d / "f", "trusted.overlay.opaque")
    return on_each_kind(d, lambda p: sorted(os.listxattr(p, **_OWN)))


# Access control lists: version 2, then (tag, permissions, id) each.
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 1, 2, 4, 8, 16, 32
_NOBODY = 0xFFFFFFFF


def _acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def _list(user: int, other: int, mask: int = 7, named: int = 6) -> bytes:
    """u::user, u:ANOTHER:named, g::r, m::mask, o::other."""
    another = ALICE if MODE == "root" else os.getuid()
    return _acl(
        (_USER_OBJ, user, _NOBODY),
        (_USER, named, another),
        (_GROUP_OBJ, 4, _NOBODY),
        (_MASK, mask, _NOBODY),
        (_OTHER, other, _NOBODY),
    )


@behaviour()
def access_list_round_trip(d: Path) -> object:
    for name in ("f", "d"):
        value = _list(7, 0)
        os.setxattr(d / name, _ACCESS, value)
        assert os.getxattr(d / name, _ACCESS) == value
        assert _ACCESS in os.listxattr(d / name)
        # The mask stands where the group's bits were.
        assert mode_of(d / name) == 0o770
        os.chmod(d / name, 0o740)
        assert os.getxattr(d / name, _ACCESS) == _list(7, 0, mask=4)
        os.removexattr(d / name, _ACCESS)
        with fails(errno.ENODATA):
            os.getxattr(d / name, _ACCESS)
    return oct(mode_of(d / "f")), oct(mode_of(d / "d"))


@behaviour()
def access_list_that_is_a_mode(d: Path) -> object:
    """Without named entries it only sets the mode."""
    value = _acl((_USER_OBJ, 6, _NOBODY), (_GROUP_OBJ, 0, _NOBODY), (_OTHER, 4, _NOBODY))
    os.setxattr(d / "f", _ACCESS, value)
    assert mode_of(d / "f") == 0o604
    return seen(os.getxattr, d / "f", _ACCESS), os.listxattr(d / "f")


@behaviour()
def access_list_of_each_kind(d: Path) -> object:
    got = on_each_kind(d, lambda p: os.setxattr(p, _ACCESS, _list(7, 0), **_OWN))
    return expect(got, link="EOPNOTSUPP")


@behaviour()
def default_list_of_each_kind(d: Path) -> object:
    got = on_each_kind(d, lambda p: os.setxattr(p, _DEFAULT, _list(6, 0), **_OWN))
    return expect(got, others="EACCES", dir=None, link="EOPNOTSUPP")


@behaviour()
def invalid_access_lists(d: Path) -> object:
    bad = [
        b"x",
        struct.pack("<I", 1),
        _acl((_USER_OBJ, 6, _NOBODY)),
        _acl((_USER_OBJ, 6, _NOBODY), (_GROUP_OBJ, 6, _NOBODY), (_OTHER, 9, _NOBODY)),
        _acl((_OTHER, 6, _NOBODY), (_GROUP_OBJ, 6, _NOBODY), (_USER_OBJ, 6, _NOBODY)),
        _list(7, 0)[:-8],
        _list(7, 0)[:-3],
    ]
    for value in bad:
        assert seen(os.setxattr, d / "f", _ACCESS, value) in ("EINVAL", "EOPNOTSUPP"), value
    return [seen(os.setxattr, d / "f", _ACCESS, value) for value in bad]


@behaviour()
def access_list_changes_with_the_mode(d: Path) -> object:
    os.setxattr(d / "f", _ACCESS, _list(6, 4))
    os.chmod(d / "f", 0o651)
    assert mode_of(d / "f") == 0o651
    return os.getxattr(d / "f", _ACCESS)[4:] == _list(6, 1, mask=5)[4:]


@behaviour(answers=("0o674", [None, None]))
def removed_access_list_leaves_a_mode(d: Path) -> object:
    os.setxattr(d / "f", _ACCESS, _list(6, 4))
    os.removexattr(d / "f", _ACCESS)
    answers = [seen(os.removexattr, d / "f", _ACCESS), seen(os.removexattr, d / "d", _DEFAULT)]
    return oct(mode_of(d / "f")), answers


def _inherit(d: Path, umask: int) -> dict[str, object]:
    os.setxattr(d / "e", _DEFAULT, _list(7, 0))

    def make() -> None:
        os.umask(umask)
        opens(d / "e" / "file", os.O_CREAT | os.O_WRONLY, 0o666)
        os.mkdir(d / "e" / "dir", 0o777)
        os.mkfifo(d / "e" / "fifo", 0o666)
        os.symlink("x", d / "e" / "link")

    assert in_child(make) is None
    return {
        name: (
            oct(mode_of(d / "e" / name)),
            seen(os.getxattr, d / "e" / name, _ACCESS, **_OWN),
            seen(os.getxattr, d / "e" / name, _DEFAULT, **_OWN),
        )
        for name in ("file", "dir", "fifo", "link")
    }


@behaviour()
def default_list_is_inherited(d: Path) -> object:
    got = _inherit(d, 0)
    assert got["file"][1] == _list(6, 0, mask=6)
    assert got["dir"][1] == got["dir"][2] == _list(7, 0)
    return got


@behaviour()
def default_list_takes_the_umasks_place(d: Path) -> object:
    got = _inherit(d, 0o077)
    assert got["file"][1] == _list(6, 0, mask=6)
    return got


@behaviour()
def default_list_without_names(d: Path) -> object:
    """Then it is another umask, and no list is made."""
    value = _acl((_USER_OBJ, 7, _NOBODY), (_GROUP_OBJ, 5, _NOBODY), (_OTHER, 0, _NOBODY))
    os.setxattr(d / "e", _DEFAULT, value)

    def make() -> None:
        os.umask(0)
        opens(d / "e" / "file", os.O_CREAT | os.O_WRONLY, 0o666)

    assert in_child(make) is None
    return oct(mode_of(d / "e" / "file")), os.listxattr(d / "e" / "file")


def users(function: Callable[[Path], object]) -> Callable:
    """A behaviour that needs other users' ids."""
    return behaviour(needs_root_ids)(function)


@users
def access_list_admits_a_user(d: Path) -> object:
    os.chmod(d / "f", 0o600)
    assert as_user(ALICE, (d / "f").read_bytes) == "EACCES"
    os.setxattr(d / "f", _ACCESS, _list(6, 0))
    assert as_user(ALICE, (d / "f").read_bytes) == CONTENT
    assert as_user(ALICE, lambda: opens(d / "f", os.O_WRONLY)) is None
    assert as_user(BOB, (d / "f").read_bytes) == "EACCES"
    os.chmod(d / "f", 0o640)
    assert as_user(ALICE, lambda: opens(d / "f", os.O_WRONLY)) == "EACCES"
    assert as_user(ALICE, (d / "f").read_bytes) == CONTENT


@users
def access_list_denies_a_user(d: Path) -> object:
    os.setxattr(d / "f", _ACCESS, _list(6, 4, named=0))
    assert as_user(ALICE, (d / "f").read_bytes) == "EACCES"
    assert as_user(BOB, (d / "f").read_bytes) == CONTENT


@users
def access_list_admits_a_group(d: Path) -> object:
    value = _acl(
        (_USER_OBJ, 6, _NOBODY),
        (_GROUP_OBJ, 0, _NOBODY),
        (_GROUP, 4, STAFF),
        (_MASK, 4, _NOBODY),
        (_OTHER, 0, _NOBODY),
    )
    os.setxattr(d / "f", _ACCESS, value)
    assert as_user(BOB, (d / "f").read_bytes, STAFF) == CONTENT
    assert as_user(BOB, (d / "f").read_bytes) == "EACCES"


@users
def access_list_of_a_directory(d: Path) -> object:
    os.chmod(d / "e", 0o700)
    assert as_user(ALICE, lambda: os.mkdir(d / "e" / "new")) == "EACCES"
    os.setxattr(d / "e", _ACCESS, _list(7, 0, named=7))
    assert as_user(ALICE, lambda: os.mkdir(d / "e" / "new")) is None
    assert as_user(BOB, lambda: os.stat(d / "e" / "new")) == "EACCES"
    assert os.stat(d / "e" / "new").st_uid == ALICE


@users
def access_lists_are_for_owners(d: Path) -> object:
    os.chmod(d / "f", 0o666)
    assert as_user(ALICE, lambda: os.setxattr(d / "f", _ACCESS, _list(6, 0))) == "EPERM"
    os.chown(d / "f", ALICE, ALICE)
    assert as_user(ALICE, lambda: os.setxattr(d / "f", _ACCESS, _list(6, 0))) is None
    return oct(mode_of(d / "f"))


@users
def setgid_goes_with_a_list_by_a_stranger(d: Path) -> object:
    """As with chmod(2) by an owner who is not of the group."""
    os.chown(d / "f", ALICE, STAFF)
    os.chmod(d / "f", 0o2775)
    assert as_user(ALICE, lambda: os.setxattr(d / "f", _ACCESS, _list(7, 5, named=7))) is None
    assert mode_of(d / "f") & 0o2000 == 0
    os.chmod(d / "f", 0o2775)
    member = lambda: os.setxattr(d / "f", _ACCESS, _list(7, 5))  # noqa: E731
    assert as_user(ALICE, member, STAFF) is None
    assert mode_of(d / "f") & 0o2000
