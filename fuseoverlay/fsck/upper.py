"""The check of the upper directory: whiteouts, marks, redirects, origins, missing data.

Sources: kernel Documentation/filesystems/overlayfs.rst and, for what is worth checking,
fsck.overlay of overlayfs-progs.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from typing import Final, NamedTuple

from fuseoverlay.errors import describe
from fuseoverlay.fsck import empty
from fuseoverlay.fsck.origins import Origins
from fuseoverlay.fsck.problems import Kept, Kind, Problem, shown
from fuseoverlay.layers import merge, redirect, whiteout, xattrs
from fuseoverlay.layers.index import Found, Index
from fuseoverlay.layers.layer import Place, RealDir
from fuseoverlay.layers.objects import stat_key
from fuseoverlay.layers.stack import LayerStack
from fuseoverlay.layers.whiteout import Dialect
from fuseoverlay.overlay import hardlinks
from fuseoverlay.overlay.copymetadata import times_kept
from fuseoverlay.system import handles
from fuseoverlay.system.syscalls import at, fd_path

#: Attributes that say what a mount shows; of the others it loses numbers at most.
_SHOWN: Final = (xattrs.OPAQUE, xattrs.WHITEOUT, xattrs.REDIRECT, xattrs.METACOPY)
_OPAQUE_VALUES: Final = (whiteout.OPAQUE_YES, whiteout.OPAQUE_XATTR_WHITEOUTS)


class _Node(NamedTuple):
    """A merged directory; `lowers` as for `inodes.Directory`."""

    upper: RealDir | None
    lowers: tuple[RealDir, ...]
    parent: _Node | None = None


class UpperCheck:
    """Walks the merged tree where the upper has part in it, and remembers what the checks
    of the work directory and of the whole ask for."""

    def __init__(
        self, stack: LayerStack, origins: Origins, *, indexed: Set[tuple[int, int]] | None
    ) -> None:
        """`indexed`: the files of the index, which is checked later; None: nobody knows. With
        such also what is in the lowers only is walked, to fill `lower_names`."""
        if stack.upper is None:
            raise ValueError("there is no upper to check")
        self.stack = stack
        self.root = stack.upper.root
        self._origins = origins
        self._indexed = indexed
        self._everywhere = bool(indexed)
        #: How many names in the upper each real file with several links has.
        self.upper_names: Counter[tuple[int, int]] = Counter()
        #: How many visible names in the lowers would lead to an entry of the index.
        self.lower_names: Counter[bytes] = Counter()
        # Lower directories that ones of the upper go on in, with the first of those.
        self._claims: dict[tuple[int, int], bytes] = {}
        #: Whiteouts that hide something, by dialect.
        self.whiteouts: dict[Dialect, list[Place]] = {}
        #: Directories with a `.wh..wh..opq` that hides something.
        self.opaque_files: list[RealDir] = []
        #: Directories whose redirect leads to one of the lowers.
        self.redirected = 0
        #: A lower directory that is empty where the lowers lack something: see `empty`.
        self.empty: RealDir | None = None
        #: Namespaces of attributes that a view depends on, each with the first path.
        self.namespaces: dict[bytes, bytes] = {}
        # Whether any attribute counts, and the root with one that does not: see `uncounted`.
        self._counted = False
        self._uncounted: tuple[bytes, bytes] | None = None

    def path(self, real: RealDir, name: bytes = b"") -> bytes:
        """Path for messages."""
        return os.path.join(*filter(None, (real.layer.path, real.path(), name)))

    @property
    def uncounted(self) -> tuple[bytes, bytes] | None:
        """The root and an attribute of it that does not count, where no other in the upper does
        either: somebody whose attributes are others wrote it."""
        return None if self._counted else self._uncounted

    def problems(self) -> Iterator[Problem]:
        """Everything that is wrong, directory by directory."""
        yield from self._attributes_of_root()
        pending = [_Node(self.root, tuple(layer.root for layer in self.stack.lowers))]
        while pending:
            node = pending.pop()
            inside: list[_Node] = []
            try:
                for problem in self._directory(node, inside):
                    if problem.by_lowers and self.empty is None:
                        self.empty = self._empty_above(node)
                    yield problem
            except OSError as exc:
                yield self._unreadable(node.upper or node.lowers[0], b"", exc)
            pending += reversed(inside)

    def _empty_above(self, node: _Node | None) -> RealDir | None:
        """A lower directory that is empty and that the node, or one that it is in, goes on in."""
        while node is not None and not (node.upper is not None and self._is_opaque(node.upper)):
            found = empty.first(self.stack, node.lowers)
            if found is not None:
                return found
            node = node.parent
        return None

    def _is_opaque(self, real: RealDir) -> bool:
        value = whiteout.opaque_value(self.stack.fd(real), real.layer.namespaces)
        return whiteout.is_opaque_value(value)

    def _unreadable(self, real: RealDir, name: bytes, exc: OSError) -> Problem:
        what = f"cannot be checked: {describe(exc)}"
        return Problem(Kind.UNREADABLE, self.path(real, name), what, why="it was not looked at")

    def _attributes_of_root(self) -> Iterator[Problem]:
        try:
            own = self._own(self.root, b"")
            yield from self._origin(self.root, b"", own)
        except OSError as exc:
            yield self._unreadable(self.root, b"", exc)

    def _directory(self, node: _Node, inside: list[_Node]) -> Iterator[Problem]:
        """Check the entries of one directory; the directories to go on with go to `inside`."""
        index, used = merge.scan_nowait(self.stack, node.upper, node.lowers)
        if self._everywhere:
            self._count_lower_names(index)
        if node.upper is not None:
            yield from self._entries(node, node.upper, index, is_opaque=not used)
        for name in sorted(index.upper.keys() | index.lower if self._everywhere else index.upper):
            found = index.find(name)
            if found is None or not found.is_dir:
                continue
            try:
                yield from self._subdirectory(node, node.lowers[:used], name, found, inside)
            except OSError as exc:
                yield self._unreadable(node.upper or node.lowers[0], name, exc)

    def _count_lower_names(self, index: Index) -> None:
        for name in index.lower:
            found = index.find(name)
            if found is None or found.in_upper or found.lower_file is None:
                continue
            fd = self.stack.fd(found.lower_file)
            st = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if hardlinks.may_be_indexed(st):
                origin = handles.encode(fd, name, found.lower_file.layer.uuid_of(st))
                if origin is not None:
                    self.lower_names[hardlinks.index_name(origin)] += 1

    def _entries(
        self, node: _Node, upper: RealDir, index: Index, *, is_opaque: bool
    ) -> Iterator[Problem]:
        """Everything in a directory of the upper but its directories."""
        with self.stack.listing_fd(upper) as fd:
            names = sorted(map(os.fsencode, os.listdir(fd)))
        # The kernel does not look at an opaque mark of the root.
        root_marked = upper is self.root and is_opaque
        for name in names:
            place = Place(upper, name)
            try:
                if name == whiteout.WH_OPAQUE:
                    yield from self._opaque_file(place, hides=bool(node.lowers))
                elif name.startswith(whiteout.WH_PREFIX):
                    yield from self._wh_name(place, index, assume_hiding=root_marked)
                elif name in index.masks:
                    yield from self._mask(place, hides=root_marked or index.covers(name))
                if index.upper.get(name) is False:
                    yield from self._file(place, node.lowers)
            except OSError as exc:
                yield self._unreadable(upper, name, exc)

    def _opaque_file(self, place: Place, *, hides: bool) -> Iterator[Problem]:
        if hides:
            self.opaque_files.append(place.real)
        else:
            yield self._dangling(place)

    def _wh_name(self, place: Place, index: Index, *, assume_hiding: bool) -> Iterator[Problem]:
        """A name that begins with `.wh.`, but for `.wh..wh..opq`."""
        target = whiteout.oci_target(place.name)
        if target is None:
            if place.name not in whiteout.WH_HOUSEKEEPING:
                yield self._misnamed(place, "a name that is reserved for whiteouts")
            return
        st = self._stat(place)
        if not (whiteout.is_char_whiteout(st) or (stat.S_ISREG(st.st_mode) and not st.st_size)):
            yield self._misnamed(place, "counts as a whiteout, and what is in it is not shown")
        elif assume_hiding or index.covers(target):
            self.whiteouts.setdefault(Dialect.OCI, []).append(place)
        else:
            yield self._dangling(place)

    def _misnamed(self, place: Place, what: str) -> Problem:
        return Problem(Kind.MISNAMED, self.path(*place), what, why="it may be somebody's data")

    def _mask(self, place: Place, *, hides: bool) -> Iterator[Problem]:
        if not hides:
            yield self._dangling(place)
            return
        is_char = whiteout.is_char_whiteout(self._stat(place))
        dialect = Dialect.CHAR if is_char else Dialect.XATTR
        # An OCI whiteout of a very long name does not exist.
        if whiteout.dialect_for(place.name, Dialect.OCI) is Dialect.OCI:
            self.whiteouts.setdefault(dialect, []).append(place)

    def _dangling(self, place: Place) -> Problem:
        def remove() -> None:
            fd = self.stack.fd(place.real)
            with times_kept(fd):
                os.unlink(place.name, dir_fd=fd)

        # In a directory that is marked it hides nothing, whatever the lowers have.
        return Problem(
            Kind.DANGLING, self.path(*place), "whiteout that hides nothing", repair=remove,
            by_lowers=not self._is_opaque(place.real),
        )  # fmt: skip

    def _file(self, place: Place, lowers: Sequence[RealDir]) -> Iterator[Problem]:
        st = self._stat(place)
        if st.st_nlink > 1:
            self.upper_names[stat_key(st)] += 1
        own = self._own(*place)
        if not own:
            return
        if not (self._indexed and stat_key(st) in self._indexed):
            unsure = self._indexed is None and st.st_nlink > 1
            yield from self._origin(*place, own, repairable=not unsure)
        if not stat.S_ISREG(st.st_mode):
            return
        if not st.st_size and _has(own, xattrs.WHITEOUT):
            yield Problem(
                Kind.UNMARKED, self.path(*place),
                "whiteout attribute, and the directory is not marked for such whiteouts",
                why="nothing is found at its name, but kernel overlayfs lists it",
            )  # fmt: skip
        if _has(own, xattrs.METACOPY):
            try:
                path = at(self.stack.fd(place.real), place.name)
                redirect.is_metacopy(place, path)
                redirect.data_of(self.stack, lowers, place, path)
            except PermissionError:
                yield Problem(
                    Kind.DATA, self.path(*place),
                    "metacopy file, to whose data redirect_dir=nofollow does not follow",
                    why="a mount without nofollow, and with metacopy=on, shows it",
                )  # fmt: skip
            except OSError:
                yield Problem(
                    Kind.DATA, self.path(*place), "metacopy file, and no layer has its data",
                    why="the data is lost, or in a layer that was not named",
                )  # fmt: skip

    def _subdirectory(
        self, parent: _Node, lowers: Sequence[RealDir], name: bytes, found: Found,
        inside: list[_Node],
    ) -> Iterator[Problem]:  # fmt: skip
        upper = None
        if found.in_upper and parent.upper is not None:
            upper = self.stack.upper_dir(parent.upper, name)
        elif not self._everywhere:
            return
        own = self._own(upper, b"") if upper is not None else []
        if upper is not None and own:
            yield from self._origin(upper, b"", own)
            yield from self._opaque_value(upper, own)
            refused = self._refused_redirect(upper)
            if refused is not None:
                yield refused
                return
        same_name = [RealDir(real.layer, real, name) for real in found.lower_dirs]
        marks, below = redirect.merged(self.stack, lowers, upper, same_name)
        inside.append(_Node(upper, below, parent))
        if upper is None:
            return
        if below:
            self.redirected += marks.redirect is not None
            yield from self._claim(upper, below[0])
        elif marks.redirect is not None:
            self.empty = self.empty or empty.on_the_way(self.stack, marks.redirect)
            yield Problem(
                Kind.REDIRECT, self.path(upper),
                f"redirect to {shown(marks.redirect)}, which is no directory of the lowers",
                repair=self._closing(upper, own), by_lowers=True,
            )  # fmt: skip

    def _claim(self, upper: RealDir, lower: RealDir) -> Iterator[Problem]:
        """Two directories cannot both be what one of the lowers went on as."""
        path = self.path(upper)
        first = self._claims.setdefault(stat_key(os.stat(self.stack.fd(lower))), path)
        if first != path:
            yield Problem(
                Kind.TWICE, path, f"goes on in the same lower directory as {shown(first)}",
                why="the kernel refuses one of them, and only you know which was copied",
            )  # fmt: skip

    def _refused_redirect(self, upper: RealDir) -> Problem | None:
        try:
            redirect.marks_of(self.stack, upper)
        except OSError as exc:
            by_option = exc.errno == errno.EPERM
            who = "redirect_dir=nofollow does not follow" if by_option else "no mount follows"
            return Problem(
                Kind.REDIRECT, self.path(upper), f"redirect that {who}: {describe(exc)}",
                why="a mount without nofollow shows what it leads to" if by_option
                else "nobody knows what the directory should show",
            )  # fmt: skip
        return None

    def _opaque_value(self, upper: RealDir, own: Sequence[bytes]) -> Iterator[Problem]:
        names = [name for name in own if name.endswith(b"." + xattrs.OPAQUE)]
        for name in names:
            value = self._value(upper, b"", name)
            if value is None or value in _OPAQUE_VALUES:
                continue
            what = f"{name.decode()} is {shown(value)!r}, which says nothing"
            alone = len(names) == 1
            yield Problem(
                Kind.OPAQUE, self.path(upper), what,
                repair=self._removal(upper, b"", [name]) if alone else None,
                why="without it the mark of another namespace would count",
            )  # fmt: skip

    def _closing(self, upper: RealDir, own: Sequence[bytes]) -> Callable[[], None]:
        """Replace a redirect to nothing by an opaque mark: without any mark the directory
        would merge with what has its name in the lowers."""
        names = [name for name in own if name.endswith(b"." + xattrs.REDIRECT)]

        def close() -> None:
            fd, counted = self.stack.fd(upper), upper.layer.namespaces
            if upper.parent is None or whiteout.opaque_value(fd, counted) is not None:
                raise Kept("it is marked for xattr whiteouts")
            namespace = names[0].removesuffix(xattrs.REDIRECT)
            whiteout.set_opaque(self.stack.fd(upper.parent), upper.name, namespace)
            self._removal(upper, b"", names)()

        return close

    def _origin(
        self, real: RealDir, name: bytes, own: Sequence[bytes], *, repairable: bool = True
    ) -> Iterator[Problem]:
        for attribute in own:
            # That of fuse-overlayfs is a path.
            if attribute not in (xattrs.TRUSTED + xattrs.ORIGIN, xattrs.USER + xattrs.ORIGIN):
                continue
            value = self._value(real, name, attribute)
            # Empty: a copy of something that had no handle.
            if not value:
                continue
            origin = handles.decode(value)
            by_lowers = False
            if origin is None:
                what = f"{attribute.decode()} is malformed"
            elif self._origins.gone(origin):
                what = f"{attribute.decode()} tells of a file that is no more"
                by_lowers = True
            else:
                continue
            # Only numbers depend on it, and this one gives none.
            yield Problem(
                Kind.ORIGIN, self.path(real, name), what,
                repair=self._removal(real, name, [attribute]) if repairable else None,
                why="it may be in the index of the work directory, which was not named",
                by_lowers=by_lowers,
            )  # fmt: skip

    def _stat(self, place: Place) -> os.stat_result:
        return os.stat(place.name, dir_fd=self.stack.fd(place.real), follow_symlinks=False)

    def _target(self, real: RealDir, name: bytes) -> bytes | int:
        """For `xattrs`: `name` in the directory, or the directory itself. Valid at once only."""
        fd = self.stack.fd(real)
        return at(fd, name) if name else fd

    def _own(self, real: RealDir, name: bytes) -> list[bytes]:
        """Attributes of the overlay; those of a nested one are none."""
        every = [
            attribute
            for attribute in xattrs.names(self._target(real, name))
            if attribute.startswith(xattrs.NAMESPACES) and xattrs.to_user(attribute) is None
        ]
        own = [attribute for attribute in every if attribute.startswith(real.layer.namespaces)]
        self._counted = self._counted or bool(own)
        # Below the root whoever may write there may have set them; a copy-up marks the root, too.
        if every and not own and real is self.root and not name:
            self._uncounted = self.path(real), every[0]
        for namespace in xattrs.NAMESPACES:
            if any(namespace + what in own for what in _SHOWN):
                self.namespaces.setdefault(namespace, self.path(real, name))
        return own

    def _value(self, real: RealDir, name: bytes, attribute: bytes) -> bytes | None:
        return xattrs.get(self._target(real, name), attribute)

    def _removal(
        self, real: RealDir, name: bytes, attributes: Sequence[bytes]
    ) -> Callable[[], None]:
        def remove() -> None:
            target = self._target(real, name)
            for attribute in attributes:
                if isinstance(target, int):
                    os.removexattr(fd_path(target), attribute)
                else:
                    os.removexattr(target, attribute, follow_symlinks=False)

        return remove


def _has(own: Sequence[bytes], what: bytes) -> bool:
    return any(namespace + what in own for namespace in xattrs.NAMESPACES)
