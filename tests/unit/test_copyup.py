"""Copy-up while something else happens at the critical moment."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest
import trio
import trio.testing

from fuseoverlay.overlay import attributes, copyup, lookup, owners
from fuseoverlay.overlay.attributes import Changes
from fuseoverlay.overlay.config import MountConfig
from fuseoverlay.overlay.ownership import Changer

ROOT = Changer(0, lambda: (), True, lambda: None)


def test_times_set_while_the_data_of_a_metacopy_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "lower" / "f").write_bytes(b"data")
    config = MountConfig(
        (os.fsencode(tmp_path / "lower"),),
        os.fsencode(tmp_path / "upper"),
        os.fsencode(tmp_path / "work"),
        metacopy=True,
    )
    copying, go_on = threading.Event(), threading.Event()
    real = copyup.copy_data

    def slow(source: int, target: int, length: int) -> None:
        copying.set()
        assert go_on.wait(30)
        real(source, target, length)

    monkeypatch.setattr(copyup, "copy_data", slow)

    async def run() -> None:
        with owners.opened(config) as ov, trio.fail_after(60):
            file = await lookup.child(ov, ov.inodes.root, b"f")
            file.nlookup = 1
            await attributes.setattr(ov, file, Changes(mode=0o600), ROOT)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(copyup.copy_up, ov, file)
                await trio.to_thread.run_sync(copying.wait)
                times = Changes(atime_ns=5, mtime_ns=7)
                nursery.start_soon(lambda: attributes.setattr(ov, file, times, ROOT))
                await trio.testing.wait_all_tasks_blocked()
                go_on.set()
            st = os.stat(tmp_path / "upper" / "f")
            assert (st.st_atime_ns, st.st_mtime_ns, stat.S_IMODE(st.st_mode)) == (5, 7, 0o600)
            assert (tmp_path / "upper" / "f").read_bytes() == b"data"

    trio.run(run)
