"""Record a directory tree entry by entry, compare two recordings, digest a tree.

Also a program, so that a tree can be recorded by another user or in another
namespace: `python3 tree.py record ROOT` writes a pickle to stdout, `python3
tree.py digest ROOT` a digest of the tree's lines. It needs the standard library
only, so its source can be handed to any interpreter (`run_source`).

Names are bytes everywhere. Recording changes nothing: files and directories are read with
O_NOATIME, and if times are recorded, the access time of a symbolic link is put back.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any

_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFBLK: "block",
    stat.S_IFCHR: "char",
}
_CHUNK = 1 << 20


@dataclass
class Entry:
    """One entry. A field that makes no sense for its kind, or was not asked for, is None.

    The size and link count of directories depend on the filesystem and are not recorded. `same_as`
    names the first path of the tree that is the same inode.
    """

    kind: str
    uid: int
    gid: int
    mode: int
    mtime_ns: int
    size: int | None = None
    nlink: int | None = None
    rdev: tuple[int, int] | None = None
    target: bytes | None = None
    digest: str | None = None
    same_as: bytes | None = None
    atime_ns: int | None = None
    ctime_ns: int | None = None
    ino: int | None = None
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


Tree = dict[bytes, Entry]


def record(root: str | bytes, *, content: bool = True, identity: bool = False) -> Tree:
    """Every entry below `root` by its path relative to `root`, which is itself `b"."`.

    `content` reads the files. `identity` records inode number, access and change
    time as well: two such recordings of one tree differ if anything touched it.
    """
    tree: Tree = {}
    first: dict[tuple[int, int], bytes] = {}
    for path, full, st in sorted(_walk(os.fsencode(root)), key=lambda item: item[0]):
        entry = _entry(full, st, content=content, identity=identity)
        if not stat.S_ISDIR(st.st_mode) and st.st_nlink > 1:
            entry.same_as = first.setdefault((st.st_dev, st.st_ino), path)
        tree[path] = entry
    return tree


def _walk(root: bytes) -> Iterator[tuple[bytes, bytes, os.stat_result]]:
    yield b".", root, os.lstat(root)
    pending = [b""]
    while pending:
        prefix = pending.pop()
        fd = _open_quietly(os.path.join(root, prefix) if prefix else root, os.O_DIRECTORY)
        try:
            names = [os.fsencode(name) for name in os.listdir(fd)]
        finally:
            os.close(fd)
        for name in names:
            path = prefix + name
            full = os.path.join(root, path)
            st = os.lstat(full)
            yield path, full, st
            if stat.S_ISDIR(st.st_mode):
                pending.append(path + b"/")


def _open_quietly(path: bytes, flags: int) -> int:
    """Open without moving the access time, if we are allowed to."""
    flags |= os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags | os.O_NOATIME)
    except PermissionError:
        return os.open(path, flags)


def _entry(full: bytes, st: os.stat_result, *, content: bool, identity: bool) -> Entry:
    fmt = stat.S_IFMT(st.st_mode)
    entry = Entry(
        kind=_KINDS[fmt],
        uid=st.st_uid,
        gid=st.st_gid,
        mode=stat.S_IMODE(st.st_mode),
        mtime_ns=st.st_mtime_ns,
        xattrs=_xattrs(full),
    )
    if fmt != stat.S_IFDIR:
        entry.nlink = st.st_nlink
        entry.size = st.st_size
    if fmt in (stat.S_IFBLK, stat.S_IFCHR):
        entry.rdev = (os.major(st.st_rdev), os.minor(st.st_rdev))
    elif fmt == stat.S_IFLNK:
        entry.target = os.readlink(full)
        if identity:
            _put_back(full, st)
    elif fmt == stat.S_IFREG and content:
        entry.digest = file_digest(full)
    if identity:
        entry.ino, entry.atime_ns = st.st_ino, st.st_atime_ns
        # Putting back a link's access time moves its change time, so that cannot be compared.
        entry.ctime_ns = None if fmt == stat.S_IFLNK else st.st_ctime_ns
    return entry


def _put_back(full: bytes, st: os.stat_result) -> None:
    """Undo what readlink(2) did to the access time; there is no O_NOATIME for it."""
    if os.lstat(full).st_atime_ns != st.st_atime_ns:
        with contextlib.suppress(OSError):
            os.utime(full, ns=(st.st_atime_ns, st.st_mtime_ns), follow_symlinks=False)


def _xattrs(full: bytes) -> dict[bytes, bytes]:
    found = {}
    try:
        names = os.listxattr(full, follow_symlinks=False)
    except OSError:
        return {}
    for name in names:
        with contextlib.suppress(OSError):
            found[os.fsencode(name)] = os.getxattr(full, name, follow_symlinks=False)
    return found


def file_digest(path: bytes) -> str:
    """SHA-256 of a file's bytes; the text of the errno if it cannot be read."""
    digest = hashlib.sha256()
    try:
        fd = _open_quietly(path, 0)
    except OSError as exc:
        return exc.strerror or str(exc)
    try:
        while chunk := os.read(fd, _CHUNK):
            digest.update(chunk)
    finally:
        os.close(fd)
    return digest.hexdigest()


def compare(
    expected: Tree,
    actual: Tree,
    *,
    ignore: frozenset[str] | set[str] = frozenset(),
    limit: int = 50,
) -> list[str]:
    """One line for each difference, the most telling first; an empty list if there is none.

    `ignore` names fields of `Entry` that are not compared. Differences beyond `limit` are only
    counted.
    """
    lines = [f"missing: {show(path)}" for path in sorted(expected.keys() - actual.keys())]
    lines += [f"unexpected: {show(path)}" for path in sorted(actual.keys() - expected.keys())]
    for path in sorted(expected.keys() & actual.keys()):
        lines += _differences(path, expected[path], actual[path], ignore)
    if len(lines) > limit:
        lines[limit:] = [f"... and {len(lines) - limit} more"]
    return lines


def _differences(
    path: bytes, left: Entry, right: Entry, ignore: set[str] | frozenset[str]
) -> Iterator[str]:
    for what in fields(Entry):
        if what.name in ignore:
            continue
        old, new = getattr(left, what.name), getattr(right, what.name)
        if old != new:
            form: Callable[[Any], str] = oct if what.name == "mode" else repr
            yield f"{show(path)}: {what.name} should be {form(old)}, is {form(new)}"
            if what.name == "kind":
                return


def show(path: bytes) -> str:
    """A path as text for a message; long names are shortened."""
    text = path.decode("utf-8", "backslashreplace")
    return text if len(text) <= 120 else f"{text[:50]}...{text[-50:]}"


def digest(root: str | bytes) -> dict[bytes, str]:
    """A digest of every entry below `root`: its content and everything that stat(2) says, atime
    included.

    Sizes of directories are left out. `changed` compares two results and says what was touched.
    """
    tree = record(root, identity=True)
    return {path: hashlib.sha256(repr(entry).encode()).hexdigest() for path, entry in tree.items()}


def changed(before: dict[bytes, str], after: dict[bytes, str]) -> list[str]:
    """The paths whose digests differ, as text."""
    return [
        show(path)
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path)
    ]


def source() -> str:
    """This module's source: `python3 -c SOURCE record ROOT` works for any user."""
    with open(__file__, encoding="utf-8") as file:
        return file.read()


def dumps(tree: Tree) -> bytes:
    """A recording as bytes, for `loads`."""
    return pickle.dumps({path: vars(entry) for path, entry in tree.items()})


def loads(data: bytes) -> Any:
    """Read what this module, run as a program, has written."""
    tree: dict[bytes, Any] = {}
    for path, value in pickle.loads(data).items():
        tree[path] = Entry(**value) if isinstance(value, dict) else value
    return tree


def main(arguments: list[str]) -> int:
    """`record ROOT`, `record-identity ROOT` or `digest ROOT`: a pickle on stdout."""
    what, root = arguments
    if what == "digest":
        sys.stdout.buffer.write(pickle.dumps(digest(root)))
    else:
        sys.stdout.buffer.write(dumps(record(root, identity=what == "record-identity")))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
