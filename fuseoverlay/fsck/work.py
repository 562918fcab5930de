"""The check of the work directory: staging, the index of hard links, notes on hidden names.

Source: kernel Documentation/filesystems/overlayfs.rst, "index". What the kernel removes from an
index when it mounts is of no use to us either.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator

from fuseoverlay.errors import describe
from fuseoverlay.fsck.origins import Origins
from fuseoverlay.fsck.problems import Kind, Problem, shown
from fuseoverlay.fsck.upper import UpperCheck
from fuseoverlay.layers import whiteout, xattrs
from fuseoverlay.layers.objects import stat_key
from fuseoverlay.overlay import claim, hardlinks
from fuseoverlay.system import handles, removal
from fuseoverlay.system.handles import Handle
from fuseoverlay.system.syscalls import DIR_FLAGS, at

#: Begins the names of temporary objects, the kernel's and ours.
_TEMPORARY = b"#"


class WorkCheck:
    """Checks the work directory that `root_fd` is open on. `path` is for messages."""

    def __init__(self, root_fd: int, path: bytes, origins: Origins) -> None:
        self._root_fd = root_fd
        self._path = path
        self._origins = origins
        # What a crash left in the staging directory; some of it may be in the index already.
        self._left: set[tuple[int, int]] = set()
        #: Whether the index was used with nfs_export=on.
        self._exported = False

    def indexed(self) -> set[tuple[int, int]]:
        """The files in the index, each as its `stat_key`."""
        return {stat_key(st) for st in self._entries() if _is_copy(st)}

    def _entries(self) -> list[os.stat_result]:
        """The status of every entry of the index; empty if it cannot be read."""
        try:
            fd = os.open(claim.INDEX, DIR_FLAGS, dir_fd=self._root_fd)
        except OSError:
            return []
        try:
            names = [name for name in map(os.fsencode, os.listdir(fd)) if _is_name(name)]
            return [os.stat(name, dir_fd=fd, follow_symlinks=False) for name in names]
        except OSError:
            return []
        finally:
            os.close(fd)

    def problems(self, upper: UpperCheck) -> Iterator[Problem]:
        """Everything that is wrong. `upper` must have been walked before."""
        yield from self._each(claim.STAGING, self._staged)
        self._exported = not all(map(_is_copy, self._entries()))
        yield from self._each(claim.INDEX, lambda fd, name: self._entry(fd, name, upper))
        yield from self._each(claim.LINKS, self._note)
        yield from self._owner(claim.INDEX, upper)
        yield from self._owner(claim.LINKS, upper)

    def _join(self, *names: bytes) -> bytes:
        return os.path.join(self._path, *names)

    def _each(
        self, directory: bytes, check: Callable[[int, bytes], Iterator[Problem]]
    ) -> Iterator[Problem]:
        """Check every entry of a directory in the work directory, if that exists."""
        try:
            fd = os.open(directory, DIR_FLAGS, dir_fd=self._root_fd)
        except FileNotFoundError:
            return
        except OSError as exc:
            yield self._unreadable(directory, exc)
            return
        try:
            for name in sorted(map(os.fsencode, os.listdir(fd))):
                yield from check(fd, name)
        except OSError as exc:
            yield self._unreadable(directory, exc)
        finally:
            os.close(fd)

    def _unreadable(self, directory: bytes, exc: OSError) -> Problem:
        what = f"cannot be checked: {describe(exc)}"
        return Problem(Kind.UNREADABLE, self._join(directory), what, why="it was not looked at")

    def _owner(self, directory: bytes, upper: UpperCheck) -> Iterator[Problem]:
        """Whether a directory that is about one upper is about this one. Call it after its entries
        were checked."""
        mine = claim.mark_of(upper.root.layer)
        try:
            fd = os.open(directory, DIR_FLAGS, dir_fd=self._root_fd)
        except OSError:
            return
        try:
            stored = xattrs.get_overlay(fd, xattrs.UPPER, upper.root.layer.namespaces)
            if mine is None or stored in (None, mine) or not os.listdir(fd):
                return
            copies = self.indexed()
            found = copies and all(upper.files.names[key] for key in copies)
            yield Problem(
                Kind.OWNER, self._join(directory), "belongs to another upper",
                repair=(lambda: _stamp(fd, mine)) if found else None,
                why="the names of its files are not in this one",
            )  # fmt: skip
        finally:
            os.close(fd)

    def _staged(self, fd: int, name: bytes) -> Iterator[Problem]:
        if name == claim.INCOMPAT:
            for mark in claim.incompatible(fd):
                yield Problem(
                    Kind.INCOMPATIBLE, self._join(claim.STAGING, name, mark),
                    f"the upper was mounted with {shown(mark)}: data may be missing",
                    why="remove it if the system has not crashed since, or use a new upper and "
                    "work directory",
                )  # fmt: skip
        elif claim.is_foreign(name):
            yield Problem(
                Kind.FOREIGN, self._join(claim.STAGING, name), "was not made by an overlay",
                why="a mount refuses it, and it may be somebody's data",
            )  # fmt: skip
        elif not _shared_whiteout(fd, name):
            self._left.add(stat_key(os.stat(name, dir_fd=fd, follow_symlinks=False)))
            yield self._junk(claim.STAGING, fd, name)

    def _junk(self, directory: bytes, fd: int, name: bytes) -> Problem:
        return Problem(
            Kind.JUNK, self._join(directory, name), "left by a crash",
            repair=lambda: removal.remove_tree(fd, name),
        )  # fmt: skip

    def _entry(self, fd: int, name: bytes, upper: UpperCheck) -> Iterator[Problem]:
        st = os.stat(name, dir_fd=fd, follow_symlinks=False)
        stored = hardlinks.origin_named(name)
        origin = handles.decode(stored) if stored is not None else None
        if stored is None or origin is None:
            if not name.startswith(_TEMPORARY):
                yield self._problem(name, "is no entry of an index", "it may be somebody's data")
            elif not whiteout.is_char_whiteout(st):
                yield self._junk(claim.INDEX, fd, name)
        elif _is_copy(st):
            yield from self._copy(_Copy(fd, name, stored, origin, st, upper), upper)

    def _problem(
        self, name: bytes, what: str, why: str = "", repair: Callable[[], None] | None = None,
        kind: Kind = Kind.INDEX, *, by_lowers: bool = False,
    ) -> Problem:  # fmt: skip
        return Problem(kind, self._join(claim.INDEX, name), what, repair, why, by_lowers)

    def _copy(self, copy: _Copy, upper: UpperCheck) -> Iterator[Problem]:
        """Check a file of the index: the copy of a lower file with several names."""
        if self._origins.gone(copy.origin):
            yield self._problem(
                copy.name, "the lower file is no more",
                "the link count of the copy would change", copy.release(), by_lowers=True,
            )  # fmt: skip
            return
        # With nfs_export=on, an exported file handle may still lead to it.
        if copy.st.st_nlink == 1 and not copy.lower_names and not self._exported:
            yield self._problem(
                copy.name, "a copy that no name leads to",
                "overlay.nlink does not say so: is a lower directory missing?",
                copy.release() if copy.has_no_names else None, by_lowers=True,
            )  # fmt: skip
            return
        if copy.st.st_nlink > 1 and not copy.upper_names and stat_key(copy.st) not in self._left:
            yield self._problem(
                copy.name, "a copy whose names are not in this upper",
                "the work directory may belong to another upper",
            )  # fmt: skip
        if upper.objects.uncounted is None:
            yield from self._copy_origin(copy)
        yield from self._nlink(copy)

    def _copy_origin(self, copy: _Copy) -> Iterator[Problem]:
        if copy.origin_attribute is None or handles.decode(copy.origin_attribute) is None:
            yield self._problem(
                copy.name, "has no valid overlay.origin: the kernel refuses to mount",
                "other names show the lower file now, and the copy once it is set to 0x"
                + copy.name.decode(),
            )  # fmt: skip
        elif copy.origin_attribute != copy.stored:
            yield self._problem(
                copy.name, "is the copy of another file than its name says",
                "fuseoverlay ignores it, and the kernel removes it when it mounts",
            )  # fmt: skip

    def _nlink(self, copy: _Copy) -> Iterator[Problem]:
        malformed, count = copy.nlink
        if malformed is not None:
            yield self._problem(
                copy.name, f"overlay.nlink is {shown(malformed)!r}, which is no count",
                repair=copy.forget_nlink, kind=Kind.NLINK,
            )  # fmt: skip
        elif count is not None and count < copy.upper_names + copy.lower_names:
            yield self._problem(
                copy.name,
                f"overlay.nlink tells of {count} names, "
                f"there are {copy.upper_names + copy.lower_names}",
                "the link count that is shown would change", kind=Kind.NLINK,
            )  # fmt: skip

    def _note(self, fd: int, name: bytes) -> Iterator[Problem]:
        path = self._join(claim.LINKS, name)
        stored = hardlinks.origin_named(name)
        origin = handles.decode(stored) if stored is not None else None
        st = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if origin is None or not stat.S_ISLNK(st.st_mode):
            yield Problem(Kind.NOTE, path, "is no note", why="it may be somebody's data")
        elif self._origins.gone(origin):
            yield Problem(
                Kind.NOTE, path, "the lower file is no more",
                repair=lambda: os.unlink(name, dir_fd=fd), by_lowers=True,
            )  # fmt: skip


class _Copy:
    """An entry of the index, with all that is known about it."""

    def __init__(
        self, fd: int, name: bytes, stored: bytes, origin: Handle, st: os.stat_result,
        upper: UpperCheck,
    ) -> None:  # fmt: skip
        self.name = name
        #: Its name as the value of an `overlay.origin`, and that value decoded.
        self.stored = stored
        self.origin = origin
        self.st = st
        #: How many names lead to it: in the upper, and through the index in the lowers.
        self.upper_names = upper.files.names[stat_key(st)]
        self.lower_names = upper.lower_names[name]
        self.path = at(fd, name)
        self._counted = upper.root.layer.namespaces
        self.origin_attribute = xattrs.get_overlay(self.path, xattrs.ORIGIN, self._counted)
        self._fd = fd

    @property
    def nlink(self) -> tuple[bytes | None, int | None]:
        """A malformed `overlay.nlink`, if there is one, and the count that a valid one states, if
        it has the usual form `U`."""
        malformed = None
        for namespace in self._counted:
            value = xattrs.get(self.path, namespace + xattrs.NLINK)
            difference = hardlinks.parse_nlink(value) if value is not None else None
            if difference is not None:
                count = self.st.st_nlink + difference[1]
                return malformed, count if difference[0] == b"U" else None
            malformed = malformed or value
        return malformed, None

    @property
    def has_no_names(self) -> bool:
        """Whether its own `overlay.nlink` says that no name leads to it."""
        count = self.nlink[1]
        return count is not None and count < 1

    def release(self) -> Callable[[], None] | None:
        """A repair that removes it from the index; None if a link count that a mount shows would
        change."""
        counts = self.origin_attribute == self.stored
        if self.st.st_nlink > 1 and not (counts and self.nlink[1] == self.st.st_nlink - 1):
            return None

        def remove() -> None:
            # Without the index entry the real link count is right, and the origin leads nowhere.
            self._forget(xattrs.NLINK)
            self._forget(xattrs.ORIGIN)
            os.unlink(self.name, dir_fd=self._fd)

        return remove

    def forget_nlink(self) -> None:
        """Remove malformed counts; a mount shows none of them."""
        for namespace in self._counted:
            value = xattrs.get(self.path, namespace + xattrs.NLINK)
            if value is not None and hardlinks.parse_nlink(value) is None:
                os.removexattr(self.path, namespace + xattrs.NLINK, follow_symlinks=False)

    def _forget(self, what: bytes) -> None:
        for attribute in xattrs.names(self.path):
            if attribute in (namespace + what for namespace in xattrs.NAMESPACES):
                os.removexattr(self.path, attribute, follow_symlinks=False)


def _is_name(name: bytes) -> bool:
    return hardlinks.origin_named(name) is not None


def _is_copy(st: os.stat_result) -> bool:
    """Whether an index entry is the copy of a file: nfs_export=on adds directories and
    whiteouts."""
    return not stat.S_ISDIR(st.st_mode) and not whiteout.is_char_whiteout(st)


def _stamp(fd: int, mine: bytes) -> None:
    for namespace in xattrs.NAMESPACES:
        if xattrs.get(fd, namespace + xattrs.UPPER) is not None:
            os.setxattr(fd, namespace + xattrs.UPPER, mine)


def _shared_whiteout(fd: int, name: bytes) -> bool:
    """Whether it is the kernel's whiteout, kept until its next mount, that others are hard links
    to."""
    st = os.stat(name, dir_fd=fd, follow_symlinks=False)
    return name.startswith(_TEMPORARY) and whiteout.is_char_whiteout(st)
