"""A directory that keeps the changes of an image's mount: the upper is `diff` in it, the work
directory `work`."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from fuseoverlay import xattrs
from fuseoverlay.config import MountConfig
from fuseoverlay.errors import UpperError, describe

_UPPER: Final = "diff"
_WORK: Final = "work"
_HINTS: Final = {
    errno.ENOSPC: "free some space there, or name a directory elsewhere",
    errno.EDQUOT: "free some space there, or name a directory elsewhere",
    errno.ENOTDIR: "name a directory",
    errno.EEXIST: "name a directory",
    errno.EOPNOTSUPP: "its filesystem keeps no extended attributes; name a directory elsewhere",
}


class Changes:
    """One such directory, which need not exist yet."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = pathlib.Path(directory)
        self._upper = self.directory / _UPPER
        #: Whether the upper is new: it does not show yet what the image's root directory is.
        self._fresh = False

    def exist(self) -> bool:
        """Whether there is an upper."""
        return self._upper.is_dir()

    def of(self, config: MountConfig) -> MountConfig:
        """`config` with its changes in here."""
        work = self.directory / _WORK
        return replace(config, upperdir=os.fsencode(self._upper), workdir=os.fsencode(work))

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Make what is missing, and take it away again if the block fails. Raises `UpperError`."""
        made: list[pathlib.Path] = []
        work = self.directory / _WORK
        try:
            with self._errors():
                for path in (*reversed(self.directory.parents), self.directory, work, self._upper):
                    if not path.is_dir():
                        path.mkdir()
                        made.append(path)
            self._fresh = self._upper in made
            yield
        except BaseException:
            for path in reversed(made):
                with contextlib.suppress(OSError):
                    path.rmdir()
            raise

    def begin(self, top: pathlib.Path, *, keeps: bool) -> None:
        """Let a new upper show the image's root as it is, which is the directory `top`. `keeps`:
        the attribute that keeps owners counts."""
        if self._fresh:
            with self._errors():
                _copy_root(os.fsencode(top), os.fsencode(self._upper), keeps=keeps)

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


def _copy_root(source: bytes, target: bytes, *, keeps: bool) -> None:
    """Let a new upper show the image's root as it is: owner, mode, attributes, times. `keeps`:
    the attribute that keeps owners counts."""
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
