"""Images that real builders made, with each kind of waste."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands.conftest import Cli
from tests.commands.dockerd import Docker, missing
from tests.helpers.mounts import MODE, NATIVE, detach, scratch
from tests.view.test_same_as_mount import mounted

pytestmark = [
    pytest.mark.skipif(MODE != "root" or not NATIVE, reason="builders run once, as root"),
    pytest.mark.timeout(240),
]

#: What each step wastes is worked out in `WASTED`.
DOCKERFILE = """\
FROM base:1
RUN mkdir -p /lists/partial && head -c 5000 /dev/zero > /lists/index && echo a > /lists/partial/a
RUN rm -rf /lists
RUN head -c 3000 /dev/zero > /log && ln /log /log2 && head -c 700 /dev/zero > /tool
RUN chmod 755 /tool
RUN rm /log
RUN mkdir /cache && head -c 1100 /dev/zero > /cache/old && echo k > /cache/kept
RUN rm -rf /cache && mkdir /cache && echo n > /cache/new
RUN rm /log2 && mkdir /log2 && echo x > /log2/x
RUN head -c 10 /dev/zero > /tool
"""
#: Bytes by path: the directory; the file whose mode changed, and the copy of it that was replaced;
#: the file of two names once the second was gone; the directory that was made anew.
WASTED = {"/lists": 5002, "/tool": 1400, "/log2": 3000, "/cache": 1102}


def base_image() -> bytes:
    """A root file system with busybox."""
    shell = Path("/bin/busybox")
    if not shell.exists():
        pytest.skip("missing tool: busybox")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(shell, "bin/busybox")
        names = ["sh", "mkdir", "head", "echo", "rm", "ln", "chmod", "cat", "ls"]
        for name in names:
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(link)
    return buffer.getvalue()


def by_docker(base: Path, archive: Path) -> None:
    """Docker's own builder."""
    if lacking := missing():
        pytest.skip(f"missing tool: {lacking}")
    with Docker(base) as docker:
        docker.run("import", "-", "base:1", input=base_image())
        context = base / "context"
        context.mkdir()
        (context / "Dockerfile").write_text(DOCKERFILE)
        docker.run("build", "--quiet", "--network", "none", "--tag", "waste:1", context)
        docker.run("save", "--output", archive, "waste:1")


def by_buildah(base: Path, archive: Path) -> None:
    """buildah, a layer for each step."""
    tar = base / "root.tar"
    tar.write_bytes(base_image())
    (base / "Containerfile").write_text(
        DOCKERFILE.replace("FROM base:1", "FROM scratch\nADD root.tar /")
    )
    options = ["--root", base / "store", "--runroot", base / "run", "--storage-driver", "vfs"]
    env = {"PATH": os.environ["PATH"], "HOME": str(base), "TMPDIR": str(base)}
    for argv in (
        ["bud", "--quiet", "--layers", "--isolation", "chroot", "--tag", "waste:1", base],
        ["push", "--quiet", "waste:1", f"docker-archive:{archive}:waste:1"],
    ):
        line = ["buildah", *map(str, options), *map(str, argv)]
        done = subprocess.run(
            line, env=env, capture_output=True, text=True, timeout=180, check=False
        )
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module", params=[by_docker, by_buildah], ids=["docker", "buildah"])
def archive(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A saved image."""
    with scratch() as base:
        path = base / "waste.tar"
        request.param(base, path)
        yield path


def test_what_is_wasted(cli: Cli, archive: Path) -> None:
    said = json.loads(cli.said("efficiency", "--json", archive))
    # Some storage drivers list what a directory that was made anew has not any more.
    found: Counter[str] = Counter()
    for item in said["wastes"]:
        found["/" + item["path"].split("/")[1]] += item["bytes"]
    assert +found == WASTED and said["saveable"] == sum(WASTED.values())
    rows = [json.loads(line) for line in cli.said("layers", "--json", archive).splitlines()]
    assert sum(row["reclaimable"] for row in rows) == sum(WASTED.values())
    (row,) = (row for row in rows if "rm -rf /lists" in row["command"])
    assert (row["removed"], row["size"]) == (4, 0)


def test_why(cli: Cli, archive: Path) -> None:
    lines = cli.run("which", "--all", archive, "/lists/index").stdout.splitlines()
    assert len(lines) == 3 and "adds it: 5kB" in lines[1] and "deletes /lists" in lines[2]
    assert "mkdir -p /lists" in lines[1]
    assert cli.said("cat", archive, "/log2/x", "/cache/new") == "x\nn\n"
    found = cli.said("find", "--hidden", archive, "old")
    assert ("/cache/old" in found and "[made opaque" in found) or "[deleted" in found


def test_the_tree(cli: Cli, archive: Path) -> None:
    """What a mount shows, by name, type and size."""
    expected = mounted(cli, str(archive))
    rows = [json.loads(line) for line in cli.said("tree", "--json", archive).splitlines()]
    found = {os.fsencode(row["path"]).strip(b"/") or b".": row for row in rows}
    assert found.keys() == expected.keys()
    for path, row in found.items():
        seen = expected[path]
        assert (row["uid"], row["gid"]) == (seen.uid, seen.gid), path
        assert row["mtime"] == seen.mtime_ns and row.get("sha256") == seen.digest, path


def test_where_podman_keeps_it(cli: Cli, archive: Path) -> None:
    """The same in podman's store, where it lies."""
    base = cli.base / "podman"
    base.mkdir()
    name = f"containers-storage:[overlay@{base / 's'}+{base / 'r'}]localhost/waste:1"
    argv = ["skopeo", "copy", "--quiet", f"docker-archive:{archive}", name]
    env = {"PATH": os.environ["PATH"], "HOME": str(base)}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    form = "{{.Number}} {{.Reclaimable}} {{.Removed}} {{.CreatedBy}}"
    try:
        found = cli.said("layers", "--format", form, name)
    finally:
        # The driver mounts the directory on itself.
        detach(base / "s/overlay")
    assert found == cli.said("layers", "--format", form, archive)
