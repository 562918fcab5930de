"""A daemon that is killed at any point of a change leaves the old state or the new one.

Each change is repeated with the daemon killed before its first, second, third ... call that writes
to a layer or the work directory, until the change completes. (The short run takes every fifth of
these calls.) After each kill a new mount, by fuseoverlay and by the kernel, must show the tree as
before or as after the change. The lowers must be unchanged. Leftovers must be in the work
directory, and the next mount must remove them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from tests.helpers.changes import (
    BEFORE,
    CHANGES,
    FEATURES,
    OVERRIDDEN,
    REMOVALS,
    Change,
    make_layers,
)
from tests.helpers.mounts import (
    IMPL,
    MODE,
    STOP_TIMEOUT,
    Daemon,
    Space,
    detach,
    fuse_only,
    mounts_at,
    scratch,
    unmount,
)
from tests.helpers.tree import Tree, compare, record

pytestmark = [
    fuse_only,
    pytest.mark.timeout(180),
    pytest.mark.skipif(MODE != "root" and not os.environ.get("FUSEOVERLAY_LONG"), reason="long"),
]

#: Runs the command line. The N-th call that writes after SIGUSR1 kills the process.
KILLER = """
import os, signal, sys
from fuseoverlay.system import syscalls
from fuseoverlay.commands.dispatch import main

left = int(sys.argv.pop(1))
armed = False

def arm(number, frame):
    global armed
    armed = True

def deadly(function, writes=lambda *args, **kwargs: True):
    def wrapper(*args, **kwargs):
        global left
        if armed and writes(*args, **kwargs):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return wrapper

for name in ("chmod chown copy_file_range ftruncate link mkdir mknod pwrite removexattr rename"
             " rmdir setxattr symlink truncate unlink utime").split():
    setattr(os, name, deadly(getattr(os, name)))
os.open = deadly(os.open, lambda path, flags, *args, **kwargs: flags & os.O_CREAT)
syscalls.renameat2 = deadly(syscalls.renameat2)
syscalls.clone_file = deadly(syscalls.clone_file)
signal.signal(signal.SIGUSR1, arm)
sys.exit(main(sys.argv[1:]))
"""
#: More calls than any change makes.
MOST_CALLS = 60
LONG = bool(os.environ.get("FUSEOVERLAY_LONG"))
STEP = 1 if LONG else 5
CHAR, ON = ("whiteout=char",), ("redirect_dir=on", "metacopy=on")
OVERRIDE = ("xattr_permissions=2",)
#: Times of changed objects, which depend on when the test ran.
CLOCK = {"mtime_ns"}


def _states(change: str, extra: tuple[str, ...], before: Tree, after: Tree) -> list[Tree]:
    """What may be left: the state before, the one after, and what is documented otherwise."""
    states = [before, after]
    if change == "unlink linked":
        # How many names of a file that was not copied up are hidden is noted last.
        one_more = replace(after[b"alias"], nlink=2, same_as=b"alias")
        states.append({**after, b"alias": one_more})
    if change == "mkdir with override and flags":
        # Made in its place, where it gets the flags: at first it is ours and closed.
        states.append({**after, b"own/new": replace(after[b"own/new"], mode=0o700)})
    if change in ("rename over file", "rename over copied") and extra == ("whiteout=xattr",):
        # There is no one call that replaces a file and leaves such a whiteout.
        states.append({**after, b"file": before[b"file"]})
    return states


@pytest.fixture
def fresh() -> Iterator[Callable[[], Space]]:
    """Makes spaces with equal layers."""
    with contextlib.ExitStack() as spaces:

        def make() -> Space:
            space = Space(spaces.enter_context(scratch()))
            spaces.callback(space.drop)
            make_layers(space.lower, space.add_lower(), space.upper)
            return space

        yield make


def _mount_to_kill(space: Space, calls: int) -> Daemon:
    """A daemon that dies before the call that `calls` counts."""
    argv = [sys.executable, "-c", KILLER, str(calls), "-f", "-o", space.options(), str(space.mnt)]
    daemon = space.daemon = Daemon(argv, space.mnt, space.log)
    daemon.wait_until_mounted(1)
    # Requests that the kernel sends on its own are answered first, so their calls do not count.
    record(str(space.mnt))
    daemon.process.send_signal(signal.SIGUSR1)
    return daemon


def _tree(space: Space, *, impl: str = IMPL) -> Tree:
    space.mount(impl=impl)
    tree = record(str(space.mnt))
    space.unmount()
    return tree


def _check_crash(
    fresh: Callable[[], Space], name: str, change: Change, extra: tuple[str, ...]
) -> None:
    """`extra` are options of the mount."""

    def space_with_options() -> Space:
        space = fresh()
        space.extra = extra
        if name in BEFORE:
            BEFORE[name](space.mount())
            space.unmount()
        return space

    first = space_with_options()
    before = record(str(first.mount()))
    change(first.mnt)
    after = record(str(first.mnt))
    states = _states(name, extra, before, after)
    first.unmount()
    reached = 0
    start = 1 + zlib.crc32(name.encode()) % STEP
    for calls in range(start, MOST_CALLS, STEP):
        space = space_with_options()
        lowers = space.evidence()
        daemon = _mount_to_kill(space, calls)
        with ThreadPoolExecutor(1) as pool, contextlib.suppress(OSError):
            pool.submit(change, space.mnt).result(60)
        changing = daemon.process.poll() is not None or _dies(daemon)
        if not changing:
            unmount(space.mnt)
            # Emptying the work directory at the end counts, too.
            if daemon.process.wait(STOP_TIMEOUT) == 0:
                space.daemon = None
                daemon.finish()
                break
            states = [after]
        assert daemon.process.returncode == -signal.SIGKILL, daemon.text()
        reached = calls
        space.daemon = None
        detach(space.mnt)
        assert not mounts_at(space.mnt)
        left = _tree(space)
        difference = [compare(state, left, ignore=CLOCK) for state in states]
        assert [] in difference, f"killed before call {calls}:\n" + "\n".join(
            line for lines in difference for line in ["-- instead of one state:", *lines]
        )
        assert os.listdir(space.work / "work") == []
        space.check_lowers(lowers)
        if changing and MODE == "root" and extra in ((), CHAR, ON):
            # The kernel does not read OCI whiteouts, and lists xattr whiteouts of an upper.
            assert compare(left, _kernel_tree(space)) == [], f"call {calls}"
    assert reached or start > 1, "the change made no call"
    assert reached < MOST_CALLS - STEP


def _kernel_tree(space: Space) -> Tree:
    """The tree that the kernel shows, with the features that we always use, or use in these
    tests."""
    space.features = ("redirect_dir=on", "metacopy=on", "index=on")
    try:
        return _tree(space, impl="kernel")
    finally:
        space.features = ()


def _dies(daemon: Daemon) -> bool:
    """Whether the daemon is about to die, the change being its last request."""
    try:
        os.stat(daemon.mnt / "never asked before")
    except FileNotFoundError:
        return False
    except OSError:
        daemon.process.wait(30)
        return True
    return False


@pytest.mark.parametrize("change", CHANGES)
def test_change(fresh: Callable[[], Space], change: str) -> None:
    _check_crash(fresh, change, CHANGES[change], ())


@pytest.mark.parametrize("dialect", ["char", "xattr", "oci"])
@pytest.mark.parametrize("change", REMOVALS)
def test_removal(fresh: Callable[[], Space], change: str, dialect: str) -> None:
    _check_crash(fresh, change, REMOVALS[change], (f"whiteout={dialect}",))


@pytest.mark.parametrize("change", OVERRIDDEN)
def test_overridden(fresh: Callable[[], Space], change: str) -> None:
    _check_crash(fresh, change, OVERRIDDEN[change], OVERRIDE)


@pytest.mark.parametrize("change", FEATURES)
def test_features(fresh: Callable[[], Space], change: str) -> None:
    _check_crash(fresh, change, FEATURES[change], ON)
