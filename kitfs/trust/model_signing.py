"""Read and write signatures of OpenSSF Model Signing (OMS) v1.0, which sign the digest of each file of a model.

Sources: ``spec/v1.0.md`` of ossf/model-signing-spec, and its reference implementation, the Python package
model-signing. A signature is a Sigstore bundle. The predicate of its statement is a list of the files with their
digests, and the subject is the digest of all these digests. Only the method ``files`` with SHA-256 is supported. A raw
layer has the digest of its file, so it need not be fetched. This module does no I/O.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from kitfs.errors import ManifestError, SignatureError
from kitfs.gocompat.json import dumps
from kitfs.trust.keys import PublicKey
from kitfs.trust.statement import STATEMENT, Statement

PREDICATE: Final = "https://model_signing/signature/v1.0"
METHOD: Final = "files"
HASH: Final = "sha256"
MAX_NAMED: Final = 3  # paths that a message names


@dataclass(frozen=True, slots=True)
class SignedFiles:
    """The files that a signature lists, as a map from paths to SHA-256 digests in hexadecimal.

    ``ignored`` are the paths that the signature leaves out.
    """

    files: Mapping[str, str]
    ignored: tuple[str, ...]

    @classmethod
    def parse(cls, statement: Statement) -> SignedFiles:
        """Read the predicate of a statement.

        Raises ManifestError, and SignatureError if the signature uses another method or hash.
        """
        try:
            serialization, resources = statement.predicate["serialization"], statement.predicate["resources"]
            method, kind = serialization["method"], serialization["hash_type"]
            if (method, kind) != (METHOD, HASH):
                used = f"{str(method)[:20]} with {str(kind)[:20]}"
                raise SignatureError(f"the model was signed as {used}; kitfs verifies {METHOD} with {HASH} only")
            files = {str(one["name"]): str(one["digest"]) for one in resources if one["algorithm"] == HASH}
            [subject] = statement.subjects
            root = hashlib.sha256(b"".join(bytes.fromhex(one["digest"]) for one in resources)).hexdigest()
            ignored = tuple(map(str, serialization.get("ignore_paths") or ()))
        except (ValueError, LookupError, TypeError, AttributeError):
            raise ManifestError("not a signature of OpenSSF Model Signing v1.0")
        if len(files) != len(resources) or subject.get(HASH) != root:
            raise ManifestError("a signature of OpenSSF Model Signing that contradicts itself")
        return cls(files, ignored)

    def difference(self, found: Mapping[str, str]) -> str:
        """Describe for a message how a kit's files differ from the signed files. Return "" if they are the same."""
        missing = sorted(self.files.keys() - found.keys())
        more = sorted(path for path in found.keys() - self.files.keys() if not self._ignores(path))
        changed = sorted(path for path in self.files.keys() & found.keys() if self.files[path] != found[path])
        parts = (("are missing", missing), ("are not signed", more), ("have other content", changed))
        return ", ".join(f"{len(paths)} {what} ({_named(paths)})" for what, paths in parts if paths)

    def _ignores(self, path: str) -> bool:
        return any(path == one or path.startswith(f"{one}/") for one in self.ignored)


def statement_of(name: str, files: Mapping[str, str]) -> bytes:
    """Return the statement about the files of the model ``name``. ``files`` maps paths to SHA-256 in hexadecimal."""
    listed = sorted(files.items())
    root = hashlib.sha256(b"".join(bytes.fromhex(digest) for _, digest in listed)).hexdigest()
    fields: dict[str, Any] = {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {HASH: root}}],
        "predicateType": PREDICATE,
        "predicate": {
            "serialization": {"method": METHOD, "hash_type": HASH, "allow_symlinks": False, "ignore_paths": []},
            "resources": [{"name": path, "algorithm": HASH, "digest": digest} for path, digest in listed],
        },
    }
    return dumps(fields)


def hint_of(key: PublicKey) -> str:
    """Return the hint for a key in this format: the SHA-256 of its PEM file, in hexadecimal."""
    return hashlib.sha256(key.pem).hexdigest()


def _named(paths: list[str]) -> str:
    more = f" and {len(paths) - MAX_NAMED} more" if len(paths) > MAX_NAMED else ""
    return ", ".join(repr(path[:200]) for path in paths[:MAX_NAMED]) + more
