"""What is mounted, as the kernel and the daemons say: docs/design/mounting.md, "The list".

A daemon keeps a memfd whose name has the device number of its mount; it holds the facts that the
kernel does not know. To read them touches no mount, so a daemon that hangs keeps nobody waiting.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

from fuseoverlay.overlay.config import MountConfig
from fuseoverlay.system import syscalls

_NAME: Final = "fuseoverlay.mount."
_LINK: Final = re.compile(rf"/memfd:{re.escape(_NAME)}([0-9]+:[0-9]+) \(deleted\)\Z")
_TYPE: Final = b"fuse.fuseoverlay"
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}\Z|sha512:[0-9a-f]{128}\Z")
#: Bytes, more than any facts have.
_MAX: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class MountedImage:
    """The image that a mount shows. `name` is its full name in the store, its id there, or an
    absolute path; `given` what the user wrote. `part`: which layers, if not all. `keeps`: whether
    changes outlast the mount."""

    name: str
    given: str
    id: str | None
    part: str | None
    keeps: bool


@dataclass(frozen=True, slots=True)
class Facts:
    """What a daemon tells of its mount. Paths are absolute, and text as `os.fsdecode` makes it;
    lowers from top to bottom."""

    lowers: tuple[str, ...]
    upper: str | None
    work: str | None
    image: MountedImage | None

    @classmethod
    def of(cls, config: MountConfig, image: MountedImage | None) -> Facts:
        """The facts of a mount with these options, in the directory in which they were given."""
        return cls(
            tuple(map(_absolute, (*config.lowerdirs, *config.data_only))),
            _absolute(config.upperdir) if config.upperdir is not None else None,
            _absolute(config.workdir) if config.workdir is not None else None,
            image,
        )


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount point. `owner`: the id of the user who mounted it, if that is known. `pid` and
    `facts` are those of its daemon; None if that is another user's, or has ended."""

    path: bytes
    device: str
    owner: int | None
    pid: int | None = None
    facts: Facts | None = None

    @property
    def image(self) -> MountedImage | None:
        """The image, as far as that is known."""
        return self.facts.image if self.facts else None


def tell(facts: Facts, device: str) -> int:
    """Let `mounted` know of the mount with this device number, until the descriptor is closed that
    this returns. OSError."""
    fd = os.memfd_create(_NAME + device)
    try:
        os.write(fd, json.dumps(asdict(facts)).encode())
    except BaseException:
        os.close(fd)
        raise
    return fd


def mounted() -> list[Mount]:
    """The mounts of fuseoverlay that there are in this mount namespace, in their order."""
    lines = list(_fuse_mounts())
    daemons = _daemons({device: owner for _, device, owner, _ in lines}) if lines else {}
    return [
        Mount(path, device, owner, *daemons.get(device, (None, None)))
        for path, device, owner, kind in lines
        if kind == _TYPE or device in daemons
    ]


def _absolute(path: bytes) -> str:
    return os.fsdecode(os.path.abspath(path))


def _fuse_mounts() -> Iterator[tuple[bytes, str, int | None, bytes]]:
    """Path, device number, user and type of each FUSE mount that shows all of a file system;
    proc(5), mountinfo."""
    with open("/proc/self/mountinfo", "rb") as lines:
        for line in lines:
            left, _, right = line.rstrip(b"\n").partition(b" - ")
            _, _, device, root, path, *_ = left.split(b" ")
            kind, _, options = right.split(b" ", 2)
            if root == b"/" and (kind == b"fuse" or kind.startswith(b"fuse.")):
                user = re.search(rb"(?:^|,)user_id=([0-9]+)", options.rpartition(b" ")[2])
                owner = int(user[1]) if user else None
                yield syscalls.unescaped(path), device.decode(), owner, kind


def _daemons(owners: dict[str, int | None]) -> dict[str, tuple[int, Facts]]:
    """The daemons of the mounts with these device numbers, as far as we may look into them. Whoever
    did not mount can tell nothing: `owners` says who did."""
    found: dict[str, tuple[int, Facts]] = {}
    probe = os.memfd_create("probe")
    try:
        memory = _mount_number(f"/proc/self/fdinfo/{probe}")
        for directory in glob.iglob("/proc/[0-9]*/fd"):
            # Most processes are others', or end meanwhile.
            with contextlib.suppress(OSError):
                pid = int(directory.split("/")[2])
                for name in os.listdir(directory):
                    link = _LINK.match(os.readlink(f"{directory}/{name}"))
                    if link is None or not _is_of(owners.get(link[1]), pid, name):
                        continue
                    # A file may have such a name, too, in a mount that hangs, but not be where
                    # memfds are.
                    if _mount_number(f"/proc/{pid}/fdinfo/{name}") == memory:
                        facts = _read(f"{directory}/{name}")
                        if facts is not None:
                            found[link[1]] = pid, facts
    finally:
        os.close(probe)
    return found


def _is_of(owner: int | None, pid: int, fd: str) -> bool:
    """Whether a process is this user's, and what it has open was made by him, too: a set-user-ID
    program takes over what its caller has open."""
    return owner == os.stat(f"/proc/{pid}").st_uid == os.stat(f"/proc/{pid}/fd/{fd}").st_uid


def _mount_number(fdinfo: str) -> int | None:
    with open(fdinfo, encoding="ascii") as lines:
        for line in lines:
            if line.startswith("mnt_id:"):
                return int(line.split()[1])
    return None


def _read(path: str) -> Facts | None:
    """The facts in a memfd; None if another version wrote others, or somebody else."""
    with open(path, "rb") as file:
        text = file.read(_MAX)
    try:
        data: dict[str, Any] = json.loads(text)
        image = data.pop("image")
        lowers = tuple(data.pop("lowers"))
        facts = Facts(lowers=lowers, image=MountedImage(**image) if image else None, **data)
        return facts if _is_sound(facts) else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _is_sound(facts: Facts) -> bool:
    """Whether everything has the type that it should have: anybody can write facts of a mount of
    his own."""
    image = facts.image
    texts: list[object] = [*facts.lowers, facts.upper or "", facts.work or ""]
    if image is not None:
        texts += [image.name, image.given, image.part or "", image.id or ""]
        if image.id is not None and not _DIGEST.match(image.id):
            return False
    return bool(facts.lowers) and all(isinstance(text, str) for text in texts)
