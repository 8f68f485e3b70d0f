"""Read a settings file. Any thread may call the functions."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Final, cast

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


def entries(
    loaded: Mapping[object, object], file_path: str, *, sections: Collection[str]
) -> Iterator[tuple[str, object]]:
    """Yield (key, value) for every option in a settings file, including the options in ``sections``, one per verb.

    Raises UsageError if a section is not a mapping.
    """
    for name, value in loaded.items():
        key = str(name).replace("_", "-")
        if key not in sections:
            yield key, value
            continue
        if value == "":
            continue
        if not isinstance(value, dict):
            raise UsageError(f"{file_path}: {key} must map option names to values")
        for flag, one in value.items():
            yield f"{key}-{str(flag).replace('_', '-')}", one


def texts_of(key: str, value: object, file_path: str, *, many: bool) -> list[str]:
    """Return the strings of the option ``key``, which has several values if ``many``. Raises UsageError."""
    if isinstance(value, dict) and many:
        value = [f"{k}={v}" for k, v in value.items()]
    items = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str) for item in items) or (len(items) != 1 and not many):
        raise UsageError(f"{file_path}: {key} must be one value" + (" or a list of values" if many else ""))
    return cast("list[str]", items)


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
