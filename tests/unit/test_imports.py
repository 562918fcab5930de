"""The packages import each other as docs/architecture.md says, in one direction."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys

import pytest

from tests.helpers.imports import (
    MODULES,
    PACKAGES,
    PROJECT,
    between_packages,
    documented,
    imports,
    package,
)

#: Modules of the package `layers` that images share with the overlay; they know nothing of layers.
SHARED = {
    "layers.onename",
    "layers.overridestat",
    "layers.trust",
    "layers.whiteout",
    "layers.xattrs",
}


def _documented() -> dict[str, set[str]]:
    return {name: allowed for name, (_, allowed) in documented().items()}


def test_every_package_is_documented() -> None:
    assert set(_documented()) == set(PACKAGES)


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_imports_what_the_table_allows(name: str) -> None:
    assert between_packages()[name] - _documented()[name] == set()


def test_the_table_allows_no_circle() -> None:
    list(graphlib.TopologicalSorter(_documented()).static_order())


@pytest.mark.parametrize("name", PACKAGES)
def test_there_is_no_circle_in_a_package(name: str) -> None:
    inside = {module for module in MODULES if package(module) == name}
    graph = {module: imports(module)[0] & inside for module in inside}
    list(graphlib.TopologicalSorter(graph).static_order())


def test_what_is_beside_the_packages_knows_none_but_the_command_line() -> None:
    beside = {module: imports(module)[0] for module in MODULES if not package(module)}
    assert beside == {"__init__": set(), "__main__": {"commands.dispatch"}, "errors": set()}


def test_only_fuse_knows_pyfuse3() -> None:
    knowing = {name for name in MODULES if "pyfuse3" in imports(name)[1]}
    assert knowing
    assert {package(name) for name in knowing} == {"fuse"}


def test_images_know_nothing_of_layers() -> None:
    used = {
        name
        for module in MODULES
        if package(module) in {"oci", "store"}
        for name in imports(module)[0]
        if package(name) == "layers"
    }
    assert used <= SHARED
    for module in SHARED:
        known = {name for name in imports(module)[0] if package(name) == "layers"}
        assert known <= SHARED, f"{module} is not shared any more"


def test_the_client_of_registries_knows_only_what_images_are() -> None:
    ours = {module for module in MODULES if package(module) == "registry"}
    used = {name for module in ours for name in imports(module)[0] if package(name) == "oci"}
    assert used <= {"oci.model", "oci.names", "oci.reference"}
    assert "oci.model" in used


def test_only_the_client_of_registries_knows_http() -> None:
    knowing = {name for name in MODULES if imports(name)[1] & {"httpx2", "httpcore2", "h2"}}
    assert knowing
    assert {package(name) for name in knowing} == {"registry"}


def test_only_the_full_screen_program_knows_textual() -> None:
    knowing = {name for name in MODULES if "textual" in imports(name)[1]}
    assert knowing
    assert all(name.startswith("commands.explore.") for name in knowing)


def test_only_the_command_line_prints() -> None:
    printers = {
        module
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    }
    assert printers
    assert {package(module) for module in printers} == {"commands"}


def test_the_parser_sees_imports() -> None:
    """Guards the tests above against seeing nothing."""
    own, others = imports("fuse.operations")
    assert {"overlay.attributes", "overlay.files", "overlay.make"} <= own
    assert {"pyfuse3", "errno", "os"} <= others
    assert "errors" in imports("overlay.workdir")[0]


def test_the_drawing_shows_the_packages_as_they_are() -> None:
    done = subprocess.run(
        [sys.executable, str(PROJECT / "scripts" / "structure"), "--svg"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    drawn = (PROJECT / "docs" / "structure.svg").read_text()
    assert drawn == done.stdout, "stale: run scripts/structure --write"
    assert all(f">{name}</text>" in drawn for name in PACKAGES)
