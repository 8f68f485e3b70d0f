"""Run the verbs lineage, approve and sbom."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import click

from kitfs.cli.commands import Command
from kitfs.cli.completion import references
from kitfs.cli.keys import now, private_key_of
from kitfs.cli.kitfile import source_date
from kitfs.cli.options import REMOTE, takes
from kitfs.cli.output import put, put_json, say, short
from kitfs.cli.session import display, named, with_tag, workspace_of
from kitfs.cli.verbs.signing import REGISTRY
from kitfs.config import NETWORK, STORE, Option, Settings, options_of
from kitfs.errors import UsageError
from kitfs.escaping import shown
from kitfs.parsers import Choice, path, word

if TYPE_CHECKING:
    from kitfs.ops.provenance.facts import Fact

FRACTION: Final = re.compile(r"\.[0-9]+Z$")  # of a second, at the end of a time; people need no fractions
LINEAGE: Final = options_of(
    "lineage",
    Option("key", path, "Trusted public key. Repeatable.", metavar="FILE", is_file=True, many=True),
    Option("policy", path, "Trust the keys that this policy demands for the kit.", metavar="FILE", is_file=True),
    Option("certificate-identity", word, "Trusted e-mail address or URI.", metavar="ID"),
    Option("certificate-oidc-issuer", word, "The issuer of that identity.", metavar="URL"),
    Option("trusted-root", path, "Trusted certificates and logs, instead of Sigstore's.", metavar="FILE", is_file=True),
)
APPROVE: Final = options_of(
    "approve",
    Option("key", path, "Private key to sign with.", metavar="FILE", is_file=True),
    Option("note", word, "Why the kit is approved.", metavar="TEXT"),
)
SBOM: Final = options_of(
    "sbom",
    Option("format", Choice("cyclonedx"), "Format of the bill of materials.", default="cyclonedx", metavar="FORMAT"),
)


@click.command("lineage", cls=Command, short_help="Show where a kit comes from.")
@click.argument("reference", metavar="REF", shell_complete=references)
@takes(*LINEAGE, REMOTE, "label", "progress", "no-trunc", "json", *STORE, *REGISTRY)
def lineage(settings: Settings, reference: str) -> None:
    """Show what data trained the kit REF, who packed, signed and approved it, what it is based on, and which other kits
    of the store share its data.

    Each line has a label: signed (by a key or an identity that an option names), stated (by the Kitfile, or by a
    statement that no such key has signed), or derived (from digests). No layer is read.
    """
    from kitfs.modelkit.index import selector
    from kitfs.ops.provenance.facts import QUESTIONS
    from kitfs.ops.provenance.lineage import lineage as answers
    from kitfs.ops.provenance.trusted import trusted_of

    source, labels = named(reference), selector(settings["label"])
    trusted = trusted_of(
        source,
        keys=settings["key"],
        policy=settings["policy"],
        identity=settings["certificate-identity"],
        issuer=settings["certificate-oidc-issuer"],
        root=settings["trusted-root"],
    )
    with workspace_of(settings, waits=True) as workspace:
        found = answers(workspace, source, trusted, labels=labels, remote=settings["remote"])
    for text in found.missing:
        say(f"kitfs: warning: signatures and statements may be missing: {shown(text)}")
    if settings["json"]:
        facts = [_json(fact) for fact in found.facts]
        put_json({"reference": display(source), "digest": found.digest, "facts": facts, "missing": list(found.missing)})
        return
    full = settings["no-trunc"]
    put(short(f"{display(source)} {found.digest}", full=full))
    for question, title in QUESTIONS.items():
        put("")
        put(title)
        answered = [fact for fact in found.facts if fact.question == question]
        for fact in answered:
            put(short(f"  {fact.label:<7}  {_text(fact)} ({'; '.join(fact.by)})", full=full))
        if not answered:
            put("  unknown" if question != "shared" else "  none")


def _text(fact: Fact) -> str:
    """Describe a fact in one line."""
    where = " ".join(part for part in (fact.reference, fact.uri, fact.digest) if part)
    about = f"{fact.name}: {where}" if fact.name and where else fact.name or where
    kinds = {
        "dataset": f"dataset {about}",
        "dvc-data": f"file of DVC {about}",
        "dvc-input": f"input of a DVC stage {about}",
        "packed": f"packed by {fact.name or 'an unknown program'}",
        "author": f"author {fact.name}",
        "signature": "kit signed",
        "approval": "approved",
        "statement": f"statement of the type {fact.name}",
        "source": f"commit {fact.digest.removeprefix('gitCommit:')}{f' of {fact.uri}' if fact.uri else ''}",
        "parent": f"parent kit {where}",
        "mlflow-run": f"run of MLflow {about}",
    }
    same = "is this data" if fact.name == "kit" else f"has the same {fact.name} layer"
    text = kinds.get(fact.kind, f"{fact.reference} {same}: {fact.digest}")
    text += f" at {FRACTION.sub('Z', fact.time)}" if fact.time else ""
    if fact.kind == "signature":
        return f"{text}, but {fact.note}" if fact.note else text
    return f"{text}: {fact.note}" if fact.note else text


def _json(fact: Fact) -> dict[str, Any]:
    return {
        "question": fact.question,
        "kind": fact.kind,
        "label": fact.label,
        "name": fact.name,
        "reference": fact.reference,
        "uri": fact.uri,
        "digest": fact.digest,
        "time": fact.time,
        "note": fact.note,
        "sources": [{"label": source.label, "by": source.by} for source in fact.sources],
    }


@click.command("approve", cls=Command, short_help="Sign an approval of a kit.")
@click.argument("reference", metavar="REF", shell_complete=references)
@takes(*APPROVE, "label", "progress", "no-trunc", "json", *STORE, *REGISTRY)
def approve(settings: Settings, reference: str) -> None:
    """Sign a statement that the kit REF is approved, and attach it to the kit at its registry.

    A kit whose name has no registry is approved in the store. kitfs lineage shows the approval. The password of an
    encrypted key is read as by kitfs sign. If REF is an index, --label chooses one of its kits.
    """
    from kitfs.modelkit.index import selector
    from kitfs.oci.names import Reference
    from kitfs.ops.provenance.approve import approve as approving

    if settings["key"] is None:
        raise UsageError("approve needs a private key (write --key cosign.key)")
    target, labels = with_tag(Reference.parse(reference)), selector(settings["label"])
    key = private_key_of(settings["key"])
    with workspace_of(settings, waits=True) as workspace:
        done = approving(workspace, target, key, note=settings["note"] or "", labels=labels, now=now())
    if settings["json"]:
        put_json({"reference": target.display, "digest": done.digest, "signer": done.signer, "approval": done.approval})
    else:
        put(f"{short(done.digest, full=settings['no-trunc'])} approved by {done.signer}")


@click.command("sbom", cls=Command, short_help="Write a bill of materials of a kit.")
@click.argument("reference", metavar="REF", shell_complete=references)
@takes(*SBOM, REMOTE, "label", "progress", "json", *STORE, *NETWORK)
def sbom(settings: Settings, reference: str) -> None:
    """Write a bill of materials of the kit REF to standard output: a CycloneDX 1.7 ML-BOM, as JSON.

    The same kit always has the same bill. Its time is SOURCE_DATE_EPOCH, or the creation time of the kit. No layer is
    read.
    """
    from kitfs.modelkit.index import selector
    from kitfs.ops.provenance.reading import read_documents
    from kitfs.ops.provenance.sbom import sbom_of

    source, labels, when = named(reference), selector(settings["label"]), source_date()
    with workspace_of(settings, waits=True) as workspace:
        documents = read_documents(workspace, source, labels, remote=settings["remote"])
    put_json(sbom_of(documents, source, when))


VERBS = (lineage, approve, sbom)
