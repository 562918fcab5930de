"""Who holds a lock."""

from __future__ import annotations

import contextlib
import glob
import os


def flock_holder(fd: int) -> int | None:
    """A process with an open file description that has a flock(2) on what `fd` is of; None: there
    is none that we may look at. /proc/locks names who took the lock, which may have forked and
    ended since."""
    st = os.fstat(fd)
    wanted = f"{os.major(st.st_dev):02x}:{os.minor(st.st_dev):02x}:{st.st_ino}"
    for path in glob.iglob("/proc/[0-9]*/fdinfo/*"):
        with contextlib.suppress(OSError), open(path, encoding="ascii") as lines:
            for line in lines:
                words = line.split()
                if words[:1] == ["lock:"] and words[2] == "FLOCK" and wanted in words:
                    return int(path.split("/")[2])
    return None
