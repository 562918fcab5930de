"""Read OCI layouts that tools have made."""

from __future__ import annotations

import json
from pathlib import Path


def layer_blobs(layout: Path) -> list[Path]:
    """The layers of the one image in an OCI layout, the lowest first."""

    def blob(descriptor: dict[str, str]) -> Path:
        return layout / "blobs" / descriptor["digest"].replace(":", "/")

    (manifest,) = json.loads((layout / "index.json").read_text())["manifests"]
    return [blob(layer) for layer in json.loads(blob(manifest).read_text())["layers"]]
