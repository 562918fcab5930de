"""A directory that keeps the changes of an image's mount: `diff` is the upper, `work` the work
directory, and `image` says which image the changes are of.

In a mount of another image, whiteouts and opaque directories would hide the wrong things, and notes
on hard links would lead to the wrong files.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pathlib
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from fuseoverlay.errors import UpperError, describe
from fuseoverlay.layers import xattrs
from fuseoverlay.overlay import claim
from fuseoverlay.overlay.config import MountConfig
from fuseoverlay.system.removal import remove_tree
from fuseoverlay.system.syscalls import DIR_FLAGS

_UPPER: Final = "diff"
_WORK: Final = "work"
_NOTE: Final = "image"
#: A directory with one of these names in it is an image.
_IMAGES: Final = ("oci-layout", "index.json", "manifest.json")
#: Bytes, more than any note has.
_MAX_NOTE: Final = 1 << 20
_PROBE: Final = b"user.fuseoverlay.probe"
_HINTS: Final = {
    errno.ENOSPC: "free some space there, or name a directory elsewhere",
    errno.EDQUOT: "free some space there, or name a directory elsewhere",
    errno.ENOTDIR: "name a directory",
    errno.EEXIST: "name a directory",
    errno.EOPNOTSUPP: "its filesystem keeps no extended attributes; name a directory elsewhere",
}


@dataclass(frozen=True, slots=True)
class Owner:
    """The image that changes belong to: the name that it was given, for messages, and the digests
    of its layers, bottom first."""

    name: str
    layers: tuple[str, ...]


class Changes:
    """One such directory, which need not exist yet. Without a call of `belong_to` it lasts only as
    long as the mount."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = pathlib.Path(directory)
        self._upper, self._work = self.directory / _UPPER, self.directory / _WORK
        self._note = self.directory / _NOTE
        self._owner: Owner | None = None
        #: Whether the upper does not yet have the attributes of the image's root directory.
        self._fresh = False
        self._made = False

    def of(self, config: MountConfig) -> MountConfig:
        """`config` with this directory's upper and work directory."""
        upper, work = os.fsencode(self._upper), os.fsencode(self._work)
        return replace(config, upperdir=upper, workdir=work)

    def is_there(self) -> bool:
        """Whether changes of an image are kept here."""
        return self._upper.is_dir() and self._note.is_file()

    def image(self) -> str:
        """The name of the image that they are of. UpperError."""
        noted = self._noted()
        if noted is None:
            raise UpperError("no changes of an image are kept here", where=self.directory)
        return noted.name

    def check(self, owner: Owner) -> None:
        """Raise `UpperError` if there are no changes, or if they are of another image."""
        self.refuse_none()
        self.belong_to(owner)

    def refuse_none(self) -> None:
        """Raise `UpperError` if there are no changes."""
        self._refuse_image()
        if not self._upper.is_dir():
            raise UpperError(
                "there are no changes",
                where=self._upper,
                hint=f"name the directory that has them in {_UPPER}",
            )

    def belong_to(self, owner: Owner) -> None:
        """Set the image that the changes belong to. Raises `UpperError` if they are of another
        one."""
        self._owner = owner
        with self._errors():
            self._fresh = self._is_fresh() or self._made

    def _is_fresh(self) -> bool:
        """Whether the upper is to begin anew: it is empty, and not noted as this image's. Raises
        `UpperError` if it holds changes of another image.

        An upper without a note, made by hand or by a version that wrote none, is accepted.
        """
        noted = self._noted()
        empty = not os.listdir(self._upper)
        if noted is None or self._owner is None:
            return empty
        same = noted.layers == self._owner.layers
        if not same and not empty:
            raise UpperError(
                f"holds the changes of another image, {noted.name}",
                where=self.directory,
                hint=f"name another directory, or remove {self._note} if these shall be used all "
                "the same",
            )
        return not same

    @contextlib.contextmanager
    def claimed(self, *, attributes: bool) -> Iterator[None]:
        """Make the directories that are missing, and remove them again if the block fails.
        `attributes`: the filesystem must keep user attributes. Raises `UpperError`."""
        self._refuse_image()
        made: list[pathlib.Path] = []
        try:
            with self._errors():
                above = reversed(self.directory.parents)
                for path in (*above, self.directory, self._work, self._upper):
                    if not path.is_dir():
                        # Other users reach what is theirs in the upper only through the mount.
                        path.mkdir(0o700 if path == self.directory else 0o777)
                        made.append(path)
                if attributes:
                    os.setxattr(self._work, _PROBE, b"")
                    os.removexattr(self._work, _PROBE)
                self._noted()
                self._fresh = self._made = self._upper in made
            yield
        except BaseException:
            for path in reversed(made):
                with contextlib.suppress(OSError):
                    path.rmdir()
            raise

    def begin(self, top: pathlib.Path, *, keeps: bool) -> None:
        """Copy the attributes of the image's root, the directory `top`, to a new upper, and write
        the note. `keeps`: owners are kept in an attribute."""
        with self._errors():
            fd = os.open(self._upper, DIR_FLAGS)
            try:
                claim.lock(fd, os.fsencode(self._upper))
                if self._fresh:
                    self._forget()
                    _copy_root(os.fsencode(top), os.fsencode(self._upper), keeps=keeps)
                if self._owner is not None and self._noted() != self._owner:
                    self._write_note(self._owner)
            finally:
                os.close(fd)

    def _forget(self) -> None:
        """The upper is empty: remove what an earlier one has left."""
        self._upper.rmdir()
        self._upper.mkdir()
        work_fd = os.open(self._work, DIR_FLAGS)
        try:
            for name in (claim.INDEX, claim.LINKS):
                with contextlib.suppress(FileNotFoundError):
                    remove_tree(work_fd, name)
        finally:
            os.close(work_fd)

    def _noted(self) -> Owner | None:
        try:
            return _read_note(self._note)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, RecursionError):
            raise UpperError(
                "does not say which image the changes are of",
                where=self._note,
                hint="remove it if they are this one's",
            ) from None

    def _write_note(self, owner: Owner) -> None:
        made = self._note.with_suffix(".new")
        # A crash may have left one, or somebody may have put something there.
        made.unlink(missing_ok=True)
        with made.open("x", encoding="utf-8", errors="surrogateescape") as file:
            json.dump({"name": owner.name, "layers": owner.layers}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        made.replace(self._note)

    def _refuse_image(self) -> None:
        """Refuse an image's directory: whoever removed the image would remove the changes, and the
        reverse."""
        if any((self.directory / name).exists() for name in _IMAGES):
            raise UpperError(
                "this is an image, where no changes are kept",
                where=self.directory,
                hint=f"name another directory, and move {_UPPER}, {_WORK} and {_NOTE} there if "
                "they are here",
            )

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            raise UpperError(
                f"changes cannot be kept here: {describe(exc)}",
                where=self.directory,
                hint=_HINTS.get(exc.errno or 0, "name a directory that you may write"),
            ) from None


def _read_note(path: pathlib.Path) -> Owner:
    """What the note says. Only a regular file is read, since opening a FIFO could wait for ever.
    ValueError, TypeError, KeyError or RecursionError if it is no note."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("no file")
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        text = os.read(fd, _MAX_NOTE)
    finally:
        os.close(fd)
    said = json.loads(text.decode("utf-8", "surrogateescape"))
    name, layers = said["name"], said["layers"]
    if not (isinstance(name, str) and isinstance(layers, list)):
        raise TypeError("not a name and layers")
    return Owner(name, tuple(map(str, layers)))


def _copy_root(source: bytes, target: bytes, *, keeps: bool) -> None:
    """Copy owner, mode, attributes and times of the image's root to a new upper. `keeps`: owners
    are kept in an attribute, which is copied too."""
    st = os.stat(source)
    with contextlib.suppress(PermissionError):
        os.chown(target, st.st_uid, st.st_gid)
    os.chmod(target, st.st_mode & 0o7777)
    for name in xattrs.names(source):
        if (keeps and name == xattrs.OVERRIDE_STAT) or xattrs.to_user(name) == name:
            value = xattrs.get(source, name)
            if value is not None:
                os.setxattr(target, name, value)
    os.utime(target, ns=(st.st_atime_ns, st.st_mtime_ns))
