"""Parse digests and references as OCI and kit write them.

Digests follow image-spec, "Digests" (sha256, sha512). References follow kit (pkg/lib/repo/util, ParseReference): the
first path component is the registry if it contains "." or ":"; otherwise the whole string is a repository of
"localhost". This module does no I/O.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field, replace
from typing import Any, Final

from kitfs.errors import InvalidReference

HEX_LENGTH: Final = {"sha256": 64, "sha512": 128}
REPOSITORY: Final = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*")
TAG: Final = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
REGISTRY: Final = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?|\[[0-9a-fA-F:.]+\])(?::\d{1,5})?")
LAYOUT: Final = re.compile(r"oci(?:-archive)?:(?!\d{1,5}/)")  # a layout for parse_any; "oci:5000/" is a registry
LOCAL: Final = "localhost"  # the registry of references that name none: such a kit is in the store only
DOCKER_HOSTS: Final = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
UNNAMED: Final = "_"  # the repository in which kit puts kits without a name


class Digest(str):
    """A valid digest, ``algorithm:hex``. Only ``parse`` and ``of`` make digests."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: object) -> Digest:
        """Parse a digest. Raises InvalidReference for anything but sha256 or sha512 in lower-case hex."""
        if isinstance(text, str):
            algorithm, _, digits = text.partition(":")
            if len(digits) == HEX_LENGTH.get(algorithm, -1) and re.fullmatch("[0-9a-f]+", digits):
                return cls(text)
        raise InvalidReference(f"{str(text)[:100]!r} is not a digest (sha256:… or sha512:… in lower-case hex)")

    @classmethod
    def of(cls, data: bytes) -> Digest:
        """Return the sha256 digest of bytes."""
        return cls(f"sha256:{hashlib.sha256(data).hexdigest()}")

    @property
    def algorithm(self) -> str:
        """Return "sha256" or "sha512"."""
        return self.partition(":")[0]

    @property
    def hex(self) -> str:
        """Return the hexadecimal digits of the digest, without the algorithm."""
        return self.partition(":")[2]

    def hasher(self) -> Any:
        """Return a new hashlib object of the algorithm."""
        return hashlib.new(self.algorithm)

    def matches(self, data: bytes | bytearray) -> bool:
        """Return whether ``data`` has this digest."""
        return bool(hashlib.new(self.algorithm, data).hexdigest() == self.hex)


@dataclass(frozen=True, slots=True)
class Reference:
    """A repository of a registry, and a tag or a digest in it.

    ``extra_tags`` are the tags after the first tag in ``repo:tag1,tag2``. If a kit contains the reference, ``named_by``
    is the registry of that kit; it limits the addresses that may be used for the reference. ``named_by`` is "" for a
    reference from the user, and is ignored when references are compared.
    """

    registry: str
    repository: str
    tag: str | None = None
    digest: Digest | None = None
    extra_tags: tuple[str, ...] = ()
    named_by: str = field(default="", compare=False, repr=False)

    @classmethod
    def parse(cls, text: str, *, multiple_tags: bool = False) -> Reference:
        """Parse a reference by the rules of kit. Raises InvalidReference."""
        if LAYOUT.match(text):
            raise InvalidReference(f"{text!r} is an OCI layout; expected the name of a kit (registry/repository:tag)")
        first, *extra = text.split(",")
        if extra and not multiple_tags:
            raise InvalidReference(f"{text!r}: only one tag can be given here")
        try:
            return cls(LOCAL, UNNAMED, digest=Digest.parse(first))
        except InvalidReference:
            pass
        registry, rest = LOCAL, first
        head, slash, tail = first.partition("/")
        if slash and (":" in head or "." in head):
            registry, rest = head, tail
        rest, at, digest_text = rest.partition("@")
        digest = Digest.parse(digest_text) if at else None
        repository, colon, tag = rest.partition(":")
        _check(text, registry, repository, tag if colon else None)
        for more in extra:
            if not TAG.fullmatch(more):
                raise InvalidReference(f"{text!r}: {more!r} is not a tag")
        return cls(registry, repository, None if digest or not tag else tag, digest, tuple(extra))

    def __str__(self) -> str:
        return self.name + (f"@{self.digest}" if self.digest else f":{self.tag}" if self.tag else "")

    @property
    def name(self) -> str:
        """Return "registry/repository"."""
        return f"{self.registry}/{self.repository}"

    @property
    def identifier(self) -> str:
        """Return the digest or the tag; "" if the reference has neither."""
        return self.digest or self.tag or ""

    @property
    def display(self) -> str:
        """Return the reference as kit prints it, without ``localhost/``, ``_`` and ``@`` at the beginning.

        ``parse`` turns this string into the same reference. It does not do so for the string of ``str()`` if the
        registry is ``localhost``, because a first component without "." or ":" is part of the repository.
        """
        return str(self).removeprefix(f"{LOCAL}/").removeprefix(UNNAMED).removeprefix("@")

    def with_tag(self, tag: str) -> Reference:
        """Return the reference to another tag of the same repository."""
        return replace(self, tag=tag, digest=None, extra_tags=())

    def tagged(self) -> list[Reference]:
        """Return the reference itself, and a reference for each of the extra tags."""
        return [self, *(self.with_tag(tag) for tag in self.extra_tags)]

    def or_latest(self) -> Reference:
        """Return the reference, with the tag ``latest`` if it has neither tag nor digest."""
        return self if self.tag or self.digest else self.with_tag("latest")

    def held_by(self, kit: Reference | LayoutReference) -> Reference:
        """Return a copy of this reference that records that it comes from the content of ``kit``.

        A reference in a kit that was packed on this machine, or in a layout on disk, counts as a reference from the
        user.
        """
        registry = kit.registry if isinstance(kit, Reference) and kit.registry != LOCAL else ""
        return replace(self, named_by=registry)


@dataclass(frozen=True, slots=True)
class LayoutReference:
    """An OCI layout on disk, ``oci:DIR`` or ``oci-archive:FILE``, with a tag or digest if it has several manifests."""

    kind: str
    path: str
    tag: str | None = None
    digest: Digest | None = None

    def __str__(self) -> str:
        return f"{self.kind}:{self.path}" + (f"@{self.digest}" if self.digest else f":{self.tag}" if self.tag else "")


def api_host(registry: str) -> str:
    """Return the host that serves a registry's API: docker.io is served by registry-1.docker.io."""
    return "registry-1.docker.io" if registry in DOCKER_HOSTS else registry


def parse_any(text: str) -> Reference | LayoutReference:
    """Parse a reference of either kind. Raises InvalidReference."""
    for kind in ("oci", "oci-archive"):
        if text.startswith(f"{kind}:"):
            return _parse_layout(kind, text.removeprefix(f"{kind}:"))
    return Reference.parse(text)


def _parse_layout(kind: str, rest: str) -> LayoutReference:
    path, at, digest = rest.rpartition("@")
    if at and digest.partition(":")[0] in HEX_LENGTH:
        found = LayoutReference(kind, path, digest=Digest.parse(digest))
    else:
        path, colon, tag = rest.rpartition(":")
        found = (
            LayoutReference(kind, path, tag)
            if colon and "/" not in tag and tag
            else LayoutReference(kind, rest.removesuffix(":"))
        )
    if not found.path or "\0" in found.path:
        raise InvalidReference(f"{kind}:{rest} has no valid path (write {kind}:PATH[:tag])")
    return found


def _check(text: str, registry: str, repository: str, tag: str | None) -> None:
    if registry != LOCAL and not REGISTRY.fullmatch(registry):
        raise InvalidReference(f"{text!r}: invalid registry {registry!r}")
    if not repository:
        raise InvalidReference(f"{text!r} does not name a repository (write registry/repository:tag)")
    if repository != repository.lower():
        raise InvalidReference(f"repository ({repository}) name must be lowercase")
    if not REPOSITORY.fullmatch(repository):
        ends = repository[0] + repository[-1]
        if not ends.isalnum() or not ends.isascii():
            raise InvalidReference(f"repository ({repository}) must start and end with a letter or number")
        raise InvalidReference(f"{text!r}: invalid repository {repository!r}")
    if tag is not None and not TAG.fullmatch(tag):
        raise InvalidReference(f"{text!r}: invalid tag {tag!r}")
