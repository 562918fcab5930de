"""rename(2) and renameat2(2)."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from fuseoverlay.system.syscalls import (
    AT_FDCWD,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    renameat2,
)
from tests.helpers import libc
from tests.helpers.mounts import fails
from tests.posix.table import (
    CONTENT,
    KINDS,
    Child,
    behaviour,
    expect,
    in_child,
    in_directory,
    kind_of,
    on_each_kind,
    opened,
    same,
    seen,
)


def _rename(old: Path | str, new: Path | str, flags: int = 0) -> None:
    renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags)


@behaviour()
def rename_each_kind(d: Path) -> object:
    kinds = on_each_kind(d, kind_of)
    expect(on_each_kind(d, lambda p: os.rename(p, d / "e" / f"new-{p.name}")))
    for kind in kinds:
        assert kind_of(d / "e" / f"new-{KINDS[kind]}") == kind
        assert kind_of(d / KINDS[kind]) == "ENOENT"


@behaviour()
def rename_keeps_the_object(d: Path) -> object:
    for name in ("f", "d", "s", "p", "k"):
        was, names = os.lstat(d / name), seen(os.listxattr, d / name, follow_symlinks=False)
        os.rename(d / name, d / "e" / name)
        now = os.lstat(d / "e" / name)
        assert same(was, now)
        for field in ("st_mode", "st_uid", "st_gid", "st_mtime_ns", "st_atime_ns"):
            assert getattr(was, field) == getattr(now, field), (name, field)
        assert seen(os.listxattr, d / "e" / name, follow_symlinks=False) == names


def _over(d: Path, new: str) -> dict[str, object]:
    """Rename an object of each kind over another one of the kind `new`."""
    answers: dict[str, object] = {}
    for kind in ("file", "dir", "link", "fifo", "socket"):
        for where, which in (("from", kind), ("to", new)):
            folder = d / f"{kind}-{where}"
            os.mkdir(folder)
            make = {
                "file": lambda path: path.touch(),
                "dir": os.mkdir,
                "link": lambda path: os.symlink("x", path),
                "fifo": os.mkfifo,
                "socket": lambda path: os.mknod(path, 0o140600),
            }[which]
            make(folder / "x")
        answers[kind] = seen(os.rename, d / f"{kind}-from" / "x", d / f"{kind}-to" / "x")
        arrived = answers[kind] is None
        assert kind_of(d / f"{kind}-to" / "x") == (kind if arrived else new)
        assert kind_of(d / f"{kind}-from" / "x") == ("ENOENT" if arrived else kind)
    return answers


@behaviour()
def rename_over_a_file(d: Path) -> object:
    expect(_over(d, "file"), dir="ENOTDIR")


@behaviour()
def rename_over_a_directory(d: Path) -> object:
    expect(_over(d, "dir"), others="EISDIR", dir=None)


@behaviour()
def rename_over_a_link(d: Path) -> object:
    expect(_over(d, "link"), dir="ENOTDIR")


@behaviour()
def rename_over_a_fifo(d: Path) -> object:
    expect(_over(d, "fifo"), dir="ENOTDIR")


@behaviour()
def rename_over_populated_objects(d: Path) -> object:
    """A new file over each object that was there."""

    def over(path: Path) -> None:
        (d / "e" / "new").write_bytes(b"new")
        os.rename(d / "e" / "new", path)
        assert path.read_bytes() == b"new"

    expect(on_each_kind(d, over), dir="EISDIR")


@behaviour()
def rename_populated_objects_over_new_ones(d: Path) -> object:
    def over(path: Path) -> None:
        target = d / "e" / path.name
        (target.mkdir if path.name == "d" else target.touch)()
        os.rename(path, target)

    expect(on_each_kind(d, over))
    assert (d / "e" / "f").read_bytes() == CONTENT
    return sorted(os.listdir(d / "e" / "d"))


@behaviour()
def rename_over_a_full_directory(d: Path) -> object:
    with fails(errno.ENOTEMPTY, errno.EEXIST):
        os.rename(d / "e", d / "d")
    os.mkdir(d / "new")
    os.rename(d / "new", d / "e")
    assert os.listdir(d / "e") == []
    assert kind_of(d / "new") == "ENOENT"


@behaviour()
def rename_over_an_emptied_directory(d: Path) -> object:
    for name in ("sub/leaf", "child"):
        os.unlink(d / "d" / name)
    os.rmdir(d / "d" / "sub")
    os.mkdir(d / "new")
    (d / "new" / "x").touch()
    os.rename(d / "new", d / "d")
    return os.listdir(d / "d")


@behaviour()
def rename_a_directory_into_itself(d: Path) -> object:
    with fails(errno.EINVAL):
        os.rename(d / "d", d / "d" / "new")
    with fails(errno.EINVAL):
        os.rename(d / "d", d / "d" / "sub" / "new")
    with fails(errno.EINVAL):
        os.rename(d / "d", d / "d" / "sub")
    with fails(errno.ENOTEMPTY):
        os.rename(d / "d" / "sub", d / "d")
    with fails(errno.ENOTEMPTY):
        os.rename(d / "d" / "sub" / "leaf", d / "d")


@behaviour()
def rename_dots(d: Path) -> object:
    with fails(errno.EBUSY):
        os.rename(f"{d}/d/.", d / "new")
    with fails(errno.EBUSY):
        os.rename(f"{d}/d/..", d / "new")
    with fails(errno.EBUSY):
        os.rename(d / "e", f"{d}/d/.")
    with fails(errno.EBUSY):
        os.rename(d / "e", f"{d}/d/..")


@behaviour()
def rename_errors(d: Path) -> object:
    with fails(errno.ENOENT):
        os.rename(d / "missing", d / "new")
    with fails(errno.ENOENT):
        os.rename(d / "f", d / "missing" / "new")
    with fails(errno.ENOTDIR):
        os.rename(d / "f", d / "g" / "new")
    with fails(errno.ENOTDIR):
        os.rename(d / "f" / "x", d / "new")
    assert (d / "f").read_bytes() == CONTENT


@behaviour()
def rename_with_slash(d: Path) -> object:
    with fails(errno.ENOTDIR):
        os.rename(f"{d}/f/", d / "new")
    with fails(errno.ENOTDIR):
        os.rename(d / "f", f"{d}/new/")
    with fails(errno.ENOTDIR):
        os.rename(d / "s", f"{d}/new/")
    os.rename(f"{d}/e/", f"{d}/new/")
    assert kind_of(d / "new") == "dir"


@behaviour()
def rename_to_the_same_name(d: Path) -> object:
    for name in ("f", "d", "s"):
        os.rename(d / name, d / name)
        os.rename(d / name, d / "e" / ".." / name)
    assert (d / "f").read_bytes() == CONTENT


@behaviour()
def rename_between_two_names_of_a_file(d: Path) -> object:
    """Nothing happens."""
    os.link(d / "f", d / "twin")
    os.rename(d / "f", d / "twin")
    assert same(os.stat(d / "f"), os.stat(d / "twin"))
    return os.stat(d / "f").st_nlink


@behaviour()
def rename_over_one_of_two_names(d: Path) -> object:
    os.link(d / "f", d / "twin")
    os.rename(d / "g", d / "f")
    assert (d / "twin").read_bytes() == CONTENT
    return os.stat(d / "twin").st_nlink, (d / "f").read_bytes()


@behaviour()
def rename_a_link_not_its_target(d: Path) -> object:
    os.rename(d / "s", d / "moved")
    assert os.readlink(d / "moved") == "f"
    (d / "new").write_bytes(b"new")
    os.rename(d / "new", d / "moved")
    assert kind_of(d / "moved") == "file"
    assert (d / "f").read_bytes() == CONTENT


@behaviour()
def rename_a_tree(d: Path) -> object:
    os.rename(d / "d", d / "e" / "d")
    assert kind_of(d / "d") == "ENOENT"
    assert (d / "e" / "d" / "sub" / "leaf").read_bytes() == b"leaf"
    (d / "e" / "d" / "sub" / "leaf").write_bytes(b"changed")
    os.rename(d / "e" / "d", d / "back")
    assert (d / "back" / "sub" / "leaf").read_bytes() == b"changed"
    assert os.stat(d / "back" / "..").st_ino == os.stat(d).st_ino
    return sorted(os.listdir(d / "back")), os.listdir(d / "e")


@behaviour()
def make_under_the_old_name(d: Path) -> object:
    os.rename(d / "d", d / "moved")
    os.mkdir(d / "d")
    assert os.listdir(d / "d") == []
    (d / "d" / "child").write_bytes(b"new child")
    assert (d / "moved" / "child").read_bytes() == b"child"
    os.rename(d / "moved" / "sub", d / "d" / "sub")
    return (d / "d" / "sub" / "leaf").read_bytes(), os.listdir(d / "moved")


@behaviour()
def rename_there_and_back(d: Path) -> object:
    for _ in range(5):
        for name in ("f", "d", "s", "p"):
            os.rename(d / name, d / "e" / "x")
            os.rename(d / "e" / "x", d / name)
    assert (d / "f").read_bytes() == CONTENT
    return sorted(os.listdir(d / "d"))


@behaviour()
def rename_an_open_file(d: Path) -> object:
    with opened(d / "f", os.O_RDWR) as fd:
        os.rename(d / "f", d / "e" / "moved")
        os.pwrite(fd, b"HELLO", 0)
        assert same(os.fstat(fd), os.stat(d / "e" / "moved"))
    assert (d / "e" / "moved").read_bytes() == b"HELLO" + CONTENT[5:]


@behaviour()
def replace_an_open_file(d: Path) -> object:
    """What editors and package managers do."""
    with opened(d / "f", os.O_RDWR) as fd:
        (d / "new").write_bytes(b"new")
        os.rename(d / "new", d / "f")
        assert os.fstat(fd).st_nlink == 0
        assert os.pread(fd, 9999, 0) == CONTENT
        os.pwrite(fd, b"HELLO", 0)
        assert os.pread(fd, 5, 0) == b"HELLO"
        assert not same(os.fstat(fd), os.stat(d / "f"))
    return (d / "f").read_bytes()


@behaviour()
def rename_above_an_open_file(d: Path) -> object:
    with opened(d / "d" / "sub" / "leaf", os.O_RDWR) as fd:
        os.rename(d / "d", d / "moved")
        os.write(fd, b"LE")
        assert os.readlink(f"/proc/self/fd/{fd}") == f"{d}/moved/sub/leaf"
    return (d / "moved" / "sub" / "leaf").read_bytes()


@behaviour()
def rename_an_open_directory(d: Path) -> object:
    with opened(d / "d", os.O_DIRECTORY) as fd:
        os.rename(d / "d", d / "e" / "moved")
        os.mkdir("new", dir_fd=fd)
        assert kind_of(d / "e" / "moved" / "new") == "dir"
        return sorted(os.listdir(fd))


@behaviour()
def rename_the_working_directory(d: Path) -> object:
    def inside() -> object:
        os.rename(d / "d", d / "e" / "moved")
        with open("new", "w"):
            pass
        return libc.getcwd(), sorted(os.listdir(".")), os.stat("../../f").st_size

    cwd, names, size = in_directory(d / "d", inside)
    assert cwd == os.fsencode(d / "e" / "moved")
    assert size == len(CONTENT)
    return names


@behaviour(answers=(0, ["child", "sub"]))
def replace_a_directory_that_is_open(d: Path) -> object:
    with opened(d / "e", os.O_DIRECTORY) as fd:
        os.rename(d / "d", d / "e")
        with fails(errno.ENOENT):
            os.stat("child", dir_fd=fd)
        count = os.fstat(fd).st_nlink
    return count, sorted(os.listdir(d / "e"))


@behaviour()
def rename_without_replacing(d: Path) -> object:
    expect(on_each_kind(d, lambda p: _rename(d / "g", p, RENAME_NOREPLACE)), others="EEXIST")
    with fails(errno.EEXIST):
        _rename(d / "e", d / "e", RENAME_NOREPLACE)
    _rename(d / "g", d / "new", RENAME_NOREPLACE)
    assert kind_of(d / "g") == "ENOENT"


@behaviour()
def exchange_kinds(d: Path) -> object:
    """Each object with a directory, then with a file, which brings it back."""
    for kind, name in KINDS.items():
        if os.path.lexists(d / name):
            was = os.lstat(d / name)
            _rename(d / name, d / "e", RENAME_EXCHANGE)
            assert (kind_of(d / name), kind_of(d / "e")) == ("dir", kind)
            assert same(os.lstat(d / "e"), was)
            _rename(d / name, d / "e", RENAME_EXCHANGE)
            assert (kind_of(d / name), kind_of(d / "e")) == (kind, "dir")
    assert (d / "f").read_bytes() == CONTENT


@behaviour()
def exchange_files(d: Path) -> object:
    _rename(d / "f", d / "g", RENAME_EXCHANGE)
    assert (d / "g").read_bytes() == CONTENT
    _rename(d / "g", d / "d" / "child", RENAME_EXCHANGE)
    assert (d / "d" / "child").read_bytes() == CONTENT
    return (d / "f").read_bytes(), (d / "g").read_bytes()


@behaviour()
def exchange_directories(d: Path) -> object:
    _rename(d / "d", d / "e", RENAME_EXCHANGE)
    assert os.listdir(d / "d") == []
    (d / "d" / "new").touch()
    os.unlink(d / "e" / "child")
    _rename(d / "d", d / "e" / "sub", RENAME_EXCHANGE)
    return os.listdir(d / "d"), os.listdir(d / "e"), os.listdir(d / "e" / "sub")


@behaviour()
def exchange_errors(d: Path) -> object:
    with fails(errno.ENOENT):
        _rename(d / "f", d / "missing", RENAME_EXCHANGE)
    with fails(errno.ENOENT):
        _rename(d / "missing", d / "f", RENAME_EXCHANGE)
    with fails(errno.EINVAL):
        _rename(d / "d", d / "d" / "sub", RENAME_EXCHANGE)
    with fails(errno.EINVAL):
        _rename(d / "d" / "sub", d / "d", RENAME_EXCHANGE)
    _rename(d / "f", d / "f", RENAME_EXCHANGE)


@behaviour()
def rename_flags(d: Path) -> object:
    with fails(errno.EINVAL):
        _rename(d / "f", d / "new", RENAME_NOREPLACE | RENAME_EXCHANGE)
    with fails(errno.EINVAL):
        _rename(d / "f", d / "new", RENAME_WHITEOUT | RENAME_EXCHANGE)
    with fails(errno.EINVAL):
        _rename(d / "f", d / "new", 8)
    assert kind_of(d / "f") == "file"


@behaviour()
def rename_leaving_a_whiteout(d: Path) -> object:
    """Layers of an overlay may, an overlay itself may not."""
    return seen(_rename, d / "f", d / "new", RENAME_WHITEOUT)


@behaviour()
def rename_and_parents_link_counts(d: Path) -> object:
    os.mkdir(d / "e" / "one")
    os.mkdir(d / "e" / "two")
    os.mkdir(d / "e" / "two" / "x")
    counts = [os.stat(d / "e" / name).st_nlink for name in ("one", "two")]
    os.rename(d / "e" / "two" / "x", d / "e" / "one" / "x")
    counts += [os.stat(d / "e" / name).st_nlink for name in ("one", "two")]
    assert counts == [2, 3, 3, 2]
    os.mkdir(d / "e" / "two" / "x")
    os.rename(d / "e" / "one" / "x", d / "e" / "two" / "x")
    counts = [os.stat(d / "e" / name).st_nlink for name in ("one", "two")]
    assert counts == [2, 3]


@behaviour()
def renames_by_two_processes(d: Path) -> object:
    """Two move a file back and forth; it is never lost or doubled."""

    def move() -> int:
        done = 0
        for index in range(60):
            old, new = (d / "e" / "a", d / "d" / "a")[:: 1 if index % 2 else -1]
            done += seen(os.rename, old, new) is None
        return done

    os.rename(d / "g", d / "e" / "a")
    children = [Child(move), Child(move)]
    assert sum(child.answer() for child in children) > 0
    assert (kind_of(d / "e" / "a"), kind_of(d / "d" / "a")).count("file") == 1
    assert in_child(lambda: [kind_of(d / "e" / "a"), kind_of(d / "d" / "a")].count("file")) == 1
