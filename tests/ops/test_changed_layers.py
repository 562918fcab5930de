"""Layers changed between two mounts: undefined behaviour, but never a crash or a mix-up.

A mount copies up, renames, hides and links; after the unmount the lower or the upper is changed by
hand. The next mount shows something consistent: no name shows the content of an unrelated file, and
only objects whose other half is gone return errors. The kernel shows the same, where it can be
asked.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers.mounts import MODE, Space, fuse_only, make_whiteout, scratch
from tests.ops.test_malformed import SECRET, answer, look

pytestmark = [fuse_only, pytest.mark.timeout(100)]

FEATURES = {"plain": (), "all": ("redirect_dir=on", "metacopy=on", "index=on")}
#: Errors of an object whose other half is gone or has become something else.
REFUSALS = {"EIO", "ESTALE"}


@dataclass
class Area:
    """One case's directory in the lower and in the upper."""

    lower: Path
    upper: Path
    outside: Path


def _populate(area: Area) -> None:
    lower = area.lower
    for name in ("meta", "copied", "whited", "renamed", "plain", "swap1", "swap2"):
        (lower / name).write_bytes(f"lower {name}\n".encode() * 20)
    for first, others in (("h1", ("h2", "h3")), ("n1", ("n2",))):
        (lower / first).write_bytes(f"linked {first}\n".encode())
        for name in others:
            os.link(lower / first, lower / name)
    for name in ("moved", "opaque", "merged", "gone"):
        (lower / name / "sub").mkdir(parents=True)
        (lower / name / "file").write_bytes(f"file in {name}\n".encode())
        (lower / name / "sub" / "leaf").write_bytes(f"leaf in {name}\n".encode())
    os.symlink("plain", lower / "link")


def _use(path: Path) -> None:
    """Copy up, hide, rename, link: something of everything."""
    os.chmod(path / "meta", 0o600)
    (path / "copied").write_bytes(b"upper copied\n")
    (path / "swap1").write_bytes(b"upper swap1\n")
    os.unlink(path / "whited")
    os.rename(path / "renamed", path / "new name")
    (path / "h1").write_bytes(b"changed link\n")
    os.unlink(path / "n1")
    answer(os.rename, path / "moved", path / "arrived")
    shutil.rmtree(path / "opaque")
    (path / "opaque").mkdir()
    (path / "opaque" / "mine").write_bytes(b"mine\n")
    os.unlink(path / "merged" / "file")
    (path / "merged" / "new").write_bytes(b"new\n")
    shutil.rmtree(path / "gone")


def remove(path: Path) -> None:
    """Remove it, whatever it is."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()


FILES = ("meta", "copied", "whited", "renamed", "plain", "h1", "h2", "n1", "n2", "link")
DIRECTORIES = ("moved", "opaque", "merged", "gone")
Change = Callable[[Area], object]


def _lower_becomes(name: str, kind: str) -> Change:
    def change(area: Area) -> None:
        path = area.lower / name
        remove(path)
        if kind == "a directory":
            path.mkdir()
            (path / "strange").write_bytes(b"strange\n")
        elif kind == "a file":
            path.write_bytes(b"strange\n")
        elif kind == "a link":
            os.symlink(area.outside, path)
        elif kind == "a whiteout":
            make_whiteout(path)

    return change


def _swap(area: Area) -> None:
    one, two, aside = (area.lower / name for name in ("swap1", "swap2", "aside"))
    os.rename(one, aside)
    os.rename(two, one)
    os.rename(aside, two)


def _swap_data(area: Area) -> None:
    _exchange(area.lower / "meta", area.lower / "plain")


def _exchange(one: Path, two: Path) -> None:
    aside = one.with_name("aside")
    os.rename(one, aside)
    os.rename(two, one)
    os.rename(aside, two)


def _edit_data(area: Area) -> None:
    (area.lower / "meta").write_bytes(b"edited, and shorter\n")


def _swap_links(area: Area) -> None:
    _exchange(area.lower / "h2", area.lower / "plain")


def _swap_directories(area: Area) -> None:
    _exchange(area.lower / "moved", area.lower / "merged")


def _new_below_opaque(area: Area) -> None:
    (area.lower / "opaque" / "file2").write_bytes(SECRET)
    (area.lower / "opaque" / "mine").write_bytes(SECRET)


def _new_names(area: Area) -> None:
    (area.lower / "newcomer").write_bytes(b"newcomer\n")
    (area.lower / "merged" / "newcomer").write_bytes(b"newcomer\n")
    (area.lower / "new name").write_bytes(SECRET)


def _new_layer_content(area: Area) -> None:
    for name in (*FILES, *DIRECTORIES):
        remove(area.lower / name)


def _upper_without(*names: str) -> Change:
    return lambda area: [remove(area.upper / name) for name in names]


def _upper_rename(old: str, new: str) -> Change:
    def change(area: Area) -> None:
        if os.path.lexists(area.upper / old):
            os.rename(area.upper / old, area.upper / new)

    return change


def _whiteouts_removed(area: Area) -> None:
    for path in [area.upper / name for name in ("whited", "gone", "renamed", "moved", "n1")]:
        remove(path)


def _attributes_removed(area: Area) -> None:
    for path in [area.upper, *area.upper.rglob("*")]:
        for name in os.listxattr(path, follow_symlinks=False):
            # The kernel does not mount with an entry of its index that has none.
            if ".overlay." in name and path.name != "h1":
                os.removexattr(path, name, follow_symlinks=False)


def _upper_emptied(area: Area) -> None:
    for path in area.upper.iterdir():
        remove(path)


CHANGES: dict[str, Change] = {
    **{f"{name} removed": _lower_becomes(name, "") for name in (*FILES, *DIRECTORIES)},
    **{
        f"{name} becomes {kind}": _lower_becomes(name, kind)
        for name in ("meta", "copied", "whited", "renamed", "h1", "h2")
        for kind in ("a directory", "a link", "a whiteout")
    },
    **{
        f"{name} becomes {kind}": _lower_becomes(name, kind)
        for name in DIRECTORIES
        for kind in ("a file", "a link", "a whiteout")
    },
    "swap": _swap,
    "swap data": _swap_data,
    "edit data": _edit_data,
    "swap links": _swap_links,
    "swap directories": _swap_directories,
    "new below opaque": _new_below_opaque,
    "new names": _new_names,
    "everything removed": _new_layer_content,
    "upper without copies": _upper_without("copied", "meta", "h1", "new name"),
    "upper without directories": _upper_without("arrived", "opaque", "merged"),
    "upper renamed": _upper_rename("merged", "merged2"),
    "upper moved deeper": _upper_rename("opaque", "merged/opaque"),
    "redirect moved deeper": _upper_rename("arrived", "merged/arrived"),
    "whiteouts removed": _whiteouts_removed,
    "attributes removed": _attributes_removed,
    "upper emptied": _upper_emptied,
}


@dataclass
class Views:
    """What we show of each case, and what the kernel shows where it can be asked."""

    ours: dict[str, dict[str, object]]
    theirs: dict[str, dict[str, object]]
    features: str


def _areas(space: Space) -> dict[str, Area]:
    outside = space.base / "outside"
    return {name: Area(space.lower / name, space.upper / name, outside) for name in CHANGES}


@pytest.fixture(scope="module", params=FEATURES)
def views(request: pytest.FixtureRequest) -> Iterator[Views]:
    """Use all cases in one mount, change the layers, look again; at the end change all of them."""
    with scratch() as base:
        space = Space(base, 2)
        space.features = FEATURES[request.param]
        (base / "outside").mkdir()
        (base / "outside" / "file").write_bytes(SECRET)
        try:
            for area in _areas(space).values():
                area.lower.mkdir()
                _populate(area)
            mnt = space.mount()
            for name in CHANGES:
                _use(mnt / name)
            space.unmount()
            for name, area in _areas(space).items():
                CHANGES[name](area)
            mnt = space.mount()
            ours = {name: look(mnt / name) for name in CHANGES}
            again = {name: look(mnt / name) for name in CHANGES}
            assert again == ours
            space.unmount()
            theirs = {}
            if MODE == "root":
                space.mount(impl="kernel")
                theirs = {name: _look_for(mnt / name, ours[name]) for name in CHANGES}
                space.unmount()
            yield Views(ours, theirs, request.param)
            space.mount()
            for name in CHANGES:
                _hammer(mnt / name)
            assert space.alive()
            space.unmount()  # fails where the log tells of a bug
        finally:
            space.drop()


def _hammer(root: Path) -> None:
    """Change, rename and remove everything; refusals are fine."""
    for name in sorted(look(root), reverse=True):
        path = root / name
        answer(os.chmod, path, 0o700)
        answer(os.truncate, path, 1)
        answer(os.rename, path, path.with_name(f"x {path.name}"))
        answer(os.rename, path.with_name(f"x {path.name}"), path)
        answer(os.rmdir if os.path.isdir(path) else os.unlink, path)


@pytest.mark.parametrize("name", CHANGES)
def test_changed_while_unmounted(views: Views, name: str) -> None:
    ours = views.ours[name]
    assert not [path for path, what in ours.items() if isinstance(what, tuple) and SECRET in what]
    assert {what for what in ours.values() if isinstance(what, str)} <= REFUSALS
    if views.theirs:
        theirs = views.theirs[name]
        if name == "swap":
            # Two names claim one lower file: the kernel shows it as the one it looked at first.
            assert ours["swap2"] == ("0o100000", 1, 240, b"lower swap1\n" * 20)
            theirs = theirs | {"swap2": ours["swap2"]}
        _compare(ours, theirs, views.features)


def _look_for(root: Path, expected: dict[str, object]) -> dict[str, object]:
    """`look`, extended to names that are not listed: the kernel leaves out those it refuses, or
    lists nothing at all."""
    seen = look(root)
    for path in sorted(expected.keys() - seen.keys()):
        if not path.endswith(" xattrs"):
            for inner, what in look(root / path).items():
                own = inner == "." or inner == ". xattrs"
                seen[path + inner[1:] if own else f"{path}/{inner}"] = what
    return seen


def _compare(ours: dict[str, object], theirs: dict[str, object], features: str) -> None:
    """Equal except where we differ by choice: hidden whiteouts, hard links, ESTALE, and refused
    names in listings."""
    refused = tuple(path for path, what in theirs.items() if what == "ESTALE")
    hidden = {path for path, what in theirs.items() if what == "ENOENT"}
    linked = {
        path
        for path, what in ours.items()
        if isinstance(what, tuple) and what[-1] in (b"changed link\n", b"linked h1\n")
    }
    for path in sorted((ours.keys() | theirs.keys()) - hidden):
        name = path.removesuffix(" xattrs")
        if any(name == above or name.startswith(f"{above}/") for above in refused):
            continue
        if name in linked and features == "plain":
            continue
        if theirs.get(path) == ("dir", "EIO"):
            continue
        # In some orders a refused name ends the kernel's listing, in others it is left out.
        if theirs.get(path) == ("dir", "ESTALE") and any(
            os.path.dirname(one) == path.removeprefix(".") for one in refused
        ):
            continue
        assert _shown(ours, path, theirs) == _shown(theirs, path, theirs), path


def _shown(seen: dict[str, object], path: str, theirs: dict[str, object]) -> object:
    """What is compared: directories without the names that the kernel hides or refuses, links
    without their link count."""
    what = seen.get(path)
    if isinstance(what, tuple) and what[0] == "dir" and isinstance(what[1], list):
        inside = "" if path == "." else f"{path}/"
        refused = {"ENOENT", *REFUSALS}
        return sorted(name for name in what[1] if str(theirs.get(inside + name)) not in refused)
    if isinstance(what, tuple) and re.fullmatch("[hn][123]", path):
        return what[2:]
    return what


@pytest.mark.parametrize("lost", ["index", "links", "work", "all"])
def test_lost_work_directory(space: Space, lost: str) -> None:
    """The names of one file may become separate files, but each shows its present or former
    content."""
    area = Area(space.lower, space.upper, space.base / "outside")
    _populate(area)
    _use(space.mount())
    space.unmount()
    for name in ("index", "links", "work") if lost == "all" else (lost,):
        shutil.rmtree(space.work / name)
    mnt = space.mount()
    assert (mnt / "h1").read_bytes() == b"changed link\n"
    for name in ("h2", "h3"):
        assert (mnt / name).read_bytes() in (b"changed link\n", b"linked h1\n")
    assert (mnt / "n2").read_bytes() == b"linked n1\n"
    assert not (mnt / "n1").exists()
    _hammer(mnt)
    space.unmount()


def _become(path: Path, kind: str, outside: Path) -> None:
    remove(path)
    if kind == "file":
        path.write_bytes(b"another file\n")
    elif kind == "directory":
        path.mkdir()
        (path / "child").write_bytes(b"another child\n")
    elif kind == "link to a file":
        os.symlink(outside / "file", path)
    elif kind == "link to a directory":
        os.symlink(outside, path)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "whiteout":
        make_whiteout(path)


KINDS = ("", "file", "directory", "link to a file", "link to a directory", "fifo", "whiteout")
#: Errors of an object that has changed under the mount.
GONE = {"ENOENT", "ESTALE", "EIO", "ENOTDIR", "ELOOP", "EISDIR", "EINVAL", "ENXIO", "EPERM",
        "ESPIPE", "EACCES"}  # fmt: skip


@pytest.mark.parametrize("timeout", [None, 0])
def test_changed_while_mounted(space: Space, timeout: int | None) -> None:
    """The lower changes under the mount: errors are allowed, other files' content is not."""
    outside = space.base / "outside"
    outside.mkdir()
    for name in ("file", "child", "leaf"):
        (outside / name).write_bytes(SECRET)
    for kind in KINDS:
        for looked_at in ("seen", "unseen"):
            for path in (f"f {looked_at}", f"d {looked_at}/child", f"d {looked_at}/sub/leaf"):
                file = space.lower / f"to {kind}" / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(b"first content\n" * 1000)
    if timeout is not None:
        space.extra = (f"timeout={timeout}",)
    mnt = space.mount()
    opened = []
    for kind in KINDS:
        os.listdir(mnt / f"to {kind}")
        look(mnt / f"to {kind}" / "d seen")
        for name in ("f seen", "d seen/child", "d seen/sub"):
            opened.append(os.open(mnt / f"to {kind}" / name, os.O_RDONLY))
    for kind in KINDS:
        for name in ("f seen", "f unseen", "d seen", "d unseen"):
            _become(space.lower / f"to {kind}" / name, kind, outside)
    for _ in range(2):
        seen = look(mnt)
        assert not [path for path, what in seen.items() if SECRET in str(what).encode()]
        contents = [what[-1] for what in seen.values() if isinstance(what, tuple)]
        assert SECRET not in contents
        assert {what for what in seen.values() if isinstance(what, str)} <= GONE
        for fd in opened:
            data = answer(os.pread, fd, 100, 0)
            assert data in GONE or data in (b"", (b"first content\n" * 9)[:100], b"another file\n")
            st = answer(os.fstat, fd)
            assert st in GONE or isinstance(st, os.stat_result)
        for kind in KINDS:
            for name in ("f seen", "f unseen", "d seen", "d seen/child", "d unseen/child"):
                path = mnt / f"to {kind}" / name
                answer(os.utime, path, follow_symlinks=False)
                answer(os.setxattr, path, "user.x", b"y", follow_symlinks=False)
                answer(os.rename, path, path.with_name(f"x {path.name}"))
                answer(os.rename, path.with_name(f"x {path.name}"), path)
    for fd in opened:
        answer(os.close, fd)
    assert space.daemon is not None
    space.daemon.check_log()
    copies = [path for path in space.upper.rglob("*") if path.is_file() and not path.is_symlink()]
    assert SECRET not in [path.read_bytes() for path in copies]
    space.unmount()
    for name in ("file", "child", "leaf"):
        assert (outside / name).read_bytes() == SECRET
