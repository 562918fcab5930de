"""Objects of a lower that the owner of their directory exchanges between two calls of the daemon.

Each operation is repeated, with objects of its own, for each call that the daemon makes: right
before that call the object and another one change places, for good or for that call alone. No
result may combine properties of both: neither what is shown, nor a copy, nor an index entry.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fuseoverlay.system.syscalls import file_handle
from tests.helpers.faults import Faults
from tests.helpers.mounts import MODE, Space, fuse_only, overlay_xattr, root_only, scratch

pytestmark = [fuse_only, pytest.mark.timeout(120)]

#: More than what `_trials` needs for any operation.
MOST = 300
ACL, CAPABILITY, OVERRIDE = (
    "system.posix_acl_access",
    "security.capability",
    "user.containers.override_stat",
)
_EMPTY_ACL = struct.pack("<I", 2)


@dataclass(frozen=True)
class Kind:
    """Properties that distinguish the objects of one owner from those of the other."""

    name: str
    uid: int
    mode: int
    content: bytes
    mtime: int
    acl: bytes
    capability: bytes
    override: bytes

    def make(self, path: Path, *, overridden: bool) -> None:
        path.write_bytes(self.content)
        os.setxattr(path, f"user.{self.name}", self.name.encode())
        os.setxattr(path, "user.whose", self.name.encode())
        if overridden:
            os.setxattr(path, OVERRIDE, self.override)
        path.chmod(self.mode)
        if MODE == "root":
            os.chown(path, self.uid, self.uid)
            path.chmod(self.mode)
            if not overridden:
                os.setxattr(path, ACL, self.acl)
                os.setxattr(path, CAPABILITY, self.capability)
        os.utime(path, ns=(self.mtime, self.mtime))


def _acl(user: int, bits: int) -> bytes:
    """`user::bits, user:USER:bits, group::---, mask::bits, other::---`, struct posix_acl_xattr."""
    none = 0xFFFFFFFF
    entries = ((1, bits, none), (2, bits, user), (4, 0, none), (16, bits, none), (32, 0, none))
    return _EMPTY_ACL + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def _capability(permitted: int) -> bytes:
    """struct vfs_cap_data of version 2, effective."""
    return struct.pack("<5I", 0x02000001, permitted, 0, 0, 0)


HIS = Kind(
    "his", 4001, 0o755, b"his content\n", 10**18, _acl(4001, 7), _capability(1),
    b"4001:4001:0755:file",
)  # fmt: skip
ROOTS = Kind(
    "roots", 0, 0o700, b"content of root's, longer\n", 2 * 10**18, _acl(77, 6), _capability(1 << 7),
    b"0:0:04711:file",
)  # fmt: skip
KINDS = (HIS, ROOTS)


def _append(path: Path) -> None:
    with open(path, "ab", buffering=0) as stream:
        stream.write(b"+")


FORMS = ["plain", "linked", "overridden"] if MODE == "root" else ["plain", "linked"]
CHANGES: dict[str, Callable[[Path], object]] = {
    "chmod": lambda path: path.chmod(0o550),
    "setxattr": lambda path: os.setxattr(path, "user.new", b"new"),
    "append": _append,
    "link": lambda path: os.link(path, f"{path}.link"),
    "rename": lambda path: path.rename(f"{path}.moved"),
    "unlink": os.unlink,
}


def _facts(path: Path, *, real: bool = False) -> dict[str, object]:
    """The properties that tell whose an object is; `real`: it is in a layer. `CHANGES` change none
    of them, except that a write clears capabilities."""
    content = path.read_bytes().rstrip(b"+")
    facts: dict[str, object] = {"uid": path.lstat().st_uid, "content": content}
    names = [n for n in os.listxattr(path) if ".overlay." not in n and n not in ("user.new", ACL)]
    facts |= {name: os.getxattr(path, name) for name in names if real or name != OVERRIDE}
    with contextlib.suppress(OSError):
        facts["user in the ACL"] = os.getxattr(path, ACL)[16:20]
    return facts


def _whose(facts: dict[str, object], known: dict[str, dict[str, object]]) -> str:
    """The kind of an object; its properties if it is of neither kind."""
    for name, expected in known.items():
        if facts == expected:
            return name
        if facts == {key: value for key, value in expected.items() if key != CAPABILITY}:
            return name
    return repr(facts)


def _origins(space: Space, names: list[str]) -> dict[bytes, str]:
    """The kind of the object that each handle names."""
    fd = os.open(space.lower / "d", os.O_PATH)
    try:
        return {file_handle(fd, os.fsencode(name))[1]: name.partition("-")[0] for name in names}
    finally:
        os.close(fd)


@contextlib.contextmanager
def _space(*, linked: bool, overridden: bool) -> Iterator[Space]:
    """A space with MOST objects of each kind in a directory `d`, with the same names except for the
    kind; their second names are in `e`."""
    with scratch() as base:
        space = Space(base)
        for name in ("d", "e"):
            (space.lower / name).mkdir()
        if overridden:
            os.setxattr(space.lower, OVERRIDE, b"0:0:0755:dir")
        for number in range(MOST):
            for kind in KINDS:
                path = space.lower / "d" / f"{kind.name}-{number}"
                kind.make(path, overridden=overridden)
                if linked:
                    os.link(path, space.lower / "e" / path.name)
        try:
            yield space
        finally:
            space.drop()


def _trials(
    faults: Faults, space: Space, operation: Callable[[Path], object]
) -> Iterator[tuple[int, str]]:
    """For each call in turn, exchange objects right before it, for good and for that call alone,
    looked up before or not. Yields after each the number of the objects and a description."""
    numbers = iter(range(1, MOST))
    for known, times in itertools.product((False, True), (0, 1)):
        for call in itertools.count(1):
            number = next(numbers)
            one, two = (space.lower / "d" / f"{kind.name}-{number}" for kind in KINDS)
            path = space.mnt / "d" / one.name
            if known:
                path.lstat()
            with faults.exchanging(call, one, two, times=times):
                try:
                    operation(path)
                except OSError as exc:
                    assert exc.errno == errno.ESTALE, (number, faults.failed, exc)
            yield number, f"call {call}, {faults.failed}, {known=}, {times=}"
            if not faults.failed:
                assert call > 1 or known
                break


def _check_copies(
    space: Space, known: dict[str, dict[str, object]], calls: dict[int, str]
) -> Iterator[str]:
    origins = _origins(space, os.listdir(space.lower / "d"))
    for name in os.listdir(space.upper / "d"):
        path = space.upper / "d" / name
        number = int(name.split("-")[1].split(".")[0])
        if not stat.S_ISREG(path.lstat().st_mode):
            continue
        whose = _whose(_facts(path, real=True), known)
        if whose not in known:
            yield f"{name} ({calls[number]}): the copy has {whose}"
        origin = overlay_xattr(path, "origin")
        of = origins.get(origin[21:]) if origin else whose
        if of != whose:
            yield f"{name} ({calls[number]}): the copy of {whose} has the origin of {of}"


def _check_names(
    space: Space, known: dict[str, dict[str, object]], calls: dict[int, str], when: str
) -> Iterator[str]:
    """What is shown is of one kind; under names that were not exchanged, of their own kind."""
    for place in ("d", "e"):
        for path in (space.mnt / place).iterdir():
            number = int(path.name.split("-")[1].split(".")[0])
            if number not in calls:
                continue
            try:
                facts = _facts(path)
            except OSError as exc:
                # The object that was there for one call is gone.
                assert exc.errno == errno.ESTALE and when == "in the mount", path
                continue
            whose = _whose(facts, known)
            if whose not in known or (place == "e" and not path.name.startswith(f"{whose}-")):
                yield f"{place}/{path.name} ({calls[number]}) {when}: {whose}"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("change", CHANGES)
def test_changes(change: str, form: str) -> None:
    """In a mix-up a program of one owner could get the capabilities of the other's."""
    with _space(linked=form == "linked", overridden=form == "overridden") as space:
        names = {kind.name: space.lower / "d" / f"{kind.name}-0" for kind in KINDS}
        layers = {name: _facts(path, real=True) for name, path in names.items()}
        faults = Faults(space.base / "faults")
        mnt = faults.mount(space)
        shown = {name: _facts(mnt / "d" / path.name) for name, path in names.items()}
        calls = dict(_trials(faults, space, CHANGES[change]))
        if form == "overridden":
            # The upper keeps no attribute: its files really have what the lower's attribute says.
            layers = {kind.name: _dressed(layers[kind.name], kind) for kind in KINDS}
        wrong = list(_check_copies(space, layers, calls))
        wrong += _check_names(space, shown, calls, "in the mount")
        space.remount()
        wrong += _check_names(space, shown, calls, "in the next mount")
        space.unmount()
        assert not wrong, "\n".join(wrong)


def _dressed(facts: dict[str, object], kind: Kind) -> dict[str, object]:
    facts = {name: value for name, value in facts.items() if name != OVERRIDE}
    return facts | {"uid": int(kind.override.split(b":")[0])}


#: What is read through a descriptor, by its name in /proc.
QUESTIONS: dict[str, Callable[[str], object]] = {
    "attribute": lambda path: os.getxattr(path, "user.whose"),
    "all attributes": lambda path: {n for n in os.listxattr(path) if ".overlay." not in n},
    "status": lambda path: _identity(os.stat(path)),
}
if MODE == "root":
    QUESTIONS |= {
        "ACL": lambda path: os.getxattr(path, ACL),
        "capability": lambda path: os.getxattr(path, CAPABILITY),
    }


def _identity(st: os.stat_result) -> tuple[int, int, int]:
    return st.st_uid, st.st_size, st.st_mtime_ns


@pytest.mark.parametrize("times", [0, 1])
@pytest.mark.parametrize("question", QUESTIONS)
def test_answers(question: str, times: int) -> None:
    """Nothing of another object is returned for an open one."""
    ask = QUESTIONS[question]
    with _space(linked=False, overridden=False) as space:
        expected = ask(str(space.lower / "d" / "his-0"))
        faults = Faults(space.base / "faults")
        faults.mount(space)
        wrong = []
        for number in range(MOST):
            one, two = (space.lower / "d" / f"{kind.name}-{number}" for kind in KINDS)
            fd = os.open(space.mnt / "d" / one.name, os.O_PATH)
            try:
                with faults.exchanging(number + 1, one, two, times=times):
                    try:
                        answer = ask(f"/proc/self/fd/{fd}")
                    except OSError as exc:
                        assert exc.errno == errno.ESTALE, faults.failed
                        answer = expected
            finally:
                os.close(fd)
            if answer != expected:
                wrong.append(f"at call {number} ({faults.failed}): {answer!r}")
            if not faults.failed:
                break
        space.unmount()
        assert not wrong, "\n".join(wrong)


@root_only
@pytest.mark.parametrize("linked", [False, True], ids=["", "linked"])
def test_owner_in_an_attribute(linked: bool) -> None:
    """No program becomes setuid by the attribute of another object."""
    with _space(linked=linked, overridden=True) as space:
        faults = Faults(space.base / "faults")
        mnt = faults.mount(space)
        expected = {_status(mnt / "d" / f"{kind.name}-0") for kind in KINDS}
        found: list[tuple[int, int, int]] = []
        wrong = []
        for _, what in _trials(faults, space, lambda path: found.append(_status(path))):
            wrong += [f"{what}: {status}" for status in found if status not in expected]
            found.clear()
        space.unmount()
        assert not wrong, "\n".join(wrong)


def _status(path: Path) -> tuple[int, int, int]:
    st = path.lstat()
    return st.st_uid, st.st_mode, st.st_size


@pytest.mark.parametrize("times", [0, 1])
def test_listing(times: int) -> None:
    """A file with attributes, such as an ACL, is not listed as one without: the mode alone would
    then decide who may read it."""
    with scratch() as base:
        space = Space(base)
        for number in range(40):
            path = space.lower / str(number)
            path.mkdir()
            ROOTS.make(path / "roots", overridden=False)
            (path / "his").write_bytes(HIS.content)
        expected = {HIS: set(), ROOTS: set(os.listxattr(path / "roots"))}
        faults = Faults(space.base / "faults")
        mnt = faults.mount(space)
        wrong = []
        try:
            for number in range(40):
                lower, path = space.lower / str(number), mnt / str(number)
                with faults.exchanging(number + 1, lower / "his", lower / "roots", times=times):
                    names = sorted(entry.name for entry in os.scandir(path))
                assert names == ["his", "roots"]
                for kind, found in map(_attributes, (path / name for name in names)):
                    if found is not None and found != expected[kind]:
                        wrong.append(f"call {number + 1}, {faults.failed}: {kind.name}, {found}")
                if not faults.failed:
                    break
            else:
                pytest.fail("there were more calls than directories")
            space.unmount()
        finally:
            space.drop()
        assert not wrong, "\n".join(wrong)


def _attributes(path: Path) -> tuple[Kind, set[str] | None]:
    """What it is, by its size, and its attributes; None: it is gone from its place."""
    fd = os.open(path, os.O_PATH)
    try:
        kind = HIS if os.fstat(fd).st_size == len(HIS.content) else ROOTS
        return kind, set(os.listxattr(f"/proc/self/fd/{fd}"))
    except OSError as exc:
        assert exc.errno == errno.ESTALE, path
        return ROOTS, None
    finally:
        os.close(fd)


@pytest.mark.parametrize("times", [0, 1])
@pytest.mark.parametrize("lowers", [1, 2])
def test_directories(lowers: int, times: int) -> None:
    """A user who may list one directory does not see the names in the other."""
    with scratch() as base:
        space = Space(base, lowers)
        names = [kind.name for kind in KINDS]
        for number in range(30):
            for layer in space.lowers:
                for name, mode in zip(names, (0o755, 0o700), strict=True):
                    path = layer / f"{name}-{number}"
                    path.mkdir()
                    path.chmod(mode)
            # More than is listed with attributes; those of the other have none.
            for name in names:
                for entry in range(200):
                    (space.lower / f"{name}-{number}" / f"{name}-{entry}-{'x' * 100}").touch()
        faults = Faults(space.base / "faults")
        mnt = faults.mount(space)
        wrong = []
        try:
            for number in range(30):
                one, two = (space.lower / f"{name}-{number}" for name in names)
                with faults.exchanging(number + 1, one, two, times=times):
                    mode, found = _listed(mnt / one.name)
                owners = {name.partition("-")[0] for name in found}
                whose = "his" if mode & 0o077 else "roots"
                if owners - {whose}:
                    wrong.append(f"call {number + 1}, {faults.failed}: {owners} in {whose}")
                if not faults.failed:
                    break
            space.unmount()
        finally:
            space.drop()
        assert not wrong, "\n".join(wrong)


def _listed(path: Path) -> tuple[int, list[str]]:
    """The mode of a directory and the names in it; nothing if it is gone from its place."""
    mode = path.stat().st_mode
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError as exc:
        assert exc.errno == errno.ESTALE, path
        return mode, []
    try:
        return os.fstat(fd).st_mode, os.listdir(fd)
    except OSError as exc:
        assert exc.errno == errno.ESTALE, path
        return mode, []
    finally:
        os.close(fd)
