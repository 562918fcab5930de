"""The directory that holds the store, and what all who use it share.

    ROOT/version                    a number, which tells older programs that they do not know this
    ROOT/lock                       held while names or what is protected change: `Store.locked`
    ROOT/oci-layout, index.json, blobs/ALG/HEX
                                    an OCI image layout, which other tools read and write, too
    ROOT/partial/ALG-HEX            blobs that are not complete yet
    ROOT/layers*/                   unpacked layers, see `fuseoverlay.store.layers`
    ROOT/tmp/NAME/                  something being made, locked by its maker

What a killed process left in `tmp` is removed at the next use.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import re
import secrets
import stat
from collections.abc import Iterator
from typing import IO, Final

from fuseoverlay.errors import StoreError, os_error
from fuseoverlay.oci import model
from fuseoverlay.oci.job import store_error
from fuseoverlay.system import syscalls
from fuseoverlay.system.removal import remove_tree
from fuseoverlay.system.syscalls import DIR_FLAGS

#: The arrangement described above. Version 0, which has no file, holds unpacked layers alone.
VERSION: Final = 1
#: What the image-spec wants in every layout, image-layout.md; an index that lists nothing.
_LAYOUT: Final = b'{"imageLayoutVersion":"1.0.0"}'
_INDEX: Final = json.dumps(
    {"schemaVersion": 2, "mediaType": model.OCI_INDEX, "manifests": []}
).encode()
_DIRECTORIES: Final = ("tmp", "trash", "partial", "blobs", "blobs/sha256")
#: All that a store of the first versions had, and one that is just being made.
_UNVERSIONED: Final = {
    *("layers", "layers-override", "sizes", *_DIRECTORIES),
    *("lock", "oci-layout", "index.json"),
}
_TRASH: Final = "trash"
#: Bytes without which no small directory can be made.
_LEAST: Final = 64 << 10
_WORKSPACE: Final = re.compile(r"[0-9a-f]{16}\Z")
_LOCK_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


def default_root() -> pathlib.Path:
    """`$FUSEOVERLAY_ROOT`, else `$XDG_DATA_HOME/fuseoverlay`, else `~/.local/share/fuseoverlay`."""
    root = os.environ.get("FUSEOVERLAY_ROOT")
    if root:
        return pathlib.Path(root).absolute()
    data = os.environ.get("XDG_DATA_HOME", "")
    # The specification says to ignore a relative path.
    try:
        base = pathlib.Path(data) if data.startswith("/") else pathlib.Path.home() / ".local/share"
    except RuntimeError:
        raise StoreError("nobody says where the store is", hint="set FUSEOVERLAY_ROOT") from None
    return base / "fuseoverlay"


class Store:
    """The directory `root` of a store, created when first needed."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = pathlib.Path(root)
        self.tmp = self.root / "tmp"

    def prepare(self) -> None:
        """Create the store if there is none, and complete one of an earlier version.

        A store that cannot be written is left as it is if it holds anything. StoreError if it is
        from a newer version, or cannot be used.
        """
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._check_version()
            self._check_other()
            if self.is_writable():
                self._complete()
                self._sweep()
            elif not os.listdir(self.root):
                read_only = os.statvfs(self.root).f_flag & os.ST_RDONLY
                raise os_error(errno.EROFS if read_only else errno.EACCES)
        except OSError as exc:
            raise store_error(exc, "the store cannot be used", self.root) from exc

    def is_full(self) -> bool:
        """Whether nothing can be made in the store for want of room."""
        st = os.statvfs(self.root)
        return st.f_bavail * st.f_frsize < _LEAST or (st.f_files > 0 and st.f_favail == 0)

    def is_writable(self) -> bool:
        """Whether anything can be made in the store. If not, it still serves what it holds."""
        return self._is_ours() and os.access(self.root, os.W_OK | os.X_OK, effective_ids=True)

    def _is_ours(self) -> bool:
        """Nobody writes in another user's store: with links in it he would lead root anywhere."""
        return self._owner() == os.geteuid()

    def _owner(self) -> int:
        """The user id; ours for one that is not there, which we would make."""
        try:
            return os.stat(self.root).st_uid
        except FileNotFoundError:
            return os.geteuid()

    def _check_ours(self) -> None:
        if not self._is_ours():
            raise StoreError(
                f"the store is that of the user {self._owner()}, who alone may change it",
                where=self.root,
                hint="become that user, or use another directory",
            )

    def _check_version(self) -> None:
        try:
            with open_regular(self.root / "version") as file:
                text = file.read(40)
        except FileNotFoundError:
            return
        if not text.strip().isdigit() or int(text) > VERSION:
            raise StoreError(
                f"the store is of version {os.fsdecode(text.strip())}, this program knows"
                f" {VERSION}",
                where=self.root,
                hint="use a newer fuseoverlay, or another directory",
            )

    def _check_other(self) -> None:
        """Refuse a directory that holds something else: what lies in its `tmp` is not ours."""
        names = set(os.listdir(self.root))
        if names and "version" not in names and not names <= _UNVERSIONED:
            raise StoreError(
                "this is not a store of images, and not empty",
                where=self.root,
                hint="name an empty directory, or one that does not exist",
            )

    def _complete(self) -> None:
        for name in _DIRECTORIES:
            (self.root / name).mkdir(mode=0o700, exist_ok=True)
        # The version comes last: it says that the rest is there.
        files = {"oci-layout": _LAYOUT, "index.json": _INDEX, "version": b"%d\n" % VERSION}
        if (self.root / "version").exists():
            return
        with self.locked():
            for name, data in files.items():
                if not (self.root / name).exists():
                    self.write(name, data)

    def _sweep(self) -> None:
        """Remove what ended processes have left; a living one holds a lock."""
        for name in filter(_WORKSPACE.match, os.listdir(self.tmp)):
            # Another process may be sweeping, too.
            with contextlib.suppress(OSError):
                fd = os.open(self.tmp / name, DIR_FLAGS)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    self._remove(name)
                finally:
                    os.close(fd)

    def _remove(self, name: str) -> None:
        tmp_fd = os.open(self.tmp, DIR_FLAGS)
        try:
            remove_tree(tmp_fd, os.fsencode(name))
        finally:
            os.close(tmp_fd)

    @contextlib.contextmanager
    def trash(self) -> Iterator[pathlib.Path]:
        """A directory for what is removed, emptied at the end. It is
        there before: a full disk must not keep anybody from freeing it. StoreError."""
        self._check_ours()
        path = self.root / _TRASH
        try:
            path.mkdir(mode=0o700, exist_ok=True)
            fd = os.open(path, DIR_FLAGS)
        except OSError as exc:
            raise store_error(exc, "the store cannot be written", self.root) from exc
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            _empty(fd)
            yield path
        finally:
            try:
                _empty(fd)
            finally:
                os.close(fd)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else is in such a context. It is for moments: names change here, and what may be
        removed is found and moved away. Waits; not reentrant. OSError if there can be no lock."""
        self._check_ours()
        fd = os.open(self.root / "lock", _LOCK_FLAGS, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def workspace(self) -> Iterator[pathlib.Path]:
        """A new locked directory in `tmp`, removed with all its content at the end. StoreError."""
        self._check_ours()
        try:
            path, fd = self._new_workspace()
        except OSError as exc:
            raise store_error(exc, "the store cannot be written", self.root) from exc
        try:
            yield path
        finally:
            try:
                self._remove(path.name)
            finally:
                os.close(fd)

    def _new_workspace(self) -> tuple[pathlib.Path, int]:
        while True:
            path = self.tmp / secrets.token_hex(8)
            path.mkdir(mode=0o700)
            # Until it is locked, another process may sweep it away as left over.
            with contextlib.suppress(FileNotFoundError):
                fd = os.open(path, DIR_FLAGS)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX)
                    os.stat(path)
                except BaseException:
                    os.close(fd)
                    raise
                return path, fd

    def write(self, name: str, data: bytes) -> None:
        """Replace the file `name` of the store by one with the content `data`, durably: whatever
        happens there is the old one or the new one. OSError, StoreError."""
        with self.workspace() as work:
            made = work / "file"
            with open(made, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.rename(made, self.root / name)
        sync_directory((self.root / name).parent)

    def sync(self) -> None:
        """Write all that was made in `tmp` to disk. OSError."""
        fd = os.open(self.tmp, DIR_FLAGS)
        try:
            syscalls.syncfs(fd)
        finally:
            os.close(fd)

    def publish(self, made: pathlib.Path, target: pathlib.Path) -> None:
        """Move a finished directory to its place, after `sync`; leave it if another process was
        faster. OSError."""
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        source, goal = os.fsencode(made), os.fsencode(target)
        try:
            syscalls.renameat2(
                syscalls.AT_FDCWD, source, syscalls.AT_FDCWD, goal, syscalls.RENAME_NOREPLACE
            )
        except OSError as exc:
            if exc.errno == errno.EEXIST:
                return
            if exc.errno != errno.EINVAL:
                raise
            # A filesystem without RENAME_NOREPLACE. A plain rename does not replace a directory
            # with content.
            try:
                os.rename(source, goal)
            except OSError as plain:
                if plain.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise


def open_regular(path: str | os.PathLike[str]) -> IO[bytes]:
    """The file, opened for reading; a FIFO or device is refused, not waited for. OSError,
    StoreError."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise StoreError("not a regular file", where=path, hint="remove it")
    return open(fd, "rb")


def empty(path: str | os.PathLike[str]) -> None:
    """Remove all that the directory holds. OSError."""
    fd = os.open(path, DIR_FLAGS)
    try:
        _empty(fd)
    finally:
        os.close(fd)


def _empty(fd: int) -> None:
    for name in os.listdir(fd):
        remove_tree(fd, os.fsencode(name))


def sync_directory(path: str | os.PathLike[str]) -> None:
    """Make durable which names the directory holds. OSError."""
    fd = os.open(path, DIR_FLAGS)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
