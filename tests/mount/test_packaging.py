"""Built and installed as others do: `python -m build` in a copy of the sources, each archive that
comes out of it installed by pip in an environment of its own, and mounted with what is there.

The wheel is built by the setuptools that the tests run with, Debian's, the oldest that we take; the
source archive is installed with the newest, which pip fetches.
"""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from pathlib import Path

import pytest

from fuseoverlay import __version__
from tests.helpers.mounts import PROJECT, Daemon, Space, fuse_only, scratch

pytestmark = [fuse_only, pytest.mark.timeout(600)]

#: What no build may need.
IGNORED = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info", ".*", "build", "dist")
MANUALS = {
    *("share/man/man1/fuseoverlay.1", "share/man/man1/fuseoverlay-image.1"),
    "share/man/man1/fuseoverlay-layers.1",
    "share/man/man8/mount.fuseoverlay.8",
}
COMPLETION = {
    *("share/bash-completion/completions/fuseoverlay", "share/zsh/site-functions/_fuseoverlay"),
    "share/fish/vendor_completions.d/fuseoverlay.fish",
}
#: What `fuseoverlay completion` prints.
SCRIPTS = {f"fuseoverlay/completion/{Path(name).name}" for name in COMPLETION}
TYPES = {"fuseoverlay/py.typed", "fuseoverlay/native/_native.pyi"}
MODULES = {str(path.relative_to(PROJECT)) for path in PROJECT.glob("fuseoverlay/**/*.py")}


def _run(*argv: object, cwd: Path) -> str:
    """What it prints. pip finds its cache and its settings, nobody a project: `cwd` has none."""
    ours = ("PYTHON", "FUSEOVERLAY_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    env["SOURCE_DATE_EPOCH"] = "1700000000"
    done = subprocess.run(
        [str(word) for word in argv],
        cwd=cwd, env={**env, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@dataclass(frozen=True)
class Built:
    """What `python -m build` makes: a source archive, and a wheel of that."""

    sdist: Path
    wheel: Path


@pytest.fixture(scope="module")
def built() -> Iterator[Built]:
    """Both, of a copy of the sources as they are in a checkout."""
    with scratch() as base:
        sources = base / "sources"
        shutil.copytree(PROJECT, sources, ignore=IGNORED)
        build = (sys.executable, "-m", "build", "--no-isolation", "--outdir", base / "dist")
        _run(*build, sources, cwd=base)
        (sdist,), (wheel,) = (base / "dist").glob("*.tar.gz"), (base / "dist").glob("*.whl")
        yield Built(sdist, wheel)


def _names(wheel: Path) -> set[str]:
    """The names in a wheel, without where in it an installer takes data from."""
    with zipfile.ZipFile(wheel) as archive:
        return {re.sub(r"^[^/]+\.data/data/", "", name) for name in archive.namelist()}


def _metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        return email.message_from_bytes(
            archive.read(f"fuseoverlay-{__version__}.dist-info/METADATA")
        )


def test_source_archive_is_whole(built: Built) -> None:
    with tarfile.open(built.sdist) as tar:
        held = {name.partition("/")[2] for name in tar.getnames()}
    patterns = (
        "fuseoverlay/**/*.py", "fuseoverlay/**/*.pyi", "fuseoverlay/native/csrc/*.[ch]",
        "docs/**/*.[18ms]*", "tests/**/*.[pc]*", "scripts/*", "benchmarks/*.[pc]*", "*.*",
    )  # fmt: skip
    wanted = {
        str(path.relative_to(PROJECT))
        for pattern in patterns
        for path in PROJECT.glob(pattern)
        if path.is_file() and not {*IGNORED(str(path.parent), [path.name])}
        and "__pycache__" not in path.parts
    }  # fmt: skip
    assert len(wanted) > 300
    assert wanted - held == set()


def test_wheel_has_what_is_used_and_nothing_else(built: Built) -> None:
    names = _names(built.wheel)
    known = MODULES | TYPES | MANUALS | COMPLETION | SCRIPTS
    assert known - names == set()
    (info,) = {name.partition("/")[0] for name in names if ".dist-info/" in name}
    rest = {name for name in names if not name.startswith(f"{info}/")}
    assert rest - known == {"fuseoverlay/native/_native.abi3.so"}


def test_one_wheel_is_for_every_python_that_we_take(built: Built) -> None:
    oldest = re.fullmatch(r">=3\.(\d+)", _metadata(built.wheel)["Requires-Python"])
    assert oldest
    assert f"-cp3{oldest[1]}-abi3-linux_" in built.wheel.name


def test_wheel_is_the_same_wherever_it_is_built(built: Built) -> None:
    with scratch() as base:
        sources = base / "elsewhere" / "sources"
        shutil.copytree(PROJECT, sources, ignore=IGNORED)
        build = (sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", base)
        _run(*build, sources, cwd=base)
        assert (base / built.wheel.name).read_bytes() == built.wheel.read_bytes()


def test_version_has_one_source(built: Built) -> None:
    assert _metadata(built.wheel)["Version"] == __version__
    assert built.sdist.name == f"fuseoverlay-{__version__}.tar.gz"
    said = [
        str(path.relative_to(PROJECT))
        for path in (PROJECT / "pyproject.toml", PROJECT / "setup.py", *PROJECT.glob("docs/*.[18]"),
                     *PROJECT.glob("fuseoverlay/**/*.py"))
        if __version__ in path.read_text()
    ]  # fmt: skip
    assert said == ["fuseoverlay/__init__.py"]


@pytest.mark.parametrize(
    ("wanted", "compiler", "code", "is_built"),
    [
        ("", "cc", 0, True),
        ("", "false", 0, False),
        ("required", "cc", 0, True),
        ("required", "false", 1, False),
        ("none", "cc", 0, False),
        ("maybe", "cc", 1, False),
    ],
)
def test_builder_says_whether_he_wants_the_extension(
    tmp_path: Path, wanted: str, compiler: str, code: int, is_built: bool
) -> None:
    env = {"PATH": os.environ["PATH"], "FUSEOVERLAY_EXTENSION": wanted, "CC": compiler}
    argv = [sys.executable, "-W", "ignore", "setup.py", "-q", "build_ext", "--force"]
    done = subprocess.run(
        [*argv, "--build-lib", tmp_path, "--build-temp", tmp_path / "temp"],
        cwd=PROJECT, env=env, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert bool(list(tmp_path.glob("fuseoverlay/native/*.so"))) == is_built


@pytest.fixture(scope="module", params=["sdist", "wheel"])
def installed(built: Built, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A new environment, with what pip installs of this archive and nothing else."""
    with scratch() as base:
        venv = base / "venv"
        _run(Path(sys.base_prefix, "bin", "python3"), "-m", "venv", "--without-pip", venv, cwd=base)
        pip = (sys.executable, "-m", "pip", "--python", venv / "bin" / "python")
        _run(*pip, "install", "-q", getattr(built, request.param), cwd=base)
        _run(*pip, "check", cwd=base)
        yield venv


def test_installed_has_its_files(installed: Path) -> None:
    assert [name for name in sorted(MANUALS | COMPLETION) if not (installed / name).is_file()] == []
    (package,) = installed.glob("lib/python3*/site-packages/fuseoverlay")
    beside = {path.name for path in package.parent.iterdir()}
    assert beside & {"tests", "benchmarks", "docs", "scripts"} == set()
    assert not list(package.glob("**/*.[ch]")), "nobody uses them there"
    where = "import fuseoverlay; print(fuseoverlay.__file__)"
    said = _run(installed / "bin" / "python", "-c", where, cwd=installed)
    assert said == f"{package}/__init__.py\n"
    said = _run(installed / "bin" / "fuseoverlay", "--version", cwd=installed)
    assert said == f"fuseoverlay {__version__}\n"
    usage = _run(installed / "bin" / "mount.fuseoverlay", "--help", cwd=installed)
    assert usage.startswith("usage: mount.fuseoverlay ")


def test_installed_mounts(installed: Path, space: Space) -> None:
    (space.lower / "f").write_bytes(b"from the lower")
    program = ("env", "-i", f"PATH={os.environ['PATH']}", str(installed / "bin" / "fuseoverlay"))
    argv = [*program, "mount", "-f", "-o", space.options(), str(space.mnt)]
    daemon = space.daemon = Daemon(argv, space.mnt, space.log)
    daemon.wait_until_mounted(1)
    assert (space.mnt / "f").read_bytes() == b"from the lower"
    with (space.mnt / "f").open("ab") as file:
        file.write(b", changed")
    (space.mnt / "new").write_bytes(b"new")
    assert sorted(os.listdir(space.mnt)) == ["f", "new"]
    assert (space.mnt / "f").read_bytes() == b"from the lower, changed"
    space.unmount()
    assert (space.upper / "f").read_bytes() == b"from the lower, changed"
    assert "extension in effect: no OPEN, OPENDIR" in daemon.text().splitlines()[0]
