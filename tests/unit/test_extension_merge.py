"""The extension merges directories as the Python code does: the same names, order and directories
behind them, whatever the layers hold."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuseoverlay.layers import redirect
from fuseoverlay.layers.index import Index
from fuseoverlay.layers.layer import RealDir
from fuseoverlay.layers.merge import at_once, scan_nowait
from fuseoverlay.layers.stack import LayerStack
from fuseoverlay.native import extension
from tests.helpers.mounts import MODE

pytestmark = pytest.mark.skipif(bool(extension.absence()), reason="compares with the extension")

_NAMES: Final = ("a", "ü", "x" * 200)
_PLAIN: tuple[str, ...] = ("directory", "file", "char 0:0", "symlink", "fifo")
if MODE == "root":
    _PLAIN += ("char 1:3",)
#: What the extension leaves to Python.
_SPECIAL: Final = (".wh.", "xattr whiteout")
_MARKS: Final = ("opaque=y", "opaque=x", ".wh..wh..opq", "redirect", "large")

#: One layer's part of a directory: name -> kind, and a mark. Most are plain: otherwise the
#: extension would hardly ever get two layers in a row.
_entries = st.fixed_dictionaries(
    {},
    optional={name: st.sampled_from(_PLAIN * 3 + _SPECIAL) for name in _NAMES},
)
_layer = st.none() | st.tuples(_entries, st.none() | st.sampled_from((None,) * 9 + _MARKS))
_layers = st.lists(_layer, min_size=2, max_size=6)
_thorough = settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
Layers = list[tuple[dict[str, str], str | None] | None]


def _make(path: Path, kind: str) -> None:
    if kind == "directory":
        path.mkdir()
    elif kind == "symlink":
        path.symlink_to("..")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind.startswith("char "):
        major, minor = kind[5:].split(":")
        os.mknod(path, stat.S_IFCHR, os.makedev(int(major), int(minor)))
    elif kind == ".wh.":
        path.with_name(f".wh.{path.name}").touch()
    else:
        path.touch()
        if kind == "xattr whiteout":
            os.setxattr(path, "user.overlay.whiteout", b"y")


def _fill(directory: Path, entries: dict[str, str], mark: str | None) -> None:
    directory.mkdir()
    for name, kind in entries.items():
        _make(directory / name, kind)
    if mark == ".wh..wh..opq":
        (directory / mark).touch()
    elif mark == "large":
        # More than the extension reads of one directory.
        for number in range(150):
            (directory / f"{number:0250}").touch()
    elif mark == "redirect":
        os.setxattr(directory, "user.overlay.redirect", b"elsewhere")
    elif mark is not None:
        os.setxattr(directory, "user.overlay.opaque", mark[-1:].encode())


@contextlib.contextmanager
def _stack(layers: Layers) -> Iterator[tuple[LayerStack, RealDir | None, tuple[RealDir, ...]]]:
    """The layers, the first of them an upper; `d` of the upper; those of the lowers."""
    base = Path(tempfile.mkdtemp())
    try:
        roots = []
        for number, layer in enumerate(layers):
            root = base / f"{number}"
            root.mkdir()
            if layer is not None:
                _fill(root / "d", *layer)
            roots.append(os.fsencode(root))
        with LayerStack(roots[0], roots[1:]) as stack:
            reals = [
                RealDir(at, at.root, b"d")
                for at, layer in zip(stack.all(), layers, strict=True)
                if layer is not None
            ]
            upper = reals.pop(0) if layers[0] is not None else None
            yield stack, upper, tuple(reals)
    finally:
        shutil.rmtree(base)


def _without_extension() -> contextlib.AbstractContextManager[object]:
    return mock.patch.object(extension, "_extension", None)


def _all_of(index: Index) -> tuple[object, ...]:
    return (
        list(index.visible.items()), list(index.lower.items()), index.upper, index.masks,
        index.wh,
    )  # fmt: skip


@_thorough
@given(_layers)
def test_same_index(layers: Layers) -> None:
    with _stack(layers) as (stack, upper, lowers):
        with _without_extension():
            expected, used = scan_nowait(stack, upper, lowers)
        found, counting = scan_nowait(stack, upper, lowers)
        assert (_all_of(found), counting) == (_all_of(expected), used)


@_thorough
@given(_layers)
def test_at_once_needs_no_marks(layers: Layers) -> None:
    """`at_once` gives the same result as reading the marks and then scanning."""
    with _stack(layers) as (stack, upper, lowers):
        if upper is None and not lowers:
            return
        index = at_once(stack, upper, lowers)
        with _without_extension():
            marks, counting = redirect.merged(stack, (), upper, lowers)
            expected, used = scan_nowait(stack, upper, counting)
        if index is None:
            special = {*_SPECIAL, *_MARKS}
            assert any(layer and {*layer[0].values(), layer[1]} & special for layer in layers)
        else:
            assert (marks, counting, used) == (redirect.NONE, lowers, len(lowers))
            assert _all_of(index) == _all_of(expected)


def test_a_path_that_is_too_long_is_pythons(tmp_path: Path) -> None:
    """Python handles it, errors included."""
    with LayerStack(None, [os.fsencode(tmp_path)]) as stack:
        real = stack.lowers[0].root
        for _ in range(20):
            fd = stack.fd(real)
            os.mkdir(b"d" * 255, dir_fd=fd)
            real = RealDir(real.layer, real, b"d" * 255)
    # A stack that has none of them open.
    with LayerStack(None, [os.fsencode(tmp_path)]) as stack:
        real = stack.lowers[0].root
        for _ in range(20):
            real = RealDir(real.layer, real, b"d" * 255)
        assert at_once(stack, None, (real,)) is None
        index, _ = scan_nowait(stack, None, (real,))
        assert len(index) == 0
        gone = RealDir(real.layer, stack.lowers[0].root, b"gone")
        assert at_once(stack, None, (gone,)) is None
        with pytest.raises(FileNotFoundError):
            scan_nowait(stack, None, (gone,))


def test_no_link_leads_out(tmp_path: Path) -> None:
    (tmp_path / "layer").mkdir()
    (tmp_path / "secret" / "d").mkdir(parents=True)
    (tmp_path / "layer" / "link").symlink_to(tmp_path / "secret")
    with LayerStack(None, [os.fsencode(tmp_path / "layer")]) as stack:
        root = stack.lowers[0].root
        link = RealDir(root.layer, root, b"link")
        for real in (link, RealDir(root.layer, link, b"d")):
            assert at_once(stack, None, (real,)) is None
            with pytest.raises(OSError, match=r"Not a directory|symbolic links"):
                stack.fd(real)


def test_many_entries_are_read_in_steps(tmp_path: Path) -> None:
    """Otherwise other requests would have to wait for them."""
    roots = [tmp_path / f"{number}" for number in range(30)]
    for root in roots:
        root.mkdir()
        for name in range(120):
            (root / f"{name}").touch()
    with LayerStack(None, [os.fsencode(root) for root in roots]) as stack:
        lowers = tuple(layer.root for layer in stack.lowers)
        assert extension.merge({}, set(), lowers, 0, stack.descriptors, 500) == (5, True)
        assert at_once(stack, None, lowers) is None
        index, used = scan_nowait(stack, None, lowers)
        assert (len(index), used) == (120, 30)
        assert set(index.lower.values()) == {lowers[0]}
