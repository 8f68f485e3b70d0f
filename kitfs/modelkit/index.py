"""Read, edit and write indexes of kits. An index lists several variants of a model, which labels distinguish.

Source: KitOps 1.17 (pkg/lib/index: index.go, edits.go, select.go). An index is an OCI image index with its own
artifactType, and the labels of a variant are the ``modelMetadata`` of its descriptor. The JSON of a label's value is
kept as it was written, so reading and writing an index does not change its digest. This module does no I/O.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

from kitfs.errors import ManifestError, NotFound, UsageError
from kitfs.gocompat.json import ESCAPES, Ambiguous, check_keys, dumps, loads
from kitfs.oci.manifest import IMAGE_INDEX, Descriptor, IndexManifest
from kitfs.oci.names import Digest, LayoutReference, Reference

KIT_INDEX: Final = "application/vnd.kitops.modelkit.index.v1+json"
ORIGINAL_TAG: Final = "ml.kitops.modelkit.original-tag"
KIT_SIZE: Final = "ml.kitops.modelkit.size"
MAX_LISTED: Final = 20  # variants that a message lists
NAME: Final = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
KEY: Final = re.compile(rf"({NAME}(\.{NAME})*/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
TOKEN: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+')
BLANK: Final = re.compile(r"[ \t\r\n]*")
SHOULD_BE: Final = (
    "must be a name of letters, digits, '-', '_', and '.' that starts and ends with a letter or digit, optionally "
    "prefixed by a DNS subdomain and '/' (e.g. example.com/gpu)"
)


@dataclass(frozen=True, slots=True)
class Variant:
    """A kit in an index. ``labels`` maps each key to the JSON of its value."""

    descriptor: Descriptor
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> Digest:
        """Return the digest of the kit's manifest."""
        return self.descriptor.digest

    @property
    def tag(self) -> str:
        """Return the tag by which the kit was added, or "" if it was added by its digest."""
        return self.descriptor.annotations.get(ORIGINAL_TAG, "")

    @property
    def size(self) -> int | None:
        """Return the recorded size of the kit's layers in bytes, or None if no size was recorded."""
        text = self.descriptor.annotations.get(KIT_SIZE, "")
        return int(text) if re.fullmatch("[0-9]{1,18}", text) else None

    def notes(self) -> dict[str, str]:
        """Return the annotations that users added to the variant."""
        return {k: v for k, v in sorted(self.descriptor.annotations.items()) if k not in (ORIGINAL_TAG, KIT_SIZE)}

    def pairs(self) -> list[str]:
        """Return the labels as ``key=value``, sorted."""
        return [f"{key}={plain(self.labels[key])}" for key in sorted(self.labels)]

    def name(self, within: Reference | LayoutReference) -> str:
        """Return the reference of the kit in the repository of the index, or "" if no tag was recorded."""
        if not self.tag or isinstance(within, LayoutReference):
            return self.tag
        return within.with_tag(self.tag).display


@dataclass(frozen=True, slots=True)
class KitIndex:
    """An index of kits, in the order in which they were added."""

    variants: tuple[Variant, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, data: bytes) -> KitIndex:
        """Parse an index. Raises ManifestError if it is not an index of kits."""
        if not is_kit_index(data):
            raise ManifestError("artifact is not a ModelKit index")
        index = IndexManifest.parse(data)
        text = data.decode("utf-8", "replace")
        top = dict(_members(text))
        raw = _elements(top["manifests"]) if top["manifests"] != "null" else []
        variants = []
        for i, (descriptor, entry) in enumerate(zip(index.manifests, raw, strict=True)):
            try:
                check_keys(descriptor.extra, ("modelMetadata",), f"index.manifests[{i}]")
            except Ambiguous as e:
                raise ManifestError(f"ambiguous: {e}")
            labels = dict(_members(entry)).get("modelMetadata", "null")
            if labels != "null" and not labels.startswith("{"):
                raise ManifestError(f"index.manifests[{i}].modelMetadata: an object was expected")
            extra = {k: v for k, v in descriptor.extra.items() if k != "modelMetadata"}
            found = {} if labels == "null" else {key: compact(value) for key, value in _members(labels)}
            variants.append(Variant(replace(descriptor, extra=extra), found))
        known = {"schemaVersion", "mediaType", "artifactType", "manifests", "annotations"}
        return cls(tuple(variants), index.annotations, {k: v for k, v in loads(data).items() if k not in known})

    def to_json(self) -> bytes:
        """Return the JSON that kit writes: compact, in Go's field order, with sorted maps."""
        start = dumps({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "artifactType": KIT_INDEX}).decode()
        rest = {"subject": self.extra["subject"]} if "subject" in self.extra else {}
        rest |= {"annotations": dict(sorted(self.annotations.items()))} if self.annotations else {}
        rest |= {k: v for k, v in self.extra.items() if k != "subject"}
        end = "," + dumps(rest).decode()[1:] if rest else "}"
        return f'{start[:-1]},"manifests":[{",".join(_entry(v) for v in self.variants)}]{end}'.encode()

    def get(self, digest: Digest) -> Variant | None:
        """Return the variant whose manifest has this digest, or None."""
        return next((v for v in self.variants if v.digest == digest), None)

    def added(self, variant: Variant) -> KitIndex:
        """Return a copy of the index with ``variant``, which is appended, or replaces the variant with its digest."""
        if self.get(variant.digest) is None:
            return replace(self, variants=(*self.variants, variant))
        return replace(self, variants=tuple(variant if v.digest == variant.digest else v for v in self.variants))

    def removed(self, digest: Digest) -> KitIndex:
        """Return a copy without the variant with this digest."""
        return replace(self, variants=tuple(v for v in self.variants if v.digest != digest))


def is_kit_index(data: bytes) -> bool:
    """Return whether these bytes are an index of kits."""
    try:
        fields = loads(data)
    except ValueError:
        return False
    return isinstance(fields, dict) and (fields.get("mediaType"), fields.get("artifactType")) == (
        IMAGE_INDEX,
        KIT_INDEX,
    )


# -- choosing a variant


def selector(texts: Sequence[str]) -> dict[str, str]:
    """Parse ``key=value`` strings into labels for selecting a variant. Raises UsageError."""
    found: dict[str, str] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise UsageError(f'invalid label "{text}": expected key=value')
        if key in found:
            raise UsageError(
                f'invalid label "{text}": {key} is already set to "{found[key]}"; each label can be specified only once'
            )
        found[key] = value
    return found


def select(index: KitIndex, labels: Mapping[str, str], named: Reference | LayoutReference) -> Variant:
    """Return the only variant that has all labels.

    Raises NotFound if the index is empty, and UsageError if no variant or more than one variant has the labels.
    """
    display = named.display if isinstance(named, Reference) else str(named)
    if not index.variants:
        raise NotFound(f"{display}: index contains no ModelKits")
    if not labels:
        rule = "is a ModelKit index; select one of its ModelKits with --label (-l)"
        raise UsageError(f"reference {display} {rule}: {_list(index.variants, named)}")
    found = [
        v for v in index.variants if all(k in v.labels and plain(v.labels[k]) == want for k, want in labels.items())
    ]
    if not found:
        wanted = ", ".join(f"{key}={labels[key]}" for key in sorted(labels))
        raise UsageError(
            f"{display}: no ModelKit in the index has {wanted}. The index contains: {_list(index.variants, named)}"
        )
    if len(found) > 1:
        raise UsageError(
            f"{display}: {len(found)} ModelKits in the index match; add labels to select one of: {_list(found, named)}"
        )
    return found[0]


def _list(variants: Sequence[Variant], named: Reference | LayoutReference) -> str:
    """Format variants as one line of a message."""
    listed = [f"{v.name(named) or v.digest} ({', '.join(v.pairs()) or 'no labels'})" for v in variants[:MAX_LISTED]]
    more = [f"{len(variants) - MAX_LISTED} more"] if len(variants) > MAX_LISTED else []
    return "".join(c if c.isprintable() else "\ufffd" for c in "; ".join(listed + more))


# -- changes


class Edits(NamedTuple):
    """A change of labels or annotations: keys with values to set, and keys to remove."""

    set: Mapping[str, str]
    remove: tuple[str, ...]

    def applied(self, current: Mapping[str, str]) -> dict[str, str]:
        """Return a copy of ``current`` with the changes applied."""
        return {k: v for k, v in (dict(current) | dict(self.set)).items() if k not in self.remove}


def label_edits(texts: Sequence[str]) -> Edits:
    """Parse edits of labels: ``key=value``, ``key:=JSON`` and ``key-``.

    The returned values are JSON-encoded. Raises UsageError.
    """
    given: dict[str, str] = {}
    remove = []
    for key, value, is_json in _arguments(texts, "label"):
        if value is None:
            remove.append(key)
            continue
        if not KEY.fullmatch(key):
            raise UsageError(f'invalid label key "{key}": {SHOULD_BE}')
        if is_json:
            try:
                loads(value.encode("utf-8", "surrogateescape"))
            except ValueError:
                raise UsageError(f"invalid label {key}:={value}: value is not valid JSON")
        given[key] = compact(value) if is_json else dumps(value).decode()
    return Edits(given, tuple(remove))


def annotation_edits(texts: Sequence[str]) -> Edits:
    """Parse edits of annotations: ``key=value`` and ``key-``. Raises UsageError."""
    given: dict[str, str] = {}
    remove = []
    for key, value, is_json in _arguments(texts, "annotation"):
        if is_json:
            raise UsageError(f"invalid annotation {key}:={value}: annotation values are strings; use key=value")
        if value is None:
            remove.append(key)
        else:
            given[key] = value
    return Edits(given, tuple(remove))


def _arguments(texts: Sequence[str], kind: str) -> Iterator[tuple[str, str | None, bool]]:
    """Yield (key, value, whether the value is JSON). The value is None for a key to remove."""
    seen = set()
    for text in texts:
        key, sign, given = text.partition("=")
        value: str | None = given
        is_json = bool(sign) and key.endswith(":")
        if is_json:
            key = key[:-1]
        elif not sign and text.endswith("-"):
            key, value = text[:-1], None
        elif not sign:
            raise UsageError(f'invalid {kind} "{text}": expected key=value to set, or key- to remove')
        if not key:
            raise UsageError(f'invalid {kind} "{text}": key cannot be empty')
        if key in seen:
            raise UsageError(f'invalid {kind} "{text}": each key can be specified only once')
        seen.add(key)
        yield key, value, is_json


# -- JSON that keeps its spelling


def compact(text: str) -> str:
    """Remove the blanks between the tokens of JSON, and escape characters as Go does."""
    return re.sub("[<>&\u2028\u2029]", lambda m: ESCAPES[m[0]], "".join(TOKEN.findall(text)))


def indented(data: bytes) -> str:
    """Indent JSON by two blanks per level, as Go's json.Indent does. Values stay as written."""
    out: list[str] = []
    depth = 0
    before = ""
    for part in TOKEN.findall(data.decode("utf-8", "replace")):
        if part in "]}":
            depth -= 1
            if before not in "[{":
                out.append("\n" + "  " * depth)
        elif before in ("[", "{", ","):
            out.append("\n" + "  " * depth)
        out.append(": " if part == ":" else part)
        depth += part in "[{"
        before = part
    return "".join(out)


def plain(value: str) -> str:
    """Format a label's value as kit does: a string without quotes, null as "", and other JSON as written."""
    if value == "null":
        return ""
    return str(loads(value.encode())) if value.startswith('"') else value


def _entry(variant: Variant) -> str:
    """Return the JSON of a variant, which is an element of ``manifests``."""
    value = variant.descriptor.to_json()
    extra = {k: value.pop(k) for k in variant.descriptor.extra}
    text = dumps(value).decode()
    if variant.labels:
        labels = ",".join(f"{dumps(key).decode()}:{variant.labels[key]}" for key in sorted(variant.labels))
        text = f'{text[:-1]},"modelMetadata":{{{labels}}}}}'
    return f"{text[:-1]},{dumps(extra).decode()[1:]}" if extra else text


def _members(text: str) -> Iterator[tuple[str, str]]:
    """Yield (key, JSON of the value) for each member of a JSON object. The object must be valid."""
    decode = json.JSONDecoder().raw_decode
    at = _after(text, _after(text, 0) + 1)
    while text[at] != "}":
        key, at = decode(text, at)
        start = _after(text, _after(text, at) + 1)
        _, at = decode(text, start)
        yield key, text[start:at]
        at = _after(text, at)
        if text[at] == ",":
            at = _after(text, at + 1)


def _elements(text: str) -> Iterator[str]:
    """Yield the JSON of each element of a JSON list. The list must be valid."""
    decode = json.JSONDecoder().raw_decode
    at = _after(text, 1)
    while text[at] != "]":
        start = at
        _, at = decode(text, start)
        yield text[start:at]
        at = _after(text, at)
        if text[at] == ",":
            at = _after(text, at + 1)


def _after(text: str, at: int) -> int:
    """Return the position of the first character from ``at`` on that is not a blank."""
    found = BLANK.match(text, at)
    assert found is not None
    return found.end()
