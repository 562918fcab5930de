"""What README says of podman, as it stands."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

from tests.clients.store import Store, mount_program
from tests.helpers.mounts import MODE, scratch
from tests.mount.test_readme import block

SECTION = "podman and Docker"
#: The machine of the store as it looks after an installation.
_INSTALL = "mount -t overlay -o lowerdir={base}/bin:/usr/local/bin overlay /usr/local/bin"


def _archive(base: Path) -> Path:
    """The tree of a small image: head(1) and its libraries."""
    program = shutil.which("head")
    assert program is not None
    told = subprocess.run(["ldd", program], capture_output=True, text=True, timeout=30, check=True)
    files = [program, *re.findall(r"(/\S+) \(", told.stdout)]
    archive = base / "app-tree.tar"
    subprocess.run(["tar", "-chf", archive, *files], capture_output=True, timeout=30, check=True)
    return archive


def test_what_readme_says_of_podman() -> None:
    with scratch() as base, Store(base, "fuseoverlay") as store:
        (base / "bin").mkdir()
        mount_program(base / "bin" / "fuseoverlay")
        store.run("sh", "-euc", _INSTALL.format(base=shlex.quote(str(base))))
        conf = base / "storage.conf"
        places = "".join(
            line for line in conf.read_text().splitlines(keepends=True)
            if line.startswith(("graphroot", "rootless_storage_path", "runroot"))
        )  # fmt: skip
        conf.write_text(block(SECTION, "toml").replace("[storage]\n", f"[storage]\n{places}"))
        store.podman("import", "--quiet", _archive(base), "localhost/app")
        (base / "mnt").mkdir()
        said = store.said("sh", "-euc", block(SECTION), timeout=200)
        assert said.split()[:3] == ["fuseoverlay", "/", "fuse.fuseoverlay"], MODE
        assert (base / "app.tar").is_file()
