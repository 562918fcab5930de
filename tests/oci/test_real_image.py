"""A Debian image made by real tools (tests/images/build.py), mounted and worked in.

The reference is the tree that `umoci unpack` makes of the image as root. Each test runs in the mode
of the whole run: root, a plain user with fusermount3, or a user namespace.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.helpers import tree
from tests.helpers.images import ImageMount
from tests.helpers.mounts import MODE, fuse_only, is_opaque, is_whiteout, scratch
from tests.images import build

pytestmark = [fuse_only, pytest.mark.timeout(300)]

FORMS = ("oci", "oci.tar", "docker.tar", "oci-plain", "oci-zstd", "oci-mislabelled")

#: What a plain user cannot store, and the override attribute does not keep. (The kernel
#: lets "root" of a user namespace set capabilities that count in there.)
PRIVILEGED_XATTRS = ("security.", "trusted.") if MODE == "user" else ()


@pytest.fixture(scope="session")
def reference(image: Path) -> tree.Tree:
    """The tree that the mount must show in this mode."""
    return shown_here(tree.loads((image / "reference.pickle").read_bytes()))


@pytest.fixture
def base() -> Iterator[Path]:
    """A directory of the test's own."""
    with scratch() as path:
        yield path


@pytest.fixture
def mount(base: Path, image: Path) -> Iterator[ImageMount]:
    """The image as OCI layout, not mounted yet."""
    made = ImageMount(base, f"{image / 'oci'}:latest")
    try:
        yield made
    finally:
        made.drop()


def shown_here(reference: tree.Tree) -> tree.Tree:
    """The part of `reference` that this mode can show."""
    if MODE == "root":
        return reference
    expected = copy.deepcopy(reference)
    for entry in expected.values():
        entry.xattrs = {
            name: value
            for name, value in entry.xattrs.items()
            if not os.fsdecode(name).startswith(PRIVILEGED_XATTRS)
        }
        entry.uid, entry.gid = mapped("uid_map", entry.uid), mapped("gid_map", entry.gid)
    return expected


def mapped(map_file: str, number: int) -> int:
    """An id that this user namespace does not map is shown as 0."""
    for line in Path("/proc/self", map_file).read_text().splitlines():
        first, _, count = (int(field) for field in line.split())
        if first <= number < first + count:
            return number
    return 0


def assert_same(expected: tree.Tree, actual: tree.Tree, **how: set[str]) -> None:
    """Fail with a list of differences, if there are any."""
    lines = tree.compare(expected, actual, **how)
    assert not lines, "\n".join(lines)


def test_reference_has_all_features(reference: tree.Tree) -> None:
    """The image has the features it is meant to have; otherwise the other tests prove little."""
    kinds = {entry.kind for entry in reference.values()}
    assert kinds >= {"file", "dir", "symlink", "fifo", "block", "char"}
    special = b"srv/special/"
    assert reference[special + b"links/one"].nlink == 3
    assert reference[special + b"modes/file-7777"].mode == 0o7777
    assert special + b"names/" + build.LONGEST in reference
    assert all(special + b"names/" + name in reference for name in build.ODD_NAMES)
    capability = reference[special + b"modes/capable"].xattrs
    assert (b"security.capability" in capability) == (MODE != "user")
    victims = b"srv/victims/"
    assert reference[victims + b"dir-to-file"].kind == "file"
    assert reference[victims + b"file-to-dir"].kind == "dir"
    assert victims + b"gone/a" not in reference
    assert victims + b"again/b" not in reference
    assert victims + b"opaque/a" not in reference


@pytest.mark.parametrize("form", FORMS)
def test_mounted_tree_is_what_umoci_unpacks(
    base: Path, image: Path, reference: tree.Tree, form: str
) -> None:
    """Every entry, in every archive form and compression."""
    mount = ImageMount(base, str(image / form))
    try:
        mount.mount("--read-only")
        assert_same(reference, tree.record(mount.mnt))
        mount.unmount()
    finally:
        mount.drop()


def test_forms_share_layers(base: Path, image: Path) -> None:
    """A layer is unpacked once, whatever form it has."""
    mount = ImageMount(base, str(image / "oci"))
    try:
        for form in ("oci", "docker.tar"):
            mount.image = str(image / form)
            mount.mount("--read-only")
            mount.unmount()
            found = {path.name for path in mount.layers()}
            if form == "oci":
                first = found
        assert found == first
        assert len(found) >= 4
    finally:
        mount.drop()


def test_in_the_background(mount: ImageMount) -> None:
    """The command returns when the mount answers; changes without --upper are dropped."""
    done = mount.run("mount", mount.image, mount.mnt)
    assert done.returncode == 0, done.stderr
    assert all(line.startswith("fuseoverlay: warning: ") for line in done.stderr.splitlines())
    (mount.mnt / "srv/new").write_text("new")
    assert (mount.mnt / "srv/new").read_text() == "new"
    done = mount.run("unmount", mount.mnt)
    assert (done.returncode, done.stderr) == (0, "")
    mount.mount("--read-only")
    assert not (mount.mnt / "srv/new").exists()
    mount.unmount()


# Work inside


def inside(mnt: Path, script: str) -> str:
    """Run a shell script in the image's root; its output."""
    enter = ["unshare", "-r"] if MODE == "user" else []
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    done = subprocess.run(
        [*enter, "chroot", str(mnt), "/bin/sh", "-euxc", script],
        env={"PATH": path, "LC_ALL": "C.UTF-8", "HOME": "/root"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=200,
        check=False,
    )
    text = done.stdout.decode(errors="replace")
    assert done.returncode == 0, text
    return text


WORK = """
dpkg --install /root/extra.deb
test "$(extra)" = 'extra works'
dpkg --verify extra
rm /root/extra.deb
rm -r /usr/share/doc
mv /srv/victims/opaque /srv/moved
mkdir /srv/new
mv /srv/new /srv/renamed
python3 -m compileall -f -q /usr/lib/python3.11
sync
"""

#: Done from outside. A plain user must not set ACLs, not even those equivalent to a mode, on what
#: is shown as owned by others: cp reports that and fails, but has copied everything.
MOVES = f"""
mv usr/share/perl5 usr/share/perl5-moved
mv srv/special/links/other srv/victims/keep/other
cp -a srv/special/modes srv/copied {"|| true" if MODE == "user" else ""}
cp -a srv/special/names srv/copied-names {"|| true" if MODE == "user" else ""}
echo mine > srv/mine
chmod 644 srv/mine
cp -a srv/mine srv/copied-mine
"""


def work(mnt: Path, image: Path) -> None:
    """Install a package, delete, move and compile, all inside the image."""
    shutil.copyfile(image / "extra.deb", mnt / "root/extra.deb")
    inside(mnt, WORK)
    subprocess.run(["/bin/sh", "-euc", MOVES], cwd=mnt, check=True, timeout=100)


def test_work_inside(mount: ImageMount, image: Path, reference: tree.Tree) -> None:
    """The changes are shown and stay. The upper holds them and nothing else; layers hold none."""
    mount.mount("--upper", str(mount.upper))
    mount.unmount()
    layers = {path: layer_digest(path) for path in mount.layers()}

    mount.mount("--upper", str(mount.upper))
    assert_same(reference, tree.record(mount.mnt))
    work(mount.mnt, image)
    after = tree.record(mount.mnt)
    mount.unmount()
    check_result(reference, after)

    mount.mount("--upper", str(mount.upper))
    assert_same(after, tree.record(mount.mnt))
    mount.unmount()

    for path, before in layers.items():
        touched = tree.changed(before, layer_digest(path))
        assert not touched, f"{path}: touched: {some(touched)}"
    assert set(layers) == set(mount.layers())
    check_upper(mount.upper / "diff", reference, after)


def layer_digest(path: Path) -> dict[bytes, str]:
    """A digest of all that must not change in the layers, access times included."""
    return tree.digest(os.fsencode(path))


def some(paths: Iterable[object]) -> str:
    """A few of them, for a message."""
    listed = sorted(map(str, paths))
    return ", ".join(listed[:20]) + (f" and {len(listed) - 20} more" if len(listed) > 20 else "")


def check_result(before: tree.Tree, after: tree.Tree) -> None:
    """The work's visible result."""
    assert after[b"usr/bin/extra"].mode == 0o755
    assert after[b"usr/bin/extra-data"].target == b"../share/extra"
    assert after[b"etc/extra/extra.conf"].kind == "file"
    assert not [path for path in after if path.startswith(b"usr/share/doc/")]
    check_moved(before, after, b"usr/share/perl5", b"usr/share/perl5-moved")
    assert_same(subtree(before, b"srv/special/modes"), subtree(after, b"srv/copied"))
    assert_same(subtree(before, b"srv/special/names"), subtree(after, b"srv/copied-names"))
    assert_same(subtree(after, b"srv/mine"), subtree(after, b"srv/copied-mine"))
    # In `unshare -r` root's files are nobody's, and what mv copies cannot be given to nobody.
    lost = {"uid", "gid", "mode"} if MODE == "user" else set()
    check_moved(before, after, b"srv/victims/opaque", b"srv/moved", ignore=lost)
    # A directory of the layers cannot be renamed, so mv copies, which parts hard links.
    assert after[b"srv/victims/keep/other/three"].nlink == 1
    assert after[b"srv/special/links/one"].nlink == 2
    assert after[b"srv/special/links/two"].same_as == b"srv/special/links/one"
    assert after[b"srv/renamed"].kind == "dir"
    compiled = [path for path in after if path.endswith(b".pyc") and path.startswith(b"usr/lib/py")]
    assert len(compiled) > 50
    for path in compiled:
        assert path not in before or before[path].mtime_ns < after[path].mtime_ns


def check_moved(
    before: tree.Tree, after: tree.Tree, old: bytes, new: bytes, **how: set[str]
) -> None:
    """Check that what was at `old` is at `new` and only there."""
    was = subtree(before, old)
    assert len(was) > 1
    assert not subtree(after, old)
    assert_same(was, subtree(after, new), **how)


def subtree(whole: tree.Tree, top: bytes) -> tree.Tree:
    """The part at and below `top`, with paths from there."""
    return {
        path[len(top) :]: entry
        for path, entry in whole.items()
        if path == top or path.startswith(top + b"/")
    }


def check_upper(upper: Path, before: tree.Tree, after: tree.Tree) -> None:
    """Check that the upper has every change, and nothing that did not change."""
    changed = {path for path in after if path not in before or differs(before[path], after[path])}
    deleted = {path for path in before if path not in after}
    needed = ancestors(changed | deleted)
    names = hardlink_partners(before, after)
    whiteouts, held = set(), set()
    for path in everything_in(upper):
        if is_whiteout(os.path.join(os.fsencode(upper), path)):
            whiteouts.add(path)
        else:
            held.add(path)
    # Of a deleted directory only the top needs a whiteout.
    top_deleted = {path for path in deleted if os.path.dirname(path) not in deleted}
    assert whiteouts <= top_deleted, some(whiteouts - top_deleted)
    shown = {path for path in top_deleted - whiteouts if not below_opaque(upper, path)}
    assert not shown, f"not hidden: {some(shown)}"
    extra = held - changed - needed - names
    assert not extra, f"copied up although nothing changed: {some(extra)}"
    assert changed - held <= {b"."}, f"changed but not held: {some(changed - held)}"


def differs(one: tree.Entry, other: tree.Entry) -> bool:
    """Whether an entry changed in more than its link count."""
    names = {"nlink": None, "same_as": None}
    return dataclasses.replace(one, **names) != dataclasses.replace(other, **names)


def everything_in(upper: Path) -> list[bytes]:
    """Paths of all that is in the upper."""
    found = []
    top = os.fsencode(upper)
    for parent, dirs, files in os.walk(top):
        prefix = parent[len(top) + 1 :]
        found += [os.path.join(prefix, name) for name in (*dirs, *files)]
    return found


def ancestors(paths: set[bytes]) -> set[bytes]:
    """The directories above `paths`."""
    found = set()
    for path in paths:
        while path := os.path.dirname(path):
            found.add(path)
    return found


def hardlink_partners(before: tree.Tree, after: tree.Tree) -> set[bytes]:
    """Other names of files that changed or moved: they are copied up together."""
    moved = {
        entry.same_as
        for path, entry in (*before.items(), *after.items())
        if entry.same_as is not None and before.get(path) != after.get(path)
    }
    return {
        path for whole in (before, after) for path, entry in whole.items() if entry.same_as in moved
    }


def below_opaque(upper: Path, path: bytes) -> bool:
    """Whether a directory above is opaque."""
    while path := os.path.dirname(path):
        held = os.path.join(os.fsencode(upper), path)
        if os.path.isdir(held) and is_opaque(os.fsdecode(held)):
            return True
    return False
