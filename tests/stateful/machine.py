"""The state machine: random layers, random operations on the mount and on what must agree.

Every operation is done on fuseoverlay, on the model (a plain directory with the merged
view, see `tests.stateful.model`) and, where it reads the same layers, on kernel overlayfs.
All must give the same answer or errno. Chosen differences (docs/semantics.md) are where
the kernel is not asked: data that a descriptor opened for reading shows, which may be stale
there; layers with hard links without index=on; link counts of directories; times with
metacopy=on, where opening for writing sets them.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import struct
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from fuseoverlay.system.syscalls import AT_FDCWD, RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2
from tests.helpers import libc
from tests.helpers.mounts import MODE, NATIVE, Space, scratch, unmount
from tests.helpers.tree import Tree, compare, record
from tests.stateful import model
from tests.stateful.model import NAMES, OLD, PATHS, RECENT, XATTR, Layer, Mode, text

FEATURES = ((), ("redirect_dir=on",), ("redirect_dir=on", "metacopy=on", "index=on"))
#: Of files; a plain user's write ends setuid, and in a user namespace everybody's does, but
#: there fuseoverlay takes the caller for root.
MODES = [Mode(mode) for mode in (0o644, 0o600, 0o755, 0o444, 0o4755)[: 4 + (MODE != "userns")]]
DIR_MODES = [Mode(mode) for mode in (0o755, 0o700, 0o1777, 0o555)]
#: Nothing, little, more than a page, more than is copied or written without a thread.
SIZES = (0, 10, 5000, 150_000)
OFFSETS = (0, 3, 4096, 200_000)
OPENED = {
    "r": os.O_RDONLY,
    "w": os.O_WRONLY,
    "rw": os.O_RDWR,
    "a": os.O_WRONLY | os.O_APPEND,
    "rw, append": os.O_RDWR | os.O_APPEND,
    "w, truncate": os.O_WRONLY | os.O_TRUNC,
    "rw, create": os.O_RDWR | os.O_CREAT,
    "w, create new": os.O_WRONLY | os.O_CREAT | os.O_EXCL,
    "r, no link": os.O_RDONLY | os.O_NOFOLLOW,
    "directory": os.O_RDONLY | os.O_DIRECTORY,
}
FLAGS = {
    "": 0,
    "noreplace": RENAME_NOREPLACE,
    "exchange": RENAME_EXCHANGE,
    "both": RENAME_NOREPLACE | RENAME_EXCHANGE,
}
#: Of fallocate(2).
ALLOCATIONS = {
    "": 0,
    "keep size": libc.FALLOC_FL_KEEP_SIZE,
    "punch": libc.FALLOC_FL_PUNCH_HOLE | libc.FALLOC_FL_KEEP_SIZE,
    "zero": 0x10,
}
#: At most so many descriptors are open in each mount.
MOST_OPEN = 8
#: A mount takes as long as many operations: at least so many are between two.
PAUSE = 20

anywhere = st.one_of(*(st.sampled_from([p for p in PATHS if p.count("/") == n]) for n in range(3)))


def _there(root: Path) -> list[str]:
    found = []
    for above, inner, others in os.walk(root):
        found += [os.path.relpath(os.path.join(above, name), root) for name in inner + others]
    return sorted(found)


def _room(root: Path) -> list[str]:
    """Paths at which something could be made."""
    there = _there(root)
    parents = {"", *(path for path in there if (root / path).is_dir())}
    return [path for path in PATHS if os.path.dirname(path) in parents and path not in there]


def _in_model(choices: Callable[[Path], list[str]]) -> st.SearchStrategy[str]:
    """Paths chosen by what is there now: most operations want something to work on."""
    return st.runner().flatmap(lambda machine: st.sampled_from(choices(machine.plain) or PATHS))


paths = _in_model(lambda root: 10 * _there(root) + list(PATHS))
places = _in_model(lambda root: 10 * _room(root) + 5 * _there(root) + list(PATHS))
dirs = _in_model(lambda root: [path for path in _there(root) if (root / path).is_dir()])
files = _in_model(lambda root: [path for path in _there(root) if (root / path).is_file()])
names = st.sampled_from(NAMES)
targets = st.sampled_from(("a", "b", "a/b", "c", "nowhere", "."))
sizes = st.sampled_from(SIZES)
offsets = st.sampled_from(OFFSETS)
which = st.integers(0, MOST_OPEN - 1)
nodes = st.one_of(
    st.builds(
        model.File,
        size=sizes,
        mode=st.sampled_from(MODES),
        xattr=st.booleans(),
        twin=st.sampled_from((None, None, None, 1)),
    ),
    st.builds(
        model.Dir,
        opaque=st.sampled_from(("", "", "inside", "beside")),
        mode=st.sampled_from(DIR_MODES),
        xattr=st.booleans(),
    ),
    st.builds(model.File),
    st.builds(model.Dir),
    st.just(model.Whiteout()),
    st.builds(model.Symlink, target=targets),
    st.builds(model.Fifo),
)
layers = st.builds(
    Layer,
    dialect=st.sampled_from(("char", "xattr", "oci")),
    nodes=st.dictionaries(anywhere, nodes, min_size=4, max_size=20).map(model.complete),
)


def outcome(operation: Callable[..., object], where: Path | int) -> object:
    """What a program sees: the answer, or the errno's name."""
    try:
        return operation(where)
    except OSError as exc:
        return errno.errorcode.get(exc.errno or 0, exc.errno)


def status(found: os.stat_result) -> dict[str, object]:
    """What stat says, as far as it is the same everywhere."""
    is_dir = stat.S_ISDIR(found.st_mode)
    return {
        "mode": oct(found.st_mode),
        "owner": (found.st_uid, found.st_gid),
        "size": None if is_dir else found.st_size,
        "nlink": None if is_dir else found.st_nlink,
    }


def known_time(found: os.stat_result) -> int | None:
    """A time that a layer or utimens(2) set; None: some time during the test, and for fifos:
    what writing to one does to its time no FUSE server hears."""
    old = found.st_mtime_ns < RECENT and not stat.S_ISFIFO(found.st_mode)
    return found.st_mtime_ns if old else None


def tree_of(root: Path) -> Tree:
    """The whole tree, as far as it is the same everywhere."""
    tree = record(str(root))
    for entry in tree.values():
        if entry.mtime_ns >= RECENT or entry.kind == "fifo":
            entry.mtime_ns = 0
    return tree


def write(path: Path, flags: int, data: bytes, offset: int = 0) -> int:
    """Open, write, close. Never blocks: it may be a fifo."""
    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | flags, 0o644)
    try:
        return os.pwrite(fd, data, offset) if offset else os.write(fd, data)
    finally:
        os.close(fd)


#: A time that is given to both files, ns.
SET = (OLD + 2000) * 10**9


def copy_range(source: Path, target: Path, size: int, start: int, place: int) -> int:
    """copy_file_range(2) from one file to another."""
    one = os.open(source, os.O_RDONLY | os.O_NONBLOCK)
    try:
        two = os.open(target, os.O_RDWR | os.O_NONBLOCK)
        try:
            return os.copy_file_range(one, two, size, start, place)
        finally:
            os.close(two)
    finally:
        os.close(one)


def make_nameless(path: Path, data: bytes, mode: int) -> None:
    """Make and write a file without a name, and give it one."""
    fd = os.open(path.parent, os.O_TMPFILE | os.O_RDWR, mode)
    try:
        os.write(fd, data)
        libc.linkat(f"/proc/self/fd/{fd}".encode(), path, libc.AT_SYMLINK_FOLLOW)
    finally:
        os.close(fd)


def read(path: Path) -> bytes:
    """All of a file."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return os.read(fd, 1 << 20)
    finally:
        os.close(fd)


def remove(path: Path) -> None:
    """rm -r, the same everywhere where it fails half-way."""
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        os.unlink(path)
        return
    for name in sorted(os.listdir(path)):
        remove(path / name)
    os.rmdir(path)


#: By path, each.
LOOKS: dict[str, Callable[[Path], object]] = {
    "stat": lambda path: status(os.lstat(path)),
    "read": read,
    "readlink": os.readlink,
    "listdir": lambda path: sorted(os.listdir(path)),
    "getxattr": lambda path: os.getxattr(path, XATTR),
    "listxattr": lambda path: sorted(os.listxattr(path)),
}
REMOVALS: dict[str, Callable[[Path], None]] = {
    "unlink": os.unlink,
    "rmdir": os.rmdir,
    "rm -r": remove,
}
WRITES = {
    "write": 0,
    "append": os.O_APPEND,
    "create": os.O_CREAT,
    "replace": os.O_TRUNC | os.O_CREAT,
}

_libc = ctypes.CDLL(None, use_errno=True)
#: There is no directory stream that reads few entries at a time.
_GETDENTS64 = {"x86_64": 217}.get(os.uname().machine, 61)


def some_names(fd: int, size: int) -> list[str]:
    """The next names of an open directory, as many as fit `size` bytes; empty: the end."""
    buffer = ctypes.create_string_buffer(size)
    got = _libc.syscall(_GETDENTS64, fd, buffer, size)
    if got < 0:
        raise OSError(ctypes.get_errno(), "getdents64")
    found, at = [], 0
    while at < got:
        (length,) = struct.unpack_from("H", buffer, at + 16)
        found.append(buffer.raw[at + 19 : at + length].split(b"\0")[0].decode())
        at += length
    return found


@dataclass
class Listing:
    """A listing under way: what it gave, and what was there all the time or ever."""

    always: set[str]
    ever: set[str]
    seen: list[str] = field(default_factory=list)


@dataclass
class Opened:
    """One open file or directory: a descriptor in every mount, the first one ours."""

    fds: list[int]
    writable: bool
    ino: int
    listing: Listing | None = None

    @property
    def ours(self) -> int:
        """The descriptor in fuseoverlay's mount."""
        return self.fds[0]

    @property
    def plain(self) -> int:
        """The descriptor in the model."""
        return self.fds[-1]

    @property
    def ends(self) -> tuple[int, int]:
        """Both of them, without the kernel's."""
        return self.ours, self.plain

    @property
    def kind(self) -> int:
        """File type."""
        return stat.S_IFMT(os.fstat(self.plain).st_mode)

    def follow(self) -> None:
        """Something has changed."""
        if self.listing is not None:
            now = _names_in(self.plain)
            self.listing.always &= now
            self.listing.ever |= now

    def close(self) -> None:
        """Close all."""
        while self.fds:
            os.close(self.fds.pop())


class OverlayMachine(RuleBasedStateMachine):
    """Operations on an overlay, compared with the model and the kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = contextlib.ExitStack()
        self.opened: list[Opened] = []
        #: Writes so far, and operations since the mount.
        self.count = self.done = 0
        self.fine = False

    # What there is

    @initialize(
        lowers=st.lists(layers, min_size=1, max_size=4),
        dialect=st.sampled_from(("char", "xattr", "oci")),
        features=st.sampled_from(FEATURES),
        caching=st.booleans(),
        swaps=st.booleans(),
    )
    def mount(
        self,
        lowers: list[Layer],
        dialect: str,
        features: tuple[str, ...],
        caching: bool,
        swaps: bool,
    ) -> None:
        """Make the layers and mount. With `swaps` fuseoverlay too gets what the kernel reads."""
        base = self.stack.enter_context(scratch())
        self.features = features
        self.ours = self._space(base / "ours", model.for_kernel(lowers) if swaps else lowers)
        self.ours.extra = (f"whiteout={dialect}", *(() if caching else ("timeout=0",)))
        self.kernel: Space | None = None
        if self._kernel_can(lowers):
            self.kernel = self._space(base / "kernel", model.for_kernel(lowers))
        self.swaps = swaps and self.kernel is not None and dialect == "char"
        #: Names of one file in several layers belong together only by the index.
        self.stacks = not model.has_twins(lowers)
        self.plain = base / "plain"
        self.plain.mkdir()
        (base / "hidden").mkdir()
        #: Inode numbers of the model's directories that are in a lower.
        self.lower_dirs = model.write_view(lowers, self.plain, base / "hidden")
        self.before = self.ours.evidence()
        self._mount()
        self._compare_trees()

    def _space(self, base: Path, lowers: list[Layer]) -> Space:
        base.mkdir()
        space = Space(base, len(lowers))
        for number, root in enumerate(space.lowers):
            model.write_layer(lowers, number, root)
        space.features = self.features
        # Called first of all: what it unmounts must still be there.
        self.stack.callback(space.drop)
        return space

    def _kernel_can(self, lowers: list[Layer]) -> bool:
        """Whether kernel overlayfs is no different by choice on these layers, here."""
        if MODE == "user" or (MODE == "userns" and self.features):
            return False
        return "index=on" in self.features or not model.has_twins(lowers)

    def _mount(self) -> None:
        self.ours.mount(impl="fuse")
        if self.kernel is not None:
            self.kernel.mount(impl="kernel")
        self.fine = True
        self.done = 0

    def _unmount(self) -> None:
        self._close_all()
        self._compare_trees()
        self.fine = False
        self.ours.unmount()
        self.ours.check_lowers(self.before)
        if self.kernel is not None:
            unmount(self.kernel.mnt)

    def teardown(self) -> None:
        """Whatever happened, all is unmounted and removed."""
        with self.stack:
            self._close_all()
            if self.fine:
                self._unmount()

    def _close_all(self) -> None:
        while self.opened:
            self.opened.pop().close()

    # How it is compared

    def _roots(self) -> list[Path]:
        kernel = [] if self.kernel is None else [self.kernel.mnt]
        return [self.ours.mnt, *kernel, self.plain]

    def _expect(self, good: object, message: str) -> None:
        if not good:
            # There is no use in comparing the rest of two different trees.
            self.fine = False
            daemon = self.ours.daemon
            log = daemon.text().strip() if daemon is not None else ""
            raise AssertionError(message + (f"\ndaemon's log:\n{log}" if log else ""))

    def _compare_trees(self) -> None:
        trees = [tree_of(root) for root in self._roots()]
        lines = compare(trees[-1], trees[0])
        self._expect(not lines, "not as in the model:\n" + "\n".join(lines))
        if self.kernel is not None:
            # Without file handles it forgets which names are one file.
            ignore = {"same_as", *(("mtime_ns",) if "metacopy=on" in self.features else ())}
            lines = compare(trees[1], trees[0], ignore=ignore)
            self._expect(not lines, "not as under the kernel:\n" + "\n".join(lines))

    def _same(self, results: Iterable[object]) -> object:
        """All results, ours first, must be equal; returns what it was."""
        results = list(results)
        self.done += 1
        who = ["ours", "kernel", "model"] if len(results) == 3 else ["ours", "model"]
        self._expect(
            all(result == results[0] for result in results),
            "\n".join(
                f"{name}: {_short(result)}" for name, result in zip(who, results, strict=True)
            ),
        )
        for one in self.opened:
            one.follow()
        return results[0]

    def do(self, operation: Callable[[Path], object]) -> object:
        """Do it everywhere."""
        return self._same(outcome(operation, root) for root in self._roots())

    def _data(self, size: int) -> bytes:
        """Bytes that were never written before."""
        self.count += 1
        return text(f"written {self.count}. ", size)

    # By name

    @rule(path=paths, how=st.sampled_from(sorted(LOOKS)))
    def look(self, path: str, how: str) -> None:
        self.do(lambda root: LOOKS[how](root / path))

    @rule(path=paths)
    def stat(self, path: str) -> None:
        """What the kernel does not know: the links of directories, all times."""

        def operation(root: Path) -> tuple[int, int | None]:
            found = os.lstat(root / path)
            return found.st_nlink, known_time(found)

        self._same(outcome(operation, root) for root in (self.ours.mnt, self.plain))

    @rule(path=places, what=st.sampled_from(("file", "fifo", "symlink")), to=targets)
    def make(self, path: str, what: str, to: str) -> None:
        if what == "file":
            data = self._data(10)
            self.do(lambda root: write(root / path, os.O_CREAT | os.O_EXCL, data))
        elif what == "fifo":
            self.do(lambda root: os.mkfifo(root / path))
        else:
            self.do(lambda root: os.symlink(to, root / path))

    @rule(path=places, mode=st.sampled_from(DIR_MODES))
    def mkdir(self, path: str, mode: int) -> None:
        if self.do(lambda root: os.mkdir(root / path, mode)) is None:
            self.lower_dirs.discard(os.stat(self.plain / path).st_ino)

    @rule(
        path=st.one_of(paths, files),
        how=st.sampled_from(sorted(WRITES)),
        size=sizes,
        offset=offsets,
    )
    def write(self, path: str, how: str, size: int, offset: int) -> None:
        data = self._data(size)
        self.do(lambda root: write(root / path, WRITES[how], data, offset))

    @rule(path=files, size=offsets)
    def truncate(self, path: str, size: int) -> None:
        self.do(lambda root: os.truncate(root / path, size))

    @rule(source=files, sink=files, size=sizes, start=offsets, place=offsets)
    def copy_range(self, source: str, sink: str, size: int, start: int, place: int) -> None:
        def operation(root: Path) -> None:
            copied = 0
            try:
                copied = copy_range(root / source, root / sink, size, start, place)
            finally:
                # Kernel overlayfs moves the time when a metacopy is opened to be written.
                with contextlib.suppress(OSError):
                    if not copied:
                        os.utime(root / sink, ns=(SET, SET))

        self.do(operation)

    @precondition(lambda self: NATIVE)
    @rule(path=places, size=sizes, mode=st.sampled_from(MODES))
    def make_nameless(self, path: str, size: int, mode: int) -> None:
        data = self._data(size)
        self.do(lambda root: make_nameless(root / path, data, mode))

    # Without file handles the kernel loses what belongs together.
    @precondition(lambda self: MODE != "userns" or self.kernel is None)
    @rule(old=st.one_of(files, paths), new=places)
    def link(self, old: str, new: str) -> None:
        if self.do(lambda root: os.link(root / old, root / new, follow_symlinks=False)) is None:
            self.stacks = False

    @rule(path=paths, how=st.sampled_from(sorted(REMOVALS)))
    def remove(self, path: str, how: str) -> None:
        self.do(lambda root: REMOVALS[how](root / path))

    @rule(
        old=st.one_of(paths, dirs),
        new=places,
        flags=st.sampled_from((*FLAGS, "", "exchange")),
    )
    def rename(self, old: str, new: str, flags: str) -> None:
        def operation(root: Path) -> None:
            one, two = os.fsencode(root / old), os.fsencode(root / new)
            renameat2(AT_FDCWD, one, AT_FDCWD, two, FLAGS[flags])

        *overlays, plain = self._roots()
        stuck = not self.features and (
            self._is_lower_dir(old) or ("exchange" in flags and self._is_lower_dir(new))
        )
        results = [outcome(operation, root) for root in overlays]
        if stuck and results[0] == "EXDEV":
            # Only so without redirect_dir. What comes first, this or another errno, the
            # kernel says.
            self._same([*results, "EXDEV"])
            return
        same = stuck and os.path.realpath(plain / old) == os.path.realpath(plain / new)
        self._same([*results, outcome(operation, plain)])
        self._expect(results[0] is not None or not stuck or same, "a lower directory has moved")

    @rule(old=places, new=paths)
    def replace_tree(self, old: str, new: str) -> None:
        """mkdir OLD; rm -r NEW; mv OLD NEW"""
        self.mkdir(old, DIR_MODES[0])
        self.remove(new, "rm -r")
        self.rename(old, new, "noreplace")

    @rule(path=dirs)
    def make_again(self, path: str) -> None:
        """rm -r; mkdir"""
        self.remove(path, "rm -r")
        self.mkdir(path, DIR_MODES[0])

    def _is_lower_dir(self, path: str) -> bool:
        with contextlib.suppress(OSError):
            found = os.lstat(self.plain / path)
            return stat.S_ISDIR(found.st_mode) and found.st_ino in self.lower_dirs
        return False

    @rule(path=paths, mode=st.sampled_from(MODES + DIR_MODES))
    def chmod(self, path: str, mode: int) -> None:
        # A directory that its owner may not read nobody could compare.
        self.do(lambda root: os.chmod(root / path, mode | 0o500 * (root / path).is_dir()))

    @rule(path=paths, seconds=st.integers(0, 99), follow=st.booleans())
    def utimens(self, path: str, seconds: int, follow: bool) -> None:
        time = (OLD + 1000 + seconds) * 10**9 + 123_456_789
        self.do(lambda root: os.utime(root / path, ns=(time, time), follow_symlinks=follow))

    @rule(path=paths, size=st.sampled_from((0, 10, 500)), follow=st.booleans())
    def setxattr(self, path: str, size: int, follow: bool) -> None:
        data = self._data(size)
        self.do(lambda root: os.setxattr(root / path, XATTR, data, follow_symlinks=follow))

    @rule(path=paths)
    def removexattr(self, path: str) -> None:
        self.do(lambda root: os.removexattr(root / path, XATTR))

    # Descriptors

    @rule(path=st.one_of(files, paths, dirs), how=st.sampled_from(sorted(OPENED)))
    def open(self, path: str, how: str) -> None:
        flags = OPENED[how] | os.O_NONBLOCK
        fds: list[int] = []

        def operation(root: Path) -> None:
            fds.append(os.open(root / path, flags, 0o644))

        try:
            done = self.do(operation) is None
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        if not done:
            return
        if len(self.opened) == MOST_OPEN:
            self.opened.pop(0).close()
        writable = flags & os.O_ACCMODE != os.O_RDONLY
        self.opened.append(Opened(fds, writable, os.fstat(fds[0]).st_ino))

    def _pick(self, number: int) -> Opened:
        return self.opened[number % len(self.opened)]

    def do_open(self, one: Opened, operation: Callable[[int], object]) -> object:
        """Do it with every descriptor. Of what was removed from a lower the kernel changes no
        directory and, without index=on, knows no link count."""
        gone = not os.fstat(one.plain).st_nlink
        return self._same(outcome(operation, fd) for fd in (one.ends if gone else one.fds))

    def _read_open(self, one: Opened, operation: Callable[[int], object]) -> None:
        """Through what was opened for reading the kernel shows the lower file for ever."""
        if one.kind == stat.S_IFREG and not one.writable:
            self._same(outcome(operation, fd) for fd in one.ends)
        else:
            self.do_open(one, operation)

    @precondition(lambda self: self.opened)
    @rule(number=which, size=sizes)
    def fd_read(self, number: int, size: int) -> None:
        self._read_open(self._pick(number), lambda fd: os.read(fd, size))

    @precondition(lambda self: self.opened)
    @rule(number=which, size=sizes, offset=offsets)
    def fd_pread(self, number: int, size: int, offset: int) -> None:
        self._read_open(self._pick(number), lambda fd: os.pread(fd, size, offset))

    @precondition(lambda self: self.opened)
    @rule(number=which, size=sizes)
    def fd_write(self, number: int, size: int) -> None:
        data = self._data(size)
        self.do_open(self._pick(number), lambda fd: os.write(fd, data))

    @precondition(lambda self: self.opened)
    @rule(number=which, size=sizes, offset=offsets)
    def fd_pwrite(self, number: int, size: int, offset: int) -> None:
        data = self._data(size)
        self.do_open(self._pick(number), lambda fd: os.pwrite(fd, data, offset))

    @precondition(lambda self: NATIVE and self.opened)
    @rule(number=which, how=st.sampled_from(sorted(ALLOCATIONS)), size=sizes, offset=offsets)
    def fd_allocate(self, number: int, how: str, size: int, offset: int) -> None:
        mode = ALLOCATIONS[how]
        self.do_open(self._pick(number), lambda fd: libc.fallocate(fd, mode, offset, size))

    @precondition(lambda self: self.opened)
    @rule(number=which, size=offsets)
    def fd_truncate(self, number: int, size: int) -> None:
        self.do_open(self._pick(number), lambda fd: os.ftruncate(fd, size))

    @precondition(lambda self: self.opened)
    @rule(number=which)
    def fd_stat(self, number: int) -> None:
        one = self._pick(number)
        self.do_open(one, lambda fd: status(os.fstat(fd)))
        now = os.fstat(one.ours).st_ino
        self._expect(now == one.ino, f"st_ino was {one.ino}, is {now}")

    @precondition(lambda self: self.opened)
    @rule(number=which)
    def fd_fsync(self, number: int) -> None:
        self.do_open(self._pick(number), os.fsync)

    @precondition(lambda self: self.opened)
    @rule(number=which, mode=st.sampled_from(MODES))
    def fd_chmod(self, number: int, mode: int) -> None:
        one = self._pick(number)
        if one.kind == stat.S_IFDIR:
            mode |= 0o500
        self.do_open(one, lambda fd: os.fchmod(fd, mode))

    @precondition(lambda self: self.opened)
    @rule(number=which, size=st.sampled_from((0, 10, 500)))
    def fd_setxattr(self, number: int, size: int) -> None:
        data = self._data(size)
        self.do_open(self._pick(number), lambda fd: os.setxattr(fd, XATTR, data))

    @precondition(lambda self: self.opened)
    @rule(number=which, name=names)
    def create_in(self, number: int, name: str) -> None:
        """In an open directory, which may have been moved or removed."""

        def operation(fd: int) -> None:
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=fd))

        self.do_open(self._pick(number), operation)

    @precondition(lambda self: self.opened)
    @rule(number=which)
    def close(self, number: int) -> None:
        self.opened.pop(number % len(self.opened)).close()

    # Listing part by part

    @precondition(lambda self: self.opened)
    @rule(number=which, size=st.sampled_from((24, 50, 100)))
    def list_on(self, number: int, size: int) -> None:
        """The next names of an open directory; after the last, what it gave is judged."""
        one = self._pick(number)
        if one.kind != stat.S_IFDIR:
            self.do_open(one, lambda fd: some_names(fd, size))
            return
        if one.listing is None:
            os.lseek(one.ours, 0, os.SEEK_SET)
            now = _names_in(one.plain)
            one.listing = Listing(always=set(now), ever=set(now))
        found = outcome(lambda fd: some_names(fd, size), one.ours)
        if not isinstance(found, list):
            one.listing = None
            self._same([found, outcome(lambda fd: some_names(fd, 1000), one.plain)])
        elif found:
            one.listing.seen += found
        else:
            self._judge(one.listing)
            one.listing = None

    def _judge(self, listing: Listing) -> None:
        seen = [name for name in listing.seen if name not in (".", "..")]
        unknown = sorted(set(seen) - listing.ever)
        self._expect(not unknown, f"listed, but never there: {unknown}")
        wrong = [name for name in sorted(listing.always) if seen.count(name) != 1]
        self._expect(not wrong, f"not listed once, though always there: {wrong}; {seen}")

    # Mounts

    @precondition(lambda self: self.done >= PAUSE)
    @rule()
    def remount(self) -> None:
        self._unmount()
        self._mount()
        self._compare_trees()

    @precondition(lambda self: self.swaps and self.done >= PAUSE)
    @rule()
    def swap(self) -> None:
        """Each implementation goes on with the other's upper."""
        assert self.kernel is not None
        self._unmount()
        self.ours, self.kernel = self.kernel, self.ours
        self.ours.extra = self.kernel.extra
        self.before = self.ours.evidence()
        self._mount()
        self._compare_trees()

    @precondition(lambda self: self.stacks and self.done >= PAUSE)
    @rule()
    def stack(self) -> None:
        """What was changed becomes the top lower, with its redirects and its whiteouts; changes go
        to a new upper from now on."""
        self._unmount()
        self.ours.stack()
        if self.kernel is not None:
            self.kernel.stack()
        self.before = self.ours.evidence()
        self.lower_dirs = {os.lstat(path).st_ino for path in self.plain.rglob("*") if path.is_dir()}
        self._mount()
        self._compare_trees()

    @precondition(lambda self: MODE != "user")
    @rule()
    def forget(self) -> None:
        """The kernel drops what it need not know of the mount; mount(8) -o remount does that."""
        argv = ["mount", "-i", "-o", "remount,rw", str(self.ours.mnt)]
        subprocess.run(argv, check=True, timeout=30, capture_output=True)


def _names_in(fd: int) -> set[str]:
    try:
        return set(os.listdir(fd))
    except FileNotFoundError:
        return set()


def _short(result: object) -> str:
    text = repr(result)
    return text if len(text) <= 300 else f"{text[:200]}...{text[-60:]} ({len(text)} characters)"
