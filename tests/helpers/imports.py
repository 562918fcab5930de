"""The packages and modules of fuseoverlay, and what each imports, without running any of them."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
ROOT = PROJECT / "fuseoverlay"


def _name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {_name(path): path for path in sorted(ROOT.rglob("*.py"))}
PACKAGES = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))


def package(module: str) -> str:
    """The package that a module is in; empty if it lies beside the packages."""
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


def documented() -> dict[str, tuple[str, set[str]]]:
    """What docs/architecture.md says of each package: what it holds, and which it may import."""
    table: dict[str, tuple[str, set[str]]] = {}
    for line in (PROJECT / "docs" / "architecture.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        name = cells[1].strip("`") if len(cells) == 5 else ""
        if name in PACKAGES:
            assert name not in table, f"{name} is listed twice"
            named = {word.strip(" `") for word in cells[3].split(",") if word}
            table[name] = cells[2], set(PACKAGES) - {name} if cells[3] == "all" else named
    return table
