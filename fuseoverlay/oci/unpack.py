"""Unpack one layer archive into an empty directory that an overlay can use as a lower.

Deletions become whiteouts and opaque marks. Entries may come in any order: whiteouts,
directory metadata and hard links to what is not there yet wait for the end. What is named
below a symbolic link of the layer goes where the link leads inside the layer (`follow`); no call
follows one: each names one component in an open directory. Source: OCI image-spec layer.md.
Where umoci, containers-storage and Docker disagree:

- a whiteout acts on lower layers only: the layer's own name stays, a directory of that
  name becomes opaque;
- the same path twice: the last one wins, a directory keeps its children;
- a hard link to a file of a lower layer: its data are copied into this layer;
- an entry below something that is neither directory nor link in this layer is refused, below
  a link of a lower layer it gets a real directory, as does the missing target of a link;
- a whiteout below a link to what neither this layer nor those below have says nothing;
- files in `.wh..wh.plnk`, where AUFS kept those with several names, are there to be linked to
  and then gone;
- char device 0:0 and what leads out of the layer are refused, overlay attributes dropped.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from fuseoverlay.errors import DigestError, ImageError, describe
from fuseoverlay.layers import whiteout, xattrs
from fuseoverlay.layers.whiteout import Dialect
from fuseoverlay.oci.contents import write_all, write_data
from fuseoverlay.oci.copyfile import copy_file
from fuseoverlay.oci.entries import Entry, Path, read_entries, show
from fuseoverlay.oci.follow import follow
from fuseoverlay.oci.job import Job, store_error
from fuseoverlay.oci.malformed import malformed
from fuseoverlay.oci.metadata import Warnings, Writer
from fuseoverlay.oci.model import Digest
from fuseoverlay.oci.remembered import Remembered
from fuseoverlay.oci.streams import BlobReader, ForwardStream, decompress
from fuseoverlay.oci.tree import DirCache, find_below
from fuseoverlay.system.removal import remove_tree
from fuseoverlay.system.syscalls import DIR_FLAGS

_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
#: What it takes to look whether something remembered lies below a path, in `Remembered.steps`.
_PER_ITEM: Final = 4
#: AUFS kept files here that had several names in a layer, each a hard link to it.
_AUFS_LINKS: Final = b".wh..wh.plnk"
#: Value of `xattrs.IMPLIED` on a root that was listed, but holds directories that were not.
_IMPLIED_INSIDE: Final = b"x"

#: The filesystem cannot hold what the layer asks for, whatever room there is.
_IMPOSSIBLE: Final = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EFBIG, errno.EINVAL, errno.EMLINK)


def unpack_blob(blob: BlobReader, diff_id: Digest, target: str, job: Job) -> bool:
    """Unpack `blob` into the empty directory `target`; verify its digest and `diff_id`.

    Returns whether `job.lowers` gave data or decided about something, so that the result is
    good above those only. Raises ImageError, DigestError, StoreError; `target` then holds junk.
    """
    try:
        stream = ForwardStream(decompress(blob, job.where), diff_id, job.where)
        with malformed(job.where):
            used_lowers = unpack_stream(stream, target, job)
        stream.finish()
        blob.finish()
    except DigestError:
        raise
    except ImageError:
        # A damaged blob is the likeliest cause, and says more than what it led to.
        blob.finish()
        raise
    return used_lowers


def unpack_stream(stream: ForwardStream, target: str, job: Job) -> bool:
    """`unpack_blob` for a plain tar stream, of which the end is not read here."""
    with contextlib.ExitStack() as stack:
        root_fd = os.open(target, DIR_FLAGS)
        stack.callback(os.close, root_fd)
        cache = stack.enter_context(DirCache(root_fd))
        warnings = Warnings()
        layer = _Layer(cache, stream, job, warnings)
        with layer.errors():
            for entry in read_entries(stream, job.where):
                layer.add(entry)
            layer.finish()
        warnings.report(job.warn, job.where)
        return layer.used_lowers


class _Layer:
    """A layer in the making: what was made so far, and what waits for the end."""

    def __init__(
        self, cache: DirCache, stream: ForwardStream, job: Job, warnings: Warnings
    ) -> None:
        self._cache = cache
        self._stream = stream
        self._job = job
        self._warnings = warnings
        self._writer = Writer(job.override, warnings)
        self._current = "."
        # Asked while the directory is empty: the layer may hold the name of the probe.
        with self.errors():
            self._namespace = whiteout.best_namespace(cache.root_fd)
            self._dialect = whiteout.probe(cache.root_fd, self._namespace) or Dialect.OCI
        self._remembered = Remembered(job.where)
        #: Every directory made; None: not listed so far, only needed.
        self._dirs: dict[Path, Entry | None] = {(): None}
        #: Deletions; the directories that they are in may not be there.
        self._whiteouts: dict[Path, set[bytes]] = {}
        self._opaque: set[Path] = set()
        #: Hard links whose target was not there yet.
        self._links: dict[Path, Path] = {}
        self.used_lowers = False

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turn OSError into the error of the image or of the store."""
        try:
            yield
        except OSError as exc:
            what = f"cannot unpack {self._current}"
            if exc.errno in _IMPOSSIBLE:
                raise self._bad(f"{what}: {describe(exc)}") from exc
            raise store_error(exc, what, self._job.place) from exc

    def _bad(self, what: str) -> ImageError:
        return ImageError(what, where=f"{self._job.where}: {self._current}")

    # one entry

    def add(self, entry: Entry) -> None:
        """Unpack one entry, or note it for the end."""
        self._current = entry.name
        if any(part.startswith(whiteout.WH_PREFIX) for part in entry.path):
            self._add_special(entry)
            return
        path = self._place(entry.path)
        if path != entry.path or entry.xattrs:
            entry = replace(entry, path=path, xattrs=self._writer.fit(entry))
        if entry.hardlink is not None:
            self._add_hardlink(path, entry.hardlink)
        elif stat.S_ISDIR(entry.mode):
            self._add_directory(entry)
        elif stat.S_ISREG(entry.mode) or self._writer.is_placeholder(entry):
            self._add_file(entry)
        else:
            self._make(path, lambda fd, name: self._writer.make_node(entry, fd, name))

    def _add_special(self, entry: Entry) -> None:
        """A name with `.wh.` in it; what the file is does not matter, its name says it all."""
        *parents, name = entry.path
        if _is_linked_by_aufs(entry.path) and stat.S_ISREG(entry.mode) and entry.hardlink is None:
            self._add_file(entry)
        elif any(part.startswith(whiteout.WH_META_PREFIX) for part in parents):
            self._warnings.add("AUFS housekeeping is left out", self._current)
        elif any(part.startswith(whiteout.WH_PREFIX) for part in parents):
            raise self._bad("a whiteout that is used as a directory")
        elif name == whiteout.WH_OPAQUE:
            self._add_opaque(self._follow(tuple(parents)))
        elif name.startswith(whiteout.WH_META_PREFIX):
            self._warnings.add("AUFS housekeeping is left out", self._current)
        else:
            self._add_whiteout(tuple(parents), name)

    def _add_opaque(self, path: Path) -> None:
        # As with whiteouts: what is no directory hides all that was below it already.
        if not self._replaced(path):
            self._remembered.path(path)
            self._opaque.add(path)

    def _add_whiteout(self, parent: Path, name: bytes) -> None:
        target = whiteout.oci_target(name)
        if target in (None, b".", b".."):
            raise self._bad("a whiteout of nothing, '.' or '..'")
        place = self._follow(parent)
        if self._replaced(place):
            # `umoci repack` deletes the children of a directory that it replaces by a file.
            return
        if place != parent and place not in self._dirs and not self._is_directory_below(place):
            # A link of this layer to nowhere: there is nothing to delete, and nothing to make.
            return
        self._remembered.path((*place, name))
        self._whiteouts.setdefault(place, set()).add(target or b"")

    def _add_directory(self, entry: Entry) -> None:
        path = entry.path
        if path not in self._dirs:
            self._make(path, lambda fd, name: os.mkdir(name, 0o700, dir_fd=fd))
            self._remembered.path(path)
        # Its metadata wait: entries below would move its times, and may need rights in it.
        self._dirs[path] = replace(entry, xattrs=self._remembered.attributes(entry.xattrs))

    def _add_file(self, entry: Entry) -> None:
        opened: list[int] = []
        self._make(
            entry.path,
            lambda fd, name: opened.append(os.open(name, _CREATE, 0o600, dir_fd=fd)),
        )
        (fd,) = opened
        try:
            if stat.S_ISREG(entry.mode):
                if not write_data(self._stream, entry, fd):
                    raise self._bad("the archive ends in the middle of this file")
            elif entry.link:
                write_all(fd, entry.link, 0)
            self._writer.finish(entry, fd)
        finally:
            os.close(fd)

    def _add_hardlink(self, path: Path, name: Path) -> None:
        special = any(part.startswith(whiteout.WH_PREFIX) for part in name)
        if not name or (special and not _is_linked_by_aufs(name)):
            raise self._bad(f"a hard link to {show(name)}, which is no file")
        target = name if special else self._place(name)
        if target in self._dirs:
            raise self._bad(f"a hard link to the directory {show(target)}")
        there = self._exists(target)
        if path == target and there:
            return
        if not path or (path in self._dirs and target[: len(path)] == path):
            raise self._bad(f"a hard link to {show(target)} in the place of its own directory")
        if there:
            self._link(path, target)
        else:
            self._need_directory(path[:-1])
            self._clear(path)
            self._remembered.path(path)
            self._remembered.path(name)
            self._links[path] = name

    def _link(self, path: Path, target: Path) -> None:
        def link(fd: int, name: bytes) -> None:
            source = self._cache.fd(target[:-1])
            os.link(target[-1], name, src_dir_fd=source, dst_dir_fd=fd, follow_symlinks=False)

        self._make(path, link)

    # names

    def _place(self, path: Path) -> Path:
        """Where the layer has what it calls `path`; what that is plays no part."""
        return (*self._follow(path[:-1]), path[-1]) if path else path

    def _follow(self, path: Path) -> Path:
        """`path` as `follow` has it."""
        if path in self._dirs:
            return path
        where = f"{self._job.where}: {self._current}"
        return follow(path, where, self._dirs.__contains__, self._link_text, self._remembered.steps)

    def _link_text(self, parent: Path, name: bytes) -> bytes | None:
        return self._writer.link_text(self._cache.fd(parent), name)

    def _make(self, path: Path, make: Callable[[int, bytes], None]) -> None:
        """Make something under a new name; what has the name already goes."""
        if not path:
            raise self._bad("the root of a layer must be a directory")
        self._need_directory(path[:-1])
        self._links.pop(path, None)
        try:
            make(self._cache.fd(path[:-1]), path[-1])
        except FileExistsError:
            self._clear(path)
            make(self._cache.fd(path[:-1]), path[-1])

    def _clear(self, path: Path) -> None:
        """Remove what this layer has made of `path` so far, and all that waits below it."""
        self._links.pop(path, None)
        if path not in self._dirs:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path[-1], dir_fd=self._cache.fd(path[:-1]))
            return
        self._cache.forget(path)
        remove_tree(self._cache.fd(path[:-1]), path[-1])
        depth = len(path)
        for known in (self._dirs, self._whiteouts, self._links):
            self._remembered.steps(_PER_ITEM * len(known))
            for gone in [item for item in known if item[:depth] == path]:
                del known[gone]
        self._opaque = {item for item in self._opaque if item[:depth] != path}

    def _need_directory(self, path: Path) -> None:
        """Make `path` and what lies above where they are missing."""
        if path in self._dirs:
            return
        depth = len(path)
        while path[:depth] not in self._dirs:
            depth -= 1
        self._remembered.path(path, parents=len(path) - depth)
        for end in range(depth + 1, len(path) + 1):
            above, name = path[: end - 1], path[end - 1]
            if path[:end] in self._links:
                raise self._no_directory(path[:end])
            try:
                os.mkdir(name, 0o700, dir_fd=self._cache.fd(above))
            except FileExistsError as exc:
                raise self._no_directory(path[:end]) from exc
            self._dirs[path[:end]] = None

    def _replaced(self, path: Path) -> bool:
        """Whether this layer has something that is no directory at `path` or above."""
        while path not in self._dirs:
            self._remembered.steps(len(path))
            if path in self._links or self._exists(path):
                return True
            path = path[:-1]
        return False

    def _no_directory(self, path: Path) -> ImageError:
        return self._bad(f"{show(path)} is no directory in this layer")

    def _exists(self, path: Path) -> bool:
        if path[:-1] not in self._dirs:
            return False
        try:
            os.stat(path[-1], dir_fd=self._cache.fd(path[:-1]), follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    # the end

    def finish(self) -> None:
        """Do all that had to wait."""
        self._finish_links()
        if (_AUFS_LINKS,) in self._dirs:
            self._clear((_AUFS_LINKS,))
        self._finish_whiteouts()
        self._finish_directories()

    def _finish_links(self) -> None:
        copies: dict[Path, Path] = {}
        for path, name in list(self._links.items()):
            self._current = show(path)
            # Through links that came after this one, too.
            target = name if _is_linked_by_aufs(name) else self._place(name)
            if target in self._dirs:
                raise self._bad(f"a hard link to the directory {show(target)}")
            if path != target and self._exists(target):
                self._link(path, target)
            elif target in copies:
                self._link(path, copies[target])
            else:
                self._copy_below(path, target)
                copies[target] = path

    def _copy_below(self, path: Path, target: Path) -> None:
        with self._below(target) as (source, kind):
            if not kind or stat.S_ISDIR(kind):
                raise self._bad(
                    f"a hard link to {show(target)}, which is neither in this layer nor in those"
                    " below"
                )
            copy_file(source, target[-1], self._cache.fd(path[:-1]), path[-1])

    def _is_directory_below(self, path: Path) -> bool:
        with self._below(path) as (_, kind):
            return stat.S_ISDIR(kind)

    @contextlib.contextmanager
    def _below(self, path: Path) -> Iterator[tuple[int, int]]:
        """What the layers below have at `path`, as `find_below` has it; type 0: nothing."""
        self.used_lowers = True
        source, kind = find_below(self._job.lowers, path) or (-1, 0)
        try:
            yield source, kind
        finally:
            if kind:
                os.close(source)

    def _finish_whiteouts(self) -> None:
        self._need_places_of_whiteouts()
        # The layer's own `a` stays under a whiteout of `a`, with nothing from below in it.
        for parent, names in self._whiteouts.items():
            own = {(*parent, name) for name in names}
            self._opaque |= own & self._dirs.keys()
        for parent, names in self._whiteouts.items():
            if parent not in self._opaque:
                for name in sorted(names):
                    self._whiteout(parent, name)
        for path in self._opaque:
            self._current = show(path)
            parent_fd = self._cache.fd(path[:-1])
            whiteout.set_opaque(parent_fd, path[-1] if path else b".", self._namespace)

    def _need_places_of_whiteouts(self) -> None:
        """Make the directories in which something is deleted; those that are deleted themselves
        hide it, and some builders list all that was in them."""
        for place in sorted(self._whiteouts.keys() | self._opaque, key=len):
            self._current = show(place)
            if self._is_deleted(place) or self._replaced(place):
                self._whiteouts.pop(place, None)
                self._opaque.discard(place)
            else:
                self._need_directory(place)

    def _is_deleted(self, path: Path) -> bool:
        """Whether this layer does not have `path` and deletes it, or a directory above it."""
        while path not in self._dirs:
            self._remembered.steps(len(path))
            if path[-1] in self._whiteouts.get(path[:-1], ()):
                return True
            path = path[:-1]
        return False

    def _whiteout(self, parent: Path, name: bytes) -> None:
        self._current = show((*parent, name))
        if self._exists((*parent, name)):
            return
        fd = self._cache.fd(parent)
        dialect = whiteout.dialect_for(name, self._dialect)
        on_disk = whiteout.WH_PREFIX + name if dialect is Dialect.OCI else name
        whiteout.make(dialect, fd, on_disk, self._namespace)
        if dialect is Dialect.XATTR:
            whiteout.mark_xattr_whiteouts(fd, self._namespace, xattrs.NAMESPACES)

    def _finish_directories(self) -> None:
        """Set the metadata of the directories, those below before those above."""
        implied = {path for path, entry in self._dirs.items() if entry is None} - self._opaque
        for path in sorted(self._dirs, key=len, reverse=True):
            self._current = show(path)
            fd = self._cache.fd(path)
            if path in implied:
                self._mark(fd, xattrs.IMPLIED_SELF)
            elif not path and implied:
                self._mark(fd, _IMPLIED_INSIDE)
            entry = self._dirs[path] or Entry(path, stat.S_IFDIR | 0o755)
            self._writer.finish(entry, fd)

    def _mark(self, fd: int, value: bytes) -> None:
        try:
            os.setxattr(fd, xattrs.IMPLIED, value)
        except OSError as exc:
            if exc.errno != errno.EOPNOTSUPP:
                raise
            self._warnings.add(
                "without user attributes in the store's filesystem, the owner and mode of a"
                " directory that the layer does not list are lost",
                self._current,
            )


def _is_linked_by_aufs(path: Path) -> bool:
    return len(path) == 2 and path[0] == _AUFS_LINKS
