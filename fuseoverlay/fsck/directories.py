"""The marks of an upper's directories: opaque values, redirects, and where redirects lead."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from fuseoverlay.errors import describe
from fuseoverlay.fsck.objects import Objects
from fuseoverlay.fsck.problems import Kept, Kind, Problem, shown
from fuseoverlay.layers import redirect, whiteout, xattrs
from fuseoverlay.layers.layer import RealDir
from fuseoverlay.layers.objects import stat_key

_OPAQUE_VALUES: Final = (whiteout.OPAQUE_YES, whiteout.OPAQUE_XATTR_WHITEOUTS)


class Directories:
    """Checks directories one by one, and remembers the lower directory that each merges with."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        # Lower directories that upper ones merge with, each with the first upper one that does.
        self._claims: dict[tuple[int, int], bytes] = {}

    def opaque_value(self, upper: RealDir, own: Sequence[bytes]) -> Iterator[Problem]:
        """Whether the directory's opaque attributes, among its `own` attributes, have a valid
        value."""
        names = [name for name in own if name.endswith(b"." + xattrs.OPAQUE)]
        for name in names:
            value = self._objects.value(upper, b"", name)
            if value is None or value in _OPAQUE_VALUES:
                continue
            what = f"{name.decode()} is {shown(value)!r}, which says nothing"
            alone = len(names) == 1
            yield Problem(
                Kind.OPAQUE, self._objects.path(upper), what,
                repair=self._objects.removal(upper, b"", [name]) if alone else None,
                why="without it the mark of another namespace would count",
            )  # fmt: skip

    def refused_redirect(self, upper: RealDir) -> Problem | None:
        """The problem that the directory has a redirect which a mount refuses; None if it has
        not."""
        try:
            redirect.marks_of(self._objects.stack, upper)
        except OSError as exc:
            by_option = exc.errno == errno.EPERM
            who = "redirect_dir=nofollow does not follow" if by_option else "no mount follows"
            return Problem(
                Kind.REDIRECT, self._objects.path(upper), f"redirect that {who}: {describe(exc)}",
                why="a mount without nofollow shows what it leads to" if by_option
                else "nobody knows what the directory should show",
            )  # fmt: skip
        return None

    def claim(self, upper: RealDir, lower: RealDir) -> Iterator[Problem]:
        """Report a second upper directory that merges with the same lower one: only one can be its
        copy."""
        path = self._objects.path(upper)
        first = self._claims.setdefault(stat_key(os.stat(self._objects.stack.fd(lower))), path)
        if first != path:
            yield Problem(
                Kind.TWICE, path, f"goes on in the same lower directory as {shown(first)}",
                why="the kernel refuses one of them, and only you know which was copied",
            )  # fmt: skip

    def dead_redirect(self, upper: RealDir, target: bytes, own: Sequence[bytes]) -> Problem:
        """The problem of a redirect to a `target` that no lower has; `own` are the directory's
        attributes."""
        return Problem(
            Kind.REDIRECT, self._objects.path(upper),
            f"redirect to {shown(target)}, which is no directory of the lowers",
            repair=self._closing(upper, own), by_lowers=True,
        )  # fmt: skip

    def _closing(self, upper: RealDir, own: Sequence[bytes]) -> Callable[[], None]:
        """Replace a redirect to nothing by an opaque mark: without any mark the directory would
        merge with lower directories of its own name."""
        names = [name for name in own if name.endswith(b"." + xattrs.REDIRECT)]

        def close() -> None:
            fd, counted = self._objects.stack.fd(upper), upper.layer.namespaces
            if upper.parent is None or whiteout.opaque_value(fd, counted) is not None:
                raise Kept("it is marked for xattr whiteouts")
            namespace = names[0].removesuffix(xattrs.REDIRECT)
            whiteout.set_opaque(self._objects.stack.fd(upper.parent), upper.name, namespace)
            self._objects.removal(upper, b"", names)()

        return close
