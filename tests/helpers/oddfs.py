"""A FUSE filesystem that lacks what others have: `python oddfs.py MOUNTPOINT
ERRNO ERRNO [BROKEN]`.

It holds `file`, `dir/inside` and `link`, and answers every question about extended attributes with
the first errno and statfs(2) with the second, if that is not 0. While there is a file BROKEN, `dir`
cannot be looked up, EIO; while there is BROKEN.list, it cannot be listed. For tests of layers on
filesystems that are not like ext4.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Sequence

import pyfuse3
import trio
from pyfuse3 import FileHandleT, FileNameT, InodeT, RequestContext, XAttrNameT

ROOT, FILE, DIR, INSIDE, LINK = 1, 2, 3, 4, 5
MODES = {
    ROOT: stat.S_IFDIR | 0o755,
    FILE: stat.S_IFREG | 0o644,
    DIR: stat.S_IFDIR | 0o755,
    INSIDE: stat.S_IFREG | 0o644,
    LINK: stat.S_IFLNK | 0o777,
}
CONTENTS = {FILE: b"content of file\n", INSIDE: b"inside\n", LINK: b"file"}
NAMES = {ROOT: {b"file": FILE, b"dir": DIR, b"link": LINK}, DIR: {b"inside": INSIDE}}


class Odd(pyfuse3.Operations):
    """The filesystem, which is read-only."""

    def __init__(self, attributes: int, statfs: int, broken: str | None) -> None:
        super().__init__()
        self._attributes, self._statfs, self._broken = attributes, statfs, broken

    def _entry(self, ino: int) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino, entry.st_mode = ino, MODES[ino]
        entry.st_nlink = 2 if stat.S_ISDIR(MODES[ino]) else 1
        entry.st_uid, entry.st_gid = os.getuid(), os.getgid()
        entry.st_size = len(CONTENTS.get(ino, b""))
        if self._broken:
            entry.entry_timeout = entry.attr_timeout = 0
        return entry

    async def getattr(self, inode: InodeT, ctx: RequestContext) -> pyfuse3.EntryAttributes:
        return self._entry(inode)

    async def lookup(
        self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext
    ) -> pyfuse3.EntryAttributes:
        if name not in NAMES.get(parent_inode, {}):
            raise pyfuse3.FUSEError(errno.ENOENT)
        if name == b"dir" and self._broken and os.path.exists(self._broken):
            raise pyfuse3.FUSEError(errno.EIO)
        return self._entry(NAMES[parent_inode][name])

    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        return FileHandleT(inode)

    async def readdir(self, fh: FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        if fh == DIR and self._broken and os.path.exists(f"{self._broken}.list"):
            raise pyfuse3.FUSEError(errno.EIO)
        for position, (name, ino) in enumerate(NAMES[fh].items(), 1):
            later = position > start_id
            if later and not pyfuse3.readdir_reply(token, name, self._entry(ino), position):
                return

    async def open(self, inode: InodeT, flags: int, ctx: RequestContext) -> pyfuse3.FileInfo:
        if flags & os.O_NOATIME:
            raise pyfuse3.FUSEError(errno.EPERM)
        return pyfuse3.FileInfo(fh=FileHandleT(inode))

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        return CONTENTS[fh][off : off + size]

    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        return FileNameT(CONTENTS[inode])

    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[XAttrNameT]:
        raise pyfuse3.FUSEError(self._attributes)

    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        raise pyfuse3.FUSEError(self._attributes)

    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        if self._statfs:
            raise pyfuse3.FUSEError(self._statfs)
        return pyfuse3.StatvfsData()


def main() -> None:
    """Serve until unmounted."""
    mountpoint, attributes, statfs = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    broken = sys.argv[4] if len(sys.argv) > 4 else None
    options = {"fsname=oddfs", "default_permissions"}
    pyfuse3.init(Odd(attributes, statfs, broken), mountpoint, options)
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    main()
