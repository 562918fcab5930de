"""The import graph is the one in docs/architecture.md, and has a direction."""

from __future__ import annotations

import ast
import graphlib
import re
from functools import cache
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
PACKAGE = PROJECT / "fuseoverlay"
#: The modules that images share with the overlay.
LEAVES = {
    *("errors", "syscalls", "xattrs", "whiteout", "overridestat", "removal", "copydata", "trust"),
    *("acl", "descriptors", "transaction"),
}


def _name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


MODULES = {_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def _own(dotted: str, names: list[str]) -> set[str]:
    """Modules of the package that `from dotted import names` reaches; the package's own: none."""
    inner = dotted.removeprefix("fuseoverlay").removeprefix(".")
    found = set()
    for name in names:
        below = f"{inner}.{name}".lstrip(".")
        if below in MODULES:
            found.add(below)
        elif f"{below}.__init__" in MODULES:
            found.add(f"{below}.__init__")
        elif inner in MODULES:
            found.add(inner)
        elif f"{inner}.__init__" in MODULES:
            found.add(f"{inner}.__init__")
    return found


@cache
def _imports(module: str) -> tuple[frozenset[str], frozenset[str]]:
    """(modules of the package, other top-level names) that this module imports anywhere."""
    own: set[str] = set()
    others: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            dotted = node.module or ""
            if dotted.partition(".")[0] == "fuseoverlay":
                own |= _own(dotted, [alias.name for alias in node.names])
            else:
                others.add(dotted.partition(".")[0])
        elif isinstance(node, ast.Import):
            for alias in node.names:
                top, _, rest = alias.name.partition(".")
                if top == "fuseoverlay":
                    own |= _own("fuseoverlay", [rest])
                else:
                    others.add(top)
    return frozenset(own - {module, "__init__"}), frozenset(others)


def _documented() -> dict[str, set[str]]:
    text = (PROJECT / "docs" / "architecture.md").read_text()
    match = re.search(r"^```imports\n(.*?)^```", text, re.M | re.S)
    assert match, "docs/architecture.md has no block ```imports"
    graph = {}
    for line in match[1].splitlines():
        module, _, allowed = line.partition(":")
        assert module.strip() not in graph, f"{module} is listed twice"
        graph[module.strip()] = set(allowed.split())
    return graph


def test_every_module_is_documented() -> None:
    assert set(_documented()) == set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_imports_are_documented(module: str) -> None:
    allowed = _documented().get(module, set())
    actual = _imports(module)[0]
    assert actual - allowed == set(), "imports that docs/architecture.md does not list"
    assert allowed - actual == set(), "documented imports that are no more"


def test_there_is_a_direction() -> None:
    graph = {module: _imports(module)[0] for module in MODULES}
    list(graphlib.TopologicalSorter(graph).static_order())


def test_only_the_adapters_and_the_mount_know_pyfuse3() -> None:
    knowing = {name for name in MODULES if "pyfuse3" in _imports(name)[1]}
    assert knowing == {"operations", "extended", "mount", "about"}


def test_images_share_only_leaves_with_the_overlay() -> None:
    for module in MODULES:
        if module.startswith("oci."):
            outside = {name for name in _imports(module)[0] if not name.startswith("oci.")}
            assert outside <= LEAVES, module
    for module in LEAVES:
        assert _imports(module)[0] <= LEAVES, "a leaf that knows the overlay is none"


def test_images_and_overlay_meet_in_one_place() -> None:
    users = {
        module
        for module in MODULES
        if not module.startswith("oci.")
        and any(name.startswith("oci.") for name in _imports(module)[0])
    }
    assert users <= {"images", "cli", "advice"}
    assert {name for name in _imports("advice")[0] if name.startswith("oci.")} == {"oci.names"}


def test_only_the_command_line_prints() -> None:
    printers = {
        module
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    }
    assert printers <= {"cli"}


def test_the_parser_sees_imports() -> None:
    """Guards the tests above against seeing nothing."""
    own, others = _imports("operations")
    assert {"attributes", "files", "namespace"} <= own
    assert {"pyfuse3", "errno", "os"} <= others
    assert "errors" in _imports("workdir")[0]
