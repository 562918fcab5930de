"""A layer that is made in a directory, one component of a path at a time: no call follows a
symbolic link of the layer."""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from fuseoverlay.layers import whiteout, xattrs
from fuseoverlay.layers.whiteout import Dialect
from fuseoverlay.oci.below import DirectoriesBelow
from fuseoverlay.oci.contents import write_all, write_data
from fuseoverlay.oci.copyfile import copy_file
from fuseoverlay.oci.entries import Entry, Path
from fuseoverlay.oci.metadata import Warnings, Writer
from fuseoverlay.oci.streams import ForwardStream
from fuseoverlay.oci.tree import DirCache
from fuseoverlay.system.removal import remove_tree

_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class DirectoryTarget:
    """The `Target` below the root of `cache`, with real owners or, with `override`, noted ones."""

    def __init__(
        self, cache: DirCache, override: bool, warnings: Warnings, below: DirectoriesBelow
    ) -> None:
        self._cache = cache
        self._warnings = warnings
        self._writer = Writer(override, warnings)
        self._below = below
        self._namespace = xattrs.USER
        self._dialect = Dialect.OCI

    def probe(self) -> None:
        """Find out how deletions can be written, while the directory is empty: the layer may
        contain the name of the probe. OSError."""
        self._namespace = whiteout.best_namespace(self._cache.root_fd)
        self._dialect = whiteout.probe(self._cache.root_fd, self._namespace) or Dialect.OCI

    def mkdir(self, path: Path) -> None:
        """See `Target`."""
        os.mkdir(path[-1], 0o700, dir_fd=self._cache.fd(path[:-1]))

    def file(self, entry: Entry, stream: ForwardStream) -> bool:
        """See `Target`."""
        fd = self._create(entry.path)
        try:
            if not write_data(stream, entry, fd):
                return False
            self._writer.finish(entry, fd)
        finally:
            os.close(fd)
        return True

    def _create(self, path: Path) -> int:
        return os.open(path[-1], _CREATE, 0o600, dir_fd=self._cache.fd(path[:-1]))

    def node(self, entry: Entry) -> None:
        """See `Target`."""
        if self._writer.override:
            self._placeholder(entry)
        else:
            self._writer.make_node(entry, self._cache.fd(entry.path[:-1]), entry.path[-1])

    def _placeholder(self, entry: Entry) -> None:
        """Make the regular file that stands for another type: only regular files and directories
        can have the override attribute.

        A symbolic link could be made, but each reading would move its access time.
        """
        fd = self._create(entry.path)
        try:
            write_all(fd, entry.link, 0)
            self._writer.finish(entry, fd)
        finally:
            os.close(fd)

    def link(self, path: Path, target: Path) -> None:
        """See `Target`."""
        fd = self._cache.fd(path[:-1])
        source = self._cache.fd(target[:-1])
        os.link(target[-1], path[-1], src_dir_fd=source, dst_dir_fd=fd, follow_symlinks=False)

    def copy_below(self, path: Path, source: Path) -> bool:
        """See `Target`."""
        with self._below.at(source) as (fd, kind):
            if not kind or stat.S_ISDIR(kind):
                return False
            copy_file(fd, source[-1], self._cache.fd(path[:-1]), path[-1])
        return True

    def unlink(self, path: Path) -> None:
        """See `Target`."""
        os.unlink(path[-1], dir_fd=self._cache.fd(path[:-1]))

    def remove_tree(self, path: Path) -> None:
        """See `Target`."""
        self._cache.forget(path)
        remove_tree(self._cache.fd(path[:-1]), path[-1])

    def exists(self, path: Path) -> bool:
        """See `Target`."""
        try:
            os.stat(path[-1], dir_fd=self._cache.fd(path[:-1]), follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def link_text(self, path: Path) -> bytes | None:
        """See `Target`."""
        return self._writer.link_text(self._cache.fd(path[:-1]), path[-1])

    def whiteout(self, path: Path) -> None:
        """See `Target`."""
        fd, name = self._cache.fd(path[:-1]), path[-1]
        dialect = whiteout.dialect_for(name, self._dialect)
        on_disk = whiteout.WH_PREFIX + name if dialect is Dialect.OCI else name
        whiteout.make(dialect, fd, on_disk, self._namespace)
        if dialect is Dialect.XATTR:
            whiteout.mark_xattr_whiteouts(fd, self._namespace, xattrs.NAMESPACES)

    def set_opaque(self, path: Path) -> None:
        """See `Target`."""
        fd = self._cache.fd(path[:-1])
        whiteout.set_opaque(fd, path[-1] if path else b".", self._namespace)

    def finish_directory(self, entry: Entry, implied: bytes | None) -> None:
        """See `Target`."""
        fd = self._cache.fd(entry.path)
        if implied is not None:
            self._mark(fd, implied, entry)
        self._writer.finish(entry, fd)

    def _mark(self, fd: int, value: bytes, entry: Entry) -> None:
        try:
            os.setxattr(fd, xattrs.IMPLIED, value)
        except OSError as exc:
            if exc.errno != errno.EOPNOTSUPP:
                raise
            self._warnings.add(
                "without user attributes in the store's filesystem, the owner and mode of a"
                " directory that the layer does not list are lost",
                entry.name,
            )
