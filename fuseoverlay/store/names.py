"""What the store's images are called: `index.json`, as the image-spec has it.

Each entry is a descriptor of a manifest or index. Its annotation
`org.opencontainers.image.ref.name` is the full name: `docker.io/library/debian:12`. An image may
have several entries, one for each of its names. Without a name it is dangling. What other tools
write here is kept: entries, fields and annotations that mean nothing to us. Source: OCI image-spec
image-layout.md, annotations.md.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from fuseoverlay.errors import ImageError, StoreError
from fuseoverlay.oci import model
from fuseoverlay.oci.job import store_error
from fuseoverlay.oci.model import Descriptor, Digest
from fuseoverlay.store.root import Store, open_regular

#: On an entry that had a name: the repository of that name, so that it can still be told where the
#: image came from.
REPOSITORY: Final = "fuseoverlay.repository"

_INDEX: Final = "index.json"
_Raw = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the index: `name` is None if it is dangling; `repository` is then where it came
    from, if that is known. `raw` is the JSON object, not to be changed."""

    name: str | None
    descriptor: Descriptor
    repository: str | None = None
    raw: _Raw = field(default_factory=dict, repr=False, compare=False)


class Names:
    """The names in `store`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def entries(self) -> list[Entry]:
        """All entries that are descriptors, in their order. ImageError if the index is damaged."""
        return _listed(self._read()[0])

    @contextlib.contextmanager
    def editing(self) -> Iterator[Editing]:
        """The names, to be changed by this process alone; at the end the file is replaced, unless
        an exception ends it. Inside `Store.locked`, so not for long. ImageError, StoreError."""
        try:
            with self._store.locked():
                editing = Editing(*self._read(), self._write)
                yield editing
                editing.save()
        except OSError as exc:
            raise store_error(exc, "the names cannot be changed", self._store.root) from exc

    def _read(self) -> tuple[_Raw, object]:
        """The index, and which file it was read from."""
        path = self._store.root / _INDEX
        try:
            with open_regular(path) as file:
                text, version = file.read(), _version(os.fstat(file.fileno()))
        except FileNotFoundError:
            if (self._store.root / "version").exists():
                raise StoreError(
                    "the names of all images are gone",
                    where=path,
                    hint="put the file back, or remove the whole store",
                ) from None
            text, version = b'{"schemaVersion":2}', None
        except OSError as exc:
            raise store_error(exc, "the names cannot be read", path) from exc
        try:
            data = model.decode_json(text, path)
            media_type = model.expect_fields(data, "index").get("mediaType") or model.OCI_INDEX
            model.check_media_type(media_type, model.INDEX_TYPES, "index")
            return _with_list(data), version
        except ImageError as exc:
            exc.where = path
            raise

    def _write(self, data: _Raw, version: object) -> object:
        """Replace the index that was read as `version`; which file it is now."""
        path = self._store.root / _INDEX
        with contextlib.suppress(FileNotFoundError):
            # Other tools know nothing of the lock.
            if _version(os.stat(path)) != version:
                what = "another program changed the names at the same time"
                raise StoreError(what, where=path, hint="try again")
        self._store.write(_INDEX, _encoded(data))
        return _version(os.stat(path))


class Editing:
    """Names that are being changed."""

    def __init__(
        self, data: _Raw, version: object, write: Callable[[_Raw, object], object]
    ) -> None:
        self._data = data
        self._saved = copy.deepcopy(data)
        self._version = version
        self._write = write

    def entries(self) -> list[Entry]:
        """All entries as they are now."""
        return _listed(self._data)

    @property
    def unknown(self) -> int:
        """How many entries are nothing that we understand."""
        return len(self._data["manifests"]) - len(self.entries())

    def set(self, name: str, image: Descriptor | Entry) -> Digest | None:
        """Let `name` be this image's; returns the digest of the one that had it before.

        That one stays, as a dangling image if it was its only name.
        """
        raw = image.raw if isinstance(image, Entry) else image.to_json()
        digest = Digest.parse(raw["digest"])
        before = [entry.descriptor.digest for entry in self.entries() if entry.name == name]
        if before == [digest]:
            return digest
        self.take_away({name})
        self._drop(lambda entry: entry.name is None and entry.descriptor.digest == digest)
        names = {model.REF_NAME: name, model.CONTAINERD_NAME: None, REPOSITORY: None}
        self._add(_annotated(raw, names))
        return before[0] if before else None

    def take_away(self, names: Collection[str]) -> None:
        """Images lose these names. One that has no other becomes dangling."""
        lost = self._drop(lambda entry: entry.name in names)
        for entry in lost:
            repository = repository_of(entry.name or "")
            self._keep(entry.raw, repository)

    def untag(self, names: Collection[str]) -> None:
        """Drop these names; nothing is left of their entries."""
        self._drop(lambda entry: entry.name in names)

    def keep(self, descriptor: Descriptor, repository: str | None = None) -> None:
        """List an image without a name, unless it is listed already."""
        self._keep(descriptor.to_json(), repository)

    def forget(self, digests: Collection[Digest]) -> None:
        """Drop all entries of the images with these manifests or indexes."""
        self._drop(lambda entry: entry.descriptor.digest in digests)

    def cancel(self) -> None:
        """Forget what was changed since `save`."""
        self._data = copy.deepcopy(self._saved)

    def save(self) -> None:
        """Write the changes, durably. OSError, StoreError."""
        if self._data != self._saved:
            self._version = self._write(self._data, self._version)
            self._saved = copy.deepcopy(self._data)

    def _keep(self, raw: _Raw, repository: str | None) -> None:
        digest = Digest.parse(raw["digest"])
        if all(entry.descriptor.digest != digest for entry in self.entries()):
            names = {model.REF_NAME: None, model.CONTAINERD_NAME: None, REPOSITORY: repository}
            self._add(_annotated(raw, names))

    def _add(self, raw: _Raw) -> None:
        self._data["manifests"].append(raw)

    def _drop(self, unwanted: Callable[[Entry], bool]) -> list[Entry]:
        dropped = [entry for entry in self.entries() if unwanted(entry)]
        gone = {id(entry.raw) for entry in dropped}
        self._data["manifests"] = [raw for raw in self._data["manifests"] if id(raw) not in gone]
        return dropped


def repository_of(name: str) -> str:
    """HOST/REPOSITORY of a full name, without tag and digest."""
    above, slash, last = name.partition("@")[0].rpartition("/")
    return above + slash + last.partition(":")[0]


def _version(st: os.stat_result) -> object:
    return st.st_ino, st.st_mtime_ns, st.st_size


def _with_list(data: _Raw) -> _Raw:
    """The index with the key `manifests` as we spell it. Go ignores case, and writes an empty list
    as null."""
    listed = model.expect_fields(data, "index").get("manifests")
    listed = [] if listed is None else listed
    if not isinstance(listed, list):
        raise ImageError("manifests: not a JSON array")
    others = {key: value for key, value in data.items() if key.casefold() != "manifests"}
    return {**others, "manifests": listed}


def _listed(data: _Raw) -> list[Entry]:
    """The entries that we understand."""
    found = []
    for raw in data["manifests"]:
        with contextlib.suppress(ImageError):
            descriptor = Descriptor.parse(raw)
            annotations = descriptor.annotations
            name = annotations.get(model.REF_NAME) or None
            found.append(Entry(name, descriptor, annotations.get(REPOSITORY), raw))
    return found


def _annotated(raw: _Raw, changes: dict[str, str | None]) -> _Raw:
    """A copy of the entry with annotations set, or removed where the value is None."""
    annotations = dict(model.expect_fields(raw, "descriptor").get("annotations") or {})
    for key, value in changes.items():
        annotations.pop(key, None)
        if value is not None:
            annotations[key] = value
    others = {key: value for key, value in raw.items() if key.casefold() != "annotations"}
    return {**others, "annotations": annotations} if annotations else others


def _encoded(data: _Raw) -> bytes:
    try:
        return json.dumps(data, separators=(",", ":"), allow_nan=False).encode()
    except ValueError as exc:
        what = "the index holds a number that is too large to be kept"
        raise StoreError(what, where=_INDEX, hint="correct it") from exc
