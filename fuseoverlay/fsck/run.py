"""Open the layers for a check, and put the checks together."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from fuseoverlay import overlay, ownmount, workdir
from fuseoverlay.clones import Clones
from fuseoverlay.config import MountConfig
from fuseoverlay.errors import UpperError
from fuseoverlay.fsck import doubt, mixed
from fuseoverlay.fsck.origins import Origins
from fuseoverlay.fsck.problems import Finding, Problem, settle
from fuseoverlay.fsck.upper import UpperCheck
from fuseoverlay.fsck.work import WorkCheck
from fuseoverlay.layers import Layer, LayerStack, stat_key

_BACKSLASH: Final = re.compile(rb"\\(.)", re.DOTALL)
_IN_DOUBT: Final = "the lower directories may not be the right ones, or the options"
_OCTAL: Final = re.compile(rb"\\([0-7]{3})")


class Check:
    """One check; the layers stay open and locked while `opened` lasts."""

    def __init__(
        self, config: MountConfig, stack: LayerStack, work_fd: int | None, origins: Origins
    ) -> None:
        self._config = config
        self._stack = stack
        self._origins = origins
        self._work = None
        #: What is not looked at, and why.
        self.skipped: list[str] = []
        #: Why repairs were not made that only the right lowers make safe.
        self.doubt: str | None = None
        if work_fd is not None and config.workdir is not None:
            self._work = WorkCheck(work_fd, config.workdir, origins)
        else:
            self.skipped.append("the work directory (without workdir=)")
        if origins.unknown is not None:
            self.skipped.append(f"whether the lower files of copies exist ({origins.unknown})")

    def findings(self, *, repair: bool, force: bool = False) -> Iterator[Finding]:
        """What is wrong; with `repair` after repairing what is safe. Nothing else writes.

        `force`: also what is safe only if the lowers are the right ones, though they may not be.
        """
        if repair and not force:
            self.doubt = doubt.about(self._stack, self._origins)
        return settle(self._problems(), repair=repair, doubt=self.doubt and _IN_DOUBT)

    def _problems(self) -> Iterator[Problem]:
        indexed = self._work.indexed() if self._work is not None else None
        upper = UpperCheck(self._stack, self._origins, indexed=indexed)
        yield from upper.problems()
        yield from mixed.problems(
            upper, preferred=self._config.whiteout, userxattr=self._config.userxattr
        )
        if self._work is not None:
            yield from self._work.problems(upper)


@contextlib.contextmanager
def opened(config: MountConfig) -> Iterator[Check]:
    """Open the layers of `config`, which has an upper, and keep mounts off it.

    Raises `UpperError` where one of them is mounted, and what a mount would raise.
    """
    with contextlib.ExitStack() as owners:
        clones = owners.enter_context(Clones())
        stack = owners.enter_context(
            LayerStack(
                config.upperdir,
                config.lowerdirs,
                config.data_only,
                user_attributes=config.user_attributes,
            )
        )
        if stack.upper is None:
            raise ValueError("there is no upper to check")
        stack.follow_redirects = config.redirect_dir != "nofollow"
        for layer in stack.below:
            ownmount.enter(layer, clones, submounts=config.submounts)
        roots = overlay.roots_of(stack, None)
        work_fd = None
        if config.workdir is None:
            workdir.lock(stack.upper.root_fd, stack.upper.path)
        else:
            work_fd = workdir.claim(config.workdir, stack.upper, clones)
            owners.callback(os.close, work_fd)
            roots[stat_key(os.fstat(work_fd))] = config.workdir
        overlay.refuse_overlaps(stack, roots)
        _refuse_kernel_mounts(stack.upper)
        yield Check(config, stack, work_fd, Origins(stack.lowers))


def _refuse_kernel_mounts(upper: Layer) -> None:
    """Kernel overlayfs takes no locks that others can see."""
    for mount in _kernel_overlays(Path("/proc/self/mountinfo").read_bytes()):
        if _is_upper_of(upper, mount):
            raise UpperError(
                "is the upper directory of a mounted kernel overlay",
                where=upper.path,
                hint=f"unmount {os.fsdecode(mount.point)} first",
            )


class _Mount(NamedTuple):
    """A kernel overlay; `upper` is the path as it was given."""

    device: str
    point: bytes
    upper: bytes


def _is_upper_of(upper: Layer, mount: _Mount) -> bool:
    st = os.fstat(upper.root_fd)
    if mount.upper.startswith(b"/"):
        try:
            return stat_key(os.stat(mount.upper)) == stat_key(st)
        except OSError:
            return False
    # Relative to a directory that nobody remembers. The root of the mount has the upper's times.
    real = os.path.realpath(upper.path)
    if not (b"/" + real).endswith(b"/" + os.path.normpath(mount.upper)):
        return False
    try:
        root = os.stat(mount.point)
    except OSError:
        return True
    hidden = mount.device != f"{os.major(root.st_dev)}:{os.minor(root.st_dev)}"
    return hidden or (root.st_ctime_ns, root.st_mtime_ns) == (st.st_ctime_ns, st.st_mtime_ns)


def _kernel_overlays(mountinfo: bytes) -> Iterator[_Mount]:
    """Every kernel overlay with an upper; proc_pid_mountinfo(5)."""
    for line in mountinfo.splitlines():
        left, _, right = line.partition(b" - ")
        kind, _, rest = right.partition(b" ")
        if kind != b"overlay":
            continue
        device, point = left.split()[2].decode(), _unescaped(left.split()[4])
        for option in rest.partition(b" ")[2].split(b","):
            name, _, value = option.partition(b"=")
            if name == b"upperdir":
                given = _unescaped(value)
                # It may hold the escapes of the mount option, or be the path itself.
                yield _Mount(device, point, given)
                yield _Mount(device, point, _BACKSLASH.sub(rb"\1", given))


def _unescaped(text: bytes) -> bytes:
    return _OCTAL.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), text)
