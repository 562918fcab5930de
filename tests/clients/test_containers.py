"""What is done in containers has the same outcome with fuseoverlay as without.

The reference is podman without a mount program, where each container is a copy of its image.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.clients.conftest import BASE
from tests.clients.layers import Layer, differences, layers
from tests.clients.store import Store
from tests.helpers.mounts import MODE
from tests.helpers.tree import Tree, compare, record

pytestmark = pytest.mark.timeout(300)

# Logs, caches and backups hold times or the order of hash tables.
_WORK = """\
set -e
export SOURCE_DATE_EPOCH=1000000000 DEBIAN_FRONTEND=noninteractive
dpkg -i /extra/extra.deb
extra
useradd --create-home --uid 4000 somebody
rm -rf /usr/share/doc
mkdir /usr/share/doc
echo new > /usr/share/doc/new
chown -R 33:34 /usr/share/common-licenses
chmod 02755 /usr/share/common-licenses
mv /etc/issue /etc/issue.old
ln -s issue.old /etc/issue
mv /usr/share/pixmaps /usr/share/pictures
sed -i 's/^root:[^:]*:/root:x:/' /etc/shadow
ln /etc/debian_version /etc/version
echo changed >> /etc/version
set -- $(stat -c '%i %h' /etc/debian_version /etc/version)
[ "$1" = "$3" ] && [ "$2 $4" = "2 2" ]
cmp /etc/debian_version /etc/version
touch /usr/bin/gunzip
[ "$(stat -c %i /usr/bin/uncompress)" = "$(stat -c %i /usr/bin/gunzip)" ]
mkfifo /var/tmp/fifo
apt-cache gencaches
apt-cache show extra
rm -rf /var/cache/apt/* /var/log/* /var/cache/ldconfig
"""

# A database's way: change it in place through memory, then put a new one in its place.
_REWRITE = """\
import mmap, os, sys
path = sys.argv[1]
with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
    at = memory.find(b"Package: extra")
    memory[at:at + 14] = b"Package: EXTRA"
    memory.flush()
with open(path, "rb") as old, open(path + "-new", "wb") as new:
    text = old.read()
    assert b"Package: EXTRA" in text
    new.write(text.replace(b"Package: EXTRA", b"Package: extra"))
    os.fsync(new.fileno())
os.rename(path, path + "-old")
os.rename(path + "-new", path)
"""


@dataclass
class Outcome:
    """What podman shows of a container when its work is done."""

    said: str
    tree: Tree
    diff: set[str]
    committed: Tree
    layer: Layer


@contextlib.contextmanager
def container(store: Store, *options: object, running: bool = True) -> Iterator[str]:
    """A container that does nothing by itself, removed afterwards; its id."""
    start = ("run", "--detach") if running else ("create",)
    name = store.podman(*start, *options, BASE, "sleep", "inf")
    try:
        yield name
    finally:
        store.remove(name)


def shell(store: Store, name: str, script: str, *, check: bool = True) -> str:
    """What a script in a running container says."""
    return store.podman("exec", name, "sh", "-c", script, check=check)


def outcome(store: Store, name: str, said: str, image: str) -> Outcome:
    """Stop a container, and record all that podman says of it; it becomes an image."""
    store.podman("stop", "--time=0", name)
    tree = store.tree(store.podman("mount", name))
    store.podman("umount", name)
    # See `Store.mounted`.
    tree[b"."].mode = 0o755
    diff = set(store.podman("diff", name).splitlines())
    store.podman("commit", "--quiet", name, image)
    return Outcome(said, tree, diff, store.mounted(image), layers(store, image)[-1])


def work(store: Store, image: Path) -> Outcome:
    """Do the work in a container."""
    with container(store, "--name=work", f"--volume={image}:/extra:ro") as name:
        said = shell(store, name, _WORK)
        root = store.podman("mount", name)
        store.run(sys.executable, "-c", _REWRITE, f"{root}/var/lib/dpkg/status")
        said += shell(store, name, "dpkg --list extra; id somebody; find /usr/share/doc")
        return outcome(store, name, said, "localhost/worked")


@pytest.fixture(scope="module")
def worked(ours: Store, reference: Store, image: Path) -> tuple[Outcome, Outcome]:
    """The outcome of the work with fuseoverlay, and that in a plain directory."""
    return work(ours, image), work(reference, image)


def check_same(expected: Tree, actual: Tree) -> None:
    """Fail where two trees differ."""
    lines = compare(expected, actual)
    assert not lines, "\n".join(lines)


def test_work(worked: tuple[Outcome, Outcome]) -> None:
    """A package is installed, a user made, a tree removed, owners changed, names linked."""
    ours, reference = worked
    assert ours.said == reference.said
    assert b"usr/bin/extra" in ours.tree
    assert ours.tree[b"etc/version"].nlink == 2
    assert ours.tree[b"usr/share/common-licenses/GPL-3"].uid == 33
    check_same(reference.tree, ours.tree)


def test_diff(worked: tuple[Outcome, Outcome]) -> None:
    """`podman diff` of the container."""
    ours, reference = worked
    assert {"A /usr/share/doc/new", "D /usr/share/pixmaps"} <= ours.diff
    assert ours.diff == reference.diff


def test_commit(worked: tuple[Outcome, Outcome]) -> None:
    """`podman commit` keeps what the container showed, as a layer of the same entries."""
    ours, reference = worked
    assert ours.layer["usr/share/pixmaps"] is None
    check_same(reference.committed, ours.committed)
    lines = differences(reference.layer, ours.layer)
    assert not lines, "\n".join(lines)


# Ids are the first, the first on the host (or in the user's own namespace), and how many.
_MAPS = {
    "root": ("--uidmap=0:100000:65536", "--gidmap=0:200000:65536"),
    "user": ("--uidmap=0:1:5000", "--gidmap=0:2001:5000"),
}
_MAPPED = """\
set -e
useradd --create-home --uid 4000 somebody
rm -rf /usr/share/doc
chown -R 33:34 /usr/share/common-licenses
ln /etc/debian_version /etc/version
echo changed >> /etc/version
mkdir -m 1777 /srv/all
cd /srv/all
setpriv --reuid=4000 --regid=4000 --clear-groups sh -c 'mkdir dir; echo >dir/file; ln -s x link'
touch setuid
chown 4000:8 setuid
chmod 4755 setuid
rm -rf /var/log/*
stat -c '%u %g' /
stat -c '%u %g %a %n' /etc/shadow /etc/passwd /usr/bin/passwd /usr/bin/chage . * dir/file
cat /proc/self/uid_map /proc/self/gid_map
"""


def test_user_namespace(ours: Store, reference: Store) -> None:
    """A container with other ids than the host: in it, on the host, and in the image that is made
    of it everything belongs to whom it should."""
    found = []
    for store in (ours, reference):
        with container(store, *_MAPS[MODE]) as name:
            said = shell(store, name, _MAPPED)
            found.append(outcome(store, name, said, "localhost/mapped"))
            # What podman leaves mounted when root stops such a container, and may not remove then.
            shm = store.podman("inspect", "--format={{.StaticDir}}/shm", name)
            store.run("umount", shm, check=False)
    one, other = found
    assert one.said == other.said
    first = int(_MAPS[MODE][0].split(":")[1])
    assert one.tree[b"srv/all/dir/file"].uid == first + 4000
    assert one.layer["srv/all/dir/file"].uid == 4000
    # Where names of one file are, vfs makes them anew when it gives files away.
    other.tree[b"usr/bin"].mtime_ns = one.tree[b"usr/bin"].mtime_ns
    check_same(other.tree, one.tree)
    assert one.diff == other.diff
    check_same(other.committed, one.committed)
    lines = differences(other.layer, one.layer)
    assert not lines, "\n".join(lines)


def test_user_namespace_while_it_runs(ours: Store) -> None:
    """podman takes the mount that is there for one without a mapping, and its top directory for
    root: that has to succeed, and may not take it away from the container's root."""
    with container(ours, *_MAPS[MODE]) as name:
        shell(ours, name, "echo new >/srv/new; chown 5:6 /srv/new")
        assert "A /srv/new" in ours.podman("diff", name).splitlines()
        assert shell(ours, name, "stat -c '%u %g' / /srv/new; cat /srv/new") == "0 0\n5 6\nnew"


@pytest.mark.parametrize("running", [True, False])
def test_copy(ours: Store, running: bool) -> None:
    """`podman cp` of files and directories, into a container and out of it."""
    base = ours.base / f"cp-{running}"
    source, out = base / "source", base / "out"
    (source / "sub").mkdir(parents=True)
    out.mkdir()
    (source / "file").write_text("copied in\n")
    (source / "file").chmod(0o640)
    (source / "link").symlink_to("sub/file")
    (source / "sub/file").write_bytes(b"x" * 200_000)
    os.utime(source / "sub/file", (1_000_000_000, 1_000_000_000))
    with container(ours, running=running) as name:
        ours.podman("cp", source, f"{name}:/srv/in")
        ours.podman("cp", source / "file", f"{name}:/etc/debian_version")
        ours.podman("cp", f"{name}:/srv/in", out / "in")
        ours.podman("cp", f"{name}:/etc/debian_version", out / "version")
        ours.podman("cp", f"{name}:/usr/share/common-licenses", out)
        if running:
            assert shell(ours, name, "cat /etc/debian_version") == "copied in"
        root = ours.podman("mount", name)
        check_same(ours.tree(source), ours.tree(f"{root}/srv/in"))
        check_same(
            ours.tree(f"{root}/usr/share/common-licenses"), ours.tree(out / "common-licenses")
        )
    check_same(ours.tree(source), ours.tree(out / "in"))
    assert (out / "version").read_text() == "copied in\n"


def test_overlay_volume(ours: Store) -> None:
    """A volume that is a lower directory: the container's changes to it are gone with it."""
    source = ours.base / "volume"
    (source / "sub").mkdir(parents=True)
    for path in ("kept", "gone", "sub/changed"):
        (source / path).write_text(f"{path}\n")
    before = record(str(source), identity=True)
    volume = f"--volume={source}:/srv:O"
    with container(ours, volume) as name:
        assert " fuse.fuseoverlay " in shell(ours, name, "grep ' /srv ' /proc/mounts")
        shell(ours, name, "cd /srv; rm gone; echo new > new; echo more >> sub/changed; mv sub dir")
        assert (
            shell(ours, name, "cd /srv; ls; cat dir/changed") == "dir\nkept\nnew\nsub/changed\nmore"
        )
    lines = compare(before, record(str(source), identity=True), ignore={"atime_ns"})
    assert not lines, "\n".join(lines)
    with container(ours, volume) as name:
        assert shell(ours, name, "cd /srv; ls; cat sub/changed") == "gone\nkept\nsub\nsub/changed"


def test_mount(ours: Store) -> None:
    """`podman mount` shows what the container shows, and takes changes; also of a stopped one."""
    with container(ours) as name:
        root = ours.podman("mount", name)
        shell(ours, name, "echo inside > /srv/file; rm /etc/issue")
        assert ours.said("cat", f"{root}/srv/file") == "inside"
        assert "issue" not in ours.said("ls", f"{root}/etc").split()
        ours.run("sh", "-c", 'echo outside > "$1"', "sh", f"{root}/srv/file")
        assert shell(ours, name, "cat /srv/file") == "outside"
        ours.podman("stop", "--time=0", name)
        # While it ran, and after that.
        ours.podman("umount", "--force", name)
        root = ours.podman("mount", name)
        assert ours.said("cat", f"{root}/srv/file") == "outside"
        ours.run("sh", "-c", 'echo stopped > "$1"', "sh", f"{root}/srv/file")
        ours.podman("umount", name)
        assert not any(line.startswith(f"{root} ") for line in ours.mounts())
        ours.podman("start", name)
        assert shell(ours, name, "cat /srv/file") == "stopped"


_BEFORE_STOP = """\
set -e
cd /srv
echo new > new
ln new new2
mkdir -p dir/sub
echo deep > dir/sub/file
rm /etc/issue
rm -r /usr/share/common-licenses
mkdir /usr/share/common-licenses
chmod 600 /usr/bin/perl
cd /etc
mv debian_version version
ln version version2
"""

_AFTER_START = """\
set -e
cd /srv
cat new2 dir/sub/file
stat -c '%h' new new2 /etc/version
stat -c '%a %h' /usr/bin/perl /usr/bin/perl5.36.0
[ ! -e /etc/issue ]
[ ! -e /etc/debian_version ]
ls -A /usr/share/common-licenses
echo again >> /etc/version2
tail -1 /etc/version
"""


def test_restart(ours: Store) -> None:
    """A container started again has what it had, names of one file are of one file."""
    with container(ours) as name:
        shell(ours, name, _BEFORE_STOP)
        for _ in range(2):
            ours.podman("restart", "--time=0", name)
            said = shell(ours, name, _AFTER_START).splitlines()
            assert said == ["new", "deep", *"222", "600 2", "600 2", "again"]
        assert shell(ours, name, "grep -c again /etc/version") == "2"


def test_read_only(ours: Store) -> None:
    """`--read-only`: reading works, nothing of the image can be changed."""
    with container(ours, "--read-only") as name:
        assert shell(ours, name, "cat /etc/debian_version")
        tries = "echo x > /srv/x; echo x >> /etc/issue; rm /etc/issue; chmod 0 /etc/issue"
        for line in tries.split("; "):
            done = ours.run("podman", "exec", name, "sh", "-c", line, check=False)
            assert done.returncode != 0
            assert b"Read-only file system" in done.stderr
        assert shell(ours, name, "echo x > /tmp/x; cat /tmp/x") == "x"


def test_containers_of_one_image(ours: Store) -> None:
    """Two at once each see the image and their own changes."""
    with container(ours) as one, container(ours) as two:
        shell(ours, one, "echo one > /srv/file; rm /etc/issue")
        shell(ours, two, "echo two > /srv/file; echo two >> /etc/issue")
        assert shell(ours, one, "cat /srv/file; ls /etc/issue 2>/dev/null || true") == "one"
        assert shell(ours, two, "cat /srv/file; tail -n 1 /etc/issue") == "two\ntwo"
    with container(ours) as three:
        assert shell(ours, three, "ls /srv; grep -c two /etc/issue || true") == "0"
