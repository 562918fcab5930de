"""Compare the index of a layer with the layer unpacked on disk."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fuseoverlay.errors import FuseOverlayError
from fuseoverlay.layers import whiteout, xattrs
from fuseoverlay.oci.nodes import Directory, Node, Tree

#: Seconds that every file system keeps.
_KEPT = range(-(1 << 31), 1 << 32)
_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW

#: What is compared of each path. Numbers of inodes are compared by the names that share them.
Described = dict[bytes, tuple[Any, ...]]


def agree(layer: Path, tree: Tree, *, noted: bool = False) -> int:
    """Assert that the unpacked `layer` is what the index says; returns the number of names. If
    owners are only noted in it, the names are compared, and what has which."""
    found, expected = on_disk(layer), in_tree(tree)
    assert found.keys() == expected.keys()
    for path, seen in found.items():
        # The last two: the names of a file.
        assert expected[path][-2:] == seen[-2:], path
        assert noted or expected[path] == seen, path
    return len(found)


def outcome(run: Callable[[], Tree]) -> Tree | str:
    """What `run` returns, or the text of its error."""
    try:
        return run()
    except FuseOverlayError as exc:
        return str(exc)


def in_tree(tree: Tree) -> Described:
    """What the index says."""
    found: Described = {b"": _described(tree.root)}
    names: dict[int, list[bytes]] = {}
    for path, directory, children in tree.walk():
        assert tree.find(path) is directory
        assert [name for name, _ in children] == sorted(directory.children)
        for name, node in children:
            whole = b"/".join((*path, name))
            assert tree.find((*path, name)) is node
            found[whole] = _described(node)
            names.setdefault(node.ino, []).append(whole)
            assert node.nlink == 1 or not isinstance(node, Directory)
    return _with_names(found, names)


def _with_names(found: Described, names: dict[int, list[bytes]]) -> Described:
    for paths in names.values():
        for path in paths:
            found[path] += (min(paths), len(paths))
    return found


def _described(node: Node) -> tuple[Any, ...]:
    assert -(1 << 63) <= node.mtime // 10**9 < 1 << 63
    if node.is_whiteout:
        return ("whiteout",)
    more: tuple[Any, ...] = (node.digest, node.nlink)
    if isinstance(node, Directory):
        assert (node.size, node.digest) == (0, None)
        more = node.opaque, node.implied
    plain = (node.mode, node.uid, node.gid, node.size, _time(node.mtime), node.rdev, node.link)
    return (*plain, dict(node.xattrs), *more)


def _time(ns: int) -> int | None:
    return ns if ns // 10**9 in _KEPT else None


def on_disk(layer: Path) -> Described:
    """What a walk finds."""
    found: Described = {}
    names: dict[int, list[bytes]] = {}
    root = os.open(layer, _DIR)
    try:
        found[b""] = _seen_directory(root)
        waiting = [b""]
        while waiting:
            path = waiting.pop()
            # From the root on: the whole path of a deep file is too long for a system call.
            fd = os.open(path or b".", _DIR, dir_fd=root)
            try:
                for name, number, described in _entries(fd):
                    whole = path + b"/" + name if path else name
                    found[whole] = described
                    names.setdefault(number, []).append(whole)
                    if described[0] != "whiteout" and stat.S_ISDIR(described[0]):
                        waiting.append(whole)
            finally:
                os.close(fd)
    finally:
        os.close(root)
    return _with_names(found, names)


def _entries(fd: int) -> Iterator[tuple[bytes, int, tuple[Any, ...]]]:
    for name in map(os.fsencode, os.listdir(fd)):
        if name == whiteout.WH_OPAQUE:
            continue
        st = os.stat(name, dir_fd=fd, follow_symlinks=False)
        hidden = whiteout.oci_target(name)
        if (
            hidden is not None
            or whiteout.is_char_whiteout(st)
            or whiteout.is_xattr_whiteout(fd, name, xattrs.NAMESPACES, st)
        ):
            yield hidden or name, st.st_ino, ("whiteout",)
        else:
            yield name, st.st_ino, _seen(fd, name, st)


def _seen(fd: int, name: bytes, st: os.stat_result) -> tuple[Any, ...]:
    path = b"/proc/self/fd/%d/%s" % (fd, name)
    if stat.S_ISDIR(st.st_mode):
        child = os.open(name, _DIR, dir_fd=fd)
        try:
            return _seen_directory(child)
        finally:
            os.close(child)
    link = os.readlink(path) if stat.S_ISLNK(st.st_mode) else b""
    digest = _digest(path) if stat.S_ISREG(st.st_mode) else None
    return (*_plain(st, st.st_size, link), _xattrs(path), digest, st.st_nlink)


def _seen_directory(fd: int) -> tuple[Any, ...]:
    path = b"/proc/self/fd/%d/." % fd
    opaque = whiteout.is_marked_opaque(fd, xattrs.NAMESPACES)
    opaque = opaque or os.fsdecode(whiteout.WH_OPAQUE) in os.listdir(fd)
    implied = xattrs.get(fd, xattrs.IMPLIED)
    return (*_plain(os.fstat(fd), 0, b""), _xattrs(path), opaque, implied)


def _plain(st: os.stat_result, size: int, link: bytes) -> tuple[Any, ...]:
    rdev = st.st_rdev if stat.S_ISCHR(st.st_mode) or stat.S_ISBLK(st.st_mode) else 0
    return st.st_mode, st.st_uid, st.st_gid, size, _time(st.st_mtime_ns), rdev, link


def _xattrs(path: bytes) -> dict[bytes, bytes]:
    """Those that a layer's archive may set."""
    found = map(os.fsencode, os.listxattr(path, follow_symlinks=False))
    return {
        name: os.getxattr(path, name, follow_symlinks=False)
        for name in found
        if name != b"security.selinux" and not name.startswith(xattrs.RESERVED)
    }


def _digest(path: bytes) -> bytes | None:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
