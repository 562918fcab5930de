"""Owner, mode and type in an attribute: `xattr_permissions`, and layers that have it. Some tests
use the C program `fuse-overlayfs`."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from tests.helpers.mounts import MODE, Space, fails, fuse_only, root_only
from tests.ops.test_identity import FIRST, PODMAN, listed, mount, owner, populate
from tests.ops.test_users import may

pytestmark = fuse_only

PRIVILEGED, CONTAINERS, USER = (
    "security.fuseoverlayfs.override_stat",
    "user.containers.override_stat",
    "user.fuseoverlayfs.override_stat",
)
#: By the value of `xattr_permissions`.
ATTRIBUTES = {"1": PRIVILEGED, "2": CONTAINERS}


def check_stored(path: Path, name: str, expected: str) -> None:
    assert os.getxattr(path, name).decode() == expected, path


@pytest.mark.parametrize("permissions", ATTRIBUTES)
@pytest.mark.parametrize("mapping", ["", PODMAN])
def test_xattr_permissions(space: Space, permissions: str, mapping: str) -> None:
    """Owner, mode and type are written to the attribute, not to the file, and read from it, also by
    a mount without the option."""
    if MODE != "root" and (permissions == "1" or mapping):
        pytest.skip("needs the superuser")
    first = FIRST if mapping else 0
    uid, gid = (os.geteuid(), os.getegid())
    name = ATTRIBUTES[permissions]
    (space.lower / "f").write_bytes(b"x")
    options = ",".join(filter(None, [f"xattr_permissions={permissions}", mapping]))
    mnt = mount(space, options)
    os.chmod(mnt / "f", 0o4751)
    os.mkdir(mnt / "d", 0o750)
    os.symlink("target", mnt / "s")
    os.mkfifo(mnt / "p", 0o640)
    expected = {"f": "04751:file", "d": "0750:dir", "s": "0777:symlink", "p": "0640:pipe"}
    for _ in range(2):
        for what, text in expected.items():
            check_stored(space.upper / what, name, f"{uid}:{gid}:{text}")
            assert owner(space.upper / what) == (uid, gid)
            assert owner(mnt / what) == (first + uid, first + gid)
            with fails(errno.ENODATA, errno.EPERM):
                os.getxattr(mnt / what, name, follow_symlinks=False)
            assert name not in os.listxattr(mnt / what, follow_symlinks=False)
        assert os.getxattr(space.upper, name).endswith(b":dir")
        assert os.readlink(mnt / "s") == "target"
        assert stat.S_ISFIFO(os.lstat(mnt / "p").st_mode)
        assert stat.S_IMODE(os.stat(mnt / "f").st_mode) == 0o4751
        assert listed(mnt) == dict.fromkeys(expected, (first + uid, first + gid))
        space.extra = tuple(filter(None, mapping.split(",")))
        space.remount()
    with fails(errno.EPERM):
        os.setxattr(mnt / "f", name, b"0:0:0777:file")
    if MODE == "root":
        os.chown(mnt / "f", first + 5, -1)
        os.chown(mnt / "s", first + 6, first + 7, follow_symlinks=False)
        check_stored(space.upper / "f", name, "5:0:0751:file")
        check_stored(space.upper / "s", name, "6:7:0777:symlink")
        assert owner(mnt / "s") == (first + 6, first + 7)
        os.mkdir(mnt / "new")
        os.chmod(mnt / "new", 0o777)
        may(first + 40, (mnt / "new" / "file").touch)
        check_stored(space.upper / "new" / "file", name, "40:40:0644:file")
        assert owner(space.upper / "new" / "file") == (0, 0)
    space.unmount()


@root_only
@pytest.mark.parametrize("name", [PRIVILEGED, CONTAINERS, USER])
@pytest.mark.parametrize("mapping", ["", PODMAN])
def test_layers_with_attributes(space: Space, name: str, mapping: str) -> None:
    """All three names are read, in a lower and in an upper, which keeps using its own; in the forms
    of old and new versions."""
    first = FIRST if mapping else 0
    values = {"old": "5:6:100640", "plain": "7:8:0640", "new": "9:10:0640:file"}
    owners = {"old": (5, 6), "plain": (7, 8), "new": (9, 10)}
    for layer in (space.lower, space.upper):
        os.setxattr(layer, name, b"0:0:0755")
        for form, value in values.items():
            path = layer / f"{layer.name} {form}"
            path.write_bytes(b"x")
            os.setxattr(path, name, value.encode())
    mnt = mount(space, mapping or "index=on")
    for layer in (space.lower, space.upper):
        for form, (uid, gid) in owners.items():
            path = mnt / f"{layer.name} {form}"
            assert owner(path) == (first + uid, first + gid)
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o640
            assert listed(mnt)[path.name] == owner(path)
            os.chmod(path, 0o600)
            check_stored(space.upper / path.name, name, f"{uid}:{gid}:0600:file")
    (mnt / "made").touch()
    check_stored(space.upper / "made", name, "0:0:0644:file")


@root_only
def test_attributes_of_another_layer(space: Space) -> None:
    """A copy has what the lower's attribute says in the upper's own attribute."""
    os.setxattr(space.lower, USER, b"0:0:0755")
    (space.lower / "f").write_bytes(b"x")
    os.setxattr(space.lower / "f", USER, b"5:6:0640")
    mnt = mount(space, "xattr_permissions=1")
    os.utime(mnt / "f", ns=(1, 1))
    check_stored(space.upper / "f", PRIVILEGED, "5:6:0640:file")
    assert os.listxattr(space.upper / "f").count(USER) == 0
    space.unmount()
    for path in (space.upper, space.work):
        shutil.rmtree(path)
        path.mkdir()
    mnt = mount(space, "squash_to_root")
    os.utime(mnt / "f", ns=(1, 1))
    assert owner(space.upper / "f") == (5, 6)
    assert stat.S_IMODE(os.stat(space.upper / "f").st_mode) == 0o640


@pytest.mark.skipif(MODE != "userns", reason="of a user namespace with one id")
def test_owner_that_cannot_be_given(space: Space) -> None:
    """An object whose attribute has an id that the user namespace lacks belongs to root, and can
    still be copied up."""
    os.setxattr(space.lower, CONTAINERS, b"0:0:0755:dir")
    (space.lower / "f").write_bytes(b"x")
    os.setxattr(space.lower / "f", CONTAINERS, b"5:6:0640:file")
    mnt = mount(space, "index=on")
    assert owner(mnt / "f") == (0, 0)
    os.chmod(mnt / "f", 0o4600)
    st = os.stat(space.upper / "f")
    assert (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)) == (0, 0, 0o4600)
    space.settle()


@root_only
@pytest.mark.parametrize("permissions", ["1", "2"])
def test_fuse_overlayfs_reads_our_upper(space: Space, permissions: str) -> None:
    """As a lower, it shows what was made, copied up and given to others."""
    populate(space.lower)
    mnt = mount(space, f"xattr_permissions={permissions}")
    os.mkdir(mnt / "new")
    for number, name in enumerate(("f0-0", "f5-6", "d9-10", "new")):
        os.chown(mnt / name, number + 20, number + 30)
        os.chmod(mnt / name, 0o2710)
    shown = {name: os.lstat(mnt / name) for name in ("f0-0", "f5-6", "d9-10", "new")}
    space.unmount()
    space.lowers = [space.upper]
    space.upper, space.work = space.base / "upper 2", space.base / "work 2"
    space.upper.mkdir()
    space.work.mkdir()
    mount(space, "noatime", "fuse-overlayfs")
    for name, st in shown.items():
        seen = os.lstat(mnt / name)
        assert (seen.st_uid, seen.st_gid, seen.st_mode) == (st.st_uid, st.st_gid, st.st_mode), name


@root_only
@pytest.mark.parametrize("permissions", ["1", "2"])
def test_we_read_an_upper_of_fuse_overlayfs(space: Space, permissions: str) -> None:
    """We use it as an upper and change it further."""
    os.setxattr(space.upper, PRIVILEGED if permissions == "1" else USER, b"0:0:755")
    mnt = mount(space, f"xattr_permissions={permissions}", "fuse-overlayfs")
    os.mkdir(mnt / "dir")
    (mnt / "dir" / "file").write_bytes(b"x")
    os.chmod(mnt / "dir" / "file", 0o4711)
    os.chown(mnt / "dir" / "file", 5, 6)
    os.chown(mnt / "dir", 7, 8)
    was = {name: os.lstat(mnt / name) for name in ("dir", "dir/file")}
    space.unmount()
    mnt = mount(space, f"xattr_permissions={permissions}")
    for name, st in was.items():
        seen = os.lstat(mnt / name)
        assert (seen.st_uid, seen.st_gid, seen.st_mode) == (st.st_uid, st.st_gid, st.st_mode), name
    os.chmod(mnt / "dir" / "file", 0o600)
    used = PRIVILEGED if permissions == "1" else USER
    check_stored(space.upper / "dir" / "file", used, "5:6:0600:file")


CAPABILITY, KEPT = "security.capability", "user.containers.override_security.capability"
NET_RAW = b"\1\0\0\2" + bytes.fromhex("0020000000000000") + bytes(8)


@pytest.mark.skipif(MODE != "user", reason="of a plain user's mount")
def test_capabilities_of_a_plain_user(space: Space) -> None:
    """In their own user namespace users may set them; they are kept, and a write clears them."""
    (space.lower / "f").write_bytes(b"x")
    mnt = mount(space, "xattr_permissions=2")
    subprocess.run(["unshare", "-r", "setcap", "cap_net_raw+ep", mnt / "f"], check=True, timeout=30)
    for _ in range(2):
        assert CAPABILITY not in os.listxattr(space.upper / "f")
        assert os.getxattr(mnt / "f", CAPABILITY) == os.getxattr(space.upper / "f", KEPT)
        assert os.listxattr(mnt / "f") == [CAPABILITY]
        with fails(errno.ENODATA):
            os.getxattr(mnt / "f", KEPT)
        space.remount()
    with open(mnt / "f", "ab") as file:
        file.write(b"y")
    assert os.listxattr(mnt / "f") == []
    assert KEPT not in os.listxattr(space.upper / "f")
    space.unmount()


@pytest.mark.skipif(MODE != "user", reason="of a plain user's mount")
def test_groups_of_a_user_namespace(space: Space) -> None:
    """A file may be given to any group that is mapped."""
    (space.lower / "f").write_bytes(b"x")
    mnt = mount(space, "xattr_permissions=2")
    script = f"chgrp 5 {mnt}/f && stat -c %g {mnt}/f"
    argv = ["unshare", "-r", "--map-auto", "sh", "-c", script]
    done = subprocess.run(argv, capture_output=True, timeout=30)
    assert done.stdout == b"5\n", done.stderr
    space.unmount()


@root_only
@pytest.mark.parametrize("name", [CONTAINERS, USER])
def test_capabilities_in_layers(space: Space, name: str) -> None:
    """Those kept in an attribute count; real ones beside it do not. A copy has them in the form of
    its own layer."""
    os.setxattr(space.lower, name, b"0:0:0755:dir")
    for what in ("kept", "real"):
        (space.lower / what).write_bytes(b"x")
        os.setxattr(space.lower / what, name, b"0:0:0755:file")
    os.setxattr(space.lower / "kept", KEPT, NET_RAW)
    os.setxattr(space.lower / "real", CAPABILITY, NET_RAW)
    for options, where in (("userxattr", CAPABILITY), ("xattr_permissions=2", KEPT)):
        mnt = mount(space, options)
        for _ in range(2):
            assert os.getxattr(mnt / "kept", CAPABILITY) == NET_RAW
            assert os.listxattr(mnt / "kept") == [CAPABILITY]
            assert os.listxattr(mnt / "real") == []
            with fails(errno.ENODATA):
                os.getxattr(mnt / "real", CAPABILITY)
            for what in ("kept", "real"):
                os.utime(mnt / what, ns=(1, 1))
        assert os.getxattr(space.upper / "kept", where) == NET_RAW
        assert CAPABILITY in os.listxattr(space.upper / "kept") or where == KEPT
        os.chown(mnt / "kept", 5, 6)
        assert os.listxattr(mnt / "kept") == []
        os.setxattr(mnt / "kept", CAPABILITY, NET_RAW)
        os.truncate(mnt / "kept", 0)
        assert os.listxattr(mnt / "kept") == []
        space.unmount()
        for path in (space.upper, space.work):
            shutil.rmtree(path)
            path.mkdir()
