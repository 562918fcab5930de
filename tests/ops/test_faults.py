"""If any one system call of a change fails, the change has happened or nothing has changed.

Each change is repeated, in a directory of its own, for each call that the daemon makes; that call
then fails, in the short run with one errno, in the long one with each. The caller gets that errno
and finds the tree as before, or gets success and finds the change made. The same change works
afterwards; descriptors that were open all the time lead to the right files; the tree is the same
after a remount and, where it can read the upper, for the kernel; fsck finds nothing; the lowers are
unchanged. A second pass fills the disk: from some call on, all calls that need space fail.
"""

from __future__ import annotations

import contextlib
import errno
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.helpers import warm
from tests.helpers.changes import (
    BEFORE,
    CHANGES,
    FEATURES,
    MORE,
    OVERRIDDEN,
    REMOVALS,
    Change,
    make_layers,
)
from tests.helpers.faults import MANY, Faults
from tests.helpers.mounts import (
    MODE,
    NATIVE,
    Space,
    command,
    daemon_env,
    fuse_only,
    overlay_xattr,
    scratch,
)
from tests.helpers.tree import Tree, compare, record

LONG = bool(os.environ.get("FUSEOVERLAY_LONG"))
pytestmark = [
    fuse_only,
    pytest.mark.timeout(600 if LONG else 120),
    pytest.mark.skipif(not (MODE == "root" and NATIVE) and not LONG, reason="long"),
]

ERRORS = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.EINTR)
FULL = (errno.ENOSPC, errno.EDQUOT)
CHAR, ON = ("whiteout=char",), ("redirect_dir=on", "metacopy=on")
OVERRIDE = ("xattr_permissions=2",)
#: Times of changed objects, which depend on when the test ran.
CLOCK = {"mtime_ns"}
#: Spare calls, in case a change makes some more than when they were counted.
SPARE = 2
#: Changes that hide one of several names of a lower file.
HIDDEN = {"unlink linked", "rename linked", "unlink second name", "append to what has lost a name"}
#: What fsck may find afterwards: an exchange moves a whiteout to a name where it hides nothing, and
#: that whiteout may stay.
EXPECTED = {"rename upper directory over whiteout": ("whiteout that hides nothing",)}
#: What is done afterwards with a directory in which a call failed: nothing; the change again; or
#: all names are removed while descriptors opened before stay in use. In the short run one of these
#: for each call.
FATES = ("left", "again", "removed")


@dataclass
class Trial:
    """One call that is to fail."""

    call: int
    error: int
    full: bool
    fate: str

    def __str__(self) -> str:
        """Also the name of a directory for it."""
        how = "-full" if self.full else ""
        return f"{self.call}-{errno.errorcode[self.error]}{how}-{self.fate}"


@contextlib.contextmanager
def _space(extra: tuple[str, ...], directories: list[str]) -> Iterator[Space]:
    """A space whose layers allow the changes in each of the directories."""
    with scratch() as base:
        space = Space(base)
        space.extra = extra
        bottom = space.add_lower()
        for name in directories:
            parts = [layer / name for layer in (space.lower, bottom, space.upper)]
            for part in parts:
                part.mkdir()
            make_layers(*parts)
        try:
            yield space
        finally:
            space.drop()


def _counted(change: Change, before: Change, extra: tuple[str, ...], full: bool) -> tuple:
    """How many calls the change makes, and the tree before and after it."""
    with _space(extra, ["warm", "counted"]) as space:
        faults = Faults(space.base / "faults")
        mnt = faults.mount(space)
        for name in ("warm", "counted"):
            before(mnt / name)
            was = _tree(mnt / name)
            with faults.armed(MANY, errno.EIO, full=full):
                change(mnt / name)
        after = _tree(mnt / "counted")
        space.unmount()
        return MANY - faults.left, was, after


def _tree(path: Path) -> Tree:
    """The tree without the times of directories, which failed attempts change too."""
    return {
        name: replace(entry, mtime_ns=0) if entry.kind == "dir" else entry
        for name, entry in record(str(path)).items()
    }


def _check(name: str, change: Change, extra: tuple[str, ...], *, full: bool = False) -> None:
    """`extra` are options of the mount."""
    before = BEFORE.get(name, lambda mnt: None)
    count, _, after = _counted(change, before, extra, full)
    errors = FULL if full else ERRORS
    first = zlib.crc32(name.encode())
    trials = [
        Trial(call, error, full, fate)
        for call in range(1, count + SPARE + 1)
        for error in (errors if LONG else (errors[(first + call) % len(errors)],))
        for fate in (FATES if LONG else (FATES[(first + call) % len(FATES)],))
    ]
    with _space(extra, ["warm", *map(str, trials)]) as space:
        lowers = space.evidence()
        faults = Faults(space.base / "faults")
        mnt = faults.mount(space)
        before(mnt / "warm")
        change(mnt / "warm")
        wrong = [
            f"{trial} ({faults.failed}): {line}"
            for trial in trials
            for line in _try(faults, mnt, change, before, after, trial)
        ]
        wrong += _aftermath(name, space, lowers)
        assert not wrong, "\n".join(wrong[:40] + [f"{len(wrong)} in all"] * (len(wrong) > 40))


def _try(
    faults: Faults, mnt: Path, change: Change, before: Change, after: Tree, trial: Trial
) -> Iterator[str]:
    """Make the trials; returns lines that say what is wrong."""
    base = mnt / str(trial)
    before(base)
    was = _tree(base)
    with contextlib.ExitStack() as opened:
        descriptors = []
        for path, entry in was.items():
            if entry.kind == "file":
                descriptors.append(os.open(base / os.fsdecode(path), os.O_RDWR))
                opened.callback(os.close, descriptors[-1])
        code = 0
        with faults.armed(trial.call, trial.error, full=trial.full):
            try:
                change(base)
            except OSError as exc:
                code = exc.errno or -1
        failed = faults.failed
        if code and (code != trial.error or not failed):
            yield f"answered {errno.errorcode.get(code, code)} (failed: {failed or 'nothing'})"
        difference = compare(was, _tree(base)) if code else _compare(after, _tree(base))
        yield from (f"{'not as before' if code else 'not as after'}: {line}" for line in difference)
        if trial.fate == "again" and code:
            try:
                change(base)
            except OSError as exc:
                yield f"the second try answered {errno.errorcode.get(exc.errno or 0)}"
            yield from (f"after the second try: {line}" for line in _compare(after, _tree(base)))
        if trial.fate == "removed":
            yield from _remove_files(base)
        if trial.fate != "left":
            for fd in descriptors:
                try:
                    os.pwrite(fd, b"OVERWRITTEN", 0)
                except OSError as exc:
                    yield f"writing to what was open answered {errno.errorcode.get(exc.errno or 0)}"


def _compare(expected: Tree, found: Tree) -> list[str]:
    return compare(expected, found, ignore=CLOCK)


def _remove_files(base: Path) -> Iterator[str]:
    for path, entry in _tree(base).items():
        if entry.kind != "dir":
            try:
                os.unlink(base / os.fsdecode(path))
            except OSError as exc:
                yield f"unlink {path!r} answered {errno.errorcode.get(exc.errno or 0)}"


def _aftermath(name: str, space: Space, lowers: list[Tree]) -> Iterator[str]:
    """The tree is the same after a remount and for the kernel; fsck finds nothing; the lowers are
    unchanged."""
    space.daemon.check_log()
    was = record(str(space.mnt))
    space.unmount()
    yield from (f"left in the work directory: {name}" for name in os.listdir(space.work / "work"))
    # How many names of a lower file are hidden is noted last, and may be missing afterwards.
    ignore = {"nlink", "same_as"} if name in HIDDEN else set()
    yield from (
        f"after a remount: {line}" for line in compare(was, _remounted(space), ignore=ignore)
    )
    if MODE == "root" and space.extra in ((), CHAR, ON):
        space.features = ("redirect_dir=on", "metacopy=on", "index=on")
        kernel = _remounted(space, "kernel")
        yield from (f"for the kernel: {line}" for line in compare(was, kernel, ignore=ignore))
        space.features = ()
    argv = command("fsck", space.upper, "-o", _read_only_options(space))
    done = warm.run(argv, cwd="/", env=daemon_env(), errors="replace")
    said = done.stderr + done.stdout
    *found, last = said.splitlines()
    expected = EXPECTED.get(name, ())
    # The layers hold devices from the beginning.
    if space.extra not in ((), CHAR, ON):
        expected += ("whiteouts in several dialects",)
    wrong = [line for line in found if not any(what in line for what in expected)]
    if wrong or not (last == "clean" or expected):
        yield f"fsck: {said}"
    for path, old, new in zip(space.lowers, lowers, space.evidence(), strict=True):
        yield from (f"{path.name} was touched: {line}" for line in compare(old, new))


def _remounted(space: Space, impl: str = "fuse") -> Tree:
    space.mount(impl=impl)
    tree = record(str(space.mnt))
    space.unmount()
    return tree


def _read_only_options(space: Space) -> str:
    lowers = ":".join(map(str, space.lowers))
    return f"lowerdir={lowers},workdir={space.work}"


ALL = {**CHANGES, **MORE}


@pytest.mark.parametrize("change", ALL)
def test_change(change: str) -> None:
    _check(change, ALL[change], ())


@pytest.mark.parametrize("dialect", ["char", "xattr", "oci"])
@pytest.mark.parametrize("change", REMOVALS)
def test_removal(change: str, dialect: str) -> None:
    _check(change, REMOVALS[change], (f"whiteout={dialect}",))


@pytest.mark.parametrize("change", FEATURES)
def test_features(change: str) -> None:
    _check(change, FEATURES[change], ON)


@pytest.mark.parametrize("change", OVERRIDDEN)
def test_overridden(change: str) -> None:
    _check(change, OVERRIDDEN[change], OVERRIDE)


@pytest.mark.parametrize("change", ALL)
def test_full_disk(change: str) -> None:
    _check(change, ALL[change], (), full=True)


@pytest.mark.parametrize("dialect", ["char", "xattr", "oci"])
@pytest.mark.parametrize("change", REMOVALS)
def test_removal_on_a_full_disk(change: str, dialect: str) -> None:
    _check(change, REMOVALS[change], (f"whiteout={dialect}",), full=True)


@pytest.mark.parametrize("change", FEATURES)
def test_features_on_a_full_disk(change: str) -> None:
    _check(change, FEATURES[change], ON, full=True)


@pytest.mark.parametrize("change", OVERRIDDEN)
def test_overridden_on_a_full_disk(change: str) -> None:
    _check(change, OVERRIDDEN[change], OVERRIDE, full=True)


def test_link_count_is_right_before_and_after_each_failure(space: Space) -> None:
    """The count follows from that on disk, relative to the upper's or the lower's; no name is made
    or removed if it would not follow any more."""
    for name in ("b", "c"):
        if name == "b":
            (space.lower / "a").write_bytes(b"lower")
        os.link(space.lower / "a", space.lower / name)
    faults = Faults(space.base / "faults")
    mnt = faults.mount(space)
    os.chmod(mnt / "a", 0o600)
    for call in range(1, 12):
        with faults.armed(call, errno.ENOSPC, full=True), contextlib.suppress(OSError):
            os.unlink(mnt / "b")
        if not (mnt / "b").exists():
            break
        assert _told_links(space.upper / "a", space.lower / "a") == 3, call
    assert call > 1
    assert os.stat(mnt / "a").st_nlink == 2
    for call in range(1, 12):
        with faults.armed(call, errno.EIO), contextlib.suppress(OSError):
            os.link(mnt / "a", mnt / f"new{call}")
    names = len([name for name in os.listdir(mnt) if name.startswith("new")]) + 2
    assert os.stat(mnt / "a").st_nlink == names
    space.remount()
    assert os.stat(mnt / "a").st_nlink == names
    (mnt / "a").write_bytes(b"changed")
    for name in os.listdir(mnt):
        if name != "c":
            os.unlink(mnt / name)
    space.remount()
    assert (mnt / "c").read_bytes() == b"changed"
    space.unmount()


def _told_links(upper: Path, lower: Path) -> int:
    value = overlay_xattr(upper, "nlink")
    assert value is not None
    return int(value[1:]) + os.stat(upper if value.startswith(b"U") else lower).st_nlink


def test_whiteout_that_cannot_be_taken_back(space: Space) -> None:
    """After two failures in a row a name that is not visible can still be created."""
    space.extra = ("whiteout=xattr",)
    (space.lower / "a").write_bytes(b"lower")
    faults = Faults(space.base / "faults")
    mnt = faults.mount(space)
    os.chmod(mnt / "a", 0o600)
    (mnt / "new").mkdir()
    tried = 0
    for call in range(1, 40):
        with faults.armed(call, errno.EIO, times=2):
            try:
                os.rename(mnt / "a", mnt / "new" / "a")
            except OSError:
                tried += 1
        if (mnt / "a").exists():
            assert os.listdir(mnt / "new") == []
            (mnt / "new" / "a").write_bytes(b"made")
            (mnt / "new" / "a").unlink()
        else:
            os.rename(mnt / "new" / "a", mnt / "a")
    assert tried > 5
    space.unmount()
