"""An image as a mount: what is checked, and when; whose changes `--upper` keeps."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fuseoverlay.oci.layout import LayoutWriter, Node, directory, layer_tar
from tests.helpers.mounts import MODE, is_whiteout, make_whiteout, mounts_at, scratch, unmount
from tests.mount.conftest import Cli
from tests.mount.test_bad_input import MOUNTPOINT, UPPER, USAGE, refused

BASE = [
    directory("./", mode=0o751),
    Node("f", data=b"from the image"),
    Node("gone", data=b"x"),
    Node("linked", data=b"two names"),
    Node("linked2", hardlink="linked"),
]
NAMES = ["f", "gone", "linked", "linked2"]


def make_image(
    path: Path, *layers: list[Node], ref: str | None = "latest", platform: str | None = None
) -> Path:
    """A layout of these layers, bottom first; or one more image in it."""
    writer = LayoutWriter(path)
    handles = [writer.add_layer(layer_tar(nodes), "gzip") for nodes in layers]
    writer.add_image(handles, ref=ref, platform=platform)
    return path


class Images:
    """The command line, with a store of its own."""

    def __init__(self, cli: Cli) -> None:
        self.cli = cli
        self.base, self.mnt = cli.space.base, cli.space.mnt
        self.upper = self.base / "changes"
        self.data = self.base / "data"
        self.env = {"PATH": os.environ["PATH"], "XDG_DATA_HOME": str(self.data)}
        self.image = make_image(self.base / "image", BASE)

    def unpacked(self) -> list[Path]:
        """The layers in the store."""
        return [path for path in self.data.glob("fuseoverlay/layers*/*/*") if path.is_dir()]

    def mount(self, *args: object, image: Path | None = None) -> None:
        """Mount in the background."""
        self.cli.mount("mount", image or self.image, self.mnt, *args, env=self.env)

    def unmount(self) -> None:
        """And see the daemon end."""
        unmount(self.mnt)
        self.cli.wait_until_gone()

    def refused(self, code: int, *args: object, word: str, image: Path | None = None) -> str:
        """The mount must be refused before anything is unpacked."""
        said = refused(
            self.cli, code, "mount", image or self.image, self.mnt, *args, env=self.env, word=word
        )
        assert self.unpacked() == []
        return said


@pytest.fixture
def images(cli: Cli) -> Iterator[Images]:
    return Images(cli)


def test_nobody_else_reaches_the_changes(images: Images) -> None:
    """By another path than the mount."""
    images.mount("--upper", images.upper)
    images.unmount()
    assert stat.S_IMODE(images.upper.stat().st_mode) == 0o700


def test_changes_are_kept(images: Images) -> None:
    """The base of what follows: the tests see layers that are unpacked."""
    for _ in range(2):
        images.mount("--upper", images.upper)
        assert len(images.unpacked()) == 1
        assert os.stat(images.mnt).st_mode & 0o7777 == 0o751
        (images.mnt / "new").write_bytes(b"new")
        (images.mnt / "gone").unlink(missing_ok=True)
        images.unmount()
    images.mount("--upper", images.upper, "--read-only")
    assert sorted(os.listdir(images.mnt)) == ["f", "linked", "linked2", "new"]
    assert os.statvfs(images.mnt).f_flag & os.ST_RDONLY
    images.unmount()


@pytest.mark.parametrize("how", [("--read-only",), ("-o", "ro")])
def test_read_only_with_an_upper_that_has_nothing(images: Images, how: tuple[str, ...]) -> None:
    """A slip in its name would show the image without the changes."""
    images.mount("--upper", images.upper)
    images.unmount()
    for name in (f"{images.upper}x", images.upper / "diff"):
        word = f"{name}/diff: there are no changes; name the directory that has them in diff"
        done = images.cli.run("mount", images.image, images.mnt, "--upper", name, *how,
                              env=images.env)  # fmt: skip
        assert (done.returncode, done.stderr) == (UPPER, f"fuseoverlay: error: {word}\n")
        assert mounts_at(images.mnt) == []
    assert not Path(f"{images.upper}x").exists()


def _no_mount_point(images: Images) -> None:
    images.mnt.rmdir()


def _mount_point_is_a_file(images: Images) -> None:
    images.mnt.rmdir()
    images.mnt.touch()


@pytest.mark.parametrize("prepare", [_no_mount_point, _mount_point_is_a_file])
def test_mount_point_before_unpacking(images: Images, prepare: Callable[[Images], None]) -> None:
    prepare(images)
    images.refused(MOUNTPOINT, "--upper", images.upper, word=str(images.mnt))
    assert not images.upper.exists(), "it made something"


def test_busy_mount_point_before_unpacking(images: Images) -> None:
    cli = images.cli
    cli.mount("-o", cli.space.options(), images.mnt)
    done = cli.run("mount", images.image, images.mnt, env=images.env)
    assert (done.returncode, images.unpacked()) == (MOUNTPOINT, [])
    assert "busy" in done.stderr
    images.unmount()


def test_upper_before_unpacking(images: Images) -> None:
    file = images.base / "file"
    file.touch()
    hint = "; name a directory\n"
    assert images.refused(UPPER, "--upper", file, word=str(file)).endswith(hint)
    assert images.refused(UPPER, "--upper", file / "x", word=str(file)).endswith(hint)
    images.upper.mkdir()
    (images.upper / "diff").touch()
    assert images.refused(UPPER, "--upper", images.upper, word="kept here").endswith(hint)
    (images.upper / "diff").unlink()
    (images.upper / "work").touch()
    assert images.refused(UPPER, "--upper", images.upper, word="kept here").endswith(hint)
    assert os.listdir(images.upper) == ["work"], "it left something"


@pytest.mark.parametrize(
    ("leftover", "word"),
    [("incompat/volatile", "upper was mounted with volatile"), ("mine", "no overlay's: mine")],
)
def test_what_is_in_the_work_directory_before_unpacking(
    images: Images, leftover: str, word: str
) -> None:
    (images.upper / "diff").mkdir(parents=True)
    (images.upper / "work/work" / leftover).mkdir(parents=True)
    images.refused(UPPER, "--upper", images.upper, word=word)
    assert (images.upper / "work/work" / leftover).is_dir()


@pytest.mark.skipif(MODE != "user", reason="root writes everything")
def test_upper_of_another_user_before_unpacking(images: Images) -> None:
    images.refused(UPPER, "--upper", "/srv/changes", word="name a directory that you may write")


def test_upper_in_use_before_unpacking(images: Images) -> None:
    cli, upper = images.cli, images.upper
    for name in ("diff", "work"):
        (upper / name).mkdir(parents=True)
    with scratch() as other:
        options = f"lowerdir={cli.space.lower},upperdir={upper}/diff,workdir={upper}/work"
        assert cli.run("-o", options, other).returncode == 0
        try:
            images.refused(UPPER, "--upper", upper, word="in use by another mount")
        finally:
            unmount(other)
    assert not mounts_at(other)


def test_options_before_unpacking(images: Images) -> None:
    space = images.cli.space
    both = f"upperdir={space.upper},workdir={space.work}"
    images.refused(USAGE, "-o", f"upperdir={space.upper}", word="workdir= is missing")
    images.refused(USAGE, "-o", both, "--upper", images.upper, word="exclude each other")
    images.refused(UPPER, "-o", both + "x", word="workdir does not exist")
    images.refused(UPPER, "-o", both.replace("upper,", "upperx,"), word="upperdir does not exist")
    if MODE == "user":
        images.refused(USAGE, "-o", "allow_root", word="allow_root takes root")


@pytest.mark.skipif(MODE == "user", reason="needs mount(2)")
def test_upper_without_attributes(images: Images) -> None:
    """Root's mount works there; where owners are kept in attributes, that is said at once."""
    images.upper.mkdir()
    subprocess.run(["mount", "-t", "ramfs", "ramfs", images.upper], check=True, timeout=30)
    try:
        if MODE == "root":
            images.mount("--upper", images.upper)
            images.unmount()
        else:
            word = "Operation not supported; its filesystem keeps no extended attributes; name a"
            images.refused(UPPER, "--upper", images.upper, word=word)
            assert os.listdir(images.upper) == []
    finally:
        subprocess.run(["umount", "-l", images.upper], check=False, timeout=30)


def test_upper_before_the_image_is_read(images: Images) -> None:
    """What comes first is said: reading a compressed archive takes as long as unpacking it."""
    archive = images.base / "image.tar.gz"
    archive.write_bytes(gzip.compress(b"no archive"))
    images.refused(7, "--upper", images.upper, image=archive, word=str(archive))
    assert not images.upper.exists()
    file = images.base / "file"
    file.touch()
    images.refused(UPPER, "--upper", file, image=archive, word=str(file))
    images.upper.mkdir()
    (images.upper / "image").write_text("odd")
    word = "does not say which image"
    images.refused(UPPER, "--upper", images.upper, image=archive, word=word)
    missing = images.base / "missing"
    images.refused(7, "--upper", file, image=missing, word=str(missing))


@pytest.mark.parametrize("place", ["f", "f/below"])
def test_store_that_is_a_file(images: Images, place: str) -> None:
    images.env["XDG_DATA_HOME"] = str(images.cli.space.lower / place)
    images.refused(9, word="; set FUSEOVERLAY_ROOT to a directory")


def test_a_malformed_layer_comes_with_advice(images: Images) -> None:
    bad = make_image(images.base / "bad", [Node("a", stat.S_IFLNK, link="")])
    images.refused(7, image=bad, word="; the image is damaged, or made in a way that is not")


def test_nothing_is_left_where_the_image_is_bad(images: Images) -> None:
    blobs = images.image.glob("blobs/*/*")
    (blob,) = (path for path in blobs if path.read_bytes()[:2] == b"\x1f\x8b")
    blob.write_bytes(blob.read_bytes()[:-9] + b"\0" * 9)
    images.refused(8, "--upper", images.upper / "deeper", word="sha256")
    assert not images.upper.exists()


def test_image_for_another_platform(images: Images) -> None:
    """A warning where there is no choice, unless it is asked for; else it is refused."""
    image = make_image(images.base / "foreign", BASE, ref=None, platform="linux/s390x")
    words = ("mount", image, images.mnt, "--read-only")
    done = images.cli.run(*words, env=images.env)
    warning = f"fuseoverlay: warning: {image}: is for linux/s390x, and this machine is linux/"
    assert (done.returncode, done.stderr.startswith(warning)) == (0, True), done.stderr
    assert done.stderr.count("\n") == 1
    images.unmount()
    done = images.cli.run(*words, "--platform", "s390x", env=images.env)
    assert (done.returncode, done.stderr) == (0, "")
    images.unmount()
    top = [Node("of-the-other", data=b"other")]
    make_image(image, BASE, top, ref=None, platform="linux/mips")
    word = "there are: linux/mips, linux/s390x"
    refused(images.cli, 7, *words, env=images.env, word=word)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="needs a machine that runs two kinds")
def test_image_for_the_same_machine(images: Images) -> None:
    for name in ("linux/386", "linux/amd64", "linux/amd64/v3"):
        path = make_image(images.base / name.replace("/", "-"), BASE, platform=name)
        done = images.cli.run("mount", path, images.mnt, env=images.env)
        assert (done.returncode, done.stderr) == (0, "")
        images.unmount()


def test_symbolic_links_have_no_mode(images: Images) -> None:
    """Whatever the archive says, also after a copy-up: as on any filesystem."""
    nodes = [Node(f"l{mode:o}", stat.S_IFLNK | mode, link="f") for mode in (0o644, 0o4755, 0)]
    images.mount("--upper", images.upper, image=make_image(images.base / "links", BASE, nodes))
    for node in nodes:
        path = images.mnt / str(node.name)
        assert stat.filemode(path.lstat().st_mode) == "lrwxrwxrwx"
        os.utime(path, (1, 1), follow_symlinks=False)
        path.rename(path.with_suffix(".moved"))
    modes = {entry.name: entry.stat(follow_symlinks=False).st_mode for entry in
             os.scandir(images.mnt) if entry.is_symlink()}  # fmt: skip
    assert modes == {f"{node.name}.moved": stat.S_IFLNK | 0o777 for node in nodes}
    images.unmount()


# Whose changes


@pytest.fixture
def other(images: Images) -> Path:
    """Another image, whose lowest layer is the first one's."""
    top = [directory("./", mode=0o711), Node("of-the-other", data=b"other")]
    return make_image(images.base / "other", BASE, top)


def test_changes_of_another_image_are_refused(images: Images, other: Path) -> None:
    images.mount("--upper", images.upper)
    (images.mnt / "gone").unlink()
    images.unmount()
    before = sorted(os.listdir(images.upper))
    assert os.listdir(images.upper / "diff") == ["gone"]
    word = f"{images.upper}: holds the changes of another image, {images.image}; name another"
    cli = images.cli
    for image, arguments in ((other, ()), (other, ("--read-only",))):
        words = ("mount", image, images.mnt, "--upper", images.upper, *arguments)
        refused(cli, UPPER, *words, env=images.env, word=word)
    assert len(images.unpacked()) == 1, "it unpacked what cannot be mounted"
    assert sorted(os.listdir(images.upper)) == before
    # The advice.
    (images.upper / "image").unlink()
    images.mount("--upper", images.upper, image=other)
    assert sorted(os.listdir(images.mnt)) == ["f", "linked", "linked2", "of-the-other"]
    images.unmount()
    word = f"another image, {other}"
    refused(cli, UPPER, "mount", images.image, images.mnt, "--upper", images.upper, env=images.env,
            word=word)  # fmt: skip


def test_the_same_image_by_another_name(images: Images) -> None:
    """What counts is what its layers are."""
    images.mount("--upper", images.upper)
    (images.mnt / "new").touch()
    images.unmount()
    images.mount("--upper", images.upper, image=make_image(images.base / "copy", BASE, ref="v2"))
    assert sorted(os.listdir(images.mnt)) == [*NAMES, "new"]
    images.unmount()


def test_an_empty_upper_can_be_taken(images: Images, other: Path) -> None:
    """As if it were new: nothing of the first image's is left."""
    images.mount("--upper", images.upper)
    (images.mnt / "linked").write_bytes(b"changed")
    os.setxattr(images.mnt, "user.mine", b"1")
    images.unmount()
    for path in (images.upper / "diff").iterdir():
        path.unlink()
    if MODE == "root":
        assert os.listdir(images.upper / "work" / "index")
    images.mount("--upper", images.upper, image=other)
    assert sorted(os.listdir(images.mnt)) == [*NAMES, "of-the-other"]
    assert os.stat(images.mnt).st_mode & 0o7777 == 0o711
    assert "user.mine" not in os.listxattr(images.mnt)
    assert (images.mnt / "linked2").read_bytes() == b"two names"
    (images.mnt / "gone").unlink()
    images.unmount()
    refused(images.cli, UPPER, "mount", images.image, images.mnt, "--upper", images.upper,
            env=images.env, word=f"another image, {other}")  # fmt: skip


def test_an_upper_of_which_nothing_is_noted(images: Images, other: Path) -> None:
    """Accepted, and from then on remembered."""
    images.mount("--upper", images.upper)
    (images.mnt / "new").touch()
    images.unmount()
    (images.upper / "image").unlink()
    images.mount("--upper", images.upper)
    assert "new" in os.listdir(images.mnt)
    images.unmount()
    refused(images.cli, UPPER, "mount", other, images.mnt, "--upper", images.upper,
            env=images.env, word=f"another image, {images.image}")  # fmt: skip


def test_a_store_that_was_unpacked_again(images: Images) -> None:
    """The layers are other files then: that names of a changed file come apart is said."""
    how = ("mount", images.image, images.mnt, "--upper", images.upper)
    images.mount("--upper", images.upper)
    (images.mnt / "linked").write_bytes(b"new")
    assert (images.mnt / "linked2").read_bytes() == b"new"
    images.unmount()
    again = images.cli.run(*how, env=images.env)
    assert (again.returncode, again.stderr) == (0, "")
    images.unmount()
    shutil.rmtree(images.data)
    later = images.cli.run(*how, env=images.env)
    assert later.returncode == 0, later.stderr
    assert "the lower directories are not those of the last mount" in later.stderr
    assert (images.mnt / "linked").read_bytes() == b"new"
    images.unmount()


# A check of the changes


def check(images: Images, *args: object, image: Path | None = None) -> tuple[int, str]:
    """What fsck says of them."""
    words = ("fsck", "--upper", images.upper, image or images.image, *args)
    done = images.cli.run(*words, env=images.env)
    return done.returncode, done.stdout + done.stderr


NOTES: dict[str, Callable[[Path], object]] = {
    "a fifo": os.mkfifo,
    "a directory": os.mkdir,
    "a device": lambda path: path.symlink_to("/dev/full"),
    "a socket": lambda path: socket.socket(socket.AF_UNIX).bind(os.path.relpath(path)),
    "empty": Path.touch,
    "no JSON": lambda path: path.write_text("{\0"),
    "deep": lambda path: path.write_text("[" * 200_000),
    "a list": lambda path: path.write_text("[]"),
    "without layers": lambda path: path.write_text('{"name": "x"}'),
    "layers that are text": lambda path: path.write_text('{"name": "x", "layers": "sha256:"}'),
    "a name that is none": lambda path: path.write_text('{"name": 1, "layers": []}'),
    "a number of many digits": lambda path: path.write_text("1" * 10_000),
    "large": lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_RDWR), 1 << 40),
}


@pytest.mark.parametrize("what", NOTES)
def test_note_that_is_none(images: Images, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is about the upper, not the image, and nobody waits for it."""
    (images.upper / "diff").mkdir(parents=True)
    monkeypatch.chdir(images.upper)
    NOTES[what](images.upper / "image")
    word = f"{images.upper}/image: does not say which image the changes are of; remove it if they "
    for words in (("mount", images.image, images.mnt), ("fsck", images.image)):
        refused(images.cli, UPPER, *words, "--upper", images.upper, env=images.env, word=word)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("victim")])
def test_what_is_in_the_notes_way(images: Images, make: Callable[[Path], object]) -> None:
    (images.upper / "diff").mkdir(parents=True)
    (images.upper / "victim").write_text("mine")
    make(images.upper / "image.new")
    images.mount("--upper", images.upper)
    images.unmount()
    assert (images.upper / "victim").read_text() == "mine"
    assert sorted(os.listdir(images.upper)) == ["diff", "image", "victim", "work"]


@pytest.mark.parametrize("name", ["oci-layout", "index.json", "manifest.json"])
def test_changes_are_not_kept_in_an_image(images: Images, name: str) -> None:
    images.upper.mkdir()
    (images.upper / name).touch()
    word = f"{images.upper}: this is an image, where no changes are kept; name another directory"
    for words in ((), ("--read-only",)):
        images.refused(UPPER, "--upper", images.upper, *words, word=word)
    words = ("fsck", "--upper", images.upper, images.image)
    refused(images.cli, UPPER, *words, env=images.env, word=word)
    assert os.listdir(images.upper) == [name]


def test_other_things_beside_the_changes(images: Images) -> None:
    """They are left alone."""
    images.upper.mkdir()
    (images.upper / "mine").touch()
    images.mount("--upper", images.upper)
    images.unmount()
    assert sorted(os.listdir(images.upper)) == ["diff", "image", "mine", "work"]


def test_fsck_of_an_images_changes(images: Images, other: Path) -> None:
    images.mount("--upper", images.upper)
    (images.mnt / "gone").unlink()
    (images.mnt / "new").touch()
    code, text = check(images)
    assert (code, "in use by another mount" in text) == (UPPER, True), text
    images.unmount()
    code, text = check(images)
    assert (code, text.startswith("clean")) == (0, True), text
    wrong = images.upper / "diff" / "nothing-below"
    make_whiteout(wrong)
    code, text = check(images)
    assert code == 10, text
    assert re.search(r"nothing-below.*\n1 problem, 0 repaired", text), text
    code, text = check(images, "--repair")
    assert (code, wrong.exists()) == (0, False), text
    assert is_whiteout(images.upper / "diff" / "gone")
    code, text = check(images, image=other)
    assert (code, "the changes of another image" in text) == (UPPER, True), text


def test_fsck_called_wrongly(images: Images) -> None:
    cli = images.cli
    how = {"env": images.env, "cwd": images.base}
    refused(cli, UPPER, "fsck", "--upper", "changes", "image", word="there are no changes", **how)
    assert not images.upper.exists()
    word = "image: this is an image; write fuseoverlay fsck --upper DIR image"
    refused(cli, USAGE, "fsck", "image", word=word, **how)
    words = ("fsck", "--upper", "changes", "image", "-o", "lowerdir=l0")
    refused(cli, USAGE, *words, word="leave one of the two out", **how)
    refused(cli, 7, "fsck", "--upper", "changes", "./missing", word="there is no such file", **how)
