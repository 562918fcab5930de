"""The commands that look into an image, on one whose every answer is known."""

from __future__ import annotations

import gzip
import io
import json
import os
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest

from fuseoverlay.oci.layout import Node, directory, symlink
from tests.commands.conftest import Cli
from tests.helpers import warm
from tests.helpers.mounts import command, daemon_env
from tests.view.conftest import Painter
from tests.view.odd import ODD

#: Bottom first.
LAYERS = [
    [directory("etc", 0o750), Node("etc/conf", data=b"one\ntwo\n", mtime=100), Node("etc/old"),
     Node("lists/a", data=b"a" * 1000), Node("lists/b", data=b"b" * 500), Node("kept", data=b"k")],
    [Node("etc/conf", data=b"one\nTWO\n", mtime=200), Node("etc/.wh.old"), Node(".wh.lists"),
     symlink("link", "etc/conf"), symlink("up", "/etc")],
    [Node("lists/c", data=b"c" * 10), Node("etc/conf", 0o600, b"one\nTWO\n", mtime=300)],
    [Node("etc/.wh..wh..opq"), Node("etc/fresh", data=b"f\n", uid=3, xattrs={"user.x": b"\1"})],
]  # fmt: skip
STEPS = ["COPY base", "RUN rm -rf lists", "RUN chmod 600 /etc/conf", "RUN renew"]


@pytest.fixture
def picture(paint: Painter) -> str:
    return paint("picture", *LAYERS, steps=STEPS)


def rows(cli: Cli, *argv: object) -> list[dict[str, object]]:
    return [json.loads(line) for line in cli.said(*argv).splitlines()]


# layers


def test_layers(cli: Cli, picture: str) -> None:
    found = rows(cli, "layers", "--json", picture)
    shown = [
        tuple(row[name] for name in ("layer", "size", "entries", "added", "changed", "removed",
                                     "reclaimable", "command"))
        for row in found
    ]  # fmt: skip
    assert shown == [
        # conf 8, old 0, lists 1500 are hidden.
        (1, 1509, 7, 7, 0, 0, 1508, STEPS[0]),
        # A link counts with its target. Removed: old, lists and the two files in it.
        (2, 20, 6, 2, 1, 4, 8, STEPS[1]),
        (3, 18, 4, 2, 1, 0, 8, STEPS[2]),
        # The archive does not say which mode the new /etc has.
        (4, 2, 2, 1, 1, 1, 0, STEPS[3]),
    ]
    assert all(str(row["digest"]).startswith("sha256:") for row in found)
    assert all(row["problem"] is None for row in found)


def test_layers_as_a_table(cli: Cli, picture: str) -> None:
    first, *lines = cli.said("layers", picture).splitlines()
    assert first.split()[:2] == ["LAYER", "DIFF"] and "RECLAIMABLE" in first
    assert [line.split()[0] for line in lines] == ["1", "2", "3", "4"]
    assert "1.51kB" in lines[0] and "COPY base" in lines[0]
    assert cli.said("layers", "--format", "{{.Number}}", picture) == "1\n2\n3\n4\n"


# ls and tree


def test_ls(cli: Cli, picture: str) -> None:
    assert cli.said("ls", picture).split() == ["etc", "kept", "link", "lists", "up"]
    assert cli.said("ls", picture, "/etc").split() == ["fresh"]
    assert cli.said("ls", "--layer", "3", picture, "etc", "kept").splitlines() == [
        "etc:", "conf", "kept",
    ]  # fmt: skip
    assert cli.said("ls", "-R", picture, "/lists").split() == [".", "c"]
    # Links on the way lead inside the image.
    assert cli.said("ls", picture, "/up/fresh").split() == ["/up/fresh"]
    # A link to a directory stands for it, unless it is wanted itself.
    assert cli.said("ls", picture, "/up").split() == ["fresh"]
    assert cli.said("ls", "-l", picture, "/up/").split()[-1] == "fresh"
    assert cli.said("ls", "-l", picture, "/up").split()[-1] == "/etc"


def test_ls_long(cli: Cli, picture: str) -> None:
    lines = cli.said("ls", "-l", picture, "/etc").splitlines()
    assert lines == ["-rw-r--r--  1     3     0          2 1970-01-01 00:00   4 fresh"]
    (line,) = cli.said("ls", "-ld", "--layer", "1", picture, "/etc").splitlines()
    assert line.split()[0] == "drwxr-x---"
    (item,) = rows(cli, "ls", "--json", picture, "/etc/fresh")
    assert item["path"] == "/etc/fresh" and item["xattrs"] == {"user.x": "01"}
    assert (item["mode"], item["uid"], item["size"], item["layer"]) == ("-rw-r--r--", 3, 2, 4)


def test_what_is_not_there(cli: Cli, picture: str) -> None:
    cli.refused(7, "there is no /etc/conf", "ls", picture, "/etc/conf")
    cli.refused(7, "/etc is no regular file", "cat", picture, "etc")
    cli.refused(2, "has no layer 5; write a number from 1 to 4", "ls", "--layer", "5", picture)
    cli.refused(7, "no layer has /nothing", "which", picture, "/nothing")
    done = cli.run("ls", picture, "/nothing", "/kept")
    assert (done.returncode, done.stdout) == (7, "/kept\n")


def test_tree(cli: Cli, picture: str) -> None:
    assert cli.said("tree", picture).splitlines() == [
        "/",
        "├── etc",
        "│   └── fresh",
        "├── kept",
        "├── link -> etc/conf",
        "├── lists",
        "│   └── c",
        "└── up -> /etc",
        "",
        "2 directories, 5 files",
    ]
    assert cli.said("tree", "-L", "1", picture).splitlines()[-1] == "2 directories, 3 files"
    assert cli.said("tree", picture, "/kept").splitlines() == ["/kept", "", "0 directories, 1 file"]
    cli.refused(2, "--changes is for one layer", "tree", "--changes", picture)
    assert cli.said("tree", "-s", "-p", picture, "/etc").splitlines()[1] == (
        "└── [-rw-r--r--     3     0     2B]  fresh"
    )


def test_tree_of_a_layer(cli: Cli, picture: str) -> None:
    assert cli.said("tree", "--layer", "2", "--changes", picture).splitlines()[:-2] == [
        "  /",
        "├──   etc",
        "│   ├── M conf",
        "│   └── D old",
        "├── A link -> etc/conf",
        "├── D lists",
        "│   ├── D a",
        "│   └── D b",
        "└── A up -> /etc",
    ]
    whole = cli.said("tree", "--layer", "4", picture)
    assert "│   ├── D conf\n│   └── A fresh\n" in whole and "├──   kept\n" in whole


# cat and cp


def test_cat(cli: Cli, picture: str) -> None:
    assert cli.said("cat", picture, "/etc/fresh", "kept") == "f\nk"
    assert cli.said("cat", f"{picture}:/etc/fresh") == "f\n"
    cli.refused(2, "no file is named", "cat", picture)
    for layer, text in ((1, "one\ntwo\n"), (2, "one\nTWO\n")):
        assert cli.said("cat", "--layer", str(layer), picture, "/etc/conf") == text
    assert cli.said("cat", "--layer", "2", picture, "/link") == "one\nTWO\n"
    cli.refused(7, "/link is a link that leads nowhere", "cat", picture, "/link")


def test_cp(cli: Cli, picture: str, tmp_path: Path) -> None:
    """As `cp` and `docker cp` do; nothing is overwritten."""
    cli.said("cp", picture, "/etc/fresh", tmp_path)
    assert (tmp_path / "fresh").read_bytes() == b"f\n"
    cli.said("cp", f"{picture}:/etc", tmp_path / "new")
    assert os.listdir(tmp_path / "new") == ["fresh"]
    cli.said("cp", "--layer", "1", picture, "etc", tmp_path / "new")
    assert sorted(os.listdir(tmp_path / "new/etc")) == ["conf", "old"]
    conf = os.stat(tmp_path / "new/etc/conf")
    assert (stat.S_IMODE(conf.st_mode), conf.st_mtime, conf.st_uid) == (0o644, 100, os.getuid())
    assert stat.S_IMODE(os.stat(tmp_path / "new/etc").st_mode) == 0o750
    before = (tmp_path / "fresh").read_bytes()
    cli.refused(1, "there is something already", "cp", picture, "/etc/fresh", tmp_path)
    assert (tmp_path / "fresh").read_bytes() == before
    cli.refused(2, "write", "cp", picture, "/etc")
    cli.refused(2, "no such directory", "cp", picture, "/etc", tmp_path / "no/such")


def test_cp_as_an_archive(cli: Cli, paint: Painter, tmp_path: Path) -> None:
    """Owners, attributes, fractions of seconds, links: an archive keeps all of it."""
    nodes = [
        directory("d", 0o700, uid=1),
        Node("d/f", 0o4755, b"data", 2, 3, "5.25", xattrs={"user.a": b"\xff"}),
        Node("d/g", hardlink="d/f"), symlink("d/l", "f"), Node("d/p", stat.S_IFIFO | 0o640),
    ]  # fmt: skip
    image = paint("one", nodes)
    env = daemon_env(FUSEOVERLAY_ROOT=str(cli.root))
    argv = command("cp", image, "/d", "-")
    done = subprocess.run(argv, env=env, cwd=tmp_path, check=True, capture_output=True, timeout=60)
    with tarfile.open(fileobj=io.BytesIO(done.stdout), errors="surrogateescape") as archive:
        found = {info.name: info for info in archive}
        file = archive.extractfile("d/f")
        assert file is not None and file.read() == b"data"
    # The directory comes when nothing goes into it any more.
    assert list(found) == ["d/f", "d/g", "d/l", "d/p", "d"]
    assert (found["d"].mode, found["d"].uid) == (0o700, 1)
    entry = found["d/f"]
    assert (entry.mode, entry.uid, entry.gid, entry.mtime) == (0o4755, 2, 3, 5.25)
    assert entry.pax_headers["SCHILY.xattr.user.a"] == "\udcff"
    assert found["d/g"].linkname == "d/f" and found["d/g"].islnk()
    assert found["d/l"].linkname == "f" and found["d/p"].isfifo()


def test_cp_as_an_archive_for_others(cli: Cli, paint: Painter, tmp_path: Path) -> None:
    """tar restores times and modes of directories that hold others and that nobody may write."""
    nodes = [directory("r", 0o555, mtime=5), directory("r/s", 0o555, mtime=6),
             Node("r/s/f", data=b"1"), Node(b"r/\xff\xfe", data=b"2"),
             symlink("r/l", "s")]  # fmt: skip
    image = paint("one", nodes, [Node("r/top", data=b"3"), directory("r", 0o555, mtime=5)])
    env = daemon_env(FUSEOVERLAY_ROOT=str(cli.root))
    cp = subprocess.run(
        command("cp", image, "/r", "-"), env=env, check=True, capture_output=True, timeout=60
    )
    done = subprocess.run(
        ["tar", "-xpf", "-", "-C", tmp_path], input=cp.stdout, capture_output=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    for name, time in (("r", 5), ("r/s", 6)):
        st = os.stat(tmp_path / name)
        assert (stat.S_IMODE(st.st_mode), st.st_mtime) == (0o555, time)
    assert sorted(os.listdir(os.fsencode(tmp_path / "r"))) == [b"l", b"s", b"top", b"\xff\xfe"]
    for name in ("r", "r/s"):
        os.chmod(tmp_path / name, 0o755)


def test_cp_gives_no_rights_away(cli: Cli, paint: Painter, tmp_path: Path) -> None:
    """A set-user-ID program of root's in an image is not one of who copies it."""
    image = paint("one", [Node("su", 0o6755, b"x", uid=0)])
    cli.said("cp", image, "/su", tmp_path)
    assert stat.S_IMODE(os.stat(tmp_path / "su").st_mode) == 0o755


def test_cp_that_fails_leaves_nothing(cli: Cli, picture: str, tmp_path: Path) -> None:
    cli.said("layers", picture)
    layout = Path(picture.rpartition(":")[0])
    (blob,) = (p for p in layout.glob("blobs/sha256/*") if p.read_bytes()[:2] == b"\x1f\x8b"
               and b"fresh" in gzip.decompress(p.read_bytes()))  # fmt: skip
    blob.write_bytes(b"\0" * blob.stat().st_size)
    done = cli.run("cp", picture, "/", tmp_path / "all")
    assert done.returncode == 8 and "the image is damaged" in done.stderr
    assert not (tmp_path / "all").exists()


def test_export(cli: Cli, paint: Painter, tmp_path: Path) -> None:
    """All files in one archive; a new image of it shows the same."""
    image = paint("rich", *ODD["hard links"], *ODD["metadata"], *ODD["implied"])
    cli.said("export", "-O", tmp_path / "all.tar", image)
    with tarfile.open(tmp_path / "all.tar") as archive:
        names = archive.getnames()
    assert names[-1] == "." and "n/e/w" in names and not [x for x in names if x.startswith("/")]
    cli.said("import", tmp_path / "all.tar", "flat:1")
    done = cli.run("diff", "--times", image, "flat:1")
    assert (done.returncode, done.stdout) == (0, "")
    env = daemon_env(FUSEOVERLAY_ROOT=str(cli.root))
    piped = subprocess.run(
        command("export", image), env=env, check=True, capture_output=True, timeout=60
    )
    assert piped.stdout == (tmp_path / "all.tar").read_bytes()
    cli.refused(9, "there is no directory", "export", "-O", tmp_path / "no/such", image)


# which and find


def test_which(cli: Cli, picture: str) -> None:
    done = cli.run("which", picture, "/etc/conf")
    assert done.returncode == 1
    assert done.stdout.splitlines()[:2] == [
        "/etc/conf",
        "  does not show: layer 4 (RUN renew) makes /etc opaque",
    ]
    assert [line.split("(")[0].strip() for line in done.stdout.splitlines()[2:]] == [
        "hidden layer 3",
        "hidden layer 2",
        "hidden layer 1",
    ]
    assert cli.said("which", picture, "/lists/c").splitlines()[1] == (
        "  shows  layer 3 (RUN chmod 600 /etc/conf): 10B, 1970-01-01 00:00"
    )


def test_which_all(cli: Cli, picture: str) -> None:
    assert cli.run("which", "--all", picture, "/lists/a").stdout.splitlines() == [
        "/lists/a",
        "  layer 1 (COPY base) adds it: 1kB, 1970-01-01 00:00",
        "  layer 2 (RUN rm -rf lists) deletes /lists",
    ]
    lines = cli.run("which", "-a", picture, "/etc/conf").stdout.splitlines()
    assert [line.split(") ")[1].split(":")[0] for line in lines[1:]] == [
        "adds it",
        "changes it",
        "changes it",
        "makes /etc opaque",
    ]
    assert "link -> etc/conf" in cli.said("which", picture, "/link").splitlines()[0]


def test_which_as_json(cli: Cli, picture: str) -> None:
    (found,) = rows(cli, "which", "--json", picture, "/lists")
    assert found["shownFrom"] == 3
    life = found["life"]
    assert isinstance(life, list)
    assert [(item["layer"], item["event"], item["command"]) for item in life] == [
        (1, "adds", STEPS[0]),
        (2, "deletes", STEPS[1]),
        (3, "adds", STEPS[2]),
    ]


def test_find(cli: Cli, picture: str) -> None:
    assert [
        line.split(maxsplit=3)[3] for line in cli.said("find", picture, "con?").splitlines()
    ] == [
        "/etc/conf  [replaced by layer 2]",
        "/etc/conf  [replaced by layer 3]",
        "/etc/conf  [hidden by layer 4, which makes /etc opaque]",
    ]
    assert cli.said("find", picture, "/lists/[ab]").splitlines() == [
        "  1 -rw-r--r--     1kB /lists/a  [hidden by layer 2, which deletes /lists]",
        "  1 -rw-r--r--    500B /lists/b  [hidden by layer 2, which deletes /lists]",
    ]
    assert [row["path"] for row in rows(cli, "find", "--json", picture, "*", "--type", "w")] == [
        "/lists",
        "/etc/old",
    ]
    large = rows(cli, "find", "--json", picture, "--larger-than", "600", "**")
    assert [row["path"] for row in large] == ["/lists/a"]
    assert len(rows(cli, "find", "--json", "--layer", "3", picture, "*")) == 4
    assert all("hiddenBy" in row or "whiteout" in row
               for row in rows(cli, "find", "--json", "--hidden", picture, "*"))  # fmt: skip
    assert cli.run("find", picture, "nothing").returncode == 1
    cli.refused(2, "--larger-than x: no size", "find", "--larger-than", "x", picture, "*")


# diff


def test_diff_of_layers(cli: Cli, picture: str) -> None:
    done = cli.run("diff", picture, "--layers", "1", "2")
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "A /link -> etc/conf",
        "D /lists",
        "D /lists/a  (1kB)",
        "D /lists/b  (500B)",
        "A /up -> /etc",
        "C /etc/conf  (content)",
        "D /etc/old  (0B)",
    ]
    done = cli.run("diff", picture, "--layers", "2", "3")
    assert "C /etc/conf  (mode 0644 -> 0600)" in done.stdout.splitlines()
    assert cli.run("diff", picture, "--layers", "3", "3").returncode == 0
    assert len(cli.run("diff", picture, "--layers", "0", "1").stdout.splitlines()) == 7


def test_diff_of_images(cli: Cli, paint: Painter, picture: str) -> None:
    other = paint(
        "other", *LAYERS[:2], [Node("kept", data=b"K", uid=7), Node("etc/conf", data=b"x")]
    )
    done = cli.run("diff", "--json", picture, other)
    assert done.returncode == 1
    found = {row["path"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert found["/kept"]["fields"] == ["content", "owner"]
    assert found["/etc/fresh"]["kind"] == "removed" and found["/etc/conf"]["kind"] == "added"
    assert found["/lists/c"]["kind"] == "removed" and "/link" not in found
    assert found["/kept"]["before"]["uid"] == 0 and found["/kept"]["after"]["uid"] == 7
    assert cli.run("diff", picture, picture).returncode == 0
    cli.refused(2, "name two images, or --layers N M", "diff", picture)
    cli.refused(2, "images are wanted", "diff", picture, picture, picture)


def test_diff_of_contents(cli: Cli, picture: str) -> None:
    lines = cli.run("diff", "--content", picture, "--layers", "1", "2").stdout.splitlines()
    at = lines.index("C /etc/conf  (content)")
    assert lines[at + 1 : at + 7] == [
        "--- /etc/conf", "+++ /etc/conf", "@@ -1,2 +1,2 @@", " one", "-two", "+TWO",
    ]  # fmt: skip


# what is looked into


@pytest.mark.parametrize("transport", ["oci-archive", "docker-archive"])
def test_archives(cli: Cli, picture: str, transport: str, tmp_path: Path) -> None:
    path = f"{tmp_path}/{transport}.tar"
    argv = ["skopeo", "copy", "--quiet", f"oci:{picture}", f"{transport}:{path}:picture:1"]
    subprocess.run(argv, check=True, timeout=60)
    for name in (path, f"{transport}:{path}"):
        assert cli.said("cat", name, "/etc/fresh") == "f\n"
        found = cli.said("layers", "--format", "{{.Reclaimable}} {{.CreatedBy}}", name)
        assert found.splitlines()[0] == "1.51kB COPY base"
    assert cli.said("images", "-q") == ""


def test_the_store(cli: Cli, picture: str) -> None:
    """By name and by id; nothing is unpacked."""
    layout, _, ref = picture.rpartition(":")
    cli.add(Path(layout), ref, "docker.io/library/picture:1")
    Path(layout).rename(Path(layout).with_name("away"))
    for name in ("picture:1", "docker://picture:1", cli.said("images", "-q").strip()):
        assert cli.said("ls", name, "/etc") == "fresh\n"
    assert not list(cli.root.glob("layers*/*/*"))
    assert "no such image" in cli.run("ls", "--pull", "never", "other:1").stderr


def test_colours(cli: Cli, picture: str) -> None:
    """Only on a terminal, and not with NO_COLOR; letters always."""
    argv = command("tree", "--layer", "2", picture)
    env = daemon_env(FUSEOVERLAY_ROOT=str(cli.root))
    assert "\x1b[" not in cli.said("tree", "--layer", "2", picture)
    for more, colours in (({}, True), ({"NO_COLOR": "1"}, False)):
        script = ["script", "-qec", " ".join(map(str, argv)), "/dev/null"]
        done = warm.run(script, env={**env, **more, "TERM": "xterm"}, cwd=cli.base)
        assert ("\x1b[31m" in done.stdout) is colours and "D lists" in done.stdout
