"""Permissions, as several users: root mounts, everyone works within their rights."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.helpers import libc
from tests.helpers.mounts import needs_root_ids
from tests.posix.table import (
    ALICE,
    ATIME,
    BOB,
    CONTENT,
    MTIME,
    STAFF,
    as_user,
    behaviour,
    expect,
    in_child,
    mode_of,
    opened,
    opens,
    seen,
)

_OWN = {"follow_symlinks": False}


def _own(path: Path, uid: int, gid: int, mode: int) -> Path:
    """Give an object an owner and a mode, in the order that keeps the bits."""
    os.chown(path, uid, gid)
    os.chmod(path, mode)
    return path


def users(function: Callable[[Path], object]) -> Callable:
    """A behaviour that needs other users' ids."""
    return behaviour(needs_root_ids)(function)


def _rights(path: Path) -> str:
    """What the calling process may do to a file, as in ls -l."""
    flags = {"r": os.O_RDONLY, "w": os.O_WRONLY}
    may = "".join(letter for letter, flag in flags.items() if seen(opens, path, flag) is None)
    return may + ("x" if os.access(path, os.X_OK) else "")


@users
def classes_of_permission(d: Path) -> object:
    """The first class that fits counts, even where a later one would allow more."""
    answers = {}
    for mode in (0o700, 0o070, 0o007, 0o640, 0o604, 0o421, 0o124, 0o077):
        _own(d / "f", ALICE, STAFF, mode)
        answers[oct(mode)] = (
            as_user(ALICE, lambda: _rights(d / "f"), STAFF),
            as_user(BOB, lambda: _rights(d / "f"), STAFF),
            as_user(BOB, lambda: _rights(d / "f")),
        )
    assert answers["0o700"] == ("rwx", "", "")
    assert answers["0o70"] == ("", "rwx", "")
    assert answers["0o7"] == ("", "", "rwx")
    assert answers["0o421"] == ("r", "w", "x")
    assert answers["0o77"] == ("", "rwx", "rwx")
    return answers


@users
def rights_on_a_directory(d: Path) -> object:
    """r lists, x reaches what is in it, wx changes it."""

    def rights() -> str:
        may = {
            "list": seen(os.listdir, d / "d"),
            "reach": seen(os.stat, d / "d" / "child"),
            "make": seen(os.mkdir, d / "d" / "new"),
        }
        if may["make"] is None:
            os.rmdir(d / "d" / "new")
        return " ".join(what for what, answer in may.items() if answer != "EACCES")

    answers = {}
    for mode in range(8):
        _own(d / "d", 0, 0, 0o750 | mode)
        answers[mode] = as_user(ALICE, rights)
    assert answers == {
        0: "", 1: "reach", 2: "", 3: "reach make", 4: "list", 5: "list reach", 6: "list",
        7: "list reach make",
    }  # fmt: skip


@users
def every_call_without_search_permission(d: Path) -> object:
    _own(d / "d", 0, 0, 0o750)
    child = d / "d" / "child"
    os.chmod(d, 0o777)

    def calls() -> dict:
        return {
            "stat": seen(os.stat, child),
            "lstat": seen(os.lstat, child),
            "open": seen(opens, child, os.O_RDONLY),
            "create": seen(opens, d / "d" / "new", os.O_CREAT | os.O_WRONLY),
            "mkdir": seen(os.mkdir, d / "d" / "new"),
            "mkfifo": seen(os.mkfifo, d / "d" / "new"),
            "symlink": seen(os.symlink, "x", d / "d" / "new"),
            "readlink": seen(os.readlink, child),
            "unlink": seen(os.unlink, child),
            "rmdir": seen(os.rmdir, d / "d" / "sub"),
            "rename": seen(os.rename, child, d / "new"),
            "rename into": seen(os.rename, d / "g", d / "d" / "new"),
            "link": seen(os.link, child, d / "new"),
            "chmod": seen(os.chmod, child, 0o600),
            "chown": seen(os.chown, child, ALICE, -1),
            "utime": seen(os.utime, child),
            "truncate": seen(os.truncate, child, 0),
            "getxattr": seen(os.getxattr, child, "user.x"),
            "listxattr": seen(os.listxattr, child),
            "statvfs": seen(os.statvfs, child),
            "missing": seen(os.stat, d / "d" / "missing"),
        }

    expect(as_user(ALICE, calls), others="EACCES")
    os.chmod(d, 0o755)


@users
def every_change_without_write_permission(d: Path) -> object:
    """In a directory that may be read and searched."""

    def calls() -> dict:
        return {
            "create": seen(opens, d / "new", os.O_CREAT | os.O_WRONLY),
            "mkdir": seen(os.mkdir, d / "new"),
            "mkfifo": seen(os.mkfifo, d / "new"),
            "symlink": seen(os.symlink, "x", d / "new"),
            "unlink": seen(os.unlink, d / "g"),
            "rmdir": seen(os.rmdir, d / "e"),
            "rename": seen(os.rename, d / "g", d / "new"),
            "write": seen(opens, d / "g", os.O_WRONLY),
            "truncate": seen(os.truncate, d / "g", 0),
            "utime": seen(os.utime, d / "g"),
            "setxattr": seen(os.setxattr, d / "g", "user.x", b"y"),
            "create over": seen(opens, d / "g", os.O_CREAT | os.O_WRONLY),
        }

    expect(as_user(ALICE, calls), others="EACCES")


@users
def existing_names_without_write_permission(d: Path) -> object:
    """That the name exists comes before that it may not be made."""

    def calls() -> dict:
        return {
            "mkdir": seen(os.mkdir, d / "e"),
            "symlink": seen(os.symlink, "x", d / "g"),
            "exclusive": seen(opens, d / "g", os.O_CREAT | os.O_EXCL | os.O_WRONLY),
            "missing": seen(os.unlink, d / "missing"),
            "open missing": seen(opens, d / "missing", os.O_RDONLY),
        }

    got = as_user(ALICE, calls)
    return expect(got, others="EEXIST", missing="ENOENT", **{"open missing": "ENOENT"})


@users
def changes_for_owners_only(d: Path) -> object:
    os.chmod(d / "g", 0o666)
    os.chmod(d / "e", 0o777)

    def calls() -> dict:
        return {
            "chmod": seen(os.chmod, d / "g", 0o777),
            "chmod dir": seen(os.chmod, d / "e", 0o700),
            "chown": seen(os.chown, d / "g", ALICE, -1),
            "chgrp": seen(os.chown, d / "g", -1, ALICE),
            "lchown": seen(os.chown, d / "s", ALICE, -1, **_OWN),
            "utime": seen(os.utime, d / "g", ns=(1, 1)),
            "utime omit": seen(libc.utimensat, d / "g", (0, libc.UTIME_OMIT), (0, libc.UTIME_NOW)),
            "noatime": seen(opens, d / "g", os.O_RDONLY | os.O_NOATIME),
        }

    return expect(as_user(ALICE, calls), others="EPERM")


@users
def utime_now_by_who_may_write(d: Path) -> object:
    os.chmod(d / "g", 0o666)
    assert as_user(ALICE, lambda: os.utime(d / "g")) is None
    assert os.stat(d / "g").st_mtime_ns > MTIME
    os.chmod(d / "f", 0o664)
    assert as_user(ALICE, lambda: os.utime(d / "f")) == "EACCES"
    assert os.stat(d / "f").st_mtime_ns == MTIME


@users
def changes_by_owners(d: Path) -> object:
    _own(d / "f", ALICE, ALICE, 0)

    def calls() -> dict:
        return {
            "chown to other": seen(os.chown, d / "f", BOB, -1),
            "chgrp to other": seen(os.chown, d / "f", -1, BOB),
            "chown to self": seen(os.chown, d / "f", ALICE, ALICE),
            "chgrp to own": seen(os.chown, d / "f", -1, STAFF),
            "chmod": seen(os.chmod, d / "f", 0o600),
            "utime": seen(os.utime, d / "f", ns=(ATIME, MTIME)),
            "read": (d / "f").read_bytes()[:5],
        }

    got = as_user(ALICE, calls, STAFF)
    expect(got, **{"chown to other": "EPERM", "chgrp to other": "EPERM"}, read=CONTENT[:5])
    st = os.stat(d / "f")
    return st.st_uid, st.st_gid, oct(st.st_mode)


@users
def sticky_directory(d: Path) -> object:
    """Names go only by the will of the object's or the directory's owner."""
    _own(d / "e", 0, 0, 0o1777)

    def make() -> None:
        (d / "e" / "file").touch()
        os.mkdir(d / "e" / "dir")
        os.symlink("x", d / "e" / "link")
        os.chmod(d / "e" / "file", 0o666)

    def attack() -> dict:
        (d / "e" / "his").touch()
        return {
            "unlink": seen(os.unlink, d / "e" / "file"),
            "unlink link": seen(os.unlink, d / "e" / "link"),
            "rmdir": seen(os.rmdir, d / "e" / "dir"),
            "rename": seen(os.rename, d / "e" / "file", d / "e" / "new"),
            "rename over": seen(os.rename, d / "e" / "his", d / "e" / "file"),
            "rename his": seen(os.rename, d / "e" / "his", d / "e" / "new"),
            "unlink his": seen(os.unlink, d / "e" / "new"),
            "write": seen(opens, d / "e" / "file", os.O_WRONLY),
        }

    assert as_user(ALICE, make) is None
    got = as_user(BOB, attack)
    expect(got, others="EPERM", **{"rename his": None, "unlink his": None, "write": None})
    assert as_user(ALICE, lambda: os.unlink(d / "e" / "file")) is None
    os.chown(d / "e", BOB, BOB)
    assert as_user(BOB, lambda: os.rmdir(d / "e" / "dir")) is None
    return sorted(os.listdir(d / "e"))


@users
def sticky_directory_of_populated_objects(d: Path) -> object:
    _own(d, BOB, BOB, 0o1777)
    assert as_user(ALICE, lambda: os.unlink(d / "g")) == "EPERM"
    assert as_user(ALICE, lambda: os.rename(d / "g", d / "new")) == "EPERM"
    os.chown(d / "g", ALICE, ALICE)
    assert as_user(ALICE, lambda: os.unlink(d / "g")) is None
    assert as_user(BOB, lambda: os.unlink(d / "f")) is None
    _own(d, 0, 0, 0o755)


@users
def setgid_directory(d: Path) -> object:
    """What is made in it gets its group, directories also the bit."""
    _own(d / "e", 0, STAFF, 0o2777)

    def make() -> None:
        opens(d / "e" / "file", os.O_CREAT | os.O_WRONLY, 0o666)
        os.mkdir(d / "e" / "dir")
        os.mkdir(d / "e" / "dir" / "below")
        os.symlink("x", d / "e" / "link")
        os.mkfifo(d / "e" / "fifo")
        os.mknod(d / "e" / "socket", stat.S_IFSOCK | 0o644)

    assert as_user(ALICE, make) is None
    answers = {}
    for path in sorted((d / "e").rglob("*")):
        st = os.lstat(path)
        assert (st.st_uid, st.st_gid) == (ALICE, STAFF), path.name
        answers[path.name] = oct(st.st_mode)
    assert answers["dir"] == answers["below"] == "0o42755"
    return answers


@users
def setgid_file_in_a_setgid_directory(d: Path) -> object:
    """Who is not of the group cannot make a file that runs as the group."""
    _own(d / "e", 0, STAFF, 0o2777)
    flags = os.O_CREAT | os.O_WRONLY

    def make(name: str) -> None:
        os.umask(0)
        opens(d / "e" / name, flags, 0o2775)
        opens(d / "e" / f"{name}-noexec", flags, 0o2664)

    assert as_user(ALICE, lambda: make("stranger")) is None
    assert as_user(ALICE, lambda: make("member"), STAFF) is None
    answers = {name: oct(mode_of(d / "e" / name)) for name in sorted(os.listdir(d / "e"))}
    assert answers["stranger"] == "0o775"
    assert answers["member"] == "0o2775"
    return answers


@users
def moving_into_a_setgid_directory(d: Path) -> object:
    """Only what is made there gets the group."""
    _own(d / "e", 0, STAFF, 0o2777)
    os.rename(d / "f", d / "e" / "f")
    os.link(d / "g", d / "e" / "g")
    return os.stat(d / "e" / "f").st_gid, os.stat(d / "e" / "g").st_gid


@users
def setgid_bit_is_for_members(d: Path) -> object:
    _own(d / "g", ALICE, STAFF, 0o755)
    assert as_user(ALICE, lambda: os.chmod(d / "g", 0o2755)) is None
    assert mode_of(d / "g") == 0o755
    assert as_user(ALICE, lambda: os.chmod(d / "g", 0o2755), STAFF) is None
    assert mode_of(d / "g") == 0o2755
    _own(d / "e", ALICE, STAFF, 0o755)
    assert as_user(ALICE, lambda: os.chmod(d / "e", 0o2755)) is None
    assert mode_of(d / "e") == 0o755


@users
def set_id_bits_go_with_changes_by_others(d: Path) -> object:
    changes: dict[str, Callable] = {
        "write": lambda: (d / "g").open("r+b").write(b"x"),
        "truncate": lambda: os.truncate(d / "g", 3),
        "open": lambda: opens(d / "g", os.O_WRONLY | os.O_TRUNC),
        "append": lambda: (d / "g").open("ab").write(b"x"),
        "write none": lambda: os.write(os.open(d / "g", os.O_WRONLY), b""),
        "only open": lambda: opens(d / "g", os.O_RDWR),
    }
    answers = {}
    for name, change in changes.items():
        _own(d / "g", 0, 0, 0o6777)
        as_user(ALICE, change)
        answers[name] = oct(mode_of(d / "g"))
    kept = {"write none": "0o6777", "only open": "0o6777"}
    return expect(answers, others="0o777", **kept)


@users
def set_id_bits_go_with_chown_by_the_owner(d: Path) -> object:
    _own(d / "g", ALICE, ALICE, 0o6755)
    assert as_user(ALICE, lambda: os.chown(d / "g", -1, STAFF), STAFF) is None
    assert mode_of(d / "g") == 0o755


@users
def set_id_bits_stay_with_other_changes(d: Path) -> object:
    _own(d / "g", ALICE, ALICE, 0o6755)

    def change() -> None:
        os.utime(d / "g", ns=(1, 2))
        os.setxattr(d / "g", "user.x", b"y")
        (d / "g").read_bytes()

    assert as_user(ALICE, change) is None
    os.link(d / "g", d / "e" / "g")
    os.rename(d / "e" / "g", d / "e" / "moved")
    assert mode_of(d / "g") == 0o6755


@users
def linking_others_files(d: Path) -> object:
    """What fs.protected_hardlinks says, if it is set."""
    os.chmod(d / "e", 0o777)
    os.chmod(d / "f", 0o666)
    return {
        name: as_user(ALICE, lambda name=name: os.link(d / name, d / "e" / name, **_OWN))
        for name in ("f", "g", "s", "p")
    }


@users
def following_others_links_in_sticky_directories(d: Path) -> object:
    """What fs.protected_symlinks and its kin say, if they are set."""
    _own(d / "e", 0, 0, 0o1777)

    def make() -> None:
        os.symlink("../g", d / "e" / "link")
        opens(d / "e" / "file", os.O_CREAT | os.O_WRONLY)
        os.chmod(d / "e" / "file", 0o666)
        os.mkfifo(d / "e" / "fifo")
        os.chmod(d / "e" / "fifo", 0o666)

    assert as_user(ALICE, make) is None
    return {
        "follow": as_user(BOB, lambda: opens(d / "e" / "link", os.O_RDONLY)),
        "by owner": as_user(ALICE, lambda: opens(d / "e" / "link", os.O_RDONLY)),
        "create over file": as_user(BOB, lambda: opens(d / "e" / "file", os.O_CREAT | os.O_RDWR)),
        "create over fifo": as_user(BOB, lambda: opens(d / "e" / "fifo", os.O_CREAT | os.O_RDWR)),
        "open file": as_user(BOB, lambda: opens(d / "e" / "file", os.O_RDWR)),
    }


@users
def renaming_anothers_directory(d: Path) -> object:
    """A directory that changes its parent must itself be writable."""
    os.chmod(d, 0o777)
    os.chmod(d / "e", 0o777)
    os.mkdir(d / "his")
    os.chown(d / "his", BOB, BOB)
    assert as_user(ALICE, lambda: os.rename(d / "his", d / "e" / "his")) == "EACCES"
    assert as_user(ALICE, lambda: os.rename(d / "his", d / "renamed")) is None
    assert as_user(BOB, lambda: os.rename(d / "renamed", d / "e" / "his")) is None
    os.chmod(d, 0o755)


@users
def removing_anothers_file(d: Path) -> object:
    """It takes the right to write the directory, none on the file."""
    _own(d / "f", BOB, BOB, 0)
    assert as_user(ALICE, lambda: os.unlink(d / "f")) == "EACCES"
    os.chmod(d, 0o777)
    assert as_user(ALICE, lambda: os.unlink(d / "f")) is None
    os.chmod(d, 0o755)


@users
def renaming_needs_both_directories(d: Path) -> object:
    os.chmod(d / "e", 0o777)
    (d / "e" / "x").touch()
    os.mkdir(d / "closed")
    os.chmod(d / "e" / "x", 0o666)
    assert as_user(ALICE, lambda: os.rename(d / "e" / "x", d / "closed" / "x")) == "EACCES"
    assert as_user(ALICE, lambda: os.rename(d / "g", d / "e" / "g")) == "EACCES"
    os.chmod(d / "closed", 0o777)
    assert as_user(ALICE, lambda: os.rename(d / "e" / "x", d / "closed" / "x")) is None


@users
def executing_takes_x(d: Path) -> object:
    shutil.copy("/bin/true", d / "program")

    def run() -> int:
        return subprocess.run([d / "program"], timeout=10).returncode

    answers = {}
    for mode in (0o755, 0o644, 0o711, 0o750, 0o4711):
        os.chmod(d / "program", mode)
        answers[oct(mode)] = as_user(ALICE, run), seen(run)
    return expect(answers, others=(0, 0), **{"0o644": ("EACCES", "EACCES"), "0o750": ("EACCES", 0)})


@users
def setuid_program_runs_as_its_owner(d: Path) -> object:
    shutil.copy("/usr/bin/id", d / "id")
    _own(d / "id", BOB, STAFF, 0o6755)

    def run() -> list[int]:
        return [
            int(subprocess.run([d / "id", what], timeout=10, capture_output=True).stdout)
            for what in ("-u", "-g", "-ru", "-rg")
        ]

    return as_user(ALICE, run)


@users
def access_asks_for_the_real_user(d: Path) -> object:
    os.chmod(d / "f", 0o600)

    def work() -> list:
        os.setresuid(ALICE, 0, 0)
        return [
            seen(libc.faccessat, d / "f", os.R_OK, 0),
            seen(libc.faccessat, d / "f", os.R_OK, 0x200),
            seen(opens, d / "f", os.O_RDONLY),
        ]

    assert in_child(work) == ["EACCES", None, None]


@users
def effective_user_counts(d: Path) -> object:
    _own(d / "f", ALICE, ALICE, 0o600)

    def work() -> list:
        os.setegid(ALICE)
        os.seteuid(ALICE)
        hers = seen(opens, d / "f", os.O_RDWR)
        os.seteuid(0)
        os.seteuid(BOB)
        return [hers, seen(opens, d / "f", os.O_RDONLY)]

    assert in_child(work) == [None, "EACCES"]


@users
def supplementary_groups_count(d: Path) -> object:
    _own(d / "f", 0, STAFF, 0o060)
    assert as_user(ALICE, lambda: opens(d / "f", os.O_RDWR)) == "EACCES"
    assert as_user(ALICE, lambda: opens(d / "f", os.O_RDWR), STAFF) is None
    assert as_user(ALICE, lambda: opens(d / "f", os.O_RDWR), 1, 2, 3, STAFF) is None
    assert as_user(ALICE, lambda: opens(d / "f", os.O_RDWR), *range(100, 140), STAFF) is None


@users
def descriptor_is_a_permission(d: Path) -> object:
    """What root opened, anyone may use who has the descriptor."""
    os.chmod(d / "f", 0o600)
    with opened(d / "f", os.O_RDWR) as fd:

        def work() -> list:
            return [
                os.pread(fd, 7, 0),
                os.pwrite(fd, b"by bob!", 0),
                seen(os.ftruncate, fd, 100),
                seen(os.fchmod, fd, 0o666),
                seen(os.utime, fd, ns=(1, 1)),
                seen(os.getxattr, fd, "user.colour"),
                seen(fcntl.flock, fd, fcntl.LOCK_EX),
                seen(opens, f"/proc/self/fd/{fd}", os.O_RDONLY),
            ]

        got = as_user(BOB, work)
    assert got[:5] == [CONTENT[:7], 7, None, "EPERM", "EPERM"]
    assert os.stat(d / "f").st_size == 100
    return got


@users
def permission_lost_while_open(d: Path) -> object:
    _own(d / "f", ALICE, ALICE, 0o600)

    def work() -> list:
        with opened(d / "f", os.O_RDWR) as fd:
            os.chmod(d / "f", 0)
            return [os.pread(fd, 5, 0), os.pwrite(fd, b"still", 0), seen(opens, d / "f", 0)]

    assert as_user(ALICE, work) == [CONTENT[:5], 5, "EACCES"]


@users
def xattrs_follow_permissions(d: Path) -> object:
    def rights() -> tuple:
        return (
            seen(os.getxattr, d / "f", "user.colour"),
            seen(os.setxattr, d / "f", "user.x", b"y"),
            seen(os.removexattr, d / "f", "user.x"),
            sorted(seen(os.listxattr, d / "f")),
        )

    answers = {}
    for mode in (0o600, 0o604, 0o602, 0o606):
        os.chmod(d / "f", mode)
        answers[oct(mode)] = as_user(ALICE, rights)
    assert answers["0o600"] == ("EACCES", "EACCES", "EACCES", ["user.colour"])
    assert answers["0o606"] == (b"red", None, None, ["user.colour"])
    return answers


@users
def xattrs_of_sticky_directories(d: Path) -> object:
    """Only the owner may set user attributes there."""
    _own(d / "e", 0, 0, 0o1777)
    assert as_user(ALICE, lambda: os.setxattr(d / "e", "user.x", b"y")) == "EPERM"
    os.chmod(d / "e", 0o777)
    assert as_user(ALICE, lambda: os.setxattr(d / "e", "user.x", b"y")) is None


@users
def xattrs_for_root_only(d: Path) -> object:
    _own(d / "f", ALICE, ALICE, 0o600)
    os.setxattr(d / "f", "trusted.x", b"secret")

    def work() -> list:
        return [
            seen(os.setxattr, d / "f", "trusted.y", b"y"),
            seen(os.getxattr, d / "f", "trusted.x"),
            seen(os.removexattr, d / "f", "trusted.x"),
            seen(os.setxattr, d / "f", "security.capability", b"\1\0\0\2" + bytes(16)),
            os.listxattr(d / "f"),
        ]

    got = as_user(ALICE, work)
    assert got == ["EPERM", "ENODATA", "EPERM", "EPERM", ["user.colour"]]
    assert os.getxattr(d / "f", "trusted.x") == b"secret"


@users
def create_for_others_to_read(d: Path) -> object:
    """A file made without permission for its maker: the descriptor works, the name does not."""
    os.chmod(d / "e", 0o777)

    def work() -> list:
        with opened(d / "e" / "new", os.O_CREAT | os.O_RDWR, 0o004) as fd:
            os.write(fd, b"text")
            return [os.pread(fd, 9, 0), seen(opens, d / "e" / "new", os.O_RDONLY)]

    assert as_user(ALICE, work) == [b"text", "EACCES"]
    assert as_user(BOB, (d / "e" / "new").read_bytes) == b"text"


@users
def fifos_and_sockets_of_others(d: Path) -> object:
    os.chmod(d / "p", 0o602)
    return {
        "read": as_user(ALICE, lambda: opens(d / "p", os.O_RDONLY)),
        "write": as_user(ALICE, lambda: opens(d / "p", os.O_RDWR)),
    }


@users
def root_without_capabilities(d: Path) -> object:
    """Uid 0 alone does not open what its mode denies."""
    _own(d / "f", BOB, BOB, 0o600)
    code = f"import os\nos.open({os.fspath(d / 'f')!r}, os.O_RDONLY)"
    argv = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "python3", "-c", code]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20)
    assert "PermissionError" in done.stderr, done.stderr


@users
def dropped_rights_of_the_mount_point_above(d: Path) -> object:
    """Without x on the directory above, even a world-writable one is out of reach."""
    os.chmod(d / "e", 0o777)
    os.chmod(d, 0o700)
    assert as_user(ALICE, lambda: os.listdir(d / "e")) == "EACCES"
    with opened(d / "e", os.O_DIRECTORY) as fd:
        assert as_user(ALICE, lambda: os.mkdir("hers", dir_fd=fd)) is None
    os.chmod(d, 0o755)
    return os.stat(d / "e" / "hers").st_uid
