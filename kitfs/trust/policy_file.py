"""Read a policy file in either format. Threading: the module has no state."""

from __future__ import annotations

from typing import Final

from kitfs.errors import UsageError
from kitfs.gocompat.json import loads
from kitfs.trust import cluster_policy, containers_policy
from kitfs.trust.keys import MAX_FILE, public_key
from kitfs.trust.named_file import read_named
from kitfs.trust.policy import KeyPolicy, Policy

MAX_POLICY: Final = 1 << 20  # bytes


def read_policy(path: str) -> Policy:
    """Read a policy: a policy.json if the file is JSON, or a ClusterImagePolicy if it is YAML. Raises UsageError."""
    data = read_named(path, "the policy", MAX_POLICY)
    if data.lstrip()[:1] == b"{":
        try:
            fields = loads(data)
        except ValueError as e:
            raise UsageError(f"cannot use the policy {path}: it is not valid JSON: {e}")
        if "kind" not in fields:
            return containers_policy.parse(fields, data, path, lambda name: read_named(name, "the key", MAX_FILE))
    import yaml

    try:
        documents = list(yaml.load_all(data, Loader=yaml.BaseLoader))
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError):
        raise UsageError(f"cannot use the policy {path}: it is neither JSON nor YAML")
    policy = cluster_policy.parse(documents, data, path)
    if not policy.policies:
        raise UsageError(f"cannot use the policy {path}: it is empty")
    return policy


def read_key_policy(path: str) -> KeyPolicy:
    """Read the public key of ``--verify-key``. Raises UsageError."""
    return KeyPolicy(public_key(read_named(path, "the key", MAX_FILE), path))
