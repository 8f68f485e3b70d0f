"""Statements, bundles and payloads are parsed and written. Hostile documents raise only ManifestError."""

from __future__ import annotations

import base64
import json
import tarfile
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kitfs.errors import ManifestError
from kitfs.oci.manifest import Manifest
from kitfs.oci.names import Digest
from kitfs.trust import simple_signing
from kitfs.trust.bundle import Bundle, bundle_of
from kitfs.trust.keys import public_key
from kitfs.trust.simple_signing import Payload
from kitfs.trust.statement import MAX_SUBJECTS, PAYLOAD_TYPE, SIGN, Statement, signed_bytes, statement_about
from tests.conftest import GOLDEN
from tests.unit.trust.mutations import json_values, with_one_other_value

KIT = Digest("sha256:f36b4cd5e386962df706b670e71e1f8a99898a2cc6ca4a40f5355d52f8c32c65")
BUNDLE = "c62f103217bdd3999f8f0ba999b79a888476190c8c627734b2f7faf8894567b4"
PAYLOAD = "6ffd465400203b2045a6fab607d387225736c4dc464841f83f514d3934a5708e"
MANIFEST = "adf0e374e6af8b38fde21debfadd808a4c57e8939b0649cd2f3273b0ac8319c3"
KEY = public_key((GOLDEN / "cosign/test-only.pub").read_bytes(), "test-only.pub")


def golden(digits: str) -> bytes:
    """Return a blob that cosign wrote. ``digits`` is its digest in hex."""
    with tarfile.open(GOLDEN / "cosign/basic-signed.tar") as archive:
        member = archive.extractfile(f"blobs/sha256/{digits}")
        assert member
        return member.read()


def test_the_bundle_of_cosign_is_read_and_verified() -> None:
    bundle = Bundle.parse(golden(BUNDLE))
    assert bundle.hint == KEY.hint
    assert bundle.payload is not None
    statement = Statement.parse(bundle.payload)
    assert (statement.predicate_type, statement.is_about(KIT)) == (SIGN, True)
    assert KEY.verifies(bundle.signature, bundle.signed(b""))


def test_the_payload_of_cosign_is_written_byte_for_byte() -> None:
    """Payload, manifest and config for a repository and digest are byte for byte those of cosign."""
    payload = golden(PAYLOAD)
    assert simple_signing.payload_of("127.0.0.1:5555/golden/basic", KIT) == payload
    assert Payload.parse(payload) == Payload(KIT, "127.0.0.1:5555/golden/basic")
    [layer] = Manifest.parse(golden(MANIFEST)).layers
    assert KEY.verifies(simple_signing.signature_of(layer), payload)
    manifest, config = simple_signing.manifest_of(None, layer)
    assert json.loads(manifest) == json.loads(golden(MANIFEST))
    assert Digest.of(config) == Manifest.parse(golden(MANIFEST)).config.digest


def test_a_bundle_that_is_written_is_read_back() -> None:
    payload = statement_about(KIT, SIGN, {})
    bundle = Bundle.parse(bundle_of(payload, b"signature", KEY.hint))
    assert (bundle.payload, bundle.signature, bundle.hint) == (payload, b"signature", KEY.hint)
    assert bundle.signed(b"") == signed_bytes(PAYLOAD_TYPE, payload)


def test_the_signed_bytes_are_those_of_dsse() -> None:
    """The expected bytes are the example in DSSE's protocol.md."""
    assert signed_bytes("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_the_signature_of_a_message_is_over_the_artifact() -> None:
    fields = json.loads(golden(BUNDLE))
    del fields["dsseEnvelope"]
    digest = {"algorithm": "SHA2_256", "digest": base64.b64encode(bytes.fromhex(KIT.hex)).decode()}
    fields["messageSignature"] = {"messageDigest": digest, "signature": "YWJj"}
    bundle = Bundle.parse(json.dumps(fields).encode())
    assert (bundle.payload, bundle.digest, bundle.signature) == (None, KIT.hex, b"abc")
    assert bundle.signed(b"the manifest") == b"the manifest"


def without(field: str) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(golden(BUNDLE))
    del fields[field]
    return fields


def changed(**more: Any) -> dict[str, Any]:
    return {**json.loads(golden(BUNDLE)), **more}


@pytest.mark.parametrize(
    "fields",
    [
        without("mediaType"),
        without("verificationMaterial"),
        without("dsseEnvelope"),
        changed(mediaType="application/vnd.dev.sigstore.bundle.v0.2+json"),
        changed(verificationMaterial={}),
        changed(verificationMaterial={"publicKey": {"hint": 5}}),
        changed(verificationMaterial={"publicKey": {"hint": ""}, "certificate": {"rawBytes": "YQ=="}}),
        changed(dsseEnvelope={"payload": "YQ==", "payloadType": "text/plain", "signatures": [{"sig": "YQ=="}]}),
        changed(dsseEnvelope={"payload": "YQ==", "payloadType": PAYLOAD_TYPE, "signatures": []}),
        changed(dsseEnvelope={"payload": "YQ==", "payloadType": PAYLOAD_TYPE, "signatures": [{"sig": "YQ=="}] * 2}),
        changed(dsseEnvelope={"payload": "?", "payloadType": PAYLOAD_TYPE, "signatures": [{"sig": "YQ=="}]}),
        changed(messageSignature={"signature": "YQ=="}),
        [],
        None,
    ],
)
def test_other_bundles_are_refused(fields: Any) -> None:
    """A bundle is refused if a part is missing, or if it has two signatures, another version or other content."""
    with pytest.raises(ManifestError):
        Bundle.parse(json.dumps(fields).encode())


def test_a_statement_has_a_bounded_number_of_subjects() -> None:
    subject = {"digest": {"sha256": KIT.hex}}
    fields = {"_type": "https://in-toto.io/Statement/v1", "predicateType": SIGN, "predicate": {}}
    Statement.parse(json.dumps({**fields, "subject": [subject] * MAX_SUBJECTS}).encode())
    with pytest.raises(ManifestError):
        Statement.parse(json.dumps({**fields, "subject": [subject] * (MAX_SUBJECTS + 1)}).encode())


JSON = json_values("YQ==", SIGN, PAYLOAD_TYPE)
PARSERS = {
    "bundle": (Bundle.parse, json.loads(golden(BUNDLE))),
    "statement": (Statement.parse, json.loads(statement_about(KIT, SIGN, {}))),
    "payload": (Payload.parse, json.loads(golden(PAYLOAD))),
}


@pytest.mark.parametrize("name", PARSERS)
@given(data=st.data())
def test_a_document_with_one_other_part_is_read_or_refused(name: str, data: st.DataObject) -> None:
    """If any one value in a document is replaced, the parser returns or raises ManifestError."""
    parse, document = PARSERS[name]
    value = with_one_other_value(data, document, JSON)
    try:
        parse(json.dumps(value).encode())
    except ManifestError:
        pass


@pytest.mark.parametrize("name", PARSERS)
@given(st.binary(max_size=60))
def test_other_bytes_are_refused(name: str, data: bytes) -> None:
    with pytest.raises(ManifestError):
        PARSERS[name][0](data)
