"""A real registry, the distribution project's, filled by skopeo."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from fuseoverlay.oci import model

TOOLS = ("docker-registry", "skopeo", "openssl")


class Daemon:
    """A running registry in `base`, which listens at `address`. `more` is added to its
    configuration; with `certificate`, a file with its key, it speaks TLS, with more settings
    `tls`."""

    def __init__(
        self,
        base: Path,
        *,
        certificate: Path | None = None,
        more: dict[str, Any] | None = None,
        tls: dict[str, Any] | None = None,
        address: str = "127.0.0.1",
    ) -> None:
        for tool in TOOLS:
            if shutil.which(tool) is None:
                pytest.skip(f"missing tool: {tool}")
        self.base = base
        with socket.create_server((address, 0)) as free:
            self.host = f"{address}:{free.getsockname()[1]}"
        http: dict[str, Any] = {"addr": self.host}
        if certificate is not None:
            http["tls"] = {"certificate": str(certificate), "key": str(certificate)} | (tls or {})
        config = {
            "version": "0.1",
            "log": {"level": "error", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(base / "data")},
                        "delete": {"enabled": True}},
            "http": http,
        }  # fmt: skip
        # JSON is YAML.
        (base / "config.yml").write_text(json.dumps(config | (more or {})))

    def __enter__(self) -> Daemon:
        log = (self.base / "log").open("wb")
        # It ends with us, also when we are killed.
        argv = ["setpriv", "--pdeathsig", "KILL"]
        argv += ["docker-registry", "serve", str(self.base / "config.yml")]
        self._process = subprocess.Popen(argv, stdout=log, stderr=log)
        log.close()
        host, port = self.host.split(":")
        for _ in range(500):
            try:
                socket.create_connection((host, int(port)), 1).close()
                return self
            except OSError:
                assert self._process.poll() is None, (self.base / "log").read_text()
                time.sleep(0.02)
        raise AssertionError("the registry does not start")

    def __exit__(self, *_exc: object) -> None:
        self._process.kill()
        self._process.wait()

    def push(self, layout: Path, name: str, *options: str) -> None:
        """Copy the image in an OCI layout into the registry, under NAME:TAG, by skopeo."""
        argv = ["skopeo", "--insecure-policy", "copy", "-q", "--all", "--dest-tls-verify=false"]
        argv += [*options, f"oci:{layout}", f"docker://{self.host}/{name}"]
        # Root of a user namespace may not read the real root's.
        (self.base / "auth.json").write_text("{}")
        auth = {"REGISTRY_AUTH_FILE": str(self.base / "auth.json")}
        env = {**os.environ, "TMPDIR": str(self.base), **auth}
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=60, env=env, check=False
        )
        assert done.returncode == 0, done.stderr


def layout_of(base: Path, layers: list[bytes]) -> dict[str, bytes]:
    """Write an OCI layout with one image of these layers; its blobs by digest, and "manifest"."""
    blobs: dict[str, bytes] = {}

    def add(data: bytes, media_type: str) -> dict[str, Any]:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        blobs[digest] = data
        path = base / "blobs" / digest.replace(":", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    diff_ids = [f"sha256:{hashlib.sha256(gzip.decompress(data)).hexdigest()}" for data in layers]
    rootfs = {"type": "layers", "diff_ids": diff_ids}
    config = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": rootfs}).encode()
    manifest = json.dumps({
        "schemaVersion": 2,
        "mediaType": model.OCI_MANIFEST,
        "config": add(config, model.OCI_CONFIG),
        "layers": [add(layer, f"{model.OCI_LAYER}+gzip") for layer in layers],
    }).encode()  # fmt: skip
    found = add(manifest, model.OCI_MANIFEST)
    (base / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [found]}))
    (base / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return blobs | {"manifest": manifest}


def layer_of(name: str, content: bytes) -> bytes:
    """A layer with one file, gzipped."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return gzip.compress(plain.getvalue(), 1, mtime=0)
