"""The blobs of the store: whole under `blobs/`, as the OCI image layout has them, or partial.

A blob is at its place completely or not at all. Until then it is in `partial/ALG-HEX`, where one
process at a time adds to it, and where it stays if that ends: the next one goes on. Source: OCI
image-spec image-layout.md.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import IO, Final

from fuseoverlay.errors import DigestError, ImageError, StoreError, describe
from fuseoverlay.oci.job import store_error
from fuseoverlay.oci.model import Descriptor, Digest, Hasher
from fuseoverlay.store.root import Store, sync_directory
from fuseoverlay.system import syscalls

#: Manifests, indexes and configs are read into memory; real ones stay below 1 MiB.
MAX_JSON: Final = 16 << 20
#: So much is read at once.
_CHUNK: Final = 256 << 10
#: In a workspace: names of the blobs that its maker needs, see `Lease`.
_LEASED: Final = "leased"
#: So many bytes are written before the kernel is asked to begin with them, so that the wait at the
#: end is short.
_WRITEBACK: Final = 8 << 20
_PARTIAL_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
#: The times of access and modification of blobs that we write: leases keep them until they are
#: named. Those of other programs, which know of no leases, are kept for a while by their age.
_OURS: Final = (0, 0)
#: What to do about a damaged blob.
REPAIR: Final = "run fuseoverlay image verify --repair"
_AGAIN: Final = f"the store is damaged; {REPAIR}"


class Content:
    """The blobs of `store`."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def path(self, digest: Digest) -> pathlib.Path:
        """Where the blob is, or will be."""
        return self.store.root / "blobs" / digest.algorithm / digest.hex

    def partial_path(self, digest: Digest) -> pathlib.Path:
        """Where it is until it is complete."""
        return self.store.root / "partial" / _joined(digest)

    def size(self, digest: Digest) -> int | None:
        """The size of a complete blob in bytes; None if there is none."""
        try:
            return os.stat(self.path(digest)).st_size
        except OSError:
            return None

    def has(self, descriptor: Descriptor) -> bool:
        """Whether the blob is there, in the size that `descriptor` gives."""
        return self.size(descriptor.digest) == descriptor.size

    def open(self, descriptor: Descriptor) -> IO[bytes]:
        """The blob, to read. ImageError if it is missing, DigestError if its size is wrong."""
        path = self.path(descriptor.digest)
        try:
            file = open(path, "rb")  # noqa: SIM115  # the caller closes it
        except OSError as exc:
            what = f"cannot open a blob: {describe(exc)}"
            raise ImageError(what, where=path, hint=REPAIR) from exc
        found = os.fstat(file.fileno()).st_size
        if found != descriptor.size:
            file.close()
            what = f"{found} bytes, it should be {descriptor.size}"
            raise DigestError(what, where=path, hint=_AGAIN)
        return file

    def read(self, descriptor: Descriptor) -> bytes:
        """The content of a small blob, such as a manifest, verified. ImageError, DigestError."""
        if descriptor.size > MAX_JSON:
            raise ImageError(f"larger than {MAX_JSON} bytes", where=descriptor.digest)
        with self.open(descriptor) as file:
            data = file.read()
        wanted = descriptor.digest
        _check_digest(wanted, _hashed(wanted, data), str(file.name), hint=REPAIR)
        return data

    def add(self, data: bytes, digest: Digest | None = None) -> Digest:
        """Keep a small blob; returns its digest. DigestError if `digest` is given and differs,
        StoreError."""
        wanted = digest or Digest.of(data)
        _check_digest(wanted, _hashed(wanted, data), str(self.store.root))
        if self.size(wanted) != len(data):
            path = self.path(wanted)
            try:
                path.parent.mkdir(mode=0o700, exist_ok=True)
                self.store.write(str(path.relative_to(self.store.root)), data)
                os.utime(path, _OURS)
            except OSError as exc:
                raise store_error(exc, "cannot store a blob", self.store.root) from exc
        return wanted

    def take(self, path: pathlib.Path, digest: Digest) -> None:
        """Move a file of the store, which is verified and on the disk, to the place of the blob.
        StoreError."""
        target = self.path(digest)
        try:
            target.parent.mkdir(mode=0o700, exist_ok=True)
            os.utime(path, _OURS)
            os.rename(path, target)
            sync_directory(target.parent)
        except OSError as exc:
            raise store_error(exc, "cannot store a blob", self.store.root) from exc

    @contextlib.contextmanager
    def partial(self, descriptor: Descriptor, *, wait: bool = True) -> Iterator[Partial | None]:
        """The blob, to be completed; None if it is complete.

        If another process is at it, waits until that has ended or completed it; without `wait`,
        BlockingIOError. What has been written stays for the next time unless it is wrong.
        StoreError. May block: hashes what is there.
        """
        try:
            fd = self._claim(descriptor, wait)
        except BlockingIOError:
            raise
        except OSError as exc:
            raise store_error(exc, "cannot store a blob", self.store.root) from exc
        if fd is None:
            yield None
            return
        try:
            started = Partial(self, descriptor, fd)
            self._check_room(descriptor.size - started.offset)
            yield started
        finally:
            if not os.fstat(fd).st_size:
                with contextlib.suppress(OSError):
                    os.unlink(self.partial_path(descriptor.digest))
            os.close(fd)

    def _check_room(self, size: int) -> None:
        """Before half of a blob has filled the disk. StoreError."""
        st = os.statvfs(self.store.root)
        free = st.f_bavail * st.f_frsize
        if size > free:
            raise StoreError(
                f"{size} bytes more are needed for a blob, and there is room for {free}",
                where=self.store.root,
                hint="make room, or use another directory",
            )

    def _claim(self, descriptor: Descriptor, wait: bool) -> int | None:
        """The locked partial file, made if there is none; None if the blob is complete."""
        path = self.partial_path(descriptor.digest)
        while not self.has(descriptor):
            fd = _locked(path, wait)
            if fd is None:
                continue
            # Whoever had the lock may have completed it.
            if not self.has(descriptor):
                return fd
            os.unlink(path)
            os.close(fd)
        return None

    def blobs(self) -> Iterator[tuple[Digest, int]]:
        """All complete blobs with their sizes in bytes."""
        for folder in _entries(self.store.root / "blobs"):
            for entry in _entries(folder.path):
                yield from _sized(_digest(folder.name, entry.name), entry)

    def partials(self) -> Iterator[tuple[Digest, int]]:
        """All partial blobs, and how many bytes of them are there."""
        for entry in _entries(self.store.root / "partial"):
            yield from _sized(_digest(*entry.name.partition("-")[::2]), entry)

    @contextlib.contextmanager
    def lease(self) -> Iterator[Lease]:
        """Keeps blobs from being removed before anything names them."""
        with self.store.workspace() as work:
            (work / _LEASED).mkdir()
            yield Lease(self.store, work / _LEASED)

    @contextlib.contextmanager
    def held(self, digests: Iterable[Digest]) -> Iterator[None]:
        """Keeps blobs that are read from being removed; where the store can be written at all."""
        if not self.store.is_writable():
            yield
            return
        with self.lease() as lease:
            lease.add(digests)
            yield

    def leased(self) -> set[Digest]:
        """The blobs in a lease now. Inside `Store.locked`, none is added."""
        found = set()
        for work in _entries(self.store.tmp):
            for entry in _entries(os.path.join(work.path, _LEASED)):
                digest = _digest(*entry.name.partition("-")[::2])
                if digest is not None:
                    found.add(digest)
        return found


class Lease:
    """Blobs that nobody removes while it lasts, whether they are there yet or not."""

    def __init__(self, store: Store, path: pathlib.Path) -> None:
        self._store = store
        self._path = path

    def add(self, digests: Iterable[Digest]) -> None:
        """Protect these, too: what is there now stays, so ask after it. StoreError."""
        try:
            with self._store.locked():
                for digest in digests:
                    (self._path / _joined(digest)).touch()
        except OSError as exc:
            raise store_error(exc, "the store cannot be written", self._store.root) from exc


class Partial:
    """A blob that is being completed. Not for two threads at once, but for `open`."""

    def __init__(self, content: Content, descriptor: Descriptor, fd: int) -> None:
        self._content = content
        self._descriptor = descriptor
        self._fd = fd
        self._path = content.partial_path(descriptor.digest)
        self._hasher = descriptor.digest.hasher()
        self._asked = 0
        #: How many bytes are there. More can be appended.
        self.offset = _hash_file(fd, descriptor.size, self._hasher)

    @property
    def path(self) -> pathlib.Path:
        """The file, which grows up to the size of the blob and then moves away."""
        return self._path

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append `data`. DigestError if that is more than the blob has, StoreError if it cannot be
        written; what was there stays."""
        if self.offset + len(data) > self._descriptor.size:
            self.discard()
            what = f"more than the {self._descriptor.size} bytes that it should have"
            raise DigestError(what, where=self._descriptor.digest)
        try:
            self._append(memoryview(data))
        except OSError as exc:
            raise store_error(exc, "cannot store a blob", self._content.store.root) from exc

    def _append(self, left: memoryview) -> None:
        while left:
            count = os.pwrite(self._fd, left, self.offset)
            self._hasher.update(left[:count])
            self.offset += count
            left = left[count:]
        if self.offset - self._asked >= _WRITEBACK:
            syscalls.start_writing(self._fd)
            self._asked = self.offset

    def discard(self) -> None:
        """Begin anew: what is there is no part of the blob."""
        os.ftruncate(self._fd, 0)
        self.offset = self._asked = 0
        self._hasher = self._descriptor.digest.hasher()

    def commit(self) -> None:
        """Verify the blob and move it to its place, durably.

        ImageError if bytes are missing: they can still be added. DigestError if its digest is
        wrong; then nothing of it is kept. StoreError.
        """
        digest, missing = self._descriptor.digest, self._descriptor.size - self.offset
        if missing:
            raise ImageError(f"cut short, {missing} bytes are missing", where=digest)
        try:
            _check_digest(digest, self._hasher.hexdigest(), str(digest))
        except DigestError:
            self.discard()
            raise
        try:
            os.fsync(self._fd)
        except OSError as exc:
            raise store_error(exc, "cannot store a blob", self._content.store.root) from exc
        self._content.take(self._path, digest)


def _hash_file(fd: int, most: int, hasher: Hasher) -> int:
    """Hash the file; returns its size in bytes. What is longer than `most` is emptied."""
    if os.fstat(fd).st_size > most:
        os.ftruncate(fd, 0)
    position = 0
    while data := os.pread(fd, _CHUNK, position):
        hasher.update(data)
        position += len(data)
    return position


def _hashed(digest: Digest, data: bytes) -> str:
    hasher = digest.hasher()
    hasher.update(data)
    return hasher.hexdigest()


def _check_digest(
    wanted: Digest, found: str, where: str, *, hint: str = "fetch the image again"
) -> None:
    if found != wanted.hex:
        what = f"wrong digest {wanted.algorithm}:{found}, it should be {wanted}"
        raise DigestError(what, where=where, hint=hint)


def _joined(digest: Digest) -> str:
    return f"{digest.algorithm}-{digest.hex}"


def _digest(algorithm: str, hex_digits: str) -> Digest | None:
    """The digest in the name of a file; None if that is none of ours."""
    try:
        return Digest(algorithm, hex_digits)
    except ImageError:
        return None


def _sized(digest: Digest | None, entry: os.DirEntry[str]) -> Iterator[tuple[Digest, int]]:
    """The blob with its size in bytes, unless it is none, or gone."""
    with contextlib.suppress(FileNotFoundError):
        if digest is not None:
            yield digest, entry.stat(follow_symlinks=False).st_size


def _locked(path: pathlib.Path, wait: bool) -> int | None:
    """The file at `path`, made if there is none, and locked; None if it has moved away since."""
    fd = os.open(path, _PARTIAL_FLAGS, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        if is_at(fd, path):
            return fd
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def is_at(fd: int, path: pathlib.Path) -> bool:
    """Whether the open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _entries(path: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    """What a directory holds; nothing if it is gone or none."""
    try:
        with os.scandir(path) as found:
            return list(found)
    except (FileNotFoundError, NotADirectoryError):
        return []
