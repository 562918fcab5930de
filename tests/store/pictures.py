"""Images in a store, made for tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from fuseoverlay.oci import model
from fuseoverlay.oci.layout import LayerHandle, LayoutWriter, Node, layer_tar
from fuseoverlay.oci.model import Descriptor, Platform
from fuseoverlay.store.root import Store

HOST = Platform.host()
OTHER = Platform("linux", "s390x" if HOST.architecture != "s390x" else "amd64")


class Painter:
    """Writes images into a layout, a store's or another."""

    def __init__(self, root: Any) -> None:
        self.writer = LayoutWriter(root)

    def layer(self, text: str, compression: str | None = "gzip") -> LayerHandle:
        """A layer with one file, whose name and content is `text`."""
        return self.writer.add_layer(layer_tar([Node(text, data=text.encode() * 50)]), compression)

    def manifest(
        self,
        *texts: str,
        platform: Platform = HOST,
        layers: Sequence[LayerHandle] | None = None,
        annotations: dict[str, str] | None = None,
        **config: Any,
    ) -> Descriptor:
        """An image of layers with these texts, that nothing names; `config`: more of its config."""
        layers = [self.layer(text) for text in texts] if layers is None else layers
        rootfs = {"type": "layers", "diff_ids": [str(layer.diff_id) for layer in layers]}
        described = self.writer.add_json(
            model.OCI_CONFIG, {**model.platform_json(platform), "rootfs": rootfs, **config}
        )
        manifest = {
            "schemaVersion": 2,
            "mediaType": model.OCI_MANIFEST,
            "config": described.to_json(),
            "layers": [layer.descriptor.to_json() for layer in layers],
            **({"annotations": annotations} if annotations else {}),
        }
        made = self.writer.add_json(model.OCI_MANIFEST, manifest)
        return Descriptor(made.media_type, made.digest, made.size, {}, platform)

    def index(self, *manifests: Descriptor) -> Descriptor:
        """An index of these."""
        data = {
            "schemaVersion": 2,
            "mediaType": model.OCI_INDEX,
            "manifests": [manifest.to_json() for manifest in manifests],
        }
        return self.writer.add_json(model.OCI_INDEX, data)

    def name(self, descriptor: Descriptor, name: str | None = None) -> Descriptor:
        """List an image in the layout's index."""
        path = self.writer.path / "index.json"
        data = json.loads(path.read_bytes())
        entry = {key: value for key, value in descriptor.to_json().items() if key != "platform"}
        if name is not None:
            entry["annotations"] = {model.REF_NAME: name}
        data["manifests"].append(entry)
        path.write_text(json.dumps(data))
        return descriptor


def painter(store: Store) -> Painter:
    """One that writes into `store`."""
    store.prepare()
    return Painter(store.root)
