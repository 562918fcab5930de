"""Write small OCI images: layer archives, layouts, archives of layouts.

For demonstrations and tests. A layer is made from `Node`s or from any tar stream. Source: OCI
image-spec image-layout.md.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pathlib
import stat
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, Final

from fuseoverlay.oci import model
from fuseoverlay.oci.model import Descriptor, Digest, Platform
from fuseoverlay.oci.streams import zstd_module

_SUFFIX: Final = {None: "", "gzip": "+gzip", "zstd": "+zstd"}
_TYPES: Final = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}
_CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Node:
    """One entry of a layer archive. A `mode` without a type means a regular file.

    `mtime` is text as in PAX (`12.5`), or whole seconds. `hardlink` makes the entry another name of
    that path. Deletions are nodes called `.wh.NAME`.
    """

    name: str | bytes
    mode: int = 0o644
    data: bytes = b""
    uid: int = 0
    gid: int = 0
    mtime: int | str = 0
    link: str | bytes = ""
    hardlink: str | bytes = ""
    rdev: tuple[int, int] = (0, 0)
    xattrs: Mapping[str, bytes] = field(default_factory=dict)


def directory(name: str | bytes, mode: int = 0o755, **more: Any) -> Node:
    """A directory."""
    return Node(name, stat.S_IFDIR | mode, **more)


def symlink(name: str | bytes, target: str | bytes, **more: Any) -> Node:
    """A symbolic link."""
    return Node(name, stat.S_IFLNK | 0o777, link=target, **more)


def layer_tar(nodes: Iterable[Node]) -> bytes:
    """An archive of `nodes`, in their order."""
    buffer = io.BytesIO()
    with tarfile.open(
        fileobj=buffer,
        mode="w",
        format=tarfile.PAX_FORMAT,
        encoding="utf-8",
        errors="surrogateescape",
    ) as archive:
        for node in nodes:
            info = _tarinfo(node)
            archive.addfile(info, io.BytesIO(node.data) if info.isreg() else None)
    return buffer.getvalue()


def _tarinfo(node: Node) -> tarfile.TarInfo:
    info = tarfile.TarInfo(_text(node.name))
    info.type = _TYPES[stat.S_IFMT(node.mode) or stat.S_IFREG]
    info.mode = stat.S_IMODE(node.mode)
    info.uid, info.gid = node.uid, node.gid
    info.devmajor, info.devminor = node.rdev
    info.linkname = _text(node.link)
    if node.hardlink:
        info.type, info.linkname = tarfile.LNKTYPE, _text(node.hardlink)
    if info.isreg():
        info.size = len(node.data)
    headers: dict[str, str] = {}
    if isinstance(node.mtime, int) and node.mtime >= 0:
        info.mtime = node.mtime
    else:
        headers["mtime"] = str(node.mtime)
    for name, value in node.xattrs.items():
        headers[f"SCHILY.xattr.{name}"] = value.decode("utf-8", "surrogateescape")
    info.pax_headers = headers
    return info


def _text(name: str | bytes) -> str:
    return name if isinstance(name, str) else name.decode("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class LayerHandle:
    """A layer that was written: the descriptor of its blob, and the digest of its plain tar
    stream."""

    descriptor: Descriptor
    diff_id: Digest


class LayoutWriter:
    """Writes an OCI layout into the directory `path`, which is created or added to."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = pathlib.Path(path)
        (self.path / "blobs/sha256").mkdir(parents=True, exist_ok=True)
        (self.path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        self._index = self.path / "index.json"
        if not self._index.exists():
            self._write_index([])

    def add_layer(
        self, tar: bytes | IO[bytes], compression: str | None = None, *, level: int = 9
    ) -> LayerHandle:
        """Store a layer. `tar` is the plain archive; `compression` is None, "gzip" or "zstd";
        `level`: how well gzip compresses, from 1 to 9."""
        source = io.BytesIO(tar) if isinstance(tar, bytes) else tar
        temporary = self.path / f".layer-{os.getpid()}"
        plain = hashlib.sha256()
        with temporary.open("wb") as raw, _compressor(raw, compression, level) as target:
            while chunk := source.read(_CHUNK):
                plain.update(chunk)
                target.write(chunk)
        with temporary.open("rb") as blob:
            digest = Digest("sha256", hashlib.file_digest(blob, "sha256").hexdigest())
        size = temporary.stat().st_size
        temporary.rename(self._blob(digest))
        descriptor = Descriptor(model.OCI_LAYER + _SUFFIX[compression], digest, size)
        return LayerHandle(descriptor, Digest("sha256", plain.hexdigest()))

    def add_image(
        self,
        layers: Sequence[LayerHandle],
        *,
        ref: str | None = None,
        platform: Platform | str | None = None,
    ) -> Descriptor:
        """Store an image of `layers`, bottom first, and list it in the index. The default platform
        is this machine's."""
        if isinstance(platform, str):
            platform = Platform.parse(platform)
        platform = platform or Platform.host()
        config = self.add_json(
            model.OCI_CONFIG,
            {
                **model.platform_json(platform),
                "config": {},
                "rootfs": {"type": "layers", "diff_ids": [str(item.diff_id) for item in layers]},
            },
        )
        manifest = self.add_json(
            model.OCI_MANIFEST,
            {
                "schemaVersion": 2,
                "mediaType": model.OCI_MANIFEST,
                "config": config.to_json(),
                "layers": [item.descriptor.to_json() for item in layers],
            },
        )
        entry = Descriptor(
            manifest.media_type,
            manifest.digest,
            manifest.size,
            {model.REF_NAME: ref} if ref else {},
            platform,
        )
        listed = json.loads(self._index.read_text())["manifests"]
        self._write_index([*listed, entry.to_json()])
        return entry

    def add_json(self, media_type: str, data: object) -> Descriptor:
        """Store a JSON blob."""
        text = json.dumps(data, indent=1).encode()
        digest = Digest.of(text)
        self._blob(digest).write_bytes(text)
        return Descriptor(media_type, digest, len(text))

    def _blob(self, digest: Digest) -> pathlib.Path:
        return self.path / "blobs" / digest.algorithm / digest.hex

    def _write_index(self, manifests: list[Any]) -> None:
        data = {"schemaVersion": 2, "mediaType": model.OCI_INDEX, "manifests": manifests}
        self._index.write_text(json.dumps(data, indent=1))


def _compressor(raw: IO[bytes], compression: str | None, level: int) -> Any:
    if compression == "gzip":
        # No time in the header, so that equal layers have equal digests.
        return gzip.GzipFile("", "wb", level, raw, mtime=0)
    if compression == "zstd":
        return zstd_module().ZstdFile(raw, "wb")
    if compression is None:
        return open(raw.fileno(), "wb", closefd=False)
    raise ValueError(f"unknown compression {compression!r}")


def pack(layout: str | os.PathLike[str], archive: str | os.PathLike[str]) -> None:
    """Pack the layout directory `layout` into an OCI archive, a tar file."""
    with tarfile.open(archive, "w") as target:
        for path in sorted(pathlib.Path(layout).rglob("*")):
            target.add(path, str(path.relative_to(layout)), recursive=False)
