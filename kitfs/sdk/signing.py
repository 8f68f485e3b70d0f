"""Sign kits at their registries, and verify that they are signed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Unpack

from kitfs.errors import UsageError
from kitfs.sdk.names import kit_reference, remote_reference
from kitfs.sdk.options import Options, StrPath, settings_of
from kitfs.sdk.session import workspace_of

if TYPE_CHECKING:
    from kitfs.oci.names import Digest
    from kitfs.ops.signing.verify import Verified
    from kitfs.trust.keys import PrivateKey


@dataclass(frozen=True, slots=True)
class KitSignature:
    """A signature of a kit.

    ``digest``: the digest of the kit's manifest. ``signer``: "key SHA256:…", with the SHA-256 of the public key in
    base64. ``format``: "bundle", "tag" or "oms". ``signature``: for ``verify``, the digest of the bundle or payload;
    for ``sign``, the digest of the pushed manifest (with ``oms``, of the bundle), or None if the key had already signed
    the kit.
    """

    digest: str
    signer: str
    format: str
    signature: str | None


def sign(
    reference: str,
    *,
    private_key: StrPath,
    password: str | None = None,
    labels: Mapping[str, str] | None = None,
    signature_format: Literal["bundle", "tag"] = "bundle",
    oms: bool = False,
    bundle: StrPath | None = None,
    **options: Unpack[Options],
) -> KitSignature:
    """Sign a kit at its registry with a private key, as cosign does.

    ``private_key``: the file of the key. ``password``: the password of an encrypted key; None means the value of
    KITFS_KEY_PASSWORD or COSIGN_PASSWORD. ``labels``: select one kit of an index. ``signature_format``: "bundle" stores
    the signature as a referrer of the kit, as cosign 3 does, and "tag" stores it under a tag, as earlier versions did.
    Nothing is stored if the key has already signed the kit in this format. ``oms``: sign the files of the kit, as
    OpenSSF Model Signing v1.0 does, and write the signature to the file ``bundle`` too. Raises NotFound, RegistryError
    or ManifestError, and UsageError for a key that cannot be used.
    """
    from datetime import UTC, datetime

    from kitfs.ops.signing.files import write_file
    from kitfs.ops.signing.model import sign_model
    from kitfs.ops.signing.sign import sign as run

    settings = settings_of(options, Options)
    if signature_format not in ("bundle", "tag"):
        raise UsageError(f"signature_format: {signature_format!r} is neither bundle nor tag")
    if bundle is not None and not oms:
        raise UsageError("bundle can be used only with oms=True")
    key = private_key_of(private_key, password)
    target, now = remote_reference(reference, "sign"), datetime.now(UTC)
    if oms:
        with workspace_of(settings) as workspace:
            made = sign_model(workspace, target, key, labels=labels or {}, now=now, report=_unreported)
        if bundle is not None:
            write_file(os.fspath(bundle), made.bundle)
        return KitSignature(str(made.digest), made.signer, "oms", str(made.signature))
    with workspace_of(settings) as workspace:
        done = run(workspace, target, key, labels=labels or {}, shape=signature_format, now=now)
    return KitSignature(
        str(done.digest), done.signer, done.shape, None if done.signature is None else str(done.signature)
    )


def verify(
    reference: str,
    *,
    public_key: StrPath | None = None,
    certificate_identity: str | None = None,
    certificate_oidc_issuer: str | None = None,
    trusted_root: StrPath | None = None,
    labels: Mapping[str, str] | None = None,
    oms: bool = False,
    bundle: StrPath | None = None,
    ignore_paths: Sequence[str] = (),
    **options: Unpack[Options],
) -> list[KitSignature]:
    """Verify that a kit is signed by a key or an identity, and return the signatures by that key or identity.

    The registry or the layout is always asked. ``public_key``: the file of the key. ``labels``: select one kit of an
    index. ``oms``: verify the files of the kit, as OpenSSF Model Signing v1.0 does. The signature is in the file
    ``bundle``, or attached to the kit if ``bundle`` is None. Files at ``ignore_paths`` are not compared. Raises
    NotFound, RegistryError or ManifestError, SignatureError if the kit has no such signature, and UsageError for a key
    that cannot be used.
    """
    from kitfs.oci.names import Reference
    from kitfs.ops.signing.files import read_bundle, read_public_key
    from kitfs.ops.signing.model import verify_model
    from kitfs.ops.signing.verify import verify as run
    from kitfs.trust.keyless import Keyless

    settings = settings_of(options, Options)
    source = kit_reference(reference)
    if isinstance(source, Reference) and bundle is None:
        source = remote_reference(reference, "verify")
    if (bundle is not None or ignore_paths) and not oms:
        raise UsageError("bundle and ignore_paths can be used only with oms=True")
    if (public_key is None) == (certificate_identity is None) or (oms and public_key is None):
        raise UsageError("give public_key, or else certificate_identity and certificate_oidc_issuer")
    if public_key is None:
        if certificate_identity is None or certificate_oidc_issuer is None:
            raise UsageError("give certificate_identity and certificate_oidc_issuer together")
        root = None if trusted_root is None else os.fspath(trusted_root)
        identity = Keyless(certificate_identity, certificate_oidc_issuer, root)
        with workspace_of(settings) as workspace:
            return _found(*run(workspace, source, identity, labels=labels or {}))
    key = read_public_key(os.fspath(public_key))
    if oms:
        data = None if bundle is None else read_bundle(os.fspath(bundle))
        with workspace_of(settings) as workspace:
            done = verify_model(
                workspace, source, key, labels=labels or {}, bundle=data, ignored=ignore_paths, report=_unreported
            )
        return [KitSignature(str(done.digest), done.signer, "oms", str(done.signature))]
    with workspace_of(settings) as workspace:
        return _found(*run(workspace, source, key, labels=labels or {}))


def _found(digest: Digest, good: Sequence[Verified]) -> list[KitSignature]:
    return [KitSignature(str(digest), one.signer, one.shape, str(one.digest)) for one in good]


def generate_key_pair(prefix: StrPath = "cosign", *, password: str | None = None) -> tuple[str, str]:
    """Make a key pair, and return the paths of its files, PREFIX.key and PREFIX.pub.

    PREFIX.key is encrypted, as by cosign. ``password``: as in ``sign``; it may be empty. Raises UsageError if a file
    exists or no password is given, and ContextError if the files cannot be written.
    """
    from kitfs.ops.signing.files import write_key_pair

    return write_key_pair(os.path.abspath(os.fspath(prefix)), _password(password))[:2]


def private_key_of(file: StrPath, password: str | None) -> PrivateKey:
    """Read a private key. ``password``: as in ``sign``. Raises UsageError."""
    from kitfs.ops.signing.files import read_private_key

    return read_private_key(os.fspath(file), lambda: _password(password))


def _unreported(_: object) -> None:
    """Ignore an event."""


def _password(given: str | None) -> bytes:
    from kitfs.trust.keys import password_of

    found = password_of(os.environ) if given is None else given.encode("utf-8", "surrogateescape")
    if found is None:
        raise UsageError("the private key needs a password: give password=, or set KITFS_KEY_PASSWORD")
    return found
