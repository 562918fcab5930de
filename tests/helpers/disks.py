"""Filesystems in a file, each with what only it can do."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def disk(base: Path, kind: str, *options: str) -> Iterator[Path]:
    """A filesystem of this kind, by itself; its image is `base / "image"`. `options` are those of
    its mkfs."""
    tool = shutil.which(f"mkfs.{kind}", path=f"/sbin:/usr/sbin:{os.environ['PATH']}")
    if tool is None:
        pytest.skip(f"missing tool: mkfs.{kind}")
    image, where = base / "image", base / "disk"
    where.mkdir()
    with image.open("wb") as stream:
        stream.truncate(512 << 20)
    subprocess.run([tool, "-q", *options, str(image)], check=True, timeout=60, capture_output=True)
    attach(image, where)
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", str(where)], check=False, timeout=60)


def attach(image: Path, where: Path) -> None:
    """Mount it; skip the test where there are no loop devices."""
    if not os.path.exists("/dev/loop-control"):
        pytest.skip("no loop devices")
    subprocess.run(["mount", "-o", "loop", str(image), str(where)], check=True, timeout=60)
