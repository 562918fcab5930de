"""What a layer is made in: a directory on disk (`disk`), or a tree in memory (`treetarget`).

`Layer`, `Made` and `Deletions` decide what is made; a target makes it and decides nothing.
"""

from __future__ import annotations

from typing import Protocol

from fuseoverlay.oci.entries import Entry, Path
from fuseoverlay.oci.streams import ForwardStream


class Target(Protocol):
    """Paths are of the layer and hold no links: all directories on the way exist.

    Raises OSError as the system calls do. What makes a name raises FileExistsError, with nothing
    read or changed, if the name is taken.
    """

    def mkdir(self, path: Path) -> None:
        """Make a directory. Its metadata come at the end, by `finish_directory`."""

    def file(self, entry: Entry, stream: ForwardStream) -> bool:
        """Make a regular file with all its metadata, and its content from `stream`; False if that
        ends too early."""

    def node(self, entry: Entry) -> None:
        """Make a symbolic link, device or fifo with all its metadata."""

    def link(self, path: Path, target: Path) -> None:
        """Make `path` a hard link to what is at `target`, which is no directory."""

    def copy_below(self, path: Path, source: Path) -> bool:
        """Make `path` a copy of what the layers below show at `source`; False if they show nothing
        there, or a directory."""

    def unlink(self, path: Path) -> None:
        """Remove the name `path`, which is no directory; FileNotFoundError if there is none."""

    def remove_tree(self, path: Path) -> None:
        """Remove the directory `path` and all that is in it."""

    def exists(self, path: Path) -> bool:
        """Whether there is anything at `path`."""

    def link_text(self, path: Path) -> bytes | None:
        """The target of the symbolic link `path`; None if there is none."""

    def whiteout(self, path: Path) -> None:
        """Make a whiteout, where nothing is."""

    def set_opaque(self, path: Path) -> None:
        """Make the directory `path` opaque."""

    def finish_directory(self, entry: Entry, implied: bytes | None) -> None:
        """Set the metadata of a directory, and the mark `xattrs.IMPLIED` to `implied`."""
