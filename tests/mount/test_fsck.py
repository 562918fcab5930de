"""`fuseoverlay fsck`: every kind of fault, on uppers made by hand; none on uppers of real mounts.

A repair never changes what a mount shows: each case is mounted before and after.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fuseoverlay.system import handles
from fuseoverlay.system.removal import remove_tree
from tests.helpers.mounts import (
    MODE,
    Space,
    command,
    daemon_env,
    escape,
    make_whiteout,
    overlay_xattr,
    root_only,
    scratch,
    set_overlay_xattr,
    traces,
    unmount,
)
from tests.helpers.tree import compare, record
from tests.mount.conftest import Cli
from tests.ops.test_interop import _layers as layers
from tests.ops.test_interop import _walk as walk

pytestmark = pytest.mark.timeout(60)

LEFT = 10
NO_UUID = bytes(16)


class Dirty:
    """Layers, with an upper to damage: file f and links a, b in the lower; d, e, r have content."""

    def __init__(self, cli: Cli) -> None:
        self.cli, self.space = cli, cli.space
        bottom = self.space.add_lower()
        for layer in (self.space.lower, bottom):
            for name in ("d", "e", "r"):
                (layer / name / "sub").mkdir(parents=True)
                (layer / name / "x").write_bytes(b"x of " + os.fsencode(layer.name))
        (bottom / "big").write_bytes(b"data" * 1000)
        (self.space.lower / "a").write_bytes(b"linked")
        os.link(self.space.lower / "a", self.space.lower / "b")
        self.options: list[str] = []

    @property
    def upper(self) -> Path:
        return self.space.upper

    @property
    def work(self) -> Path:
        return self.space.work

    def fsck(self, *args: str, workdir: bool = True) -> tuple[int, list[str]]:
        """Run it; exit code and lines, paths relative to the test's directory."""
        lowers = ":".join(escape(path) for path in self.space.lowers)
        options = [f"lowerdir={lowers}", *self.options]
        if workdir:
            options.append(f"workdir={escape(self.work)}")
        done = self.cli.run("fsck", self.upper, "-o", ",".join(options), *args)
        assert done.stderr == ""
        return done.returncode, done.stdout.replace(f"{self.space.base}/", "").splitlines()

    def everything(self) -> list:
        """The state of all that only a repair may change."""
        return [traces(self.upper), traces(self.work)]

    def unchanged(self, before: list) -> bool:
        """Check that nothing has changed but access times."""
        pairs = zip(before, self.everything(), strict=True)
        return not any(compare(old, new, ignore={"atime_ns"}) for old, new in pairs)

    def view(self, impl: str = "fuse") -> object:
        """What a mount shows; the error if it cannot be walked."""
        self.space.mount(impl=impl)
        try:
            return record(str(self.space.mnt))
        except OSError as exc:
            return exc.errno
        finally:
            self.space.unmount()

    def index(self) -> Path:
        """Copy the linked file up through the mount; returns its entry in the index."""
        self.space.mount()
        (self.space.mnt / "a").write_bytes(b"changed")
        self.space.unmount()
        (entry,) = (self.work / "index").iterdir()
        return entry


@pytest.fixture
def dirty(cli: Cli) -> Dirty:
    return Dirty(cli)


@dataclass(frozen=True)
class Case:
    """A fault in the upper, the findings by path, and whether it is repaired."""

    make: Callable[[Dirty], None]
    findings: dict[str, str]
    repaired: bool = True


def _xattr_whiteout(path: Path) -> None:
    path.touch()
    set_overlay_xattr(path, "whiteout", b"y")


def _hides_nothing(dirty: Dirty) -> None:
    make_whiteout(dirty.upper / "gone")


def _in_pure_directory(dirty: Dirty) -> None:
    (dirty.upper / "new" / "deep").mkdir(parents=True)
    make_whiteout(dirty.upper / "new" / "deep" / "x")


def _in_opaque_directory(dirty: Dirty) -> None:
    (dirty.upper / "d").mkdir()
    set_overlay_xattr(dirty.upper / "d", "opaque", b"y")
    make_whiteout(dirty.upper / "d" / "x")


def _in_redirected_directory(dirty: Dirty) -> None:
    """Whiteouts act on the target of the redirect, not on the lower directory of the same name."""
    (dirty.space.lowers[1] / "d" / "only").touch()
    (dirty.space.lowers[1] / "e" / "other").touch()
    (dirty.upper / "e").mkdir()
    set_overlay_xattr(dirty.upper / "e", "redirect", b"/d")
    make_whiteout(dirty.upper / "e" / "only")
    make_whiteout(dirty.upper / "e" / "other")


def _attribute_form(dirty: Dirty) -> None:
    (dirty.upper / "d").mkdir()
    set_overlay_xattr(dirty.upper / "d", "opaque", b"x")
    _xattr_whiteout(dirty.upper / "d" / "x")
    _xattr_whiteout(dirty.upper / "d" / "gone")


def _oci_form(dirty: Dirty) -> None:
    (dirty.upper / ".wh.e").touch()
    (dirty.upper / ".wh.gone").touch()


def _opaque_file_over_nothing(dirty: Dirty) -> None:
    (dirty.upper / "new").mkdir()
    (dirty.upper / "new" / ".wh..wh..opq").touch()
    (dirty.upper / "d").mkdir()
    (dirty.upper / "d" / ".wh..wh..opq").touch()
    (dirty.upper / "d" / ".wh.x").touch()


def _unmarked(dirty: Dirty) -> None:
    (dirty.upper / "d").mkdir()
    _xattr_whiteout(dirty.upper / "d" / "x")


def _odd_opaque(dirty: Dirty) -> None:
    for name, value in (("d", b"1"), ("e", b"yes"), ("r", b"")):
        (dirty.upper / name).mkdir()
        set_overlay_xattr(dirty.upper / name, "opaque", value)


def _redirect(*values: bytes) -> Callable[[Dirty], None]:
    def make(dirty: Dirty) -> None:
        for name, value in zip(("d", "e", "r"), values, strict=False):
            (dirty.upper / name).mkdir()
            (dirty.upper / name / "mine").write_bytes(b"mine")
            set_overlay_xattr(dirty.upper / name, "redirect", value)

    return make


def _redirect_of_marked(dirty: Dirty) -> None:
    _redirect(b"/nowhere")(dirty)
    set_overlay_xattr(dirty.upper / "d", "opaque", b"x")


def _metacopy_without_data(dirty: Dirty) -> None:
    for name, value in (("one", b"/nowhere"), ("two", None), ("three", b"/big")):
        (dirty.upper / name).write_bytes(b"")
        os.truncate(dirty.upper / name, 4000)
        set_overlay_xattr(dirty.upper / name, "metacopy", b"")
        if value is not None:
            set_overlay_xattr(dirty.upper / name, "redirect", value)


def _malformed_origin(dirty: Dirty) -> None:
    good = handles.encode(os.open(dirty.space.lower, os.O_PATH), b"a", NO_UUID)
    assert good is not None
    values = {
        "truncated": good[:-1],
        "short": b"\0",
        "magic": b"\0\0" + good[2:],
        "version": b"\1" + good[1:],
    }
    for name, value in values.items():
        (dirty.upper / name).touch()
        set_overlay_xattr(dirty.upper / name, "origin", value)
    (dirty.upper / "empty-is-fine").touch()
    set_overlay_xattr(dirty.upper / "empty-is-fine", "origin", b"")
    (dirty.upper / "d").mkdir()
    set_overlay_xattr(dirty.upper / "d", "origin", b"rubbish")


def _wh_names(dirty: Dirty) -> None:
    (dirty.upper / ".wh.").touch()
    (dirty.upper / ".wh..wh.plnk").mkdir()
    (dirty.upper / ".wh..wh.other").mkdir()
    (dirty.upper / ".wh.full").write_bytes(b"data")
    (dirty.upper / ".wh.dir" / "inside").mkdir(parents=True)


def _two_dialects(dirty: Dirty) -> None:
    make_whiteout(dirty.upper / "a")
    (dirty.upper / "d").mkdir()
    (dirty.upper / "d" / ".wh.x").touch()
    (dirty.upper / "e").mkdir()
    (dirty.upper / "e" / ".wh..wh..opq").touch()
    (dirty.upper / "e" / "mine").touch()


def _two_dialects_and_a_name(dirty: Dirty) -> None:
    make_whiteout(dirty.upper / "a")
    (dirty.upper / ".wh.d").touch()
    (dirty.upper / "d").mkdir()


def _three_dialects(dirty: Dirty) -> None:
    _two_dialects(dirty)
    (dirty.upper / "r").mkdir()
    set_overlay_xattr(dirty.upper / "r", "opaque", b"x")
    _xattr_whiteout(dirty.upper / "r" / "x")


def _two_namespaces(dirty: Dirty) -> None:
    # Otherwise only one of them counts if root mounts.
    dirty.options.append("userxattr")
    (dirty.upper / "d").mkdir()
    set_overlay_xattr(dirty.upper / "d", "opaque", b"y")
    (dirty.upper / "e").mkdir()
    os.setxattr(dirty.upper / "e", "user.fuseoverlayfs.opaque", b"y")


def _as_fuse_overlayfs(dirty: Dirty) -> None:
    """fuse-overlayfs marks opaque directories in several ways at once, hides names that are not
    there, and stores paths as origins."""
    (dirty.upper / "d").mkdir()
    set_overlay_xattr(dirty.upper / "d", "opaque", b"y")
    make_whiteout(dirty.upper / "d" / ".wh..opq")
    (dirty.upper / "d" / ".wh..wh..opq").touch()
    make_whiteout(dirty.upper / "gone")
    make_whiteout(dirty.upper / "big")
    (dirty.upper / "f").touch()
    os.setxattr(dirty.upper / "f", "user.fuseoverlayfs.origin", b"f")


NOTHING = "whiteout that hides nothing"
CASES = {
    "dangling whiteout": Case(_hides_nothing, {"gone": NOTHING}),
    "in a pure directory": Case(_in_pure_directory, {"new/deep/x": NOTHING}),
    "in an opaque directory": Case(_in_opaque_directory, {"d/x": NOTHING}),
    "below a redirect": Case(_in_redirected_directory, {"e/other": NOTHING}),
    "attribute form": Case(_attribute_form, {"d/gone": NOTHING}),
    ".wh.NAME": Case(_oci_form, {".wh.gone": NOTHING}),
    ".wh..wh..opq": Case(
        _opaque_file_over_nothing, {"new/.wh..wh..opq": NOTHING, "d/.wh.x": NOTHING}
    ),
    "unmarked": Case(
        _unmarked, {"d/x": "the directory is not marked for such whiteouts"}, repaired=False
    ),
    "odd opaque": Case(
        _odd_opaque,
        {"d": "opaque is '1', which", "e": "opaque is 'yes', which", "r": "opaque is '', which"},
    ),
    "broken redirect": Case(
        _redirect(b"/nowhere", b"/a", b"nowhere"),
        {
            "d": "redirect to /nowhere, which is no directory",
            "e": "redirect to /a, which is no directory",
            "r": "redirect to nowhere, which is no directory",
        },
    ),
    "too long a redirect": Case(
        _redirect(b"/" + b"n" * 300, b"/d" * 200), {"d": "redirect to /nnn", "e": "redirect to /d/"}
    ),
    "refused redirect": Case(
        _redirect(b"/d/../d", b"", b"a/b"),
        {"d": "redirect that no mount", "e": "Invalid argument", "r": "Invalid argument"},
        repaired=False,
    ),
    "copied redirect": Case(
        _redirect(b"/r", b"/r"), {"e": "same lower directory as upper/d"}, repaired=False
    ),
    "marked for xattr whiteouts": Case(
        _redirect_of_marked, {"d": "redirect to /nowhere"}, repaired=False
    ),
    "metacopy": Case(
        _metacopy_without_data, {"one": "no layer has its data", "two": "no layer"}, repaired=False
    ),
    "malformed origin": Case(
        _malformed_origin,
        dict.fromkeys(("d", "truncated", "short", "magic", "version"), "origin is malformed"),
    ),
    ".wh. names": Case(
        _wh_names,
        {
            ".wh.": "reserved",
            ".wh..wh.other": "reserved",
            ".wh.full": "counts as a whiteout",
            ".wh.dir": "counts as a whiteout",
        },
        repaired=False,
    ),
    "two dialects": Case(_two_dialects, {"": "several dialects: char (first at upper/a), oci"}),
    "two dialects, name beside": Case(
        _two_dialects_and_a_name, {"": "several dialects"}, repaired=False
    ),
    "three dialects": Case(_three_dialects, {"": "several dialects"}, repaired=False),
    "fuse-overlayfs": Case(
        _as_fuse_overlayfs,
        {"d/.wh..opq": NOTHING, "d/.wh..wh..opq": NOTHING, "gone": NOTHING},
    ),
    "two namespaces": Case(_two_namespaces, {"": "several namespaces"}, repaired=False),
}


def _check_lines(lines: list[str], findings: dict[str, str], ending: str) -> None:
    """Check for exactly these findings, in any order, then the summary."""
    *found, last = lines
    by_path = dict(line.split(": ", 1) for line in found)
    assert len(by_path) == len(found), lines
    assert {os.path.join("upper", path).rstrip("/") for path in findings} == by_path.keys()
    for path, text in findings.items():
        line = by_path[os.path.join("upper", path).rstrip("/")]
        assert text in line
        assert re.search(ending, line), line
    assert re.match(rf"{len(findings)} problems?, ", last), last


@pytest.mark.parametrize("name", CASES)
def test_dirt_in_the_upper(dirty: Dirty, name: str) -> None:
    case = CASES[name]
    case.make(dirty)
    lowers = dirty.space.evidence()
    state = dirty.everything()
    code, lines = dirty.fsck()
    assert code == LEFT
    _check_lines(lines, case.findings, r"^(?!.*repaired)")
    assert dirty.unchanged(state), "a check wrote"
    if not case.repaired:
        code, lines = dirty.fsck("--repair", "--force")
        assert code == LEFT
        _check_lines(lines, case.findings, r"; not repaired: \w")
        if name != "two dialects, name beside":
            assert dirty.unchanged(state)
        return
    shown = dirty.view()
    assert isinstance(shown, dict)
    kernel = dirty.view("kernel") if MODE == "root" else None
    code, lines = dirty.fsck("--repair", "--force")
    assert code == 0
    _check_lines(lines, case.findings, r"; repaired$")
    assert dirty.fsck()[1][0].startswith("clean")
    assert compare(shown, dirty.view()) == []
    if isinstance(kernel, dict) and name not in KERNEL_SEES_FILES:
        assert compare(kernel, dirty.view("kernel")) == []
    dirty.space.check_lowers(lowers)


#: To the kernel `.wh.` names are ordinary files, so it sees them go.
KERNEL_SEES_FILES = (".wh.NAME", ".wh..wh..opq", "two dialects", "fuse-overlayfs")


def _repair(dirty: Dirty, path: str, text: str, *, kept: str | None = None) -> None:
    """Expect one finding, repaired unless `kept` says why not."""
    code, lines = dirty.fsck()
    assert (code, len(lines)) == (LEFT, 2), lines
    assert lines[0].startswith(f"{path}: ")
    assert text in lines[0]
    code, lines = dirty.fsck("--repair", "--force")
    assert len(lines) == 2, lines
    if kept is not None:
        assert code == LEFT
        assert "; not repaired: " in lines[0]
        assert kept in lines[0]
        assert lines[1].startswith("1 problem, 0 repaired")
    else:
        assert code == 0, lines
        assert lines[0].endswith("; repaired")
        assert lines[1].startswith("1 problem, 1 repaired")
        code, lines = dirty.fsck("--repair")
        assert (code, len(lines)) == (0, 1), lines
        assert lines[0].startswith("clean")


def _deleted(dirty: Dirty) -> None:
    """Delete through a mount: three names of the lowers are hidden, one directory is opaque."""
    dirty.space.mount()
    for name in ("a", "big", "d/x"):
        (dirty.space.mnt / name).unlink()
    shutil.rmtree(dirty.space.mnt / "e")
    dirty.space.unmount()
    make_whiteout(dirty.upper / "gone")


def _other_lower(dirty: Dirty) -> None:
    for path in (dirty.space.base / "other", dirty.space.base / "other" / "file"):
        path.mkdir()
    dirty.space.lowers = [dirty.space.base / "other"]


def _no_lower(dirty: Dirty) -> None:
    (dirty.space.base / "empty").mkdir()
    dirty.space.lowers = [dirty.space.base / "empty"]


def _one_lower_empty(dirty: Dirty) -> None:
    """One lower is empty, like a disk that is not mounted; the others are right."""
    (dirty.space.base / "empty").mkdir()
    dirty.space.lowers[-1] = dirty.space.base / "empty"


def _one_lower_missing(dirty: Dirty) -> None:
    """Most whiteouts hide names of the missing lower."""
    dirty.space.lowers.pop(0)
    (dirty.space.lowers[0] / "e" / "sub").rmdir()
    for name in ("big", "e/x", "e"):
        path = dirty.space.lowers[0] / name
        path.rmdir() if path.is_dir() else path.unlink()


def _lowest_missing(dirty: Dirty) -> None:
    """Most whiteouts hide names of the other lowers."""
    assert len(dirty.space.lowers) > 1
    hidden = dirty.space.lowers.pop()
    for name in ("a", "big", "d/x", "e"):
        path = dirty.space.lowers[0] / name
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            shutil.copytree(hidden / name, path) if name == "e" else path.touch()


DOUBT = {
    "the lowest missing": (_lowest_missing, "the last mount was over other lower directories"),
    "another": (_other_lower, r"\d of \d whiteouts and redirects meet nothing"),
    "an empty one": (_no_lower, r"empty is empty"),
    "one of two empty": (_one_lower_empty, r"empty is empty"),
    "one of two missing": (_one_lower_missing, r"4 of 5 whiteouts and redirects meet nothing"),
}


@pytest.mark.parametrize("what", DOUBT)
def test_lowers_that_are_not_the_right_ones(dirty: Dirty, what: str) -> None:
    """A repair by the wrong lowers would bring back what was deleted."""
    _deleted(dirty)
    change, reason = DOUBT[what]
    right = list(dirty.space.lowers)
    shown = dirty.view()
    kept = traces(dirty.upper)
    change(dirty)
    code, lines = dirty.fsck("--repair")
    assert code == LEFT
    *found, why, last = lines
    assert re.match(f"not everything was repaired: .*{reason}.*--force$", why), why
    assert found
    assert all("; not repaired: the lower directories may not be" in line for line in found)
    assert re.match(r"\d problems?, 0 repaired", last)
    assert not compare(kept, traces(dirty.upper), ignore={"atime_ns"})
    if what != "one of two missing":
        dirty.space.lowers = right
        assert compare(shown, dirty.view()) == []
    code, lines = dirty.fsck("--repair", "--force")
    assert code == 0 or "not repaired" in "".join(lines)
    assert "; repaired" in lines[0]


def test_lowers_that_are_the_right_ones(dirty: Dirty) -> None:
    _deleted(dirty)
    shown = dirty.view()
    code, lines = dirty.fsck("--repair")
    assert code == 0
    assert lines[0].endswith("whiteout that hides nothing; repaired")
    assert compare(shown, dirty.view()) == []


def _rm(path: str) -> Callable[[Dirty], None]:
    return lambda dirty: (dirty.space.mnt / path).unlink()


def _move_away(dirty: Dirty) -> None:
    (dirty.space.mnt / "m" / "sub").rename(dirty.space.mnt / "d" / "moved")


def _opaque_on_the_way(dirty: Dirty) -> None:
    """Anything is missing only at the target of the redirect."""
    shutil.rmtree(dirty.space.mnt / "d")
    (dirty.space.mnt / "d").mkdir()
    _move_away(dirty)


#: What is done while something is mounted on m in the lower.
ON_A_MOUNT = {
    "a name": _rm("m/a"),
    "a name further down": _rm("m/sub/x"),
    "renamed": _move_away,
    "renamed to below an opaque directory": _opaque_on_the_way,
}


@pytest.mark.parametrize("what", ON_A_MOUNT)
def test_something_below_a_lower_is_not_mounted(dirty: Dirty, what: str) -> None:
    """If a mount is missing, a lower directory is empty, maybe in only one layer of two."""
    mounted = dirty.space.lowers[1] / "m"
    (mounted / "sub" / "deep").mkdir(parents=True)
    (dirty.space.lower / "m").mkdir()
    (dirty.space.lower / "m" / "other").touch()
    for name in ("a", "sub/x", "sub/y"):
        (mounted / name).write_bytes(b"mounted")
    dirty.space.features = ("redirect_dir=on",)
    dirty.space.mount()
    for name in ("b", "big", "e/x"):
        (dirty.space.mnt / name).unlink()
    ON_A_MOUNT[what](dirty)
    dirty.space.unmount()
    shown, kept = dirty.view(), traces(dirty.upper)
    there = mounted.rename(dirty.space.base / "unmounted")
    mounted.mkdir()
    code, lines = dirty.fsck("--repair")
    assert code == LEFT
    assert re.match(r"not everything was repaired: .*l1/m is empty; .*--force$", lines[-2]), lines
    assert not compare(kept, traces(dirty.upper), ignore={"atime_ns"})
    mounted.rmdir()
    there.rename(mounted)
    assert compare(shown, dirty.view()) == []
    assert dirty.fsck("--repair")[1][0].startswith("clean")


@root_only
@pytest.mark.parametrize("option", ["submounts", "xino=off"])
def test_submount_that_is_missing(dirty: Dirty, option: str) -> None:
    """With or without `submounts` in the options: nobody knows with which ones it was mounted."""
    bottom = dirty.space.lowers[1]
    (bottom / "m").mkdir()
    mount = ["mount", "-t", "tmpfs", "tmpfs", bottom / "m"]
    subprocess.run(mount, check=True, timeout=30)
    try:
        (bottom / "m" / "a").touch()
        dirty.space.extra = ("submounts",)
        dirty.space.mount()
        for name in ("m/a", "a"):
            (dirty.space.mnt / name).unlink()
        dirty.space.unmount()
    finally:
        unmount(bottom / "m")
    dirty.options.append(option)
    code, lines = dirty.fsck("--repair")
    assert code == LEFT
    assert "/m is empty" in lines[-2]
    assert stat.S_ISCHR((dirty.upper / "m" / "a").lstat().st_mode)
    assert dirty.fsck("--repair", "--force")[0] == 0
    assert not (dirty.upper / "m" / "a").exists()


def test_empty_directory_behind_an_opaque_one(dirty: Dirty) -> None:
    """A mount on it would have no effect."""
    (dirty.space.lower / "m").mkdir()
    dirty.space.mount()
    (dirty.space.mnt / "m").rmdir()
    (dirty.space.mnt / "m").mkdir()
    (dirty.space.mnt / "m" / "new").mkdir()
    (dirty.space.mnt / "b").unlink()
    dirty.space.unmount()
    make_whiteout(dirty.upper / "m" / "new" / "gone")
    code, lines = dirty.fsck("--repair")
    assert code == 0, lines
    assert lines[0].endswith("whiteout that hides nothing; repaired")


def test_redirects_by_the_wrong_lowers(dirty: Dirty) -> None:
    """Removing a redirect would lose the content of its directory."""
    dirty.space.features = ("redirect_dir=on",)
    dirty.space.mount()
    (dirty.space.mnt / "d").rename(dirty.space.mnt / "moved")
    dirty.space.unmount()
    right, shown = list(dirty.space.lowers), dirty.view()
    _other_lower(dirty)
    assert dirty.fsck("--repair")[0] == LEFT
    dirty.space.lowers = right
    assert compare(shown, dirty.view()) == []


def _index_path(entry: Path) -> str:
    return f"work/index/{entry.name}"


def test_index_that_is_in_order(dirty: Dirty) -> None:
    dirty.index()
    assert dirty.fsck()[1][0].startswith("clean")


@pytest.mark.parametrize("name", ["foo", "00fb", "00FB1d"])
def test_index_name_malformed(dirty: Dirty, name: str) -> None:
    dirty.index()
    (dirty.work / "index" / name).write_bytes(b"data")
    _repair(dirty, f"work/index/{name}", "no entry of an index", kept="somebody's data")
    assert (dirty.work / "index" / name).read_bytes() == b"data"


def test_index_temporary(dirty: Dirty) -> None:
    dirty.index()
    (dirty.work / "index" / "#12").write_bytes(b"data")
    _repair(dirty, "work/index/#12", "left by a crash")


def _without_names(dirty: Dirty) -> Path:
    entry = dirty.index()
    (dirty.upper / "a").unlink()
    make_whiteout(dirty.upper / "a")
    make_whiteout(dirty.upper / "b")
    return entry


def test_index_copy_without_names(dirty: Dirty) -> None:
    entry = _without_names(dirty)
    set_overlay_xattr(entry, "nlink", b"U-1")
    shown = dirty.view()
    _repair(dirty, _index_path(entry), "a copy that no name leads to")
    assert not entry.exists()
    assert compare(shown, dirty.view()) == []


def test_index_copy_that_counts_names_elsewhere(dirty: Dirty) -> None:
    """As if a lower directory was left out by mistake: the copy may be all there is."""
    entry = _without_names(dirty)
    _repair(dirty, _index_path(entry), "no name leads to", kept="is a lower directory missing?")
    assert entry.read_bytes() == b"changed"


def test_index_copy_with_one_lower_name(dirty: Dirty) -> None:
    """Its only name is in the lowers: it is shown only through the index."""
    entry = dirty.index()
    dirty.space.mount()
    os.unlink(dirty.space.mnt / "a")
    dirty.space.unmount()
    assert os.stat(entry).st_nlink == 1
    assert dirty.fsck("--repair")[1][0].startswith("clean")
    dirty.space.mount()
    assert (dirty.space.mnt / "b").read_bytes() == b"changed"


@root_only
def test_index_lower_file_gone(dirty: Dirty) -> None:
    entry = dirty.index()
    os.unlink(dirty.space.lower / "a")
    os.unlink(dirty.space.lower / "b")
    # As counted, two names lead to the copy: without the index one would.
    _repair(dirty, _index_path(entry), "the lower file is no more", kept="link count")
    set_overlay_xattr(entry, "nlink", b"U-1")
    shown = dirty.view()
    _repair(dirty, _index_path(entry), "the lower file is no more")
    assert compare(shown, dirty.view()) == []
    assert (dirty.upper / "a").read_bytes() == b"changed"


@root_only
def test_index_lower_file_and_copy_gone(dirty: Dirty) -> None:
    entry = dirty.index()
    for name in ("a", "b"):
        os.unlink(dirty.space.lower / name)
    os.unlink(dirty.upper / "a")
    _repair(dirty, _index_path(entry), "the lower file is no more")
    assert not entry.exists()


def test_index_entry_of_another_file(dirty: Dirty) -> None:
    entry = dirty.index()
    root = os.open(dirty.space.lower / "d", os.O_RDONLY)
    other = handles.encode(root, b"x", bytes.fromhex(entry.name)[5:21])
    os.close(root)
    assert other is not None
    renamed = entry.rename(entry.with_name(other.hex()))
    _repair(dirty, _index_path(renamed), "another file than its name", kept="the kernel removes")


@pytest.mark.parametrize("value", [None, b"rubbish"])
def test_index_copy_without_origin(dirty: Dirty, value: bytes | None) -> None:
    """The kernel does not mount then: ENODATA."""
    entry = dirty.index()
    namespace = "trusted" if MODE == "root" else "user"
    if value is None:
        os.removexattr(entry, f"{namespace}.overlay.origin")
    else:
        set_overlay_xattr(entry, "origin", value)
    _repair(dirty, _index_path(entry), "no valid overlay.origin", kept=f"set to 0x{entry.name}")
    if MODE == "root":
        dirty.space.features = ("index=on",)
        with pytest.raises(AssertionError, match="No data available"):
            dirty.space.mount(impl="kernel")
    # What is advised.
    set_overlay_xattr(entry, "origin", bytes.fromhex(entry.name))
    assert dirty.fsck()[0] == 0
    shown = dirty.view()
    assert isinstance(shown, dict)
    assert shown[b"b"].same_as == b"a"
    if MODE == "root":
        assert compare(shown, dirty.view("kernel")) == []


@root_only
def test_upper_of_a_plain_user(dirty: Dirty) -> None:
    """A user's attributes do not count for root; without them the upper has another meaning."""
    dirty.space.extra = ("userxattr",)
    dirty.space.features = ("redirect_dir=on",)
    (dirty.space.lower / "d" / "only").touch()
    dirty.space.mount()
    (dirty.space.mnt / "d" / "only").unlink()
    (dirty.space.mnt / "d").rename(dirty.space.mnt / "moved")
    (dirty.space.mnt / "big").unlink()
    dirty.space.unmount()
    dirty.index()
    shown, kept = dirty.view(), traces(dirty.upper)
    code, lines = dirty.fsck("--repair")
    assert code == LEFT
    assert [line for line in lines if "userxattr" in line] == [
        "upper: its overlay attributes, user.overlay.impure for one, do not count without "
        "userxattr; not repaired: name userxattr in -o, as for an upper that a plain user wrote",
        lines[-2],
    ]
    assert lines[-2].startswith("not everything was repaired: ")
    assert any(line.startswith("upper/moved/only: whiteout that hides nothing") for line in lines)
    assert "overlay.origin" not in "".join(lines)
    assert not compare(kept, traces(dirty.upper), ignore={"atime_ns"})
    assert compare(shown, dirty.view()) == []
    dirty.options.append("userxattr")
    assert dirty.fsck("--repair")[1] == ["clean"]


@root_only
def test_plain_upper_in_two_dialects(dirty: Dirty) -> None:
    """Root's marks in place of `.wh..wh..opq` would not count for the upper's owner."""
    _two_dialects(dirty)
    os.setxattr(dirty.upper, "user.overlay.impure", b"y")
    code, lines = dirty.fsck("--repair", "--force")
    assert code == LEFT
    assert "; repaired" not in "".join(lines)
    assert (dirty.upper / "e" / ".wh..wh..opq").exists()


@root_only
def test_attributes_of_an_overlay_that_ran_inside(dirty: Dirty) -> None:
    """The upper of the inner overlay may be inside one of root's."""
    dirty.index()
    (dirty.upper / "inner").mkdir()
    os.setxattr(dirty.upper / "inner", "user.overlay.opaque", b"y")
    assert dirty.fsck() == (0, ["clean"])


def test_index_link_count_malformed(dirty: Dirty) -> None:
    entry = dirty.index()
    set_overlay_xattr(entry, "nlink", b"many")
    shown = dirty.view()
    _repair(dirty, _index_path(entry), "overlay.nlink is 'many'")
    assert compare(shown, dirty.view()) == []


def test_index_link_count_too_small(dirty: Dirty) -> None:
    entry = dirty.index()
    set_overlay_xattr(entry, "nlink", b"U-1")
    _repair(dirty, _index_path(entry), "tells of 1 names, there are 2", kept="link count")


def test_index_of_another_upper(dirty: Dirty) -> None:
    """Its names are not there: nothing is known about these copies."""
    entry = dirty.index()
    other = dirty.upper.with_name("other")
    other.mkdir()
    dirty.space.upper = other
    code, lines = dirty.fsck("--repair")
    assert code == LEFT
    assert lines[0].startswith(f"{_index_path(entry)}: a copy whose names are not in this upper")
    assert lines[1] == (
        "work/index: belongs to another upper; "
        "not repaired: the names of its files are not in this one"
    )
    assert lines[2].startswith("2 problems, 0 repaired")


def test_index_moved_with_its_upper(dirty: Dirty) -> None:
    """Copied with its hard links, to another filesystem for example: a mount refuses it until it is
    repaired."""
    entry = dirty.index()
    moved = dirty.space.base / "moved"
    moved.mkdir()
    subprocess.run(["cp", "-a", dirty.upper, dirty.work, moved], check=True, timeout=60)
    shutil.rmtree(dirty.upper)
    shutil.rmtree(dirty.work)
    dirty.space.upper, dirty.space.work = moved / "upper", moved / "work"
    with pytest.raises(pytest.fail.Exception, match="belongs to another upper"):
        dirty.space.mount()
    _repair(dirty, "moved/work/index", "belongs to another upper")
    dirty.space.mount()
    assert (dirty.space.mnt / "b").read_bytes() == b"changed"
    assert os.stat(dirty.space.mnt / "a").st_nlink == 2
    assert (moved / "work" / "index" / entry.name).exists()


def _note(dirty: Dirty) -> Path:
    dirty.space.mount()
    os.unlink(dirty.space.mnt / "a")
    dirty.space.unmount()
    (note,) = (dirty.work / "links").iterdir()
    return note


def test_note_in_order(dirty: Dirty) -> None:
    _note(dirty)
    assert dirty.fsck()[1][0].startswith("clean")


@root_only
def test_note_without_lower_file(dirty: Dirty) -> None:
    note = _note(dirty)
    for name in ("a", "b"):
        os.unlink(dirty.space.lower / name)
    (dirty.upper / "a").unlink()
    _repair(dirty, f"work/links/{note.name}", "the lower file is no more")


def test_note_that_is_none(dirty: Dirty) -> None:
    (dirty.work / "links").mkdir()
    (dirty.work / "links" / "mine").write_bytes(b"data")
    _repair(dirty, "work/links/mine", "is no note", kept="somebody's data")


@root_only
def test_origin_whose_file_is_gone(dirty: Dirty) -> None:
    dirty.space.mount()
    os.chmod(dirty.space.mnt / "f", 0o600)
    dirty.space.unmount()
    os.unlink(dirty.space.lower / "f")
    (dirty.space.lower / "f").write_bytes(b"another")
    shown = dirty.view()
    _repair(dirty, "upper/f", "tells of a file that is no more")
    assert overlay_xattr(dirty.upper / "f", "origin") is None
    assert compare(shown, dirty.view()) == []


def test_origin_of_a_file_that_may_be_indexed(dirty: Dirty) -> None:
    """Without its origin the kernel would not mount an index that has the file."""
    dirty.index()
    set_overlay_xattr(dirty.upper / "a", "origin", b"rubbish")
    code, lines = dirty.fsck("--repair", workdir=False)
    assert code == LEFT
    assert "may be in the index" in lines[0]
    assert overlay_xattr(dirty.upper / "a", "origin") == b"rubbish"


def test_staging_left_by_a_crash(dirty: Dirty) -> None:
    (dirty.work / "work" / "#5" / "deep").mkdir(parents=True)
    (dirty.work / "work" / "#5" / "deep" / "f").touch()
    _repair(dirty, "work/work/#5", "left by a crash")
    assert os.listdir(dirty.work / "work") == []


def test_copy_that_a_crash_kept_from_being_published(dirty: Dirty) -> None:
    """The copy is in the index before it has its name in the upper."""
    entry = dirty.index()
    set_overlay_xattr(entry, "nlink", b"L+0")
    (dirty.upper / "a").rename(dirty.work / "work" / "#1")
    _repair(dirty, "work/work/#1", "left by a crash")
    dirty.space.mount()
    assert (dirty.space.mnt / "b").read_bytes() == b"changed"
    assert os.stat(dirty.space.mnt / "a").st_nlink == 2


def test_foreign_file_in_the_work_directory(dirty: Dirty) -> None:
    """It is left alone beside the overlay's directories, and reported in one that is cleared."""
    (dirty.work / "thesis").write_bytes(b"mine")
    assert dirty.fsck("--repair")[1][0].startswith("clean")
    (dirty.work / "work").mkdir()
    (dirty.work / "work" / "thesis").write_bytes(b"mine")
    _repair(dirty, "work/work/thesis", "not made by an overlay", kept="somebody's data")
    assert (dirty.work / "thesis").read_bytes() == b"mine"
    assert (dirty.work / "work" / "thesis").read_bytes() == b"mine"


def test_mark_of_a_volatile_mount(dirty: Dirty) -> None:
    dirty.space.extra = ("volatile",)
    dirty.space.mount()
    dirty.space.unmount()
    mark = "work/work/incompat/volatile"
    _repair(dirty, mark, "was mounted with volatile", kept="remove it if the system has not")
    assert (dirty.space.base / mark).is_dir()


def test_staging_that_is_a_link(dirty: Dirty) -> None:
    """The link is never followed."""
    away = dirty.space.base / "away"
    away.mkdir()
    (away / "precious").touch()
    (dirty.work / "work").symlink_to(away)
    _repair(dirty, "work/work", "cannot be checked", kept="not looked at")
    assert (away / "precious").exists()


def test_links_in_the_upper_are_not_followed(dirty: Dirty) -> None:
    away = dirty.space.base / "away"
    away.mkdir()
    make_whiteout(away / "gone")
    (dirty.upper / "out").symlink_to(away)
    (dirty.upper / "d").symlink_to("../away")
    assert dirty.fsck("--repair")[1][0].startswith("clean")
    assert os.path.lexists(away / "gone")


def test_names_are_printed_on_one_line(dirty: Dirty) -> None:
    name = b"a\nline: \x1b[31m \xff"
    os.mknod(os.path.join(os.fsencode(dirty.upper), name), stat.S_IFCHR)
    code, lines = dirty.fsck()
    assert (code, len(lines)) == (LEFT, 2)
    assert lines[0] == "upper/a\\nline: \\x1b[31m \\xff: whiteout that hides nothing"


def test_very_deep_trees(dirty: Dirty) -> None:
    """Deeper than recursion and PATH_MAX allow, in the upper and in the lower."""
    depth = 1500
    for top in (dirty.upper, dirty.space.lower):
        fd = os.open(top, os.O_PATH)
        for _ in range(depth):
            os.mkdir("deep", dir_fd=fd)
            fd, old = os.open("deep", os.O_PATH, dir_fd=fd), fd
            os.close(old)
        if top == dirty.upper:
            os.mknod("gone", stat.S_IFCHR, dir_fd=fd)
        os.close(fd)
    try:
        _repair(dirty, "upper/deep" + "/deep" * (depth - 1) + "/gone", NOTHING)
    finally:
        for top in (dirty.upper, dirty.space.lower):
            fd = os.open(top, os.O_PATH)
            remove_tree(fd, b"deep")
            os.close(fd)


def test_unreadable_directory_does_not_end_the_check(dirty: Dirty) -> None:
    if MODE != "user":
        pytest.skip("the superuser reads everything")
    (dirty.upper / "d" / "inside").mkdir(parents=True)
    (dirty.upper / "d").chmod(0o400)
    make_whiteout(dirty.upper / "gone")
    code, lines = dirty.fsck()
    assert code == LEFT
    assert any(line.startswith("upper/gone: ") for line in lines)
    assert any(line.startswith("upper/d") and "cannot be checked" in line for line in lines)


def test_without_work_directory(dirty: Dirty) -> None:
    (dirty.work / "thesis").touch()
    code, lines = dirty.fsck(workdir=False)
    assert code == 0
    assert lines[0].startswith("clean; not checked: the work directory")


def test_options_of_the_mount(dirty: Dirty) -> None:
    """The options of the mount are accepted, with `upperdir=` in any spelling."""
    _hides_nothing(dirty)
    dirty.options.append(f"upperdir={escape(dirty.upper.parent)}/./{dirty.upper.name}")
    code, lines = dirty.fsck()
    assert (code, lines[0]) == (LEFT, "upper/gone: whiteout that hides nothing")


def _asked(dirty: Dirty) -> str:
    """The message on whether lower files were looked for."""
    return dirty.fsck()[1][-1].partition("whether the lower files of copies exist")[2]


@pytest.mark.skipif(MODE == "root", reason="the superuser may ask")
def test_lower_files_need_root(dirty: Dirty) -> None:
    assert _asked(dirty) == " (needs root, outside of a user namespace)"


@root_only
def test_lower_files_that_root_cannot_ask_for(dirty: Dirty) -> None:
    """The message says why not, and does not claim that root is needed."""
    assert _asked(dirty) == ""
    dirty.options = ["submounts"]
    assert re.fullmatch(r" \(what is mounted below l\d shows\)", _asked(dirty))
    dirty.options = []
    images = [dirty.space.base / "disk", dirty.space.base / "snapshot"]
    images[0].touch()
    os.truncate(images[0], 1 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", images[0]], check=True, timeout=60)
    shutil.copy(images[0], images[1])
    with _mounted(dirty, ["-o", "loop", images[0]], ["-o", "loop", images[1]]):
        assert re.fullmatch(r" \(another lower has the same UUID as l\d\)", _asked(dirty))
    with _mounted(dirty, ["-t", "ramfs", "ramfs"]):
        assert _asked(dirty) == " (there are no file handles in l0)"


@contextlib.contextmanager
def _mounted(dirty: Dirty, *arguments: list[str | Path]) -> Iterator[None]:
    """Mount something on the lowers, from the top one on."""
    with contextlib.ExitStack() as mounted:
        for lower, what in zip(dirty.space.lowers, arguments, strict=False):
            subprocess.run(["mount", *what, lower], check=True, timeout=30)
            mounted.callback(unmount, lower)
        yield


def test_data_only_lowers(dirty: Dirty) -> None:
    data = dirty.space.base / "data"
    data.mkdir()
    (data / "only-here").write_bytes(b"data")
    (dirty.upper / "file").touch()
    set_overlay_xattr(dirty.upper / "file", "metacopy", b"")
    set_overlay_xattr(dirty.upper / "file", "redirect", b"/only-here")
    assert dirty.fsck()[0] == LEFT
    dirty.options = [f"datadir+={data}"]
    assert dirty.fsck()[0] == 0


def test_mounted_upper_is_refused(dirty: Dirty) -> None:
    dirty.space.mount()
    (dirty.space.mnt / "new").touch()
    for workdir in (f",workdir={dirty.work}", ""):
        done = dirty.cli.run(
            "fsck", dirty.upper, "-o", f"lowerdir={dirty.space.lower}{workdir}", "--repair"
        )
        assert done.returncode == 4
        assert re.fullmatch(r"fuseoverlay: error: .*/upper: is in use by .*\n", done.stderr)
        assert done.stdout == ""


@root_only
@pytest.mark.parametrize("upper", ["up, per", "./up, per"])
def test_upper_mounted_by_the_kernel_is_refused(dirty: Dirty, upper: str) -> None:
    space = dirty.space
    space.upper = space.upper.rename(space.base / "up, per")
    given = upper if upper.startswith(".") else space.base / upper
    away = space.base / "away"
    (away / "up, per").mkdir(parents=True)
    (away / "work").mkdir()
    options = f"lowerdir=l0:l1,upperdir={escape(given)},workdir={space.work}"
    argv = ["mount", "-t", "overlay", "overlay", "-o", options, space.mnt]
    subprocess.run(argv, cwd=space.base, check=True, timeout=30)
    done = dirty.cli.run("fsck", space.upper, "-o", f"lowerdir={space.lower}")
    assert done.returncode == 4
    assert "is the upper directory of a mounted kernel overlay" in done.stderr
    # Another one of the same name.
    done = dirty.cli.run("fsck", away / "up, per", "-o", f"lowerdir={space.lower}")
    assert done.returncode == 0, done.stderr
    unmount(space.mnt)
    assert dirty.fsck()[0] == 0


def test_upper_is_kept_from_mounts_meanwhile(dirty: Dirty) -> None:
    """A check holds the locks even while it waits for its output to be read."""
    for index in range(3000):
        make_whiteout(dirty.upper / f"gone{index:050}")
    argv = [*command("fsck", dirty.upper, "-o", f"lowerdir={dirty.space.lower}")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=daemon_env()) as check:
        try:
            assert check.stdout is not None
            assert b"gone" in check.stdout.readline()
            with pytest.raises(pytest.fail.Exception, match="in use by another mount"):
                dirty.space.mount()
        finally:
            check.kill()


def test_lower_inside_the_upper_is_refused(dirty: Dirty) -> None:
    (dirty.upper / "inside").mkdir()
    done = dirty.cli.run("fsck", dirty.upper, "-o", f"lowerdir={dirty.upper}/inside", "--repair")
    assert done.returncode == 3
    assert "is inside" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["{upper}"], "no lowerdir= given"),
        (["{upper}", "-o", "lowerdir={lower},upperdir={lower}"], "is not UPPER"),
        (["{upper}", "-o", "lowerdir={lower},upperdir={upper}/none"], "is not UPPER"),
        (["-o", "lowerdir={lower}"], "UPPER"),
        (["{upper}", "{upper}", "-o", "lowerdir={lower}"], "unrecognized"),
    ],
)
def test_usage(dirty: Dirty, arguments: list[str], text: str) -> None:
    names = {"upper": dirty.upper, "lower": dirty.space.lower}
    done = dirty.cli.run("fsck", *(argument.format(**names) for argument in arguments))
    assert done.returncode == 2
    assert text in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_nofollow(dirty: Dirty) -> None:
    """What a mount with that option refuses is reported, not repaired; without it, it is fine."""
    space = dirty.space
    space.features = ("redirect_dir=on", "metacopy=on")
    mnt = space.mount()
    os.chmod(mnt / "big", 0o600)
    os.rename(mnt / "big", mnt / "moved")
    os.rename(mnt / "d", mnt / "renamed")
    space.unmount()
    assert dirty.fsck()[0] == 0
    dirty.options = ["redirect_dir=nofollow"]
    before = dirty.everything()
    code, lines = dirty.fsck("--repair")
    assert code == LEFT
    assert [line.split(":")[0] for line in lines[:-1]] == ["upper/moved", "upper/renamed"]
    assert all("redirect_dir=nofollow" in line and "not repaired" in line for line in lines[:-1])
    assert dirty.unchanged(before)


ALL = ("redirect_dir=on", "metacopy=on", "index=on")
#: Which program writes the upper, with which features, and our options.
WRITERS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "ours": ("fuse", (), ()),
    "ours, all features": ("fuse", ALL, ()),
    "ours, oci": ("fuse", (), ("whiteout=oci",)),
    "ours, xattr": ("fuse", (), ("whiteout=xattr",)),
    "ours, user attributes": ("fuse", ALL, ("userxattr",)),
}
if MODE != "user":
    WRITERS["kernel"] = ("kernel", (), ())
if MODE == "root":
    WRITERS["kernel, all features"] = ("kernel", ALL, ())
    WRITERS["kernel, export"] = ("kernel", (*ALL[:1], "index=on", "nfs_export=on"), ())
SEEDS = range(40 if os.environ.get("FUSEOVERLAY_LONG") else 2)


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("seed", SEEDS)
def test_upper_of_an_honest_mount_is_clean(writer: str, seed: int) -> None:
    """After a random walk, and a second one after a remount; layers with hard links."""
    impl, features, extra = WRITERS[writer]
    with scratch() as base:
        space = Space(base)
        layers(space)
        (space.lower / "d").write_bytes(b"linked")
        for name in ("a/d", "a/e"):
            os.link(space.lower / "d", space.lower / name)
        space.features, space.extra = features, extra
        cli = Cli(space)
        try:
            for turn in range(2):
                space.mount(impl=impl)
                for _, step in walk(1000 * turn + seed):
                    with contextlib.suppress(OSError):
                        step(space.mnt)
                space.unmount()
                lowers = ":".join(escape(path) for path in space.lowers)
                options = ",".join([f"lowerdir={lowers},workdir={space.work}", *extra])
                before = space.evidence()
                done = cli.run("fsck", space.upper, "-o", options)
                assert (done.returncode, done.stderr) == (0, ""), done.stdout
                assert re.match("clean($|;)", done.stdout)
                space.check_lowers(before)
        finally:
            space.drop()


def _sprinkle(space: Space, rng: random.Random, names: tuple[str, ...]) -> None:
    """Put faults at random places of an upper, whatever is there."""
    (space.upper / "new").mkdir()
    make_whiteout(space.upper / "new" / "gone")
    directories = [space.upper, *(p for p in space.upper.rglob("*") if p.is_dir())]
    directories = [path for path in directories if not path.is_symlink()]
    for _ in range(12):
        place = rng.choice(directories)
        name = rng.choice(names)
        value = rng.choice((b"", b"/", b"/nowhere", b"/a", b"a", b"/a/b/c", b"x", b"z", b"U-9"))
        what = rng.choice(("opaque", "redirect", "origin", "nlink", "metacopy", "whiteout"))
        with contextlib.suppress(FileExistsError):
            if rng.random() < 0.5:
                (place / name).touch(exist_ok=False)
                if rng.random() < 0.3:
                    set_overlay_xattr(place / name, what, value)
            else:
                make_whiteout(place / name)
        if rng.random() < 0.5 and place != space.upper:
            set_overlay_xattr(place, what, value)


def _shown(space: Space, impl: str) -> dict[str, object]:
    """All that can be read in the mount, and the error of what cannot be. Whiteouts that hide
    nothing, which the kernel lists, are left out."""
    mnt = space.mount(impl=impl)
    found: dict[str, object] = {}
    pending = [mnt]
    while pending:
        path = pending.pop()
        name = str(path.relative_to(mnt))
        try:
            st = path.lstat()
            about = [stat.S_IFMT(st.st_mode), st.st_mode, st.st_mtime_ns, st.st_uid]
            if stat.S_ISREG(st.st_mode):
                about += [st.st_nlink, st.st_size, path.read_bytes()]
            elif stat.S_ISDIR(st.st_mode):
                pending += sorted(path.iterdir())
            found[name] = about
        except FileNotFoundError:
            continue
        except OSError as exc:
            found[name] = exc.errno
    space.unmount()
    return found


def _leave_out_refused(*views: dict[str, object]) -> None:
    """Leave out what the kernel refuses: what it refuses depends on earlier look-ups, and whether
    it lists that on how often the layers were mounted."""
    refused = {path for view in views for path, about in view.items() if isinstance(about, int)}
    for view in views:
        for path in list(view):
            if any(path == name or path.startswith(f"{name}/") for name in refused):
                del view[path]


WH_NAMES = (".wh.a", ".wh.gone", ".wh..wh..opq")


@pytest.mark.parametrize("impl", ["fuse", "kernel"] if MODE == "root" else ["fuse"])
@pytest.mark.parametrize("seed", SEEDS)
def test_no_repair_changes_what_is_shown(seed: int, impl: str) -> None:
    """Random faults on an upper that was changed at random; a second repair repairs nothing."""
    names = ("a", "b", "c", "gone", *(WH_NAMES if impl == "fuse" else ()))
    rng = random.Random(seed)
    with scratch() as base:
        space = Space(base)
        layers(space)
        space.features = ("redirect_dir=on", "metacopy=on")
        cli = Cli(space)
        try:
            space.mount()
            for _, step in walk(seed):
                with contextlib.suppress(OSError):
                    step(space.mnt)
            space.unmount()
            _sprinkle(space, rng, names)
            options = "lowerdir=" + ":".join(escape(path) for path in space.lowers)
            options += f",workdir={space.work}"
            lowers = space.evidence()
            before = _shown(space, impl)
            done = cli.run("fsck", space.upper, "-o", options, "--repair", "--force")
            assert done.stderr == ""
            assert "; repaired" in done.stdout
            after = _shown(space, impl)
            if impl == "kernel":
                _leave_out_refused(before, after)
            assert after == before, done.stdout
            again = cli.run("fsck", space.upper, "-o", options, "--repair", "--force")
            assert "; repaired" not in again.stdout
            assert again.returncode == (LEFT if "not repaired" in again.stdout else 0)
            space.check_lowers(lowers)
        finally:
            space.drop()
