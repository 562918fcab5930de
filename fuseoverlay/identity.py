"""Owner, mode and type: what the mount shows against what the real file has.

Normally both are the same. Where a layer keeps `user.containers.override_stat`
(see `fuseoverlay.overridestat`), the attribute counts; in such an upper every object
is a regular file or a directory, and the attribute says what it stands for.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from fuseoverlay import syscalls, xattrs
from fuseoverlay.layers import Layer
from fuseoverlay.overridestat import OverrideStat, accessible

_FULL_RANGE: Final = 2**32 - 1
_HOLDERS: Final = (stat.S_IFREG, stat.S_IFDIR)


class Shown(NamedTuple):
    """Owner, type with permission bits, and device number as users see them."""

    uid: int
    gid: int
    mode: int
    rdev: int


@dataclass(frozen=True, slots=True)
class IdRanges:
    """Ids that this process' user namespace maps: (first, count) pairs."""

    ranges: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, map_file: str) -> IdRanges:
        """Read `uid_map` or `gid_map` in /proc/self."""
        with open(f"/proc/self/{map_file}", encoding="ascii") as lines:
            fields = [line.split() for line in lines]
        return cls(tuple((int(f[0]), int(f[2])) for f in fields))

    def is_full(self) -> bool:
        """Whether every id is mapped: the initial user namespace, or as good as that."""
        return self.ranges == ((0, _FULL_RANGE),)

    def show(self, number: int) -> int:
        """The id itself where it is mapped, else 0: an id that nobody could have would make
        the file one that nobody may change or delete."""
        if any(first <= number < first + count for first, count in self.ranges):
            return number
        return 0


@dataclass(frozen=True, slots=True)
class Identity:
    """How this mount translates. `override`: the upper keeps the override attribute."""

    override: bool
    uids: IdRanges
    gids: IdRanges

    @classmethod
    def of_process(cls, *, override: bool) -> Identity:
        """With the id maps of this process."""
        return cls(override, IdRanges.of("uid_map"), IdRanges.of("gid_map"))

    def overrides(self, layers: Sequence[Layer]) -> bool:
        """Whether owners come from the override attribute in any of the layers."""
        return self.override or any(layer.override for layer in layers)

    def translates(self, layer: Layer) -> bool:
        """The same for one layer."""
        return layer.override or (self.override and layer.number == 0)

    def shown(
        self, layer: Layer, path: bytes, st: os.stat_result, *, follow: bool = False
    ) -> Shown:
        """What to show for the real file at `path` with the status `st`."""
        if self.translates(layer):
            if stat.S_IFMT(st.st_mode) in _HOLDERS:
                override = read_override(path, st.st_mode, follow=follow)
                if override is not None:
                    return Shown(
                        self.uids.show(override.uid),
                        self.gids.show(override.gid),
                        override.mode,
                        override.rdev,
                    )
            elif stat.S_ISLNK(st.st_mode):
                return Shown(0, 0, st.st_mode, 0)
        return Shown(st.st_uid, st.st_gid, st.st_mode, st.st_rdev)

    def is_born(self, shown: Shown) -> bool:
        """Whether a file that we make with this mode needs nothing else to be shown so."""
        return (
            not self.override
            and (shown.uid, shown.gid) == (os.geteuid(), os.getegid())
            and stat.S_IMODE(shown.mode) & ~0o777 == 0
        )

    def dress(self, dir_fd: int, name: bytes, shown: Shown) -> None:
        """Give a new object of ours, `name` in `dir_fd`, its owner and mode.

        EPERM where the process may not give it away.
        """
        path = syscalls.at(dir_fd, name)
        if self.override:
            write_override(path, shown)
            os.chmod(path, accessible(shown.mode))
            return
        if (shown.uid, shown.gid) != (os.geteuid(), os.getegid()) or _setgid_parent(dir_fd):
            os.chown(path, shown.uid, shown.gid, follow_symlinks=False)
        if not stat.S_ISLNK(shown.mode):
            os.chmod(path, stat.S_IMODE(shown.mode))

    def dress_open(self, fd: int, shown: Shown) -> None:
        """The same for a regular file that is open as `fd` and has no name."""
        if self.override:
            write_override(syscalls.fd_path(fd), shown, follow=True)
            os.chmod(fd, accessible(shown.mode))
            return
        os.chown(fd, shown.uid, shown.gid)
        os.chmod(fd, stat.S_IMODE(shown.mode))


def _setgid_parent(dir_fd: int) -> bool:
    """Whether objects made in the directory get its group and not ours."""
    return bool(os.stat(dir_fd).st_mode & stat.S_ISGID)


def read_override(path: bytes, real_mode: int, *, follow: bool = False) -> OverrideStat | None:
    """The override attribute; None where there is none or it is malformed."""
    value = xattrs.get(path, xattrs.OVERRIDE_STAT, follow=follow)
    return OverrideStat.parse(value, real_mode) if value is not None else None


def write_override(path: bytes, shown: Shown, *, follow: bool = False) -> None:
    """Set the override attribute."""
    value = OverrideStat(shown.uid, shown.gid, shown.mode, shown.rdev).format()
    os.setxattr(path, xattrs.OVERRIDE_STAT, value, follow_symlinks=follow)
