"""Imports go downward only: no module imports from a higher floor or a sibling package, and there are no circles.

Imports inside functions count too. Imports below ``if TYPE_CHECKING`` do not count, because they are not executed.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2] / "kitfs"

# A package may import packages with a lower number. Packages with the same number are siblings.
FLOORS = (
    ("redaction",),
    (
        "buffers",
        "errors",
        "escaping",
        "forks",
        "manual",
        "metrics",
        "ownership",
        "parallel",
        "parsers",
        "system",
        "version",
    ),
    ("openfile", "privileges", "settings_file"),
    ("gocompat", "layers", "formats", "config"),
    ("oci",),
    ("content",),
    ("store", "modelkit"),
    ("registry", "server", "trust"),
    ("kit",),
    ("ops", "fuse", "erofs"),
    ("daemon",),
    ("sdk",),
    ("cli", "integrations"),
    ("__init__", "__main__"),
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}


def modules() -> dict[str, Path]:
    """Return the path of every module in the package by its dotted name."""
    return {
        ".".join(p.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): p
        for p in ROOT.rglob("*.py")
    }


def executed(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield the import statements below a node, except those below ``if TYPE_CHECKING``."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child
        elif isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            yield from (found for other in child.orelse for found in executed(other))
        else:
            yield from executed(child)


def imported(path: Path, known: dict[str, Path]) -> set[tuple[int, str]]:
    """Return (line, module) for every import of a module of kitfs that is executed in `path`."""
    found: set[tuple[int, str]] = set()
    for node in executed(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {(node.lineno, alias.name) for alias in node.names if alias.name.split(".")[0] == "kitfs"}
            continue
        assert node.level == 0, f"{path}:{node.lineno}: relative import"
        if node.module is None or node.module.split(".")[0] != "kitfs":
            continue
        for alias in node.names:
            full = f"{node.module}.{alias.name}"
            found.add((node.lineno, full if full in known else node.module))
    return found


def graph() -> dict[str, set[tuple[int, str]]]:
    """Return the imports of every module as (line, imported module)."""
    known = modules()
    return {name: imported(path, known) for name, path in known.items()}


def package(module: str) -> str:
    """Return the top-level package or module of kitfs that contains `module`. For kitfs itself, return ``__init__``."""
    return module.split(".")[1] if "." in module else "__init__"


def test_imports_go_downward_only() -> None:
    """No module imports a module from a higher floor or from a sibling package."""
    wrong = [
        f"{module}:{line} imports {other}"
        for module, others in sorted(graph().items())
        for line, other in sorted(others)
        if package(other) != package(module) and FLOOR[package(other)] >= FLOOR[package(module)]
    ]
    assert wrong == []


def test_there_is_no_import_circle() -> None:
    """The modules can be sorted so that each module imports only earlier modules."""
    try:
        TopologicalSorter({module: {other for _, other in others} for module, others in graph().items()}).prepare()
    except CycleError as e:
        raise AssertionError(" -> ".join(e.args[1])) from None


def test_every_package_has_a_floor() -> None:
    """Every package and every module directly below kitfs is listed in FLOORS."""
    assert {package(module) for module in modules()} <= set(FLOOR)
