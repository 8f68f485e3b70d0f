"""Verify "keyless" signatures: the signer is an identity, to which Fulcio gave a short-lived certificate.

The package sigstore verifies the chain of the certificate, its entry in a transparency log, the time, the identity and
its issuer. It uses a trusted root, and no network. The package is an optional dependency, and is imported when the
first signature is verified. Threading: only one thread at a time may use a ``Keyless``.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from kitfs.errors import UsageError
from kitfs.trust.bundle import Bundle

EXTRA: Final = "signatures of certificates need the package sigstore (pip install 'kitfs[sigstore]')"
MAX_SHOWN: Final = 100  # characters of an identity


class Keyless:
    """A signer that is defined by an identity and its issuer.

    ``identity`` is the e-mail address or the URI in the certificate, and ``issuer`` is the URL of the OIDC provider.
    ``trusted_root`` is the file with the trusted certificates and logs; None means the root of Sigstore's public
    instance, which the package contains. Raises UsageError if the package is missing or the file cannot be used.
    """

    def __init__(self, identity: str, issuer: str, trusted_root: str | None) -> None:
        try:
            from sigstore.models import TrustedRoot
            from sigstore.verify import Verifier, policy
        except ImportError:
            raise UsageError(EXTRA)
        logging.getLogger("sigstore").setLevel(logging.ERROR)  # it warns that it does not use the network
        self._policy = policy.Identity(identity=identity, issuer=issuer)
        self.name: Final = f"{identity} (issuer {issuer})"
        try:
            if trusted_root is None:
                self._verifier: Any = Verifier.production(offline=True)
            else:
                self._verifier = Verifier(trusted_root=TrustedRoot.from_file(trusted_root))
        except Exception as e:  # noqa: BLE001 - whatever the package raises for a file
            raise UsageError(f"cannot use the trusted root {trusted_root}: {' '.join(str(e).split())[:200]}")

    def has_signed(self, bundle: Bundle) -> bool:
        """Return whether the identity has signed the statement in a bundle."""
        from sigstore.models import Bundle as Parsed

        try:
            _, payload = self._verifier.verify_dsse(Parsed.from_json(bundle.data), self._policy)
            return bool(payload == bundle.payload)
        except Exception:  # noqa: BLE001 - a bundle is foreign: whatever fails, the signature is not verified
            return False


def identity_in(certificate: bytes) -> str:
    """Return the identity in a certificate (DER), which is not verified; "" if the certificate has none."""
    from cryptography import x509

    try:
        names = x509.load_der_x509_certificate(certificate).extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        )
        found = [*names.value.get_values_for_type(x509.RFC822Name)]
        found += names.value.get_values_for_type(x509.UniformResourceIdentifier)
    except Exception:  # noqa: BLE001 - a certificate is foreign, and only a message needs its name
        return ""
    return str(found[0])[:MAX_SHOWN] if found else ""
