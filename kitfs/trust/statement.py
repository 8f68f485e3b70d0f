"""Read and write in-toto statements, and compute the bytes that are signed for a statement (DSSE).

Sources: ``spec/v1/statement.md`` of in-toto/attestation, and ``protocol.md`` of secure-systems-lab/dsse. This module
does no I/O and uses no keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from kitfs.errors import ManifestError
from kitfs.gocompat.json import dumps, loads
from kitfs.oci.names import Digest

PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
STATEMENT: Final = "https://in-toto.io/Statement/v1"
STATEMENTS: Final = (STATEMENT, "https://in-toto.io/Statement/v0.1")
SIGN: Final = "https://sigstore.dev/cosign/sign/v1"  # the predicate type of a signature, which states nothing more
MAX_SUBJECTS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement about subjects. Each of ``subjects`` maps algorithms to digests in hexadecimal."""

    predicate_type: str
    subjects: tuple[Mapping[str, str], ...]
    predicate: Any

    @classmethod
    def parse(cls, payload: bytes) -> Statement:
        """Parse the payload of an envelope. Raises ManifestError if it is not a statement."""
        try:
            fields = loads(payload)
            if fields["_type"] not in STATEMENTS:
                raise ManifestError("the signed statement is not an in-toto statement")
            subjects = tuple(dict(subject["digest"]) for subject in fields["subject"][: MAX_SUBJECTS + 1])
            kind = fields["predicateType"]
        except (ValueError, LookupError, TypeError, AttributeError):
            raise ManifestError("the signed statement is not an in-toto statement")
        if len(subjects) > MAX_SUBJECTS or not isinstance(kind, str):
            raise ManifestError(f"the signed statement has no predicate type, or more than {MAX_SUBJECTS} subjects")
        return cls(kind, subjects, fields.get("predicate"))

    def is_about(self, digest: Digest) -> bool:
        """Return whether a digest is one of the subjects."""
        return any(subject.get(digest.algorithm) == digest.hex for subject in self.subjects)


def statement_about(digest: Digest, predicate_type: str, predicate: Any) -> bytes:
    """Return a statement about a digest."""
    return dumps(
        {
            "_type": STATEMENT,
            "subject": [{"digest": {digest.algorithm: digest.hex}}],
            "predicateType": predicate_type,
            "predicate": predicate,
        }
    )


def signed_bytes(payload_type: str, payload: bytes) -> bytes:
    """Return the bytes that the signature of an envelope signs (DSSE's pre-authentication encoding)."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
