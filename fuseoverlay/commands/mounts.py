"""`fuseoverlay mounts`: what is mounted, of which image, and where its changes are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final

from fuseoverlay.commands import output
from fuseoverlay.commands.image import common
from fuseoverlay.commands.parser import Parser
from fuseoverlay.errors import ImageError, visible
from fuseoverlay.fuse import mounts
from fuseoverlay.fuse.mounts import Facts, Mount, MountedImage
from fuseoverlay.oci.model import Digest
from fuseoverlay.oci.prefix import DigestPrefix
from fuseoverlay.oci.reference import Reference

_HEADINGS: Final = {
    "MountPoint": "MOUNT POINT",
    "Image": "IMAGE",
    "ImageID": "IMAGE ID",
    "Changes": "CHANGES",
    "PID": "PID",
    "LowerDir": "LOWER",
    "UpperDir": "UPPER",
    "WorkDir": "WORK",
}
_COLUMNS: Final = ("MountPoint", "Image", "Changes", "PID")
#: Of a mount whose daemon is another user's, or has ended.
_UNKNOWN: Final = "?"


def command(argv: list[str]) -> int:
    """List the mounts; return the exit code."""
    args = parser("fuseoverlay mounts").parse_args(argv)
    found = mounts.mounted()
    if args.quiet:
        for mount in found:
            output.say(visible(os.fsdecode(mount.path)))
        return 0
    common.show(map(_row, found), _HEADINGS, args.format, _COLUMNS)
    return 0


def parser(prog: str) -> Parser:
    """The parser of its arguments."""
    made = Parser(
        prog=prog,
        description="List what fuseoverlay has mounted here: which image, or which lower "
        "directories, and where changes go. No mount is asked, so one that hangs is listed, too.",
    )
    made.add_argument("--format", metavar="FORM",
                      help="table, json, a template, or table TEMPLATE; fields: "
                      + " ".join(_HEADINGS))  # fmt: skip
    made.add_argument("-q", "--quiet", action="store_true", help="only the mount points")
    return made


def of_image(word: str, listed: Sequence[Mount]) -> list[Mount]:
    """The mounts of the image that `word` names: as it was named for the mount, by its full name or
    a short form, by its path, or by its id or the beginning of that."""
    try:
        name = str(Reference.parse(word.removeprefix("docker://")))
    except ImageError:
        name = word
    names = {word, name, os.path.abspath(word)}
    prefix = DigestPrefix.parse(word)

    def fits(image: MountedImage) -> bool:
        if prefix and image.id and prefix.fits(Digest.parse(image.id)):
            return True
        return not names.isdisjoint((image.name, image.given))

    return [mount for mount in listed if (image := mount.image) and fits(image)]


def of_id(id_: Digest, listed: Sequence[Mount]) -> list[Mount]:
    """The mounts that show all layers of the image with this id."""
    return [
        mount
        for mount in listed
        if (image := mount.image) and image.id == str(id_) and image.part is None
    ]


def _row(mount: Mount) -> dict[str, Any]:
    facts, image = mount.facts, mount.image
    return {
        "MountPoint": os.fsdecode(mount.path),
        "Image": _shown(facts) if facts else _why_unknown(mount),
        "ImageID": (image.id or "") if image else "",
        "Changes": _changes(facts) if facts else _UNKNOWN,
        "PID": str(mount.pid) if mount.pid is not None else _UNKNOWN,
        "LowerDir": ":".join(facts.lowers) if facts else "",
        "UpperDir": (facts.upper or "") if facts else "",
        "WorkDir": (facts.work or "") if facts else "",
    }


def _why_unknown(mount: Mount) -> str:
    """Why a mount's daemon does not say what it is."""
    if mount.owner in (None, os.geteuid()):
        return f"{_UNKNOWN} (its daemon has ended)"
    return f"{_UNKNOWN} (user {mount.owner}'s, whose daemon is not in sight)"


def _shown(facts: Facts) -> str:
    """The image, or the lower directories."""
    if facts.image is None:
        top, *others = facts.lowers
        return f"{top} and {len(others)} more" if others else top
    # Of an image without a name, this is its id.
    name = facts.image.name
    name = common.short(Digest.parse(name)) if name == facts.image.id else common.familiar(name)
    return f"{name} ({facts.image.part})" if facts.image.part else name


def _changes(facts: Facts) -> str:
    if facts.upper is None:
        return "none"
    kept = facts.image is None or facts.image.keeps
    return facts.upper if kept else "until it is unmounted"
