"""Store the tags of kits that were packed or pulled on this machine.

Each tag is a file, which is written by rename. It is fsynced, because a tag exists nowhere else:

    refs/<quoted registry/repository>/<quoted tag>     {"mediaType": …, "digest": …, "size": …}

Threading: any thread and any process may write a tag, and the last writer wins. Readers never see a partial file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, unquote

from kitfs.errors import StoreError
from kitfs.gocompat.json import own_json
from kitfs.ownership import check_below, make_directories, open_file
from kitfs.store.durable import fsync_directory, write_durably, write_error


class Refs:
    """The tags in ``directory``. A tag has a name, and belongs to a repository ("registry/repository").

    If the directory is ``optional``, it may be missing: older versions of kitfs have not made it.
    """

    def __init__(self, directory: str, *, optional: bool = False) -> None:
        self._directory = directory
        self._optional = optional

    def _path(self, name: str, tag: str) -> str:
        return os.path.join(self._directory, _quoted(name), _quoted(tag))

    def get(self, name: str, tag: str) -> dict[str, Any] | None:
        """Return the descriptor of a tag; None if the tag does not exist. Raises StoreError for a damaged file."""
        path = self._path(name, tag)
        try:
            check_below(self._directory, os.path.dirname(path))
            with open(open_file(path), "rb") as f:
                loaded = own_json(f.read())
            if not isinstance(loaded, dict) or not isinstance(loaded.get("digest"), str):
                raise ValueError("its content is not a descriptor")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as e:
            raise StoreError(f"cannot read the tag in {path}: {getattr(e, 'strerror', None) or e}")
        return loaded

    def set(self, name: str, tag: str, descriptor: dict[str, Any]) -> None:
        """Set a tag to a descriptor (as JSON). The tag is durable when the method returns. Raises StoreError."""
        path = self._path(name, tag)
        try:
            check_below(self._directory, os.path.dirname(path))
            make_directories(os.path.dirname(path))
            fsync_directory(self._directory)
            write_durably(path, json.dumps(descriptor).encode())
        except OSError as e:
            raise write_error(path, e)

    def delete(self, name: str, tag: str) -> bool:
        """Remove a tag, and return whether it existed."""
        try:
            os.unlink(self._path(name, tag))
        except FileNotFoundError:
            return False
        return True

    def items(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Yield (name, tag, descriptor) for every tag."""
        if self._optional and not os.path.lexists(self._directory):
            return
        for quoted in sorted(os.listdir(self._directory)):
            for tag in sorted(os.listdir(os.path.join(self._directory, quoted))):
                if tag.endswith("~"):
                    continue
                name = unquote(quoted)
                found = self.get(name, unquote(tag))
                if found is not None:
                    yield name, unquote(tag), found


def _quoted(text: str) -> str:
    """Return a file name for any string, in which "/" and a leading "." are quoted."""
    return quote(text, safe="").replace(".", "%2E") if text.startswith(".") else quote(text, safe="")
