"""Layers with everything that is odd, bottom first."""

from __future__ import annotations

import stat

from fuseoverlay.oci.layout import Node, directory, symlink

ODD = {
    "whiteouts": [
        [directory("a"), Node("a/x", data=b"1"), Node("b/y"), Node("c", data=b"3")],
        [Node("a/.wh.x"), Node(".wh.b"), Node(".wh.c"), Node("c/inside", data=b"4")],
        [Node("b/new", data=b"5"), Node("a/x", data=b"6")],
    ],
    "opaque": [
        [Node("a/b/c", data=b"1"), Node("a/d"), Node("r")],
        [Node("a/.wh..wh..opq"), Node("a/e"), directory("a/b")],
        [Node("a/d", data=b"again"), Node("a/b/f")],
    ],
    "opaque root": [[Node("a"), Node("b/c")], [Node(".wh..wh..opq"), Node("b/d")]],
    "types": [
        [directory("a"), Node("a/b"), Node("f", data=b"f"), symlink("l", "f"), directory("d")],
        [Node("a", data=b"now a file"), directory("f"), Node("f/g"), Node("l"), symlink("d", "f")],
        [directory("a", 0o700), Node("a/c")],
    ],
    "own whiteout": [[Node("a/b"), Node("a/c")], [Node(".wh.a"), Node("a/b", data=b"2")]],
    "hard links": [
        [Node("a", data=b"one"), Node("b", hardlink="a"), Node("d/c", hardlink="a")],
        [Node("e", hardlink="d/c"), Node(".wh.a")],
        [Node("f", hardlink="e"), Node("e", data=b"new")],
    ],
    "implied": [
        [directory("a", 0o711, uid=5), directory("a/b", 0o750, gid=6), Node("a/b/c")],
        [Node("a/b/d", mtime=7)],
        [Node("n/e/w", mtime="8.5")],
    ],
    "metadata": [
        [Node("s", 0o4755, b"x", 1, 2, 3), Node("x", xattrs={"user.a": b"\0\xff"})],
        [Node("s", 0o644, b"x", 1, 2, 3)],
        [Node("p", stat.S_IFIFO | 0o600), Node("t", mtime="-1.25")],
    ],
    "links of the layer": [
        [directory("usr"), symlink("bin", "usr/bin"), Node("usr/bin/sh", data=b"s")],
        [symlink("bin", "usr/bin"), Node("bin/ls", data=b"l"), Node("bin/.wh.sh")],
    ],
    "names": [
        [Node(b"new\nline"), Node(b"\x1b[31mred"), Node(b"\xff\xfe"), Node("\u202etxt.exe"),
         Node("x" * 255), Node(" "), Node("-rf")],
        [Node(b".wh.new\nline"), Node(b"\xff\xfe", data=b"2")],
    ],
    "twice": [[Node("a", data=b"1"), Node("a", data=b"22"), directory("a"), Node("a/b")]],
    "empty": [[], [directory("a")], []],
}  # fmt: skip
