"""Typical mistakes of newcomers: what cannot be meant is refused with a sentence that helps."""

from __future__ import annotations

import os

import pytest

from fuseoverlay import __version__
from fuseoverlay.oci.layout import LayoutWriter, Node, layer_tar
from tests.helpers.mounts import mounts_at, unmount
from tests.mount.conftest import Cli
from tests.mount.test_bad_input import IMAGE, USAGE, refused

DIRECTORIES = "write fuseoverlay mount -o lowerdir=A:B MNT, or fuseoverlay mount IMAGE MNT"
MISSING_MNT = "no mount point given; write fuseoverlay mount image MNT"
BOTH = "lowerdir= is given, and the image image"


@pytest.fixture
def here(cli: Cli) -> Cli:
    """A directory to work in, which holds an image."""
    writer = LayoutWriter(cli.space.base / "image")
    tar = layer_tar([Node("f", data=b"from the image")])
    writer.add_image([writer.add_layer(tar, "gzip")], ref="latest")
    return cli


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("", f"no mount point given; {DIRECTORIES}"),
        ("mount", f"no mount point given; {DIRECTORIES}"),
        ("mount -o lowerdir=l0", "no mount point given"),
        ("mount image", MISSING_MNT),
        ("image mnt", "image mnt is not a command; the commands are ls, pull"),
        ("image:latest", MISSING_MNT.replace("image", "image:latest")),
        ("mount mnt", f"no lowerdir= and no image given; {DIRECTORIES}"),
        ("mnt", f"no lowerdir= and no image given; {DIRECTORIES}"),
        ("mount nothing --upper changes", "write fuseoverlay mount nothing MNT"),
        ("mount nothing --platform arm64", "write fuseoverlay mount nothing MNT"),
        ("mount debian:12", "no mount point given; write fuseoverlay mount debian:12 MNT"),
        ("frobnicate", "frobnicate is not a command; the commands are mount, unmount, umount,"),
        ("build .", "build is not a command; the commands are mount"),
        ("nosuch .", "nosuch is not a command; to mount an image write fuseoverlay mount nosuch"),
        ("run -it debian bash", "run is not a command; the commands are mount"),
        ("ps -a", "ps is not a command"),
        ("system df", "system is not a command; write fuseoverlay image df"),
        ("--root X images", "before the command; write fuseoverlay images --root X ..."),
        ("--root=X image ls", "before the command; write fuseoverlay image --root=X ..."),
        ("image rmi x", "image rmi is not a command; did you mean image rm?"),
        ("image pul x", "image pul is not a command; did you mean image pull?"),
        ("debian:12 mnt", "write fuseoverlay mount debian:12 MNT"),
        ("moutn -o lowerdir=l0 mnt", "moutn is not a command; did you mean mount?"),
        ("mout image mnt", "mout is not a command; did you mean mount?"),
        ("unmuont mnt", "unmuont is not a command; did you mean unmount?"),
        ("unount mnt", "unount is not a command; did you mean unmount?"),
        ("fsckk upper -o lowerdir=l0", "fsckk is not a command; did you mean fsck?"),
        ("fcsk upper -o lowerdir=l0", "did you mean fsck?"),
        ("vers", "vers is not a command; the commands are"),
        ("halp", "did you mean help?"),
        ("help nosuch", "nosuch is not a command; the commands are mount, unmount"),
        ("mount image mnt -o lowerdir=l0", BOTH),
        ("image:latest mnt -o lowerdir=l0", f"{BOTH}:latest"),
        ("mount image l0 mnt", f"too many arguments: mnt; {DIRECTORIES}"),
    ],
)
def test_advice(here: Cli, line: str, word: str) -> None:
    refused(here, USAGE, *line.split(), word=word, cwd=here.space.base)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("mount", "image", "mnt", "--upper", ""), "--upper"),
        (("mount", "image", "mnt", "--upper="), "--upper"),
        (("mount", "image", "mnt", "--read-only", "--upper", ""), "--upper"),
        (("mount", "image", "mnt", "--platform", ""), "--platform"),
        (("mount", "image", ""), "MNT"),
        (("mount", "", "mnt"), "IMAGE"),
        (("mount", "", ""), "MNT"),
        (("",), "MNT"),
        (("mount", "-o", "lowerdir=l0", ""), "MNT"),
        (("-o", "lowerdir=l0", "overlay", ""), "MNT"),
        (("mount", "-o", "lowerdir=l0", "mnt", "--upper="), "--upper"),
        (("unmount", ""), "MNT"),
        (("fsck", "", "-o", "lowerdir=l0"), "UPPER"),
        (("fsck", "--upper", "", "image"), "--upper"),
        (("fsck", "--upper", "", "upper", "-o", "lowerdir=l0"), "--upper"),
        (("fsck", "--upper", "changes", ""), "IMAGE"),
        (("fsck", "--upper", "changes", "image", "--platform", ""), "--platform"),
    ],
)
def test_empty_words(here: Cli, words: tuple[str, ...], name: str) -> None:
    """As from an unset variable. Nothing is made in the current directory."""
    before = sorted(os.listdir(here.space.base))
    word = f"error: {name} is empty; write it out"
    refused(here, USAGE, *words, word=word, cwd=here.space.base)
    assert sorted(os.listdir(here.space.base)) == before


def test_empty_source_of_directories(here: Cli) -> None:
    """It is only shown, and mount(8) accepts one too."""
    here.mount("", here.space.mnt, "-o", "lowerdir=l0", cwd=here.space.base)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("quay.io:443/a/b@sha256:0", "there is no file or directory quay.io:443/a/b@sha256"),
        ("docker-daemon:debian:12", "cannot use /nowhere: No such file or directory; see whether"),
        ("containers-storage:debian:12", "no such image in /nowhere/containers/storage; see"),
        ("containers-storage:[overlay@/else+/run]debian", "no such image in /else; see"),
        ("dir:debian", "there is no file or directory debian; correct the path"),
        ("oci:nothing:latest", "there is no file or directory nothing; correct the path"),
        ("./debian:12", "there is no file or directory ./debian; correct the path"),
        ("debian.tar", "there is no such file or directory; correct the path"),
        ("debian.tar.gz:12", "there is no file or directory debian.tar.gz; correct the path"),
        ("a $(b)", "there is no such file or directory; correct the path"),
        ("l0/f/x", "cannot open: Not a directory"),
    ],
)
def test_image_that_is_not_here(here: Cli, image: str, message: str) -> None:
    """The message has the whole word and what to do. Nothing is made on the way."""
    space = here.space
    (space.base / "nowhere").symlink_to("gone")
    env = {"PATH": "/usr/bin:/bin", "XDG_DATA_HOME": str(space.base / "data")}
    conf = space.base / "storage.conf"
    conf.write_text('[storage]\ngraphroot = "/nowhere/containers/storage"\n')
    env |= {"CONTAINERS_STORAGE_CONF": str(conf), "DOCKER_HOST": "unix:///nowhere"}
    said = refused(here, IMAGE, "mount", image, space.mnt, word=message, cwd=space.base, env=env)
    assert f"error: {image}: " in said
    assert not (space.base / "data").exists()
    refused(here, IMAGE, "nowhere", space.mnt, cwd=space.base, env=env, word="is a link to gone")


@pytest.mark.parametrize("image", ["debian:12", "docker://debian", "quay.io/a/b", "0123abcd"])
def test_image_that_no_registry_is_asked_for(here: Cli, image: str) -> None:
    env = {"PATH": "/usr/bin:/bin", "FUSEOVERLAY_ROOT": str(here.space.base / "store")}
    words = ("mount", "--pull", "never", image, here.space.mnt)
    refused(here, IMAGE, *words, word="no such image; `fuseoverlay images` lists", env=env)


def test_image_with_the_transport_of_a_file(here: Cli) -> None:
    env = {"PATH": "/usr/bin:/bin", "FUSEOVERLAY_ROOT": str(here.space.base / "store")}
    for image in ("oci:image:latest", "oci:image"):
        here.mount("mount", image, here.space.mnt, cwd=here.space.base, env=env)
        unmount(here.space.mnt)


def test_source_that_looks_like_a_command_but_is_meant(here: Cli) -> None:
    """The command accepts any word, and so does the helper that mount(8) calls."""
    space = here.space
    here.mount("mount", "moutn", space.mnt, "-o", "lowerdir=l0", cwd=space.base)
    assert os.listdir(space.mnt) == ["f"]
    assert len(mounts_at(space.mnt)) == 1


@pytest.mark.parametrize("source", ["overlay", "none", "l0", "nothing:latest", "/dev/null"])
def test_sources_that_are_no_image(here: Cli, source: str) -> None:
    done = here.run(source, here.space.mnt, "-o", "lowerdir=l0", cwd=here.space.base)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("line", ["help", "help help", "help mount", "help unmount", "help fsck"])
def test_help(cli: Cli, line: str) -> None:
    done = cli.run(*line.split())
    flags = cli.run(*line.split()[1:], "--help")
    assert (done.returncode, done.stderr, done.stdout) == (0, "", flags.stdout)
    assert "usage:" in done.stdout


def test_version(cli: Cli) -> None:
    done = cli.run("version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"fuseoverlay {__version__}\n"
    assert cli.run("version", "-v").stdout == cli.run("--version", "-v").stdout
