"""Who holds a lock."""

from __future__ import annotations

import contextlib
import glob
import os


def flock_holder(fd: int) -> int | None:
    """The pid of a process that has an open file description with a flock(2) on the file of `fd`;
    None if there is none that we may inspect.

    /proc/locks will not do: it names the process that took the lock, which may have forked and
    ended.
    """
    st = os.fstat(fd)
    wanted = f"{os.major(st.st_dev):02x}:{os.minor(st.st_dev):02x}:{st.st_ino}"
    for path in glob.iglob("/proc/[0-9]*/fdinfo/*"):
        with contextlib.suppress(OSError), open(path, encoding="ascii") as lines:
            for line in lines:
                words = line.split()
                if words[:1] == ["lock:"] and words[2] == "FLOCK" and wanted in words:
                    return int(path.split("/")[2])
    return None
