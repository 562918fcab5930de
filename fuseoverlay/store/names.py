"""What the store's images are called: `index.json`, as the image-spec has it.

Each entry is a descriptor of a manifest or index; its annotation `org.opencontainers.image.ref.name`
is the full name: `docker.io/library/debian:12`. An image may have several entries, one for each of
its names. Without a name it is dangling. What other tools write here is kept: entries, fields and
annotations that mean nothing to us. Source: OCI image-spec image-layout.md, annotations.md.
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any, Final

from fuseoverlay.errors import FuseOverlayError, ImageError, StoreError
from fuseoverlay.oci import model
from fuseoverlay.oci.job import store_error
from fuseoverlay.oci.model import Descriptor, Digest
from fuseoverlay.store.root import Store

#: On an entry that had a name: the repository of that name, so that it can still be told where the
#: image came from.
REPOSITORY: Final = "fuseoverlay.repository"

_INDEX: Final = "index.json"


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the index: `name` is None if it is dangling, `repository` where it came from
    then, if that is known."""

    name: str | None
    descriptor: Descriptor
    repository: str | None = None


class Names:
    """The names in `store`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def entries(self) -> list[Entry]:
        """All entries that are descriptors, in their order. ImageError if the index is damaged."""
        return [entry for _, entry in _listed(self._read())]

    def set(self, name: str, descriptor: Descriptor) -> Digest | None:
        """Let `name` be this image's, durably; returns the digest of the image that had it.

        The latter stays, as a dangling image if that was its only name. ImageError, StoreError.
        """
        before: list[Digest] = []

        def change(data: dict[str, Any]) -> None:
            before[:] = [entry.descriptor.digest for _, entry in _listed(data) if entry.name == name]
            _take_away(data, {name})
            _drop_dangling(data, {descriptor.digest})
            data["manifests"].append(_named(descriptor, name))

        self.change(change)
        return before[0] if before else None

    def take_away(self, names: Collection[str]) -> None:
        """Images lose these names; those that have no other become dangling."""
        self.change(lambda data: _take_away(data, names))

    def keep(self, descriptor: Descriptor, repository: str | None = None) -> None:
        """List an image without a name, unless it is listed already."""

        def change(data: dict[str, Any]) -> None:
            if all(entry.descriptor.digest != descriptor.digest for _, entry in _listed(data)):
                more = {REPOSITORY: repository} if repository else {}
                data["manifests"].append(_unnamed(descriptor, more))

        self.change(change)

    def change(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Let `change` edit the decoded index, alone. It is replaced if that made a difference."""
        with self._errors(), self._store.locked():
            self.change_locked(change)

    def change_locked(self, change: Callable[[dict[str, Any]], None]) -> None:
        """`change` inside `Store.locked`. OSError, ImageError, StoreError."""
        data = self._read()
        before = copy.deepcopy(data)
        change(data)
        if data != before:
            self._store.write(_INDEX, _encoded(data))

    @contextlib.contextmanager
    def _errors(self) -> Any:
        try:
            yield
        except OSError as exc:
            raise store_error(exc, "the names cannot be changed", self._store.root) from exc

    def _read(self) -> dict[str, Any]:
        path = self._store.root / _INDEX
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            return {"schemaVersion": 2, "mediaType": model.OCI_INDEX, "manifests": []}
        except OSError as exc:
            raise store_error(exc, "the names cannot be read", path) from exc
        data = model.decode_json(text, path)
        try:
            model.check_media_type(
                model.expect_fields(data, "index").get("mediaType", model.OCI_INDEX),
                model.INDEX_TYPES,
                "index",
            )
        except ImageError as exc:
            exc.where = path
            raise
        # Go writes an empty list as null.
        data["manifests"] = data.get("manifests") or []
        if not isinstance(data["manifests"], list):
            raise ImageError("manifests: not a JSON array", where=path)
        return dict(data)


def forget(data: dict[str, Any], digests: Collection[Digest]) -> None:
    """Change for `Names.change`: drop every entry of these images, named or not."""
    listed = [raw for raw, entry in _listed(data) if entry.descriptor.digest in digests]
    data["manifests"] = [raw for raw in data["manifests"] if not _is_in(raw, listed)]


def untag(data: dict[str, Any], names: Collection[str]) -> None:
    """Change for `Names.change`: drop these names, with nothing left of their entries."""
    listed = [raw for raw, entry in _listed(data) if entry.name in names]
    data["manifests"] = [raw for raw in data["manifests"] if not _is_in(raw, listed)]


def repository_of(name: str) -> str:
    """HOST/REPOSITORY of a full name, without tag and digest."""
    rest = name.partition("@")[0]
    above, slash, last = rest.rpartition("/")
    return above + slash + last.partition(":")[0]


def _listed(data: dict[str, Any]) -> list[tuple[dict[str, Any], Entry]]:
    """The entries that we understand, each with the JSON object that it is."""
    found = []
    for raw in data["manifests"]:
        with contextlib.suppress(FuseOverlayError):
            descriptor = Descriptor.parse(raw)
            annotations = descriptor.annotations
            name = annotations.get(model.REF_NAME) or None
            found.append((raw, Entry(name, descriptor, annotations.get(REPOSITORY))))
    return found


def _take_away(data: dict[str, Any], names: Collection[str]) -> None:
    listed = _listed(data)
    for raw, entry in listed:
        if entry.name in names:
            data["manifests"] = [other for other in data["manifests"] if other is not raw]
            digest = entry.descriptor.digest
            if all(other.descriptor.digest != digest for _, other in _listed(data)):
                data["manifests"].append(_without_name(raw, entry))


def _drop_dangling(data: dict[str, Any], digests: Collection[Digest]) -> None:
    """An image that gets a name needs no entry without one."""
    dangling = [
        raw
        for raw, entry in _listed(data)
        if entry.name is None and entry.descriptor.digest in digests
    ]
    data["manifests"] = [raw for raw in data["manifests"] if not _is_in(raw, dangling)]


def _is_in(raw: object, found: list[dict[str, Any]]) -> bool:
    return any(raw is other for other in found)


def _without_name(raw: dict[str, Any], entry: Entry) -> dict[str, Any]:
    changed = copy.deepcopy(raw)
    annotations = changed["annotations"]
    del annotations[model.REF_NAME]
    annotations[REPOSITORY] = repository_of(entry.name or "")
    return changed


def _named(descriptor: Descriptor, name: str) -> dict[str, Any]:
    annotations = {
        key: value for key, value in descriptor.annotations.items() if key != REPOSITORY
    } | {model.REF_NAME: name}
    return replace(descriptor, annotations=annotations).to_json()


def _unnamed(descriptor: Descriptor, more: dict[str, str]) -> dict[str, Any]:
    annotations = {
        key: value for key, value in descriptor.annotations.items() if key != model.REF_NAME
    } | more
    return replace(descriptor, annotations=annotations).to_json()


def _encoded(data: dict[str, Any]) -> bytes:
    try:
        return json.dumps(data, separators=(",", ":"), allow_nan=False).encode()
    except ValueError as exc:
        raise StoreError(
            "there is a number in the index that JSON cannot hold", hint="correct it"
        ) from exc
