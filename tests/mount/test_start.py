"""What mounting directories imports: nothing that it does not need."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.helpers.mounts import BARE_ENV, command, unmount
from tests.mount.conftest import Cli

#: Libraries for images, for people, or replaced by lighter ones.
FORBIDDEN = {
    "rich", "click", "isal", "backports", "zstandard", "pyzstd", "msgspec", "httpx", "httpx2",
    "requests", "tarfile", "zipfile", "gzip", "bz2", "lzma", "urllib.request", "http.client",
    "xml", "sqlite3", "asyncio", "multiprocessing", "concurrent.futures", "pydantic", "textual",
}  # fmt: skip
#: What the mount path may load besides the standard library and these two's needs.
LOADED = {"trio", "pyfuse3"}
LINE = re.compile(r"import time:\s+\d+ \|\s+\d+ \|\s*(\S+)$", re.M)


def _baseline() -> set[str]:
    """What the interpreter, trio, pyfuse3 and argparse load by themselves."""
    argv = [sys.executable, "-X", "importtime", "-c", "import trio, pyfuse3, argparse, runpy"]
    done = subprocess.run(argv, cwd="/", capture_output=True, text=True, timeout=60, check=True)
    return set(LINE.findall(done.stderr))


def _mount_imports(cli: Cli) -> set[str]:
    """What a mount in the background imports, its daemon included."""
    space = cli.space
    argv = command("-o", space.options(), space.mnt)
    argv[1:1] = ["-X", "importtime"]
    done = subprocess.run(
        argv,
        cwd="/",
        env=BARE_ENV,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    unmount(space.mnt)
    cli.wait_until_gone()
    return set(LINE.findall(done.stderr))


def test_mounting_directories_imports_nothing_else(cli: Cli) -> None:
    names = _mount_imports(cli)
    assert names >= LOADED | {"fuseoverlay.fuse.mount", "fuseoverlay.overlay.owners"}
    extra = names - _baseline()
    assert {name for name in extra if name.startswith("fuseoverlay.oci")} == set()
    others = {"images", "progress", "changes", "unmount", "fsck"}
    assert extra & {f"fuseoverlay.commands.{name}" for name in others} == set()
    bad = {name for name in extra for bad in FORBIDDEN if f"{name}.".startswith(f"{bad}.")}
    assert bad == set()
    foreign = {name.partition(".")[0] for name in extra} - set(sys.stdlib_module_names)
    assert foreign <= {"fuseoverlay"}, "a library that mounting directories does not need"


def test_daemon_loads_nothing_later(cli: Cli) -> None:
    """Late imports would stop the whole mount while they load; the maps tell of libraries."""
    space = cli.space
    # An interpreter of its own.
    pid = cli.mount("-o", space.options(), space.mnt, prefix=("env",))
    (space.mnt / "f").write_bytes(b"x")
    maps = Path(f"/proc/{pid}/maps").read_text()
    assert "pyfuse3" in maps
    for library in ("isal", "zstd", "msgspec", "_sqlite3", "_asyncio"):
        assert library not in maps
    unmount(space.mnt)
    cli.wait_until_gone()
