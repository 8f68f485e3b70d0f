"""Parsers of signatures, policies, headers, arguments and requests of the kernel, with changed inputs for them.

Importing this module adds them to ``PARSERS``.
"""

from __future__ import annotations

import base64
import json
import struct
from random import Random
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from kitfs.errors import UsageError
from kitfs.fuse import abi
from kitfs.gocompat.json import loads
from kitfs.gocompat.template import parse as parse_template
from kitfs.modelkit.filters import Filter
from kitfs.modelkit.index import annotation_edits, label_edits, selector
from kitfs.oci.manifest import Descriptor
from kitfs.oci.names import Digest, parse_any
from kitfs.ops.provenance.facts import merged
from kitfs.ops.provenance.statements import MAX_DEPENDENCIES, facts_about
from kitfs.registry.auth import challenges
from kitfs.registry.blob import CONTENT_RANGE
from kitfs.server import ranges
from kitfs.trust import cluster_policy, containers_policy
from kitfs.trust.attestations import APPROVAL, ENVELOPE, PROVENANCE, Attestation, in_envelope
from kitfs.trust.bundle import Bundle, bundle_of
from kitfs.trust.model_signing import SignedFiles, statement_of
from kitfs.trust.simple_signing import Payload, payload_of
from kitfs.trust.statement import PAYLOAD_TYPE, Statement, statement_about
from tests.property.mutations import SHA, flipped, text
from tests.property.parsers import accepts, of, parser

DIGEST: Final = Digest.parse(SHA)
PEM: Final = (
    ec.generate_private_key(ec.SECP256R1())
    .public_key()
    .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
)
STATEMENT: Final = statement_about(DIGEST, "https://slsa.dev/provenance/v1", {"buildDefinition": {"buildType": "x"}})
PROVENANCE_STATEMENT: Final = statement_about(DIGEST, PROVENANCE, {
    "buildDefinition": {
        "buildType": "x",
        "externalParameters": {"source": {"uri": "https://g/m", "digest": {"gitCommit": "ab"}}},
        "internalParameters": {"source": {"clean": True}},
        "resolvedDependencies": [
            {"name": "d", "digest": {"sha256": "ab" * 32, "md5": "cd"}, "annotations": {"role": "dataset"}},
            {"uri": "oci://r.io/base", "digest": {"sha256": "ef" * 32},
             "annotations": {"role": "parent", "reference": "r.io/base:v1"}},
        ],
    },
    "runDetails": {
        "builder": {"id": "b", "version": {"kitfs": "1"}}, "metadata": {"finishedOn": "2026-01-01T00:00:00Z"},
    },
})  # fmt: skip
APPROVAL_STATEMENT: Final = statement_about(DIGEST, APPROVAL, {"approvedOn": "2026-01-01T00:00:00Z", "note": "fine"})
ENVELOPE_OF_STATEMENT: Final = json.dumps({
    "payloadType": PAYLOAD_TYPE, "payload": base64.b64encode(APPROVAL_STATEMENT).decode(),
    "signatures": [{"keyid": "", "sig": "YWJj"}, {"sig": "ZGVm"}],
}).encode()  # fmt: skip
POLICY: Final = json.dumps({
    "default": [{"type": "reject"}],
    "transports": {"docker": {"r.io/team": [{
        "type": "sigstoreSigned", "keyData": base64.b64encode(PEM).decode(),
        "signedIdentity": {"type": "remapIdentity", "prefix": "a", "signedPrefix": "b"},
    }], "": [{"type": "insecureAcceptAnything"}]}},
}).encode()  # fmt: skip
CLUSTER: Final = json.dumps({
    "apiVersion": "policy.sigstore.dev/v1beta1", "kind": "ClusterImagePolicy", "metadata": {"name": "p"},
    "spec": {"mode": "enforce", "images": [{"glob": "r.io/**"}],
             "authorities": [{"name": "a", "key": {"data": PEM.decode(), "hashAlgorithm": "sha256"}}]},
}).encode()  # fmt: skip


@parser(of(bundle_of(STATEMENT, b"signature", "hint")))
def bundle(data: bytes) -> bool:
    return accepts(lambda: Bundle.parse(data).signed(b"artifact"))


@parser(of(STATEMENT, statement_of("kit", {"a": "ab" * 32, "b": "cd" * 32})))
def statement(data: bytes) -> bool:
    return accepts(lambda: (Statement.parse(data).is_about(DIGEST), SignedFiles.parse(Statement.parse(data))))


@parser(of(PROVENANCE_STATEMENT, APPROVAL_STATEMENT))
def attestation(data: bytes) -> bool:
    def read() -> None:
        found = Attestation(DIGEST, Statement.parse(data), None, "")
        facts = merged(facts_about([], [found], []))
        assert {fact.label for fact in facts} <= {"stated"}
        assert len(facts) <= MAX_DEPENDENCIES + 2

    return accepts(read)


@parser(of(ENVELOPE_OF_STATEMENT))
def dsse_envelope(data: bytes) -> bool:
    layer = Descriptor(ENVELOPE, DIGEST, len(data))
    return accepts(lambda: list(in_envelope(layer, data)))


@parser(of(payload_of("r.io/team/kit", DIGEST)))
def simple_signing(data: bytes) -> bool:
    return accepts(lambda: Payload.parse(data))


def _no_key(name: str) -> bytes:
    raise UsageError(f"{name} does not exist")


@parser(of(POLICY))
def policy_json(data: bytes) -> bool:
    def read() -> None:
        containers_policy.parse(loads(data), data, "policy.json", _no_key).rules_for(parse_any("r.io/team/kit:v1"))

    return accepts(read, UsageError, ValueError)


@parser(of(CLUSTER))
def cluster_image_policy(data: bytes) -> bool:
    def read() -> None:
        cluster_policy.parse([loads(data)], data, "policy.yaml").rules_for(parse_any("r.io/team/kit:v1"))

    return accepts(read, UsageError, ValueError)


# -- headers, arguments and requests of the kernel

CHALLENGES: Final = (
    'Bearer realm="https://auth.io/token",service="r",scope="repository:a/b:pull,push"', "Basic realm=x",
    'Bearer realm="a\\"b", error=invalid_token Basic realm="y"', "Negotiate YWJj", "",
)  # fmt: skip
RANGES: Final = ("bytes 0-9/100", "bytes 0-9/*", "bytes=0-1,5-", "bytes=-5", "0-99", "bytes=9-1", "bytes */9")


def _header(r: Random) -> str:
    data = flipped(r, (r.choice(CHALLENGES) if r.random() < 0.6 else r.choice(RANGES)).encode(), 3)
    return data.decode("latin-1") * (r.choice((1, 50)) if r.random() < 0.1 else 1)


@parser(_header)
def http_header(value: str) -> bool:
    found = challenges(value, value[::-1])
    spans = [accepts(lambda: ranges.requested(value, 1000), ranges.Unsatisfiable)]
    spans.append(accepts(lambda: ranges.pushed(value), ranges.Unsatisfiable))
    match = CONTENT_RANGE.fullmatch(value)
    return bool(found or match or any(spans))


ALPHABET: Final = "ab/:@=-,.{}|$\"'\\\0\udcff 1é["


@parser(lambda r: text(r, ALPHABET, 20))
def argument(value: str) -> bool:
    accepted = False
    for parse in (parse_any, Filter.parse):
        for head in ("", "oci:", "localhost/k:", "model:"):
            accepted |= accepts(lambda parse=parse, head=head: parse(head + value))  # type: ignore[misc]
    for call in (
        lambda: selector([value]), lambda: label_edits([value]), lambda: label_edits(["k:=" + value]),
        lambda: annotation_edits([value]),
        lambda: parse_template("{{" + value + "}}", ("Repo",)), lambda: parse_template(value, ("Repo",)),
    ):  # fmt: skip
        accepted |= accepts(call)
    return accepted


def _request(r: Random) -> bytes:
    body = r.choice(
        (b"name\0", struct.pack("<QQIIQII", 1, 0, 4096, 0, 0, 0, 0), bytes(64), r.randbytes(r.randrange(120)))
    )
    length = max(0, 40 + len(body) + r.choice((0, 0, 0, -1, 1, 3)))
    return abi._IN_HEADER.pack(length, r.randrange(70), 1, 1, 0, 0, 0, r.choice((0, 0, 1, 3)), 0) + flipped(r, body, 2)


@parser(_request)
def fuse_request(data: bytes) -> bool:
    found: list[abi.Request] = []
    if not accepts(lambda: found.append(abi.request(data)), abi.BadRequestError):
        return False
    request = found[0]
    for read in (request.name, request.open_flags, request.read, request.handle, request.xattr, request.interrupted):
        accepts(read, abi.BadRequestError)
    return accepts(lambda: abi.init_out(abi.negotiate(request.init())), abi.BadRequestError, UsageError) or True
