"""Imports from a Hugging Face hub list and transfer files, and resume after failures."""

from __future__ import annotations

import hashlib
import json
import logging
import random
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kitfs.errors import (
    ContextError,
    IntegrityError,
    KitfsError,
    NotFound,
    RateLimited,
    RegistryError,
    Unauthorized,
    UnsafePath,
    UsageError,
)
from kitfs.kit.resolver import Resolver
from kitfs.modelkit.kitfile import (
    Code,
    Dataset,
    Docs,
    Kitfile,
    MCPServer,
    Model,
    ModelPart,
    Package,
    Prompt,
    clean_path,
)
from kitfs.modelkit.writer import KitFormat, PackedKit
from kitfs.oci.names import Reference
from kitfs.ops.events import Event, Saved, Sent, Warned, quiet
from kitfs.ops.imports.arrange import arrange
from kitfs.ops.imports.hub import Hub, HubFile, Snapshot
from kitfs.ops.imports.snapshot import SOURCE, import_snapshot, read_small
from kitfs.ops.pack.generate import File, generate, tree_of
from kitfs.registry.client import RegistryClient
from kitfs.store.store import Store
from tests.fakes.faults import After, Cut, Headers, IgnoreRange, Lie, Status
from tests.fakes.huggingface import MODIFIED_EPOCH, FakeHub, Tree, git_oid, lfs
from tests.fakes.registry import FakeRegistry

MiB = 1 << 20
WEIGHTS = random.Random(7).randbytes(9 * MiB + 5)
OTHER = random.Random(8).randbytes(300_000)
TREE: Tree = {
    ".gitattributes": b"*.bin filter=lfs",
    "README.md": b"# net\n",
    "config.json": b'{"a": 1}',
    "model.safetensors": lfs(WEIGHTS),
    "onnx/model.onnx": lfs(OTHER),
    "onnx/config.json": b"{}",
    "empty.txt": b"",
    "run me#1%.py": b"print()\n",
}
LOG = logging.getLogger("kitfs.test")
NAME = Reference.parse("here/net:v1")


@pytest.fixture
def fake() -> Iterator[FakeHub]:
    with FakeHub() as running:
        running.put("models", "team/net", TREE)
        yield running


Open = Callable[..., Snapshot]


@pytest.fixture
def snapshot(client: RegistryClient, fake: FakeHub) -> Open:
    """Return a function that opens a snapshot on a hub, by default of ``team/net`` at main."""

    def make(name: str = "team/net", ref: str = "main", kind: str = "models", **options: Any) -> Snapshot:
        return Hub(client, fake.url, **options).snapshot(kind, name, ref)

    return make


def brought(snapshot: Snapshot, store: Store, *, told: list[Event] | None = None, **more: Any) -> PackedKit:
    files = snapshot.files()
    guess = generate(tree_of(File(f.path, f.size) for f in files), Package("net"), lambda _: b"")
    report = quiet if told is None else told.append
    shape = KitFormat(created=snapshot.modified, layer_format="raw")
    return import_snapshot(snapshot, arrange(guess, files), store, [NAME], kit_format=shape, report=report, **more)


def content(store: Store) -> dict[str, bytes]:
    """Return the files of the kit in the store, as a mount reads them."""

    def nobody(_: object) -> Any:
        raise AssertionError("a registry was asked although the store has everything")

    kit = Resolver(store, nobody, log=LOG).open(NAME)
    found = {
        m.path: layer.pread(m, 0, m.size)
        for layer in kit.layers
        for m in layer.index().members.values()
        if m.kind == "file"
    }
    kit.close()
    return found


def plain(tree: Tree) -> dict[str, bytes]:
    return {path: one if isinstance(one, bytes) else one.data for path, one in tree.items() if path != ".gitattributes"}


def asked(hub: FakeHub) -> list[str]:
    """Return the path of each requested file. The path is repeated if the file was requested in several ranges."""
    return [s.path.split("/resolve/")[1].partition("/")[2] for s in hub.served("/resolve/")]


# -- the listing


@pytest.mark.parametrize(
    ("page", "links", "recursive"),
    [(1000, "absolute", True), (2, "relative", True), (1, "absolute", True), (2, "relative", False)],
)
def test_every_file_is_listed(fake: FakeHub, snapshot: Open, page: int, links: str, recursive: bool) -> None:
    """Every file is listed, with several pages, with relative or absolute links, and with one request per directory.

    Files of git, such as .gitattributes, are left out.
    """
    fake.page, fake.links, fake.recursive = page, links, recursive
    files = {f.path: f for f in snapshot().files()}
    assert {path: f.size for path, f in files.items()} == {path: len(data) for path, data in plain(TREE).items()}
    assert files["model.safetensors"].digest == f"sha256:{hashlib.sha256(WEIGHTS).hexdigest()}"
    assert (files["config.json"].digest, files["config.json"].git) == (None, git_oid(b'{"a": 1}'))


def test_a_reference_is_pinned_first(fake: FakeHub, snapshot: Open, store: Store) -> None:
    """A push to the branch during an import does not change the imported files."""
    pinned = snapshot(ref="main")
    fake.put("models", "team/net", {"config.json": b"new"})
    brought(pinned, store)
    assert content(store) == plain(TREE)
    assert all(pinned.sha in s.path for s in fake.served("/tree/|/resolve/"))


def test_references_with_slashes(fake: FakeHub, snapshot: Open) -> None:
    fake.put("models", "team/net", {"a": b"x"}, ref="refs/pr/1")
    assert [f.path for f in snapshot(ref="refs/pr/1").files()] == ["a"]


def test_datasets_have_places_of_their_own(fake: FakeHub, snapshot: Open, store: Store) -> None:
    fake.put("datasets", "team/rows", {"train/a.parquet": lfs(OTHER)})
    brought(snapshot("team/rows", kind="datasets"), store)
    assert content(store) == {"train/a.parquet": OTHER}


@pytest.mark.parametrize(
    "entry",
    [
        {"type": "file", "path": "../x", "size": 1, "oid": "0" * 40},
        {"type": "file", "path": "/etc/x", "size": 1, "oid": "0" * 40},
        {"type": "file", "path": "a//b", "size": 1, "oid": "0" * 40},
        {"type": "file", "path": "\ud800", "size": 1, "oid": "0" * 40},
        {"type": "file", "path": "x\0", "size": 1, "oid": "0" * 40},
        {"type": "file", "path": "", "size": 1, "oid": "0" * 40},
        {"type": "file"},
    ],
)
def test_paths_that_lead_elsewhere(fake: FakeHub, snapshot: Open, entry: dict[str, Any]) -> None:
    fake.raw_entries = [entry]
    with pytest.raises(UnsafePath):
        snapshot().files()


@pytest.mark.parametrize(
    "entry",
    [
        {"type": "submodule", "path": "x"},
        {"type": "file", "path": "x", "size": -1, "oid": ""},
        {"type": "file", "path": "x", "size": True, "oid": ""},
        {"type": "file", "path": "x", "size": 1, "oid": "0", "lfs": {"oid": "md5:0"}},
        {"type": "file", "path": "x", "size": 1, "lfs": [], "oid": ""},
    ],
)
def test_entries_that_are_no_files(fake: FakeHub, snapshot: Open, entry: dict[str, Any]) -> None:
    fake.raw_entries = [entry]
    with pytest.raises(RegistryError):
        snapshot().files()


def test_a_listing_without_an_end(fake: FakeHub, snapshot: Open) -> None:
    origin = snapshot()
    fake.fail("/tree/", Headers({"Link": f'<{fake.url}/api/models/team/net/tree/{origin.sha}>; rel="next"'}))
    with pytest.raises(RegistryError, match=r"the listing of .* does not end"):
        origin.files()


@pytest.mark.parametrize("body", [b"", b"{}", b"[1]", b"<html>", b"[" * 100_000])
def test_answers_that_are_no_listing(fake: FakeHub, snapshot: Open, body: bytes) -> None:
    fake.fail("/tree/", Status(200, body=body))
    with pytest.raises(RegistryError, match="not a valid listing"):
        snapshot().files()


# -- tokens


def test_the_token_is_the_hubs_alone(fake: FakeHub, snapshot: Open, store: Store) -> None:
    """The token is sent with each request to the hub, and with no request to the target of a redirect."""
    fake.tokens = {"hf_x"}
    with FakeRegistry() as cdn:
        fake.redirect_to(cdn)
        brought(snapshot(token="hf_x"), store)
        assert content(store) == plain(TREE)
        assert {s.headers["authorization"] for s in fake.served()} == {"Bearer hf_x"}
        assert [s for s in cdn.served() if "authorization" in s.headers] == []
        assert sum(s.sent for s in fake.served("model.safetensors")) == len(b"Found") * len(
            fake.served("model.safetensors")
        )


@pytest.mark.parametrize(
    ("prepare", "name", "ref", "error", "text"),
    [
        (
            lambda h: setattr(h, "tokens", {"x"}),
            "team/net",
            "main",
            Unauthorized,
            "401: the repository does not exist, or it is private .pass a token",
        ),
        (
            lambda h: h.gated.add("team/net"),
            "team/net",
            "main",
            Unauthorized,
            "403: the conditions on the page of the repository",
        ),
        (lambda _: None, "team/none", "main", Unauthorized, "the repository does not exist"),
        (lambda _: None, "team/net", "v9", NotFound, "the branch, tag or commit does not exist"),
        (lambda _: None, "../x", "main", UsageError, "not the name of a repository of a hub"),
        (lambda h: h.fail("/revision/", Status(200, body=b"{}")), "team/net", "main", RegistryError, "names no commit"),
    ],
)
def test_refusals_are_told(
    fake: FakeHub,
    snapshot: Open,
    prepare: Callable[[FakeHub], object],
    name: str,
    ref: str,
    error: type[KitfsError],
    text: str,
) -> None:
    prepare(fake)
    with pytest.raises(error, match=text):
        snapshot(name, ref)


def test_a_token_is_not_shown_to_the_network(client: RegistryClient) -> None:
    with pytest.raises(UsageError, match="without TLS"):
        Hub(client, "http://hub.example.com", "hf_x")
    with pytest.raises(UsageError, match="without TLS"):
        Hub(client, "http://u:hunter22@hub.example.com")
    for token in ("hf_hunter22\nx", "hf_hunter22 x", "hf_hunter22\xe9"):
        with pytest.raises(UsageError, match="the token contains invalid characters") as caught:
            Hub(client, "https://hub.example.com", token)
        assert "hunter22" not in str(caught.value)
    for url in ("hub.example.com", "ftp://hub.example.com", "http://u:hunter22@[::", "https://u:hunter22/x@hub:port"):
        with pytest.raises(UsageError, match="not the URL of a hub") as caught:
            Hub(client, url)
        assert "hunter22" not in str(caught.value)


@pytest.mark.parametrize("token", ["hf_x\n", "hf_x\r\n", " hf_x\t", "hf_x"])
def test_line_ends_are_not_part_of_a_token(fake: FakeHub, snapshot: Open, token: str) -> None:
    """Like huggingface_hub, kitfs removes line ends and blanks around a token, because files often contain them."""
    fake.tokens = {"hf_x"}
    snapshot(token=token)
    assert {s.headers["authorization"] for s in fake.served()} == {"Bearer hf_x"}


@pytest.mark.parametrize("token", [" ", "\n", "", None])
def test_a_blank_token_is_not_a_token(fake: FakeHub, snapshot: Open, token: str | None) -> None:
    snapshot(token=token)
    assert all("authorization" not in s.headers for s in fake.served())


def test_a_login_in_the_url_of_a_hub_is_used_and_not_kept(fake: FakeHub, client: RegistryClient, store: Store) -> None:
    """A user name and password in a hub's URL are sent as a header and are not written to the manifest."""
    snapshot = Hub(client, fake.url.replace("://", "://ada:hunter22@")).snapshot("models", "team/net", "main")
    packed = brought(snapshot, store)
    assert packed.manifest.annotations[SOURCE] == f"{fake.url}/team/net"
    assert {s.headers["authorization"] for s in fake.served()} == {"Basic YWRhOmh1bnRlcjIy"}


def test_a_hub_that_repeats_a_token_is_not_quoted(fake: FakeHub, snapshot: Open) -> None:
    """If a hub repeats the token in a header of its response, the error does not contain the token."""
    fake.fail("/revision/", Status(403, {"X-Error-Message": "Bearer hf_hunter22, that is hf_hunter22"}))
    with pytest.raises(Unauthorized) as caught:
        snapshot(token="hf_hunter22")
    assert "hunter22" not in str(caught.value)


# -- from files to a kit


def test_every_file_is_a_raw_layer_of_its_own_digest(snapshot: Open, store: Store) -> None:
    told: list[Event] = []
    origin = snapshot()
    packed = brought(origin, store, told=told)
    assert content(store) == plain(TREE)
    layers = {layer.annotations["org.cncf.model.filepath"]: layer for layer in packed.manifest.layers}
    assert {path: layer.digest for path, layer in layers.items()} == {
        p: f"sha256:{hashlib.sha256(d).hexdigest()}" for p, d in plain(TREE).items()
    }
    weights = layers["model.safetensors"]
    assert weights.media_type == "application/vnd.kitops.modelkit.model.v1.raw"
    assert json.loads(weights.annotations["org.cncf.model.file.metadata+json"]) == {
        "name": "model.safetensors",
        "mode": 0o644,
        "uid": 0,
        "gid": 0,
        "size": len(WEIGHTS),
        "mtime": "2024-05-06T07:08:09Z",
        "typeflag": 48,
    }
    assert packed.manifest.annotations["org.opencontainers.image.revision"] == origin.sha
    assert packed.manifest.created == MODIFIED_EPOCH
    assert [e.what for e in told if isinstance(e, Saved)] == ["layer"] * 7 + ["config", "manifest"]
    assert store.refs.get(NAME.name, "v1") == packed.descriptor.to_json()


def test_the_same_commit_is_the_same_kit(snapshot: Open, store: Store) -> None:
    assert brought(snapshot(), store) == brought(snapshot(), store)


def test_what_is_here_is_not_asked_for_again(fake: FakeHub, snapshot: Open, store: Store) -> None:
    """LFS objects and small files that are in the store are not requested again, even if their path has changed."""
    brought(snapshot(), store)
    fake.put("models", "team/net", {"moved.safetensors": lfs(WEIGHTS), "again.json": b'{"a": 1}', "new.md": b"new"})
    fake.forget()
    brought(snapshot(), store)
    assert asked(fake) == ["new.md"]
    assert content(store) == {"moved.safetensors": WEIGHTS, "again.json": b'{"a": 1}', "new.md": b"new"}


def test_equal_files_come_once(fake: FakeHub, snapshot: Open, store: Store) -> None:
    fake.put(
        "models", "team/net", {f"{i}.gguf": lfs(OTHER) for i in range(6)} | {f"{i}.json": b"same" for i in range(6)}
    )
    brought(snapshot(), store)
    assert content(store) == {f"{i}.gguf": OTHER for i in range(6)} | {f"{i}.json": b"same" for i in range(6)}
    assert len(asked(fake)) == 2


def test_what_a_mount_has_fetched_is_not_fetched_again(fake: FakeHub, snapshot: Open, store: Store) -> None:
    origin = snapshot()
    file = next(f for f in origin.files() if f.path == "model.safetensors")
    assert file.digest is not None
    blob = store.blob(file.digest, size=file.size, source=origin.blob(file))
    blob.fetch(0, 5 * MiB)
    blob.close()
    fake.forget()
    brought(snapshot(), store)
    assert sum(s.sent for s in fake.served("model.safetensors")) <= file.size - 5 * MiB + MiB


# -- failures


def test_bodies_that_break_go_on(fake: FakeHub, snapshot: Open, store: Store) -> None:
    fake.fail("/resolve/", Cut(100_000), times=4)
    fake.fail("/tree/", Cut(10), times=2)
    fake.fail("/resolve/", Status(503), times=3)
    brought(snapshot(), store)
    assert content(store) == plain(TREE)


def test_signed_locations_expire(fake: FakeHub, snapshot: Open, store: Store) -> None:
    """When a signed location has expired, the hub is asked for a new location once, not for each range."""
    with FakeRegistry() as cdn:
        fake.redirect_to(cdn)
        origin = snapshot()
        file = next(f for f in origin.files() if f.path == "model.safetensors")
        source = origin.blob(file)
        parts = []
        for at in range(0, file.size, MiB):
            parts.append(b"".join(bytes(v) for _, v in source.read_range(at, min(at + MiB, file.size))))
            if at == 4 * MiB:
                cdn.expire_locations()
        assert b"".join(parts) == WEIGHTS
        assert len(asked(fake)) == 2


def test_a_hub_without_ranges(fake: FakeHub, snapshot: Open, store: Store) -> None:
    fake.fail("/resolve/", IgnoreRange())
    brought(snapshot(), store)
    assert content(store) == plain(TREE)


def test_an_import_that_broke_off_goes_on(fake: FakeHub, snapshot: Open, store: Store) -> None:
    """A repeated import does not transfer files that are complete in the store."""
    fake.fail("config.json", Status(404))
    with pytest.raises(NotFound):
        brought(snapshot(), store, concurrency=1)
    assert store.refs.get(NAME.name, "v1") is None
    fake.heal()
    fake.forget()
    brought(snapshot(), store)
    assert content(store) == plain(TREE)
    assert "model.safetensors" not in asked(fake)


def test_ranges_that_came_stay(fake: FakeHub, snapshot: Open, store: Store) -> None:
    """If the connection breaks in the middle of a file, the next import requests only the missing ranges."""
    fake.fail("model.safetensors", Cut(len(WEIGHTS) // 2), times=1)
    fake.fail("model.safetensors", After(1, Status(403)))
    with pytest.raises(Unauthorized):
        brought(snapshot(), store, concurrency=1)
    came = sum(s.sent for s in fake.served("model.safetensors") if s.status == 206)
    assert came > 0
    fake.heal()
    fake.forget()
    brought(snapshot(), store)
    assert sum(s.sent for s in fake.served("model.safetensors")) <= len(WEIGHTS) - came + MiB


@pytest.mark.parametrize("path", ["model.safetensors", "config.json", "onnx/config.json"])
def test_a_hub_that_lies_about_content(fake: FakeHub, snapshot: Open, store: Store, path: str) -> None:
    """Wrong bytes are detected by the digest of the LFS object or by git's object id, and nothing is tagged."""
    fake.fail(f"/resolve/[0-9a-f]+/{path}", Lie(1))
    with pytest.raises(IntegrityError, match=f"{path}: the downloaded content does not match"):
        brought(snapshot(), store)
    assert store.refs.get(NAME.name, "v1") is None
    fake.heal()
    brought(snapshot(), store)
    assert content(store) == plain(TREE)


def test_a_hub_that_asks_to_wait(fake: FakeHub, client: RegistryClient) -> None:
    """If the hub limits the rate of requests, an import prints one warning and retries until the hub responds."""
    pauses: list[float] = []
    told: list[Event] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            fake.heal()

    fake.fail("/revision/", Status(429, {"Retry-After": "0"}))
    Hub(client, fake.url, report=told.append, sleep=sleep).snapshot("models", "team/net", "main")
    assert len(pauses) == 2
    assert told == [Warned(f"{fake.host} limits the rate of requests; waiting before the next request")]


def test_a_hub_that_asks_for_too_much_patience(fake: FakeHub, client: RegistryClient) -> None:
    fake.fail("/revision/", Status(429, {"Retry-After": "0"}))
    with pytest.raises(RateLimited, match="too many requests"):
        Hub(client, fake.url, patience=0.0).snapshot("models", "team/net", "main")


# -- straight to a registry


def test_what_a_registry_has_never_moves(fake: FakeHub, snapshot: Open, store: Store, client: RegistryClient) -> None:
    """A blob that the registry has is not transferred.

    Other files are sent to the registry and not stored. Only small files are stored first, if their digest is not known
    in advance.
    """
    with FakeRegistry() as registry:
        registry.put_blob("team/kit", WEIGHTS)
        target = client.repository(Reference.parse(f"{registry.host}/team/kit"))
        told: list[Event] = []
        packed = brought(snapshot(), store, target=target, told=told)
        assert "model.safetensors" not in asked(fake)
        how = {e.digest: e.how for e in told if isinstance(e, Sent)}
        digests = {layer.annotations["org.cncf.model.filepath"]: layer.digest for layer in packed.manifest.layers}
        assert (how[digests["model.safetensors"]], how[digests["onnx/model.onnx"]]) == ("exists", "uploaded")
        assert not store.has_sealed(digests["onnx/model.onnx"])
        assert all(registry.blob("team/kit", d) == plain(TREE)[p] for p, d in digests.items())
        assert registry.manifest("team/kit", "v1")[0] == packed.manifest.to_json()
        assert store.refs.get(NAME.name, "v1") is None
        fake.forget()
        registry.forget()
        brought(snapshot(), store, target=target)
        assert asked(fake) == []
        assert registry.served("/uploads/") == []


def test_a_push_goes_on_where_the_hub_broke_off(
    fake: FakeHub, snapshot: Open, store: Store, client: RegistryClient
) -> None:
    with FakeRegistry() as registry:
        fake.fail("model.safetensors", Cut(2 * MiB), times=3)
        brought(snapshot(), store, target=client.repository(Reference.parse(f"{registry.host}/team/kit")))
        assert registry.blob("team/kit", f"sha256:{hashlib.sha256(WEIGHTS).hexdigest()}") == WEIGHTS


def test_a_registry_finds_what_a_hub_lies_about(
    fake: FakeHub, snapshot: Open, store: Store, client: RegistryClient
) -> None:
    with FakeRegistry() as registry:
        fake.fail("model.safetensors", Lie(5))
        with pytest.raises(IntegrityError):
            brought(snapshot(), store, target=client.repository(Reference.parse(f"{registry.host}/team/kit")))
        assert registry.served("/manifests/", method="PUT") == []


# -- from entries to layers


def listed(*paths: str) -> list[HubFile]:
    return [HubFile(path, 3, git_oid(b"abc"), None) for path in sorted(paths)]


def layers(
    kitfile: Kitfile, *paths: str, ignore: bytes | None = None, warnings: list[str] | None = None, **more: Any
) -> tuple[Kitfile, list[tuple[str, str, bool]]]:
    made = arrange(kitfile, listed(*paths), ignore=ignore, **more)
    assert [(p.kind, p.path) for p in made.layers] == [(e.kind, clean_path(e.path)) for e in made.kitfile.entries()]
    if warnings is not None:
        warnings += made.warnings
    return made.kitfile, [(p.kind, p.path, p.raw) for p in made.layers]


def test_directories_become_their_files() -> None:
    """An entry for a directory is replaced by one entry for each file below the directory.

    Each new entry has the fields of the old entry. Files that belong to another entry are left out.
    """
    kitfile = Kitfile(
        "1.0.0",
        model=Model(path="m", parts=(ModelPart("p", "w", type="lora"),)),
        datasets=(Dataset("d", "data", license="MIT"),),
        code=(Code(".", "all"),),
        docs=(Docs("a.md"),),
    )
    made, found = layers(kitfile, "m", "w/1", "w/2", "data/x", "data/y/z", "a.md", "b", "Kitfile", ".kitignore")
    assert found == [
        ("model", "m", True),
        ("modelpart", "w/1", True),
        ("modelpart", "w/2", True),
        ("code", "b", True),
        ("dataset", "data/x", True),
        ("dataset", "data/y/z", True),
        ("docs", "a.md", True),
    ]
    assert made.datasets == (Dataset("d", "data/x", license="MIT"), Dataset("d", "data/y/z", license="MIT"))
    assert made.code == (Code("b", "all"),)


def test_models_and_prompts_stay_directories() -> None:
    kitfile = Kitfile("1.0.0", model=Model(path="./m/"), prompts=(Prompt("s", "skill"),))
    made, found = layers(kitfile, "m/1", "m/2", "skill/SKILL.md")
    assert (made, found) == (kitfile, [("model", "m", False), ("prompt", "skill", False)])


def test_a_kitignore_counts() -> None:
    warnings: list[str] = []
    _, found = layers(
        Kitfile("1.0.0", code=(Code("."), Code("x.py"))),
        "a",
        "b/c",
        "b/d",
        "x.py",
        ignore=b"b\n!b/d\nx.py\n",
        warnings=warnings,
    )
    assert found == [("code", "a", True), ("code", "b/d", True)]
    assert warnings == ["code layer path x.py ignored by kitignore"]


def test_too_many_files_stay_directories() -> None:
    kitfile = Kitfile("1.0.0", code=(Code("."),), datasets=(Dataset(path="d"),))
    assert layers(kitfile, "a", "d/1", "d/2", max_layers=3)[1] == [
        ("code", "a", True),
        ("dataset", "d/1", True),
        ("dataset", "d/2", True),
    ]
    assert layers(kitfile, "a", "d/1", "d/2", "d/3", max_layers=3)[1] == [("code", ".", False), ("dataset", "d", False)]


def test_entries_that_are_not_there() -> None:
    with pytest.raises(ContextError, match="error processing model: path m does not exist"):
        layers(Kitfile("1.0.0", model=Model(path="m")), "n")
    with pytest.raises(ContextError, match="is a directory"):
        layers(Kitfile("1.0.0", mcp_servers=(MCPServer("m", "m.mcpb"),)), "m.mcpb/x")


def test_directories_are_tars_as_kit_packs_them(fake: FakeHub, snapshot: Open, store: Store, tmp_path: Path) -> None:
    """The layer of a directory has the same bytes as if the files had been packed from the disk."""
    from kitfs.ops.pack.pack import pack_to_store

    tree = {"m/b.bin": lfs(OTHER), "m/a/x.json": b"{}", "m/a.json": b"1", "m/é": b"2", "m/empty": b"", "z": b"z"}
    fake.put("models", "team/net", tree)
    for path, data in plain(tree).items():
        (tmp_path / "t" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "t" / path).write_bytes(data)
    for path in (tmp_path / "t").rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    kitfile = Kitfile("1.0.0", model=Model(path="m"))
    origin = snapshot()
    made = arrange(kitfile, origin.files())
    raw = KitFormat(created=1, layer_format="raw")
    ours = import_snapshot(origin, made, store, [NAME], kit_format=raw, report=quiet)
    theirs = pack_to_store(str(tmp_path / "t"), kitfile, store, [NAME], kit_format=KitFormat(created=1), report=quiet)
    assert ours.manifest.config == theirs.manifest.config
    assert [replace(d, annotations={}) for d in ours.manifest.layers] == [
        replace(d, annotations={}) for d in theirs.manifest.layers
    ]
    assert content(store) == {p: d for p, d in plain(tree).items() if p != "z"}


def test_files_are_looked_at_in_part(snapshot: Open) -> None:
    origin = snapshot()
    files = {f.path: f for f in origin.files()}
    assert read_small(origin, files["model.safetensors"], 1000) == WEIGHTS[:1000]
    assert read_small(origin, files["run me#1%.py"], 1000) == b"print()\n"
    assert read_small(origin, files["empty.txt"], 1000) == b""


def test_memory_stays_flat(fake: FakeHub, snapshot: Open, store: Store) -> None:
    """An import needs less memory than the size of the imported file."""
    data = random.Random(9).randbytes(MiB) * 40
    fake.put("models", "team/net", {"a.gguf": lfs(data)})
    origin = snapshot()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        brought(origin, store)
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert peak < 24 * MiB
