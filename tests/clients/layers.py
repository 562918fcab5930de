"""What is in the layers of an image, whoever made it."""

from __future__ import annotations

import hashlib
import itertools
import tarfile
from pathlib import Path
from typing import NamedTuple

from tests.clients.store import Store
from tests.helpers.layouts import layer_blobs

_NUMBERS = itertools.count()


class Entry(NamedTuple):
    """One entry of an archive. `names` are all that lead to the same file in there."""

    kind: bytes
    mode: int
    uid: int
    gid: int
    size: int
    #: Seconds; 0: since the store was made.
    mtime: int
    target: str
    device: tuple[int, int]
    attributes: tuple[tuple[str, str], ...]
    digest: str
    names: tuple[str, ...]


#: None: the name is deleted.
Layer = dict[str, Entry | None]
_DELETED, _OPAQUE = ".wh.", ".wh..wh..opq"


def layers(store: Store, image: str) -> list[Layer]:
    """The layers of an image in the store, the lowest first, as `skopeo copy` writes them.

    A deletion is one name, whether the archive has an entry for each that a directory lost, or
    an opaque mark: the kernel's driver writes those, podman's comparison of trees does not.
    """
    place = store.base / "tmp" / f"pushed{next(_NUMBERS)}"
    store.run("skopeo", "copy", "--quiet", f"containers-storage:{image}", f"oci:{place}:it")
    found: list[Layer] = []
    present: set[str] = set()
    for blob in layer_blobs(place):
        layer, opaque = _read(blob, store.born)
        for directory in opaque:
            _delete_below(directory, layer, present)
        _apply(layer, present)
        found.append(layer)
    return found


def _delete_below(directory: str, layer: Layer, present: set[str]) -> None:
    """Name what the layer's opaque directory hides."""
    for path in present:
        parent = path.rpartition("/")[0]
        if path.startswith(f"{directory}/") and path not in layer and layer.get(parent):
            layer[path] = None


def _apply(layer: Layer, present: set[str]) -> None:
    gone = {path for path, entry in layer.items() if entry is None or entry.kind != tarfile.DIRTYPE}
    for path in list(present):
        parents = itertools.accumulate(path.split("/"), "{}/{}".format)
        if not gone.isdisjoint(parents):
            present.discard(path)
    present.update(path for path, entry in layer.items() if entry is not None)


def _read(path: Path, born: int) -> tuple[Layer, list[str]]:
    """Entries of an archive, and its opaque directories."""
    found: Layer = {}
    opaque: list[str] = []
    with tarfile.open(path) as archive:
        members: dict[str, tarfile.TarInfo] = {}
        for member in archive:
            directory, _, name = member.name.rstrip("/").rpartition("/")
            if name == _OPAQUE:
                opaque.append(directory)
            elif name.startswith(_DELETED):
                found[f"{directory}/{name.removeprefix(_DELETED)}".lstrip("/")] = None
            else:
                members[member.name.rstrip("/")] = member
        groups: dict[str, set[str]] = {}
        for name, member in members.items():
            groups.setdefault(member.linkname if member.islnk() else name, set()).add(name)
        for first, names in groups.items():
            entry = _entry(archive, members[first], tuple(sorted(names)), born)
            found.update(dict.fromkeys(names, entry))
    return found, opaque


def _entry(
    archive: tarfile.TarFile, member: tarfile.TarInfo, names: tuple[str, ...], born: int
) -> Entry:
    content = archive.extractfile(member) if member.isreg() else None
    attributes = sorted(
        (key, value) for key, value in member.pax_headers.items() if key.startswith("SCHILY.xattr.")
    )
    return Entry(
        member.type,
        member.mode,
        member.uid,
        member.gid,
        member.size,
        int(member.mtime) if member.mtime < born else 0,
        member.linkname,
        (member.devmajor, member.devminor),
        tuple(attributes),
        hashlib.sha256(content.read()).hexdigest() if content else "",
        names,
    )


def differences(expected: Layer, actual: Layer) -> list[str]:
    """One line for every entry that is not the same."""
    return [
        f"{name}: should be {expected.get(name, 'absent')}, is {actual.get(name, 'absent')}"
        for name in sorted(expected.keys() | actual.keys())
        if expected.get(name, ...) != actual.get(name, ...)
    ]
