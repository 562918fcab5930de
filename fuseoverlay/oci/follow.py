"""Find where a path of a layer leads when the layer's own symbolic links are followed.

Images name members below a link (`bin/sh` after `bin -> usr/bin`), and mean what is below its
target. Neither this code nor what uses it lets the kernel follow a link: the result is a path
without links, and `unpack` opens one component of it after the other. As in a container, the
layer's root is `/` and its own parent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from fuseoverlay.errors import ImageError
from fuseoverlay.layers import whiteout
from fuseoverlay.oci.entries import MAX_PATH, Path, show

#: The kernel's limit (ELOOP).
_MAX_LINKS: Final = 40


def follow(
    path: Path,
    where: str,
    is_directory: Callable[[Path], bool],
    link_text: Callable[[Path, bytes], bytes | None],
    passed: Callable[[int], None],
) -> Path:
    """`path` with all symbolic links of the layer resolved, its last component too.

    `is_directory`: whether the layer has a directory of that path; `link_text`: the target of the
    symbolic link of that name in such a directory, None if there is none. What the layer does not
    have is taken for a directory that may still come. `passed` is told at each step how many names
    it passes. ImageError, with `where`, if the path leads nowhere.
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
    """Where a search has arrived, and what is left of the path."""

    def __init__(self, path: Path, where: str) -> None:
        self._path, self._where = path, where
        self._links = 0
        #: Components still to follow, the next one last.
        self.left = list(reversed(path))
        self.at: list[bytes] = []
        #: How many components of `at`, from the first on, are directories of the layer.
        self.known = 0

    @property
    def is_known(self) -> bool:
        """Whether the layer has a directory at the path reached."""
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
        """Follow a symbolic link with this target."""
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
        """The path reached in the end."""
        if any(part.startswith(whiteout.WH_PREFIX) for part in self.at):
            what = f"a link leads to a whiteout, {show(tuple(self.at))}"
            raise ImageError(what, where=self._where)
        if sum(map(len, self.at)) + len(self.at) >= MAX_PATH:
            raise self._too_long()
        return tuple(self.at)

    def _too_long(self) -> ImageError:
        return ImageError("links lead to a path that is too long", where=self._where)
