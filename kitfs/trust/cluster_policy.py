"""Read a subset of sigstore's ClusterImagePolicy: globs for images, and authorities with a key or a fixed result.

Source: ``docs/api-types`` of sigstore/policy-controller. A file may have several policies. A policy applies to a kit if
one of the policy's globs matches the kit's name, and accepts the kit if one of the policy's authorities accepts it.
Every policy that applies must accept the kit. A kit to which no policy applies is refused. Parts that are not in the
subset (keyless authorities, attestations, conditions of Kubernetes) accept no kit. Threading: the module has no state.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from kitfs.errors import UsageError
from kitfs.oci.names import LOCAL, LayoutReference, Reference
from kitfs.trust.keys import public_key
from kitfs.trust.policy import Requirement, Rule

KIND: Final = "ClusterImagePolicy"
GROUP: Final = "policy.sigstore.dev/"
NO_MATCH: Final = Requirement("reject", text="matches its name")
# Fields of an authority that change nothing here: kitfs asks no transparency log for a key, and reads every format
HARMLESS: Final = frozenset({"name", "key", "static", "ctlog", "signatureFormat"})


@dataclass(frozen=True, slots=True)
class ImagePolicy:
    """A ClusterImagePolicy."""

    name: str
    globs: tuple[re.Pattern[str], ...]
    authorities: tuple[Requirement, ...]
    warns: bool


@dataclass(frozen=True, slots=True)
class ClusterPolicy:
    """All policies of a file."""

    digest: str
    path: str
    policies: tuple[ImagePolicy, ...]

    def rules_for(self, asked: Reference | LayoutReference) -> tuple[Rule, ...]:
        """Return the rules of the policies that match. If no policy matches, return a rule that refuses the kit."""
        names = _names(asked)
        found = [one for one in self.policies if any(glob.fullmatch(name) for glob in one.globs for name in names)]
        if not found:
            return (Rule(f"no policy in {self.path}", ((NO_MATCH,),)),)
        return tuple(Rule(f"the policy {one.name!r} of {self.path}", (one.authorities,), one.warns) for one in found)


def parse(documents: Sequence[Any], data: bytes, path: str) -> ClusterPolicy:
    """Return the policy in the YAML documents of the file ``path``, whose bytes are ``data``. Raises UsageError."""
    return ClusterPolicy(
        hashlib.sha256(data).hexdigest(), path, tuple(_policy(one, path) for one in documents if one is not None)
    )


def _policy(document: Any, path: str) -> ImagePolicy:
    try:
        if document["kind"] != KIND or not document["apiVersion"].startswith(GROUP):
            raise UsageError(f"cannot use the policy {path}: it has a document that is not a {KIND}")
        name, spec = str(document["metadata"]["name"]), document["spec"]
        globs = tuple(_pattern(image["glob"]) for image in spec["images"])
        listed = spec.get("authorities") or [{"static": {"action": "fail"}}]
        limited = [field for field in ("match", "policy") if spec.get(field)]
        authorities = tuple(_authority(one, limited, f"{path}: {name}") for one in listed)
        mode = spec.get("mode", "enforce")
    except (KeyError, TypeError, AttributeError):
        raise UsageError(f"cannot use the policy {path}: it has a {KIND} without a name or without images")
    if mode not in ("enforce", "warn"):
        raise UsageError(f"cannot use the policy {path}: {name}: the mode {mode!r} is neither enforce nor warn")
    return ImagePolicy(name, globs, authorities, mode == "warn")


def _authority(value: dict[str, Any], limited: Sequence[str], where: str) -> Requirement:
    unchecked = [*limited, *(field for field in value if field not in HARMLESS)]
    if unchecked:
        return Requirement("unknown", text=f"{unchecked[0]}, which kitfs cannot check")
    if "static" in value:
        action = value["static"]["action"]
        if action not in ("pass", "fail"):
            raise UsageError(f"cannot use the policy {where}: the action {action!r} is neither pass nor fail")
        return Requirement("accept" if action == "pass" else "reject")
    key = value.get("key")
    if not isinstance(key, dict) or not isinstance(key.get("data"), str):
        return Requirement("unknown", text="a key that is not in the policy itself (kitfs cannot check it)")
    return Requirement("signed", (public_key(key["data"].encode(), f"the key of {where}"),))


def _pattern(glob: str) -> re.Pattern[str]:
    """Compile a glob. ``*`` matches within a component of a path, and ``**`` also matches slashes."""
    texts = re.split(r"(\*\*|\*)", glob)
    return re.compile("".join({"**": ".*", "*": "[^/]*"}.get(text, re.escape(text)) for text in texts))


def _names(asked: Reference | LayoutReference) -> tuple[str, ...]:
    """Return the names that a glob may match: the name of the repository, and the whole reference."""
    if isinstance(asked, LayoutReference) or asked.registry == LOCAL:
        return ()
    return asked.name, str(asked)
