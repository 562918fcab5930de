"""`image ls`, `inspect`, `history`, `tag` and `df` on what is in the store."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.commands.conftest import Cli
from tests.helpers.mounts import command, daemon_env

DEBIAN = "docker.io/library/debian:12"


def test_empty(cli: Cli) -> None:
    assert cli.said("images") == "REPOSITORY   TAG       IMAGE ID   CREATED   SIZE\n"
    assert cli.said("image", "ls", "-q") == ""
    assert json.loads(cli.said("image", "df", "--json"))["kinds"][0]["Total"] == 0


def test_names(cli: Cli, layout: Path) -> None:
    cli.add(layout, "one", DEBIAN)
    cli.add(layout, "two", "quay.io/team/tool:latest")
    shown = {line.split()[0] for line in cli.said("images").splitlines()[1:]}
    assert shown == {"debian", "quay.io/team/tool"}
    cli.said("tag", "debian:12", "mine")
    cli.said("tag", "quay.io/team/tool", "localhost:5000/x/y:z")
    form = "{{.Repository}} {{.Tag}}"
    assert cli.said("images", "--sort", "repository", "--format", form).splitlines() == [
        "debian 12", "localhost:5000/x/y z", "mine latest", "quay.io/team/tool latest",
    ]  # fmt: skip
    (data,) = json.loads(cli.said("inspect", "mine"))
    assert data["RepoTags"] == ["debian:12", "mine:latest"]
    digest = data["Descriptor"]["digest"]
    assert data["RepoDigests"] == [f"debian@{digest}", f"mine@{digest}"]
    names = (data["Id"], data["Id"][7:19], digest, f"debian@{digest}", "docker.io/library/mine")
    for name in names:
        assert cli.said("inspect", "-f", "{{.Id}}", name).strip() == data["Id"]


def test_moved_name_leaves_a_dangling_image(cli: Cli, layout: Path) -> None:
    cli.add(layout, "one", DEBIAN)
    cli.add(layout, "two", "two:1")
    old = cli.said("inspect", "-f", "{{.Id}}", "debian:12").strip()
    cli.said("tag", "two:1", "debian:12")
    assert cli.said("images", "-q", "--no-trunc", "--filter", "dangling=true").strip() == old
    (line,) = [x for x in cli.said("images", "--no-trunc").splitlines() if old in x]
    assert line.split()[:2] in (["debian", "<none>"], ["<none>", "<none>"])


def test_names_that_would_break_the_terminal(cli: Cli, layout: Path) -> None:
    cli.add(layout, "one", DEBIAN)
    index = json.loads((cli.root / "index.json").read_text())
    annotations = index["manifests"][0]["annotations"]
    name = annotations["org.opencontainers.image.ref.name"] = "a\x1b[31m\nb"
    (cli.root / "index.json").write_text(json.dumps(index))
    for words in (("images",), ("image", "df", "-v"), ("inspect", "-f", "{{.RepoTags}}", name)):
        said = cli.said(*words)
        assert "\x1b" not in said and "\\x1b[31m" in said, words
    # Nor would a script take it for two.
    assert len(cli.said("images", "--format", "{{.Repository}}:{{.Tag}}").splitlines()) == 1
    assert len(cli.said("rmi", "--dry-run", "a\x1b[31m\nb").splitlines()) == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("image", "lss"), "image lss is not a command"),
        (("images", "--filter", "colour=red"), "no such filter"),
        (("images", "--filter", "dangling"), "no value; write dangling=true"),
        (("images", "--filter", "reference"), "no value; write reference=VALUE"),
        (("images", "--filter", "dangling=perhaps"), "not true or false"),
        (("images", "--filter", "until=yesterday"), "is not a time"),
        (("image", "prune", "--filter", "reference=x"), "no such filter"),
    ],
)
def test_words_that_are_refused(cli: Cli, words: tuple[str, ...], says: str) -> None:
    cli.refused(2, says, *words)


def test_switches_take_no_word(cli: Cli, layout: Path) -> None:
    """As those of docker and podman."""
    cli.add(layout, "one", "debian:12")
    short = cli.said("history", "debian:12")
    whole = cli.said("history", "--human=false", "debian:12")
    assert "200B" not in short and short != whole
    for words in (("-H",), ("--human",), ("-qH", "--human=true"), ("-H=1",)):
        expected = cli.said("history", "-q", "debian:12") if "-qH" in words else short
        assert cli.said("history", *words, "debian:12") == expected, words
    for word in ("-H=false", "--human=0", "--human=F"):
        assert cli.said("history", word, "debian:12") == whole, word
    cli.refused(2, "--human", "history", "--human=perhaps", "debian:12")
    for switch, scheme in (("", "https"), ("=true", "https"), ("=false", "http")):
        url = f"{scheme}://127.0.0.1:1/v2/"
        cli.refused(11, url, "pull", f"--tls-verify{switch}", "127.0.0.1:1/x")


def test_files_are_not_in_the_store(cli: Cli, layout: Path) -> None:
    """A name like theirs may be."""
    for word in ("rmi", "save"):
        for name in ("oci:layout", "./layout", "docker-archive:x.tar"):
            hint = f"{name}: not in the store; write fuseoverlay load -i {name}, and then"
            cli.refused(7, hint, word, name)
    cli.refused(7, "load -i oci:layout", "tag", "oci:layout", "x")
    cli.refused(7, "load -i oci:layout", "image", "verify", "oci:layout")
    cli.add(layout, "one", "docker.io/library/oci:layout")
    assert cli.said("inspect", "-f", "{{.RepoTags}}", "oci:layout") == "[oci:layout]\n"


def test_nobody_reads(cli: Cli, layout: Path) -> None:
    """After the first line that is lost nothing else is done or said."""
    cli.add(layout, "one", "debian:12")
    read, write = os.pipe()
    os.close(read)
    with open(write, "wb") as stdout:
        done = subprocess.run(
            command("inspect", "-f", "{{.Id}}", "debian:12", "nothing"), stdout=stdout,
            env=daemon_env(FUSEOVERLAY_ROOT=str(cli.root)), stderr=subprocess.PIPE, text=True,
            timeout=30, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")


def test_forms(cli: Cli, layout: Path) -> None:
    cli.add(layout, "one", "debian:12")
    cli.said("tag", "debian:12", "mine:1")
    assert " " not in cli.said("images", "--format", "json", "mine")
    assert cli.said("images", "--format", "tree", "-q") == cli.said("images", "-q")
    assert "debian:12, mine:1 " in cli.said("image", "df", "-v")


def test_format_that_is_refused(cli: Cli, layout: Path) -> None:
    cli.add(layout, "one", DEBIAN)
    cli.refused(2, "no field Nothing; there are Repository", "images", "--format", "{{.Nothing}}")


def test_what_is_not_there(cli: Cli) -> None:
    for words in (("inspect", "x"), ("history", "x"), ("tag", "x", "y"), ("rmi", "x")):
        cli.refused(7, "x: no such image", *words)
    cli.refused(7, "x: no such image", "images", "--filter", "since=x")


def test_damaged_image_is_listed_and_can_go(cli: Cli, layout: Path) -> None:
    cli.add(layout, "one", DEBIAN)
    cli.add(layout, "two", "two:1")
    (data,) = json.loads(cli.said("inspect", "debian:12"))
    config = data["Id"].partition(":")[2]
    (cli.root / "blobs/sha256" / config).write_text("{}")
    assert "debian" in cli.said("images") and "two" in cli.said("images")
    cli.refused(7, config, "inspect", "debian:12")
    assert "Untagged: debian:12" in cli.said("rmi", "debian:12")


def test_tree(cli: Cli, layout: Path) -> None:
    cli.add(layout, "one", DEBIAN)
    cli.add(layout, "two", "docker.io/library/two:1")
    cli.said("tag", "two:1", "debian:12")
    cli.said("tag", "two:1", "a/b:c")
    heading, *lines = cli.said("images", "--format", "tree").splitlines()
    assert heading.split("  ")[0] == "IMAGE" and heading.endswith("EXTRA")
    assert [line.split()[0] for line in lines] == ["a/b:c", "└─", "debian:12", "└─", "two:1", "└─"]
    id_ = cli.said("inspect", "-f", "{{.Id}}", "two:1")[7:19]
    assert all(id_ in line for line in lines)
    *_, untagged, platform = cli.said("images", "--all", "--format", "tree").splitlines()
    assert untagged.startswith("<untagged>   ") and platform.startswith("└─ linux/")
    ends = {line.index("B   ") for line in lines if "B   " in line}
    assert len(ends) == 1, "sizes end below each other"
    cli.said("mount", "two:1", cli.mnt)
    lines = cli.said("images", "--format", "tree", "two").splitlines()
    assert lines[1].startswith("two:1") and lines[1].endswith("U")
    cli.said("unmount", cli.mnt)


def test_two_hundred_images(cli: Cli, layout: Path) -> None:
    """Each manifest and config is read once."""
    cli.add(layout, "one", DEBIAN)
    for number in range(200):
        index = json.loads((cli.root / "index.json").read_text())
        entry = json.loads(json.dumps(index["manifests"][0]))
        entry["annotations"]["org.opencontainers.image.ref.name"] = f"docker.io/library/x:{number}"
        index["manifests"].append(entry)
        (cli.root / "index.json").write_text(json.dumps(index))
    assert len(cli.said("images").splitlines()) == 202
