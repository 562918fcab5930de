"""What the commands for images share: the store that they work on, names as Docker shows them."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from fuseoverlay.commands import output
from fuseoverlay.commands.parser import Parser
from fuseoverlay.commands.show import table
from fuseoverlay.errors import FuseOverlayError, ImageError, UsageError
from fuseoverlay.oci import names
from fuseoverlay.oci.model import Digest, Platform
from fuseoverlay.oci.reference import Reference
from fuseoverlay.registry import shortnames
from fuseoverlay.store.images import SHORT_ID, Image, Images, NoImageError
from fuseoverlay.store.names import Entry
from fuseoverlay.store.root import Store, default_root

#: What stands where there is no name.
NONE = "<none>"
#: How a switch may be told whether it is meant, as for Go's ParseBool.
_TRUTH: Final[Mapping[bool, tuple[str, ...]]] = {
    True: ("true", "True", "TRUE", "t", "T", "1"),
    False: ("false", "False", "FALSE", "f", "F", "0"),
}


def parser(
    prog: str, description: str, *examples: str, manual: str = "fuseoverlay(1)"
) -> Parser:  # fmt: skip
    """A parser with the option `--root`, and examples in its help."""
    text = "\n".join(["Examples:", *(f"  {line}" for line in examples)])
    made = Parser(prog=prog, description=description, epilog=text, manual=manual)
    made.add_argument("--root", metavar="DIR", help="the store (default $FUSEOVERLAY_ROOT, else "
                      "$XDG_DATA_HOME/fuseoverlay)")  # fmt: skip
    return made


def add_platform(made: Parser) -> None:
    """The option that chooses of several platforms."""
    made.add_argument("--platform", metavar="OS/ARCH[/VARIANT]",
                      help="which of several platforms (default: this machine's)")  # fmt: skip


def platform(text: str | None) -> Platform | None:
    """The platform that was asked for. Raises `ImageError`."""
    return Platform.parse(text) if text else None


def images_at(root: str | None) -> Images:
    """The images of the store at `root`, or of the default one. Raises `StoreError`."""
    if root == "":
        raise UsageError("--root is empty", hint="write it out; a variable may not be set")
    store = Store(root or default_root())
    store.prepare()
    return _Images(store, shortnames.meanings)


class _Images(Images):
    """Says what to do with names of files."""

    def find(self, text: str, platform: Platform | None = None) -> tuple[Image, Entry | None]:
        try:
            return super().find(text, platform)
        except NoImageError:
            names.check_stored(text)
            raise


@contextlib.contextmanager
def found(images: Images, text: str, platform: Platform | None) -> Iterator[tuple[Images, Image]]:
    """The image that `text` names, and what it is one of: `images`, or those of a file, which stays
    where it is. Raises `ImageError`."""
    try:
        image = images.resolve(text, platform)
    except ImageError:
        if not (names.is_path(text) or names.transport(text) in names.FILES):
            raise
    else:
        yield images, image
        return
    from fuseoverlay.store import describing

    with describing.described(text, platform) as (others, image):
        yield others, image


def familiar(name: str) -> str:
    """A full name as Docker shows it; a name that is none of a registry stays as it is."""
    try:
        reference = Reference.parse(name)
    except ImageError:
        return name
    return reference.familiar() if str(reference) == name else name


def familiar_repository(name: str) -> str:
    """The full name of a repository as Docker shows it."""
    return familiar(f"{name}:latest").removesuffix(":latest")


def split(name: str) -> tuple[str, str]:
    """Repository and tag as Docker shows them."""
    shown = familiar(name)
    repository, colon, tag = shown.rpartition(":")
    if not colon or "/" in tag or "@" in shown:
        return shown.partition("@")[0], NONE
    return repository, tag


def short(digest: Digest, *, whole: bool = False) -> str:
    """The first digits of an id, or all of it."""
    return str(digest) if whole else digest.hex[:SHORT_ID]


def add_switch(made: argparse.ArgumentParser, *names: str, default: bool | None, help: str) -> None:
    """A switch as those of Docker and podman: it stands alone, and never takes the next word, or
    has a value behind `=`."""
    made.add_argument(*names, action="store_true", default=default, help=help)
    (dest,) = {name.lstrip("-").replace("-", "_") for name in names if name.startswith("--")}
    for value, words in _TRUTH.items():
        # Names of options may have an equals sign in them.
        made.add_argument(
            *(f"{name}={word}" for name in names for word in words), dest=dest, default=default,
            action="store_const", const=value, help=argparse.SUPPRESS,
        )  # fmt: skip


def show(
    rows: Iterable[table.Row], headings: Mapping[str, str], form: str | None, columns: Sequence[str]
) -> None:
    """Print rows in the form that `--format` asks for; by default as a table of these columns.
    Raises `UsageError`."""
    chosen = table.by_default(columns) if form in (None, "table") else form
    for line in table.listing(rows, headings, chosen):
        output.say(line)


def each(words: Iterable[str], act: Callable[[str], None]) -> int:
    """Do `act` for each word, also after one failed; returns the exit code of the first error."""
    code = 0
    for word in words:
        try:
            act(word)
        except output.NobodyReadsError:
            raise
        except FuseOverlayError as exc:
            output.complain("error", str(exc))
            code = code or exc.exit_code
    return code


def confirmed(question: str) -> bool:
    """Ask on the terminal. Where there is none, nobody can agree."""
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
