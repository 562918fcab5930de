"""Runs `fuseoverlay mount IMAGE MNT` on images named on stdin, each in a process of its own.

The mount point is inside the work directory, which is noticed only after the layers are there: an
image that can be read ends in exit code 5. Each process has a limit on its seconds and on its
memory, beyond what the program takes before it reads anything. Prints a line of JSON for each
image: exit code (negative: the signal that ended it) and stderr.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import resource
import signal
import sys
import tempfile
import traceback
from pathlib import Path

from fuseoverlay.commands import dispatch

MEMORY = 256 << 20
SECONDS = 20


def _read(image: str, stderr: int, upper: str) -> None:
    os.dup2(stderr, 2)
    signal.alarm(SECONDS)
    status = re.search(r"VmSize:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert status
    limit = int(status[1]) * 1024 + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    code = 1
    try:
        options = f"upperdir={upper}/diff,workdir={upper}/work"
        code = dispatch.main(["mount", image, f"{upper}/work/mnt", "-o", options])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    # What the command would import anew each time.
    for module in ("commands.imagemount", "commands.mount", "commands.progress", "fuse.mount"):
        importlib.import_module(f"fuseoverlay.{module}")
    with tempfile.TemporaryDirectory() as upper:
        Path(upper, "work/mnt").mkdir(parents=True)
        Path(upper, "diff").mkdir()
        for line in sys.stdin:
            with tempfile.TemporaryFile() as stderr:
                pid = os.fork()
                if not pid:
                    _read(line.rstrip("\n"), stderr.fileno(), upper)
                _, status = os.waitpid(pid, 0)
                stderr.seek(0)
                said = stderr.read().decode(errors="replace")
            print(json.dumps([os.waitstatus_to_exitcode(status), said]), flush=True)


if __name__ == "__main__":
    main()
