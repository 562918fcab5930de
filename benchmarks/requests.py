"""Counts FUSE requests by opcode as the kernel sends them: tracepoint fuse:fuse_request_send.

That needs root and Linux 6.11 or later. Root opens the files; the measuring process reads them,
perhaps in a user namespace. FORGETs have no tracepoint.
"""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from fuseoverlay.native.opcodes import NAMES as SPELLED

TRACEFS = Path("/sys/kernel/tracing")
#: Kibibytes per CPU: some 400,000 requests.
BUFFER_KIB = 16 << 10
#: The environment variable that hands the open files to the process that counts.
VARIABLE = "FUSEOVERLAY_BENCH_TRACE"

NAMES = {number: name.upper() for number, name in SPELLED.items()}

#: Requests whose answer nobody waits for.
ASYNCHRONOUS = {"RELEASE", "RELEASEDIR", "INTERRUPT"}
#: Requests that come once per directory, or per page of a listing.
OF_DIRECTORIES = {"OPENDIR", "READDIR", "READDIRPLUS", "RELEASEDIR", "FSYNCDIR"}


def synchronous(requests: dict[str, int]) -> int:
    """How many of these requests somebody waited for."""
    return sum(count for name, count in requests.items() if name not in ASYNCHRONOUS)


@contextlib.contextmanager
def _mounted() -> Iterator[None]:
    """The tracepoints are there, if they can be: not everywhere are they mounted."""
    # Only root may look into it.
    if os.path.exists(TRACEFS / "instances"):
        yield
        return
    argv = ["mount", "-t", "tracefs", "tracefs", str(TRACEFS)]
    mounted = subprocess.run(argv, capture_output=True, check=False).returncode == 0
    try:
        yield
    finally:
        if mounted:
            subprocess.run(["umount", str(TRACEFS)], capture_output=True, check=False)


@contextlib.contextmanager
def traced(name: str) -> Iterator[dict[str, str]]:
    """A trace instance of our own. Yields the environment for the process that counts, empty if
    requests cannot be counted."""
    with _mounted(), _instance(TRACEFS / "instances" / name) as environment:
        yield environment


@contextlib.contextmanager
def _instance(instance: Path) -> Iterator[dict[str, str]]:
    event = instance / "events/fuse/fuse_request_send"
    try:
        instance.mkdir()
    except OSError:
        yield {}
        return
    descriptors: list[int] = []
    try:
        if not event.exists():
            yield {}
            return
        (instance / "buffer_size_kb").write_text(str(BUFFER_KIB))
        (event / "filter").write_text("connection == 0")
        (event / "enable").write_text("1")
        paths = [event / "filter", *sorted(instance.glob("per_cpu/cpu*/trace_pipe_raw"))]
        for path in paths:
            flags = os.O_WRONLY if path.name == "filter" else os.O_RDONLY | os.O_NONBLOCK
            descriptors.append(os.open(path, flags))
            os.set_inheritable(descriptors[-1], True)
        yield {VARIABLE: ":".join(map(str, descriptors))}
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
        with contextlib.suppress(OSError):
            (event / "enable").write_text("0")
        instance.rmdir()


class Requests:
    """Counts the requests of one mount at a time, if that is possible."""

    def __init__(self) -> None:
        handed = os.environ.get(VARIABLE)
        descriptors = [int(word) for word in handed.split(":")] if handed else []
        self._filter, self._pipes = descriptors[:1], descriptors[1:]

    @property
    def possible(self) -> bool:
        """Whether requests can be counted."""
        return bool(self._pipes)

    def begin(self, device: int) -> None:
        """From now on, count the requests to the mount with this `st_dev`."""
        if self.possible:
            os.write(self._filter[0], b"connection == %d" % os.minor(device))
            for _ in self._events():
                pass

    def end(self) -> dict[str, int] | None:
        """The requests since `begin`, by opcode, the most frequent first; None if unknown."""
        if not self.possible:
            return None
        try:
            counted = Counter(self._events())
        except OverflowError:
            return None
        return {NAMES.get(code, str(code)): count for code, count in counted.most_common()}

    def _events(self) -> Iterator[int]:
        for pipe in self._pipes:
            with contextlib.suppress(BlockingIOError):
                while page := os.read(pipe, 4096):
                    yield from opcodes(page)


#: A page of the ring buffer begins with a time stamp and the number of bytes that follow.
_PAGE = struct.Struct("=QQ")
#: The fields of fuse_request_send up to the opcode: common, connection, unique, opcode.
_EVENT = struct.Struct("=8xI4xQI")


def opcodes(page: bytes) -> Iterator[int]:
    """The opcodes in a page of the kernel's ring buffer (include/linux/ring_buffer.h).

    OverflowError: events before this page were lost.
    """
    _, commit = _PAGE.unpack_from(page)
    at, end = _PAGE.size, _PAGE.size + (commit & 0xFFFFF)
    if commit & 1 << 31:
        raise OverflowError("more requests than the trace buffer holds")
    while at + 4 <= end:
        kind, delta = (word := struct.unpack_from("=I", page, at)[0]) & 31, word >> 5
        if kind in (30, 31):  # time extend, time stamp
            at += 8
            continue
        if kind == 29:  # padding: an event that the filter took, or the rest of the page
            if not delta:
                return
            at += 4 + struct.unpack_from("=I", page, at + 4)[0]
            continue
        head, length = 4, kind * 4
        if kind == 0:
            head, length = 8, struct.unpack_from("=I", page, at + 4)[0] - 4
        yield _EVENT.unpack_from(page, at + head)[2]
        at += head + length
