"""mount(8) and /etc/fstab: `mount -t fuseoverlay`, by our helper, and `-t fuse.fuseoverlay`, by
libfuse's, each in a mount namespace with an /etc/fstab and a /usr/sbin of its own."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuseoverlay.oci.layout import LayoutWriter, Node, layer_tar
from tests.helpers.mounts import BARE_ENV, MODE, PROJECT, fails, root_only
from tests.mount.conftest import Cli

TYPES = ["fuseoverlay", "fuse.fuseoverlay"]
NOBODY = 65534
USAGE, FAILURE = 1, 32

needs_mount = pytest.mark.skipif(MODE == "user", reason="needs mount(2)")

_SETUP = """
set -e
mount --make-rprivate /
mount -t overlay -o lowerdir={base}/sbin:/usr/sbin overlay /usr/sbin
mount -t overlay -o lowerdir={base}/etc:/etc overlay /etc
echo ready
exec sleep 100
"""


def install(directory: Path) -> None:
    """Both commands, as an installation makes them, for this checkout."""
    scripts = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["scripts"]
    for name, entry in scripts.items():
        module, function = entry.split(":")
        path = directory / name
        path.write_text(
            f"#!{sys.executable}\nimport os, sys\nsys.path.insert(0, {str(PROJECT)!r})\n"
            f"sys.dont_write_bytecode = True\nos.environ.update({BARE_ENV!r})\n"
            f"from {module} import {function}\n{function}()\n"
        )
        path.chmod(0o755)


class Host:
    """A machine as it looks after an installation: it sees all of ours, and we its mounts."""

    def __init__(self, cli: Cli) -> None:
        self.space = cli.space
        self.base = cli.space.base
        for name in ("sbin", "etc"):
            (self.base / name).mkdir()
        install(self.base / "sbin")
        self.process: subprocess.Popen[str] | None = None

    def start(self, *fstab: str) -> None:
        """From now on it runs, with these lines in /etc/fstab."""
        (self.base / "etc" / "fstab").write_text("".join(f"{line}\n" for line in fstab))
        self.process = subprocess.Popen(
            ["unshare", "-m", "sh", "-c", _SETUP.format(base=shlex.quote(str(self.base)))],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        select.select([self.process.stdout], [], [], 20)
        assert self.process.stdout.readline() == "ready\n"

    def run(self, *argv: object, user: int | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command there, its output read to the end."""
        assert self.process is not None
        prefix = ["nsenter", "-m", "-t", str(self.process.pid)]
        if user is not None:
            prefix += ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
        return subprocess.run(
            [*prefix, *map(str, argv)],
            cwd="/",
            env={"PATH": "/usr/sbin:/usr/bin", "XDG_DATA_HOME": str(self.base / "data")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def done(self, *argv: object, user: int | None = None) -> None:
        """The same for a command that must succeed, without a word on stderr."""
        result = self.run(*argv, user=user)
        assert (result.returncode, result.stderr) == (0, ""), argv

    @property
    def mnt(self) -> Path:
        """The mount point there, as a path here."""
        assert self.process is not None
        return Path(f"/proc/{self.process.pid}/root{self.space.mnt}")

    def mounts(self) -> list[tuple[str, str, str]]:
        """(type, source, options) of what is mounted at the mount point."""
        assert self.process is not None
        found = []
        for line in Path(f"/proc/{self.process.pid}/mountinfo").read_text().splitlines():
            left, _, right = line.partition(" - ")
            if left.split()[4] == str(self.space.mnt).replace(" ", "\\040"):
                kind, source, _ = right.split(" ")
                found.append((kind, source.replace("\\040", " "), left.split()[5]))
        return found

    def stop(self) -> None:
        """End it, and with it its mounts."""
        if self.process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.run("umount", "-l", self.space.mnt)
            self.process.kill()
            self.process.wait(20)


@pytest.fixture
def host(cli: Cli) -> Iterator[Host]:
    """A host that has still to be started."""
    host = Host(cli)
    try:
        yield host
    finally:
        host.stop()


def check_and_unmount(cli: Cli, host: Host, *, user: int | None = None) -> None:
    """It is a writable overlay, once; umount(8) ends it."""
    assert len(host.mounts()) == 1
    assert (host.mnt / "f").read_bytes() == b"from the lower"
    host.done("sh", "-c", f"echo changed > {shlex.quote(str(host.space.mnt))}/f", user=user)
    assert (host.space.upper / "f").read_bytes() == b"changed\n"
    host.done("umount", host.space.mnt, user=user)
    assert host.mounts() == []
    cli.wait_until_gone()


@needs_mount
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("source", ["overlay", "none"])
def test_mount(cli: Cli, host: Host, kind: str, source: str) -> None:
    host.start()
    host.done("mount", "-t", kind, source, cli.space.mnt, "-o", cli.space.options())
    ((shown, from_, options),) = host.mounts()
    assert (shown, from_) == ("fuse.fuseoverlay", source)
    assert options.split(",")[0] == "rw"
    check_and_unmount(cli, host)


@needs_mount
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("flags", ["-r", "-o ro", "-n -r", "-v -r", "-s -r"])
def test_flags_of_mount(cli: Cli, host: Host, kind: str, flags: str) -> None:
    host.start()
    options = cli.space.options()
    done = host.run("mount", "-t", kind, *flags.split(), "-o", options, "none", cli.space.mnt)
    assert (done.returncode, done.stderr) == (0, "")
    assert host.mounts()[0][2].split(",")[0] == "ro"
    with fails(errno.EROFS):
        (host.mnt / "new").touch()
    host.done("umount", host.space.mnt)


@needs_mount
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", ["plain", "with space", "a,b", "a:b"])
def test_fstab(cli: Cli, host: Host, kind: str, name: str) -> None:
    """By mount point, with `-a` as at boot, and again, which does nothing."""
    space = cli.space
    for part in ("lower", "upper", "work", "mnt"):
        path = space.base / f"{part} {name}" if " " in name else space.base / f"{part}-{name}"
        old = space.lower if part == "lower" else getattr(space, part)
        old.rename(path)
        if part == "lower":
            space.lowers[0] = path
        else:
            setattr(space, part, path)
    extra = "nofail,_netdev,x-systemd.requires=network.target,X-mount.mkdir,noatime"
    fields = ["overlay", str(space.mnt), kind, f"{space.options()},{extra}", "0", "0"]
    host.start(
        "# a comment", " ".join(re.sub(r"\\", r"\\134", f).replace(" ", r"\040") for f in fields)
    )
    host.done("mount", space.mnt)
    check_and_unmount(cli, host)
    (space.upper / "f").unlink()
    host.done("mount", "-a")
    host.done("mount", "-a")
    check_and_unmount(cli, host)


@needs_mount
@pytest.mark.parametrize("kind", TYPES)
def test_fstab_elsewhere(cli: Cli, host: Host, kind: str) -> None:
    host.start()
    fstab = cli.space.base / "own fstab"
    fstab.write_text(f"none {cli.space.mnt} {kind} {cli.space.options()},noauto 0 0\n")
    host.done("mount", "-T", fstab, "-a")
    assert host.mounts() == [], "noauto"
    host.done("mount", "-T", fstab, cli.space.mnt)
    check_and_unmount(cli, host)


@root_only
@pytest.mark.parametrize("kind", TYPES)
def test_fstab_for_users(cli: Cli, host: Host, kind: str) -> None:
    """A plain user mounts what /etc/fstab lets him, with his own rights, and unmounts it."""
    space = cli.space
    for path in (space.upper, space.work, space.mnt):
        os.chown(path, NOBODY, NOBODY)
    os.chown(space.lower / "f", NOBODY, NOBODY)
    host.start(f"none {space.mnt} {kind} {space.options()},user,noauto 0 0")
    host.done("mount", space.mnt, user=NOBODY)
    (pid,) = cli.daemons()
    assert os.stat(f"/proc/{pid}").st_uid == NOBODY
    assert {"nosuid", "nodev"} <= set(host.mounts()[0][2].split(","))
    content = host.run("cat", space.mnt / "f", user=NOBODY)
    assert (content.stdout, content.stderr) == ("from the lower", "")
    host.done("umount", space.mnt, user=NOBODY)
    cli.wait_until_gone()


@needs_mount
@pytest.mark.parametrize("kind", TYPES)
def test_image(cli: Cli, host: Host, kind: str) -> None:
    """The source may be an image; the changes go where upperdir= says."""
    space = cli.space
    writer = LayoutWriter(space.base / "image")
    layer = writer.add_layer(layer_tar([Node("f", data=b"from the lower")]))
    writer.add_image([layer], ref="latest")
    source = f"{space.base}/image:latest"
    options = f"upperdir={space.upper},workdir={space.work}"
    host.start(f"{source} {space.mnt} {kind} {options} 0 0")
    host.done("mount", "-a")
    assert host.mounts()[0][:2] == ("fuse.fuseoverlay", source)
    host.done("mount", "-a")
    check_and_unmount(cli, host)


@needs_mount
@pytest.mark.parametrize("kind", TYPES)
def test_remount(cli: Cli, host: Host, kind: str) -> None:
    """Refused with a reason; the mount stays as it is."""
    host.start(f"none {cli.space.mnt} {kind} {cli.space.options()} 0 0")
    host.done("mount", cli.space.mnt)
    done = host.run("mount", "-o", "remount,ro", cli.space.mnt)
    assert done.returncode != 0
    assert re.search(r"^fuseoverlay: error: remount is not possible; unmount", done.stderr, re.M)
    check_and_unmount(cli, host)


@needs_mount
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("wrong", ["lowerdir=/nowhere", "{},timeout=soon"])
def test_failure(cli: Cli, host: Host, kind: str, wrong: str) -> None:
    """Our one line, and nothing mounted; by our helper with the exit codes of mount(8)."""
    host.start()
    options = wrong.format(cli.space.options())
    done = host.run("mount", "-t", kind, "none", cli.space.mnt, "-o", options)
    if kind == "fuseoverlay":
        assert done.returncode == (FAILURE if "nowhere" in wrong else USAGE)
    assert done.returncode != 0
    assert re.search(r"^fuseoverlay: error: [^\n]*(/nowhere|timeout=soon)", done.stderr, re.M)
    assert host.mounts() == []


@needs_mount
def test_fake(cli: Cli, host: Host) -> None:
    """mount -f: the options are looked at, and nothing is mounted."""
    host.start()
    options = cli.space.options()
    host.done("mount", "-f", "-t", "fuseoverlay", "none", cli.space.mnt, "-o", options)
    done = host.run("mount.fuseoverlay", "none", cli.space.mnt, "-f", "-o", "metacopy=1")
    assert done.returncode == USAGE
    assert "metacopy=1" in done.stderr
    assert host.mounts() == []
    assert cli.daemons() == []


CALLS = [
    ["overlay", "MNT", "-o", "OPTS"],
    ["overlay", "MNT", "-s", "-n", "-v", "-w", "-o", "OPTS", "-t", "fuse.fuseoverlay"],
    ["-o", "rw,OPTS", "overlay", "MNT", "-sn"],
]


@pytest.mark.parametrize("call", CALLS)
def test_helper(cli: Cli, call: list[str]) -> None:
    """As mount(8) calls it, in each mode."""
    space = cli.space
    (space.base / "bin").mkdir()
    install(space.base / "bin")
    values = {"MNT": str(space.mnt), "OPTS": space.options(), "rw,OPTS": f"rw,{space.options()}"}
    argv = [str(space.base / "bin" / "mount.fuseoverlay"), *(values.get(arg, arg) for arg in call)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (space.mnt / "f").read_bytes() == b"from the lower"
    assert cli.run("unmount", space.mnt).returncode == 0
    cli.wait_until_gone()


@pytest.mark.parametrize("call", [[], ["overlay"], ["a", "b", "c"], ["a", "MNT", "-N", "/x"]])
def test_helper_called_wrongly(cli: Cli, call: list[str]) -> None:
    (cli.space.base / "bin").mkdir()
    install(cli.space.base / "bin")
    argv = [str(cli.space.base / "bin" / "mount.fuseoverlay"), *call]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (USAGE, "")
    assert re.fullmatch(r"fuseoverlay: error: [^\n]+\n", done.stderr), done.stderr
