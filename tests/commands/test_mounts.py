"""`mounts`, and what `inspect` says of an image that is mounted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.commands.conftest import Cli
from tests.helpers.mounts import (
    BARE_ENV,
    command,
    detach,
    fuse_only,
    mounts_at,
    root_only,
    scratch,
    wait_for,
)

pytestmark = fuse_only

DEBIAN = "docker.io/library/debian:12"


@pytest.fixture
def other(cli: Cli) -> Iterator[Path]:
    """One more mount point."""
    path = cli.base / "other"
    path.mkdir()
    try:
        yield path
    finally:
        detach(path)


def _listed(cli: Cli) -> dict[str, dict[str, Any]]:
    """The mounts of this test, by mount point."""
    rows = map(json.loads, cli.said("mounts", "--format", "json").splitlines())
    return {row["MountPoint"]: row for row in rows if row["MountPoint"].startswith(str(cli.base))}


def kill(daemon: int) -> None:
    """Kill it, and wait until it has nothing open any more."""

    def is_gone() -> bool:
        try:
            return not os.listdir(f"/proc/{daemon}/fd")
        except OSError:
            return True

    os.kill(daemon, signal.SIGKILL)
    wait_for(is_gone, 20, "the end of the daemon")


def _row(cli: Cli) -> dict[str, Any]:
    """The only one."""
    (row,) = _listed(cli).values()
    assert row["MountPoint"] == str(cli.mnt)
    return row


def test_directories(cli: Cli) -> None:
    """Named by paths from where the user was."""
    for name in ("top", "bottom", "upper", "work"):
        (cli.base / name).mkdir()
    cli.said("mount", "-o", "lowerdir=top:bottom,upperdir=upper,workdir=work", "mnt")
    row = _row(cli)
    paths = {name: str(cli.base / name) for name in ("top", "bottom", "upper", "work")}
    assert row["Image"] == f"{paths['top']} and 1 more" and row["ImageID"] == ""
    assert row["LowerDir"] == f"{paths['top']}:{paths['bottom']}"
    assert row["Changes"] == row["UpperDir"] == paths["upper"]
    assert row["WorkDir"] == paths["work"]
    opened = map(os.readlink, Path(f"/proc/{row['PID']}/fd").iterdir())
    assert "/dev/fuse" in opened
    cli.said("unmount", cli.mnt)
    assert _listed(cli) == {}
    cli.said("mount", "-o", "lowerdir=top", "mnt")
    row = _row(cli)
    assert (row["Image"], row["Changes"], row["UpperDir"]) == (paths["top"], "none", "")


def test_images(cli: Cli, layout: Path, other: Path) -> None:
    cli.add(layout, "one", DEBIAN)
    id_ = cli.said("inspect", "-f", "{{.Id}}", "debian:12").strip()
    cli.said("mount", "debian:12", "mnt", "--upper", "changes")
    cli.said("mount", "layout:two", other)
    rows = _listed(cli)
    row = rows[str(cli.mnt)]
    assert (row["Image"], row["ImageID"]) == ("debian:12", id_)
    assert row["Changes"] == str(cli.base / "changes/diff")
    row = rows[str(other)]
    assert (row["Image"], row["Changes"]) == (f"{layout}:two", "until it is unmounted")
    table = cli.said("mounts").splitlines()
    assert table[0].split() == ["MOUNT", "POINT", "IMAGE", "CHANGES", "PID"]
    (line,) = [line for line in table if line.startswith(f"{cli.mnt} ")]
    assert line.split()[1:3] == ["debian:12", str(cli.base / "changes/diff")]
    assert {str(cli.mnt), str(other)} <= {*cli.said("mounts", "-q").splitlines()}
    assert "debian:12\n" in cli.said("mounts", "--format", "{{.Image}}")


@pytest.mark.parametrize(
    ("words", "image"),
    [
        (("--layer", "1"), "debian:12 (as of layer 1)"),
        (("--only-layer", "2"), "debian:12 (layer 2 alone)"),
        (("--read-only",), "debian:12"),
    ],
)
def test_parts_and_what_is_read_only(
    cli: Cli, layout: Path, words: tuple[str, ...], image: str
) -> None:
    cli.add(layout, "one", DEBIAN)
    cli.said("mount", "docker://debian:12", cli.mnt, *words)
    row = _row(cli)
    changes = "none" if words == ("--read-only",) else "until it is unmounted"
    assert (row["Image"], row["Changes"]) == (image, changes)


def test_image_without_a_name(cli: Cli, layout: Path) -> None:
    cli.add(layout, "one", DEBIAN)
    cli.add(layout, "two", "two:1")
    id_ = cli.said("inspect", "-f", "{{.Id}}", "debian:12").strip()
    cli.said("tag", "two:1", "debian:12")
    cli.said("mount", id_[7:15], cli.mnt)
    assert _row(cli)["Image"] == id_[7:19]


def test_inspect(cli: Cli, layout: Path, other: Path) -> None:
    cli.add(layout, "one", DEBIAN)
    assert json.loads(cli.said("inspect", "debian:12"))[0]["GraphDriver"]["Data"] is None
    cli.said("mount", "--layer", "1", "debian:12", other)
    data = json.loads(cli.said("inspect", "debian:12"))[0]["GraphDriver"]["Data"]
    assert data is None, "this is a mount of another stack of layers"
    cli.said("mount", "debian:12", "mnt", "--upper", "changes")
    data = json.loads(cli.said("inspect", "debian:12"))[0]["GraphDriver"]["Data"]
    lowers = data.pop("LowerDir").split(":")
    assert [Path(path).is_dir() for path in lowers] == [True, True]
    changes = cli.base / "changes"
    assert data == {
        "UpperDir": str(changes / "diff"),
        "WorkDir": str(changes / "work"),
        "MergedDir": str(cli.mnt),
    }
    cli.said("unmount", cli.mnt)
    cli.said("mount", "debian:12", "mnt", "--read-only")
    data = json.loads(cli.said("inspect", "debian:12"))[0]["GraphDriver"]["Data"]
    assert {*data} == {"LowerDir", "MergedDir"} and data["MergedDir"] == str(cli.mnt)
    cli.said("unmount", cli.mnt)
    for field in ("GraphDriver.Data.MergedDir", "Config.Labels.nothing", "Config.Healthcheck"):
        assert cli.said("inspect", "-f", f"{{{{.{field}}}}}", "debian:12") == "<no value>\n"
    assert (
        cli.said("inspect", "-f", "{{.Variant}}{{.Config.ExposedPorts}}", "debian:12") == "map[]\n"
    )
    cli.refused(2, "no field Hostnam;", "inspect", "-f", "{{.Config.Hostnam}}", "debian:12")
    whole = json.loads(cli.said("inspect", "-f", "{{json .}}", "debian:12"))
    assert "ExposedPorts" not in whole["Config"] and "Variant" not in whole


def test_daemon_that_hangs(cli: Cli, layout: Path) -> None:
    """It is listed as any other, and so is everything else."""
    cli.said("mount", f"{layout}:one", cli.mnt)
    daemon = int(_row(cli)["PID"])
    os.kill(daemon, signal.SIGSTOP)
    try:
        assert _row(cli)["PID"] == str(daemon)
        assert str(cli.mnt) in cli.said("mounts", "-q").splitlines()
    finally:
        os.kill(daemon, signal.SIGCONT)


def test_daemon_that_was_killed(cli: Cli, layout: Path) -> None:
    """Its mount is there, what it was is not known, and nothing stays when it is unmounted."""
    cli.said("mount", f"{layout}:one", cli.mnt)
    daemon = int(_row(cli)["PID"])
    kill(daemon)
    wait_for(lambda: _row(cli)["PID"] == "?", 20, "the end of the daemon")
    row = _row(cli)
    said = (row["Image"], row["Changes"], row["ImageID"])
    assert said == ("? (its daemon has ended)", "?", "")
    detach(cli.mnt)
    assert _listed(cli) == {}


def test_type_of_its_own(cli: Cli) -> None:
    """Whatever lists of mounts call it."""
    (cli.base / "lower").mkdir()
    cli.said("-o", "lowerdir=lower,subtype=mine,fsname=x y", "mnt")
    assert _row(cli)["Image"] == str(cli.base / "lower")
    assert mounts_at(cli.mnt) == ["fuse.mine"]


def test_names_that_would_break_the_terminal(cli: Cli) -> None:
    mnt, lower = cli.base / "m\x1b[31m\nt", cli.base / "l\x1b\n"
    for path in (mnt, lower):
        path.mkdir()
    cli.said("mount", "-o", f"lowerdir={lower}", mnt)
    try:
        for words in ((), ("-q",), ("--format", "{{.MountPoint}} {{.Image}}")):
            said = cli.said("mounts", *words)
            assert "\x1b" not in said and "\\x1b[31m" in said, words
            (line,) = [line for line in said.splitlines() if "\\x1b[31m" in line]
            assert line.startswith(str(cli.base))
    finally:
        detach(mnt)


@root_only
def test_others_tell_nothing_of_our_mounts(cli: Cli) -> None:
    """A process of another user that says it serves our mount, and one that has a file with such a
    name."""
    (cli.base / "lower").mkdir()
    cli.said("mount", "-o", "lowerdir=lower", "mnt")
    daemon = int(_row(cli)["PID"])
    device = os.stat(cli.mnt).st_dev
    name = f"fuseoverlay.mount.{os.major(device)}:{os.minor(device)}"
    facts = json.dumps({"lowers": ["/forged"], "upper": None, "work": None, "image": None})
    script = (
        "import os, sys, time; file = sys.argv[3:] and sys.argv[3] + '/memfd:' + sys.argv[1];"
        "fd = os.open(file, os.O_CREAT | os.O_RDWR) if file else os.memfd_create(sys.argv[1]);"
        "file and os.unlink(file);"
        "os.write(fd, sys.argv[2].encode()); os.write(1, b'x'); time.sleep(60)"
    )
    argv = ["python3", "-c", script, name, facts]
    # Seen from outside, a path in another mount namespace begins at the root of its mount.
    filed = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none /mnt && exec "$@" /mnt', "sh", *argv]
    kill(daemon)
    ended = "? (its daemon has ended)"
    for words, user, told in ((argv, 65534, ended), (filed, 0, ended), (argv, 0, "/forged")):
        with subprocess.Popen(words, stdout=subprocess.PIPE, user=user) as process:
            try:
                assert process.stdout is not None and process.stdout.read(1) == b"x"
                assert _row(cli)["Image"] == told
            finally:
                process.kill()


@pytest.fixture
def for_others() -> Iterator[Path]:
    """A directory that every user may enter."""
    with scratch() as base:
        base.chmod(0o755)
        yield base


@root_only
def test_a_stranger_in_a_program_of_ours(cli: Cli, for_others: Path) -> None:
    """A set-user-ID program is root's, and has open what its caller had."""
    (cli.base / "lower").mkdir()
    cli.said("mount", "-o", "lowerdir=lower", "mnt")
    device = os.stat(cli.mnt).st_dev
    name = f"fuseoverlay.mount.{os.major(device)}:{os.minor(device)}"
    facts = json.dumps({"lowers": ["/forged"], "upper": None, "work": None, "image": None})
    program = for_others / "sleep"
    shutil.copy("/bin/sleep", program)
    program.chmod(0o4755)
    script = (
        "import os, sys; fd = os.memfd_create(sys.argv[1], 0); os.write(fd, sys.argv[2].encode());"
        "os.set_inheritable(fd, True); os.execl(sys.argv[3], 'sleep', '60')"
    )
    argv = ["python3", "-c", script, name, facts, str(program)]
    with subprocess.Popen(argv, user=65534) as process:
        try:
            owner = Path(f"/proc/{process.pid}")
            wait_for(lambda: os.readlink(owner / "exe") == str(program), 10, "the program")
            assert owner.stat().st_uid == 0
            assert _row(cli)["Image"] == str(cli.base / "lower")
        finally:
            process.kill()


@root_only
@pytest.mark.parametrize(
    "facts",
    [
        {"lowers": [], "upper": None, "work": None, "image": None},
        {"lowers": [1], "upper": 5, "work": None, "image": None},
        *(
            {"lowers": ["/x"], "upper": None, "work": None, "image": image}
            for image in (
                {"name": "a", "given": "b", "id": "bogus", "part": None, "keeps": True},
                {"name": "a", "given": [1], "id": None, "part": None, "keeps": True},
            )
        ),
    ],
)
def test_odd_facts_count_for_nothing(cli: Cli, facts: dict[str, object]) -> None:
    (cli.base / "lower").mkdir()
    cli.said("mount", "-o", "lowerdir=lower", "mnt")
    daemon = int(_row(cli)["PID"])
    device = os.stat(cli.mnt).st_dev
    fd = os.memfd_create(f"fuseoverlay.mount.{os.major(device)}:{os.minor(device)}", 0)
    os.write(fd, json.dumps(facts).encode())
    kill(daemon)
    with subprocess.Popen(["sleep", "60"], pass_fds=[fd]) as process:
        try:
            assert _row(cli)["Image"].startswith("?")
            cli.refused(5, "neither a mount point nor an image", "unmount", "deadbeef0123")
        finally:
            process.kill()
            os.close(fd)


@root_only
def test_mount_of_another_user(cli: Cli) -> None:
    (cli.base / "lower").mkdir()
    cli.said("mount", "-o", "lowerdir=lower", "mnt")
    done = subprocess.run(
        command("mounts", "--format", "{{.MountPoint}}: {{.Image}}"), env=BARE_ENV, cwd="/",
        user=65534, group=65534, capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    assert f"{cli.mnt}: ? (user 0's, whose daemon is not in sight)\n" in done.stdout


def test_words_that_are_refused(cli: Cli) -> None:
    cli.refused(2, "unrecognized arguments: x", "mounts", "x")
    cli.refused(2, "", "mounts", "--format", "{{.Nothing")
