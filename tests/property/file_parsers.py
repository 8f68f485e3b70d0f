"""Parsers of files on this machine, with changed inputs for them. Importing this module adds them to ``PARSERS``."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any, Final

import yaml

from kitfs.daemon.run_dir import Record, RunDir
from kitfs.errors import ContextError, UsageError
from kitfs.metrics import Counters
from kitfs.oci.manifest import IMAGE_MANIFEST
from kitfs.oci.names import Digest, LayoutReference, parse_any
from kitfs.ops.events import quiet
from kitfs.ops.library import cache
from kitfs.ops.library import tags as local
from kitfs.ops.provenance.records import dvc_records
from kitfs.ops.unpack.journal import NAME as JOURNAL
from kitfs.ops.unpack.journal import Journal
from kitfs.registry.credentials import Credentials
from kitfs.registry.layout import open_layout
from kitfs.settings_file import load_mapping
from kitfs.store.store import Store
from kitfs.trust.attestations import PROVENANCE
from kitfs.trust.statement import statement_about
from tests import kits
from tests.property.mutations import SHA, document
from tests.property.parsers import KIT, accepts, of, parser

LOG: Final = logging.getLogger("kitfs.test")
DESCRIPTOR: Final = json.dumps({"mediaType": IMAGE_MANIFEST, "digest": SHA, "size": 5, "manifests": [SHA]}).encode()
CREDENTIALS: Final = json.dumps({
    "auths": {"r.io": {"auth": "YTpi"}, "https://x/v1/": {"identitytoken": "t"}},
    "credHelpers": {"y": "no-such"}, "credsStore": "",
}).encode()  # fmt: skip
JOURNAL_LINES: Final = tuple(
    json.dumps(line).encode()
    for line in (
        {"version": 1, "what": ["a"], "nonce": "n"}, {"boot": "b"}, {"d": "x"}, {"f": "x/y", "i": 1, "s": 2, "m": 3},
    )
)  # fmt: skip
RECORD: Final = json.dumps(asdict(Record("r.io/k:v1", SHA, "/m", 1, "kernel", "/store", "/log", 1.0))).encode()
DVC_LOCK: Final = json.dumps({
    "schema": "2.0",
    "outs": [{"path": "w", "hash": "md5", "md5": "ab", "size": 9}],
    "stages": {"train": {"deps": [{"path": "d/t.csv", "md5": "ab"}], "outs": [{"path": "m", "md5": "a.dir"}]}},
}).encode()  # fmt: skip
SETTINGS: Final = json.dumps({"cache-dir": "/c", "mirror": ["a=http://b"], "mount": {"seal": "never"}}).encode()


def _layout(r: Random) -> tuple[str, int]:
    return r.choice(("index.json", "oci-layout")), r.randrange(1 << 30)


@parser(_layout)
def oci_layout(given: tuple[str, int]) -> bool:
    name, seed = given
    accepted = False
    with tempfile.TemporaryDirectory() as folder:
        layout = Path(kits.write_layout(KIT, Path(folder) / "layout", "v1"))
        (layout / name).write_bytes(document(Random(seed), (layout / name).read_bytes()))
        for identifier in ("v1", "", SHA):
            with contextlib.closing(open_layout(LayoutReference("oci", str(layout)))) as opened:
                accepted |= accepts(lambda opened=opened, identifier=identifier: opened.manifest(identifier))  # type: ignore[misc]
    return accepted


@parser(of(DESCRIPTOR))
def tag_of_the_store(data: bytes) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(folder, counters=Counters(), log=LOG, free_share=0.0)
        with contextlib.closing(store):
            reference: Any = parse_any("r.io/k:v1")
            for refs, name in ((store.refs, "refs"), (store.kept, "pins")):
                refs.set(reference.name, "v1", {"digest": SHA})
                (path,) = [p for p in Path(folder, name).rglob("*") if p.is_file()]
                path.write_bytes(data)
            calls = (lambda: local.find(store, reference), lambda: local.kits(store), store.pinned, store.evict)
            accepted = [accepts(call) for call in (*calls, lambda: cache.pins(store), lambda: cache.collect(store))]
            return all(accepted)


@parser(of(CREDENTIALS))
def credentials_file(data: bytes) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "credentials.json")
        Path(path).write_bytes(data)
        found = [accepts(lambda host=host: Credentials((path,)).of(host, "a/b")) for host in ("r.io", "x", "z")]  # type: ignore[misc]
        return all(found)


@parser(lambda r: b"\n".join(document(r, line) for line in JOURNAL_LINES))
def journal_of_unpack(data: bytes) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, JOURNAL).write_bytes(data)
        fd = os.open(folder, os.O_RDONLY)
        try:
            journal = Journal.open(fd, folder, ["a"])
            about = os.stat(folder)
            assert not journal.is_done("x/y", about)
            accepted = accepts(
                lambda: (journal.is_ours("x/y", about), journal.begin(), journal.making("z")), ContextError
            )
            journal.close()
        finally:
            os.close(fd)
    return accepted


@parser(of(RECORD))
def record_of_a_mount(data: bytes) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(folder)
        Path(run.file("/m", "json")).write_bytes(data)
        Path(run.file("/n", "json")).write_bytes(RECORD)
        run.records()
        return run.record("/m") is not None


@parser(lambda r: yaml.safe_dump(json.loads(SETTINGS)).encode() if r.random() < 0.01 else document(r, SETTINGS))
def settings_file(data: bytes) -> bool:
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        return accepts(lambda: load_mapping(file.name, optional=False), UsageError)


@parser(of(DVC_LOCK))
def dvc_lock(data: bytes) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        for name in ("dvc.lock", "a.dvc"):
            Path(folder, name).write_bytes(data)
        found = dvc_records(folder, quiet)
    statement_about(Digest.parse(SHA), PROVENANCE, found)
    return bool(found)
