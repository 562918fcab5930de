"""Whiteouts and opaque directories of every dialect that layers may hold."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.dialects import WHITEOUTS, xattr_whiteout
from tests.helpers.mounts import IMPL, MODE, Space, differs, fails, make_whiteout, set_overlay_xattr

NAMESPACES = ["user.overlay.", "user.fuseoverlayfs."] + ["trusted.overlay."] * (MODE == "root")


@pytest.fixture(params=[pytest.param(name, marks=differs("dialects")) for name in WHITEOUTS])
def hide(request: pytest.FixtureRequest) -> Callable[[Path], None]:
    """Makes a whiteout in one of the dialects."""
    return WHITEOUTS[request.param]


@pytest.fixture
def layers(space: Space) -> Space:
    """Two lowers; the bottom one has a file, a full directory and a link."""
    space.kernel_reads = False
    bottom = space.add_lower()
    (bottom / "f").write_bytes(b"file")
    (bottom / "g").write_bytes(b"other")
    (bottom / "d" / "sub").mkdir(parents=True)
    (bottom / "d" / "child").write_bytes(b"child")
    (bottom / "d" / "sub" / "leaf").write_bytes(b"leaf")
    os.symlink("f", bottom / "s")
    return space


def test_whiteouts_the_kernel_knows(layers: Space) -> None:
    """Dialects that the kernel reads as well, not mixed."""
    make_whiteout(layers.lower / "f")
    make_whiteout(layers.lower / "d")
    make_whiteout(layers.lower / "never was")
    with layers.mounted() as mnt:
        assert sorted(os.listdir(mnt)) == ["g", "s"]
        with fails(errno.ENOENT):
            os.stat(mnt / "f")
        with fails(errno.ENOENT):
            os.stat(mnt / "d" / "child")


def test_xattr_whiteouts_the_kernel_knows(layers: Space) -> None:
    (layers.lower / "d").mkdir()
    xattr_whiteout(layers.lower / "d" / "child")
    with layers.mounted() as mnt:
        assert os.listdir(mnt / "d") == ["sub"]
        assert (mnt / "d" / "sub" / "leaf").read_bytes() == b"leaf"
        (mnt / "d" / "child").write_bytes(b"new")
        assert sorted(os.listdir(mnt / "d")) == ["child", "sub"]


def test_file_and_directory_and_link(layers: Space, hide: Callable) -> None:
    for name in ("f", "d", "s"):
        hide(layers.lower / name)
    with layers.mounted() as mnt:
        assert os.listdir(mnt) == ["g"]
        for name in ("f", "d", "s", ".wh.f", ".wh.d"):
            with fails(errno.ENOENT):
                os.lstat(mnt / name)
        with fails(errno.ENOENT):
            os.stat(mnt / "d" / "child")


def test_below_a_directory(layers: Space, hide: Callable) -> None:
    (layers.lower / "d" / "sub").mkdir(parents=True)
    hide(layers.lower / "d" / "child")
    hide(layers.lower / "d" / "sub" / "leaf")
    with layers.mounted() as mnt:
        assert os.listdir(mnt / "d") == ["sub"]
        assert os.listdir(mnt / "d" / "sub") == []
        os.rmdir(mnt / "d" / "sub")
        os.rmdir(mnt / "d")
        assert not (mnt / "d").exists()


def test_make_the_name_again(layers: Space, hide: Callable) -> None:
    hide(layers.lower / "f")
    hide(layers.lower / "d")
    with layers.mounted() as mnt:
        (mnt / "f").write_bytes(b"new")
        (mnt / "d").mkdir()
        assert (mnt / "f").read_bytes() == b"new"
        assert os.listdir(mnt / "d") == []
        (mnt / "d" / "child").write_bytes(b"mine")
        os.unlink(mnt / "f")
        assert sorted(os.listdir(mnt)) == ["d", "g", "s"]
        assert os.listdir(mnt / "d") == ["child"]


def test_upper_whiteout(layers: Space, hide: Callable) -> None:
    """Whiteouts in the upper of an earlier mount, by any program."""
    hide(layers.upper / "f")
    (layers.upper / "d").mkdir()
    hide(layers.upper / "d" / "child")
    with layers.mounted() as mnt:
        assert sorted(os.listdir(mnt)) == ["d", "g", "s"]
        assert os.listdir(mnt / "d") == ["sub"]
        (mnt / "f").write_bytes(b"again")
        os.mkdir(mnt / "d" / "child")
        assert (mnt / "f").read_bytes() == b"again"
        assert os.listdir(mnt / "d" / "child") == []
        os.rename(mnt / "g", mnt / "d" / "g")
        shutil.rmtree(mnt / "d")
        assert sorted(os.listdir(mnt)) == ["f", "s"]


def test_whiteout_over_a_whiteout(layers: Space, hide: Callable) -> None:
    middle = layers.base / "middle"
    middle.mkdir()
    layers.lowers.insert(1, middle)
    hide(middle / "f")
    (layers.lower / "f").write_bytes(b"top")
    (layers.upper / "x").touch()
    with layers.mounted() as mnt:
        assert (mnt / "f").read_bytes() == b"top"
        os.unlink(mnt / "f")
        assert not (mnt / "f").exists()


def test_top_whiteout_hides_the_middle(layers: Space, hide: Callable) -> None:
    middle = layers.base / "middle"
    (middle / "d").mkdir(parents=True)
    (middle / "d" / "in middle").touch()
    layers.lowers.insert(1, middle)
    hide(layers.lower / "d")
    with layers.mounted() as mnt:
        assert not (mnt / "d").exists()


def test_in_a_lower_only_directory(layers: Space, hide: Callable) -> None:
    """A whiteout that hides nothing is not listed and not found."""
    (layers.lower / "only").mkdir()
    hide(layers.lower / "only" / "ghost")
    (layers.lower / "only" / "real").touch()
    hide(layers.lower / "ghost")
    with layers.mounted() as mnt:
        assert os.listdir(mnt / "only") == ["real"]
        assert "ghost" not in os.listdir(mnt)
        with fails(errno.ENOENT):
            os.stat(mnt / "only" / "ghost")
        (mnt / "only" / "ghost").mkdir()
        os.rmdir(mnt / "only" / "ghost")
        os.unlink(mnt / "only" / "real")
        os.rmdir(mnt / "only")


def test_in_an_opaque_directory(layers: Space, hide: Callable) -> None:
    (layers.lower / "d").mkdir()
    hide(layers.lower / "d" / "child")
    set_overlay_xattr(layers.lower / "d", "opaque", b"y")
    (layers.lower / "d" / "kept").touch()
    with layers.mounted() as mnt:
        listed = os.listdir(mnt / "d")
        # "opaque=y" leaves no room for the mark of xattr whiteouts; there the kernel lists them.
        assert [name for name in listed if name != "child"] == ["kept"]
        if hide is not xattr_whiteout:
            assert listed == ["kept"]


@differs("namespaces")
@pytest.mark.parametrize("namespace", NAMESPACES)
def test_opaque_directories_of_every_namespace(layers: Space, namespace: str) -> None:
    layers.extra = ("userxattr",)
    (layers.lower / "d").mkdir()
    (layers.lower / "d" / "new").touch()
    os.setxattr(layers.lower / "d", namespace + "opaque", b"y")
    with layers.mounted() as mnt:
        assert os.listdir(mnt / "d") == ["new"]
        with fails(errno.ENOENT):
            os.stat(mnt / "d" / "child")
        assert os.listxattr(mnt / "d") == []
        (mnt / "d" / "child").write_bytes(b"mine")
        assert sorted(os.listdir(mnt / "d")) == ["child", "new"]


@differs("namespaces")
@pytest.mark.parametrize("namespace", NAMESPACES)
def test_xattr_whiteouts_of_every_namespace(layers: Space, namespace: str) -> None:
    layers.extra = ("userxattr",)
    (layers.lower / "d").mkdir()
    (layers.lower / "d" / "child").touch()
    os.setxattr(layers.lower / "d" / "child", namespace + "whiteout", b"y")
    os.setxattr(layers.lower / "d", namespace + "opaque", b"x")
    with layers.mounted() as mnt:
        assert os.listdir(mnt / "d") == ["sub"]
        with fails(errno.ENOENT):
            os.stat(mnt / "d" / "child")


@differs("hidden-whiteouts")
def test_xattr_whiteout_in_an_unmarked_directory(layers: Space) -> None:
    """The kernel lists it, but does not find it; here listing and look-up agree."""
    (layers.lower / "d").mkdir()
    (layers.lower / "d" / "child").touch()
    set_overlay_xattr(layers.lower / "d" / "child", "whiteout", b"y")
    with layers.mounted() as mnt:
        listed = sorted(os.listdir(mnt / "d"))
        found = [name for name in ("child", "sub") if (mnt / "d" / name).exists()]
        assert listed == found


def test_full_file_with_the_attribute_is_a_file(layers: Space) -> None:
    (layers.lower / "d").mkdir()
    xattr_whiteout(layers.lower / "d" / "child")
    (layers.lower / "d" / "child").write_bytes(b"not empty")
    with layers.mounted() as mnt:
        assert (mnt / "d" / "child").read_bytes() == b"not empty"


def test_opaque_with_other_values_is_not_opaque(layers: Space) -> None:
    (layers.lower / "d").mkdir()
    set_overlay_xattr(layers.lower / "d", "opaque", b"n")
    with layers.mounted() as mnt:
        assert sorted(os.listdir(mnt / "d")) == ["child", "sub"]


@differs("dialects")
def test_oci_opaque(layers: Space) -> None:
    (layers.lower / "d").mkdir()
    (layers.lower / "d" / ".wh..wh..opq").touch()
    (layers.lower / "d" / "new").touch()
    with layers.mounted() as mnt:
        assert os.listdir(mnt / "d") == ["new"]
        for name in ("child", "sub", ".wh..wh..opq"):
            with fails(errno.ENOENT):
                os.stat(mnt / "d" / name)
        (mnt / "d" / "child").write_bytes(b"mine")
        assert sorted(os.listdir(mnt / "d")) == ["child", "new"]
        shutil.rmtree(mnt / "d")
        (mnt / "d").mkdir()
        assert os.listdir(mnt / "d") == []


@differs("dialects")
def test_oci_opaque_root(layers: Space) -> None:
    (layers.lower / ".wh..wh..opq").touch()
    (layers.lower / "only this").touch()
    with layers.mounted() as mnt:
        assert os.listdir(mnt) == ["only this"]
        (mnt / "f").write_bytes(b"new")
        assert sorted(os.listdir(mnt)) == ["f", "only this"]


@differs("dialects")
def test_oci_whiteout_acts_on_lower_layers_only(layers: Space) -> None:
    """`.wh.NAME` beside NAME: NAME in its own layer remains, those in layers below are hidden."""
    (layers.lower / "f").write_bytes(b"stays")
    (layers.lower / ".wh.f").touch()
    (layers.lower / "d").mkdir()
    (layers.lower / "d" / "new").touch()
    (layers.lower / ".wh.d").touch()
    with layers.mounted() as mnt:
        assert (mnt / "f").read_bytes() == b"stays"
        assert os.listdir(mnt / "d") == ["new"]
        assert ".wh.f" not in os.listdir(mnt)
        os.unlink(mnt / "f")
        assert not (mnt / "f").exists()
        os.chmod(mnt / "d", 0o700)
        assert os.listdir(mnt / "d") == ["new"]


@differs("dialects")
def test_oci_whiteout_in_the_upper_beside_the_name(layers: Space) -> None:
    (layers.upper / "d").mkdir()
    (layers.upper / "d" / "new").touch()
    (layers.upper / ".wh.d").touch()
    with layers.mounted() as mnt:
        assert os.listdir(mnt / "d") == ["new"]
        shutil.rmtree(mnt / "d")
        assert not (mnt / "d").exists()
        (mnt / "d").mkdir()
        assert os.listdir(mnt / "d") == []


@differs("dialects")
def test_oci_housekeeping_names_are_never_shown(layers: Space) -> None:
    for name in (".wh..wh.plnk", ".wh..wh.aufs", ".wh..wh.orph"):
        (layers.lower / name).touch()
    with layers.mounted() as mnt:
        assert sorted(os.listdir(mnt)) == ["d", "f", "g", "s"]


@differs("dialects")
def test_oci_names_that_are_nearly_whiteouts(layers: Space) -> None:
    for name in (".wh", ".whf", "x.wh.f", ".wh"):
        (layers.lower / name).write_bytes(b"a plain file")
    with layers.mounted() as mnt:
        assert {".wh", ".whf", "x.wh.f", "f"} <= set(os.listdir(mnt))
        assert (mnt / "x.wh.f").read_bytes() == b"a plain file"


@differs("dialects")
def test_names_like_whiteouts_cannot_be_made(layers: Space) -> None:
    """They would hide something after a remount, so they are refused."""
    with layers.mounted() as mnt:
        for make in (
            lambda: (mnt / ".wh.f").touch(),
            lambda: os.mkdir(mnt / ".wh.d"),
            lambda: os.symlink("x", mnt / ".wh.g"),
            lambda: os.rename(mnt / "g", mnt / ".wh.f"),
            lambda: os.link(mnt / "g", mnt / ".wh..wh..opq"),
        ):
            with fails(errno.EINVAL, errno.EPERM, errno.ENAMETOOLONG, errno.EACCES):
                make()
        assert sorted(os.listdir(mnt)) == ["d", "f", "g", "s"]


@differs("dialects")
def test_all_dialects_in_one_mount(layers: Space) -> None:
    for index, (name, hide) in enumerate(WHITEOUTS.items()):
        layer = layers.base / f"with-{name}"
        layer.mkdir()
        (layers.lowers[-1] / f"gone{index}").touch()
        (layers.lowers[-1] / f"dir{index}" / "gone").mkdir(parents=True)
        (layer / f"dir{index}").mkdir()
        layers.lowers.insert(0, layer)
        hide(layer / f"gone{index}")
        hide(layer / f"dir{index}" / "gone")
    with layers.mounted() as mnt:
        assert sorted(os.listdir(mnt)) == ["d", "dir0", "dir1", "dir2", "f", "g", "s"]
        for index in range(3):
            assert os.listdir(mnt / f"dir{index}") == []


def test_device_other_than_0_0_is_no_whiteout(layers: Space) -> None:
    if MODE != "root":
        pytest.skip("needs the superuser")
    os.mknod(layers.lower / "f", stat.S_IFCHR | 0o600, os.makedev(0, 1))
    with layers.mounted() as mnt:
        assert stat.S_ISCHR(os.lstat(mnt / "f").st_mode)


@pytest.mark.parametrize("where", ["upper", "lower"])
def test_attribute_whiteout_where_nothing_says_so(space: Space, where: str) -> None:
    """In a directory without the mark; the kernel lists it, and finds nothing at its name."""
    bottom = space.add_lower()
    top = space.upper if where == "upper" else space.lower
    for layer in (top, bottom):
        (layer / "d").mkdir()
    for name in ("hidden", "again", "listed"):
        (bottom / "d" / name).write_bytes(b"below")
        (top / "d" / name).touch()
        set_overlay_xattr(top / "d" / name, "whiteout", b"y")
    (top / "d" / "alone").touch()
    set_overlay_xattr(top / "d" / "alone", "whiteout", b"y")
    (top / "d" / "empty").touch()
    with space.mounted(settle=False) as mnt:
        for name in ("hidden", "again", "alone"):
            with fails(errno.ENOENT):
                os.stat(mnt / "d" / name)
        with fails(errno.ENOENT):
            os.unlink(mnt / "d" / "hidden")
        assert os.stat(mnt / "d" / "empty").st_size == 0
        with open(mnt / "d" / "again", "x") as stream:
            stream.write("new")
        os.mkdir(mnt / "d" / "alone")
        if IMPL == "fuse":
            assert sorted(os.listdir(mnt / "d")) == ["again", "alone", "empty"]
        space.remount()
        assert (mnt / "d" / "again").read_text() == "new"
        with fails(errno.ENOENT):
            os.stat(mnt / "d" / "hidden")
        os.unlink(mnt / "d" / "again")
        os.rmdir(mnt / "d" / "alone")
        space.remount()
        for name in ("hidden", "again", "listed", "alone"):
            with fails(errno.ENOENT):
                os.stat(mnt / "d" / name)
