"""Directories as layers, and what is mounted: read as the mount reads them."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest

from fuseoverlay.store.root import Store
from fuseoverlay.view import opened
from tests.commands.conftest import Cli
from tests.helpers import tree
from tests.helpers.mounts import MODE, fuse_only, make_whiteout, set_overlay_xattr
from tests.view.conftest import Painter
from tests.view.test_look import LAYERS, STEPS
from tests.view.test_same_as_mount import IGNORED, recorded

pytestmark = fuse_only

#: With the index of hard links, which lies in the work directory, a mount shows more than the
#: layers hold.
FEATURES = "redirect_dir=on,metacopy=on,index=off"


def seen(lowers: Sequence[Path], upper: Path | None = None) -> tree.Tree:
    """What the indexes of these directories say, top first."""
    said: list[str] = []
    paths = [os.fsencode(path) for path in lowers]
    above = os.fsencode(upper) if upper else None
    with opened.directories("stack", paths, above, said.append) as view:
        found = recorded(view, view.stack)
    assert not said
    return found


def mounted(cli: Cli, lowers: Sequence[Path], options: str = "") -> tree.Tree:
    cli.said("mount", "-o", f"lowerdir={':'.join(map(str, lowers))}{options}", cli.mnt)
    try:
        return tree.record(str(cli.mnt))
    finally:
        cli.said("unmount", cli.mnt)


def lower(base: Path, name: str = "lower") -> Path:
    """A layer with a bit of everything."""
    root = base / name
    (root / "d/sub").mkdir(parents=True)
    (root / "d/sub/file").write_text("below")
    (root / "d/other").write_text("other")
    (root / "gone").mkdir()
    (root / "gone/x").write_text("x" * 100)
    (root / "plain").write_text("plain")
    os.link(root / "plain", root / "again")
    os.symlink("plain", root / "link")
    os.mkfifo(root / "pipe")
    return root


def test_dialects_of_whiteouts(cli: Cli, tmp_path: Path) -> None:
    """A device 0:0, an attribute, a .wh. file; opaque by attribute and by .wh..wh..opq."""
    bottom = lower(tmp_path)
    top = tmp_path / "top"
    (top / "d").mkdir(parents=True)
    make_whiteout(top / "gone")
    (top / "d/.wh.other").touch()
    (top / ".wh.link").touch()
    (top / "plain").touch()
    os.setxattr(top / "plain", b"user.overlay.whiteout", b"y")
    os.setxattr(top, b"user.overlay.opaque", b"x")
    set_overlay_xattr(top / "d", "opaque", b"y")
    (top / "d/new").write_text("new")
    assert not tree.compare(mounted(cli, [top, bottom], ",userxattr"), seen([top, bottom]))
    third = tmp_path / "third"
    (third / "d").mkdir(parents=True)
    (third / "d/.wh..wh..opq").touch()
    found = seen([third, top, bottom])
    assert not tree.compare(mounted(cli, [third, top, bottom], ",userxattr"), found)
    assert sorted(found) == [b".", b"again", b"d", b"pipe"]


def changed(cli: Cli, bottom: Path) -> tuple[Path, Path]:
    """Mount with an upper, and change what leaves marks; returns the upper and the work
    directory. The mount stays."""
    upper, work = cli.base / "upper", cli.base / "work"
    upper.mkdir()
    work.mkdir()
    options = f"lowerdir={bottom},upperdir={upper},workdir={work},{FEATURES}"
    cli.said("mount", "-o", options, cli.mnt)
    os.rename(cli.mnt / "d", cli.mnt / "moved")
    os.chmod(cli.mnt / "moved/sub/file", 0o600)
    shutil.rmtree(cli.mnt / "gone")
    (cli.mnt / "gone").mkdir()
    (cli.mnt / "gone/fresh").write_text("fresh")
    os.unlink(cli.mnt / "link")
    (cli.mnt / "again").write_text("changed")
    return upper, work


def test_an_upper_of_a_mount(cli: Cli, tmp_path: Path) -> None:
    """A renamed directory goes on elsewhere below; of a file only the mode was copied up."""
    bottom = lower(tmp_path)
    upper, _ = changed(cli, bottom)
    expected = tree.record(str(cli.mnt))
    assert not tree.compare(expected, seen([bottom], upper), ignore={"nlink", "same_as"})
    assert cli.said("cat", cli.mnt, "/moved/sub/file") == "below"
    rows = cli.said("layers", "--format", "{{.Number}} {{.CreatedBy}}", cli.mnt).splitlines()
    assert rows == ["1 ", "2 changes of the mount"]
    cli.said("unmount", cli.mnt)
    assert not tree.compare(mounted(cli, [upper, bottom], ",metacopy=on"), seen([upper, bottom]))


def test_what_a_mount_shows(cli: Cli, tmp_path: Path) -> None:
    bottom = lower(tmp_path)
    changed(cli, bottom)
    assert cli.said("ls", cli.mnt).split() == ["again", "gone", "moved", "pipe", "plain"]
    done = cli.run("which", "--json", cli.mnt, "/gone/x", "/gone/fresh")
    first, second = map(json.loads, done.stdout.splitlines())
    assert (first["shownFrom"], [item["event"] for item in first["life"]]) == (
        None, ["adds", "makes opaque"],
    )  # fmt: skip
    assert second["shownFrom"] == 2
    lines = cli.said("which", cli.mnt, "/moved/other", "/moved").splitlines()
    assert lines == [
        "/moved/other",
        "  shows  layer 2 (changes of the mount), renames /d to /moved: 5B" + lines[1][-18:],
        "/moved",
        "  shows  layer 2 (changes of the mount), renames /d to /moved",
    ]
    # What was moved is not wasted.
    (found,) = [
        json.loads(line)["reclaimable"]
        for line in cli.said("layers", "--json", cli.mnt).splitlines()[:1]
    ]
    assert found == 100
    assert (
        cli.said("find", cli.mnt, "/moved/*")
        .splitlines()[0]
        .endswith(" /d/other  [shows as /moved/other]")
    )
    lines = cli.said("tree", "--layer", "2", "--changes", cli.mnt).splitlines()
    assert "├── M gone" not in lines and any(line.endswith("D link -> plain") for line in lines)
    assert any(line.endswith("A fresh") for line in lines)


def test_another_directory(cli: Cli, tmp_path: Path) -> None:
    bottom = lower(tmp_path)
    cli.refused(7, f"write -o lowerdir={bottom}", "ls", bottom)
    assert cli.said("ls", "-o", f"lowerdir={bottom}", "/d").split() == ["other", "sub"]
    cli.refused(2, "-o without lowerdir=", "ls", "-o", "metacopy=on", "/d")
    cli.refused(3, "does not exist", "ls", "-o", f"lowerdir={tmp_path}/none")


@pytest.mark.skipif(MODE != "user", reason="root reads everything")
def test_what_cannot_be_read(cli: Cli, tmp_path: Path) -> None:
    """The rest is shown, and a warning says what is missing."""
    bottom = lower(tmp_path)
    os.chmod(bottom / "d/sub", 0)
    try:
        done = cli.run("ls", "-R", "-o", f"lowerdir={bottom}")
    finally:
        os.chmod(bottom / "d/sub", 0o755)
    assert done.returncode == 0 and "d/sub: cannot be read: Permission denied" in done.stderr
    assert "d/other" in done.stdout.split() and "d/sub" in done.stdout.split()


def test_equal_contents_without_digests(cli: Cli, tmp_path: Path) -> None:
    """Contents are compared where no archive has digested them."""
    bottom, top = lower(tmp_path), tmp_path / "top"
    top.mkdir()
    for name, text in (("plain", "plain"), ("again", "nialp")):
        (top / name).write_text(text)
        os.chmod(top / name, stat.S_IMODE(os.stat(bottom / name).st_mode))
    lines = cli.said("tree", "--layer", "2", "--changes", "-o", f"lowerdir={top}:{bottom}")
    assert "├── M again\n" in lines and "└── = plain\n" in lines


def test_a_mount_of_an_image(cli: Cli, paint: Painter) -> None:
    """Its layers have their commands, and the indexes that the store has of them are used."""
    image = paint("image", *LAYERS, steps=STEPS)
    cli.said("layers", image)
    cli.said("mount", "--upper", "kept", image, cli.mnt)
    (cli.mnt / "etc/added").write_text("new")
    os.unlink(cli.mnt / "kept")
    rows = cli.said("layers", "--format", "{{.ID}} {{.Added}} {{.CreatedBy}}", cli.mnt)
    *layers, top = rows.splitlines()
    assert [line.split(maxsplit=2)[2] for line in layers] == STEPS
    assert top.endswith(" 1 changes of the mount")
    plain = cli.said("layers", "--format", "{{.ID}} {{.Added}} {{.CreatedBy}}", image)
    assert plain.splitlines() == layers
    expected = tree.record(str(cli.mnt))
    said: list[str] = []
    form = "{{.MountPoint}}\t{{.LowerDir}}\t{{.UpperDir}}"
    (mount,) = (line for line in cli.said("mounts", "--format", form).splitlines()
                if line.startswith(f"{cli.mnt}\t"))  # fmt: skip
    _, lowers, upper = os.fsencode(mount).split(b"\t")
    store = Store(cli.root)
    with opened.mounted(store, "mnt", lowers.split(b":"), upper, None, said.append) as view:
        assert view.stack.layers[0].data[1:] and any(view.stack.layers[0].data), "not the index"
        found = recorded(view, view.stack)
    assert not said
    assert not tree.compare(expected, found, ignore=IGNORED)
