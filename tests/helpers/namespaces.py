"""User namespaces that root prepares, and processes and mounts in them."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import subprocess
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.helpers import libc
from tests.helpers.mounts import Daemon, Space, command, mounts_at, wait_for

#: The id outside that root of a namespace has.
FIRST = 300_000


@dataclass(frozen=True)
class UserNamespace:
    """A user namespace with a mount namespace of its own. Root in there is `FIRST` outside."""

    holder: int

    def run(self, work: Callable[[], Any], uid: int = 0, gid: int | None = None) -> Any:
        """Run `work` in there, in a process of that user; returns its value or raises its OSError.
        The group has the user's number unless `gid` says otherwise."""
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os._exit(self._work(writing, work, uid, uid if gid is None else gid))
        os.close(writing)
        with open(reading, "rb") as pipe:
            answer = pipe.read()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        code, value = pickle.loads(answer)
        if code:
            raise OSError(code, os.strerror(code))
        return value

    def _work(self, writing: int, work: Callable[[], Any], uid: int, gid: int) -> int:
        answer: tuple[int, Any]
        try:
            os.umask(0o022)
            for kind in ("user", "mnt"):
                libc.setns(Path(f"/proc/{self.holder}/ns/{kind}"))
            os.setgroups(())
            # Become root of the namespace first, then the user, which drops the capabilities.
            for user, group in ((0, 0), (uid, gid)):
                os.setresgid(group, group, group)
                os.setresuid(user, user, user)
            try:
                answer = (0, work())
            except OSError as exc:
                answer = (exc.errno or errno.EIO, None)
            os.write(writing, pickle.dumps(answer))
            return 0
        except BaseException:
            traceback.print_exc()
            return 1

    def mount(self, space: Space, impl: str) -> None:
        """Mount the space's layers in there as its root, who becomes the owner of the
        directories."""
        for path in (*space.lowers, space.upper, space.work, space.mnt):
            os.chown(path, FIRST, FIRST)
        if impl == "kernel":
            options = f"{space.options()},userxattr"
            done = subprocess.run(
                self._as_root("mount", "-t", "overlay", "overlay", "-o", options, space.mnt),
                timeout=30, capture_output=True, text=True,
            )  # fmt: skip
            assert not done.returncode, done.stderr
            return
        argv = self._as_root(*command("mount", "-f", "-o", space.options(), space.mnt))
        space.daemon = Daemon(argv, space.mnt, space.log)
        pid = space.daemon.process.pid
        wait_for(lambda: not space.alive() or mounts_at(space.mnt, pid), 20, "mounting")
        assert space.alive(), space.daemon.text()

    def unmount(self, space: Space) -> None:
        """Unmount, and see the daemon end."""
        subprocess.run(self._as_root("umount", space.mnt), check=True, timeout=60)
        if space.daemon is not None:
            daemon, space.daemon = space.daemon, None
            daemon.finish()

    @property
    def enter(self) -> list[str]:
        """The beginning of a command line that runs a program in there."""
        return ["nsenter", f"--target={self.holder}", "-U", "-m"]

    def _as_root(self, *args: object) -> list[str]:
        who = ["setpriv", "--reuid=0", "--regid=0", "--clear-groups", "--"]
        return [*self.enter, *who, *(str(arg) for arg in args)]


@contextlib.contextmanager
def user_namespace(length: int) -> Iterator[UserNamespace]:
    """A user namespace that maps `length` ids."""
    with subprocess.Popen(
        ["unshare", "-Um", "sh", "-c", "echo ready; cat"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as holder:  # fmt: skip
        assert holder.stdin is not None and holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        for ids in ("uid_map", "gid_map"):
            Path(f"/proc/{holder.pid}/{ids}").write_text(f"0 {FIRST} {length}")
        yield UserNamespace(holder.pid)
        holder.stdin.close()
