"""Policies: which rule applies to a reference, which signatures satisfy the rule, and which files are refused."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kitfs.errors import UsageError
from kitfs.oci.names import Digest, parse_any
from kitfs.trust.keys import PrivateKey, PublicKey, public_key
from kitfs.trust.policy import Identity, Policy, Rule
from kitfs.trust.policy_file import MAX_POLICY, read_policy
from kitfs.trust.signatures import Found, Signature
from tests.unit.trust.mutations import json_values, with_one_other_value

PEM, FORM = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
MADE = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
PUBLIC = [made.public_key().public_bytes(PEM, FORM) for made in MADE]
KEYS = [public_key(pem, "k.pub") for pem in PUBLIC]
KIT = "registry.example.com:5000/team/models/llama:v1"
ACCEPT = [{"type": "insecureAcceptAnything"}]
REJECT = [{"type": "reject"}]
BUSY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])


def signed_by(*numbers: int, **more: Any) -> list[dict[str, Any]]:
    """Return a requirement for a signature by one of the keys."""
    texts = [base64.b64encode(PUBLIC[number]).decode() for number in numbers]
    return [{"type": "sigstoreSigned", "keyDatas": texts, "signedIdentity": {"type": "matchRepository"}, **more}]


def signature(number: int, identity: str = "", data: bytes = b"data") -> Signature:
    """Return a signature by the key with this number.

    If ``identity`` is given, the signed payload contains that identity.
    """
    value = PrivateKey(MADE[number], KEYS[number]).sign(data)
    return Signature("tag" if identity else "bundle", Digest.of(value), data, value, identity=identity)


def policy(directory: Path, fields: Any) -> Policy:
    path = directory / "policy.json"
    path.write_text(fields if isinstance(fields, str) else json.dumps(fields))
    return read_policy(str(path))


def rule_of(directory: Path, fields: Any, kit: str = KIT) -> Rule:
    [rule] = policy(directory, fields).rules_for(parse_any(kit))
    return rule


def docker(**scopes: Any) -> dict[str, Any]:
    return {"default": REJECT, "transports": {"docker": scopes}}


@pytest.mark.parametrize(
    ("scopes", "holds"),
    [
        ({}, False),
        ({"": ACCEPT}, True),
        ({"registry.example.com:5000": ACCEPT}, True),
        ({"registry.example.com:5000": REJECT, "registry.example.com:5000/team": ACCEPT}, True),
        ({"registry.example.com:5000/team": REJECT, "registry.example.com:5000/team/models/llama": ACCEPT}, True),
        ({"registry.example.com:5000/team/models/llama": REJECT, KIT: ACCEPT}, True),
        ({"registry.example.com:5000/team/model": ACCEPT}, False),
        ({"registry.example.com": ACCEPT}, False),
        ({"*.example.com": ACCEPT}, True),
        ({"*.com": ACCEPT, "*.example.com": REJECT}, False),
        ({"*.registry.example.com": ACCEPT}, False),
        ({"": REJECT, "*.com": ACCEPT}, True),
    ],
)
def test_the_longest_scope_decides(tmp_path: Path, scopes: dict[str, Any], holds: bool) -> None:
    """The rule with the longest matching scope applies.

    Scopes are, from long to short: the name and its tag, the repository, its parents, the host, wildcards, the
    transport, the default.
    """
    assert rule_of(tmp_path, docker(**scopes)).always_holds == holds


def test_layouts_and_local_kits_have_rules_of_their_own(tmp_path: Path) -> None:
    """Layouts use the rules for the transports oci and oci-archive. A kit without a registry uses the default rule."""
    fields = {"default": REJECT, "transports": {"oci": {"/srv": ACCEPT}, "oci-archive": {"/srv/a.tar": ACCEPT}}}
    assert rule_of(tmp_path, fields, "oci:/srv/kits:v1").always_holds
    assert rule_of(tmp_path, fields, "oci-archive:/srv/a.tar").always_holds
    assert not rule_of(tmp_path, fields, "oci:/other").always_holds
    assert not rule_of(tmp_path, fields, "llama:v1").always_holds


def test_a_signature_of_one_of_the_keys_is_enough(tmp_path: Path) -> None:
    rule, asked = rule_of(tmp_path, docker(**{"": signed_by(0, 1)})), parse_any(KIT)
    assert rule.needs_signatures
    assert rule.unmet(Found((signature(1),)), asked) == ()
    assert rule.unmet(Found(()), asked)


def test_every_requirement_must_be_met(tmp_path: Path) -> None:
    """A rule with two requirements needs two signatures."""
    rule, asked = rule_of(tmp_path, docker(**{"": [*signed_by(0), *signed_by(1)]})), parse_any(KIT)
    assert rule.unmet(Found((signature(0),)), asked)
    assert rule.unmet(Found((signature(0), signature(1))), asked) == ()


def test_a_signature_over_other_bytes_is_not_enough(tmp_path: Path) -> None:
    rule = rule_of(tmp_path, docker(**{"": signed_by(0)}))
    good = signature(0)
    forged = Signature("bundle", good.digest, b"other", good.value, hint=KEYS[0].hint)
    assert rule.unmet(Found((forged,)), parse_any(KIT))


@pytest.mark.parametrize(
    ("kind", "values", "signed", "kit", "accepted"),
    [
        ("matchRepository", (), "host/team/kit", "host.test/team/kit:v1", False),
        ("matchRepository", (), "host.test/team/kit", "host.test/team/kit:v1", True),
        ("matchRepository", (), "host.test/team/kit:v2", "host.test/team/kit:v1", True),
        ("matchRepository", (), "host.test/team", "host.test/team/kit:v1", False),
        ("matchRepository", (), "index.docker.io/team/kit", "docker.io/team/kit:v1", True),
        ("matchRepository", (), "host.test:5000/kit", "host.test:5000/kit:v1", True),
        ("matchRepository", (), "", "host.test/team/kit:v1", True),
        ("matchExact", (), "host.test/team/kit:v1", "host.test/team/kit:v1", True),
        ("matchExact", (), "host.test/team/kit", "host.test/team/kit:v1", False),
        ("matchExact", (), "host.test/team/kit:v2", "host.test/team/kit:v1", False),
        ("matchExact", (), "", "host.test/team/kit:v1", False),
        ("matchRepoDigestOrExact", (), "host.test/team/kit", "host.test/team/kit:v1", False),
        ("matchRepoDigestOrExact", (), "host.test/team/kit:v1", "host.test/team/kit:v1", True),
        ("matchRepoDigestOrExact", (), "host.test/team/kit:v2", f"host.test/team/kit@{Digest.of(b'')}", True),
        ("exactReference", ("host.test/other:v1",), "host.test/other:v1", "host.test/team/kit:v1", True),
        ("exactReference", ("host.test/other:v1",), "host.test/team/kit:v1", "host.test/team/kit:v1", False),
        ("exactRepository", ("host.test/other",), "host.test/other:v9", "host.test/team/kit:v1", True),
        ("exactRepository", ("host.test/other",), "", "host.test/team/kit:v1", False),
        ("remapIdentity", ("host.test", "origin.test"), "origin.test/team/kit:v1", "host.test/team/kit:v1", True),
        ("remapIdentity", ("host.test", "origin.test"), "host.test/team/kit:v1", "host.test/team/kit:v1", False),
        ("remapIdentity", ("host.te", "origin.test"), "host.test/team/kit:v1", "host.test/team/kit:v1", True),
    ],
)  # fmt: skip
def test_the_identity_of_a_signature(kind: str, values: tuple[str, ...], signed: str, kit: str, accepted: bool) -> None:
    """``signedIdentity`` is interpreted as in containers-policy.json(5).

    matchRepository accepts every bundle, because a bundle contains no name.
    """
    assert Identity(kind, values).accepts(signed, parse_any(kit)) == accepted


@pytest.mark.parametrize(
    "requirement",
    [
        {"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/etc/key"},
        {"type": "sigstoreSigned", "fulcio": {"caPath": "/ca"}},
        {"type": "sigstoreSigned", "pki": {}},
        {**signed_by(0)[0], "rekorPublicKeyPath": "/etc/rekor.pub"},
    ],
)
def test_what_cannot_be_checked_is_never_met(tmp_path: Path, requirement: dict[str, Any]) -> None:
    """A rule with an unsupported requirement refuses its kits. The other rules of the file can be used."""
    fields = docker(**{"registry.example.com:5000": [requirement], "other.example.com": ACCEPT})
    rule = rule_of(tmp_path, fields)
    assert (rule.always_holds, rule.needs_signatures) == (False, False)
    assert rule.unmet(Found((signature(0, "registry.example.com:5000/team/models/llama"),)), parse_any(KIT))
    assert rule_of(tmp_path, fields, "other.example.com/kit").always_holds


WRONG: list[Any] = [
    "",
    "text",
    "[]",
    "{",
    "{}",
    '{"default": [], "default": []}',
    {"default": []},
    {"default": ACCEPT, "more": 1},
    {"default": [{"type": "insecureAcceptAnything", "more": 1}]},
    {"default": [{"type": "sigstore"}]},
    {"default": [{}]},
    {"default": ACCEPT, "transports": {"docker": ACCEPT}},
    {"default": [{"type": "sigstoreSigned"}]},
    {"default": [{"type": "sigstoreSigned", "keyPath": "/missing/key.pub"}]},
    {"default": [{"type": "sigstoreSigned", "keyData": "?"}]},
    {"default": [{"type": "sigstoreSigned", "keyData": "YQ=="}]},
    {"default": [{"type": "sigstoreSigned", "keyDatas": []}]},
    {"default": [{"type": "sigstoreSigned", "keyDatas": "YQ=="}]},
    {"default": [{**signed_by(0)[0], "keyPath": "/etc/key"}]},
    {"default": signed_by(0, signedIdentity={"type": "matchAll"})},
    {"default": signed_by(0, signedIdentity={"type": "exactReference"})},
    {"default": signed_by(0, signedIdentity={"type": "matchExact", "more": 1})},
    "x" * (MAX_POLICY + 1),
]


@pytest.mark.parametrize("fields", WRONG)
def test_a_file_that_is_not_understood_is_refused(tmp_path: Path, fields: Any) -> None:
    """Unknown fields, unknown types and keys that cannot be read make the whole file unusable."""
    with pytest.raises(UsageError, match=r"policy\.json|key"):
        policy(tmp_path, fields)


def test_the_digest_of_a_policy_changes_with_its_keys(tmp_path: Path) -> None:
    """If the content of a key file changes, the digest of every policy that names the file changes."""
    fields = {"default": [{"type": "sigstoreSigned", "keyPath": str(tmp_path / "k.pub")}]}
    digests = []
    for pem in PUBLIC:
        (tmp_path / "k.pub").write_bytes(pem)
        digests.append(policy(tmp_path, fields).digest)
    assert digests[0] != digests[1]


# -- ClusterImagePolicy


def cluster(name: str, glob: str, authorities: str, mode: str = "enforce") -> str:
    return (
        f"apiVersion: policy.sigstore.dev/v1beta1\nkind: ClusterImagePolicy\nmetadata: {{name: {name}}}\n"
        f"spec:\n  mode: {mode}\n  images: [{{glob: '{glob}'}}]\n  authorities: {authorities}\n"
    )


def key_authority(number: int) -> str:
    return json.dumps([{"name": "team", "key": {"data": PUBLIC[number].decode()}}])


@pytest.mark.parametrize(
    ("glob", "matches"),
    [
        ("registry.example.com:5000/team/models/*", True),
        ("registry.example.com:5000/**", True),
        ("**", True),
        ("registry.example.com:5000/*", False),
        ("registry.example.com:5000/team/models/llama", True),
        ("registry.example.com:5000/team/models/llama:v1", True),
        ("registry.example.com:5000/team/models/llama:v2", False),
        ("registryXexample.com:5000/**", False),
    ],
)
def test_a_glob_matches_within_a_part_of_a_name_or_over_several(tmp_path: Path, glob: str, matches: bool) -> None:
    rule = rule_of(tmp_path, cluster("p", glob, "[{static: {action: pass}}]"))
    assert rule.always_holds == matches


def test_every_policy_that_matches_must_be_satisfied(tmp_path: Path) -> None:
    """A signature by one authority of a policy satisfies that policy.

    A kit needs to satisfy every policy that matches it.
    """
    text = cluster("a", "**", key_authority(0)) + "---\n" + cluster("b", "**", key_authority(1), "warn")
    first, second = policy(tmp_path, text).rules_for(parse_any(KIT))
    assert (first.warns, second.warns) == (False, True)
    found = Found((signature(0),))
    assert first.unmet(found, parse_any(KIT)) == ()
    assert second.unmet(found, parse_any(KIT))
    both = json.dumps([*json.loads(key_authority(0)), *json.loads(key_authority(1))])
    assert rule_of(tmp_path, cluster("c", "**", both)).unmet(found, parse_any(KIT)) == ()


@pytest.mark.parametrize(
    ("glob", "authorities", "said"),
    [
        ("other.example.com/**", "[{static: {action: pass}}]", "no policy in {} matches its name"),
        ("**", "[{static: {action: fail}}]", "the policy 'p' of {} rejects it"),
        ("**", "[{static: {action: fail}}, {keyless: {url: 'https://x'}}]", "the policy 'p' of {} demands that it is"),
    ],
)
def test_a_rule_that_no_signature_can_meet_says_so(tmp_path: Path, glob: str, authorities: str, said: str) -> None:
    rule = rule_of(tmp_path, cluster("p", glob, authorities))
    assert not rule.needs_signatures
    assert rule.refusal.startswith(said.format(next(tmp_path.iterdir())))


@pytest.mark.parametrize(
    "authorities",
    [
        '[{keyless: {url: "https://fulcio.sigstore.dev"}}]',
        "[{key: {kms: 'aws://x'}}]",
        "[{static: {action: fail}}]",
        "[]",
        '[{key: {data: "PEM"}, attestations: [{name: a}]}]',
    ],
)
def test_authorities_that_kitfs_cannot_check_are_never_met(tmp_path: Path, authorities: str) -> None:
    text = cluster("p", "**", authorities.replace('"PEM"', json.dumps(PUBLIC[0].decode())))
    assert rule_of(tmp_path, text).unmet(Found((signature(0),)), parse_any(KIT))


@pytest.mark.parametrize(
    "text",
    [
        "kind: Pod\napiVersion: v1\n",
        cluster("p", "**", "[{static: {action: maybe}}]"),
        cluster("p", "**", "[{key: {data: x}}]"),
        cluster("p", "**", "[]", "audit"),
        "apiVersion: policy.sigstore.dev/v1beta1\nkind: ClusterImagePolicy\n",
        "---\n---\n",
        "a: [",
    ],
)
def test_other_documents_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError):
        policy(tmp_path, text)


JSON = json_values("reject", "YQ==", "default")
DOCUMENTS = [
    {"default": signed_by(0), "transports": {"docker": {"": ACCEPT}}},
    {
        "apiVersion": "policy.sigstore.dev/v1beta1",
        "kind": "ClusterImagePolicy",
        "metadata": {"name": "p"},
        "spec": {"images": [{"glob": "**"}], "authorities": json.loads(key_authority(0)), "mode": "warn"},
    },
]


@pytest.mark.parametrize("document", DOCUMENTS)
@given(data=st.data())
@BUSY
def test_a_policy_with_one_other_part_is_read_or_refused(tmp_path: Path, document: Any, data: st.DataObject) -> None:
    """If any one value in a policy is replaced, the parser returns or raises UsageError."""
    value = with_one_other_value(data, document, JSON)
    try:
        policy(tmp_path, value).rules_for(parse_any(KIT))
    except UsageError:
        pass


def test_keys_are_named_in_messages() -> None:
    assert isinstance(KEYS[0], PublicKey)
    assert KEYS[0].name.startswith("key SHA256:")
