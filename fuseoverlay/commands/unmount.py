"""The command `unmount`."""

from __future__ import annotations

import os

from fuseoverlay.commands import advice, output
from fuseoverlay.commands.parser import Parser
from fuseoverlay.errors import MountpointError, printable
from fuseoverlay.fuse import unmount


def command(argv: list[str]) -> int:
    """Unmount what the arguments name; return the exit code."""
    word = parser("fuseoverlay unmount").parse_args(argv).what
    advice.check_given({"MNT": word})
    path = os.fsencode(word)
    if unmount.is_mount_point(path):
        also = [] if _is_path(word) else _of_image(word)
    else:
        path, also = _only(word, _of_image(word)), []
    gone = unmount.unmount(path)
    if also:
        others = _listed(also)
        output.warn(f"{word} is a directory here, which is unmounted now; it may be an image, too, "
                    f"mounted at {others}")  # fmt: skip
    if not gone:
        output.warn(
            f"{printable(path)}: unmounted, but its daemon goes on: another mount namespace (a "
            "container, say) has a copy of the mount, or the disk is slow"
        )
    return 0


def parser(prog: str) -> Parser:
    """The parser of its arguments."""
    made = Parser(prog=prog, description="Unmount; waits for the daemon.")
    made.add_argument("what", metavar="MNT|IMAGE",
                      help="a mount point; or an image of which there is one mount")  # fmt: skip
    return made


def _of_image(word: str) -> list[bytes]:
    """Where the image is mounted that `word` names."""
    from fuseoverlay.commands import mounts as listing
    from fuseoverlay.fuse import mounts

    found = listing.of_image(word, mounts.mounted())
    return [mount.path for mount in found if unmount.fuse_mount(mount.path) == mount.device]


def _only(word: str, paths: list[bytes]) -> bytes:
    """The only one of the mount points; the word itself if there is none, and it is a path."""
    if len(paths) > 1:
        raise MountpointError(
            f"is mounted at {_listed(paths)}", where=word, hint="name the mount point"
        )
    if not paths and not _is_path(word) and not os.path.lexists(word):
        raise MountpointError(
            "is neither a mount point nor an image that is mounted",
            where=word,
            hint="fuseoverlay mounts lists them",
        )
    return paths[0] if paths else os.fsencode(word)


def _is_path(word: str) -> bool:
    """Whether it can be no name of an image."""
    return word[0] in "/.~"


def _listed(paths: list[bytes]) -> str:
    return " and ".join(printable(path) for path in paths)
