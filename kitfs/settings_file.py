"""Read a settings file. Any thread may call the functions."""

from __future__ import annotations

from typing import Final

from kitfs.errors import UsageError
from kitfs.ownership import read_start

MAX_SETTINGS: Final = 1 << 20  # bytes of a settings file


def load_mapping(file_path: str, *, optional: bool) -> dict[object, object]:
    """Return the settings in a YAML file; all values are strings, lists or mappings. An empty file has no settings.

    If the file is ``optional``, it may be missing or unreadable. Raises UsageError.
    """
    data = _bytes_of(file_path, optional=optional)
    if not data:
        return {}
    import yaml

    try:
        loaded = yaml.load(data, Loader=yaml.BaseLoader)  # noqa: S506 - BaseLoader makes only strings
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as e:  # ValueError: an escape beyond Unicode
        mark = getattr(e, "problem_mark", None)  # the error itself quotes lines, which may contain a password
        where = "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
        raise UsageError(f"{file_path}: the file is not valid YAML{where}") from None
    if loaded in (None, ""):
        return {}
    if not isinstance(loaded, dict):
        raise UsageError(f"{file_path}: the file must map option names to values")
    return loaded


def _bytes_of(file_path: str, *, optional: bool) -> bytes:
    try:
        data = read_start(file_path, MAX_SETTINGS + 1)
    except (OSError, ValueError) as e:  # ValueError: the name contains a NUL
        if optional and isinstance(e, (FileNotFoundError, NotADirectoryError, PermissionError)):
            return b""
        raise UsageError(f"cannot read the settings file {file_path}: {getattr(e, 'strerror', None) or e}") from None
    if len(data) > MAX_SETTINGS:
        raise UsageError(f"the settings file {file_path} has more than {MAX_SETTINGS} bytes")
    return data
