"""The layout's import rule: imports go downward only, siblings never import each other."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2] / "kitfs"

# Lower rank is lower in the building. Packages of one rank are siblings. The SDK is the package itself (kitfs/__init__.py).
RANK = {
    "redaction": -1,
    "errors": 0, "escaping": 0, "ownership": 0, "metrics": 0, "forks": 0,
    "oci": 1, "openfile": 1,
    "registry": 2, "store": 2, "layers": 2,
    "kit": 3,
    "ops": 4, "fuse": 4,
    "daemon": 5, "server": 5, "config": 5,
    "session": 6, "mounted": 6, "sdk": 7, "fs": 8, "__init__": 9,
    "cli": 10, "__main__": 11,
}
# config is read by the CLI and the daemon only; __version__ comes from the package itself and is below everything.
ALLOWED = {("daemon", "config")}


def top(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> list[tuple[int, str]]:
    """(line, first name below kitfs) of every import of kitfs, wherever it stands."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name.split(".")[1] if "." in alias.name else "__init__")
                      for alias in node.names if alias.name.split(".")[0] == "kitfs"]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            if node.module == "kitfs":
                found += [(node.lineno, a.name) for a in node.names if a.name != "__version__"]
            elif node.module and node.module.startswith("kitfs."):
                found.append((node.lineno, node.module.split(".")[1]))
    return found


def test_imports_go_downward_only() -> None:
    """No module imports one of its own rank outside its package, or of a higher rank."""
    wrong = []
    for path in sorted(ROOT.rglob("*.py")):
        here = top(path)
        for line, there in imported(ast.parse(path.read_text())):
            if there == here or (here, there) in ALLOWED:
                continue
            if RANK[there] >= RANK[here]:
                wrong.append(f"{path.relative_to(ROOT.parent)}:{line} imports {there}")
    assert wrong == []


def test_every_package_has_a_rank() -> None:
    """A new top-level package must be given its place."""
    assert {top(p) for p in ROOT.rglob("*.py")} <= set(RANK)
