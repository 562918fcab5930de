"""Images that buildah builds and podman saves are the same with fuseoverlay as without."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.clients.conftest import BASE
from tests.clients.layers import differences, layers
from tests.clients.store import Store
from tests.helpers.mounts import MODE
from tests.helpers.tree import compare

pytestmark = pytest.mark.timeout(300)

# Of the base: /usr/share/doc with many directories, /etc/apt, /usr/share/perl5, symbolic links.
CONTAINERFILE = f"""\
FROM {BASE}
COPY files /
RUN rm -rf /usr/share/doc /etc/passwd- && rm /etc/debian_version && \\
    rm -rf /etc/apt && mkdir /etc/apt && echo new >/etc/apt/sources.list && \\
    rm -rf /var/log/apt && mkdir -m 700 /var/log/apt
RUN mv /usr/share/perl5 /usr/share/perl && mv /etc/issue /etc/issue.old && \\
    mv /etc/cron.daily /srv && mv /srv/copied/moved /srv/copied/deep && \\
    mv /etc/rc0.d /etc/rc0 && mv /etc/rc0 /etc/rc0.d
RUN rm /etc/host.conf && mkdir /etc/host.conf && touch /etc/host.conf/in && \\
    rm -rf /etc/skel && echo file >/etc/skel && \\
    rm /etc/alternatives/awk && echo file >/etc/alternatives/awk && \\
    rm -rf /etc/pam.d && ln -s skel /etc/pam.d && \\
    : >/etc/shells && echo more >>/etc/services.new && sed -i s/root/ROOT/ /etc/group && \\
    ln /etc/passwd /etc/passwd.hard && ln /srv/copied/file /srv/hard && ln -s nowhere /srv/soft
RUN mkdir /usr/share/doc && echo again >/usr/share/doc/again && mkdir -p /etc/cron.daily/new && \\
    rm -rf /etc/host.conf && echo file >/etc/host.conf && rm /srv/hard && \\
    chown -R 1234:5678 /usr/share/common-licenses && chown -h 1:2 /srv/soft && \\
    chmod 4755 /bin/date && chmod 2750 /srv/copied && chmod 1777 /srv && \\
    touch -d 2001-02-03T04:05:06Z /etc/shells /srv/copied && mkfifo /srv/fifo && \\
    rm /srv/copied/setuid && rmdir /etc/cron.daily/new && chmod 600 /etc/motd && \\
    perl -e 'my $c = pack("V5", 0x02000001, 1 << 13, 0, 0, 0); my $n = "security.capability"; \\
      syscall(188, my $p = "/bin/true", $n, $c, 20, 0) == 0 or die $!; \\
      ($n, $c) = ("user.note", "kept"); \\
      syscall(188, $p = "/bin/false", $n, $c, 4, 0) == 0 or die $!'
"""


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the Containerfile copies."""
    base = tmp_path_factory.mktemp("context")
    base.chmod(0o755)
    (base / "Containerfile").write_text(CONTAINERFILE)
    copied = base / "files/srv/copied"
    (copied / "deep").mkdir(parents=True)
    for name in ("file", "moved", "setuid", "deep/file"):
        (copied / name).write_text(f"content of {name}\n")
    (copied / "setuid").chmod(0o4755)
    (copied / "link").symlink_to("file")
    (base / "files/etc").mkdir()
    (base / "files/etc/motd").write_text("not what it was\n")
    for path in base.rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000), follow_symlinks=False)
    return base


def build(store: Store, context: Path, name: str, *options: str) -> None:
    """Have buildah build an image."""
    place = store.base / name.rpartition(":")[2]
    shutil.copytree(context, place, symlinks=True)
    argv = ("buildah", "bud", "--quiet", "--isolation", "chroot", "--no-cache")
    store.run(*argv, *options, "--tag", name, place)


#: The steps are the same; a plain user makes a layer of each only.
WAYS = ["one-layer", "a-layer-each"] if MODE == "root" else ["a-layer-each"]


@pytest.fixture(scope="module", params=WAYS)
def built(
    request: pytest.FixtureRequest, context: Path, ours: Store, reference: Store
) -> tuple[Store, Store, str]:
    """The stores in which the image was built, the reference first, and its name."""
    name = f"localhost/built:{request.param}"
    for store in (reference, ours):
        build(store, context, name, f"--layers={request.param == 'a-layer-each'}")
    return reference, ours, name


def test_tree(built: tuple[Store, Store, str]) -> None:
    reference, ours, name = built
    lines = compare(reference.mounted(name), ours.mounted(name))
    assert not lines, "\n".join(lines)


def test_layers(built: tuple[Store, Store, str]) -> None:
    """The same entries, but for the time."""
    reference, ours, name = built
    expected, actual = layers(reference, name), layers(ours, name)
    assert len(expected) == len(actual)
    for number, (one, other) in enumerate(zip(expected, actual, strict=True)):
        lines = differences(one, other)
        assert not lines, f"layer {number}: " + "\n".join(lines)


def test_diff(built: tuple[Store, Store, str]) -> None:
    reference, ours, name = built
    expected, actual = (set(store.podman("diff", name).splitlines()) for store in (reference, ours))
    assert "C /etc/shells" in expected or "C /usr/bin/true" in expected
    assert actual == expected


#: What podman does not see when it compares trees, with any mount program, and with vfs: that a
#: name more leads to a file that is as it was, and the times of directories.
UNSEEN = {b"etc/passwd", b"etc/passwd.hard", b"run"}


def test_tree_of_the_kernel(context: Path, ours: Store, kernel: Store) -> None:
    """The same as with the kernel's overlayfs, but for what podman does not see."""
    name = "localhost/built:kernel"
    for store in (kernel, ours):
        build(store, context, name, "--layers=false")
    expected, actual = kernel.mounted(name), ours.mounted(name)
    unseen = {path for path in expected if compare({path: expected[path]}, {path: actual[path]})}
    assert unseen == UNSEEN
    for path in UNSEEN:
        for shown in (expected, actual):
            shown[path].mtime_ns = shown[path].nlink = 0
            shown[path].same_as = None
    lines = compare(expected, actual)
    assert not lines, "\n".join(lines)


@pytest.mark.parametrize("built", WAYS[:1], indirect=True)
def test_saved(built: tuple[Store, Store, str]) -> None:
    """An archive, loaded into either store, has the same tree, and runs."""
    reference, ours, name = built
    before = ours.mounted(name)
    archive = ours.base / "tmp" / "saved.tar"
    ours.podman("save", "--quiet", "--output", archive, name)
    for store in (ours, reference):
        store.podman("rmi", name)
        assert store.run("podman", "image", "exists", name, check=False).returncode == 1
        store.podman("load", "--quiet", "--input", archive)
        lines = compare(before, store.mounted(name))
        assert not lines, "\n".join(lines)
        script = "cat /etc/host.conf /usr/share/doc/again; rm -r /srv; ls /srv 2>&1 || true"
        said = store.podman("run", "--rm", name, "sh", "-c", script)
        assert said.startswith("file\nagain\n") and "No such file" in said
    archive.unlink()
