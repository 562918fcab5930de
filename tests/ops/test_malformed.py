"""Malformed overlay attributes and layers: the same answer as the kernel's, or a documented one.

Every case is one directory in the same layers: an upper, a top lower and a bottom lower. The kernel
shows them first, where it can be asked; then fuseoverlay. The errno and all that is visible must be
equal. In no mode may the content of a file outside the layers, or of a file unrelated to the name,
be shown: those files contain `SECRET`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fuseoverlay.system.syscalls import AT_FDCWD, file_handle, filesystem_uuid
from tests.helpers.mounts import IMPL, MODE, Space, make_whiteout, scratch, set_overlay_xattr

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(IMPL == "kernel", reason="mounts both"),
]

SECRET = b"SECRET: nobody asked for this file\n"
FEATURES = {
    "off": (),
    "nofollow": ("redirect_dir=nofollow",),
    "on": ("redirect_dir=on", "metacopy=on", "index=on"),
}


@dataclass
class Area:
    """One case's directory in each layer. `mark` sets an overlay attribute."""

    name: str
    upper: Path
    top: Path
    bottom: Path
    outside: Path

    def absolute(self, path: str) -> bytes:
        """The absolute path of something in here from the layer's root, as in redirects."""
        return os.fsencode(f"/{self.name}/{path}")


def mark(path: Path, what: str, value: bytes) -> None:
    """Set an overlay attribute."""
    set_overlay_xattr(path, what, value)


def populate(area: Area) -> None:
    """What every case finds in the bottom layer."""
    bottom = area.bottom
    (bottom / "f").write_bytes(b"bottom f\n")
    (bottom / "d" / "sub").mkdir(parents=True)
    (bottom / "d" / "child").write_bytes(b"bottom child\n")
    (bottom / "d" / "sub" / "leaf").write_bytes(b"bottom leaf\n")
    (bottom / "e").mkdir()
    (bottom / "e" / "inside e").write_bytes(b"in e\n")
    os.symlink("f", bottom / "s")
    os.symlink("e", bottom / "sd")
    os.symlink(area.outside, bottom / "out")
    os.symlink(area.outside / "secret", bottom / "outf")


CASES: dict[str, Callable[[Area], None]] = {}


def case(name: str) -> Callable[[Callable[[Area], None]], Callable[[Area], None]]:
    """Add a function to the table."""

    def enter(function: Callable[[Area], None]) -> Callable[[Area], None]:
        CASES[name] = function
        return function

    return enter


REDIRECTS: dict[str, Callable[[Area], bytes]] = {
    "empty": lambda _: b"",
    "root": lambda _: b"/",
    "two-slashes": lambda _: b"//",
    "dot": lambda _: b".",
    "dotdot": lambda _: b"..",
    "up-and-down": lambda _: b"../x",
    "absolute-dotdot": lambda _: b"/../x",
    "absolute-dotdot-inside": lambda area: area.absolute("../" + area.name + "/e"),
    "absolute-dot": lambda area: area.absolute("./e"),
    "leads-out": lambda _: b"/../outside",
    "out-by-real-path": lambda area: os.fsencode(area.outside),
    "relative-with-slash": lambda _: b"e/x",
    "double-slash": lambda area: b"/" + area.absolute("e"),
    "double-slash-inside": lambda area: area.absolute("/e"),
    "trailing-slash": lambda area: area.absolute("e/"),
    "nul": lambda area: area.absolute("e") + b"\0rest",
    "nul-first": lambda area: b"\0" + area.absolute("e"),
    "relative-nul": lambda area: b"e\0x",
    "long-name": lambda area: area.absolute("x" * 256),
    "name-of-300": lambda _: b"x" * 300,
    "long-path": lambda area: area.absolute("/".join("y" * 99 for _ in range(12))),
    "not-utf8": lambda area: area.absolute("") + b"\xff\xfe",
    "missing": lambda area: area.absolute("nowhere"),
    "missing-sibling": lambda _: b"nowhere",
    "a-file": lambda area: area.absolute("f"),
    "below-a-file": lambda area: area.absolute("f/x"),
    "a-symlink": lambda area: area.absolute("sd"),
    "a-sibling-symlink": lambda area: b"sd",
    "symlink-out": lambda area: area.absolute("out"),
    "through-a-symlink-out": lambda area: area.absolute("out/dir"),
    "itself": lambda area: area.absolute("d"),
    "itself-sibling": lambda _: b"d",
    "own-child": lambda area: area.absolute("d/sub"),
    "own-parent": lambda area: area.absolute("")[:-1],
    "good": lambda area: area.absolute("e"),
    "good-sibling": lambda _: b"e",
}


def _redirect_case(layer: str, value: Callable[[Area], bytes]) -> Callable[[Area], None]:
    def make(area: Area) -> None:
        directory = getattr(area, layer) / "d"
        directory.mkdir()
        (directory / "own").write_bytes(b"own\n")
        mark(directory, "redirect", value(area))
        # As a rename leaves it: no two directories continue in the same one.
        make_whiteout(getattr(area, layer) / "e")

    return make


for _layer in ("upper", "top"):
    for _name, _value in REDIRECTS.items():
        CASES[f"redirect-{_layer}-{_name}"] = _redirect_case(_layer, _value)


def _file_redirect_case(value: Callable[[Area], bytes]) -> Callable[[Area], None]:
    def make(area: Area) -> None:
        for layer in (area.upper, area.top):
            with open(layer / f"m-{layer.parent.name}", "wb") as stream:
                stream.truncate(9)
            mark(layer / f"m-{layer.parent.name}", "metacopy", b"")
            mark(layer / f"m-{layer.parent.name}", "redirect", value(area))

    return make


FILE_REDIRECTS = {
    **REDIRECTS,
    "good": lambda area: area.absolute("f"),
    "good-sibling": lambda _: b"f",
    "a-directory": lambda area: area.absolute("d"),
    "a-symlink": lambda area: area.absolute("s"),
    "symlink-out": lambda area: area.absolute("outf"),
    "through-a-symlink-out": lambda area: area.absolute("out/secret"),
}
for _name, _value in FILE_REDIRECTS.items():
    CASES[f"metacopy-redirect-{_name}"] = _file_redirect_case(_value)


@case("redirect-loop-upper")
def _(area: Area) -> None:
    for one, two in (("a", "b"), ("b", "a")):
        (area.upper / one).mkdir()
        (area.upper / one / f"upper {one}").touch()
        mark(area.upper / one, "redirect", os.fsencode(two))
        (area.bottom / one).mkdir()
        (area.bottom / one / f"bottom {one}").touch()


@case("redirect-loop-through-layers")
def _(area: Area) -> None:
    for layer in (area.upper, area.top, area.bottom):
        for one, two in (("a", "b"), ("b", "a")):
            (layer / one).mkdir()
            (layer / one / f"{layer.parent.name} {one}").touch()
            if layer != area.bottom:
                mark(layer / one, "redirect", area.absolute(two))


@case("redirect-several-to-one")
def _(area: Area) -> None:
    for name in ("a", "b", "c"):
        (area.upper / name).mkdir()
        mark(area.upper / name, "redirect", area.absolute("d"))


@case("redirect-target-hidden-by-whiteout")
def _(area: Area) -> None:
    make_whiteout(area.top / "e")
    (area.upper / "d").mkdir()
    mark(area.upper / "d", "redirect", area.absolute("e"))


@case("redirect-target-hidden-by-file")
def _(area: Area) -> None:
    (area.top / "e").write_bytes(b"in the way")
    (area.upper / "d").mkdir()
    mark(area.upper / "d", "redirect", area.absolute("e"))


@case("redirect-target-hidden-by-opaque")
def _(area: Area) -> None:
    (area.top / "e").mkdir()
    (area.top / "e" / "top").touch()
    mark(area.top / "e", "opaque", b"y")
    (area.upper / "d").mkdir()
    mark(area.upper / "d", "redirect", area.absolute("e"))


@case("redirect-through-opaque")
def _(area: Area) -> None:
    (area.top / "d").mkdir()
    mark(area.top / "d", "opaque", b"y")
    (area.upper / "x").mkdir()
    mark(area.upper / "x", "redirect", area.absolute("d/sub"))


@case("redirect-and-opaque")
def _(area: Area) -> None:
    for layer, name in ((area.upper, "d"), (area.top, "e")):
        (layer / name).mkdir()
        mark(layer / name, "opaque", b"y")
        mark(layer / name, "redirect", area.absolute("e"))


@case("redirect-on-a-file")
def _(area: Area) -> None:
    for layer in (area.upper, area.top):
        path = layer / f"plain-{layer.parent.name}"
        path.write_bytes(b"own data")
        mark(path, "redirect", area.absolute("f"))
    (area.upper / "f").write_bytes(b"own data")
    mark(area.upper / "f", "redirect", b"/../outside/secret")


METACOPIES: dict[str, bytes] = {
    "empty": b"",
    "short": b"\0",
    "three": b"\0\4\0",
    "four": b"\0\4\0\0",
    "version": b"\7\4\0\0",
    "length": b"\0\xff\0\0",
    "zero-length": b"\0\0\0\0",
    "flags": b"\0\4\1\0",
    "digest-algorithm": b"\0\4\0\1",
    "digest": b"\0\x24\0\1" + bytes(32),
    "text": b"nonsense",
    "huge": b"x" * 3000,
}


def _metacopy_case(value: bytes) -> Callable[[Area], None]:
    def make(area: Area) -> None:
        (area.bottom / "g").write_bytes(b"bottom g\n")
        for layer, name in ((area.upper, "f"), (area.top, "g")):
            (layer / name).write_bytes(bytes(9))
            mark(layer / name, "metacopy", value)

    return make


for _name, _bytes in METACOPIES.items():
    CASES[f"metacopy-{_name}"] = _metacopy_case(_bytes)


@case("metacopy-data-missing")
def _(area: Area) -> None:
    (area.upper / "nothing below").write_bytes(bytes(9))
    mark(area.upper / "nothing below", "metacopy", b"")


@case("metacopy-data-is-a-directory")
def _(area: Area) -> None:
    (area.upper / "d").write_bytes(bytes(9))
    mark(area.upper / "d", "metacopy", b"")


@case("metacopy-data-is-a-symlink")
def _(area: Area) -> None:
    for name in ("s", "out", "outf"):
        (area.upper / name).write_bytes(bytes(9))
        mark(area.upper / name, "metacopy", b"")


@case("metacopy-data-hidden-by-whiteout")
def _(area: Area) -> None:
    (area.upper / "f").write_bytes(bytes(9))
    mark(area.upper / "f", "metacopy", b"")
    make_whiteout(area.top / "f")


@case("metacopy-in-the-bottom-layer")
def _(area: Area) -> None:
    (area.bottom / "m").write_bytes(bytes(9))
    mark(area.bottom / "m", "metacopy", b"")


@case("origin-without-a-lower")
def _(area: Area) -> None:
    (area.upper / "alone").write_bytes(b"alone\n")
    mark(area.upper / "alone", "origin", _secret(area))


@case("metacopy-loop")
def _(area: Area) -> None:
    for layer in (area.upper, area.top):
        for one, two in (("a", "b"), ("b", "a")):
            (layer / one).write_bytes(bytes(9))
            mark(layer / one, "metacopy", b"")
            mark(layer / one, "redirect", area.absolute(two))


@case("metacopy-to-itself")
def _(area: Area) -> None:
    (area.upper / "a").write_bytes(bytes(9))
    mark(area.upper / "a", "metacopy", b"")
    mark(area.upper / "a", "redirect", area.absolute("a"))


@case("metacopy-all-the-way-down")
def _(area: Area) -> None:
    for layer in (area.upper, area.top, area.bottom):
        (layer / "m").write_bytes(bytes(9))
        mark(layer / "m", "metacopy", b"")


@case("metacopy-chain")
def _(area: Area) -> None:
    for layer in (area.upper, area.top):
        (layer / "f").write_bytes(bytes(9))
        mark(layer / "f", "metacopy", b"")


@case("metacopy-of-other-size")
def _(area: Area) -> None:
    for name, size in (("f", 3), ("d/child", 100)):
        (area.upper / name).parent.mkdir(exist_ok=True)
        (area.upper / name).write_bytes(bytes(size))
        mark(area.upper / name, "metacopy", b"")


@case("metacopy-on-a-directory")
def _(area: Area) -> None:
    (area.upper / "d").mkdir()
    mark(area.upper / "d", "metacopy", b"")
    mark(area.upper / "d", "redirect", area.absolute("e"))


def origin(of: Path, **change: object) -> bytes:
    """`overlay.origin` for a copy of `of`, with fields of its header changed."""
    kind, handle = file_handle(AT_FDCWD, os.fsencode(of))
    fd = os.open(of, os.O_RDONLY)
    try:
        uuid = filesystem_uuid(fd)
    finally:
        os.close(fd)
    header = {"version": 0, "magic": 0xFB, "length": 21 + len(handle), "flags": 0, "kind": kind}
    header |= change
    values = [header[k] for k in ("version", "magic", "length", "flags", "kind")]
    return struct.pack("BBBBB16s", *values, change.get("uuid", uuid)) + handle


def _deleted(area: Area) -> bytes:
    path = area.bottom / "deleted"
    path.write_bytes(SECRET)
    value = origin(path)
    path.unlink()
    return value


def _secret(area: Area) -> bytes:
    path = area.bottom / ".secret"
    path.write_bytes(SECRET)
    with contextlib.suppress(FileExistsError):
        make_whiteout(area.top / ".secret")
    return origin(path)


ORIGINS: dict[str, Callable[[Area], bytes]] = {
    "empty": lambda _: b"",
    "one-byte": lambda _: b"\0",
    "truncated-header": lambda area: origin(area.bottom / "f")[:10],
    "truncated-handle": lambda area: origin(area.bottom / "f")[:-3],
    "no-handle": lambda area: origin(area.bottom / "f", length=21)[:21],
    "magic": lambda area: origin(area.bottom / "f", magic=0xAA),
    "version": lambda area: origin(area.bottom / "f", version=9),
    "length": lambda area: origin(area.bottom / "f", length=255),
    "short-length": lambda area: origin(area.bottom / "f", length=3),
    "flags": lambda area: origin(area.bottom / "f", flags=0xFF),
    "big-endian": lambda area: origin(area.bottom / "f", flags=1),
    "kind": lambda area: origin(area.bottom / "f", kind=0xFE),
    "huge": lambda area: origin(area.bottom / "f") + b"x" * 3000,
    "text": lambda _: b"nonsense" * 8,
    "other-filesystem": lambda area: origin(area.bottom / "f", uuid=b"\x55" * 16),
    "deleted": _deleted,
    "another-file": _secret,
    "a-directory": lambda area: origin(area.bottom / "d"),
    "a-file": lambda area: origin(area.bottom / "f"),
    "itself": lambda area: origin(area.upper / "f"),
    "outside": lambda area: origin(area.outside / "secret"),
}


def _origin_case(value: Callable[[Area], bytes]) -> Callable[[Area], None]:
    def make(area: Area) -> None:
        (area.upper / "f").write_bytes(b"upper f\n")
        (area.upper / "d").mkdir()
        for name in ("f", "d"):
            mark(area.upper / name, "origin", value(area))

    return make


for _name, _value in ORIGINS.items():
    CASES[f"origin-{_name}"] = _origin_case(_value)


OPAQUE = {"empty": b"", "n": b"n", "yy": b"yy", "Y": b"Y", "x": b"x", "y-nul": b"y\0", "1": b"1",
          "huge": b"y" * 3000}  # fmt: skip


def _opaque_case(value: bytes) -> Callable[[Area], None]:
    def make(area: Area) -> None:
        for layer, name in ((area.upper, "d"), (area.top, "e")):
            (layer / name).mkdir()
            (layer / name / "own").touch()
            mark(layer / name, "opaque", value)
        (area.upper / "f").touch()
        mark(area.upper / "f", "opaque", value)

    return make


for _name, _bytes in OPAQUE.items():
    CASES[f"opaque-{_name}"] = _opaque_case(_bytes)


NLINKS = {"empty": b"", "garbage": b"garbage", "huge": b"U+999999999999", "negative": b"L-5",
          "negative-upper": b"U-7", "no-sign": b"U3", "letter": b"X+1", "zero": b"U+0",
          "more": b"U+3", "trailing": b"U+1x", "long": b"U+" + b"1" * 200}  # fmt: skip


def _nlink_case(value: bytes) -> Callable[[Area], None]:
    def make(area: Area) -> None:
        (area.bottom / "h1").write_bytes(b"linked\n")
        os.link(area.bottom / "h1", area.bottom / "h2")
        (area.upper / "h1").write_bytes(b"linked, copied up\n")
        mark(area.upper / "h1", "origin", origin(area.bottom / "h1"))
        mark(area.upper / "h1", "nlink", value)
        (area.upper / "d").mkdir()
        mark(area.upper / "d", "nlink", value)
        (area.upper / "alone").touch()
        os.link(area.upper / "alone", area.upper / "second")
        mark(area.upper / "alone", "nlink", value)

    return make


for _name, _bytes in NLINKS.items():
    CASES[f"nlink-{_name}"] = _nlink_case(_bytes)


@case("origin-and-nlink-of-another-file")
def _(area: Area) -> None:
    (area.bottom / "g1").write_bytes(b"linked\n")
    os.link(area.bottom / "g1", area.bottom / "g2")
    for name, lower in (("a", "f"), ("z", "f"), ("b", "g1"), ("y", "g2")):
        (area.upper / name).write_bytes(b"the upper's\n")
        mark(area.upper / name, "origin", origin(area.bottom / lower))
        mark(area.upper / name, "nlink", b"U+1")


@case("whiteout-xattr-on-a-full-file")
def _(area: Area) -> None:
    (area.upper / "d").mkdir()
    mark(area.upper / "d", "opaque", b"x")
    (area.upper / "d" / "child").write_bytes(b"full\n")
    mark(area.upper / "d" / "child", "whiteout", b"y")


@case("whiteout-xattr-on-a-directory")
def _(area: Area) -> None:
    (area.upper / "d" / "sub").mkdir(parents=True)
    mark(area.upper / "d", "opaque", b"x")
    mark(area.upper / "d" / "sub", "whiteout", b"y")


@case("whiteout-xattr-with-other-values")
def _(area: Area) -> None:
    (area.top / "d").mkdir()
    mark(area.top / "d", "opaque", b"x")
    (area.top / "d" / "child").touch()
    mark(area.top / "d" / "child", "whiteout", b"")


@case("protattr")
def _(area: Area) -> None:
    for layer, name in ((area.upper, "f"), (area.upper, "x"), (area.top, "y")):
        (layer / name).write_bytes(b"data\n")
        mark(layer / name, "protattr", b"garbage" * 20)


@case("unknown-attributes")
def _(area: Area) -> None:
    for layer in (area.upper, area.top):
        (layer / "d").mkdir()
        for what in ("impure", "upper", "uuid", "nothing.known", "overlay.opaque"):
            mark(layer / "d", what, b"garbage")


@case("device-0-0-with-attributes")
def _(area: Area) -> None:
    make_whiteout(area.upper / "d")
    if MODE == "root":
        for what in ("opaque", "redirect", "metacopy", "origin", "whiteout"):
            mark(area.upper / "d", what, b"y")


#: Where fuseoverlay differs by choice: case -> names that are not compared.
DIFFERENT: dict[str, tuple[str, ...]] = {
    # Two directories that go on in the same one: the kernel shows the one that it meets first,
    # the others are ESTALE.
    "redirect-upper-own-parent": ("d",),
    "redirect-several-to-one": ("a", "b", "c", "d"),
    "redirect-target-hidden-by-opaque": ("d", "e"),
    "metacopy-on-a-directory": ("d", "e"),
    # Reads end at the size that is shown; the kernel's go on to the end of the data.
    "metacopy-of-other-size": ("f",),
    # The kernel shows one file's content under the name of the other, ESTALE for the third.
    "origin-and-nlink-of-another-file": ("a", "f", "z"),
    # The upper file counts, also where index=on says ESTALE for its origin.
    **{f"origin-{name}": ("f",) for name in ORIGINS},
}

#: Errors that a malformed object may answer.
REFUSALS = {"EINVAL", "EACCES", "EPERM", "EIO"}


def look(root: Path) -> dict[str, object]:
    """All that programs see below `root`: the status, content and names of each path."""
    seen: dict[str, object] = {}
    todo = [root]
    while todo:
        path = todo.pop()
        name = str(path.relative_to(root))
        st = answer(os.lstat, path)
        if not isinstance(st, os.stat_result):
            seen[name] = st
            continue
        kind = stat.S_IFMT(st.st_mode)
        if kind == stat.S_IFDIR:
            names = answer(os.listdir, path)
            seen[name] = ("dir", sorted(names) if isinstance(names, list) else names)
            if isinstance(names, list) and name.count("/") < 8:
                todo.extend(path / child for child in names)
        elif kind == stat.S_IFLNK:
            seen[name] = ("symlink", answer(os.readlink, path))
        else:
            content = answer(Path.read_bytes, path) if kind == stat.S_IFREG else None
            seen[name] = (oct(kind), st.st_nlink, st.st_size, content)
        seen[f"{name} xattrs"] = answer(os.listxattr, path, follow_symlinks=False)
    return seen


def answer(function: Callable, *args: object, **how: object) -> object:
    """The result or the name of the errno."""
    try:
        return function(*args, **how)
    except OSError as exc:
        return errno.errorcode.get(exc.errno or 0, exc.errno)


def _build(space: Space) -> None:
    outside = space.base / "outside"
    (outside / "dir").mkdir(parents=True)
    (outside / "secret").write_bytes(SECRET)
    (outside / "dir" / "x").write_bytes(SECRET)
    for name, make in CASES.items():
        layers = [path / name for path in (space.upper, *space.lowers)]
        for path in layers:
            path.mkdir()
        area = Area(name, *layers, outside)
        populate(area)
        make(area)


Seen = dict[str, dict[str, object]]


@dataclass
class Views:
    """What each case looks like, to the kernel (empty where it cannot be asked) and to us."""

    theirs: Seen
    ours: Seen
    features: str


def _features() -> list[str]:
    # In a user namespace the kernel follows no redirects.
    return ["nofollow"] if MODE == "userns" else list(FEATURES)


@pytest.fixture(scope="module", params=_features())
def views(request: pytest.FixtureRequest) -> Iterator[Views]:
    """Look at all cases, then change each as a program may."""
    with scratch() as base:
        space = Space(base, 2)
        _build(space)
        theirs: Seen = {}
        try:
            if MODE != "user":
                space.features = FEATURES[request.param] if MODE == "root" else ()
                space.mount(impl="kernel")
                theirs = {name: look(space.mnt / name) for name in CASES}
                space.unmount()
            space.features = FEATURES[request.param]
            space.mount(impl="fuse")
            ours = {name: look(space.mnt / name) for name in CASES}
            for name in CASES:
                look(space.mnt / name)
            assert space.daemon is not None
            warnings = space.daemon.text().splitlines()
            assert len(warnings) == len(set(warnings)), "a warning was repeated"
            yield Views(theirs, ours, request.param)
            for name in CASES:
                _use(space.mnt / name)
            assert space.alive()
            space.unmount()  # fails where the log tells of a bug
            space.mount(impl="fuse")
            for name in CASES:
                _no_secret(look(space.mnt / name))
            space.unmount()
        finally:
            space.drop()


def _use(root: Path) -> None:
    """Change, rename and remove everything; refusals are fine."""
    for name in sorted(os.listdir(root)):
        path = root / name
        for change in (
            lambda path=path: os.chmod(path, 0o700),
            lambda path=path: os.setxattr(path, "user.x", b"y", follow_symlinks=False),
            lambda path=path: os.truncate(path, 1),
            lambda path=path: os.link(path, path.with_name("link"), follow_symlinks=False),
            lambda path=path: os.rename(path, path.with_name(f"renamed {path.name}")),
        ):
            answer(change)
    for name in sorted(look(root), reverse=True):
        path = root / name
        is_dir = os.path.isdir(path) and not os.path.islink(path)
        answer(os.rmdir if is_dir else os.unlink, path)


def _no_secret(seen: dict[str, object]) -> None:
    assert not [path for path, what in seen.items() if isinstance(what, tuple) and SECRET in what]


@pytest.mark.parametrize("name", CASES)
def test_malformed(views: Views, name: str) -> None:
    ours = views.ours[name]
    _no_secret(ours)
    answers = {path: what[-1] if isinstance(what, tuple) else what for path, what in ours.items()}
    errors = {what for path, what in answers.items() if isinstance(what, str)}
    links = {what[1] for what in ours.values() if isinstance(what, tuple) and what[0] == "symlink"}
    assert errors - links <= REFUSALS
    if views.theirs:
        skip = DIFFERENT.get(name, ())
        theirs = views.theirs[name]
        for path in sorted(ours.keys() | theirs.keys()):
            if path.split("/")[0].removesuffix(" xattrs") not in skip:
                assert _close(views.features, ours.get(path), theirs.get(path)), (
                    f"{path}: {ours.get(path)} instead of the kernel's {theirs.get(path)}"
                )


def _close(features: str, ours: object, theirs: object) -> bool:
    # A malformed metacopy without metacopy=on is wrong in two ways.
    return ours == theirs or (features != "on" and ours == "EPERM" and theirs in REFUSALS)


def test_origin_of_another_file_lends_no_content(views: Views) -> None:
    seen = views.ours["origin-and-nlink-of-another-file"]
    contents = {name: what[-1] for name, what in seen.items() if isinstance(what, tuple)}
    assert contents["f"] == b"bottom f\n"
    assert contents["g1"] == contents["g2"] == b"linked\n"
