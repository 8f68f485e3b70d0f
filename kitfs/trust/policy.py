"""Define the rules about which kits may be used, and decide whether the signatures of a kit satisfy them.

A policy returns the rules for a reference, and every rule must hold. A rule has demands, and all of them must be met. A
demand has alternatives, and one of them suffices. ``containers_policy`` and ``cluster_policy`` read policies from
files. This module does no I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from kitfs.oci.names import Digest, LayoutReference, Reference
from kitfs.trust.keys import PublicKey
from kitfs.trust.signatures import Found, Signature

HUB: Final = "docker.io"
HUB_NAMES: Final = ("index.docker.io", "registry-1.docker.io")  # other spellings in payloads and policies
MAX_NAMED: Final = 5  # keys and signers that a message names


@dataclass(frozen=True, slots=True)
class Identity:
    """The repository that a signature must name (containers-policy.json(5), ``signedIdentity``).

    ``kind`` is the ``type`` in the file. ``values`` are the reference of exactReference, the repository of
    exactRepository, or the two prefixes of remapIdentity.
    """

    kind: str
    values: tuple[str, ...] = ()

    def accepts(self, signed: str, asked: Reference | LayoutReference) -> bool:
        """Return whether a signature for the repository ``signed`` is valid for a kit that was requested as ``asked``.

        ``signed`` is "" for a bundle, which names no repository. A bundle is valid for matchRepository only.
        """
        if self.kind == "matchRepository" and (not signed or isinstance(asked, LayoutReference)):
            return True
        if not signed or isinstance(asked, LayoutReference):
            return False
        if self.kind == "exactReference":
            return _spelled(signed) == _spelled(self.values[0])
        if self.kind == "exactRepository":
            return _repository(signed) == _repository(self.values[0])
        name = asked.name
        if self.kind == "remapIdentity":
            prefix, other = self.values
            if name == prefix or name.startswith(f"{prefix}/"):
                name = other + name.removeprefix(prefix)
        by_repository = self.kind == "matchRepository" or (self.kind != "matchExact" and asked.digest is not None)
        wanted = name if by_repository or asked.digest is not None else f"{name}:{asked.tag or 'latest'}"
        return (_repository(signed) if by_repository else _spelled(signed)) == _spelled(wanted)


@dataclass(frozen=True, slots=True)
class Requirement:
    """An alternative of a demand.

    The kinds ``accept`` and ``reject`` need no signature. ``signed`` requires a signature by one of ``keys``. A
    requirement that kitfs cannot check has the kind ``unknown`` and is never met; ``text`` describes it in messages.
    """

    kind: Literal["accept", "reject", "signed", "unknown"]
    keys: tuple[PublicKey, ...] = ()
    identity: Identity | None = None
    text: str = ""

    def met_by(self, signatures: Sequence[Signature], asked: Reference | LayoutReference) -> list[Signature] | None:
        """Return the signatures that meet this requirement; None if it is not met."""
        if self.kind != "signed":
            return [] if self.kind == "accept" else None
        good = [
            one
            for one in signatures
            if (self.identity is None or self.identity.accepts(one.identity, asked)) and any(map(one.is_by, self.keys))
        ]
        return good or None

    def __str__(self) -> str:
        """Describe the requirement for a message."""
        if self.kind == "signed":
            names = [key.name for key in self.keys[:MAX_NAMED]]
            named = "" if self.identity is None else f" with the identity {self.identity.kind}"
            return f"a signature by {' or '.join(names)}{named}"
        return {"accept": "nothing", "reject": "that it is not used"}.get(self.kind, self.text)

    @property
    def rejection(self) -> str:
        """Say what a requirement of the kind ``reject`` does, as the end of a message: ``text``, or else a default."""
        return self.text or "rejects it"


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of a policy. ``name`` is its name in messages.

    If ``warns`` is True, a kit that breaks the rule may be used, with a warning.
    """

    name: str
    demands: tuple[tuple[Requirement, ...], ...]
    warns: bool = False

    @property
    def needs_signatures(self) -> bool:
        """Return whether the rule requires signatures and can be satisfied by signatures."""
        return not self.always_holds and all(any(one.kind == "signed" for one in demand) for demand in self.open)

    @property
    def always_holds(self) -> bool:
        """Return whether the rule holds for every kit."""
        return not self.open

    @property
    def open(self) -> tuple[tuple[Requirement, ...], ...]:
        """Return the demands that a kit does not meet by itself: those without an ``accept`` alternative."""
        return tuple(demand for demand in self.demands if not any(one.kind == "accept" for one in demand))

    @property
    def refusal(self) -> str:
        """Say why the rule refuses a kit that no signature can help, as part of a message."""
        alternatives = [one for demand in self.open for one in demand]
        if all(one.kind == "reject" for one in alternatives):
            return f"{self.name} {alternatives[0].rejection}"
        return f"{self.name} demands {demanded(self.open)}"

    def unmet(self, found: Found, asked: Reference | LayoutReference) -> tuple[tuple[Requirement, ...], ...]:
        """Return the demands that the signatures do not meet."""
        return tuple(
            demand for demand in self.open if all(one.met_by(found.signatures, asked) is None for one in demand)
        )

    def used(self, found: Found, asked: Reference | LayoutReference) -> set[Digest]:
        """Return the digests of the signatures that meet any of the demands."""
        met = (one.met_by(found.signatures, asked) or () for demand in self.open for one in demand)
        return {signature.digest for signatures in met for signature in signatures}


class Policy(Protocol):
    """A policy, which returns the rules for a reference. ``digest`` changes when the file or a key changes."""

    @property
    def digest(self) -> str: ...

    def rules_for(self, asked: Reference | LayoutReference) -> tuple[Rule, ...]: ...


@dataclass(frozen=True, slots=True)
class KeyPolicy:
    """The policy of ``--verify-key``: every kit must be signed by one key, whatever the name of the kit."""

    key: PublicKey

    @property
    def digest(self) -> str:
        """Return a string that identifies the key."""
        return self.key.hint

    def rules_for(self, asked: Reference | LayoutReference) -> tuple[Rule, ...]:
        """Return the only rule."""
        return (Rule("--verify-key", ((Requirement("signed", (self.key,)),),)),)


def demanded(demands: Sequence[Sequence[Requirement]]) -> str:
    """Describe demands, as part of a message."""
    return ", and ".join(" or ".join(str(one) for one in demand) for demand in demands)


def seen(found: Found) -> str:
    """Describe the signers of the signatures that were found, as the end of a message."""
    if not found.signatures:
        return "no signature was found"
    signers = sorted({f"{one.signer} ({one.shape})" for one in found.signatures})
    more = f" and {len(signers) - MAX_NAMED} more" if len(signers) > MAX_NAMED else ""
    return f"the signatures that were found name {', '.join(signers[:MAX_NAMED])}{more}"


def _spelled(name: str) -> str:
    """Return a name in which Docker Hub is spelled "docker.io"."""
    host, slash, rest = name.partition("/")
    return f"{HUB}{slash}{rest}" if host in HUB_NAMES else name


def _repository(name: str) -> str:
    """Return a name without its tag and digest."""
    name = _spelled(name).partition("@")[0]
    head, slash, last = name.rpartition("/")
    return head + slash + last.partition(":")[0]
