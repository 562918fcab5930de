"""Layers around the mount point, the upper and other mounts: `lowerdir=/`, `submounts`."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.mounts import MODE, Space, detach, fails, root_only, scratch, unmount
from tests.mount.conftest import Cli
from tests.mount.test_bad_input import MOUNTPOINT, refused

needs_mount = pytest.mark.skipif(MODE == "user", reason="needs mount(2)")


@contextlib.contextmanager
def mounted(*args: object) -> Iterator[Path]:
    """mount(8) with these arguments; the last one is where."""
    where = Path(str(args[-1]))
    subprocess.run(["mount", *map(str, args)], check=True, timeout=30)
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", str(where)], check=False, timeout=30)


@contextlib.contextmanager
def below(space: Space, name: str) -> Iterator[Path]:
    """A filesystem of its own mounted at `name` in the lower, with a file in it."""
    where = space.lower / name
    where.mkdir()
    if MODE != "user":
        with mounted("-t", "tmpfs", "tmpfs", where):
            (where / "f").write_text(name)
            yield where
        return
    with scratch() as base:
        other = Space(base)
        other.mnt = where
        (other.lower / "f").write_text(name)
        try:
            yield other.mount()
            other.unmount()
        finally:
            other.drop()


@pytest.mark.parametrize("layer", ["lower", "upper"])
@pytest.mark.parametrize("where", ["", "mnt", "a/b/mnt"])
def test_mount_point_in_a_layer(cli: Cli, layer: str, where: str) -> None:
    """As in the kernel: what it covers is seen instead."""
    space = cli.space
    top: Path = getattr(space, layer)
    space.mnt = top / where
    space.mnt.mkdir(parents=True, exist_ok=True)
    (space.mnt / "covered").write_text("by the mount")
    cli.mount("-o", space.options(), space.mnt)
    assert (space.mnt / where / "covered").read_text() == "by the mount"
    assert (space.mnt / "f").read_bytes() == b"from the lower"
    (space.mnt / where / "covered").write_text("changed")
    (space.mnt / "new").write_text("new")
    assert sorted(os.listdir(space.mnt / where)) == sorted(
        {"covered", "f", "new"} if not where else {"covered"}
    )
    unmount(space.mnt)
    cli.wait_until_gone()
    assert (space.upper / "new").read_text() == "new"
    assert (space.upper / where / "covered").read_text() == "changed"
    if layer == "lower":
        assert (space.mnt / "covered").read_text() == "by the mount"


@pytest.mark.skipif(MODE != "user", reason="needs a limit of processes that counts")
@pytest.mark.parametrize("layer", ["lower", "upper"])
@pytest.mark.parametrize("where", ["", "mnt", "a/b/mnt"])
def test_mount_point_in_a_layer_that_cannot_be_detached(cli: Cli, layer: str, where: str) -> None:
    """The daemon would wait for itself."""
    space = cli.space
    top: Path = getattr(space, layer)
    space.mnt = top / where
    space.mnt.mkdir(parents=True, exist_ok=True)
    few = ("prlimit", "--nproc=1")
    done = cli.run("-o", space.options(), space.mnt, prefix=few)
    assert done.returncode == MOUNTPOINT
    assert f"{space.mnt}: mount point is inside {top}" in done.stderr


def test_started_where_children_are_not_waited_for(cli: Cli) -> None:
    """SIGCHLD may be ignored from the start."""
    space = cli.space
    ignoring = ("env", "--ignore-signal=CHLD")
    cli.mount("-o", space.options(), space.mnt, prefix=ignoring)
    assert (space.mnt / "f").read_bytes() == b"from the lower"
    unmount(space.mnt)
    cli.wait_until_gone()


@pytest.mark.parametrize("deep", [False, True])
def test_upper_and_work_inside_a_lower(cli: Cli, deep: bool) -> None:
    """They do not show in the mount."""
    space = cli.space
    base = space.lower / "a" / "b" if deep else space.lower
    base.mkdir(parents=True, exist_ok=True)
    for name in ("upper", "work", "other"):
        (base / name).mkdir()
    space.upper, space.work = base / "upper", base / "work"
    cli.mount("-o", space.options(), space.mnt)
    shown = space.mnt / base.relative_to(space.lower)
    names = ["other"] if deep else ["f", "other"]
    assert sorted(os.listdir(shown)) == names
    for name in ("upper", "work"):
        with fails(errno.ENOENT):
            os.stat(shown / name)
    (space.mnt / "f").write_bytes(b"changed")
    (shown / "upper").mkdir()
    (shown / "upper" / "new").write_bytes(b"new")
    assert sorted(os.listdir(shown)) == sorted([*names, "upper"])
    assert (space.upper / "f").read_bytes() == b"changed"
    assert (space.lower / "f").read_bytes() == b"from the lower"
    unmount(space.mnt)
    cli.wait_until_gone()
    cli.mount("-o", space.options(), space.mnt)
    assert os.listdir(shown / "upper") == ["new"]
    assert (space.mnt / "f").read_bytes() == b"changed"
    unmount(space.mnt)
    cli.wait_until_gone()


def test_everything_as_a_lower(cli: Cli) -> None:
    space = cli.space
    base = str(space.base).lstrip("/")
    (space.base / "beside").write_text("beside")
    space.lowers = [Path("/")]
    cli.mount("-o", space.options(), space.mnt)
    for path in ("/usr/bin/env", "/etc/passwd"):
        assert (space.mnt / path.lstrip("/")).read_bytes() == Path(path).read_bytes()
    assert set(os.listdir(space.mnt)) >= {"usr", "etc", "tmp"}
    own = space.mnt / base
    # Only root can leave out what is mounted below.
    same = space.base.stat().st_dev == Path("/").stat().st_dev
    assert own.exists() == (same or MODE != "root")
    if own.exists():
        assert not {"upper", "work"} & set(os.listdir(own))
        assert (own / "beside").read_text() == "beside"
        assert os.listdir(own / "mnt") == []
    (space.mnt / "new").write_text("new")
    assert os.listdir(space.upper) == ["new"]
    unmount(space.mnt)
    cli.wait_until_gone()


@needs_mount
def test_a_bind_mount_of_everything_as_a_lower(cli: Cli) -> None:
    space = cli.space
    space.lowers = [space.lower]
    with mounted("--rbind", "/usr", space.lower):
        cli.mount("-o", space.options(), space.mnt)
        assert (space.mnt / "bin/env").read_bytes() == Path("/usr/bin/env").read_bytes()
        unmount(space.mnt)
        cli.wait_until_gone()


@needs_mount
def test_what_is_mounted_below_a_lower_is_not_seen(cli: Cli) -> None:
    space = cli.space
    with below(space, "sub"):
        cli.mount("-o", space.options(), space.mnt)
        assert os.listdir(space.mnt / "sub") == []
        unmount(space.mnt)
        cli.wait_until_gone()


@needs_mount
def test_what_is_mounted_later_is_not_seen(cli: Cli) -> None:
    """Also where mounts are passed on to all copies, as systemd has them."""
    space = cli.space
    with mounted("--bind", space.lower, space.lower):
        subprocess.run(["mount", "--make-shared", str(space.lower)], check=True, timeout=30)
        (space.lower / "later").mkdir()
        (space.lower / "d").mkdir()
        for options in (space.options(), space.options() + ",submounts"):
            cli.mount("-o", options, space.mnt)
            with mounted("-t", "tmpfs", "tmpfs", space.lower / "later"):
                (space.lower / "later" / "f").write_text("later")
                assert os.listdir(space.mnt / "later") == []
            unmount(space.mnt)
            cli.wait_until_gone()


def test_submounts(cli: Cli) -> None:
    """What is mounted below is part of the lower, and never written."""
    space = cli.space
    with below(space, "one") as one, below(space, "two") as two:
        if MODE != "user":
            for where in (one, two):
                os.link(where / "f", where / "g")
        cli.mount("-o", space.options() + ",submounts", space.mnt)
        assert sorted(os.listdir(space.mnt)) == ["f", "one", "two"]
        found = [space.mnt / name / "f" for name in ("one", "two")]
        assert [path.read_text() for path in found] == ["one", "two"]
        everything = [space.mnt, space.mnt / "f", *found, *(path.parent for path in found)]
        assert len({path.stat().st_ino for path in everything}) == len(everything)
        found[0].write_text("changed")
        assert found[0].read_text() == "changed"
        found[1].unlink()
        names = [] if MODE == "user" else ["g"]
        assert os.listdir(found[1].parent) == names
        assert [path.read_text() for path in (one / "f", two / "f")] == ["one", "two"]
        unmount(space.mnt)
        cli.wait_until_gone()
        cli.mount("-o", space.options() + ",submounts", space.mnt)
        assert found[0].read_text() == "changed"
        assert os.listdir(found[1].parent) == names
        unmount(space.mnt)
        cli.wait_until_gone()


@needs_mount
def test_submounts_stay(cli: Cli) -> None:
    """Whoever unmounts one is not hindered, and nothing goes from the mount."""
    space = cli.space
    with below(space, "sub") as sub:
        cli.mount("-o", space.options() + ",submounts", space.mnt)
        subprocess.run(["umount", str(sub)], check=True, timeout=30)
        assert (space.mnt / "sub" / "f").read_text() == "sub"
        (space.mnt / "sub" / "f").write_text("changed")
        assert (space.upper / "sub" / "f").read_text() == "changed"
        unmount(space.mnt)
        cli.wait_until_gone()


@needs_mount
@pytest.mark.parametrize("kind", ["submount", "no attributes"])
@pytest.mark.parametrize("first", ["f", "g"])
@pytest.mark.parametrize("written", ["f", "g"])
def test_links_that_cannot_be_kept_together_lose_no_write(
    cli: Cli, kind: str, first: str, written: str
) -> None:
    """What was written by a name is found by it in the next mount."""
    space = cli.space
    with contextlib.ExitStack() as undo:
        options = ""
        where = space.lower / "d"
        if kind == "submount":
            where = undo.enter_context(below(space, "d"))
            options = ",submounts"
        else:
            where.mkdir()
            (where / "f").write_text("d")
            bare = space.base / "bare"
            bare.mkdir()
            undo.enter_context(mounted("-t", "ramfs", "ramfs", bare))
            space.upper, space.work = bare / "upper", bare / "work"
            space.upper.mkdir()
            space.work.mkdir()
        os.link(where / "f", where / "g")
        cli.mount("-o", space.options() + options, space.mnt)
        assert (space.mnt / "d" / first).read_text() == "d"
        (space.mnt / "d" / written).write_text("written")
        expected = {name: "written" if name == written else "d" for name in ("f", "g")}
        for _ in range(2):
            found = {name: (space.mnt / "d" / name).read_text() for name in ("f", "g")}
            assert found == expected
            unmount(space.mnt)
            cli.wait_until_gone()
            cli.mount("-o", space.options() + options, space.mnt)
        unmount(space.mnt)
        cli.wait_until_gone()


@needs_mount
def test_one_file_bound_to_two_places(cli: Cli) -> None:
    """They are two files once one of them is changed."""
    space = cli.space
    (space.lower / "bound").write_bytes(b"covered")
    with mounted("--bind", space.lower / "f", space.lower / "bound"):
        cli.mount("-o", space.options() + ",submounts", space.mnt)
        names = [space.mnt / "f", space.mnt / "bound"]
        assert [path.read_bytes() for path in names] == [b"from the lower"] * 2
        assert names[0].stat().st_ino != names[1].stat().st_ino
        names[0].write_bytes(b"changed")
        assert [path.read_bytes() for path in names] == [b"changed", b"from the lower"]
        names[1].write_bytes(b"too")
        assert [path.read_bytes() for path in names] == [b"changed", b"too"]
        unmount(space.mnt)
        cli.wait_until_gone()
    assert (space.upper / "f").read_bytes() == b"changed"
    assert (space.upper / "bound").read_bytes() == b"too"


@needs_mount
def test_lower_on_another_filesystem_inside_a_lower(cli: Cli) -> None:
    """The kernel takes it: the two do not overlap."""
    space = cli.space
    with below(space, "sub") as sub:
        space.lowers.insert(0, sub)
        cli.mount("-o", space.options(), space.mnt)
        assert (space.mnt / "f").read_text() == "sub"
        assert os.listdir(space.mnt / "sub") == []
        unmount(space.mnt)
        cli.wait_until_gone()


@root_only
def test_two_layers_with_one_uuid(cli: Cli) -> None:
    """A disk and its copy: handles of files on one lead to files of the other."""
    space = cli.space
    image = space.base / "image"
    with image.open("wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True, timeout=60)
    where = space.base / "one"
    where.mkdir()
    with mounted("-o", "loop", image, where):
        (where / "f").write_text("one")
        os.link(where / "f", where / "g")
    copy = space.base / "copy"
    copy.write_bytes(image.read_bytes())
    other = space.base / "two"
    other.mkdir()
    with mounted("-o", "loop", image, where), mounted("-o", "loop", copy, other):
        (other / "f").write_text("two")
        (other / "f").rename(other / "x")
        (other / "g").rename(other / "y")
        space.lowers = [where, other]
        cli.mount("-o", space.options(), space.mnt)
        try:
            (space.mnt / "f").write_text("changed")
            assert (space.mnt / "x").read_text() == "two"
            assert (space.mnt / "y").read_text() == "two"
            unmount(space.mnt)
            cli.wait_until_gone()
        finally:
            detach(space.mnt)


def test_lower_inside_a_lower(cli: Cli) -> None:
    inside = cli.space.lower / "inside"
    inside.mkdir()
    cli.space.lowers.append(inside)
    refused(cli, 3, "-o", cli.space.options(), cli.space.mnt, word=str(inside))


@root_only
@pytest.mark.parametrize("given", ["", ",suid", ",dev", ",suid,dev"])
def test_submounts_give_nobody_rights(cli: Cli, given: str) -> None:
    """A user may have mounted what is below, and claim anything in there."""
    cli.mount("-o", cli.space.options() + ",submounts" + given, cli.space.mnt)
    flags = os.statvfs(cli.space.mnt).f_flag
    assert bool(flags & os.ST_NOSUID) == ("suid" not in given)
    assert bool(flags & os.ST_NODEV) == ("dev" not in given)
    unmount(cli.space.mnt)
    cli.wait_until_gone()


@needs_mount
@pytest.mark.parametrize("options", ["", ",submounts"])
def test_upper_inside_a_lower_by_a_bind_mount(cli: Cli, options: str) -> None:
    """As in the kernel nobody gets into what is written there."""
    space = cli.space
    store, bound = space.lower / "store", space.base / "bound"
    for path in (store / "upper", store / "work", bound):
        path.mkdir(parents=True)
    space.upper, space.work = store / "upper", store / "work"
    with mounted("--bind", space.lower, bound):
        space.lowers = [bound]
        cli.mount("-o", space.options() + options, space.mnt)
        (space.mnt / "new").write_text("new")
        for path in ("upper", "work", "upper/new"):
            with fails(errno.ELOOP):
                os.stat(space.mnt / "store" / path)
        unmount(space.mnt)
        cli.wait_until_gone()


@needs_mount
def test_lower_inside_the_upper_by_a_bind_mount(cli: Cli) -> None:
    """Nothing is written there."""
    space = cli.space
    inside, bound = space.upper / "inside", space.base / "bound"
    inside.mkdir()
    bound.mkdir()
    (inside / "f").write_text("from the lower")
    with mounted("--bind", inside, bound):
        space.lowers = [bound]
        cli.mount("-o", space.options(), space.mnt)
        for call in (os.listdir, lambda path: (path / "f").write_text("x")):
            with fails(errno.ELOOP):
                call(space.mnt / "inside")
        assert (space.mnt / "f").read_text() == "from the lower"
        unmount(space.mnt)
        cli.wait_until_gone()
    assert (inside / "f").read_text() == "from the lower"


@root_only
@pytest.mark.parametrize("layer", ["lower", "upper"])
def test_others_use_a_layer_without_acls(cli: Cli, layer: str) -> None:
    """The kernel asks for an ACL when somebody is no owner, and takes a refusal for the answer."""
    space = cli.space
    bare = space.base / "bare"
    bare.mkdir()
    space.base.chmod(0o755)
    with mounted("-t", "ramfs", "ramfs", bare):
        for name in ("lower", "upper", "work"):
            (bare / name).mkdir()
        if layer == "lower":
            space.lowers = [bare / "lower"]
        else:
            space.upper, space.work = bare / "upper", bare / "work"
        (space.lower / "d").mkdir()
        (space.lower / "d" / "f").write_text("readable")
        cli.mount("-o", space.options(), space.mnt)
        if layer == "upper":
            (space.mnt / "d" / "f").write_text("readable")
        argv = ["setpriv", "--reuid=4001", "--regid=4001", "--clear-groups", "sh", "-c"]
        script = f"ls {space.mnt}/d; cat {space.mnt}/d/f"
        done = subprocess.run([*argv, script], capture_output=True, text=True, timeout=30, cwd="/")
        assert (done.stdout, done.stderr) == ("f\nreadable", "")
        with fails(errno.ENODATA):
            os.getxattr(space.mnt / "d" / "f", "system.posix_acl_access")
        unmount(space.mnt)
        cli.wait_until_gone()
