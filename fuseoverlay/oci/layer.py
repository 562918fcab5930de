"""The entries of one layer archive, one after the other, as calls to a `Target`.

Deletions become whiteouts and opaque marks. Entries may come in any order: whiteouts, directory
metadata, and hard links whose target does not exist yet wait for the end. An entry below a symbolic
link of the layer goes where the link leads inside the layer (`follow`): what a target is asked for
has no link on its way. Source: OCI image-spec layer.md. Where umoci, containers-storage and Docker
disagree:

- a whiteout acts on lower layers only: the layer's own name stays, a directory of that
  name becomes opaque;
- if a path comes twice, the last one counts; a directory keeps its children;
- a hard link to a file of a lower layer: the file is copied into this layer;
- an entry below something that is neither directory nor link in this layer is refused;
  below a link of a lower layer, or the missing target of a link, it gets a real directory;
- a whiteout below a link to what neither this layer nor those below have does nothing;
- files in `.wh..wh.plnk`, where AUFS kept those with several names, can be linked to and
  are removed at the end;
- char device 0:0 and names that lead out of the layer are refused, overlay attributes
  dropped.
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from typing import Final, TypeVar

from fuseoverlay.errors import DigestError, ImageError
from fuseoverlay.layers import whiteout, xattrs
from fuseoverlay.oci.below import Below
from fuseoverlay.oci.deletions import Deletions
from fuseoverlay.oci.entries import Entry, Path, read_entries, show
from fuseoverlay.oci.job import Job
from fuseoverlay.oci.made import Made
from fuseoverlay.oci.malformed import malformed
from fuseoverlay.oci.metadata import Warnings, fit
from fuseoverlay.oci.model import Digest
from fuseoverlay.oci.streams import BlobReader, ForwardStream, decompress
from fuseoverlay.oci.target import Target

#: AUFS kept files here that had several names in a layer, each a hard link to one of these.
_AUFS_LINKS: Final = b".wh..wh.plnk"
#: The value of `xattrs.IMPLIED` on a root that was listed but holds directories that were not.
_IMPLIED_INSIDE: Final = b"x"

T = TypeVar("T")


def read_blob(blob: BlobReader, diff_id: Digest, job: Job, read: Callable[[ForwardStream], T]) -> T:
    """What `read` makes of the plain tar stream in `blob`, once the digest of `blob` and `diff_id`
    are verified.

    Raises ImageError, DigestError, and what else `read` raises.
    """
    try:
        plain = decompress(blob, job.where)
        with ForwardStream(plain, diff_id, job.where, job.limit) as stream:
            with malformed(job.where):
                found = read(stream)
            stream.finish()
        blob.finish()
    except DigestError:
        raise
    except ImageError:
        # A damaged blob is the likeliest cause, and its error says more than what it led to.
        blob.finish()
        raise
    return found


class Layer:
    """A layer that is being unpacked: what was made so far, and what waits for the end."""

    def __init__(
        self, target: Target, below: Below, stream: ForwardStream, job: Job, warnings: Warnings
    ) -> None:
        self._target = target
        self._stream = stream
        self._job = job
        self._warnings = warnings
        self.made = Made(target, job)
        self._deletions = Deletions(self.made, below)
        self.size = 0

    def read(self) -> None:
        """Unpack all entries of the stream, which is not read to its end."""
        for entry in read_entries(self._stream, self._job.where):
            self.add(entry)
        self.finish()

    # one entry

    def add(self, entry: Entry) -> None:
        """Unpack one entry, or note it for the end."""
        self.made.current = entry.path
        if _is_special(entry.path):
            self._add_special(entry)
            return
        path = self.made.place(entry.path)
        entry = self._fit(entry)
        if path is not entry.path:
            entry = entry._replace(path=path)
        if entry.hardlink is not None:
            self._add_hardlink(path, entry.hardlink)
        elif stat.S_ISDIR(entry.mode):
            self._add_directory(entry)
        elif stat.S_ISREG(entry.mode):
            self._add_file(entry)
        else:
            self.made.make(path, lambda: self._target.node(entry))
            self.size += len(entry.link)

    def _fit(self, entry: Entry) -> Entry:
        return entry._replace(xattrs=fit(entry, self._warnings)) if entry.xattrs else entry

    def _add_special(self, entry: Entry) -> None:
        """Handle a name with `.wh.` in it. Its name says everything; the type of the file does not
        matter."""
        *parents, name = entry.path
        if _is_linked_by_aufs(entry.path) and stat.S_ISREG(entry.mode) and entry.hardlink is None:
            self._add_file(self._fit(entry))
        elif any(part.startswith(whiteout.WH_META_PREFIX) for part in parents):
            self._warnings.add("AUFS housekeeping is left out", entry.name)
        elif any(part.startswith(whiteout.WH_PREFIX) for part in parents):
            raise self.made.bad("a whiteout that is used as a directory")
        elif name == whiteout.WH_OPAQUE:
            self._deletions.add_opaque(self.made.follow(tuple(parents)))
        elif name.startswith(whiteout.WH_META_PREFIX):
            self._warnings.add("AUFS housekeeping is left out", entry.name)
        else:
            self._deletions.add_whiteout(tuple(parents), name)

    def _add_directory(self, entry: Entry) -> None:
        path = entry.path
        if path not in self.made.dirs:
            self.made.make(path, lambda: self._target.mkdir(path))
            self.made.remembered.path(path)
        # Its metadata waits: later entries in it would change its times, and may need permissions
        # in it.
        if entry.xattrs:
            entry = entry._replace(xattrs=self.made.remembered.attributes(entry.xattrs))
        self.made.dirs[path] = entry

    def _add_file(self, entry: Entry) -> None:
        if not self.made.make(entry.path, lambda: self._target.file(entry, self._stream)):
            raise self.made.bad("the archive ends in the middle of this file")
        self.size += entry.size

    def _add_hardlink(self, path: Path, name: Path) -> None:
        special = _is_special(name)
        if not name or (special and not _is_linked_by_aufs(name)):
            raise self.made.bad(f"a hard link to {show(name)}, which is no file")
        target = name if special else self.made.place(name)
        if target in self.made.dirs:
            raise self.made.bad(f"a hard link to the directory {show(target)}")
        there = self.made.exists(target)
        if path == target and there:
            return
        if not path or (path in self.made.dirs and target[: len(path)] == path):
            raise self.made.bad(f"a hard link to {show(target)} in the place of its own directory")
        if there:
            self.made.link(path, target)
        else:
            self.made.need_directory(path[:-1])
            self.made.clear(path)
            self.made.remembered.path(path)
            self.made.remembered.path(name)
            self.made.links[path] = name

    # the end

    def finish(self) -> None:
        """Do what had to wait."""
        self._finish_links()
        if (_AUFS_LINKS,) in self.made.dirs:
            self.made.clear((_AUFS_LINKS,))
        self._deletions.finish()
        self._finish_directories()

    def _finish_links(self) -> None:
        copies: dict[Path, Path] = {}
        for path, name in list(self.made.links.items()):
            self.made.current = path
            # Follow links that came after this entry, too.
            target = name if _is_linked_by_aufs(name) else self.made.place(name)
            if target in self.made.dirs:
                raise self.made.bad(f"a hard link to the directory {show(target)}")
            if path != target and self.made.exists(target):
                self.made.link(path, target)
            elif target in copies:
                self.made.link(path, copies[target])
            else:
                self._copy_below(path, target)
                copies[target] = path

    def _copy_below(self, path: Path, source: Path) -> None:
        if not self._target.copy_below(path, source):
            raise self.made.bad(
                f"a hard link to {show(source)}, which is neither in this layer nor in those below"
            )

    def _finish_directories(self) -> None:
        """Set the metadata of all directories, the deepest first."""
        dirs = self.made.dirs
        implied = {path for path, entry in dirs.items() if entry is None} - self.made.opaque
        for path in sorted(dirs, key=len, reverse=True):
            self.made.current = path
            mark = xattrs.IMPLIED_SELF if path in implied else None
            if not path and implied and mark is None:
                mark = _IMPLIED_INSIDE
            entry = dirs[path] or Entry(path, stat.S_IFDIR | 0o755)
            self._target.finish_directory(entry, mark)


def _is_special(path: Path) -> bool:
    """Whether a name in it begins with `.wh.`."""
    return whiteout.WH_PREFIX in b"/".join(path) and any(
        part.startswith(whiteout.WH_PREFIX) for part in path
    )


def _is_linked_by_aufs(path: Path) -> bool:
    return len(path) == 2 and path[0] == _AUFS_LINKS
