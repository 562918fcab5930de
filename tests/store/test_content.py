"""Blobs of the store are whole at their place, and what is there of others is not lost."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fuseoverlay.errors import DigestError, ImageError, StoreError
from fuseoverlay.oci.model import OCI_LAYER, Descriptor, Digest
from fuseoverlay.store.content import Content
from fuseoverlay.store.root import Store

DATA = os.urandom(300_000)
PROJECT = Path(__file__).resolve().parents[2]


def described(data: bytes, algorithm: str = "sha256") -> Descriptor:
    """The descriptor of a blob with this content."""
    hasher = Digest(algorithm, "0" * {"sha256": 64, "sha512": 128}[algorithm]).hasher()
    hasher.update(data)
    return Descriptor(OCI_LAYER, Digest(algorithm, hasher.hexdigest()), len(data))


BLOB = described(DATA)


@pytest.fixture
def content(kept: Store) -> Content:
    return Content(kept)


def fetched(content: Content, data: bytes, descriptor: Descriptor) -> None:
    """Add what is missing of the blob `data`."""
    with content.partial(descriptor) as partial:
        assert partial is not None
        partial.write(data[partial.offset :])
        partial.commit()


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("data", [DATA, b""], ids=["some", "empty"])
def test_a_blob(content: Content, algorithm: str, data: bytes) -> None:
    descriptor = described(data, algorithm)
    assert not content.has(descriptor)
    fetched(content, data, descriptor)
    assert content.has(descriptor)
    assert content.read(descriptor) == data
    place = content.store.root / "blobs" / algorithm / descriptor.digest.hex
    assert place.read_bytes() == data
    assert list(content.blobs()) == [(descriptor.digest, len(data))]
    assert list(content.partials()) == []
    with content.partial(descriptor) as partial:
        assert partial is None


def test_it_goes_on_where_it_was(content: Content) -> None:
    with content.partial(BLOB) as partial:
        assert partial is not None
        assert partial.offset == 0
        partial.write(DATA[:1000])
        partial.write(DATA[1000:200_000])
    assert list(content.partials()) == [(BLOB.digest, 200_000)]
    assert not content.has(BLOB)
    with content.partial(BLOB) as partial:
        assert partial is not None
        assert partial.offset == 200_000
        partial.write(DATA[200_000:])
        partial.commit()
    assert content.read(BLOB) == DATA
    assert list(content.partials()) == []


def test_what_is_short_stays(content: Content) -> None:
    with content.partial(BLOB) as partial:
        assert partial is not None
        partial.write(DATA[:-7])
        with pytest.raises(ImageError, match="7 bytes are missing"):
            partial.commit()
    assert list(content.partials()) == [(BLOB.digest, len(DATA) - 7)]
    fetched(content, DATA, BLOB)


def test_what_is_wrong_goes(content: Content) -> None:
    """Also if it is of whoever was here before."""
    with content.partial(BLOB) as partial:
        assert partial is not None
        partial.write(b"wrong" + DATA[5:200_000])
    with content.partial(BLOB) as partial:
        assert partial is not None
        partial.write(DATA[200_000:])
        with pytest.raises(DigestError, match="wrong digest"):
            partial.commit()
        assert partial.offset == 0
    assert list(content.partials()) == []
    assert list(content.blobs()) == []


def test_a_wrong_blob_can_be_written_anew(content: Content) -> None:
    with content.partial(BLOB) as partial:
        assert partial is not None
        partial.write(bytes(len(DATA)))
        with pytest.raises(DigestError):
            partial.commit()
        partial.write(DATA)
        partial.commit()
    assert content.read(BLOB) == DATA


def test_more_than_there_should_be(content: Content) -> None:
    with content.partial(BLOB) as partial:
        assert partial is not None
        partial.write(DATA)
        with pytest.raises(DigestError, match="more than the 300000 bytes"):
            partial.write(b"x")
    content.partial_path(BLOB.digest).write_bytes(DATA + b"x")
    fetched(content, DATA, BLOB)


def test_a_link_is_not_followed(content: Content, place: Path) -> None:
    (place / "other").write_text("mine")
    content.partial_path(BLOB.digest).symlink_to(place / "other")
    with pytest.raises(StoreError, match="symbolic links"), content.partial(BLOB):
        pass
    assert (place / "other").read_text() == "mine"


def test_a_damaged_store_is_noticed(content: Content) -> None:
    fetched(content, DATA, BLOB)
    path = content.path(BLOB.digest)
    path.write_bytes(DATA[:-1])
    assert not content.has(BLOB)
    with pytest.raises(DigestError, match="299999 bytes, it should be 300000"):
        content.open(BLOB)
    path.write_bytes(bytes(len(DATA)))
    with pytest.raises(DigestError, match="wrong digest"):
        content.read(BLOB)
    path.unlink()
    with pytest.raises(ImageError, match="No such file"):
        content.open(BLOB)


def test_a_blob_of_a_wrong_size_is_replaced(content: Content) -> None:
    content.path(BLOB.digest).write_bytes(b"short")
    fetched(content, DATA, BLOB)
    assert content.read(BLOB) == DATA


def test_small_blobs(content: Content) -> None:
    digest = content.add(b"{}")
    assert digest == Digest.of(b"{}")
    assert content.read(Descriptor("text", digest, 2)) == b"{}"
    sha512 = described(b"{}", "sha512").digest
    assert content.add(b"{}", sha512) == sha512
    with pytest.raises(DigestError):
        content.add(b"[]", digest)
    with pytest.raises(ImageError, match="larger than"):
        content.read(Descriptor("text", digest, 17 << 20))


def test_foreign_files_are_no_blobs(content: Content) -> None:
    (content.store.root / "blobs/sha256/README").touch()
    (content.store.root / "blobs/README").touch()
    (content.store.root / "blobs/md5").mkdir()
    (content.store.root / "blobs/md5" / ("0" * 32)).touch()
    (content.store.root / "partial/x").touch()
    assert list(content.blobs()) == []
    assert list(content.partials()) == []


def test_two_at_once(content: Content) -> None:
    """The second waits, and finds the blob complete."""
    found: list[object] = []
    begun = threading.Event()

    def second() -> None:
        begun.set()
        with content.partial(BLOB) as partial:
            found.append(partial)

    with content.partial(BLOB) as partial:
        assert partial is not None
        partial.write(DATA)
        with pytest.raises(BlockingIOError), content.partial(BLOB, wait=False):
            pass
        thread = threading.Thread(target=second)
        thread.start()
        begun.wait()
        partial.commit()
    thread.join()
    assert found == [None]


def test_the_second_goes_on_after_the_first(content: Content) -> None:
    offsets: list[int] = []

    def second() -> None:
        with content.partial(BLOB) as partial:
            assert partial is not None
            offsets.append(partial.offset)
            partial.write(DATA[partial.offset :])
            partial.commit()

    with content.partial(BLOB) as partial:
        assert partial is not None
        thread = threading.Thread(target=second)
        thread.start()
        partial.write(DATA[:5000])
    thread.join()
    assert offsets == [5000]
    assert content.read(BLOB) == DATA


def test_many_at_once(content: Content) -> None:
    errors: list[BaseException] = []
    taken: list[bool] = []

    def run() -> None:
        try:
            with content.partial(BLOB) as partial:
                taken.append(partial is not None)
                if partial is not None:
                    partial.write(DATA[partial.offset :])
                    partial.commit()
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=run) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert taken.count(True) == 1
    assert list(content.partials()) == []


def test_a_full_disk_keeps_what_is_there(content: Content, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    room = 70_000

    def write(fd: int, data: memoryview, offset: int) -> int:
        if offset >= room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(fd, data[: room - offset], offset)

    monkeypatch.setattr(os, "pwrite", write)
    with content.partial(BLOB) as partial:
        assert partial is not None
        with pytest.raises(StoreError, match=r"No space left.*make room"):
            partial.write(DATA)
        assert partial.offset == room
    monkeypatch.undo()
    assert list(content.partials()) == [(BLOB.digest, room)]
    fetched(content, DATA, BLOB)
    assert content.read(BLOB) == DATA


def test_a_lease(content: Content) -> None:
    with content.lease() as lease:
        assert content.leased() == set()
        lease.add([BLOB.digest])
        lease.add([Digest.of(b"")])
        assert content.leased() == {BLOB.digest, Digest.of(b"")}
    assert content.leased() == set()


LEASE = """
import os, signal, sys
from fuseoverlay.oci.model import Digest
from fuseoverlay.store.content import Content
from fuseoverlay.store.root import Store
with Content(Store(sys.argv[1])).lease() as lease:
    lease.add([Digest.of(b"x")])
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_lease_ends_with_its_process(content: Content) -> None:
    subprocess.run([sys.executable, "-c", LEASE, content.store.root], cwd=PROJECT, check=False)
    assert content.leased() == {Digest.of(b"x")}
    content.store.prepare()
    assert content.leased() == set()
