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
    way = _Way(path, where)
    while way.left:
        name = way.left.pop()
        if name == b"..":
            way.go_up()
            continue
        text = None
        if way.is_known:
            passed(len(way.at) + 1)
            above = tuple(way.at)
            if is_directory((*above, name)):
                way.known += 1
            else:
                text = link_text(above, name)
        if text is None:
            way.at.append(name)
        else:
            way.turn(text)
    return way.end()


class _Way:
    """Where a search has come to, and what is left of it."""

    def __init__(self, path: Path, where: str) -> None:
        self._path, self._where = path, where
        self._links = 0
        #: Names to go on with, the next one last.
        self.left = list(reversed(path))
        self.at: list[bytes] = []
        #: So many names of `at` are directories of the layer.
        self.known = 0

    @property
    def is_known(self) -> bool:
        """Whether the layer has a directory there."""
        return len(self.at) == self.known

    def go_up(self) -> None:
        """Follow a `..`."""
        if not self.is_known:
            # A layer below may have a link there, or nothing.
            what = f"a link leads through {show(tuple(self.at))}/.., no directory"
            raise ImageError(what, where=self._where)
        del self.at[-1:]
        self.known = len(self.at)

    def turn(self, text: bytes) -> None:
        """Follow a symbolic link with this text."""
        self._links += 1
        if self._links > _MAX_LINKS:
            what = f"too many symbolic links on the way to {show(self._path)}"
            raise ImageError(what, where=self._where)
        if text.startswith(b"/"):
            self.at, self.known = [], 0
        self.left += [part for part in reversed(text.split(b"/")) if part not in (b"", b".")]
        if len(self.left) > MAX_PATH:
            raise self._too_long()

    def end(self) -> Path:
        """Where it has come to, at last."""
        if any(part.startswith(whiteout.WH_PREFIX) for part in self.at):
            what = f"a link leads to a whiteout, {show(tuple(self.at))}"
            raise ImageError(what, where=self._where)
        if sum(map(len, self.at)) + len(self.at) >= MAX_PATH:
            raise self._too_long()
        return tuple(self.at)

    def _too_long(self) -> ImageError:
        return ImageError("links lead to a path that is too long", where=self._where)
