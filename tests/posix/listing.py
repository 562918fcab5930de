"""Directory streams: every name once, positions, changes while listing."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from tests.helpers import libc
from tests.helpers.mounts import fails
from tests.posix.table import KINDS, behaviour, expect, in_child, on_each_kind, opened, seen

_DOTS = [b".", b".."]
#: Entries of the big directories.
MANY = 600


def _many(d: Path, count: int = MANY) -> list[str]:
    names = [f"name-{index:04}" for index in range(count)]
    for name in names:
        os.close(os.open(d / "e" / name, os.O_CREAT | os.O_WRONLY))
    return names


@behaviour()
def list_names(d: Path) -> object:
    names = os.listdir(d)
    assert len(names) == len(set(names))
    return sorted(names)


@behaviour()
def list_kinds(d: Path) -> object:
    """d_type tells the kind."""
    numbers = {"file": 8, "dir": 4, "link": 10, "fifo": 1, "socket": 12, "char": 2, "block": 6}
    with libc.Stream(d) as stream:
        kinds = {}
        while (found := stream.next()) is not None:
            kinds[found[0].decode()] = found[1]
    assert kinds["."] == kinds[".."] == 4
    for kind, name in KINDS.items():
        if name in kinds:
            assert kinds[name] == numbers[kind], name
    assert os.path.lexists(d / "f")


@behaviour()
def dots_are_listed_once(d: Path) -> object:
    for path in (d, d / "d", d / "e"):
        with libc.Stream(path) as stream:
            names = stream.rest()
        assert [names.count(dot) for dot in _DOTS] == [1, 1]


@behaviour()
def list_each_kind(d: Path) -> object:
    return expect(on_each_kind(d, lambda p: sorted(os.listdir(p))), others="ENOTDIR",
                  dir=["child", "sub"])  # fmt: skip


@behaviour()
def list_an_empty_directory(d: Path) -> object:
    with libc.Stream(d / "e") as stream:
        return sorted(stream.rest())


@behaviour()
def list_many_names(d: Path) -> object:
    names = _many(d)
    for _ in range(2):
        assert sorted(os.listdir(d / "e")) == names


@behaviour()
def list_in_small_pieces(d: Path) -> object:
    """Whatever the size of the buffer."""
    names = [f"{'n' * 200}{index:03}" for index in range(40)]
    for name in names:
        (d / "e" / name).touch()
    with opened(d / "e", os.O_DIRECTORY) as fd:
        total = []
        for size in (300, 700, 4096):
            os.lseek(fd, 0, os.SEEK_SET)
            count = 0
            while filled := libc.getdents(fd, size):
                assert filled <= size
                count += filled
            total.append(count)
        assert len(set(total)) == 1
        os.lseek(fd, 0, os.SEEK_SET)
        with fails(errno.EINVAL):
            libc.getdents(fd, 10)


@behaviour()
def list_through_a_file_descriptor(d: Path) -> object:
    with opened(d / "d", os.O_DIRECTORY) as fd:
        assert os.listdir(fd) == os.listdir(fd)
        (d / "d" / "new").touch()
        names = sorted(os.listdir(fd))
    with opened(d / "d", os.O_PATH) as fd, fails(errno.EBADF):
        libc.getdents(fd, 1000)
    with opened(d / "f") as fd, fails(errno.ENOTDIR):
        libc.getdents(fd, 1000)
    return names


@behaviour()
def positions_lead_back(d: Path) -> object:
    _many(d, 200)
    with libc.Stream(d / "e") as stream:
        places = [stream.tell()]
        names = []
        while (found := stream.next()) is not None:
            names.append(found[0])
            places.append(stream.tell())
        for index in (0, 1, 2, 3, 50, 199, 200, 201, 202):
            stream.seek(places[index])
            assert stream.rest() == names[index:], index
        assert len(set(places)) == len(places)


@behaviour()
def positions_hold_while_names_go(d: Path) -> object:
    """A position stays where it was when names before it are removed."""
    _many(d, 200)
    with libc.Stream(d / "e") as stream:
        before = [stream.next()[0] for _ in range(100)]
        place = stream.tell()
        after = stream.rest()
        for name in before:
            if name not in _DOTS:
                os.unlink(os.fsencode(d / "e") + b"/" + name)
        stream.seek(place)
        assert stream.rest() == after


@behaviour()
def rewinding_sees_changes(d: Path) -> object:
    with libc.Stream(d / "d") as stream:
        names = [sorted(stream.rest())]
        (d / "d" / "new").touch()
        os.unlink(d / "d" / "child")
        stream.rewind()
        names.append(sorted(stream.rest()))
        os.rename(d / "d" / "new", d / "d" / "newer")
        stream.rewind()
        names.append(sorted(stream.rest()))
    return names


@behaviour()
def two_streams_at_once(d: Path) -> object:
    names = _many(d, 300)
    with libc.Stream(d / "e") as one, libc.Stream(d / "e") as two:
        first = [one.next()[0] for _ in range(150)]
        assert sorted(two.rest()) == sorted([*_DOTS, *map(os.fsencode, names)])
        assert sorted(first + one.rest()) == sorted([*_DOTS, *map(os.fsencode, names)])


@behaviour()
def removing_while_listing(d: Path) -> object:
    """`rm -r`: every name is met once."""
    names = _many(d)
    met = []
    with os.scandir(d / "e") as entries:
        for entry in entries:
            met.append(entry.name)
            os.unlink(d / "e" / entry.name)
    assert sorted(met) == names
    os.rmdir(d / "e")


@behaviour()
def making_and_removing_while_listing(d: Path) -> object:
    """Names that were there all the time are met once, whatever comes and goes."""
    names = _many(d, 500)
    stable, unstable = names[::2], names[1::2]
    met = []
    with os.scandir(d / "e") as entries:
        for index, entry in enumerate(entries):
            met.append(entry.name)
            if index < len(unstable):
                os.unlink(d / "e" / unstable[index])
                (d / "e" / f"new-{index}").touch()
    assert sorted(name for name in met if name in set(stable)) == stable
    assert len(met) == len(set(met))
    assert set(stable) <= set(os.listdir(d / "e"))


@behaviour()
def renaming_while_listing(d: Path) -> object:
    names = _many(d, 300)
    with os.scandir(d / "e") as entries:
        for entry in entries:
            if entry.name.startswith("name-"):
                os.rename(d / "e" / entry.name, d / "e" / f"r{entry.name}")
    assert sorted(os.listdir(d / "e")) == sorted(f"r{name}" for name in names)


@behaviour()
def populated_directory_emptied_while_listing(d: Path) -> object:
    met = []
    with os.scandir(d / "d") as entries:
        for entry in entries:
            met.append(entry.name)
            os.rename(d / "d" / entry.name, d / "e" / entry.name)
    assert os.listdir(d / "d") == []
    return sorted(met)


@behaviour()
def listing_a_removed_directory(d: Path) -> object:
    with opened(d / "e", os.O_DIRECTORY) as fd:
        os.rmdir(d / "e")
        return seen(libc.getdents, fd, 1000)


@behaviour()
def listing_a_renamed_directory(d: Path) -> object:
    with opened(d / "d", os.O_DIRECTORY) as fd:
        os.rename(d / "d", d / "e" / "moved")
        (d / "e" / "moved" / "new").touch()
        assert sorted(os.listdir(fd)) == sorted(os.listdir(d / "e" / "moved"))
        return sorted(os.listdir(fd))


@behaviour()
def listing_by_a_process_that_inherited_the_stream(d: Path) -> object:
    """The position belongs to the open file, so both share it."""
    _many(d, 300)
    with opened(d / "e", os.O_DIRECTORY) as fd:
        first = libc.getdents(fd, 2000)

        def rest() -> int:
            total = 0
            while filled := libc.getdents(fd, 2000):
                total += filled
            return total

        theirs = in_child(rest)
        assert libc.getdents(fd, 2000) == 0
        os.lseek(fd, 0, os.SEEK_SET)
        assert first + theirs == rest()


@behaviour()
def names_come_and_go(d: Path) -> object:
    for index in range(50):
        os.rename(d / "f", d / "x") if index % 2 == 0 else os.rename(d / "x", d / "f")
        assert ("x" in os.listdir(d)) == (index % 2 == 0)
        assert ("f" in os.listdir(d)) == (index % 2 == 1)


@behaviour()
def listing_of_every_state(d: Path) -> object:
    """Removed, replaced, moved and new names in one directory."""
    os.unlink(d / "d" / "child")
    os.rename(d / "f", d / "d" / "from-above")
    os.mkdir(d / "d" / "child")
    os.rename(d / "d" / "sub", d / "e" / "sub")
    os.symlink("x", d / "d" / "sub")
    with os.scandir(d / "d") as entries:
        return sorted((e.name, e.is_dir(follow_symlinks=False), e.is_symlink()) for e in entries)
