"""Run the verbs sign, verify and generate-key-pair."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from kitfs.cli.commands import Command
from kitfs.cli.completion import references
from kitfs.cli.keys import now, password, private_key_of
from kitfs.cli.options import takes
from kitfs.cli.output import counted, put, put_json, short
from kitfs.cli.progress import Reporter
from kitfs.cli.session import display, named, registry_target, workspace_of
from kitfs.config import NETWORK, STORE, Option, Settings, options_of
from kitfs.errors import UsageError
from kitfs.parsers import Choice, boolean, path, word

if TYPE_CHECKING:
    from kitfs.oci.names import LayoutReference, Reference
    from kitfs.ops.signing.model import SignedModel
    from kitfs.trust.keyless import Keyless
    from kitfs.trust.keys import PrivateKey, PublicKey

CLIENT_KEY: Final = Option(
    "client-key", path, "Key of the client certificate.", metavar="FILE", is_file=True, setting="key"
)
REGISTRY: Final = (*(name for name in NETWORK if name != "key"), CLIENT_KEY)  # --key is the key of the signature here
SIGN: Final = options_of(
    "sign",
    Option("key", path, "Private key to sign with, as cosign or OpenSSL writes it.", metavar="FILE", is_file=True),
    Option(
        "signature-format",
        Choice("bundle", "tag"),
        "How the signature is stored: bundle (a referrer, as cosign 3) or tag (as cosign 1 and 2).",
        default="bundle",
        metavar="FORMAT",
    ),
    Option("oms", boolean, "Sign the kit's files, as OpenSSF Model Signing does.", default="false", flag=True),
    Option("bundle", path, "With --oms: write the signature to this file too.", metavar="FILE"),
)
VERIFY: Final = options_of(
    "verify",
    Option("key", path, "Public key that signed the kit.", metavar="FILE", is_file=True, setting="verify-key"),
    Option("certificate-identity", word, "E-mail address or URI of the signer, instead of a key.", metavar="ID"),
    Option("certificate-oidc-issuer", word, "OIDC issuer of the signer's identity.", metavar="URL"),
    Option("trusted-root", path, "Trusted certificates and logs, instead of Sigstore's.", metavar="FILE", is_file=True),
    Option("oms", boolean, "Verify the kit's files, as OpenSSF Model Signing does.", default="false", flag=True),
    Option("bundle", path, "With --oms: read the signature from this file.", metavar="FILE", is_file=True),
    Option("ignore-path", word, "With --oms: leave out this path of the kit. Repeatable.", metavar="PATH", many=True),
)
GENERATE: Final = options_of(
    "generate-key-pair",
    Option("output-key-prefix", path, "Names of the files, without .key and .pub.", default="cosign", metavar="PREFIX"),
)


@click.command("sign", cls=Command, short_help="Sign a kit at its registry.")
@click.argument("reference", metavar="REF", shell_complete=references)
@takes(*SIGN, "label", "progress", "no-trunc", "json", *STORE, *REGISTRY)
def sign(settings: Settings, reference: str) -> None:
    """Sign the kit REF at its registry with the private key --key, so that kitfs verify and cosign verify accept it.

    The manifest's digest is signed; with --oms, the digest of each file. The password of an encrypted key is in
    KITFS_KEY_PASSWORD or COSIGN_PASSWORD; otherwise it is read from the terminal. If REF is an index, --label chooses
    one of its kits.
    """
    from kitfs.modelkit.index import selector
    from kitfs.ops.signing.sign import sign as signing

    if settings["key"] is None:
        raise UsageError("sign needs a private key (write --key cosign.key)")
    target = registry_target(reference, None, task="signing")
    if target.extra_tags:
        raise UsageError("only one tag can be signed at a time; signing it signs every tag of the same kit")
    labels = selector(settings["label"])
    if settings["bundle"] is not None and not settings["oms"]:
        raise UsageError("--bundle can be used only with --oms")
    key = private_key_of(settings["key"])
    if settings["oms"]:
        _sign_files(settings, target, labels, key)
        return
    with workspace_of(settings, waits=True) as workspace:
        done = signing(workspace, target, key, labels=labels, shape=settings["signature-format"], now=now())
    if settings["json"]:
        put_json(
            {
                "reference": target.display,
                "digest": done.digest,
                "signer": done.signer,
                "format": done.shape,
                "signature": done.signature,
            }
        )
    else:
        how = "was signed before" if done.signature is None else "signed"
        put(f"{short(done.digest, full=settings['no-trunc'])} {how} by {done.signer} ({done.shape})")


@click.command("verify", cls=Command, short_help="Verify that a kit is signed.")
@click.argument("reference", metavar="REF", shell_complete=references)
@takes(*VERIFY, "label", "progress", "no-trunc", "json", *STORE, *REGISTRY)
def verify(settings: Settings, reference: str) -> None:
    """Verify that the key --key, or an identity with a Sigstore certificate, has signed the kit REF.

    The signatures are read from the kit's registry, which is always asked, or from its OCI layout. Signatures of kitfs
    and of every version of cosign are accepted. If REF is an index, --label chooses one of its kits. With --oms a
    signature of OpenSSF Model Signing is verified: every file of the kit is compared with it, and files of raw layers
    need not be fetched.
    """
    from kitfs.modelkit.index import selector
    from kitfs.oci.names import LOCAL, Reference
    from kitfs.ops.signing.verify import verify as verifying
    from kitfs.trust import keyless

    source = named(reference)
    if isinstance(source, Reference) and source.registry == LOCAL and settings["bundle"] is None:
        raise UsageError("registry is required when verifying (write registry/repository:tag)")
    if not settings["oms"] and (settings["bundle"] is not None or settings["ignore-path"]):
        raise UsageError("--bundle and --ignore-path can be used only with --oms")
    labels = selector(settings["label"])
    signer = _signer(settings)
    if settings["oms"]:
        if isinstance(signer, keyless.Keyless):
            raise UsageError("--oms needs a public key (write --key cosign.pub)")
        _verify_files(settings, source, labels, signer)
        return
    with workspace_of(settings, waits=True) as workspace:
        digest, good = verifying(workspace, source, signer, labels=labels)
    if settings["json"]:
        signatures = [{"signer": one.signer, "format": one.shape, "signature": one.digest} for one in good]
        put_json({"reference": display(source), "digest": digest, "signatures": signatures})
        return
    for one in good:
        put(f"{short(digest, full=settings['no-trunc'])} is signed by {one.signer} ({one.shape})")


def _signer(settings: Settings) -> PublicKey | Keyless:
    """Return the signer whose signature ``verify`` demands. Raises UsageError."""
    from kitfs.ops.signing.files import read_public_key
    from kitfs.trust.keyless import Keyless

    identity, issuer = settings["certificate-identity"], settings["certificate-oidc-issuer"]
    root = settings["trusted-root"]
    by_key = settings["key"] is not None and (identity is None or settings.origin("key") == "--key")
    if by_key == (identity is not None):
        raise UsageError("verify needs a public key (write --key cosign.pub), or else --certificate-identity")
    if (identity is None) != (issuer is None) or (by_key and root is not None):
        raise UsageError("--certificate-identity and --certificate-oidc-issuer must be given together")
    return read_public_key(settings["key"]) if by_key else Keyless(identity, issuer, root)


def _sign_files(settings: Settings, target: Reference, labels: dict[str, str], key: PrivateKey) -> None:
    """Sign the files of a kit, and print the result."""
    from kitfs.ops.signing.files import write_file
    from kitfs.ops.signing.model import sign_model

    with workspace_of(settings) as workspace, Reporter(settings["progress"]) as report:
        done = sign_model(workspace, target, key, labels=labels, now=now(), report=report)
    if settings["bundle"] is not None:
        write_file(settings["bundle"], done.bundle)
    _put_files(settings, target.display, done, "signed")


def _verify_files(
    settings: Settings, source: Reference | LayoutReference, labels: dict[str, str], key: PublicKey
) -> None:
    """Verify the files of a kit, and print the result."""
    from kitfs.ops.signing.files import read_bundle
    from kitfs.ops.signing.model import verify_model

    bundle = None if settings["bundle"] is None else read_bundle(settings["bundle"])
    with workspace_of(settings) as workspace, Reporter(settings["progress"]) as report:
        done = verify_model(
            workspace, source, key, labels=labels, bundle=bundle, ignored=settings["ignore-path"], report=report
        )
    _put_files(settings, display(source), done, "is signed")


def _put_files(settings: Settings, reference: str, done: SignedModel, how: str) -> None:
    if settings["json"]:
        put_json(
            {
                "reference": reference,
                "digest": done.digest,
                "signer": done.signer,
                "format": "oms",
                "files": done.files,
                "signature": done.signature,
            }
        )
    else:
        digest = short(done.digest, full=settings["no-trunc"])
        put(f"{digest} {how} by {done.signer} (oms, {counted(done.files, 'file')})")


@click.command("generate-key-pair", cls=Command, short_help="Make a key pair for signatures.")
@takes(*GENERATE, "json", "settings")
def generate_key_pair(settings: Settings) -> None:
    """Make a key pair. The private key is written to cosign.key, encrypted as cosign does it, and the public key to
    cosign.pub.

    The password is in KITFS_KEY_PASSWORD or COSIGN_PASSWORD, and may be empty. Without these variables, the password is
    read from the terminal.
    """
    from kitfs.ops.signing.files import write_key_pair

    secret_password = password("Enter password for the new private key: ", again="Enter the password again: ")
    secret, public, key = write_key_pair(settings["output-key-prefix"], secret_password)
    if settings["json"]:
        put_json({"private_key": secret, "public_key": public, "name": key.name})
    else:
        put(f"private key: {secret}")
        put(f"public key: {public}")


VERBS = (sign, verify, generate_key_pair)
