"""`fuseoverlay inspect`: all about images, as JSON with Docker's fields."""

from __future__ import annotations

import json
import os
from typing import Any, Final

from fuseoverlay.commands import mounts as listing
from fuseoverlay.commands import output
from fuseoverlay.commands.image import common
from fuseoverlay.commands.parser import Parser
from fuseoverlay.commands.show.template import Object, Template
from fuseoverlay.errors import visible
from fuseoverlay.fuse import mounts
from fuseoverlay.oci import model
from fuseoverlay.store import places
from fuseoverlay.store.images import Image, Images


def command(argv: list[str], prog: str) -> int:
    """Show images; returns the exit code. Those that are there are shown if one is not."""
    args = parser(prog).parse_args(argv)
    images = common.images_at(args.root)
    form = None if args.format in (None, "json") else Template(args.format)
    platform = common.platform(args.platform)
    found: list[dict[str, Any]] = []

    def show(word: str) -> None:
        with common.found(images, word, platform) as (where, image):
            data = described(where, image)
        if form is None:
            found.append(data)
        else:
            output.say("\n".join(map(visible, form.fill(_fields(data)).split("\n"))))

    code = common.each(args.images, show)
    if form is None:
        output.say(json.dumps(found, indent=4 if args.format is None else None))
    return code


def parser(prog: str) -> Parser:
    """The parser of its arguments."""
    made = common.parser(
        prog, "Show details of images.",
        f"{prog} debian:12", f"{prog} --format '{{{{json .Config.Env}}}}' debian:12",
    )  # fmt: skip
    made.add_argument(
        "images", nargs="+", metavar="IMAGE", help="a name, an id or its beginning, or a file"
    )
    made.add_argument("-f", "--format", metavar="TEMPLATE", help="json, or a template")
    common.add_platform(made)
    made.add_argument("--type", choices=["image"], help="image, which is all there is")
    return made


def _fields(data: dict[str, Any]) -> dict[str, Any]:
    """What a template may name: also what only some images have."""
    config, driver = data["Config"], data["GraphDriver"]
    labels, directories = config["Labels"], driver["Data"]
    inner = {
        "Config": Object({**config, "Labels": labels and Object(labels)}, _ABSENT),
        "GraphDriver": {**driver, "Data": directories and Object(directories)},
    }
    return Object({**data, "ID": data["Id"], **inner}, dict.fromkeys(_OPTIONAL, ""))


def described(images: Images, image: Image) -> dict[str, Any]:
    """What `docker image inspect` says of an image. Raises `ImageError`."""
    config = model.expect_fields(images.config(image), "image config")
    steps = images.history(image)
    inner = config.get("config")
    about = {
        "Id": str(image.id),
        "RepoTags": [common.familiar(name) for name in image.names],
        "RepoDigests": [common.familiar(name) for name in image.repo_digests],
        "Comment": steps[-1].comment if steps else "",
        "Created": image.created,
        "Author": config.get("author") or "",
        "Config": {**_CONFIG, **(inner if isinstance(inner, dict) else {})},
        "Architecture": config.get("architecture") or "",
        "Variant": config.get("variant") or "",
        "Os": config.get("os") or "",
        "OsVersion": config.get("os.version") or "",
        "Size": sum(image.layer_sizes),
        "GraphDriver": {
            "Name": "fuseoverlay",
            "Data": {**_directories(images, image), **_mounted(image)} or None,
        },
        "RootFS": {"Type": "layers", "Layers": [str(digest) for digest in image.diff_ids]},
        "Descriptor": image.entries[0].descriptor.to_json() if image.entries else None,
    }
    return {key: value for key, value in about.items() if value or key not in _OPTIONAL}


#: What a config that does not say has, for Docker.
_CONFIG: Final[dict[str, Any]] = {
    **dict.fromkeys(("Hostname", "Domainname", "User"), ""),
    **dict.fromkeys(("AttachStdin", "AttachStdout", "AttachStderr"), False),
    **dict.fromkeys(("Tty", "OpenStdin", "StdinOnce"), False),
    "Env": None,
    "Cmd": None,
    "Image": "",
    "Volumes": None,
    "WorkingDir": "",
    "Entrypoint": None,
    "OnBuild": None,
    "Labels": None,
}
#: Left out where there is nothing to say, as Docker does.
_OPTIONAL = ("Variant", "OsVersion")
#: What the fields are that a config may lack.
_ABSENT: Final[dict[str, Any]] = {
    "ExposedPorts": {},
    "Healthcheck": None,
    "Shell": [],
    "StopSignal": "",
    "StopTimeout": None,
}


def _directories(images: Images, image: Image) -> dict[str, str]:
    """Where the layers are unpacked, top first; nothing where they are not."""
    root = images.store.root
    for base in (places.REAL, places.OVERRIDE):
        found = [
            next((path for place in pair if (path := root / base / place).is_dir()), None)
            for pair in places.places(image.diff_ids)
        ]
        if found and all(found):
            return {"LowerDir": ":".join(str(path) for path in reversed(found))}
    return {}


def _mounted(image: Image) -> dict[str, str]:
    """The mount of the image, the first if there are several; where its changes are."""
    for mount in listing.of_id(image.id, mounts.mounted()):
        facts = mount.facts
        found = {"UpperDir": facts and facts.upper, "WorkDir": facts and facts.work}
        changes = {key: path for key, path in found.items() if path}
        return {**changes, "MergedDir": os.fsdecode(mount.path)}
    return {}
