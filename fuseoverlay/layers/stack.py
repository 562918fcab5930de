"""The stack of layers, and descriptors of the real directories in them.

`LayerStack` owns every descriptor of a real directory. A directory is always opened from an open
directory above it and never through a symbolic link. So no layer's content can lead outside its
root, and a deep directory does not meet PATH_MAX.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Final, Self
from weakref import WeakValueDictionary

from fuseoverlay.errors import LayerError, UpperError, os_error
from fuseoverlay.layers.layer import NEVER_MOVE, Layer, RealDir
from fuseoverlay.layers.objects import Sighting, open_own, sighting
from fuseoverlay.layers.roots import (
    ask_for_attributes,
    distrust_copies,
    open_root,
    refuse_twice,
    see_stored_ids,
    settle,
)
from fuseoverlay.native import extension
from fuseoverlay.system import syscalls
from fuseoverlay.system.descriptors import open_file
from fuseoverlay.system.syscalls import DIR_FLAGS, open_noatime

#: How many directories at the end of a walked path are kept open.
_KEPT_STEPS: Final = 4
#: More than any function needs before it suspends, including the ends of their paths.
_IN_USE: Final = 16
_DIR_FLAGS: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class LayerStack:
    """All layers, and a bounded number of open directories in them.

    Descriptors that `fd` returns stay valid until the next await: a later call may
    close the least recently used.
    """

    def __init__(
        self,
        upper: bytes | None,
        lowers: Sequence[bytes],
        data_only: Sequence[bytes] = (),
        *,
        as_stored: bool = False,
        user_attributes: bool = False,
    ) -> None:
        """Open every root, with `as_stored` none through an idmapped mount. `user_attributes` is
        for `Layer.settle`. Raises `UpperError` or `LayerError`; then nothing stays open."""
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            self._open: OrderedDict[RealDir, int] = OrderedDict()
            # One object per upper directory, so that everything below it sees its renames.
            self._upper_dirs: WeakValueDictionary[tuple[RealDir, bytes], RealDir]
            self._upper_dirs = WeakValueDictionary()
            self.limit = 64
            #: Whether nobody else changes the lowers: what is opened again must then be the same.
            self.lasting = False
            #: `written`: `stat_key` of the upper and the work directory, which no lower may
            #: contain. `read`: of the lowers, which the upper may not contain.
            self.written: frozenset[tuple[int, int]] = frozenset()
            self.read: frozenset[tuple[int, int]] = frozenset()
            #: Whether `overlay.redirect` counts.
            self.follow_redirects = True
            self.upper: Layer | None = None
            self.lowers: list[Layer] = []
            #: Layers that only hold data for metacopy files of the other layers.
            self.data_only: list[Layer] = []
            self._open_layers(upper, lowers, data_only)
            if as_stored:
                for layer in self.below:
                    see_stored_ids(layer, self.upper)
            distrust_copies(self.below)
            for layer in self.all():
                settle(layer, user_attributes=user_attributes)
            undo.pop_all()

    def _open_layers(
        self, upper: bytes | None, lowers: Sequence[bytes], data_only: Sequence[bytes]
    ) -> None:
        seen: dict[tuple[int, int], Layer] = {}
        if upper is not None:
            self.upper = Layer(0, upper, open_root(upper, UpperError, "upperdir"))
            refuse_twice(self.upper, seen)
        for number, path in enumerate([*lowers, *data_only], 1):
            layer = Layer(number, path, open_root(path, LayerError, "lowerdir"))
            (self.lowers if number <= len(lowers) else self.data_only).append(layer)
            refuse_twice(layer, seen)
            ask_for_attributes(layer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    @property
    def descriptors(self) -> dict[RealDir, int]:
        """The directories that are open now, for the extension."""
        return self._open

    def close(self) -> None:
        """Close every descriptor."""
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()
        for layer in self.all():
            os.close(layer.root_fd)
        self.upper = None
        self.lowers.clear()
        self.data_only.clear()

    def all(self) -> list[Layer]:
        """The upper, if there is one, then the lowers, then the data-only lowers."""
        return ([self.upper] if self.upper else []) + self.below

    @property
    def below(self) -> list[Layer]:
        """The layers that are never written: the lowers, then the data-only lowers."""
        return self.lowers + self.data_only

    def _missing(self, real: RealDir) -> tuple[int, list[RealDir]]:
        """The descriptor to start from, and the steps from there to `real`, last one first."""
        missing = []
        step = real
        while step not in self._open and step.parent is not None:
            missing.append(step)
            step = step.parent
        return self._open.get(step, step.layer.root_fd), missing

    def fd(self, real: RealDir) -> int:
        """An O_PATH descriptor of the directory, valid until the next await.

        Only the end of a path is kept open, so that a deep path does not close the directory that
        the caller has just asked for.
        """
        fd = self._open.get(real)
        if fd is not None:
            self._open.move_to_end(real)
            return fd
        self._open_known_above(real)
        fd = self._open_lower(real) if real.layer.number else -1
        if fd >= 0:
            self._keep(real, fd)
        else:
            fd = self._walk(real)
        self._close_oldest(self.limit)
        return fd

    def _open_known_above(self, real: RealDir) -> None:
        """Open the directories above that were opened before, so that each is checked to be still
        the same."""
        known = []
        step = real.parent
        while step is not None and step not in self._open:
            if step.seen is not None:
                known.append(step)
            step = step.parent
        # From the top down, so that each finds the one above it open.
        for step in reversed(known):
            self.fd(step)

    def _keep(self, real: RealDir, fd: int) -> None:
        """Check a newly opened directory, and keep its descriptor; errors of `_check`."""
        try:
            self._check(real, sighting(os.fstat(fd)))
        except OSError:
            os.close(fd)
            raise
        self._open[real] = fd

    def _check(self, real: RealDir, now: Sighting) -> None:
        """ELOOP if a lower leads into what we write, or the upper into a lower, through a bind
        mount; like the kernel's ovl_lookup_trap_inode(). ESTALE if another directory is there by
        now: the kernel was told who may enter the one that was looked up, not this one."""
        lower = bool(real.layer.number)
        if now[:2] in (self.written if lower else self.read):
            raise os_error(errno.ELOOP)
        if lower and not self.lasting:
            return
        # In the upper, owners differ because we change them.
        if real.seen is not None and (now != real.seen if lower else now[:2] != real.seen[:2]):
            raise os_error(errno.ESTALE)
        real.seen = now

    def _open_lower(self, real: RealDir) -> int:
        """Open a directory of a lower with one call; -1: walk to it. Lower directories are mostly
        needed for themselves, so none on the way is kept."""
        fd = extension.open_real(real, self._open, _DIR_FLAGS)
        if fd < 0:
            base, missing = self._missing(real)
            if 1 < len(missing) <= _KEPT_STEPS:
                with contextlib.suppress(OSError):
                    fd = syscalls.open_beneath(base, _path(missing), _DIR_FLAGS)
        return fd

    def _walk(self, real: RealDir) -> int:
        """Open one directory after the other, and keep the last ones open."""
        fd, missing = self._missing(real)
        passing = -1
        for left in range(len(missing) - 1, -1, -1):
            try:
                fd = open_file(missing[left].name, _DIR_FLAGS, dir_fd=fd)
            finally:
                if passing >= 0:
                    os.close(passing)
            passing = -1
            if left >= _KEPT_STEPS:
                passing = fd
            else:
                self._keep(missing[left], fd)
        return fd

    def shrink(self) -> None:
        """Close all directories but those that a caller may just have asked for, to free
        descriptors."""
        self._close_oldest(_IN_USE)

    def _close_oldest(self, keep: int) -> None:
        while len(self._open) > keep:
            _, oldest = self._open.popitem(last=False)
            os.close(oldest)

    def upper_dir(self, parent: RealDir, name: bytes) -> RealDir:
        """The only `RealDir` of a directory in the upper."""
        real = self._upper_dirs.get((parent, name))
        if real is None:
            real = self._upper_dirs[parent, name] = RealDir(parent.layer, parent, name)
        return real

    def moved(self, real: RealDir, parent: RealDir, name: bytes) -> None:
        """A directory of the upper was renamed."""
        self._unlist(real)
        real.parent, real.name = parent, name
        self._upper_dirs[parent, name] = real

    def _unlist(self, real: RealDir) -> None:
        if real.parent is not None and self._upper_dirs.get((real.parent, real.name)) is real:
            del self._upper_dirs[real.parent, real.name]

    def forget(self, real: RealDir) -> None:
        """A directory of the upper is gone: another one may get its name."""
        self._unlist(real)
        fd = self._open.pop(real, None)
        if fd is not None:
            os.close(fd)

    def hides(self, real: RealDir) -> set[bytes]:
        """The names in the directory that are hidden."""
        hidden = real.layer.hidden
        return hidden.get(real.path(), set()) if hidden else set()

    @contextlib.contextmanager
    def listing_fd(self, real: RealDir) -> Iterator[int]:
        """A readable descriptor of the directory, closed at the end of the block. Reading moves no
        access time if we can prevent it, see `note_listing`."""
        base = self.fd(real)
        try:
            fd = open_noatime(b".", DIR_FLAGS, base)
        except PermissionError:
            # The link in /proc works even without search permission.
            path, flags = syscalls.fd_path(base), DIR_FLAGS & ~os.O_NOFOLLOW
            fd = open_noatime(path, flags) if real.layer.number else open_own(path, flags)
        try:
            yield fd
        finally:
            os.close(fd)

    def note_listing(self, real: RealDir) -> None:
        """Move the directory's access time, if the mount wants that, because a program lists it. We
        read directories at other times than programs do."""
        if real.layer.access_times & NEVER_MOVE:
            return
        try:
            fd = os.open(b".", DIR_FLAGS, dir_fd=self.fd(real))
        except OSError:
            return
        syscalls.note_listing(fd)
        os.close(fd)


def _path(steps: Sequence[RealDir]) -> bytes:
    return b"/".join(step.name for step in reversed(steps))
