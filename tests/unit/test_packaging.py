"""What is given to others: the source archive holds all that a build needs, the wheel what is used.

Built with the setuptools that the tests run with: Debian's forgets what newer ones find by
themselves.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.helpers.mounts import PROJECT

#: What a checkout has and whoever works in it does not make.
PARTS = ("CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in", "README.md", "docs",
         "fuseoverlay", "pyproject.toml", "setup.py")  # fmt: skip


def _run(*argv: object, cwd: Path) -> None:
    env = {"PATH": os.environ.get("PATH", os.defpath), "PIP_NO_CACHE_DIR": "1", "HOME": str(cwd)}
    done = subprocess.run(
        [str(word) for word in argv],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _sources(base: Path) -> Path:
    """A copy of the checkout's sources, without what was built in there."""
    base.mkdir()
    built = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info", ".*")
    for name in PARTS:
        path = PROJECT / name
        if path.is_dir():
            shutil.copytree(path, base / name, ignore=built)
        elif path.exists():
            shutil.copy(path, base / name)
    return base


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist."""
    base = tmp_path_factory.mktemp("sdist")
    sources = _sources(base / "sources")
    _run(sys.executable, "setup.py", "-q", "sdist", "-d", base / "dist", cwd=sources)
    (made,) = (base / "dist").iterdir()
    return made


@pytest.fixture(scope="module")
def wheel(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel that is built from the sdist."""
    base = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "-q")
    _run(*pip, "--no-deps", "--no-build-isolation", "--no-index", "-w", base, archive, cwd=base)
    (made,) = base.glob("*.whl")
    return zipfile.ZipFile(made)


def test_source_archive_is_whole(archive: Path) -> None:
    with tarfile.open(archive) as tar:
        held = {name.partition("/")[2] for name in tar.getnames()}
    wanted = {
        str(path.relative_to(PROJECT))
        for pattern in (
            "fuseoverlay/**/*.py",
            "fuseoverlay/**/*.pyi",
            "fuseoverlay/native/csrc/*.[ch]",
            "docs/**/*.[18ms]*",
        )
        for path in PROJECT.glob(pattern)
    }
    assert len(wanted) > 50
    assert wanted | {"CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "README.md", "setup.py"} <= held


def test_wheel_from_the_source_archive_has_the_extension(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    assert [name for name in names if name.startswith("fuseoverlay/native/_native.")], names
    assert not [name for name in names if name.endswith((".c", ".h"))], "nobody uses them there"


def test_wheel_has_the_types(wheel: zipfile.ZipFile) -> None:
    assert {"fuseoverlay/py.typed", "fuseoverlay/native/_native.pyi"} <= set(wheel.namelist())


def test_wheel_has_every_module(wheel: zipfile.ZipFile) -> None:
    modules = {str(path.relative_to(PROJECT)) for path in PROJECT.glob("fuseoverlay/**/*.py")}
    assert modules <= set(wheel.namelist())
