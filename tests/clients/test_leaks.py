"""Nothing stays behind when containers are gone: no daemon, mount, socket or temporary file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.clients.conftest import BASE, made
from tests.clients.store import Store

pytestmark = pytest.mark.timeout(300)

# What leaks with each one shows after some: two hundred take two minutes.
IN_TURN = 200 if os.environ.get("FUSEOVERLAY_LONG") else 16
AT_ONCE = 20
CHANGE = "echo new > /srv/new; rm -r /usr/share/doc; ln /etc/issue /etc/issue2"


@pytest.fixture(scope="module")
def store(debian: Path) -> Iterator[Store]:
    """A store whose names and temporary files no other test makes."""
    with made("fuseoverlay", debian) as store:
        yield store


@pytest.fixture(autouse=True)
def nothing_left(store: Store) -> Iterator[None]:
    """Remove all containers; then all must be as it was before the test."""
    before = files(store)
    yield
    store.podman("rm", "--all", "--force", "--time=0")
    check_left(store)
    assert not files(store) - before


def check_left(store: Store) -> None:
    """No process, and no mount but the driver's of its own directory on itself."""
    store.wait_until_idle()
    assert not [line for line in store.mounts() if not line.split()[0].endswith("/overlay")]


def files(store: Store) -> set[str]:
    """Temporary files, sockets, and what there is beside the clients' own directories. Of
    containers-storage: whether the kernel's overlayfs can map ids."""
    trees = ("-name", "diff", "-o", "-name", "dir", "-o", "-name", "merged")
    found = (
        store.said("find", store.base, "-maxdepth", "1"),
        store.said("find", store.base / "tmp", "/run", "!", "-type", "d",
                   "!", "-name", "idmapped-lower-dir-*"),
        store.said("find", store.base, "(", *trees, ")", "-prune", "-o", "-type", "s", "-print"),
    )  # fmt: skip
    return set("\n".join(found).splitlines())


def daemons(store: Store) -> list[str]:
    """The process ids of all mounts."""
    return [pid for pid, argv in store.processes().items() if "-m fuseoverlay" in argv]


def sleeping(store: Store, *options: str) -> str:
    """Start a container that does nothing by itself; its id."""
    return store.podman("run", "--detach", "--stop-timeout=0", *options, BASE, "sleep", "inf")


@pytest.mark.timeout(900)
def test_one_after_another(store: Store) -> None:
    """Containers that end by themselves, every second one removed at once."""
    for number in range(IN_TURN):
        options = ["--rm"] if number % 2 else []
        said = store.podman("run", *options, BASE, "sh", "-c", f"{CHANGE}; cat /srv/new")
        assert said == "new"
    assert len(store.podman("ps", "--all", "--quiet").split()) == IN_TURN // 2
    check_left(store)


def test_many_at_once(store: Store) -> None:
    """As many daemons as containers; and none when these are stopped."""
    with ThreadPoolExecutor(AT_ONCE) as threads:
        names = list(threads.map(lambda _: sleeping(store), range(AT_ONCE)))
        assert len(daemons(store)) == AT_ONCE
        list(threads.map(lambda name: store.podman("exec", name, "sh", "-c", CHANGE), names))
        list(threads.map(lambda name: store.podman("stop", "--time=0", name), names[1:]))
    said = store.podman("exec", names[0], "cat", "/srv/new")
    assert said == "new"


def test_mounts(store: Store) -> None:
    """Images and containers that are mounted by hand, and an overlay volume."""
    volume = store.base / "networks/volume"
    volume.mkdir()
    name = sleeping(store, f"--volume={volume}:/srv:O")
    assert len(daemons(store)) == 2
    store.podman("mount", name)
    store.podman("image", "mount", BASE)
    assert len(daemons(store)) == 3
    store.podman("exec", name, "sh", "-c", CHANGE)
    store.podman("diff", name)
    store.podman("image", "unmount", BASE)


@pytest.mark.parametrize("again", [False, True])
def test_daemon_killed(store: Store, again: bool) -> None:
    """A container whose daemon was killed can be removed, or stopped and started again."""
    name = sleeping(store)
    store.podman("exec", name, "sh", "-c", f"{CHANGE}; sync")
    (daemon,) = daemons(store)
    store.run("kill", "-KILL", daemon)
    done = store.run("podman", "exec", name, "cat", "/srv/new", check=False)
    assert b"transport endpoint is not connected" in done.stderr.lower()
    if again:
        store.podman("stop", "--time=0", name)
        store.podman("start", name)
        assert store.podman("exec", name, "cat", "/srv/new") == "new"
        assert store.podman("exec", name, "stat", "-c", "%h", "/etc/issue") == "2"
    store.podman("rm", "--force", "--time=0", name)


def test_buildah(store: Store) -> None:
    """`buildah from`, `run`, `mount`, `commit` and `rm`."""
    name = store.said("buildah", "from", BASE)
    store.run("buildah", "run", name, "sh", "-c", CHANGE)
    root = store.said("buildah", "mount", name)
    assert store.said("cat", f"{root}/srv/new") == "new"
    store.run("sh", "-c", 'echo more >> "$1"', "sh", f"{root}/srv/new")
    store.run("buildah", "umount", name)
    store.run("buildah", "commit", "--quiet", name, "localhost/built")
    store.run("buildah", "rm", name)
    check_left(store)
    assert store.podman("run", "--rm", "localhost/built", "cat", "/srv/new") == "new\nmore"
    store.podman("rmi", "localhost/built")


def test_reset(store: Store) -> None:
    """`podman system reset` while a container runs; the store's last test."""
    sleeping(store)
    store.podman("system", "reset", "--force")
    check_left(store)
    assert not store.mounts()
    assert not store.podman("images", "--quiet")
