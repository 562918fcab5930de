"""The commands for images print what a real Docker prints for the same image."""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fuseoverlay.oci.layout import Node, layer_tar
from tests.commands.conftest import Cli
from tests.commands.dockerd import Docker, missing
from tests.helpers.mounts import MODE, NATIVE, detach, scratch
from tests.registry.daemon import Daemon

pytestmark = [
    pytest.mark.skipif(MODE != "root" or not NATIVE, reason="Docker's daemon runs once, as root"),
    pytest.mark.timeout(180),
]

DOCKERFILE = """\
FROM base:1
LABEL keeper=somebody version=2
COPY file /srv/file
ENV COLOUR=blue LENGTH=42
COPY file /srv/a/long/way/down/to/the/place/where/it/lies/file
WORKDIR /srv
EXPOSE 80/tcp
VOLUME /data
USER 1000
ENTRYPOINT ["/bin/program"]
CMD ["--help"]
"""


@pytest.fixture(scope="module")
def docker() -> Iterator[Docker]:
    """A daemon with an image of two names, `ex:1` and `localhost:5000/team/ex:2`."""
    if lacking := missing():
        pytest.skip(f"missing tool: {lacking}")
    # A short path: that of a socket has an end.
    with scratch() as base, Docker(base) as docker:
        docker.run("import", "--message", "from a tar", "-", "base:1", input=_root())
        context = base / "context"
        context.mkdir()
        (context / "Dockerfile").write_text(DOCKERFILE)
        (context / "file").write_text("content of the file\n")
        docker.run("build", "--quiet", "--tag", "ex:1", context)
        docker.run("tag", "ex:1", "localhost:5000/team/ex:2")
        yield docker


def _root() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo("bin/program")
        member.size, member.mode = 1_977_000, 0o755
        archive.addfile(member, io.BytesIO(bytes(member.size)))
    return buffer.getvalue()


@pytest.fixture(scope="module")
def loaded(docker: Docker, tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """A store with the same images."""
    cli = Cli(tmp_path_factory.mktemp("commands"))
    archive = cli.base / "saved.tar"
    docker.run("save", "--output", archive, "base:1", "ex:1", "localhost:5000/team/ex:2")
    cli.said("load", "--quiet", "--input", archive)
    return cli


FORMATS = [
    *("{{.Repository}}:{{.Tag}} {{.ID}} {{.Size}}", "{{.CreatedAt}}", "table {{.ID}}\t{{.Tag}}"),
    *("{{json .Repository}}", "table"),
]


@pytest.mark.parametrize(
    "words",
    [
        *((), ("--no-trunc",), ("ex",), ("localhost:5000/*/ex",), ("nothing",), ("e?:1",)),
        *(("--filter", "label=keeper"), ("--filter", "label=version=3"), ("-f", "dangling=true")),
        *(("--filter", "reference=*:1"), ("-f", "before=ex:1"), ("-f", "since=base:1")),
        *(("-f", "label=keeper=somebody", "-f", "label=version=2"), ("-q",), ("-q", "--no-trunc")),
        *(("-f", "reference=base", "-f", "reference=ex"),),
        *(("--format", form) for form in FORMATS),
    ],
    ids=" ".join,
)
def test_images(docker: Docker, loaded: Cli, words: tuple[str, ...]) -> None:
    for spelling in (["images"], ["image", "ls"]):
        expected = docker.said(*spelling, *words).replace("Less than a second", "1 second")
        actual = loaded.said(*spelling, *words).replace("Less than a second", "1 second")
        assert _timeless(actual) == _timeless(expected)


def _timeless(text: str) -> list[str]:
    """Sorted words of each line without how many seconds ago: time goes on in between."""
    lines = [
        [word for word in line.replace(" second ", " seconds ").split() if not word.isdigit()]
        for line in text.splitlines()
    ]
    return sorted(" ".join(line) for line in lines)


@pytest.mark.parametrize(
    "words",
    [
        *((), ("--no-trunc",), ("-H=false",), ("--human=false", "--no-trunc"), ("-q",)),
        *(("--format", "{{.CreatedBy}}|{{.Size}}|{{.Comment}}"), ("--format", "table {{.ID}}")),
    ],
    ids=" ".join,
)
def test_history(docker: Docker, loaded: Cli, words: tuple[str, ...]) -> None:
    """But for the ids of steps, which an image that was not built here has not."""
    expected, actual = (
        who.said("history", *words, "ex:1").splitlines() for who in (docker, loaded)
    )
    ids = docker.said("history", "--no-trunc", "-q", "ex:1").split()
    for id_ in ids[1:]:
        for shown in (id_, id_.partition(":")[2][:12]):
            expected = [line.replace(shown, "<missing>".ljust(len(shown))) for line in expected]
    assert [_timeless(line) for line in actual] == [_timeless(line) for line in expected]


SAME = [
    *("Id", "Created", "Author", "Architecture", "Os", "Size", "Comment"),
    *("RootFS", "RepoTags"),
]


def test_inspect(docker: Docker, loaded: Cli) -> None:
    (expected,), (actual,) = (json.loads(who.said("inspect", "ex:1")) for who in (docker, loaded))
    assert {key: actual[key] for key in SAME} == {
        key: sorted(expected[key]) if key == "RepoTags" else expected[key] for key in SAME
    }
    assert actual["Config"] == expected["Config"]
    assert actual["GraphDriver"]["Name"] == "fuseoverlay"
    lowers = actual["GraphDriver"]["Data"]["LowerDir"].split(":")
    assert (Path(lowers[0]) / "srv/a/long/way/down/to/the/place/where/it/lies/file").exists()
    assert (Path(lowers[-1]) / "bin/program").stat().st_size == 1_977_000


@pytest.mark.parametrize(
    "form",
    [
        *("{{.Id}}", "{{.Config.Env}}", "{{json .Config.Labels}}", "{{.RootFS.Type}}"),
        *("{{range .Config.Env}}{{println .}}{{end}}", "{{index .Config.Cmd 0}}", "{{.Size}}"),
        *("{{len .RootFS.Layers}}", "{{if .Author}}a{{else}}b{{end}}", "{{.Config.Labels.keeper}}"),
        *('{{printf "%d bytes" .Size}}', "{{.Config.Labels}}", "{{.Config.ExposedPorts}}"),
        *('{{join .Config.Env "+"}}', "{{upper .Os}}", '{{index .Config.Labels "version"}}'),
    ],
)
def test_inspect_format(docker: Docker, loaded: Cli, form: str) -> None:
    assert loaded.said("inspect", "-f", form, "ex:1") == docker.said("inspect", "-f", form, "ex:1")


def test_save(docker: Docker, loaded: Cli) -> None:
    """The same images under the same ids, names and layers, and Docker takes them as its own."""
    words = ("save", "-o")
    ours, theirs = loaded.base / "ours.tar", docker.base / "theirs.tar"
    for who, path in ((loaded, ours), (docker, theirs)):
        assert who.said(*words, path, "ex:1", "base:1") == ""
        assert path.stat().st_mode & 0o777 == 0o600
    assert _saved(ours) == _saved(theirs)
    names = ["ex:1", "localhost:5000/team/ex:2", "base:1"]
    before = docker.said("images", "--no-trunc", "-q", *names[:1])
    docker.run("rmi", "-f", *names)
    assert docker.said("images", "-q") == ""
    for source in (["-i", str(ours)], []):
        piped = b"" if source else ours.read_bytes()
        lines = docker.said("load", *source, input=piped).splitlines()
        assert sorted(lines) == ["Loaded image: base:1", "Loaded image: ex:1"]
        assert docker.said("images", "--no-trunc", "-q", *names[:1]) == before
    docker.run("tag", "ex:1", names[1])


def _saved(path: Path) -> list[tuple[str, list[str], list[str]]]:
    """Ids, names, and digests of the layers of the images in an archive, whatever files have them:
    that depends on Docker's version."""

    def content(name: str) -> bytes:
        member = archive.extractfile(name)
        assert member
        return member.read()

    with tarfile.open(path) as archive:
        return sorted(
            (
                hashlib.sha256(content(item["Config"])).hexdigest(),
                item["RepoTags"],
                [hashlib.sha256(content(name)).hexdigest() for name in item["Layers"]],
            )
            for item in json.loads(content("manifest.json"))
        )


def test_save_refuses(docker: Docker, loaded: Cli) -> None:
    """What Docker refuses."""
    for words in (("save", "-o", "out.tar", "nothing"), ("save",)):
        assert docker.run(*words, check=False).returncode == 1
        assert loaded.run(*words).returncode != 0
    assert not (loaded.base / "out.tar").exists()


def test_push(docker: Docker, loaded: Cli, tmp_path: Path) -> None:
    """The same words on standard output, but for Docker's lines of progress. The manifest is
    another one: an archive of Docker's has none."""
    with Daemon(tmp_path) as registry:
        name = f"{registry.host}/team/ex:1"
        said = []
        for who in (docker, loaded):
            who.said("tag", "ex:1", name)
            lines = who.said("push", name).splitlines()
            said.append([lines[0], re.sub(r"sha256:\w{64} size: \d+", "DIGEST", lines[-1])])
            assert who.said("push", "-q", name) == f"{name}\n"
            docker.said("rmi", name) if who is docker else None
            docker.said("pull", "-q", name)
            id_ = docker.said("images", "-q", "--no-trunc", "ex:1")
            assert docker.said("images", "-q", "--no-trunc", name) == id_
            docker.said("rmi", name)
        loaded.said("rmi", name)
        assert said[0] == said[1]


def test_images_of_the_daemon(docker: Docker, tmp_path: Path) -> None:
    """They are mounted and loaded as they are. What the store has is not asked for again."""
    cli = Cli(tmp_path)
    cli.env = {"DOCKER_HOST": docker.host}
    try:
        for name in ("ex:1", docker.said("images", "-q", "ex:1").strip()):
            cli.said("mount", f"docker-daemon:{name}", cli.mnt)
            assert (cli.mnt / "srv/file").read_text() == "content of the file\n"
            cli.said("unmount", cli.mnt)
        assert cli.said("images", "-q") == ""
        assert cli.said("load", "-q", "-i", "docker-daemon:ex:1") == "Loaded image: ex:1\n"
        id_ = docker.said("images", "-q", "--no-trunc", "ex:1")
        assert cli.said("images", "-q", "--no-trunc", "ex:1") == id_
        cli.said("mount", "docker-daemon:ex:1", cli.mnt)
        assert (cli.mnt / "bin/program").exists()
        cli.said("unmount", cli.mnt)
        for words in (("load", "-i"), ("mount",)):
            mnt = [cli.mnt] if words == ("mount",) else []
            cli.refused(7, "No such image: nothing", *words, "docker-daemon:nothing", *mnt)
        cli.env = {"DOCKER_HOST": "tcp://127.0.0.1:1"}
        cli.refused(7, "not on this computer", "mount", "docker-daemon:ex:1", cli.mnt)
    finally:
        detach(cli.mnt)


CHANGES = [
    *("CMD a  b", 'CMD ["a", "b c"]', 'cmd ["a"]', "CMD", "CMD []", "ENTRYPOINT []"),
    *("ENTRYPOINT x", 'ENTRYPOINT ["/x", "y"]', 'ENV A=1 B="2 3"', "ENV C d e f"),
    *("ENV A=b\nENV B=${A}c$A$NO-x", "ENV A=1\nENV A=2 B=$A\nENV C=${B:-x}"),
    *('ENV A=a\\ b D=\'$A\' E="a\\"b"', "ENV A=1 \\\n  B=2"),
    *("ENV C=${X:-y} D=${X:+w}", 'ENV A "q r"', "EXPOSE 80 90/UDP 100-101/tcp 127.0.0.1:80:91"),
    *("LABEL a=b \"c d\"='e f'", "LABEL k v w", "USER me:you", "USER a b", "VOLUME /a /b $HOME/c"),
    *('VOLUME ["/c d"]', "WORKDIR x\nWORKDIR y/..\nWORKDIR z", "WORKDIR /a/../b", "# c\nUSER x"),
    *("ONBUILD RUN foo  bar", "onbuild run x"),
]
REFUSED = [
    *("RUN x", "FROM x", "ENV", "ENV A", "ENV =b", "ENV a=b c", "WORKDIR", "WORKDIR $NONE", "# c"),
    *("EXPOSE", "EXPOSE x", "EXPOSE 99999", "EXPOSE 80/foo", "EXPOSE 3-2", "LABEL", "LABEL a"),
    *("USER", "VOLUME", "VOLUME []", 'VOLUME ""', "ONBUILD ONBUILD RUN", "ONBUILD FROM x"),
    *("ENV C=${X:-y z}", "ONBUILD", 'CMD ["a", 1]', 'ENV A="b', ""),
]


def _imported(who: Docker | Cli, *words: object) -> dict[str, Any]:
    """What an import makes; `{}` if it is refused."""
    if isinstance(who, Docker):
        done = who.run("import", *words, "-", check=False, input=_small())
        out = done.stdout.decode().strip()
    else:
        (who.base / "small.tar").write_bytes(_small())
        ran = who.run("import", *words, "small.tar")
        assert ran.returncode in (0, 2), ran.stderr
        out = ran.stdout.strip()
        done = ran  # type: ignore[assignment]
    if done.returncode:
        return {}
    (found,) = json.loads(who.said("inspect", out))
    same = ("Config", "RootFS", "Comment", "Os", "Architecture", "Author", "RepoTags")
    assert len(who.said("history", "-q", out).split()) == 1
    return {key: found[key] for key in same}


def _small() -> bytes:
    return layer_tar([Node("file", data=b"content")])


def test_import(docker: Docker, loaded: Cli) -> None:
    for words in ((), ("-m", "a message"), ("-c", "USER a", "-c", "ENV a=b", "-c", "ENV c=$a")):
        assert _imported(loaded, *words) == _imported(docker, *words) != {}
    for who in (docker, loaded):
        source = who.base / "small.tar"
        source.write_bytes(_small())
        assert re.fullmatch(r"sha256:\w{64}\n", who.said("import", source, "imported:1"))
        assert "a message" not in who.said("history", "imported:1")
        assert "Imported from -" in who.said("history", "imported:1")
        who.said("rmi", "imported:1")


@pytest.mark.parametrize("change", CHANGES)
def test_import_changes(docker: Docker, loaded: Cli, change: str) -> None:
    expected = _imported(docker, "-c", change)
    assert expected and _imported(loaded, "-c", change) == expected


@pytest.mark.parametrize("change", REFUSED)
def test_import_refuses(docker: Docker, loaded: Cli, change: str) -> None:
    assert (_imported(docker, "-c", change), _imported(loaded, "-c", change)) == ({}, {})


def test_names_and_removal(docker: Docker, loaded: Cli) -> None:
    """The same steps, with the same words for them. Of what Docker deletes we name the image."""
    context = docker.base / "going"
    context.mkdir()
    (context / "Dockerfile").write_text("FROM base:1\nLABEL going=soon\n")
    docker.run("build", "--quiet", "--tag", "going:1", context)
    docker.run("tag", "going:1", "localhost:5000/team/going:2")
    archive = loaded.base / "going.tar"
    docker.run("save", "--output", archive, "going:1", "localhost:5000/team/going:2")
    loaded.said("load", "--quiet", "--input", archive)
    for words in (("tag", "base:1", "base:2"), ("rmi", "base:2"), ("rmi", "going:1")):
        assert loaded.said(*words) == docker.said(*words)
    for words in (("rmi", "nothing"), ("tag", "nothing", "x"), ("inspect", "nothing")):
        assert docker.run(*words, check=False).returncode == 1
        done = loaded.run(*words)
        assert done.returncode != 0 and "nothing" in done.stderr
    expected = docker.said("rmi", "localhost:5000/team/going:2").splitlines()
    actual = loaded.said("rmi", "localhost:5000/team/going:2").splitlines()
    assert actual == expected[: len(actual)] and len(actual) == 2


def test_saved_by_us_is_loaded_by_skopeo(loaded: Cli) -> None:
    """The store is an OCI layout, as it stands."""
    where = f"oci:{loaded.root}:docker.io/library/base:1"
    argv = ["skopeo", "inspect", "--config", where]
    config = json.loads(subprocess.run(argv, check=True, capture_output=True, timeout=60).stdout)
    assert config["history"][-1]["comment"] == "from a tar"
