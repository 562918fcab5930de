"""`fuseoverlay load`: images from a file, a directory or standard input."""

from __future__ import annotations

import contextlib
import functools
import shutil
import sys
from collections.abc import Iterator

from fuseoverlay.commands import output, progress
from fuseoverlay.commands.image import common
from fuseoverlay.commands.parser import Parser
from fuseoverlay.errors import FuseOverlayError, ImageError, UsageError, printable
from fuseoverlay.oci import names
from fuseoverlay.oci.job import store_error
from fuseoverlay.store import daemon, layers
from fuseoverlay.store.images import Image, Images
from fuseoverlay.store.load import Loaded, load
from fuseoverlay.store.names import Entry
from fuseoverlay.store.root import Store


def command(argv: list[str], prog: str) -> int:
    """Load images and unpack them; returns the exit code."""
    args = parser(prog).parse_args(argv)
    if args.input is not None and args.file is not None:
        raise UsageError("two files are given", hint="leave -i or FILE out")
    platform = common.platform(args.platform)
    images = common.images_at(args.root)
    with output.advising(), _source(images.store, args.input or args.file) as (path, ref):
        found = load(
            images.store, path, ref=ref, platform=platform, name=args.name,
            unpack=functools.partial(_unpack, images, quiet=args.quiet),
        )  # fmt: skip
    for one in found:
        _tell(images, one)
    return 0


def parser(prog: str) -> Parser:
    """The parser of its arguments."""
    made = common.parser(
        prog, "Load images from an OCI layout, an OCI archive or a docker-save archive.",
        f"{prog} -i image.tar", f"docker save debian:12 | {prog}",
    )  # fmt: skip
    made.add_argument("file", nargs="?", metavar="FILE", help="the same as -i FILE")
    made.add_argument("-i", "--input", metavar="FILE",
                        help="a file or directory, with :REF one image of it; or "
                        "docker-daemon:NAME (default: standard input)")  # fmt: skip
    made.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    made.add_argument("--platform", metavar="OS/ARCH[/VARIANT]",
                        help="only this one of a multi-platform image (default: all)")  # fmt: skip
    made.add_argument("--name", metavar="NAME[:TAG]",
                      help="name for the image, if there is just one")  # fmt: skip
    return made


@contextlib.contextmanager
def _source(store: Store, file: str | None) -> Iterator[tuple[str, str | None]]:
    """The path to read, and which image of it, if not all. Standard input is copied into the store
    for as long as it takes."""
    if file is not None:
        with _named(store, file) as named:
            yield named
        return
    if sys.stdin.isatty():
        raise UsageError("no file is given", hint="write -i FILE, or pipe an archive in")
    with store.workspace() as work:
        path = work / "standard-input.tar"
        try:
            with path.open("wb") as target:
                shutil.copyfileobj(sys.stdin.buffer, target, 1 << 20)
        except OSError as exc:
            raise store_error(exc, "cannot copy standard input", store.root) from exc
        with _called(str(path), "standard input"):
            if not path.stat().st_size:
                raise ImageError("there is nothing in it", where=path, hint="pipe an archive in")
            yield str(path), None


@contextlib.contextmanager
def _called(path: str, name: str) -> Iterator[None]:
    """In errors, call the file by this name instead of its path."""
    try:
        yield
    except FuseOverlayError as exc:
        exc.what = exc.what.replace(path, name)
        exc.where = None if exc.where is None else printable(exc.where).replace(path, name)
        raise


@contextlib.contextmanager
def _named(store: Store, file: str) -> Iterator[tuple[str, str | None]]:
    """The same of a file that may have a transport before its name, and REF behind it."""
    match names.transport(file):
        case "docker-daemon":
            with daemon.archive(store, file.partition(":")[2]) as archive:
                yield str(archive), None
        case "docker":
            raise UsageError(f"{file} is in a registry", hint=f"write fuseoverlay pull {file}")
        case "containers-storage":
            name = file.partition(":")[2]
            raise UsageError(
                "podman's store does not have layers as they were",
                hint=f"mount {file} as it is, or: podman save {name} | fuseoverlay load",
            )
        case _:
            yield names.find(file)


def _image(images: Images, loaded: Loaded) -> Image:
    """Of several platforms, the one for this machine."""
    (image,) = images.of([Entry(loaded.name, loaded.descriptor)])
    return image


def _unpack(images: Images, image: Image, *, quiet: bool) -> None:
    """Unpack it, so that it can be mounted at once."""
    with (
        progress.shown("Unpacking", quiet=quiet) as report,
        layers.stored(
            images.store, image.manifest, str(image.id), check_platform=False, progress=report,
            warn=output.warn,
        ) as found,
    ):  # fmt: skip
        found.layers()


def _tell(images: Images, loaded: Loaded) -> None:
    if loaded.name is None:
        output.say(f"Loaded image ID: {_image(images, loaded).id}")
        return
    name = common.familiar(loaded.name)
    if loaded.replaced is not None:
        output.say(f"{name} was the name of another image, which has no name now")
    output.say(f"Loaded image: {name}")
