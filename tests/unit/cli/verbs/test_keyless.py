"""The package sigstore verifies signatures by certificates. If it is not installed, the error says so.

The bundle in these tests is from Sigstore's staging instance (tests/corpus/sigstore).
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from kitfs.errors import UsageError
from kitfs.oci.names import Digest
from kitfs.trust.bundle import Bundle
from kitfs.trust.keyless import Keyless, identity_in
from kitfs.trust.signatures import Found, Signature
from tests.conftest import CANNOT, GOLDEN
from tests.unit.cli.conftest import Kitfs

CORPUS = Path(__file__).parents[3] / "corpus/sigstore"
ROOT = str(CORPUS / "staging-root.json")
WORKFLOW = (
    "https://github.com/sigstore-conformance/extremely-dangerous-public-oidc-beacon/"
    ".github/workflows/extremely-dangerous-oidc-beacon.yml@refs/heads/main"
)
ISSUER = "https://token.actions.githubusercontent.com"
LAYOUT = f"oci-archive:{GOLDEN / 'cosign/basic-signed.tar'}:v1"
HAS_SIGSTORE = importlib.util.find_spec("sigstore") is not None


@pytest.fixture
def _sigstore() -> None:
    if not HAS_SIGSTORE:
        pytest.skip(f"{CANNOT} the package sigstore is not installed")


def bundle_in(data: bytes | None = None) -> Bundle:
    return Bundle.parse(data or (CORPUS / "statement.sigstore.json").read_bytes())


@pytest.mark.usefixtures("_sigstore")
def test_the_identity_that_signed_is_accepted() -> None:
    """A signature is refused if verify requires another identity, another issuer or another Sigstore instance."""
    bundle = bundle_in()
    assert Keyless(WORKFLOW, ISSUER, ROOT).has_signed(bundle)
    assert not Keyless(WORKFLOW + "x", ISSUER, ROOT).has_signed(bundle)
    assert not Keyless(WORKFLOW, "https://accounts.example.com", ROOT).has_signed(bundle)
    assert not Keyless(WORKFLOW, ISSUER, None).has_signed(bundle), "the public instance did not sign it"


@pytest.mark.usefixtures("_sigstore")
def test_other_content_is_refused() -> None:
    fields = json.loads((CORPUS / "statement.sigstore.json").read_bytes())
    fields["dsseEnvelope"]["payload"] = "e30="
    assert not Keyless(WORKFLOW, ISSUER, ROOT).has_signed(bundle_in(json.dumps(fields).encode()))


@pytest.mark.usefixtures("_sigstore")
@pytest.mark.parametrize("part", ["tlogEntries", "certificate", "timestampVerificationData"])
def test_a_bundle_without_one_of_its_proofs_is_refused(part: str) -> None:
    """A signature is refused if its log entry or its timestamp is missing, or if its certificate was changed."""
    fields = json.loads((CORPUS / "statement.sigstore.json").read_bytes())
    material = fields["verificationMaterial"]
    if part == "certificate":
        raw = material[part]["rawBytes"]
        material[part]["rawBytes"] = raw[:400] + ("A" if raw[400] != "A" else "B") + raw[401:]
    else:
        del material[part]
    assert not Keyless(WORKFLOW, ISSUER, ROOT).has_signed(bundle_in(json.dumps(fields).encode()))


@pytest.mark.usefixtures("_sigstore")
def test_a_trusted_root_that_cannot_be_used_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "root.json").write_text("{}")
    with pytest.raises(UsageError, match="cannot use the trusted root"):
        Keyless(WORKFLOW, ISSUER, str(tmp_path / "root.json"))


@pytest.mark.usefixtures("_sigstore")
def test_the_signature_of_a_key_is_not_one_of_an_identity(kitfs: Kitfs) -> None:
    """The golden layout is signed by a key and not by an identity.

    If verify requires an identity, it fails, and the error lists the signers that were found.
    """
    done = kitfs("verify", LAYOUT, "--certificate-identity", WORKFLOW, "--certificate-oidc-issuer", ISSUER)
    assert done.code == 11
    assert "an unnamed key (tag)" in done.err


def test_the_identity_of_a_certificate_is_shown() -> None:
    """kitfs reads the name in a certificate without the package sigstore.

    If the certificate is not valid, the name is empty.
    """
    bundle = bundle_in()
    assert identity_in(bundle.certificate) == WORKFLOW[:100]
    assert identity_in(b"rubbish") == ""
    one = Signature("bundle", Digest.of(b""), b"", b"", certificate=True, bundle=bundle)
    assert one.signer == f"a certificate of {WORKFLOW[:100]}"
    assert Found((one,)).signatures[0].certificate


@pytest.mark.skipif(HAS_SIGSTORE, reason=f"{CANNOT} the package sigstore is installed")
def test_without_the_package_the_extra_is_named(kitfs: Kitfs) -> None:
    done = kitfs("verify", LAYOUT, "--certificate-identity", WORKFLOW, "--certificate-oidc-issuer", ISSUER)
    assert (done.code, "pip install 'kitfs[sigstore]'" in done.err) == (2, True)


@pytest.mark.parametrize(
    "words",
    [
        ["--certificate-identity", WORKFLOW],
        ["--certificate-oidc-issuer", ISSUER],
        ["--key", GOLDEN / "cosign/test-only.pub", "--certificate-identity", WORKFLOW],
        ["--key", GOLDEN / "cosign/test-only.pub", "--trusted-root", ROOT],
        [],
    ],
)
def test_half_an_identity_is_exit_code_2(kitfs: Kitfs, words: list[str | Path]) -> None:
    done = kitfs("verify", LAYOUT, *words)
    assert (done.code, done.out) == (2, "")
