"""`import`: the archive becomes a layer, as it came or compressed."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
import subprocess
from pathlib import Path

import pytest

from fuseoverlay.oci.layout import Node, directory, layer_tar
from fuseoverlay.oci.streams import zstd_module
from tests.commands.conftest import Cli
from tests.helpers.mounts import command, daemon_env

PLAIN = layer_tar([directory("etc"), Node("etc/name", data=b"content " * 500)])
COMPRESSED = {
    "plain": PLAIN,
    "gzip": gzip.compress(PLAIN),
    "gzip members": gzip.compress(PLAIN[:700]) + gzip.compress(PLAIN[700:]),
    "zstd": zstd_module().compress(PLAIN),
    "xz": lzma.compress(PLAIN),
    "bzip2": bz2.compress(PLAIN),
}


def layer(cli: Cli, id_: str) -> tuple[str, bytes]:
    """Media type and bytes of the only layer of an image."""
    (data,) = json.loads(cli.said("inspect", id_))
    assert data["RootFS"]["Layers"] == [f"sha256:{hashlib.sha256(PLAIN).hexdigest()}"]
    blobs = cli.root / "blobs/sha256"
    manifest = json.loads((blobs / data["Descriptor"]["digest"][7:]).read_bytes())
    (described,) = manifest["layers"]
    content = (blobs / described["digest"][7:]).read_bytes()
    assert len(content) == described["size"]
    assert hashlib.sha256(content).hexdigest() == described["digest"][7:]
    return described["mediaType"].rpartition(".")[2], content


@pytest.mark.parametrize("how", COMPRESSED)
@pytest.mark.parametrize("piped", [False, True], ids=["file", "pipe"])
def test_import(cli: Cli, how: str, piped: bool) -> None:
    """What layers may be compressed by stays; all else is compressed by gzip."""
    (cli.base / "root.tar").write_bytes(COMPRESSED[how])
    with (cli.base / "root.tar").open("rb") as file:
        cat = subprocess.Popen(["cat"], stdin=file, stdout=subprocess.PIPE)
        done = subprocess.run(
            command("import", "-m", "how", "-" if piped else "root.tar", "mine:1"),
            env=daemon_env(FUSEOVERLAY_ROOT=str(cli.root)),
            stdin=cat.stdout, capture_output=True, text=True, timeout=60, check=False,
            cwd=cli.base,
        )  # fmt: skip
        cat.communicate()
    assert done.returncode == 0, done.stderr
    id_ = done.stdout.strip()
    assert cli.said("images", "-q", "--no-trunc", "mine:1").strip() == id_
    suffix, content = layer(cli, id_)
    if how in ("gzip", "gzip members", "zstd"):
        assert (suffix, content) == (f"tar+{how.split(maxsplit=1)[0]}", COMPRESSED[how])
    else:
        assert suffix == "tar+gzip" and gzip.decompress(content) == PLAIN
    (data,) = json.loads(cli.said("inspect", id_))
    lower = Path(data["GraphDriver"]["Data"]["LowerDir"])
    assert (lower / "etc/name").read_bytes() == b"content " * 500
    assert list((cli.root / "tmp").iterdir()) == []


def test_names(cli: Cli) -> None:
    (cli.base / "root.tar").write_bytes(PLAIN)
    first = cli.said("import", "root.tar").strip()
    assert "<none>" in cli.said("images")
    second = cli.said("import", "--platform", "linux/arm/v6", "root.tar", "own").strip()
    form = "{{.Os}}/{{.Architecture}}/{{.Variant}} {{.RepoTags}}"
    assert cli.said("inspect", "-f", form, second) == "linux/arm/v6 [own:latest]\n"
    assert first != second
    words = ("-c", "STOPSIGNAL SIGKILL", "root.tar", "own:latest")
    third = cli.said("image", "import", *words).strip()
    (data,) = json.loads(cli.said("inspect", "own"))
    assert data["Id"] == third and data["Config"]["StopSignal"] == "SIGKILL"
    assert len(cli.said("images", "-q").split()) == 3
    # One layer, whoever needs it.
    assert len(list((cli.root / "blobs/sha256").iterdir())) == 7


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "there is nothing in it"),
        (b"no archive at all" * 100, "error: root.tar: not a tar archive; give a tar archive"),
        (gzip.compress(PLAIN)[:-20], "cut short"),
        (gzip.compress(PLAIN)[:-8] + bytes(8), "damaged"),
        (PLAIN[:2000], "root.tar"),
    ],
    ids=["empty", "none", "cut", "damaged", "tar cut"],
)
def test_bad_archives(cli: Cli, data: bytes, word: str) -> None:
    """Nothing is left of them."""
    cli.said("images")
    (cli.base / "root.tar").write_bytes(data)
    cli.refused(7, word, "import", "root.tar", "mine:1")
    assert list((cli.root / "blobs/sha256").iterdir()) == []
    assert list((cli.root / "tmp").iterdir()) == []
    assert cli.said("images", "-q") == ""


def test_refusals(cli: Cli) -> None:
    (cli.base / "root.tar").write_bytes(PLAIN)
    cli.refused(7, "No such file", "import", "nothing.tar")
    cli.refused(7, "", "import", "root.tar", "No Name")
    cli.refused(2, "digest", "import", "root.tar", f"x@sha256:{'0' * 64}")
    cli.refused(2, "not an instruction that can be given here", "import", "-c", "RUN x", "root.tar")
    cli.refused(7, "Is a directory", "import", ".")
    url = "http://127.0.0.1:1/root.tar"
    cli.refused(2, f"{url} is a URL; write curl -fL {url} | fuseoverlay import -", "import", url)


def test_a_disk_that_is_full(cli: Cli) -> None:
    cli.said("images")
    (cli.base / "root.tar").write_bytes(COMPRESSED["gzip"])
    done = subprocess.run(
        ["prlimit", "--fsize=100", "--", *command("import", "root.tar")],
        env=daemon_env(FUSEOVERLAY_ROOT=str(cli.root)),
        capture_output=True, text=True, timeout=60, check=False, cwd=cli.base,
    )  # fmt: skip
    assert done.returncode == 9 and "File too large" in done.stderr, done.stderr
    assert list((cli.root / "blobs/sha256").iterdir()) == []
