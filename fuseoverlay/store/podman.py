"""Images in podman's store of the same user, whose unpacked layers are mounted where they lie.

Nothing is copied, and nothing written. Podman knows nothing of our mounts: what it removes is gone.
Source: containers-storage.conf(5), containers-transports(5), and the files themselves.

    ROOT/overlay-images/images.json    images: id, names, top layer
    ROOT/overlay-layers/layers.json    layers: id, parent, digest of the plain archive
    ROOT/overlay/ID/diff               their files
"""

from __future__ import annotations

import base64
import contextlib
import os
import pathlib
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fuseoverlay.errors import ImageError, describe
from fuseoverlay.oci import model
from fuseoverlay.oci.blobs import Image, Layer
from fuseoverlay.oci.model import Digest, Step
from fuseoverlay.oci.reference import Reference
from fuseoverlay.store.part import Part

#: [DRIVER@ROOT+RUNROOT:OPTIONS]NAME, as podman writes it; all in the brackets may be missing.
_SPEC: Final = re.compile(r"\[(?:(?P<driver>[^@\]+:]*)@)?(?P<root>[^\]+:]*)[^\]]*\](?P<name>.*)")
_TRANSPORT: Final = "containers-storage:"
_SYSTEM: Final = ("/etc/containers/storage.conf", "/usr/share/containers/storage.conf")
_SYSTEM_ROOT: Final = "/var/lib/containers/storage"
#: Larger than the lists of any store.
_MAX_JSON: Final = 256 << 20
_MAX_CONFIG: Final = 16 << 20
#: As many layers as no image has.
_MAX_LAYERS: Final = 1000


@dataclass(slots=True)
class PodmanImage:
    """An image, as `store.layers.StoredImage` is one. `paths`: its layers, top first; `steps`: its
    history, as far as its config can be read."""

    name: str
    diff_ids: tuple[str, ...]
    paths: tuple[pathlib.Path, ...]
    id: Digest | None = None
    steps: Sequence[Step] = ()

    def keep(self, part: Part, where: str) -> None:
        """Be only this part of the image from now on. ImageError, which calls it `where`."""
        layers = tuple(Layer(Digest.parse(digest), "", 0, None) for digest in self.diff_ids)
        place = part.place(Image(None, layers), where)
        first = place if part.alone else 0
        self.diff_ids = self.diff_ids[first : place + 1]
        self.paths = tuple(reversed(tuple(reversed(self.paths))[first : place + 1]))

    def layers(self, _held: contextlib.ExitStack | None = None) -> list[pathlib.Path]:
        """The layer directories, top first. Nothing keeps podman from removing them."""
        return list(self.paths)


def find(text: str, environment: Mapping[str, str] | None = None) -> PodmanImage:
    """The image that `text`, which is what follows `containers-storage:`, names. ImageError."""
    match = _SPEC.match(text)
    if match is None:
        roots, name = _roots(environment or os.environ), text
    else:
        if match["driver"] not in (None, "", "overlay"):
            what = f"stores of the driver {match['driver']} cannot be read"
            raise ImageError(what, where=text, hint="use one of the driver overlay")
        roots = [pathlib.Path(match["root"])] if match["root"] else _roots(os.environ)
        name = match["name"]
    layers: dict[str, tuple[pathlib.Path, model.Fields]] = {}
    images: list[model.Fields] = []
    homes: dict[int, pathlib.Path] = {}
    for root in roots:
        listed = _listed(root / "overlay-images/images.json")
        homes |= {id(image): root / "overlay-images" for image in listed}
        images += listed
        for file in ("layers.json", "volatile-layers.json"):
            for layer in _listed(root / "overlay-layers" / file):
                layers.setdefault(str(layer.get("id")), (root, layer))
    image = _named(images, name, text)
    if image is None:
        what = f"no such image in {' and '.join(map(str, roots))}"
        raise ImageError(what, where=f"{_TRANSPORT}{text}", hint=_advice(roots, name))
    found = _with_layers(layers, image, text)
    found.steps = _history(homes[id(image)], str(image.get("id")), len(found.paths))
    return found


def _history(home: pathlib.Path, image: str, layers: int) -> Sequence[Step]:
    """The history in an image's config, which lies beside it, named by its digest in base64."""
    if not re.fullmatch(r"[0-9a-f]{64}", image):
        return ()
    name = base64.b64encode(f"sha256:{image}".encode()).decode()
    try:
        with open(home / image / f"={name}", "rb") as file:
            data = model.decode_json(file.read(_MAX_CONFIG), home)
    except (OSError, ImageError):
        return ()
    fields = model.Fields(data if isinstance(data, dict) else {})
    return model.steps_of_history(fields.get("history"), layers)


def _advice(roots: list[pathlib.Path], name: str) -> str:
    """Podman lists the images of its driver, which may be another one."""
    if any(path.parent.name != "overlay-images" for root in roots
           for path in root.glob("*-images/images.json")):  # fmt: skip
        return f"only the driver overlay is read; write podman save {name} | fuseoverlay load"
    return "see podman images"


def _roots(environment: Mapping[str, str]) -> list[pathlib.Path]:
    """Where podman keeps images: its own store first, then those that it may only read."""
    rootless = os.geteuid() != 0 or "_CONTAINERS_ROOTLESS_UID" in environment
    home = pathlib.Path(environment.get("HOME") or pathlib.Path.home())
    own = pathlib.Path(environment.get("XDG_CONFIG_HOME") or home / ".config")
    personal = str(own / "containers/storage.conf")
    given = environment.get("CONTAINERS_STORAGE_CONF")
    places = [given] if given else [*([personal] if rootless else []), *_SYSTEM]
    found = next((place for place in places if os.path.exists(place)), None)
    storage = {} if found is None else _configured(found)
    options = storage.get("options")
    more = options.get("additionalimagestores") if isinstance(options, dict) else None
    root = _text(storage, "rootless_storage_path") if rootless else None
    if root is None and (not rootless or found in (personal, given)):
        root = _text(storage, "graphroot")
    if root is None and rootless:
        data = environment.get("XDG_DATA_HOME") or str(home / ".local/share")
        root = f"{data}/containers/storage"
    own_root = (root or _SYSTEM_ROOT).replace("$HOME", str(home)).replace("$UID", str(os.getuid()))
    others = [item for item in more if isinstance(item, str)] if isinstance(more, list) else []
    return [pathlib.Path(place) for place in (own_root, *others)]


def _configured(path: str) -> Mapping[str, Any]:
    try:
        with open(path, "rb") as file:
            storage = tomllib.load(file).get("storage")
    except OSError as exc:
        raise ImageError(f"cannot read: {describe(exc)}", where=path, hint="correct it") from exc
    except ValueError as exc:
        raise ImageError(f"not valid TOML: {exc}", where=path, hint="correct it") from exc
    return storage if isinstance(storage, dict) else {}


def _text(storage: Mapping[str, Any], name: str) -> str | None:
    value = storage.get(name)
    return value if isinstance(value, str) and value else None


def _listed(path: pathlib.Path) -> list[model.Fields]:
    """A JSON array of objects in a file; nothing if there is none."""
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_JSON)
    except FileNotFoundError:
        return []
    except OSError as exc:
        hint = "podman's store can be read by its user only"
        raise ImageError(f"cannot read: {describe(exc)}", where=path, hint=hint) from exc
    found = model.decode_json(data, path)
    return [model.Fields(item) for item in found or [] if isinstance(item, dict)]


def _named(images: list[model.Fields], name: str, text: str) -> model.Fields | None:
    """By a name, or by an id or its beginning."""
    wanted = {name}
    with contextlib.suppress(ImageError):
        # Podman's own names for what it builds come before Docker Hub's.
        wanted |= {str(Reference.parse(f"localhost/{name}")), str(Reference.parse(name))}
    found = [image for image in images if wanted & {*_names(image)}]
    if not found and re.fullmatch(r"[0-9a-f]+", name.removeprefix("sha256:").removeprefix("@")):
        start = name.removeprefix("@").removeprefix("sha256:")
        found = [image for image in images if str(image.get("id")).startswith(start)]
    if len({image.get("id") for image in found}) > 1:
        raise ImageError("may be several images", where=text, hint="write the whole name or id")
    return found[0] if found else None


def _names(image: model.Fields) -> list[str]:
    names = image.get("names")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _with_layers(
    layers: Mapping[str, tuple[pathlib.Path, model.Fields]], image: model.Fields, text: str
) -> PodmanImage:
    paths: list[pathlib.Path] = []
    diff_ids: list[str] = []
    id_ = image.get("layer")
    while id_:
        root, layer = layers.get(str(id_)) or (None, model.Fields({}))
        if root is None or not re.fullmatch(r"[0-9a-zA-Z_.-]+", str(id_)):
            raise ImageError(f"its layer {id_} is missing", where=text, hint="pull it again")
        paths.append(root / "overlay" / str(id_) / "diff")
        diff_ids.append(str(layer.get("diff-digest") or id_))
        _check(paths[-1], layer, text)
        if len(paths) > _MAX_LAYERS:
            raise ImageError("layers without end", where=text, hint="pull it again")
        id_ = layer.get("parent")
    if not paths:
        raise ImageError("an image without layers", where=text, hint="there is nothing to mount")
    return PodmanImage(f"{_TRANSPORT}{text}", tuple(reversed(diff_ids)), tuple(paths))


def _check(path: pathlib.Path, layer: model.Fields, text: str) -> None:
    flags = layer.get("flags")
    if isinstance(flags, dict) and flags.get("incomplete"):
        raise ImageError("one of its layers is incomplete", where=text, hint="pull it again")
    if (path.parent / "composefs-data").exists():
        what = "its layers are kept by composefs, which cannot be read"
        raise ImageError(what, where=text, hint="use podman save, and load what it writes")
    if not path.is_dir():
        raise ImageError(f"its layer {path} is missing", where=text, hint="pull it again")
