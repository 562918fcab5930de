"""The merged tree and the upper directory of one case, in a form that can be compared.

Not compared, because no two filesystems or mounts agree on it: size of directories, access
and change times (the cases that are about them ask for them), block counts. Link counts
of directories differ by design (one case says so).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from tests.differential.calls import attempt, error_name, fold, listing, xattrs
from tests.helpers.tree import file_digest, show

#: What is observed: by path, then by field.
Seen = dict[str, dict[str, object]]

#: Overlay attributes of the upper that are bookkeeping of one implementation. `impure` and
#: `origin` of a directory only speed up the kernel's listings, and what they are for is
#: compared after mounting the upper crosswise: st_ino, d_ino.
_BOOKKEEPING = {"impure", "nlink", "uuid"}


def numbers_of(roots: list[Path]) -> dict[int, str]:
    """What has which number in the layers."""
    return {
        os.lstat(path).st_ino: f"{root.name}/{path.relative_to(root)}"
        for root in roots
        for path in root.rglob("*")
    }


def merged(root: Path, known: dict[int, str], numbers: dict[str, int] | None = None) -> Seen:
    """The case's tree as a mount shows it. `known` says which numbers the lowers have: an
    object must have that of the lower object it comes from, others the same for all their
    names. The numbers as they are go to `numbers`."""
    found: Seen = {}
    first: dict[int, str] = {}
    numbers = {} if numbers is None else numbers
    for path, full, st, entry in sorted(_walk(os.fsencode(root)), key=lambda item: item[0]):
        name = show(path)
        if isinstance(st, str):
            found[name] = {"lstat": st}
            continue
        about = _common(full, st)
        numbers[name] = st.st_ino
        about["st_ino"] = known.get(st.st_ino) or "new, as " + first.setdefault(st.st_ino, name)
        about["d_ino"] = entry is None or entry.ino == st.st_ino
        about["d_type"] = entry is None or entry.kind == stat.S_IFMT(st.st_mode) >> 12
        about["xattrs"] = xattrs(full)
        found[name] = about
    return found


def upper(root: Path, lowers: list[Path]) -> Seen:
    """The case's part of an upper directory: both dialects of whiteouts look the same, and
    both namespaces of overlay attributes."""
    found: Seen = {}
    for path, full, st, _ in sorted(_walk(os.fsencode(root)), key=lambda item: item[0]):
        if isinstance(st, str):
            found[show(path)] = {"lstat": st}
            continue
        about = _common(full, st)
        overlay, others = _fold_namespaces(xattrs(full))
        if (stat.S_ISCHR(st.st_mode) and st.st_rdev == 0) or overlay.pop("whiteout", None):
            found[show(path)] = {"kind": "whiteout"}
            continue
        about["xattrs"] = others
        if stat.S_ISREG(st.st_mode):
            _metacopy(about, overlay, st)
        if not stat.S_ISREG(st.st_mode) and not stat.S_ISDIR(st.st_mode):
            overlay.pop("origin", None)
        inside = os.path.join(root.name, os.fsdecode(path))
        if stat.S_ISDIR(st.st_mode):
            overlay.pop("origin", None)
            # An opaque mark over nothing says nothing; the kernel sometimes makes one.
            about["opaque"] = overlay.pop("opaque", None) == b"y" and _below(lowers, inside)
        else:
            # nlink of the upper counts the kernel's index, and ours, which are private.
            del about["nlink"]
        found[show(path)] = about | {
            name: value for name, value in overlay.items() if name not in _BOOKKEEPING
        }
    return found


def _metacopy(about: dict[str, object], overlay: dict[str, object], st: os.stat_result) -> None:
    """What is said of a metacopy: that it is one. The kernel makes one of an empty file too,
    and leaves the path of the data out where the name tells it; what that leads to shows in
    the content when the upper is mounted again."""
    metacopy = overlay.pop("metacopy", None) is not None
    overlay.pop("redirect", None)
    if st.st_size:
        about["metacopy"] = metacopy
    if metacopy or not st.st_size:
        del about["content"]
    # Whether it is the right one shows in st_ino after mounting again.
    overlay.pop("origin", None)


def _below(lowers: list[Path], inside: str) -> bool:
    """Whether the topmost lower that knows the path has a directory there."""
    for lower in lowers:
        if os.path.lexists(lower / inside):
            return stat.S_ISDIR(os.lstat(lower / inside).st_mode)
    return False


def _fold_namespaces(found: object) -> tuple[dict[str, object], dict[str, object]]:
    """(overlay attributes by bare name, all others); the escaped ones are others."""
    overlay: dict[str, object] = {}
    others: dict[str, object] = {}
    for name, value in found.items() if isinstance(found, dict) else ():
        for prefix in ("trusted.overlay.", "user.overlay."):
            if name.startswith(prefix) and not name.startswith(prefix + "overlay."):
                overlay[name.removeprefix(prefix)] = value
                break
        else:
            others[name] = value
    return overlay, others


def _common(full: bytes, st: os.stat_result) -> dict[str, object]:
    about: dict[str, object] = {
        "kind": stat.filemode(st.st_mode)[0],
        "mode": oct(stat.S_IMODE(st.st_mode)),
        "owner": (st.st_uid, st.st_gid),
        "mtime": fold(st.st_mtime_ns),
    }
    if not stat.S_ISDIR(st.st_mode):
        about |= {"size": st.st_size, "nlink": st.st_nlink, "rdev": st.st_rdev}
    if stat.S_ISREG(st.st_mode):
        about["content"] = file_digest(full)
    elif stat.S_ISLNK(st.st_mode):
        about["content"] = attempt(os.readlink, full)
    return about


def _walk(root: bytes) -> Iterator[tuple]:
    """(path, full path, status or errno, entry in the listing) of everything from the root on."""
    try:
        yield b".", root, os.lstat(root), None
    except OSError as exc:
        yield b".", root, error_name(exc), None
        return
    pending = [b""]
    while pending:
        prefix = pending.pop()
        try:
            entries = listing(os.path.join(root, prefix))
        except OSError as exc:
            yield prefix + b"(listing)", root, error_name(exc), None
            continue
        for entry in entries:
            path = prefix + entry.name
            full = os.path.join(root, path)
            try:
                st = os.lstat(full)
            except OSError as exc:
                yield path, full, error_name(exc), entry
                continue
            yield path, full, st, entry
            if stat.S_ISDIR(st.st_mode):
                pending.append(path + b"/")


def compare(reference: Seen, ours: Seen, *, numbers: bool = True) -> list[str]:
    """One line for each difference; `numbers`: whether inode numbers count."""
    # Where the kernel itself gets d_ino wrong (in directories of an upper that it did not mark
    # "impure") there is nothing to compare with.
    lines = []
    for path in sorted(reference.keys() | ours.keys()):
        left, right = reference.get(path), ours.get(path)
        if left is None or right is None:
            lines.append(f"{path}: {'missing' if right is None else f'unexpected {right}'}")
            continue
        lines += [
            f"{path}: {what} should be {left.get(what)!r}, is {right.get(what)!r}"
            for what in sorted(left.keys() | right.keys())
            if left.get(what) != right.get(what) and (what != "d_ino" or left.get("d_ino"))
            if numbers or what not in ("st_ino", "d_ino")
        ]
    return lines
