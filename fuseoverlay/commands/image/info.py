"""`fuseoverlay info`: the store, and what fuseoverlay runs on."""

from __future__ import annotations

import os
import platform
from typing import Any

from fuseoverlay import __version__
from fuseoverlay.commands import output
from fuseoverlay.commands.image import common
from fuseoverlay.commands.parser import Parser
from fuseoverlay.commands.show.template import Template
from fuseoverlay.oci.model import Platform
from fuseoverlay.store import layers, places
from fuseoverlay.store.images import Images


def command(argv: list[str], prog: str) -> int:
    """Show the store and the storage driver; returns the exit code."""
    args = parser(prog).parse_args(argv)
    about = _about(common.images_at(args.root))
    if args.format is not None:
        form = "{{json .}}" if args.format == "json" else args.format
        output.say(Template(form).fill(about))
        return 0
    output.say(f"Images: {about['Images']}")
    output.say(f"Unpacked Layers: {about['Layers']}")
    output.say(f"Storage Driver: {about['Driver']}")
    for key, value in about["DriverStatus"]:
        output.say(f" {key}: {value}")
    output.say(f"Kernel Version: {about['KernelVersion']}")
    output.say(f"Platform: {about['OSType']}/{about['Architecture']}")
    output.say(f"Python: {platform.python_version()}")
    output.say(f"Version: {about['ServerVersion']}")
    return 0


def parser(prog: str) -> Parser:
    """The parser of its arguments."""
    made = common.parser(prog, "Show the store and the storage driver.", f"{prog} -f "
                           "'{{.Driver}}'")  # fmt: skip
    made.add_argument("-f", "--format", metavar="TEMPLATE", help="json, or a template")
    return made


def _about(images: Images) -> dict[str, Any]:
    """With Docker's names, where it has one."""
    store = images.store
    host = Platform.host()
    owners = "recorded in extended attributes" if layers.override(store) else "real"
    return {
        "Images": len(images.all()),
        "Layers": len(places.unpacked(store)),
        "Driver": "fuseoverlay",
        "DriverStatus": [
            ["Root Dir", str(store.root)],
            ["File Owners", owners],
            ["Writable", "yes" if store.is_writable() else "no"],
        ],
        "KernelVersion": os.uname().release,
        "OSType": host.os,
        "Architecture": host.architecture,
        "ServerVersion": __version__,
        "DockerRootDir": str(store.root),
    }
