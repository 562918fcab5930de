"""`fuseoverlay image verify`: every digest anew, and what it takes to repair what is wrong."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import trio

from fuseoverlay.commands import output
from fuseoverlay.commands.image import arrivals, common, fetching
from fuseoverlay.commands.parser import Parser
from fuseoverlay.errors import DigestError, FuseOverlayError, ImageError, RegistryError
from fuseoverlay.oci.model import Descriptor, Digest
from fuseoverlay.oci.reference import Reference
from fuseoverlay.registry.settings import Settings
from fuseoverlay.store import verifylayers
from fuseoverlay.store.images import Image, Images
from fuseoverlay.store.names import Entry, repository_of
from fuseoverlay.store.pull import fetch
from fuseoverlay.store.verify import Broken, aside, verify
from fuseoverlay.store.verifylayers import Changed


def command(argv: list[str], prog: str) -> int:
    """Verify images; returns the exit code."""
    args = parser(prog).parse_args(argv)
    images = common.images_at(args.root)
    fetching.silence_requests()
    work = _Work(images, _entries(images, args.images), fetching.settings_of(args), args.repair)
    wrong = work.blobs() + work.layers()
    if not wrong:
        output.say("Everything is as its digest says.")
    return DigestError.exit_code if work.left else 0


def parser(prog: str) -> Parser:
    """The parser of its arguments."""
    made = common.parser(
        prog, "Read everything that images need, and say what is not as its digest says. Unpacked "
        "layers are unpacked once more and compared, but for their times.",
        prog, f"{prog} --repair debian:12",
    )  # fmt: skip
    made.add_argument("images", nargs="*", metavar="IMAGE",
                      help="a name, an id, its beginning (default: all)")  # fmt: skip
    made.add_argument("--repair", action="store_true",
                      help="fetch again what is wrong, where an image's repository is known; "
                      "remove wrong unpacked layers, so that they are unpacked again")  # fmt: skip
    fetching.add_options(made)
    return made


def _entries(images: Images, words: list[str]) -> list[Entry]:
    if not words:
        return images.names.entries()
    found: list[Entry] = []
    for word in words:
        image, entry = images.find(word)
        found += [entry] if entry else image.entries
    return found


class _Work:
    """One verification. `left`: how much is wrong at the end."""

    def __init__(
        self, images: Images, entries: list[Entry], settings: Settings, repair: bool
    ) -> None:
        self._images = images
        self._entries = entries
        self._settings = settings
        self._repair = repair
        self.left = 0

    def blobs(self) -> int:
        """Verify all blobs; how many were wrong."""
        wrong: set[Digest] = set()
        given_up: set[Digest] = set()
        # What a manifest names is only known once it is there.
        while found := [
            broken
            for broken in verify(self._images, self._entries)
            if broken.blob.digest not in given_up
        ]:
            wrong |= {broken.blob.digest for broken in found}
            given_up |= {broken.blob.digest for broken in found if not self._handled(broken)}
        self.left += len(given_up)
        return len(wrong)

    def layers(self) -> int:
        """Compare all unpacked layers; how many were wrong."""
        if not self._images.store.is_writable():
            return 0
        images = self._images.of(self._entries)
        found = verifylayers.changed(self._images, images)
        for layer in found:
            self._handle(layer)
        return len(found)

    def _handled(self, broken: Broken) -> bool:
        """Say what is wrong with a blob; whether it was repaired."""
        told = f"{broken.blob.digest}: {broken.problem}; needed by {_names(broken.entries)}"
        sources = list(_sources(broken.entries))
        if not self._repair:
            output.say(f"{told}; {_advice(sources, broken.entries)}")
            return False
        output.say(told)
        for source in sources:
            try:
                self._fetch(broken.blob, source)
            except (RegistryError, ImageError) as exc:
                output.complain("error", str(exc))
            else:
                output.say(f"{broken.blob.digest}: repaired from {source.name}")
                return True
        output.complain("error", f"{broken.blob.digest}: not repaired; load or pull "
                        f"{_names(broken.entries)} from where it came")  # fmt: skip
        return False

    def _fetch(self, blob: Descriptor, source: Reference) -> None:
        with arrivals.shown(arrivals.coming, quiet=False) as progress:
            work = functools.partial(
                fetch, self._images.content, source, blob, settings=self._settings,
                progress=progress,
            )  # fmt: skip
            with aside(self._images, blob):
                trio.run(work)

    def _handle(self, layer: Changed) -> None:
        where = layer.path.relative_to(self._images.store.root)
        told = f"{where}: {layer.name} was changed; used by {_name(layer.image)}"
        if not self._repair:
            output.say(f"{told}; --repair removes it, so that it is unpacked again")
        elif verifylayers.remove(self._images, layer):
            output.say(f"{told}; removed, the next mount unpacks it again")
            return
        else:
            output.complain("error", f"{told}; a mount uses it: unmount that, and repair again")
        self.left += 1


def _sources(entries: tuple[Entry, ...]) -> Iterator[Reference]:
    """The repositories that images came from, each once."""
    names = [repository_of(entry.name) if entry.name else entry.repository for entry in entries]
    for name in dict.fromkeys(name for name in names if name):
        try:
            yield Reference.parse(name)
        except FuseOverlayError:
            # Other tools' names need not be those of registries.
            continue


def _advice(sources: list[Reference], entries: tuple[Entry, ...]) -> str:
    if sources:
        return f"--repair fetches it from {' or '.join(source.name for source in sources)}"
    return f"load {_names(entries)} again from where it came"


def _names(entries: tuple[Entry, ...]) -> str:
    return ", ".join(
        common.familiar(entry.name) if entry.name else common.short(entry.descriptor.digest)
        for entry in entries
    )


def _name(image: Image) -> str:
    return common.familiar(image.names[0]) if image.names else common.short(image.id)
