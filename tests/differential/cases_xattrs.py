"""Extended attributes, ACLs, and the overlay's own attributes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from tests.differential import calls
from tests.differential.calls import attempt, look, xattrs
from tests.differential.designs import FOLLOWED, KEPT, NAMESPACES, UNWRITABLE
from tests.differential.layers import posix_acl
from tests.differential.table import Steps, Topic

TOPIC = Topic("xattrs")

KINDS = ("file", "ufile", "ucover", "link", "ulink", "fifo", "dir", "merged", "udir", "hard")
NAMES = (
    *("user.new", "user.colour", "user.", "user", "trusted.new", "security.new", "system.new"),
    *("system.posix_acl_default", "nonsense.new", "user.overlay.x", "trusted.overlay.x"),
    *("user.overlay.opaque", "trusted.overlay.opaque", "user.overlay.overlay.x"),
    *("trusted.overlay.overlay.x", "trusted.overlay.", "trusted.overlay"),
)


def _set(kind: str) -> Steps:
    def steps(path: Path) -> Iterator[object]:
        subject = path / kind
        yield xattrs(subject)
        for name in ("user.new", "trusted.new"):
            yield attempt(os.setxattr, subject, name, b"value", follow_symlinks=False)
            yield attempt(os.getxattr, subject, name, follow_symlinks=False)
        yield xattrs(subject)
        for name in ("user.new", "user.none"):
            yield attempt(os.removexattr, subject, name, follow_symlinks=False)
        yield xattrs(subject)

    return steps


def _name(name: str, kind: str) -> Steps:
    def steps(path: Path) -> Iterator[object]:
        yield attempt(os.getxattr, path / kind, name)
        yield attempt(os.removexattr, path / kind, name)
        yield attempt(os.setxattr, path / kind, name, b"value")
        yield attempt(os.getxattr, path / kind, name)
        yield xattrs(path / kind)
        yield attempt(os.setxattr, path / kind, name, b"", os.XATTR_CREATE)
        yield attempt(os.removexattr, path / kind, name)
        yield xattrs(path / kind)

    return steps


def _fill() -> None:
    for kind in KINDS:
        design = [KEPT] if kind == "hard" else []
        TOPIC.add(f"set-on-{kind}", kind, _set(kind), *design)
    for kind in ("file", "merged"):
        for name in NAMES:
            slug = name.replace(".", "_")
            design = [UNWRITABLE] if name == "security.new" else []
            TOPIC.add(f"{kind}-{slug}", kind, _name(name, kind), *design)


_fill()


@TOPIC.case("file")
def flags(path: Path) -> Iterator[object]:
    subject = path / "file"
    yield attempt(os.setxattr, subject, "user.colour", b"x", os.XATTR_CREATE)
    yield attempt(os.setxattr, subject, "user.none", b"x", os.XATTR_REPLACE)
    yield xattrs(subject)
    yield attempt(os.setxattr, subject, "user.colour", b"blue", os.XATTR_REPLACE)
    yield attempt(os.setxattr, subject, "user.new", b"y", os.XATTR_CREATE)
    yield attempt(os.setxattr, subject, "user.new", b"y", 3)
    yield xattrs(subject)


@TOPIC.case("file ufile")
def sizes(path: Path) -> Iterator[object]:
    for kind in ("file", "ufile"):
        for size in (0, 1, 255, 3000):
            yield attempt(os.setxattr, path / kind, "user.size", b"v" * size)
            yield attempt(os.getxattr, path / kind, "user.size")
        yield attempt(os.setxattr, path / kind, "user.size", b"v" * 65537)
        yield attempt(os.setxattr, path / kind, "user.size", b"v" * 20000)
        yield attempt(os.setxattr, path / kind, "user." + "n" * 250, b"v")
        yield attempt(os.setxattr, path / kind, "user." + "n" * 251, b"v")
        yield xattrs(path / kind)


@TOPIC.case("ufile")
def many_attributes(path: Path) -> Iterator[object]:
    for index in range(40):
        os.setxattr(path / "ufile", f"user.n{index:02}", b"value")
    yield xattrs(path / "ufile")
    for index in range(0, 40, 3):
        os.removexattr(path / "ufile", f"user.n{index:02}")
    yield xattrs(path / "ufile")


@TOPIC.case("file")
def by_descriptor(path: Path) -> Iterator[object]:
    with calls.opened(path / "file", os.O_RDWR) as fd:
        yield os.getxattr(fd, "user.colour")
        yield os.setxattr(fd, "user.colour", b"blue")
        yield os.listxattr(fd)
        os.unlink(path / "file")
        yield attempt(os.getxattr, fd, "user.colour")
        yield attempt(os.setxattr, fd, "user.more", b"x")
        yield attempt(os.listxattr, fd)


@TOPIC.case("nested=file nested_dir=dir", NAMESPACES, root=True)
def of_a_nested_overlay(path: Path) -> Iterator[object]:
    for kind in ("nested", "nested_dir"):
        for name, value in (
            ("trusted.overlay.opaque", b"y"),
            ("trusted.overlay.redirect", b"/somewhere"),
            ("user.overlay.opaque", b"y"),
            ("trusted.overlay.overlay.opaque", b"y"),
        ):
            yield attempt(os.setxattr, path / kind, name, value)
        yield xattrs(path / kind)
        yield attempt(os.removexattr, path / kind, "trusted.overlay.redirect")
        yield xattrs(path / kind)
    yield look(path / "nested_dir")


@TOPIC.case("merged umerged uopaque opaque redirected xwhite", FOLLOWED)
def own_ones_are_hidden(path: Path) -> Iterator[object]:
    os.chmod(path / "merged", 0o700)
    for name in ("merged", "umerged", "uopaque", "opaque", "redirected", "xwhite"):
        yield attempt(xattrs, path / name)
        for what in ("opaque", "origin", "impure", "redirect"):
            for namespace in ("trusted", "user"):
                attribute = f"{namespace}.overlay.{what}"
                yield attempt(os.getxattr, path / name, attribute)


@TOPIC.case("acl file edir default_acl")
def access_control_lists(path: Path) -> Iterator[object]:
    access, default = "system.posix_acl_access", "system.posix_acl_default"
    value = posix_acl(group=0o7, other=0o1)
    for kind in ("acl", "file", "edir", "default_acl"):
        yield attempt(os.getxattr, path / kind, access)
        yield attempt(os.getxattr, path / kind, default)
        yield attempt(os.setxattr, path / kind, access, value)
        yield look(path / kind)
        yield attempt(os.setxattr, path / kind, default, value)
        yield look(path / kind)
        yield attempt(os.removexattr, path / kind, default)
        yield attempt(os.removexattr, path / kind, access)
        yield attempt(os.removexattr, path / kind, access)
        yield look(path / kind)


@TOPIC.case("file")
def bad_access_control_lists(path: Path) -> Iterator[object]:
    access = "system.posix_acl_access"
    for value in (b"", b"\x02\0\0\0", b"\x01\0\0\0", b"nonsense", posix_acl(group=7)[:-8]):
        yield attempt(os.setxattr, path / "file", access, value)
    yield look(path / "file")


@TOPIC.case("acl owned", root=True)
def access_control_lists_count(path: Path) -> Iterator[object]:
    with calls.user():
        yield attempt(calls.get, path / "acl")
        yield attempt(calls.put, path / "acl", b"by the ACL")
        yield attempt(os.setxattr, path / "acl", "user.x", b"y")
        yield attempt(os.setxattr, path / "acl", "trusted.x", b"y")
        yield attempt(os.getxattr, path / "acl", "trusted.x")
        yield attempt(os.chmod, path / "acl", 0o777)
        yield attempt(os.setxattr, path / "acl", "system.posix_acl_access", posix_acl(group=0o7))
        yield attempt(os.setxattr, path / "owned", "system.posix_acl_access", posix_acl(group=0o7))
        yield attempt(os.setxattr, path / "owned", "user.x", b"y")
    with calls.user(2000, 2000):
        yield attempt(calls.get, path / "acl")
        yield attempt(os.getxattr, path / "owned", "user.x")
        yield attempt(os.setxattr, path / "owned", "user.x", b"z")
    yield look(path / "acl")
    yield look(path / "owned")


@TOPIC.case("caps", root=True)
def capability(path: Path) -> Iterator[object]:
    value = os.getxattr(path / "caps", "security.capability")
    yield value
    yield os.setxattr(path / "caps", "user.x", b"y")
    yield os.getxattr(path / "caps", "security.capability") == value
    yield os.removexattr(path / "caps", "security.capability")
    yield xattrs(path / "caps")
    yield os.setxattr(path / "caps", "security.capability", value)
    yield xattrs(path / "caps")


@TOPIC.case("caps", root=True)
def capability_is_lost(path: Path) -> Iterator[object]:
    value = os.getxattr(path / "caps", "security.capability")
    for change in (
        lambda name: calls.put(name, b"x"),
        lambda name: os.truncate(name, 3),
        lambda name: os.chown(name, 0, 0),
        lambda name: os.chmod(name, 0o700),
    ):
        yield attempt(change, path / "caps")
        yield xattrs(path / "caps")
        yield attempt(os.setxattr, path / "caps", "security.capability", value)


@TOPIC.case("sticky", root=True)
def on_a_sticky_directory(path: Path) -> Iterator[object]:
    with calls.user():
        yield attempt(os.setxattr, path / "sticky", "user.x", b"y")
    yield attempt(os.setxattr, path / "sticky", "user.x", b"y")
    yield xattrs(path / "sticky")


@TOPIC.case("immutable append", root=True)
def on_protected_files(path: Path) -> Iterator[object]:
    for kind in ("immutable", "append"):
        yield attempt(os.setxattr, path / kind, "user.x", b"y")
        yield attempt(os.removexattr, path / kind, "user.x")
        yield xattrs(path / kind)


@TOPIC.case("merged")
def of_a_merged_directory(path: Path) -> Iterator[object]:
    yield xattrs(path / "merged")
    os.setxattr(path / "merged", "user.x", b"y")
    yield xattrs(path / "merged")
    os.removexattr(path / "merged", "user.x")
    yield xattrs(path / "merged")
    yield xattrs(path / "merged/child")
