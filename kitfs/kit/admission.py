"""Decide whether a kit may be used: verify its signatures against the policies before its contents are read.

The registry is asked each time. If it cannot be reached, an earlier verdict is used for at most ``MAX_AGE`` seconds.
The catalog stores each verdict with the digests of the valid signatures. There is one verdict for each combination of
repository, digest of a kit, rule and digest of a policy. If the registry responds and the signatures are no longer
valid, the verdict is deleted. Threading: any thread may check a kit.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

from kitfs.content import Hints
from kitfs.errors import KitfsError, RateLimited, SignatureError, Unavailable
from kitfs.kit.resolver import human_age
from kitfs.oci.names import LOCAL, Digest, LayoutReference, Reference
from kitfs.trust.policy import Policy, Rule, demanded, seen
from kitfs.trust.signatures import Found, SignatureSource, signatures_of

MAX_AGE: Final = 7 * 86_400  # seconds for which a verdict is valid while the registry cannot be reached


class Admission:
    """A check of kits against policies. Every policy must accept a kit.

    ``places_of`` returns the places where the signatures of a reference can be stored. All places are searched.
    """

    def __init__(
        self,
        policies: Sequence[Policy],
        places_of: Callable[[Reference | LayoutReference], Sequence[SignatureSource]],
        hints: Hints,
        *,
        log: logging.Logger,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._policies = policies
        self._places_of = places_of
        self._hints = hints
        self._log = log
        self._clock = clock

    def check(self, asked: Reference | LayoutReference, digest: Digest) -> None:
        """Raise SignatureError unless every policy accepts the kit. The error names the rule and the signers."""
        for policy in self._policies:
            for rule in policy.rules_for(asked):
                try:
                    self._check(policy, rule, asked, digest)
                except SignatureError as e:
                    if not rule.warns:
                        raise
                    self._log.warning("%s; it is used nevertheless, because the policy only warns", e)

    def _check(self, policy: Policy, rule: Rule, asked: Reference | LayoutReference, digest: Digest) -> None:
        if rule.always_holds:
            return
        if not rule.needs_signatures:
            raise SignatureError(f"{_shown(asked)} ({digest}) is refused: {rule.refusal}")
        refused = f"{_shown(asked)} ({digest}) is refused: {rule.name} demands"
        if isinstance(asked, Reference) and asked.registry == LOCAL:
            raise SignatureError(
                f"{refused} {demanded(rule.open)}; signatures are at a registry, and this reference has no registry"
            )
        key = ("verdict", _key(asked, digest, policy, rule))
        found = Found(())
        for place in self._places_of(asked):
            found = signatures_of(place, digest)
            if not rule.unmet(found, asked):
                self._hints.set(key, {"seen": int(self._clock()), "signatures": sorted(rule.used(found, asked))})
                return
        unreachable = next((e for e in found.failures if isinstance(e, (Unavailable, RateLimited))), None)
        if unreachable is None:
            self._hints.delete(key)
            failed = "".join(f"; {e}" for e in found.failures[:1])
            raise SignatureError(f"{refused} {demanded(rule.unmet(found, asked))}; {seen(found)}{failed}")
        self._use_verdict(key, refused, unreachable, asked)

    def _use_verdict(
        self, key: tuple[str, str], refused: str, unreachable: KitfsError, asked: Reference | LayoutReference
    ) -> None:
        """Accept a kit by an earlier verdict. Raises SignatureError if there is no verdict, or if it is too old."""
        verdict = self._hints.get(key)
        verified = verdict.get("seen") if isinstance(verdict, dict) else None
        if not isinstance(verified, int):
            raise SignatureError(f"{refused} a signature, and no signature can be fetched: {unreachable}")
        age = int(self._clock()) - verified
        if not 0 <= age <= MAX_AGE:
            raise SignatureError(
                f"{refused} a signature; its last verification, {human_age(max(0, age))} ago, is older than "
                f"{human_age(MAX_AGE)}, and no signature can be fetched: {unreachable}"
            )
        self._log.warning("%s: its signature was verified %s ago: %s", _shown(asked), human_age(age), unreachable)


def _key(asked: Reference | LayoutReference, digest: Digest, policy: Policy, rule: Rule) -> str:
    place = asked.path if isinstance(asked, LayoutReference) else asked.name
    text = "\0".join((place, digest, policy.digest, rule.name))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _shown(asked: Reference | LayoutReference) -> str:
    return asked.display if isinstance(asked, Reference) else str(asked)
