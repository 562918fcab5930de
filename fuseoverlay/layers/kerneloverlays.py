"""Find mounts of kernel overlayfs, which takes no locks that others can see."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from fuseoverlay.errors import UpperError
from fuseoverlay.layers.layer import Layer
from fuseoverlay.layers.objects import stat_key
from fuseoverlay.system.syscalls import unescaped

_BACKSLASH: Final = re.compile(rb"\\(.)", re.DOTALL)


def refuse_upper(upper: Layer) -> None:
    """`UpperError` if a mounted kernel overlay has this upper."""
    with open("/proc/self/mountinfo", "rb") as lines:
        mountinfo = lines.read()
    for mount in _all(mountinfo):
        if _is_upper_of(upper, mount):
            raise UpperError(
                "is the upper directory of a mounted kernel overlay",
                where=upper.path,
                hint=f"unmount {os.fsdecode(mount.point)} first",
            )


class _Mount(NamedTuple):
    """A kernel overlay. `upper` is the path as given at the mount."""

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
    # The path is relative to a directory that is not recorded. The root of an overlay mount shows
    # the upper's times.
    real = os.path.realpath(upper.path)
    if not (b"/" + real).endswith(b"/" + os.path.normpath(mount.upper)):
        return False
    try:
        root = os.stat(mount.point)
    except OSError:
        return True
    hidden = mount.device != f"{os.major(root.st_dev)}:{os.minor(root.st_dev)}"
    return hidden or (root.st_ctime_ns, root.st_mtime_ns) == (st.st_ctime_ns, st.st_mtime_ns)


def _all(mountinfo: bytes) -> Iterator[_Mount]:
    """All kernel overlays with an upper; proc_pid_mountinfo(5)."""
    for line in mountinfo.splitlines():
        left, _, right = line.partition(b" - ")
        kind, _, rest = right.partition(b" ")
        if kind != b"overlay":
            continue
        device, point = left.split()[2].decode(), unescaped(left.split()[4])
        for option in rest.partition(b" ")[2].split(b","):
            name, _, value = option.partition(b"=")
            if name == b"upperdir":
                given = unescaped(value)
                # The value may have the escapes of the mount option, or be the path itself.
                yield _Mount(device, point, given)
                yield _Mount(device, point, _BACKSLASH.sub(rb"\1", given))
