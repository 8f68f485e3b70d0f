"""fsspec's own tests of reading. The files that they write are packed into a kit, and read from the kit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.tests.abstract import AbstractFixtures, AbstractGetTests, AbstractOpenTests

import kitfs
from kitfs.integrations.fsspec import KitFileSystem

REFERENCE = "localhost/suite/tree:v1"
WRITES = ("makedirs", "mkdir", "touch", "pipe", "rm")
READS = ("_open", "cat_file", "created", "info", "ls")


class Packed(KitFileSystem):
    """A KitFileSystem that writes to a local directory. The directory is packed into a kit before the next read."""

    cachable = False

    def __init__(self, tree: str, **options: Any) -> None:
        super().__init__(**options)
        self._tree = Path(tree)
        self._local = LocalFileSystem(auto_mkdir=True)
        self._changed = True

    def __getattribute__(self, name: str) -> Any:
        if name in WRITES:
            return lambda path, *args, **kwargs: self._write(name, path, *args, **kwargs)
        if name in READS:
            self._pack()
        return super().__getattribute__(name)

    def _write(self, name: str, path: str, *args: Any, **kwargs: Any) -> Any:
        self._changed = True
        return getattr(self._local, name)(
            str(self._tree) + path.removeprefix(f"/{REFERENCE.partition('/')[2]}"), *args, **kwargs
        )

    def _pack(self) -> None:
        if self._changed:
            self._changed = False
            self.invalidate_cache()
            kitfs.pack(self._tree, REFERENCE.partition("/")[2], **self._options)


class Fixtures(AbstractFixtures):  # type: ignore[misc]  # fsspec has no types
    """A kit in the store. Its path does not begin with a registry."""

    @pytest.fixture
    def fs(self, tmp_path: Path) -> Packed:
        tree = tmp_path / "tree"
        tree.mkdir()
        (tree / "Kitfile").write_text("manifestVersion: 1.0.0\ncode: [{path: .}]\n")
        return Packed(str(tree), cache_dir=tmp_path / "store", config=tmp_path / "home")

    @pytest.fixture
    def fs_path(self) -> str:
        return f"/{REFERENCE.partition('/')[2]}"

    @pytest.fixture
    def fs_join(self) -> Callable[..., str]:
        return lambda *parts: "/".join(str(part).rstrip("/") for part in parts[:-1]) + f"/{parts[-1]}"


class TestGet(Fixtures, AbstractGetTests):
    """fsspec's tests of copying files and directories to the disk."""


class TestOpen(Fixtures, AbstractOpenTests):
    """fsspec's tests of opening files for reading."""

    def test_open_exclusive(self, fs: Packed, fs_target: str) -> None:
        """Kits are read-only. Opening a file for writing fails, even if the file does not exist."""
        with pytest.raises(OSError, match="read-only"):
            fs.open(fs_target, "xb")
