"""Names and paths: odd ones, long ones, wrong ones."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

from tests.helpers import libc
from tests.helpers.mounts import fails
from tests.posix.table import (
    CONTENT,
    behaviour,
    expect,
    in_child,
    in_directory,
    kind_of,
    opens,
    seen,
)


def _use(d: Path, names: list[bytes]) -> None:
    """Everything that takes a name takes these."""
    base = os.fsencode(d / "e")
    for name in names:
        path = base + b"/" + name
        opens(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        with fails(errno.EEXIST):
            os.mkdir(path)
    assert sorted(os.listdir(base)) == sorted(names)
    for name in names:
        path = base + b"/" + name
        os.rename(path, base + b"/.moved")
        os.rename(base + b"/.moved", path)
        os.unlink(path)
        os.mkdir(path)
        os.symlink(name, path + b"/link")
        assert os.readlink(path + b"/link") == name
        os.mkfifo(path + b"/" + name)
        assert stat.S_ISFIFO(os.lstat(path + b"/" + name).st_mode)
        os.setxattr(path, b"user.name", name)
        assert os.getxattr(path, b"user.name") == name
    assert sorted(os.listdir(base)) == sorted(names)
    for name in names[1:]:
        os.unlink(base + b"/" + name + b"/link")
        os.unlink(base + b"/" + name + b"/" + name)
        os.rmdir(base + b"/" + name)
    assert os.listdir(base) == names[:1]


@behaviour()
def names_with_spaces(d: Path) -> object:
    _use(d, [b" ", b"a b", b" leading", b"trailing ", b"  ", b"tab\t", b"\xc2\xa0"])


@behaviour()
def names_with_newlines(d: Path) -> object:
    _use(d, [b"\n", b"a\nb", b"\r\n", b"\x0b", b"end\n"])


@behaviour()
def names_for_option_parsers(d: Path) -> object:
    """The characters that mount options and /proc escape."""
    _use(d, [b"a,b", b"a:b", b"a\\b", b"\\", b"\\040", b"a\\,b", b"a=b", b'"', b"'", b"#", b"%s"])


@behaviour()
def names_for_shells(d: Path) -> object:
    _use(
        d, [b"-rf", b"--", b"*", b"?", b"[a]", b"$HOME", b"`id`", b"~", b"!", b"a;b", b"a|b", b"&"]
    )


@behaviour()
def names_of_other_systems(d: Path) -> object:
    _use(d, [b"CON", b"con", b"NUL.txt", b"a<b>", b"file.", b"Thumbs.db", b".DS_Store", b"aux"])


@behaviour()
def names_of_dots(d: Path) -> object:
    _use(d, [b"...", b"....", b".x", b"..x", b"x.", b"x..", b". ", b".\n"])


@behaviour()
def names_without_encoding(d: Path) -> object:
    _use(d, [b"\xff", b"\xff\xfe", b"\xc3\x28", b"\xed\xa0\x80", b"\x80abc", b"\xc0\xaf"])


@behaviour()
def names_in_unicode(d: Path) -> object:
    texts = [
        "\u00e9",
        "e\u0301",
        "日本語",
        "🎉",
        "👨\u200d👩\u200d👧",
        "ß",
        "\u1e9e",
        "\u202e",
        "\ufeff",
    ]
    _use(d, [text.encode() for text in texts])


@behaviour()
def names_of_all_sorts_of_bytes(d: Path) -> object:
    _use(d, [b"%c" % byte for byte in range(1, 256, 2) if byte not in b"/."])


@behaviour()
def names_in_both_cases(d: Path) -> object:
    _use(d, [b"name", b"NAME", b"Name", b"nAME"])


@behaviour()
def names_that_look_private(d: Path) -> object:
    """What overlays and FUSE use for themselves."""
    _use(d, [b"work", b"index", b".fuse_hidden0001", b"#1", b".nfs0001", b"overlay.opaque"])


@behaviour()
def names_of_image_whiteouts(d: Path) -> object:
    """Ordinary names, but whiteouts in the next mount where OCI layers are read."""
    return seen(opens, d / "e" / ".wh.name", os.O_CREAT | os.O_WRONLY)


@behaviour()
def long_names(d: Path) -> object:
    _use(d, [b"n" * 255, b"m" * 254, "é".encode() * 127 + b"x", b"\xff" * 255, b" " * 255])


#: Every call that takes a path, for a name that cannot be.
_CALLS: dict[str, Callable[[str], object]] = {
    "stat": os.stat,
    "lstat": os.lstat,
    "open": lambda path: opens(path, os.O_RDONLY),
    "create": lambda path: opens(path, os.O_WRONLY | os.O_CREAT),
    "mkdir": os.mkdir,
    "mkfifo": os.mkfifo,
    "symlink": lambda path: os.symlink("x", path),
    "readlink": os.readlink,
    "unlink": os.unlink,
    "rmdir": os.rmdir,
    "chmod": lambda path: os.chmod(path, 0o600),
    "chown": lambda path: os.chown(path, -1, -1),
    "utime": os.utime,
    "truncate": lambda path: os.truncate(path, 0),
    "listdir": os.listdir,
    "chdir": lambda path: in_child(lambda: os.chdir(path)),
    "statvfs": os.statvfs,
    "getxattr": lambda path: os.getxattr(path, "user.x"),
    "setxattr": lambda path: os.setxattr(path, "user.x", b"y"),
    "listxattr": os.listxattr,
    "removexattr": lambda path: os.removexattr(path, "user.x"),
    "access": lambda path: libc.faccessat(path, os.F_OK, 0),
}


def _all_calls(d: Path, path: str) -> dict[str, object]:
    answers = {name: seen(call, path) for name, call in _CALLS.items()}
    answers["rename from"] = seen(os.rename, path, d / "new")
    answers["rename to"] = seen(os.rename, d / "f", path)
    answers["link from"] = seen(os.link, path, d / "new")
    answers["link to"] = seen(os.link, d / "f", path)
    return answers


@behaviour()
def name_too_long(d: Path) -> object:
    expect(_all_calls(d, f"{d}/{'n' * 256}"), others="ENAMETOOLONG")


@behaviour()
def name_too_long_in_the_middle(d: Path) -> object:
    expect(_all_calls(d, f"{d}/{'n' * 256}/x"), others="ENAMETOOLONG")


@behaviour()
def path_too_long(d: Path) -> object:
    """PATH_MAX counts the final NUL."""
    path = f"{d}/" + "./" * 3000 + "f"
    fits = path[: len(f"{d}/")] + "./" * ((4095 - len(f"{d}/f")) // 2) + "f"
    assert os.stat(fits).st_size == len(CONTENT)
    assert 4094 <= len(os.fsencode(fits)) <= 4095
    expect(_all_calls(d, path), others="ENAMETOOLONG")


@behaviour()
def empty_path(d: Path) -> object:
    expect(_all_calls(d, ""), others="ENOENT")


@behaviour()
def missing_in_the_middle(d: Path) -> object:
    expect(_all_calls(d, f"{d}/missing/x"), others="ENOENT")


@behaviour()
def file_in_the_middle(d: Path) -> object:
    expect(_all_calls(d, f"{d}/f/x"), others="ENOTDIR")


@behaviour()
def fifo_in_the_middle(d: Path) -> object:
    expect(_all_calls(d, f"{d}/p/x"), others="ENOTDIR")


@behaviour()
def loop_in_the_middle(d: Path) -> object:
    os.symlink("loop", d / "loop")
    expect(_all_calls(d, f"{d}/loop/x"), others="ELOOP")


@behaviour()
def file_with_slash(d: Path) -> object:
    got = _all_calls(d, f"{d}/f/")
    return expect(
        got, others="ENOTDIR", create="EISDIR", mkdir="EEXIST", mkfifo="EEXIST", symlink="EEXIST",
        **{"rename to": got["rename to"], "link to": got["link to"]},
    )  # fmt: skip


@behaviour()
def missing_name(d: Path) -> object:
    calls = ("create", "mkdir", "mkfifo", "symlink")
    got = {name: seen(call, f"{d}/missing") for name, call in _CALLS.items() if name not in calls}
    expect(got, others="ENOENT")


@behaviour()
def slashes_and_dots(d: Path) -> object:
    for path in ("//f", "/./f", "/d/../f", "/d/sub/../../f", "/e/./..//f"):
        assert os.stat(f"{d}{path}").st_ino == os.stat(d / "f").st_ino
    with fails(errno.ENOENT):
        os.stat(f"{d}/missing/../f")
    with fails(errno.ENOTDIR):
        os.stat(f"{d}/f/../g")
    with fails(errno.ENOTDIR):
        os.stat(f"{d}/f/.")
    return sorted(os.listdir(f"{d}/d/.")), sorted(os.listdir(f"{d}/d//"))


@behaviour()
def dots_of_a_directory(d: Path) -> object:
    def number(path: str) -> int:
        return os.stat(f"{d}/{path}").st_ino

    assert number("d/.") == number("d")
    assert number("d/sub/..") == number("d")
    assert number("d/..") == number(".")


@behaviour()
def deeper_than_a_path_can_be(d: Path) -> object:
    """Deeper than PATH_MAX, by way of the working directory."""
    name, depth = "n" * 250, 20

    def descend() -> object:
        for _ in range(depth):
            os.mkdir(name)
            os.chdir(name)
        with open("bottom", "w") as stream:
            stream.write("deep")
        with open("bottom") as stream:
            text = stream.read()
        path = libc.getcwd() if not isinstance(seen(libc.getcwd), str) else b""
        os.unlink("bottom")
        for _ in range(depth):
            os.chdir("..")
            os.rmdir(name)
        return text, len(path) - len(os.fsencode(d / "e")) if path else 0, os.listdir(".")

    text, length, rest = in_directory(d / "e", descend)
    assert (text, rest) == ("deep", [])
    assert length in (0, depth * (len(name) + 1))


@behaviour()
def deep_tree(d: Path) -> object:
    path = d / "e"
    for index in range(100):
        path = path / f"{index}"
        os.mkdir(path)
    (path / "f").write_bytes(b"bottom")
    os.rename(d / "e" / "0", d / "moved")
    found = d / "moved" / "/".join(f"{index}" for index in range(1, 100)) / "f"
    assert found.read_bytes() == b"bottom"
    with fails(errno.EINVAL):
        os.rename(d / "moved", found.parent / "x")
    with fails(errno.ENOTEMPTY):
        os.rmdir(d / "moved")


@behaviour()
def descriptor_paths(d: Path) -> object:
    """/proc/self/fd tells the path of a descriptor, whatever its name is made of."""
    for name in ("plain", "with space", "new\nline", "back\\slash", "\udcff"):
        (d / "e" / name).touch()
        fd = os.open(d / "e" / name, os.O_RDONLY)
        assert os.readlink(f"/proc/self/fd/{fd}") == f"{d}/e/{name}"
        os.close(fd)


@behaviour()
def working_directory(d: Path) -> object:
    def inside() -> object:
        os.chdir("sub")
        return libc.getcwd(), os.stat("leaf").st_size, os.stat("../child").st_size

    cwd, *sizes = in_directory(d / "d", inside)
    assert cwd == os.fsencode(d / "d" / "sub")
    with fails(errno.ENOTDIR):
        os.chdir(d / "f")
    return sizes


@behaviour()
def names_are_free_after_failure(d: Path) -> object:
    """A look-up in vain, a failed create: nothing is remembered wrongly."""
    for _ in range(3):
        assert kind_of(d / "e" / "x") == "ENOENT"
        with fails(errno.ENOENT):
            os.rename(d / "e" / "x", d / "e" / "y")
        os.mkdir(d / "e" / "x")
        with fails(errno.EEXIST):
            os.mkdir(d / "e" / "x")
        os.rename(d / "e" / "x", d / "e" / "y")
        assert kind_of(d / "e" / "x") == "ENOENT"
        os.rmdir(d / "e" / "y")
        assert kind_of(d / "e" / "y") == "ENOENT"
