"""Images for tests, with a history."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from fuseoverlay.oci import model
from fuseoverlay.oci.layout import LayoutWriter


def with_history(writer: LayoutWriter, lines: Sequence[dict[str, Any]]) -> None:
    """Give the only image of a layout this history, oldest line first."""
    path = writer.path / "index.json"
    (entry,) = json.loads(path.read_text())["manifests"]
    manifest = blob(writer, entry["digest"])
    config = {**blob(writer, manifest["config"]["digest"]), "history": list(lines)}
    described = writer.add_json(model.OCI_CONFIG, config).to_json()
    made = writer.add_json(model.OCI_MANIFEST, {**manifest, "config": described}).to_json()
    listed = {**entry, "digest": made["digest"], "size": made["size"]}
    path.write_text(json.dumps({"schemaVersion": 2, "manifests": [listed]}))


def blob(writer: LayoutWriter, digest: str) -> Any:
    """The JSON in a blob."""
    return json.loads((writer.path / "blobs" / digest.replace(":", "/")).read_text())
