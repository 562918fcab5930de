#!/usr/bin/env python3
"""Build the real image of the tests with Debian's own tools, in all its forms.

    build.py [CACHE]

debootstrap makes the root, umoci the layers, skopeo the other archive forms and
compressions, `umoci unpack` the reference tree. Needs root and the network, and about
half a minute; the result stays under CACHE/image-DIGEST, the digest being that of this
file, so that changing it builds anew:

    oci/              OCI layout, gzip; oci-plain/ and oci-zstd/ the same otherwise compressed
    oci-mislabelled/  plain layers whose media type says gzip, as skopeo makes them
    oci.tar           OCI archive
    docker.tar        what `docker save` writes
    reference.pickle  a record (tests/helpers/tree.py) of what umoci makes of the image
    extra.deb         a package for the tests to install

Standard library only: it can be run by itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
if str(PROJECT) not in sys.path:
    sys.path.insert(0, str(PROJECT))

from tests.helpers import tree  # noqa: E402

TOOLS = ("debootstrap", "umoci", "skopeo", "setcap", "dpkg-deb", "apt-get")
DEFAULT_CACHE = "/var/cache/fuseoverlay-tests"
#: 2001-09-09, with a fraction of a second.
LONG_AGO = 1_000_000_000_250_000_000
LONGEST = b"n" * 255
#: Not UTF-8, and what confuses programs that print or split names.
ODD_NAMES = (
    b"latin-\xe9\xff",
    b"\xf0\x28\x8c\x28",
    b"new\nline",
    b"tab\tback\\slash",
    b" space ",
    b"-rf",
    "größe".encode(),
    b"quote'\"",
)


class MissingTool(Exception):
    """The image cannot be built here; the text says why."""


def cache_dir() -> Path:
    """Where the tests keep what takes long to make."""
    return Path(os.environ.get("FUSEOVERLAY_TEST_CACHE") or DEFAULT_CACHE)


def image_dir(cache: Path | None = None) -> Path:
    """Where this version of the image is, or will be."""
    sources = Path(__file__).read_bytes() + tree.source().encode()
    return (cache or cache_dir()) / f"image-{hashlib.sha256(sources).hexdigest()[:16]}"


def ensure(cache: Path | None = None) -> Path:
    """The image's directory, built if need be. Raises MissingTool."""
    target = image_dir(cache)
    if target.is_dir():
        return target
    if os.geteuid() != 0 or not _first_user_namespace():
        raise MissingTool("the real image, which only root can build (tests/images/build.py)")
    for tool in TOOLS:
        if shutil.which(tool) is None:
            raise MissingTool(tool)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.parent / "lock"):
        if not target.is_dir():
            _build(target)
    return target


def _first_user_namespace() -> bool:
    return Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def run(*argv: object) -> str:
    """Run a tool; its output, or an exception that holds all it said."""
    words = [str(word) for word in argv]
    done = subprocess.run(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=900, check=False
    )
    text = done.stdout.decode(errors="replace")
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)}: exit code {done.returncode}\n{text[-4000:]}")
    return text


def _build(target: Path) -> None:
    for old in target.parent.glob("image-*"):
        shutil.rmtree(old)
    work = target.with_name(target.name.replace("image-", "building-"))
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    # The umask would otherwise decide on modes inside the image.
    umask = os.umask(0o022)
    try:
        bundle = work / "bundle"
        _layers(work / "oci", bundle)
        shutil.rmtree(bundle)
        _reference(work)
        _convert(work)
        _package(work / "extra.deb")
        # umoci's are for their owner only; the plain user's tests read them too.
        run("chmod", "-R", "a+rX", work)
    finally:
        os.umask(umask)
    work.rename(target)


# Layers


def _layers(layout: Path, bundle: Path) -> None:
    image = f"{layout}:latest"
    root = bundle / "rootfs"
    run("umoci", "init", "--layout", layout)
    run("umoci", "new", "--image", image)
    run("umoci", "unpack", "--image", image, bundle)
    for change in (_debian, _special_files, _replacements):
        change(root)
        run("umoci", "repack", "--refresh-bundle", "--image", image, bundle)
    _opaque(image, bundle.with_name("insert"))
    _verbatim(image, bundle.with_name("verbatim"))
    # These two know nothing of the bundle: take a fresh one.
    shutil.rmtree(bundle)
    run("umoci", "unpack", "--image", image, bundle)
    for change in (_made_again, _metadata_only):
        change(root)
        run("umoci", "repack", "--refresh-bundle", "--image", image, bundle)
    run("umoci", "gc", "--layout", layout)


def _mirror() -> tuple[str, str]:
    """(URI, release) of the Debian archive that this machine's apt uses."""
    release = ""
    for line in Path("/etc/os-release").read_text().splitlines():
        if line.startswith("VERSION_CODENAME="):
            release = line.partition("=")[2].strip('"')
    wanted = "$(REPO_URI)|$(CODENAME)|$(LABEL)|$(COMPONENT)"
    for line in run("apt-get", "indextargets", "--format", wanted).splitlines():
        uri, codename, label, component = [*line.split("|"), "", "", ""][:4]
        if (codename, label, component) == (release, "Debian", "main"):
            return uri, release
    raise MissingTool("a Debian archive in apt's sources (after apt-get update)")


def _debian(root: Path) -> None:
    uri, release = _mirror()
    run("debootstrap", "--variant=minbase", "--include=python3-minimal", release, root, uri)
    for waste in ("var/cache/apt/archives", "var/lib/apt/lists", "var/log"):
        for path in (root / waste).rglob("*"):
            if path.is_file():
                path.unlink()
    # The machine's own names and mirror are nobody's business.
    for name in ("etc/hostname", "etc/resolv.conf", "etc/apt/sources.list"):
        (root / name).unlink(missing_ok=True)


def _file(path: Path | bytes, text: str = "", mode: int = 0o644) -> None:
    with open(path, "wb") as file:
        file.write((text or os.fsdecode(path)[-40:]).encode("utf-8", "surrogateescape"))
    os.chmod(path, mode)


def _special_files(root: Path) -> None:
    """Everything that is not a plain file, and plain files that are not so plain."""
    srv = root / "srv/special"
    srv.mkdir(parents=True)
    _hard_links(srv)
    _privileged(srv)
    _nodes(srv)
    _odd_names(srv)
    _victims(root)
    _old_times(srv)


def _hard_links(srv: Path) -> None:
    (srv / "links/other").mkdir(parents=True)
    _file(srv / "links/one")
    os.link(srv / "links/one", srv / "links/two")
    os.link(srv / "links/one", srv / "links/other/three")
    os.mkfifo(srv / "links/fifo")
    os.link(srv / "links/fifo", srv / "links/fifo2")
    os.symlink("one", srv / "links/symlink")
    os.symlink("/etc/passwd", srv / "links/absolute")
    os.symlink("../../../../../../etc/passwd", srv / "links/outward")
    os.symlink("nowhere", srv / "links/dangling")
    os.symlink("x" * 3000, srv / "links/long")
    os.symlink(b"\xff\xfe", srv / "links/odd")


def _privileged(srv: Path) -> None:
    (srv / "modes").mkdir()
    for mode in (0o4755, 0o2755, 0o6711, 0o1644, 0o000, 0o111, 0o777, 0o7777):
        path = srv / f"modes/file-{mode:04o}"
        _file(path)
        os.chown(path, 1234, 4321)
        os.chmod(path, mode)
    for mode in (0o1777, 0o2775, 0o000, 0o111, 0o3700):
        path = srv / f"modes/dir-{mode:04o}"
        path.mkdir()
        _file(path / "inside")
        os.chown(path, 65534, 3_000_000)
        os.chmod(path, mode)
    shutil.copy(shutil.which("true") or "/bin/true", srv / "modes/capable")
    run("setcap", "cap_net_bind_service,cap_net_raw+ep", srv / "modes/capable")
    _file(srv / "modes/attributes")
    os.setxattr(srv / "modes/attributes", "user.text", b"value")
    os.setxattr(srv / "modes/attributes", "user.binary", bytes(range(256)))
    os.setxattr(srv / "modes", "user.on-directory", b"1")
    os.symlink("file-0777", srv / "modes/owned-link")
    os.lchown(srv / "modes/owned-link", 77, 88)


def _nodes(srv: Path) -> None:
    (srv / "nodes").mkdir()
    os.mknod(srv / "nodes/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(srv / "nodes/disk", stat.S_IFBLK | 0o660, os.makedev(8, 17))
    os.mknod(srv / "nodes/large", stat.S_IFCHR | 0o600, os.makedev(400, 70000))
    os.chmod(srv / "nodes/null", 0o666)
    os.chown(srv / "nodes/disk", 0, 6)
    os.mkfifo(srv / "nodes/fifo")
    os.chmod(srv / "nodes/fifo", 0o622)
    with open(srv / "nodes/sparse", "wb") as file:
        file.write(b"begin")
        file.seek(5_000_000)
        file.write(b"middle")
        file.truncate(12_345_678)
    _file(srv / "nodes/empty")
    os.truncate(srv / "nodes/empty", 0)


def _odd_names(srv: Path) -> None:
    names = os.fsencode(srv / "names")
    os.mkdir(names)
    for name in (*ODD_NAMES, LONGEST, b"\xc3" * 255):
        _file(os.path.join(names, name))
    deep = names
    for letter in (b"a", b"b", b"c", b"d"):
        deep = os.path.join(deep, letter * 255)
        os.mkdir(deep)
    _file(os.path.join(deep, b"leaf"))


def _victims(root: Path) -> None:
    """What the layers above delete, replace and make again."""
    top = root / "srv/victims"
    for name in ("dir-to-file", "dir-to-link", "again", "opaque", "opaque/sub", "gone", "keep"):
        (top / name).mkdir(parents=True)
        for child in ("a", "b", "c"):
            _file(top / name / child)
    for name in ("file-to-dir", "file-to-link", "file-to-node", "gone-file", "chmod", "chown"):
        _file(top / name)
    (top / "again/sub/deep").mkdir(parents=True)
    _file(top / "again/sub/deep/leaf")
    os.symlink("keep", top / "link-to-dir")
    os.symlink("keep", top / "link-to-file")
    os.symlink("old", top / "retargeted")
    for name in ("pair-one", "pair-two"):
        _file(top / name)
    os.link(top / "pair-one", top / "pair-one-b")
    os.link(top / "pair-two", top / "pair-two-b")


def _old_times(top: Path) -> None:
    """Times long ago, children first."""
    paths = [
        os.path.join(parent, name)
        for parent, dirs, files in os.walk(os.fsencode(top))
        for name in (*dirs, *files)
    ]
    for index, path in enumerate(sorted(paths, reverse=True)):
        moment = LONG_AGO + index * 1_000_000_000
        os.utime(path, ns=(moment, moment), follow_symlinks=False)


def _replacements(root: Path) -> None:
    """Files deleted; every kind of thing replaced by another kind."""
    top = root / "srv/victims"
    shutil.rmtree(top / "gone")
    (top / "gone-file").unlink()
    (top / "keep/b").unlink()
    shutil.rmtree(root / "usr/share/man", ignore_errors=True)
    (root / "etc/issue").unlink()
    shutil.rmtree(top / "dir-to-file")
    _file(top / "dir-to-file", "was a directory")
    for name in ("file-to-dir", "file-to-link", "file-to-node", "link-to-dir", "link-to-file"):
        (top / name).unlink()
    (top / "file-to-dir/sub").mkdir(parents=True)
    _file(top / "file-to-dir/sub/new")
    os.symlink("chmod", top / "file-to-link")
    os.mknod(top / "file-to-node", stat.S_IFCHR | 0o600, os.makedev(1, 5))
    (top / "link-to-dir").mkdir()
    _file(top / "link-to-dir/new")
    _file(top / "link-to-file", "was a link")
    (top / "retargeted").unlink()
    os.symlink("new", top / "retargeted")
    (top / "pair-one-b").unlink()


def _opaque(image: str, source: Path) -> None:
    """A directory whose layer says that nothing below it shows."""
    (source / "sub").mkdir(parents=True)
    _file(source / "new")
    _file(source / "sub/new")
    run("umoci", "insert", "--opaque", "--image", image, source, "/srv/victims/opaque")
    shutil.rmtree(source)


def _verbatim(image: str, source: Path) -> None:
    """A layer of GNU tar's making: no parents, a sparse file in its form.

    A directory becomes a link here and not through `umoci repack`, which writes the
    whiteouts of the old children below the link, where they delete the target's.
    """
    top = source / "srv/victims"
    top.mkdir(parents=True)
    os.symlink("keep", top / "dir-to-link")
    with open(top / "gnu-sparse", "wb") as file:
        file.seek(3_000_000)
        file.write(b"middle")
        file.truncate(7_000_000)
    (top / os.fsdecode(LONGEST)).mkdir()
    _file(os.fsencode(top) + b"/" + LONGEST + b"/" + ODD_NAMES[0])
    _file(top / "twin-one")
    os.link(top / "twin-one", top / "twin-two")
    _old_times(top)
    archive = source.with_name("verbatim.tar")
    names = sorted(os.listdir(os.fsencode(top)))
    run(
        *("tar", "--create", "--format=pax", "--sparse"),
        *("--numeric-owner", "--owner=12", "--group=34"),
        *("--file", archive, "--directory", source),
        *(f"srv/victims/{os.fsdecode(name)}" for name in names),
    )
    run("umoci", "raw", "add-layer", "--image", image, archive)
    shutil.rmtree(source)
    archive.unlink()


def _made_again(root: Path) -> None:
    """A directory removed and made again, deleted names back as something else."""
    top = root / "srv/victims"
    shutil.rmtree(top / "again")
    (top / "again/sub").mkdir(parents=True)
    _file(top / "again/a", "new a")
    _file(top / "again/sub/fresh")
    _file(top / "gone", "a file where a directory was deleted")
    (top / "gone-file").mkdir()
    (top / "opaque/new").unlink()
    (top / "keep/a").write_text("a, changed\n")


def _metadata_only(root: Path) -> None:
    """Owner, mode and times change, content does not."""
    top = root / "srv/victims"
    (top / "chmod").chmod(0o4700)
    os.chown(top / "chown", 555, 666)
    (top / "keep").chmod(0o2750)
    os.chown(top / "keep", 10, 20)
    os.utime(top / "keep/c", ns=(LONG_AGO, LONG_AGO))
    _file(root / "srv/special/links/two", "all three names change")
    os.setxattr(top / "keep", "user.added", b"by the top layer")


# Other forms


def _reference(work: Path) -> None:
    unpacked = work / "reference"
    run("umoci", "unpack", "--image", f"{work / 'oci'}:latest", unpacked)
    record = tree.record(str(unpacked / "rootfs"))
    (work / "reference.pickle").write_bytes(tree.dumps(record))
    shutil.rmtree(unpacked)


def _convert(work: Path) -> None:
    image = f"oci:{work / 'oci'}:latest"
    docker = f"docker-archive:{work / 'docker.tar'}:example.invalid/real:latest"
    copy = ("skopeo", "--insecure-policy", "copy", "--quiet")
    keep_plain = "--dest-oci-accept-uncompressed-layers"
    run(*copy, image, f"oci-archive:{work / 'oci.tar'}:latest")
    run(*copy, image, docker)
    zstd = ("--dest-compress", "--dest-compress-format", "zstd")
    run(*copy, *zstd, image, f"oci:{work / 'oci-zstd'}:latest")
    # On the way through a plain directory the media types stay right ...
    run(*copy, "--dest-decompress", image, f"dir:{work / 'plain'}")
    run(*copy, keep_plain, f"dir:{work / 'plain'}", f"oci:{work / 'oci-plain'}:latest")
    shutil.rmtree(work / "plain")
    # ... and on this way they become wrong.
    run(*copy, keep_plain, docker, f"oci:{work / 'oci-mislabelled'}:latest")


def _package(path: Path) -> None:
    """A package all of root:root: files, directories, a link, a configuration file."""
    source = path.with_name("extra")
    for name in ("DEBIAN", "usr/bin", "usr/share/extra/deep/deeper", "etc/extra"):
        (source / name).mkdir(parents=True)
    _file(source / "usr/bin/extra", "#!/bin/sh\necho extra works\n", 0o755)
    for index in range(20):
        _file(source / f"usr/share/extra/deep/file{index}", f"file {index}\n" * 100)
    os.symlink("../share/extra", source / "usr/bin/extra-data")
    _file(source / "etc/extra/extra.conf", "setting = 1\n")
    _file(source / "DEBIAN/conffiles", "/etc/extra/extra.conf\n")
    _file(
        source / "DEBIAN/control",
        "Package: extra\nVersion: 1\nArchitecture: all\n"
        "Maintainer: nobody <nobody@example.invalid>\n"
        "Description: made for a test\n",
    )
    _old_times(source)
    run("dpkg-deb", "--root-owner-group", "--build", source, path)
    shutil.rmtree(source)


if __name__ == "__main__":
    print(ensure(Path(sys.argv[1]) if len(sys.argv) > 1 else None))
