"""Hooks for all tests.

In continuous integration (CI=true) every tool is there, so a test that would be
skipped for want of one (reason "missing tool: ...") fails instead.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.helpers.mounts import IMPL, MODE, NATIVE, Space, scratch
from tests.images import build

MISSING = "missing tool"


def pytest_report_header() -> str:
    """Say in which mode the tests run."""
    extension = "with" if NATIVE else "without"
    return f"mode: {MODE}, {extension} the extension, implementation: {IMPL}, CI: {_in_ci()}"


def pytest_sessionstart() -> None:
    """In continuous integration only who says so does without the extension."""
    if _in_ci() and IMPL == "fuse" and not NATIVE and os.environ.get("FUSEOVERLAY_NATIVE") != "0":
        pytest.exit("the extension was not built", returncode=pytest.ExitCode.USAGE_ERROR)


def _in_ci() -> bool:
    return os.environ.get("CI") == "true"


def _fail_missing_tool(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not (_in_ci() and report.skipped and isinstance(report.longrepr, tuple)):
        return
    reason = report.longrepr[2].removeprefix("Skipped: ")
    if reason.startswith(MISSING):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, where nothing may be missing: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a forbidden skip of a test into a failure."""
    report = yield
    _fail_missing_tool(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Turn a forbidden skip of a module into a failure."""
    report = yield
    _fail_missing_tool(report)
    return report


@pytest.fixture
def space() -> Iterator[Space]:
    """A private overlay, not yet mounted."""
    with scratch() as base:
        space = Space(base)
        try:
            yield space
        finally:
            space.drop()


@pytest.fixture(scope="session")
def image() -> Path:
    """The directory with the real image in all its forms."""
    try:
        return build.ensure()
    except build.MissingTool as exc:
        pytest.skip(f"missing tool: {exc}")
