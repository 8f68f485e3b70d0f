"""``import kitfs`` has documented public names for all verbs of the command line."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import kitfs
from kitfs.config import OPTIONS
from kitfs.sdk import options

PUBLIC = {
    "ChunkTables", "CollectedGarbage", "ConvertedImage", "CopyOptions", "FileInfo", "ImportedKit", "Inspection", "Kit",
    "KitDifference", "KitFact", "KitLineage", "KitSignature", "KitSummary", "KitVersion", "Kitfile", "KitfsError",
    "LayerInfo", "Mount", "MountOptions", "MountStatus", "Options", "PullOptions", "ReadOptions", "Registry",
    "RemovedKit", "ResolvedKit", "SealOptions", "StoreOptions", "Tensor", "TensorInfo", "TransferOptions",
    "__version__", "approve", "cache", "chunk_table", "collect_garbage", "convert", "diff", "errors", "events",
    "export", "generate_key_pair", "history", "import_kit", "index", "info", "init", "inspect", "kitfile", "lineage",
    "list", "login", "logout", "logs", "mount", "mounts", "open", "pack", "pull", "push", "remove", "resolve", "sbom",
    "seal", "serve", "sign", "status", "tag", "unmount", "unpack", "upgrade", "verify", "warm",
}  # fmt: skip

# verb without a function of the same name → the public name to use instead, or None if none is needed
INSTEAD = {
    "cat": "Kit.read", "ls": "Kit.listdir", "umount": "unmount", "version": "__version__", "demo": None, "help": None,
    "completion": None, "import": "import_kit", "generate-key-pair": "generate_key_pair", "run": "resolve",
    "chunk-table": "chunk_table",
}  # fmt: skip


def public(path: str) -> Any:
    """Return the object with a dotted name below kitfs."""
    found: Any = kitfs
    for name in path.split("."):
        found = getattr(found, name)
    return found


def test_the_public_names_are_these() -> None:
    """``kitfs.__all__`` has exactly the names in PUBLIC."""
    assert set(kitfs.__all__) == PUBLIC
    assert set(kitfs.__all__) <= set(dir(kitfs))


@pytest.mark.parametrize("name", sorted(PUBLIC - {"__version__"}))
def test_every_public_name_can_be_imported_and_is_documented(name: str) -> None:
    found = getattr(kitfs, name)
    first = (found.__doc__ or "").split("\n")[0]
    assert first
    assert not first.startswith(f"{name}(")  # dataclasses generate their signature as the docstring


def functions() -> dict[str, Any]:
    """Return every public function by its dotted name, including methods of Kit and functions in submodules."""
    found = {}
    for name in sorted(PUBLIC):
        value = getattr(kitfs, name)
        if inspect.isfunction(value):
            found[name] = value
        elif isinstance(value, ModuleType) and value.__name__.startswith("kitfs.sdk."):
            found |= {
                f"{name}.{key}": item
                for key, item in vars(value).items()
                if inspect.isfunction(item) and not key.startswith("_") and item.__module__ == value.__name__
            }
    return found | {
        f"Kit.{key}": item for key, item in vars(kitfs.Kit).items() if inspect.isfunction(item) and key[0] != "_"
    }


@pytest.mark.parametrize("name", functions())
def test_a_function_is_typed_and_its_docstring_begins_with_a_sentence(name: str) -> None:
    """Every parameter has a type other than Any, and the docstring begins with a sentence."""
    function = functions()[name]
    first = (function.__doc__ or "").split("\n\n")[0]
    assert first.rstrip().endswith((".", ":"))
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name != "self":
            assert parameter.annotation not in (inspect.Parameter.empty, "Any"), parameter


def test_every_verb_of_the_command_line_has_a_function() -> None:
    import click

    from kitfs.cli.main import main

    def verbs(group: click.Group, prefix: str = "") -> list[str]:
        context = click.Context(group)
        found: list[str] = []
        for name in group.list_commands(context):
            verb = group.get_command(context, name)
            found += verbs(verb, f"{name}.") if isinstance(verb, click.Group) and name != "serve" else [prefix + name]
        return found

    root = next(value for value in vars(sys.modules[main.__module__]).values() if isinstance(value, click.Group))
    named = {verb: INSTEAD.get(verb, verb) for verb in verbs(root)}
    assert [verb for verb, name in named.items() if name is not None and not is_public(name)] == []
    assert "pack" in named


def is_public(path: str) -> bool:
    try:
        public(path)
    except AttributeError:
        return False
    return True


@pytest.mark.parametrize("name", [name for name in sorted(PUBLIC) if name.endswith("Options")])
def test_every_option_of_the_sdk_is_one_of_the_table(name: str) -> None:
    """Every option in the SDK's types is in the table of options."""
    keys = getattr(kitfs, name).__annotations__
    assert keys
    assert {key.replace("_", "-") for key in keys} <= set(OPTIONS)


def test_the_paths_among_the_options_are_made_absolute_for_other_processes() -> None:
    """PATHS contains every option whose type is a path. ``portable`` makes these options absolute."""
    kinds = {key.replace("_", "-"): str(kind) for key, kind in kitfs.MountOptions.__annotations__.items()}
    assert {name for name, kind in kinds.items() if "StrPath" in kind} == options.PATHS


def test_importing_kitfs_imports_nothing_heavy() -> None:
    """``import kitfs`` does not import libraries for HTTP, YAML, caching or progress bars."""
    code = (
        "import sys, kitfs; assert kitfs.__version__; dir(kitfs); "
        "print([m for m in ('httpx', 'yaml', 'diskcache', 'aiohttp', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="nothing"):
        kitfs.nothing  # noqa: B018


def test_the_package_is_marked_as_typed() -> None:
    assert (Path(kitfs.__file__).parent / "py.typed").exists()


def test_a_client_does_not_import_the_command_line_of_httpx() -> None:
    """httpx's command line would import rich and pygments, which take longer to import than httpx itself."""
    code = "import sys, kitfs.registry.client; print([m for m in ('rich', 'pygments') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
