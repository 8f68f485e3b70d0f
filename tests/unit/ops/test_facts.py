"""Facts about a kit are merged only if they are about the same thing."""

from __future__ import annotations

from kitfs.modelkit.kitfile import Kitfile
from kitfs.oci.manifest import Manifest
from kitfs.ops.provenance.documents import facts_in
from kitfs.ops.provenance.facts import merged
from tests import kits


def test_datasets_without_a_hash_are_separate_facts() -> None:
    """A Kitfile that another program has written may have S3 datasets without ``remoteHash``."""
    kitfile = Kitfile.from_yaml(
        b"manifestVersion: 1.0.0\ndatasets:\n- {name: a, remotePath: 's3://b/a'}\n- {name: b, remotePath: 's3://b/b'}\n"
    )
    manifest = Manifest.parse(kits.build([]).manifest)
    found = merged(facts_in(manifest, kitfile, b"{}"))
    assert [(fact.uri, fact.digest) for fact in found if fact.kind == "dataset"] == [("s3://b/a", ""), ("s3://b/b", "")]
