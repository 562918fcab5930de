"""Where a path of a layer leads when the layer's own symbolic links are followed.

Images name members below a link (`bin/sh` after `bin -> usr/bin`), and mean what is below its
target. Nothing here or later lets the kernel follow a link: a path without links comes out, of
which `unpack` opens one component after the other. As in a container the layer's root is `/`
and its own parent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from fuseoverlay.errors import ImageError
from fuseoverlay.layers import whiteout
from fuseoverlay.oci.entries import MAX_PATH, Path, show

#: As many as the kernel follows (ELOOP).
_MAX_LINKS: Final = 40


def follow(
    path: Path,
    where: str,
    is_directory: Callable[[Path], bool],
    link_text: Callable[[Path, bytes], bytes | None],
    passed: Callable[[int], None],
) -> Path:
    """`path`, its last component too, without symbolic links of the layer.

    `is_directory`: whether the layer has a directory of that path; `link_text`: the text of a
    symbolic link of that name in such a directory, None where it has none. What the layer does
    not have is taken for a directory that may come; `passed` is told how many names are passed at
    each step. ImageError, with `where`, for what leads nowhere.
    """
    left = list(reversed(path))
    at: list[bytes] = []
    #: So many names of `at` are directories of the layer.
    known = 0
    links = 0
    while left:
        name = left.pop()
        if name == b"..":
            if len(at) > known:
                # A layer below may have a link there, or nothing.
                what = f"a link leads through {show(tuple(at))}/.., no directory"
                raise ImageError(what, where=where)
            del at[-1:]
            known = len(at)
            continue
        text = None
        if len(at) == known:
            passed(len(at) + 1)
            above = tuple(at)
            if is_directory((*above, name)):
                known += 1
            else:
                text = link_text(above, name)
        if text is None:
            at.append(name)
            continue
        links += 1
        if links > _MAX_LINKS:
            raise ImageError(f"too many symbolic links on the way to {show(path)}", where=where)
        if text.startswith(b"/"):
            at, known = [], 0
        left += [part for part in reversed(text.split(b"/")) if part not in (b"", b".")]
        if len(left) > MAX_PATH:
            raise ImageError("links lead to a path that is too long", where=where)
    if any(part.startswith(whiteout.WH_PREFIX) for part in at):
        raise ImageError(f"a link leads to a whiteout, {show(tuple(at))}", where=where)
    if sum(map(len, at)) + len(at) >= MAX_PATH:
        raise ImageError("links lead to a path that is too long", where=where)
    return tuple(at)
