"""Hard links and symbolic links."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

from tests.helpers import libc
from tests.helpers.mounts import fails
from tests.posix.table import (
    CONTENT,
    behaviour,
    expect,
    kind_of,
    mode_of,
    on_each_kind,
    opened,
    opens,
    same,
    seen,
)

_OWN = {"follow_symlinks": False}


@behaviour()
def link_each_kind(d: Path) -> object:
    got = on_each_kind(d, lambda p: os.link(p, d / "e" / p.name, **_OWN))
    for name in os.listdir(d / "e"):
        assert same(os.lstat(d / name), os.lstat(d / "e" / name))
        assert os.lstat(d / name).st_nlink == 2
    return expect(got, dir="EPERM")


@behaviour()
def link_over_each_kind(d: Path) -> object:
    expect(on_each_kind(d, lambda p: os.link(d / "g", p)), others="EEXIST")
    assert os.stat(d / "g").st_nlink == 1


@behaviour()
def link_errors(d: Path) -> object:
    with fails(errno.ENOENT):
        os.link(d / "missing", d / "new")
    with fails(errno.ENOENT):
        os.link(d / "f", d / "missing" / "new")
    with fails(errno.ENOTDIR):
        os.link(d / "f", d / "g" / "new")
    with fails(errno.ENOENT):
        os.link(d / "f", f"{d}/new/")
    with fails(errno.ENOTDIR):
        os.link(f"{d}/f/", d / "new")
    with fails(errno.EINVAL):
        libc.linkat(d / "f", d / "new", 0x1)
    assert os.stat(d / "f").st_nlink == 1


@behaviour()
def link_dots(d: Path) -> object:
    with fails(errno.EPERM):
        os.link(f"{d}/.", d / "new")
    with fails(errno.EEXIST):
        os.link(d / "f", f"{d}/d/.")
    with fails(errno.EEXIST):
        os.link(d / "f", f"{d}/d/..")


@behaviour()
def link_to_another_filesystem(d: Path) -> object:
    with fails(errno.EXDEV):
        os.link("/proc/self/status", d / "new", **_OWN)
    with fails(errno.EXDEV):
        os.rename("/proc/self/status", d / "new")


@behaviour()
def link_follows_on_demand(d: Path) -> object:
    libc.linkat(d / "s", d / "to-link", 0)
    libc.linkat(d / "s", d / "to-file", libc.AT_SYMLINK_FOLLOW)
    assert kind_of(d / "to-link") == "link"
    assert same(os.lstat(d / "to-file"), os.lstat(d / "f"))
    return os.readlink(d / "to-link"), os.stat(d / "f").st_nlink


@behaviour()
def link_an_open_file(d: Path) -> object:
    with opened(d / "f") as fd:
        libc.linkat(Path(f"/proc/self/fd/{fd}"), d / "new", libc.AT_SYMLINK_FOLLOW)
    assert same(os.stat(d / "f"), os.stat(d / "new"))
    return (d / "new").read_bytes() == CONTENT


@behaviour()
def linked_names_share_data(d: Path) -> object:
    os.link(d / "f", d / "e" / "twin")
    with open(d / "e" / "twin", "ab") as stream:
        stream.write(b"more")
    assert (d / "f").read_bytes() == CONTENT + b"more"
    os.truncate(d / "f", 3)
    assert (d / "e" / "twin").read_bytes() == CONTENT[:3]


@behaviour()
def linked_names_share_attributes(d: Path) -> object:
    os.link(d / "f", d / "twin")
    os.chmod(d / "twin", 0o604)
    os.setxattr(d / "twin", "user.x", b"y")
    os.utime(d / "twin", ns=(1, 2))
    assert mode_of(d / "f") == 0o604
    assert os.getxattr(d / "f", "user.x") == b"y"
    assert os.stat(d / "f").st_mtime_ns == 2


@behaviour()
def link_count(d: Path) -> object:
    for index in range(50):
        os.link(d / "f", d / "e" / f"n{index}")
        assert os.stat(d / "f").st_nlink == index + 2
    for index in range(50):
        os.unlink(d / "e" / f"n{index}")
        assert os.stat(d / "f").st_nlink == 50 - index


@behaviour()
def last_name_keeps_the_file(d: Path) -> object:
    os.link(d / "f", d / "e" / "twin")
    os.unlink(d / "f")
    assert kind_of(d / "f") == "ENOENT"
    st = os.stat(d / "e" / "twin")
    assert st.st_nlink == 1
    (d / "f").write_bytes(b"another")
    assert not same(os.stat(d / "f"), st)
    assert (d / "e" / "twin").read_bytes() == CONTENT


@behaviour()
def link_of_a_link_of_a_link(d: Path) -> object:
    os.link(d / "f", d / "a")
    os.link(d / "a", d / "b2")
    os.unlink(d / "a")
    os.link(d / "b2", d / "a")
    names = ("f", "a", "b2")
    assert len({os.stat(d / name).st_ino for name in names}) == 1
    return [os.stat(d / name).st_nlink for name in names]


@behaviour()
def linked_fifo(d: Path) -> object:
    os.link(d / "p", d / "twin")
    with opened(d / "p", os.O_RDWR) as one, opened(d / "twin", os.O_RDWR | os.O_NONBLOCK) as two:
        os.write(one, b"through")
        return os.read(two, 20)


@behaviour()
def stat_of_a_link(d: Path) -> object:
    st = os.lstat(d / "s")
    assert stat.S_ISLNK(st.st_mode)
    assert (st.st_size, st.st_nlink, stat.S_IMODE(st.st_mode)) == (1, 1, 0o777)
    assert same(os.stat(d / "s"), os.stat(d / "f"))


@behaviour()
def read_link_of_each_kind(d: Path) -> object:
    return expect(on_each_kind(d, os.readlink), others="EINVAL", link="f")


@behaviour()
def read_link_errors(d: Path) -> object:
    with fails(errno.ENOENT):
        os.readlink(d / "missing")
    with fails(errno.ENOTDIR):
        os.readlink(d / "f" / "x")
    with fails(errno.ENOTDIR):
        os.readlink(f"{d}/s/")


@behaviour()
def links_are_relative_to_their_directory(d: Path) -> object:
    os.symlink("../f", d / "d" / "up")
    os.symlink("sub/leaf", d / "d" / "down")
    os.symlink(".", d / "d" / "here")
    os.symlink(d / "g", d / "d" / "absolute")
    assert (d / "d" / "up").read_bytes() == CONTENT
    assert (d / "d" / "here" / "here" / "down").read_bytes() == b"leaf"
    return (d / "d" / "absolute").read_bytes()


@behaviour()
def link_with_slash(d: Path) -> object:
    """A slash behind a link means what it leads to."""
    os.symlink("d", d / "to-d")
    assert stat.S_ISDIR(os.lstat(f"{d}/to-d/").st_mode)
    with fails(errno.ENOTDIR):
        os.lstat(f"{d}/s/")
    with fails(errno.ENOTDIR):
        os.unlink(f"{d}/to-d/")
    with fails(errno.ENOTDIR):
        os.rmdir(f"{d}/to-d/")
    with fails(errno.ENOTDIR):
        os.rename(f"{d}/to-d/", d / "new")
    return sorted(os.listdir(f"{d}/to-d/"))


@behaviour()
def removing_a_link_keeps_its_target(d: Path) -> object:
    os.symlink("d", d / "to-d")
    with fails(errno.ENOTDIR):
        os.rmdir(d / "to-d")
    os.unlink(d / "to-d")
    os.unlink(d / "s")
    assert (d / "f").read_bytes() == CONTENT
    assert kind_of(d / "d") == "dir"


@behaviour()
def link_to_itself(d: Path) -> object:
    os.symlink("loop", d / "loop")
    os.symlink("pong", d / "ping")
    os.symlink("ping", d / "pong")
    for name in ("loop", "ping"):
        path = d / name
        assert kind_of(path) == "link"
        got = {
            "stat": seen(os.stat, path),
            "open": seen(opens, path, os.O_RDONLY),
            "create": seen(opens, path, os.O_WRONLY | os.O_CREAT),
            "chmod": seen(os.chmod, path, 0o600),
            "truncate": seen(os.truncate, path, 0),
            "listdir": seen(os.listdir, path),
            "below": seen(os.lstat, path / "x"),
            "mkdir": seen(os.mkdir, path / "x"),
            "utime": seen(os.utime, path),
        }
        expect(got, others="ELOOP")
    os.rename(d / "loop", d / "moved")
    os.unlink(d / "moved")


def _follows(path: str | Path) -> bool:
    """Whether all links of a path are followed in at least one of ten tries.

    Linux walks a path once more, and goes on counting its links where it was, if something is
    mounted anywhere meanwhile: then it answers ELOOP after fewer than 40.
    """
    for _ in range(10):
        with contextlib.suppress(OSError):
            return os.stat(path).st_size == len(CONTENT)
    return False


@behaviour()
def chain_of_links(d: Path) -> object:
    """Linux follows 40."""
    os.symlink("f", d / "l1")
    for index in range(2, 43):
        os.symlink(f"l{index - 1}", d / f"l{index}")
    assert _follows(d / "l40")
    with fails(errno.ELOOP):
        os.stat(d / "l41")
    assert os.readlink(d / "l42") == "l41"


@behaviour()
def links_in_a_path_are_counted(d: Path) -> object:
    os.symlink(".", d / "h")
    assert _follows(f"{d}/{'h/' * 40}f")
    with fails(errno.ELOOP):
        os.stat(f"{d}/{'h/' * 41}f")


@behaviour()
def dangling_link(d: Path) -> object:
    os.symlink("nowhere", d / "dangling")
    assert kind_of(d / "dangling") == "link"
    got = {
        "stat": seen(os.stat, d / "dangling"),
        "open": seen(opens, d / "dangling", os.O_RDONLY),
        "chmod": seen(os.chmod, d / "dangling", 0o600),
        "below": seen(os.mkdir, d / "dangling" / "x"),
        "listdir": seen(os.listdir, d / "dangling"),
    }
    expect(got, others="ENOENT")
    (d / "nowhere").write_bytes(b"now here")
    return (d / "dangling").read_bytes()


@behaviour()
def replaced_link(d: Path) -> object:
    """What a link led to is not remembered."""
    assert (d / "s").read_bytes() == CONTENT
    os.symlink("g", d / "other")
    os.rename(d / "other", d / "s")
    assert (d / "s").read_bytes() == (d / "g").read_bytes()
    os.unlink(d / "s")
    os.symlink("d/child", d / "s")
    return (d / "s").read_bytes(), os.readlink(d / "s")


@behaviour()
def operations_on_the_link_itself(d: Path) -> object:
    os.utime(d / "s", ns=(1, 2), **_OWN)
    os.chown(d / "s", os.getuid(), os.getgid(), **_OWN)
    st = os.lstat(d / "s")
    assert (st.st_atime_ns, st.st_mtime_ns) == (1, 2)
    assert os.stat(d / "f").st_mtime_ns > 2
    os.rename(d / "s", d / "e" / "s")
    assert os.readlink(d / "e" / "s") == "f"
    assert kind_of(d / "f") == "file"


@behaviour()
def links_have_no_mode(d: Path) -> object:
    """EOPNOTSUPP since Linux 6.6; before, that was the filesystem's affair."""
    with opened(d / "s", os.O_PATH | os.O_NOFOLLOW) as fd:
        got = seen(os.chmod, f"/proc/self/fd/{fd}", 0o600)
    assert mode_of(d / "f") == 0o640
    return got, mode_of(d / "s")
