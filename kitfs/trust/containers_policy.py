"""Read the ``policy.json`` of podman, skopeo and CRI-O (containers-policy.json(5)).

A rule is found by the transport and the scope of a reference; the longest scope takes precedence. Parsing is as strict
as in those programs: a file with an unknown key is refused. Some requirements cannot be checked by kitfs (``signedBy``,
``fulcio``, ``pki``, a transparency log). Such a requirement is never met, but the other rules of the file can be used.
Threading: the module has no state.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from kitfs.errors import UsageError
from kitfs.oci.names import LOCAL, LayoutReference, Reference
from kitfs.trust.keys import PublicKey, public_key
from kitfs.trust.policy import Identity, Requirement, Rule

ReadFile = Callable[[str], bytes]
IDENTITIES: Final[Mapping[str, tuple[str, ...]]] = {
    "matchExact": (),
    "matchRepoDigestOrExact": (),
    "matchRepository": (),
    "exactReference": ("dockerReference",),
    "exactRepository": ("dockerRepository",),
    "remapIdentity": ("prefix", "signedPrefix"),
}
KEYS: Final = ("keyPath", "keyPaths", "keyData", "keyDatas")
UNCHECKED: Final = ("fulcio", "pki")
LOG: Final = ("rekorPublicKeyPath", "rekorPublicKeyPaths", "rekorPublicKeyData", "rekorPublicKeyDatas")
SIGNED_BY: Final = ("type", "keyType", "keyPath", "keyPaths", "keyData", "signedIdentity")


@dataclass(frozen=True, slots=True)
class ContainersPolicy:
    """A policy.json with rules for transports and scopes. ``default`` is used if no scope matches."""

    digest: str
    path: str
    default: tuple[Requirement, ...]
    transports: Mapping[str, Mapping[str, tuple[Requirement, ...]]]

    def rules_for(self, asked: Reference | LayoutReference) -> tuple[Rule, ...]:
        """Return the rule of the longest scope that contains a reference."""
        transport, scopes = _place(asked)
        known = self.transports.get(transport, {})
        scope = next((one for one in scopes if one in known), None)
        requirements = self.default if scope is None else known[scope]
        name = "default" if scope is None else f"{transport} {scope!r}"
        return (Rule(f"the rule {name} of {self.path}", tuple((one,) for one in requirements)),)


def parse(fields: Any, data: bytes, path: str, read: ReadFile) -> ContainersPolicy:
    """Return the policy in the JSON of the file ``path``, whose bytes are ``data``. Raises UsageError.

    ``read`` is called to read the files of keys.
    """
    reader = _Reader(path, read, hashlib.sha256(data))
    reader.check(fields, ("default", "transports"), "the file")
    default = reader.requirements(fields.get("default"), "default")
    transports: dict[str, dict[str, tuple[Requirement, ...]]] = {}
    for transport, scopes in reader.mapping(fields.get("transports", {}), "transports").items():
        transports[transport] = {
            scope: reader.requirements(listed, f"{transport} {scope!r}")
            for scope, listed in reader.mapping(scopes, transport).items()
        }
    return ContainersPolicy(reader.hasher.hexdigest(), path, default, transports)


class _Reader:
    """A reader of the parts of one file. ``hasher`` hashes the file and the keys."""

    def __init__(self, path: str, read: ReadFile, hasher: Any) -> None:
        self.path = path
        self.hasher = hasher
        self._read = read

    def error(self, text: str) -> UsageError:
        return UsageError(f"cannot use the policy {self.path}: {text}")

    def mapping(self, value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.error(f"{where} must be an object")
        return value

    def check(self, value: Any, known: Sequence[str], where: str) -> None:
        """Raise UsageError if a JSON object has a key that is not in ``known``."""
        unknown = self.mapping(value, where).keys() - set(known)
        if unknown:
            raise self.error(f"{where} has the unknown key {sorted(unknown)[0]!r}")

    def requirements(self, value: Any, where: str) -> tuple[Requirement, ...]:
        if not isinstance(value, list) or not value:
            raise self.error(f"{where} must be a list of at least one requirement")
        return tuple(self._requirement(one, where) for one in value)

    def _requirement(self, value: Any, where: str) -> Requirement:
        kind = self.mapping(value, where).get("type")
        if kind in ("insecureAcceptAnything", "reject"):
            self.check(value, ("type",), where)
            return Requirement("accept" if kind != "reject" else "reject")
        if kind == "signedBy":
            self.check(value, SIGNED_BY, where)
            return Requirement("unknown", text="a GPG signature (signedBy), which kitfs cannot check")
        if kind != "sigstoreSigned":
            raise self.error(f"{where} has the unknown requirement {kind!r}")
        self.check(value, ("type", *KEYS, *UNCHECKED, *LOG, "signedIdentity"), where)
        identity = self._identity(value.get("signedIdentity", {"type": "matchRepoDigestOrExact"}), where)
        given = [name for name in (*KEYS, *UNCHECKED) if name in value]
        if len(given) != 1:
            raise self.error(f"{where}: sigstoreSigned needs exactly one of {', '.join((*KEYS, *UNCHECKED))}")
        unchecked = [name for name in (*UNCHECKED, *LOG) if name in value]
        if unchecked:
            text = f"a signature with {unchecked[0]}, which kitfs cannot check"
            return Requirement("unknown", identity=identity, text=text)
        return Requirement("signed", tuple(self._keys(given[0], value[given[0]], where)), identity)

    def _keys(self, name: str, value: Any, where: str) -> Iterator[PublicKey]:
        values = value if name.endswith("s") else [value]
        if not isinstance(values, list) or not values or not all(isinstance(one, str) for one in values):
            raise self.error(f"{where}: {name} must be {'a list of strings' if name.endswith('s') else 'a string'}")
        for one in values:
            if name.startswith("keyPath"):
                pem, called = self._read(one), one
            else:
                called = f"{name} of {where} in {self.path}"
                try:
                    pem = base64.b64decode(one, validate=True)
                except ValueError:
                    raise self.error(f"{where}: {name} is not base64")
            key = public_key(pem, called)
            self.hasher.update(key.der)
            yield key

    def _identity(self, value: Any, where: str) -> Identity:
        kind = str(self.mapping(value, f"signedIdentity of {where}").get("type"))
        if kind not in IDENTITIES:
            raise self.error(f"{where}: signedIdentity has the unknown type {kind!r}")
        self.check(value, ("type", *IDENTITIES[kind]), f"signedIdentity of {where}")
        values = tuple(value.get(name) for name in IDENTITIES[kind])
        if not all(isinstance(one, str) and one for one in values):
            raise self.error(f"{where}: signedIdentity {kind} needs {' and '.join(IDENTITIES[kind])}")
        return Identity(kind, values)


def _place(asked: Reference | LayoutReference) -> tuple[str, list[str]]:
    """Return the transport of a reference, and its scopes, the longest first."""
    if isinstance(asked, LayoutReference):
        parts = asked.path.strip("/").split("/")
        above = ["/" + "/".join(parts[:count]) for count in range(len(parts), 0, -1)]
        return asked.kind, [str(asked).removeprefix(f"{asked.kind}:"), *above, "/", ""]
    if asked.registry == LOCAL:
        return "", []  # a kit without a registry
    parts = asked.name.split("/")
    above = ["/".join(parts[:count]) for count in range(len(parts), 0, -1)]
    labels = asked.registry.split(":")[0].split(".")
    wildcards = ["*." + ".".join(labels[count:]) for count in range(1, len(labels))]
    return "docker", [str(asked), *above, *wildcards, ""]
