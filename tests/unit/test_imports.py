"""The packages import each other as docs/architecture.md says, in one direction."""

from __future__ import annotations

import ast
import graphlib
import re
from functools import cache
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
ROOT = PROJECT / "fuseoverlay"
#: What images share with the overlay of the package `layers`: modules that know nothing of layers.
SHARED = {"layers.xattrs", "layers.whiteout", "layers.overridestat", "layers.trust"}


def _name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {_name(path): path for path in sorted(ROOT.rglob("*.py"))}
PACKAGES = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))


def package(module: str) -> str:
    """The package that a module is in; empty: it lies beside the packages."""
    return module.partition(".")[0] if "." in module or module in PACKAGES else ""


@cache
def imports(module: str) -> tuple[frozenset[str], frozenset[str]]:
    """(modules of the project, other top-level names) that this module imports anywhere."""
    own: set[str] = set()
    others: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            top, _, rest = name.partition(".")
            if top != "fuseoverlay":
                others.add(top)
            elif rest in MODULES:
                own.add(rest)
            else:
                # A name in a module, or in a package's `__init__`.
                own |= {rest.rpartition(".")[0]} & set(MODULES)
    return frozenset(own - {module}), frozenset(others)


def between_packages() -> dict[str, set[str]]:
    """The other packages that each package imports from."""
    graph: dict[str, set[str]] = {name: set() for name in PACKAGES}
    for module in MODULES:
        if package(module):
            others = {package(name) for name in imports(module)[0]}
            graph[package(module)] |= others - {package(module), ""}
    return graph


def _documented() -> dict[str, set[str]]:
    text = (PROJECT / "docs" / "architecture.md").read_text()
    table = {}
    for name, allowed in re.findall(r"^\| `(\w+)` \| .* \| (.*)\|$", text, re.M):
        if name in PACKAGES:
            assert name not in table, f"{name} is listed twice"
            named = set(re.findall(r"`(\w+)`", allowed))
            table[name] = set(PACKAGES) - {name} if allowed.strip() == "all" else named
    return table


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
