"""Derive facts from a kit's own documents: its Kitfile, its manifest, and the config of a ModelPack.

Anybody could have written these documents, so each fact is only *stated*. This module does no I/O.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from kitfs.gocompat.json import loads
from kitfs.modelkit.kitfile import Kitfile
from kitfs.modelkit.writer import CLI_VERSION
from kitfs.oci.manifest import CREATED, PACK_CONFIGS, Manifest
from kitfs.ops.imports.snapshot import REVISION, SOURCE
from kitfs.ops.provenance.facts import Fact, FactSource
from kitfs.ops.provenance.records import mlflow_run

MAX_TEXT: Final = 1000  # characters of a string from a document
MAX_LISTED: Final = 1000  # entries of a list in a document
KITFILE: Final = (FactSource("stated", "the Kitfile"),)
MANIFEST: Final = (FactSource("stated", "the manifest"),)
CONFIG: Final = (FactSource("stated", "the ModelPack config"),)


def facts_in(manifest: Manifest, kitfile: Kitfile, config: bytes) -> Iterator[Fact]:
    """Yield the facts in the documents of a kit. ``config``: the bytes of its config."""
    yield from _in_kitfile(kitfile)
    yield from _in_manifest(manifest)
    if manifest.config.media_type in PACK_CONFIGS:
        yield from _in_config(config)


def _in_kitfile(kitfile: Kitfile) -> Iterator[Fact]:
    for dataset in kitfile.datasets[:MAX_LISTED]:
        if dataset.remote_path.startswith("s3://"):
            etag = f"etag:{dataset.remote_hash}" if dataset.remote_hash else ""
            yield Fact("data", "dataset", KITFILE, dataset.name, uri=dataset.remote_path, digest=etag)
        elif dataset.remote_path:
            yield Fact("data", "dataset", KITFILE, dataset.name, reference=dataset.remote_path)
        else:
            yield Fact("data", "dataset", KITFILE, dataset.name or dataset.path, digest=dataset.digest)
    for author in kitfile.package.authors[:MAX_LISTED]:
        yield Fact("people", "author", KITFILE, author)
    if kitfile.parent is not None:
        parent = kitfile.parent
        digest = str(parent.digest or "")
        yield Fact("base", "parent", KITFILE, reference=parent.display.partition("@")[0], digest=digest)
    run = mlflow_run(kitfile)
    if run is not None:
        yield Fact("base", "mlflow-run", KITFILE, run.get("name", ""), uri=run.get("uri", ""))


def _in_manifest(manifest: Manifest) -> Iterator[Fact]:
    notes = manifest.annotations
    tool, created = notes.get(CLI_VERSION, ""), notes.get(CREATED, "")
    if tool or created:
        name = tool if not tool or tool[:1].isalpha() else f"kit {tool}"
        yield Fact("people", "packed", MANIFEST, name, time=created)
    if notes.get(SOURCE) or notes.get(REVISION):
        yield _commit(MANIFEST, notes.get(SOURCE, ""), notes.get(REVISION, ""))


def _in_config(config: bytes) -> Iterator[Fact]:
    """Yield the facts in the field ``descriptor`` of a ModelPack's config (docs/config.md of model-spec)."""
    try:
        fields = loads(config)
    except ValueError:
        return
    found = fields.get("descriptor") if isinstance(fields, dict) else None
    if not isinstance(found, dict):
        return
    source, revision, data = text(found.get("sourceURL")), text(found.get("revision")), found.get("datasetsURL")
    if source or revision:
        yield _commit(CONFIG, source, revision)
    for url in data[:MAX_LISTED] if isinstance(data, list) else ():
        if text(url):
            yield Fact("data", "dataset", CONFIG, uri=text(url))


def _commit(source: tuple[FactSource, ...], uri: str, revision: str) -> Fact:
    return Fact("base", "source", source, uri=uri, digest=f"gitCommit:{revision}" if revision else "")


def text(value: Any) -> str:
    """Return a string of a document, shortened, or "" if it is not a string."""
    return value[:MAX_TEXT] if isinstance(value, str) else ""
