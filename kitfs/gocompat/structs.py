"""Read and write dataclasses as JSON and YAML, as Go's encoding/json and yaml.v3 do with structs.

The metadata of a dataclass field replaces Go's struct tags: ``key`` (the key, if it is not the name of the field),
``always`` (without omitempty), ``texts`` (a list of strings), ``of`` (a list of structs), ``one`` (a struct, or a
pointer to a struct if its default is None), ``any`` (interface{}). A field without ``texts``, ``of``, ``one`` or
``any`` is a string. The fields ``digest`` and ``diff_id`` are written to JSON, but not to YAML. This module knows no
particular struct and does no I/O.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Final

import yaml

from kitfs.gocompat import yaml_reader as goyaml
from kitfs.gocompat.json import Ambiguous
from kitfs.gocompat.yaml_writer import Fields, Flow

PACKAGE: Final = "artifact"  # the package in Go, as in the message "not found in type artifact.KitFile"
GO_NAMES: Final = {"Kitfile": "KitFile", "Dataset": "DataSet"}
JSON_ONLY: Final = frozenset(("digest", "diff_id"))


def from_json(cls: Any, value: Any, where: str) -> Any:
    """Read a struct from a JSON object.

    Unknown keys and null values are ignored, and keys match in any case. Raises ValueError if a value has the wrong
    type, and Ambiguous if two keys match one field.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be an object")
    folded: dict[str, list[str]] = {}
    for key in value:
        folded.setdefault(key.casefold(), []).append(key)
    made: dict[str, Any] = {}
    for f in fields(cls):
        name = _name(f)
        keys = folded.get(name.casefold(), ())
        if len(keys) > 1:
            raise Ambiguous(
                f"{where}: the keys {keys[0]!r} and {keys[1]!r} differ in case only, "
                "and tools differ in which of them they read"
            )
        found = value[keys[0]] if keys else None
        if found is not None:
            made[f.name] = _from_json(f.metadata, found, f"{where}.{name}")
    return cls(**made)


def _from_json(meta: Any, value: Any, where: str) -> Any:
    if meta.get("any"):
        return value
    if "one" in meta:
        return from_json(meta["one"], value, where)
    if "of" in meta or meta.get("texts"):
        if not isinstance(value, list):
            raise ValueError(f"{where} must be a list")
        if meta.get("texts"):
            return tuple(_string("" if v is None else v, where) for v in value)
        return tuple(from_json(meta["of"], {} if v is None else v, f"{where}[{i}]") for i, v in enumerate(value))
    return _string(value, where)


def _string(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where} must be a string")
    return value


def from_node(cls: Any, node: yaml.Node, wrong: list[str]) -> Any:
    """Read a struct from a YAML node. Return None for null. Port of mappingStruct (decode.go:878 of yaml.v3 v3.0.1).

    If a value has the wrong type, yaml.v3's message is appended to ``wrong``. Raises KitfileError for errors after
    which yaml.v3 stops.
    """
    if goyaml.short_tag(node) == "!!null":
        return None
    go_type = f"{PACKAGE}.{GO_NAMES.get(cls.__name__, cls.__name__)}"
    if not isinstance(node, yaml.MappingNode):
        _misfit(node, go_type, wrong)
        return None
    known = {_name(f): f for f in fields(cls) if f.name not in JSON_ONLY}
    made: dict[str, Any] = {}
    for key, value in goyaml.pairs(node, wrong) or ():
        name = _text_of(key, wrong)
        if name is None:
            continue
        f = known.get(name)
        if f is None:
            wrong.append(f"line {goyaml.line_of(key)}: field {name} not found in type {go_type}")
            continue
        found = _from_node(f.metadata, value, wrong)
        if found is not None:
            made[f.name] = found
    return cls(**made)


def _from_node(meta: Any, node: yaml.Node, wrong: list[str]) -> Any:
    if meta.get("any"):
        return goyaml.value_of(node, wrong)
    if "one" in meta:
        return from_node(meta["one"], node, wrong)
    if "of" not in meta and not meta.get("texts"):
        return _text_of(node, wrong)
    if not isinstance(node, yaml.SequenceNode):
        if goyaml.short_tag(node) == "!!null":
            return None
        element = (
            "string" if meta.get("texts") else f"{PACKAGE}.{GO_NAMES.get(meta['of'].__name__, meta['of'].__name__)}"
        )
        _misfit(node, f"[]{element}", wrong)
        return None
    items = [_text_of(n, wrong) if meta.get("texts") else from_node(meta["of"], n, wrong) for n in node.value]
    return tuple(i for i in items if i is not None)  # yaml.v3 omits null items


def _text_of(node: yaml.Node, wrong: list[str]) -> str | None:
    """Return the value of a string field: the text of a scalar, the decoded text of a !!binary, or None for null.

    If ``node`` is not a scalar, a message is appended to ``wrong``.
    """
    if not isinstance(node, yaml.ScalarNode):
        _misfit(node, "string", wrong)
        return None
    value = goyaml.scalar(node)
    if value is None:
        return None
    return value if type(value) is str else str(node.value)


def _misfit(node: yaml.Node, go_type: str, wrong: list[str]) -> None:
    if isinstance(node, yaml.MappingNode) and goyaml.pairs(node, wrong) is None:
        return  # yaml.v3 reports the keys first
    value = goyaml.short_tag(node)
    if isinstance(node, yaml.ScalarNode):
        text = str(node.value).encode()
        value += f" `{text.decode() if len(text) <= 10 else text[:7].decode(errors='ignore') + '...'}`"
    wrong.append(f"line {goyaml.line_of(node)}: cannot unmarshal {value} into {go_type}")


def to_json(section: Any) -> dict[str, Any]:
    """Return the values that encoding/json writes, in its order.

    Raises ValueError for a map with keys that are not strings.
    """
    out: dict[str, Any] = {}
    for f in fields(section):
        value, meta = getattr(section, f.name), f.metadata
        if not meta.get("always") and not _filled(meta, value):
            continue
        if "one" in meta:
            out[_name(f)] = to_json(value)
        elif "of" in meta:
            out[_name(f)] = [to_json(v) for v in value]
        else:
            out[_name(f)] = _plain(value) if meta.get("any") else value
    return out


def to_yaml(section: Any) -> Fields:
    """Return the values that yaml.v3 writes, in its order.

    Unlike ``to_json``, this function omits the digests, and empty structs that are not behind a pointer.
    """
    out = Fields()
    for f in fields(section):
        value, meta = getattr(section, f.name), f.metadata
        if f.name in JSON_ONLY or ("one" in meta and meta.get("always") and value == meta["one"]()):
            continue
        if not meta.get("always") and not _filled(meta, value):
            continue
        if "one" in meta:
            out[_name(f)] = to_yaml(value)
        elif "of" in meta:
            out[_name(f)] = [to_yaml(v) for v in value]
        else:
            out[_name(f)] = Flow(value) if meta.get("texts") else value
    return out


def _name(f: Any) -> str:
    return str(f.metadata.get("key") or f.name)


def _filled(meta: Any, value: Any) -> bool:
    """Return whether Go writes this value of a field with omitempty. An interface is written unless it is nil."""
    return value is not None and (bool(meta.get("any")) or value not in ("", ()))


def _plain(value: Any) -> Any:
    """Return a copy of ``value`` in which all maps are sorted by key, as in Go's JSON."""
    if isinstance(value, goyaml.AnyMap):
        raise ValueError("json: unsupported type: map[interface {}]interface {}")
    if isinstance(value, dict):
        return {k: _plain(value[k]) for k in sorted(value, key=str.encode)}
    return [_plain(v) for v in value] if isinstance(value, list) else value
