"""Where saved images are written: archives, and directories that are OCI layouts.

What cannot be written to its end leaves nothing: a file is written under another name and renamed,
of a directory what was added is removed again. Source: OCI image-spec image-layout.md.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import secrets
import stat
import tarfile
from collections.abc import Iterator
from typing import IO, Any, Final, Protocol, cast

from fuseoverlay.errors import ImageError, StoreError, describe, os_error
from fuseoverlay.oci import model
from fuseoverlay.oci.streams import CHUNK
from fuseoverlay.system.syscalls import DIR_FLAGS

#: The file that tells that a directory is a layout.
LAYOUT: Final = "oci-layout"
INDEX: Final = "index.json"
#: Larger than any index.
_MAX_INDEX: Final = 64 << 20
_HINTS: Final = {
    errno.ENOSPC: "make room, or save somewhere else",
    errno.EDQUOT: "make room, or save somewhere else",
    errno.EISDIR: "name a file in it, or write --format oci",
    errno.EPIPE: "what was to read it has ended",
}


class Source(Protocol):
    """The content of a file, read once."""

    def read(self, size: int, /) -> bytes: ...


class Target(Protocol):
    """Where files are written, by their names in the image."""

    def entries(self) -> list[Any]:
        """What the index lists already, as decoded JSON. ImageError."""

    def has(self, name: str, size: int) -> bool:
        """Whether a blob of this name and size is there already."""

    def write(self, name: str, source: Source, size: int) -> None:
        """Add a file, or replace it. OSError if it cannot be written."""


class Archive:
    """A tar archive that is written from front to back."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive
        self._directories = {""}

    def entries(self) -> list[Any]:
        """None: it is new."""
        return []

    def has(self, _name: str, _size: int) -> bool:
        """Never."""
        return False

    def write(self, name: str, source: Source, size: int) -> None:
        """Add a file. Time and owner are always the same."""
        self._add_directory(name.rpartition("/")[0])
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, 0o644
        self._archive.addfile(info, cast("IO[bytes]", source))

    def _add_directory(self, name: str) -> None:
        """Add a directory with those above: skopeo gives those that are not listed to root, which
        other users may not."""
        if name not in self._directories:
            self._add_directory(name.rpartition("/")[0])
            self._directories.add(name)
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            self._archive.addfile(info)


@contextlib.contextmanager
def archive(file: IO[bytes]) -> Iterator[Archive]:
    """A tar archive in `file`, which is only written, front to back."""
    with tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT, bufsize=CHUNK) as tar:
        yield Archive(tar)


class Directory:
    """A directory that is a layout, or will be one."""

    def __init__(self, root: pathlib.Path) -> None:
        self._root = root
        #: What was made here, so that it can be removed.
        self._made: list[pathlib.Path] = []

    def entries(self) -> list[Any]:
        """What its index lists."""
        path = self._root / INDEX
        try:
            with open(path, "rb") as file:
                data = file.read(_MAX_INDEX)
        except FileNotFoundError:
            return []
        listed = model.expect_fields(model.decode_json(data, path), "index").get("manifests")
        if not isinstance(listed, list | None):
            raise ImageError("manifests: not a JSON array", where=path)
        return listed or []

    def has(self, name: str, size: int) -> bool:
        """Whether a blob of this name and size is there."""
        try:
            return os.stat(self._root / name).st_size == size
        except FileNotFoundError:
            return False

    def write(self, name: str, source: Source, size: int) -> None:
        """Add a file, or replace it."""
        path = self._root / name
        self._make_directory(path.parent)
        new = not path.exists()
        with replaced(path, 0o666) as file:
            while data := source.read(CHUNK):
                file.write(data)
        if new:
            self._made.append(path)

    def _make_directory(self, path: pathlib.Path) -> None:
        if path.is_dir():
            return
        if path.exists():
            raise os_error(errno.ENOTDIR)
        self._make_directory(path.parent)
        path.mkdir()
        self._made.append(path)

    def begin(self) -> None:
        """Make the directory. StoreError if it is there and holds something else."""
        self._make_directory(self._root)
        if os.listdir(self._root) and not (self._root / LAYOUT).exists():
            what = "the directory is not empty, and no OCI layout"
            raise StoreError(what, where=self._root, hint="name a new one")

    def undo(self) -> None:
        """Remove what was made here."""
        for path in reversed(self._made):
            # Somebody else may use it by now.
            with contextlib.suppress(OSError):
                path.rmdir() if path.is_dir() else path.unlink()


@contextlib.contextmanager
def layout(root: pathlib.Path) -> Iterator[Directory]:
    """The directory `root` as a layout; new, empty, or added to. If the context ends by an
    exception, all is as it was. Whoever else saves there, waits. OSError, StoreError,
    ImageError."""
    directory = Directory(root)
    with contextlib.ExitStack() as undo:
        try:
            directory.begin()
            undo.enter_context(_locked(root))
            yield directory
        except BaseException:
            directory.undo()
            raise


@contextlib.contextmanager
def _locked(root: pathlib.Path) -> Iterator[None]:
    """Nobody else is in such a context; where the file system has no locks, somebody may be."""
    fd = os.open(root, DIR_FLAGS)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def replaced(path: pathlib.Path, mode: int = 0o600) -> Iterator[IO[bytes]]:
    """A new file, to be written, that takes the place of the one at `path` when the context ends,
    and goes if it ends by an exception. Devices and pipes are written to as they are. OSError."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(os.stat(path).st_mode):
            with open(path, "wb") as special:
                yield special
            return
    made = path.with_name(f".{path.name[:200]}.{secrets.token_hex(6)}")
    fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with open(fd, "wb") as file:
            yield file
            file.flush()
            os.fsync(fd)
        os.rename(made, path)
    except BaseException:
        os.unlink(made)
        raise


@contextlib.contextmanager
def saving(where: object) -> Iterator[None]:
    """Turn OSError into StoreError."""
    try:
        yield
    except FileNotFoundError as exc:
        parent = os.path.dirname(os.fsdecode(str(where))) or "."
        raise StoreError(f"there is no directory {parent}", where=where, hint="make it") from exc
    except OSError as exc:
        hint = _HINTS.get(exc.errno or 0, "save somewhere else")
        raise StoreError(f"cannot save: {describe(exc)}", where=where, hint=hint) from exc


def encoded(data: Any) -> bytes:
    """Decoded JSON as it is written."""
    return json.dumps(data).encode()
