"""Where unpacked layers lie, and whether they are in use.

    ROOT/layers/sha256/DIFF_ID            unpacked with real owners, modes and devices
    ROOT/layers/chain/CHAIN_ID            the same, with data of the layers below in it
    ROOT/layers-override/...              the same two, owners and modes only recorded

Whoever uses a layer holds a shared flock(2) on its directory, in a descriptor that lives as long as
the use: a mount's daemon inherits it. Who removes one has an exclusive lock, and moves it away
before anything in it goes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Final

from fuseoverlay.oci.model import Digest, chain_ids
from fuseoverlay.store.root import Store
from fuseoverlay.system.syscalls import DIR_FLAGS

REAL: Final = "layers"
OVERRIDE: Final = "layers-override"
#: An empty tar archive: what an image without layers shows.
EMPTY_TAR: Final = bytes(1024)
#: The name of a layer's directory.
_HEX: Final = re.compile(r"[0-9a-f]{64,128}")


def plain_place(diff_id: Digest) -> str:
    """Where the layer is below `layers` or `layers-override`, if only its own archive made it."""
    return f"{diff_id.algorithm}/{diff_id.hex}"


def chain_place(chain: Digest) -> str:
    """The same if it holds data of the layers below; `chain`: its ChainID."""
    return f"chain/{chain.hex}"


def places(diff_ids: Sequence[Digest]) -> list[tuple[str, str]]:
    """The two possible places of each layer of an image, bottom first."""
    found = diff_ids or [Digest.of(EMPTY_TAR)]
    return [
        (plain_place(diff_id), chain_place(chain))
        for diff_id, chain in zip(found, chain_ids(found), strict=True)
    ]


def unpacked(store: Store) -> list[pathlib.Path]:
    """The directories of all unpacked layers."""
    return _layers(store.root)


def _layers(root: pathlib.Path) -> list[pathlib.Path]:
    return [path for base in (REAL, OVERRIDE) for path in sorted((root / base).glob("*/*"))]


def hold(path: pathlib.Path) -> int | None:
    """A descriptor that keeps the layer from being removed; None if it is not there. OSError."""
    return _lock(path, fcntl.LOCK_SH)


@contextlib.contextmanager
def taken(path: pathlib.Path) -> Iterator[bool]:
    """Whether nobody uses the layer, nor can begin to in this context. OSError."""
    try:
        fd = _lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fd = None
    try:
        yield fd is not None
    finally:
        if fd is not None:
            os.close(fd)


def open_elsewhere(root: pathlib.Path) -> set[str]:
    """The layers, relative to the store, that other processes have open or have mounted, with a
    lock or without: earlier versions took none, and neither does the kernel's overlayfs. As far as
    /proc shows them to this user."""
    opened = re.compile(
        re.escape(os.path.realpath(root)) + r"/layers(?:-override)?/\w+/([0-9a-f]+)"
    )
    found: set[str] = set()
    namespaces: set[str] = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fd") if int(pid) != os.getpid() else ():
                if link := opened.match(os.readlink(f"/proc/{pid}/fd/{fd}")):
                    found.add(link[1])
        with contextlib.suppress(OSError):
            namespace = os.readlink(f"/proc/{pid}/ns/mnt")
            if namespace not in namespaces:
                namespaces.add(namespace)
                # Options may have relative paths, and a bind mount the path in its file system: the
                # names of layers are enough.
                mounts = pathlib.Path(f"/proc/{pid}/mountinfo").read_bytes()
                found.update(_HEX.findall(mounts.decode("latin1")))
    return {str(path.relative_to(root)) for path in _layers(root) if path.name in found}


def is_used(path: pathlib.Path) -> bool:
    """Whether the layer is there and somebody uses it. Inside `Store.locked`: it takes a lock."""
    with taken(path) as free:
        return not free and path.is_dir()


def _lock(path: pathlib.Path, operation: int) -> int | None:
    """The locked directory at `path`; None if it is not there any more."""
    try:
        fd = os.open(path, DIR_FLAGS)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, operation)
        if os.path.samestat(os.fstat(fd), os.stat(path)):
            return fd
    except FileNotFoundError:
        pass
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None
