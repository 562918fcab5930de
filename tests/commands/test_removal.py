"""`rmi`, `image prune`: what goes, what stays, what they say."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.commands.conftest import Cli

DEBIAN = "docker.io/library/debian:12"


def blobs(cli: Cli) -> set[str]:
    """The names of all blobs."""
    return {path.name for path in (cli.root / "blobs/sha256").iterdir()}


def test_names_then_the_image(cli: Cli, layout: Path) -> None:
    cli.add(layout, "one", DEBIAN)
    cli.add(layout, "two", "two:1")
    cli.said("tag", "two:1", "two:2")
    before = blobs(cli)
    id_ = cli.said("inspect", "-f", "{{.Id}}", "two:1").strip()
    assert cli.said("rmi", "--dry-run", "two:1") == "Would untag: two:1\n"
    assert cli.said("rmi", "two:1") == "Untagged: two:1\n"
    assert blobs(cli) == before
    assert cli.said("rmi", "two:2") == f"Untagged: two:2\nDeleted: {id_}\n"
    gone = before - blobs(cli)
    assert id_.partition(":")[2] in gone and len(gone) == 3, "manifest, config, its own layer"
    assert cli.said("rmi", "debian:12").count("\n") == 2
    assert blobs(cli) == set()


def test_by_id(cli: Cli, layout: Path) -> None:
    cli.add(layout, "one", DEBIAN)
    cli.said("tag", "debian:12", "debian:13")
    id_ = cli.said("images", "-q").split()[0]
    cli.said("tag", "debian:12", "other")
    cli.refused(2, "several repositories", "rmi", id_)
    said = cli.said("rmi", "-f", id_).splitlines()
    assert said[:3] == ["Untagged: debian:12", "Untagged: debian:13", "Untagged: other:latest"]
    assert cli.said("images", "-q") == ""


def test_one_that_is_not_there(cli: Cli, layout: Path) -> None:
    """The others go all the same."""
    cli.add(layout, "one", DEBIAN)
    done = cli.run("rmi", "nothing", "debian:12")
    assert done.returncode == 7 and "nothing: no such image" in done.stderr
    assert "Untagged: debian:12" in done.stdout
    assert blobs(cli) == set()


def test_force(cli: Cli, layout: Path) -> None:
    cli.add(layout, "one", "debian:12")
    done = cli.run("rmi", "-f", "nothing", "debian:12")
    assert done.returncode == 0 and "nothing: no such image" in done.stderr
    assert cli.said("images", "-q") == ""


def test_prune(cli: Cli, layout: Path) -> None:
    cli.add(layout, "one", DEBIAN)
    cli.add(layout, "two", "two:1")
    cli.said("tag", "two:1", "debian:12")
    (cli.root / "blobs/sha256" / ("0" * 64)).write_bytes(b"what a broken copy left")
    # What is new may just be copied by another program.
    os.utime(cli.root / "blobs/sha256" / ("0" * 64), (1, 1))
    planned = cli.said("image", "prune", "--dry-run")
    before = blobs(cli)
    assert cli.said("image", "prune", input="n\n") == ""
    assert blobs(cli) == before
    done = cli.run("image", "prune", input="y\n")
    assert planned == done.stdout.replace("Deleted Images", "Would delete").replace(
        "Total reclaimed space", "Space that would be reclaimed"
    )
    assert "Are you sure you want to continue? [y/N]" in done.stderr
    first, deleted, blank, total = done.stdout.splitlines()
    assert (first, blank) == ("Deleted Images:", "")
    assert deleted.startswith("deleted: sha256:")
    assert total.startswith("Total reclaimed space: ")
    assert "0" * 64 not in blobs(cli)
    assert cli.said("image", "prune", "-f") == "Total reclaimed space: 0B\n"
    assert len(set(cli.said("images", "-q").split())) == 1


def test_prune_all_with_filters(cli: Cli, layout: Path) -> None:
    cli.add(layout, "one", DEBIAN)
    assert "debian" in cli.said("image", "prune", "-a", "--dry-run")
    for words in ("until=2001-01-01", "label=x", "label=x=y"):
        said = cli.said("image", "prune", "-a", "-f", "--filter", words)
        assert said == "Total reclaimed space: 0B\n"
    # It does not say when it was made.
    assert "debian" not in cli.said("image", "prune", "-a", "-f", "--filter", "until=0s")
    said = cli.said("image", "prune", "-a", "-f", "--filter", "label!=x", "--filter", "label!=y")
    assert said.startswith("Deleted Images:\nuntagged: debian:12\ndeleted: sha256:")
    assert blobs(cli) == set()


def test_what_a_mount_uses_stays(cli: Cli, layout: Path) -> None:
    cli.add(layout, "one", DEBIAN)
    cli.said("mount", "debian:12", cli.mnt)
    assert "images" not in cli.said("image", "prune", "-a", "-f").lower()
    done = cli.run("rmi", "debian:12")
    assert done.returncode == 0 and "in use" in done.stderr
    assert (cli.mnt / "etc/base").read_bytes() == b"b" * 1000
    (cli.mnt / "etc/base").write_bytes(b"changed")
    cli.said("unmount", cli.mnt)
    cli.said("image", "prune", "-f")
    assert not any((cli.root / "layers").glob("*/*"))
    assert not any((cli.root / "layers-override").glob("*/*"))
    assert json.loads(cli.said("image", "df", "--json"))["kinds"][1]["Total"] == 0
    assert not any((cli.root / "sizes").glob("*/*"))
