"""diff prints the same text as kit. It compares files and tensors without fetching whole layers."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent
from typing import Any

from tests import kits
from tests.fakes.registry import FakeRegistry
from tests.golden.make_trees import blob, gguf, safetensors
from tests.kits import kit_tar, part
from tests.unit.cli.conftest import Kitfs

RULE = "-" * 39


def put(fake: FakeRegistry, tag: str, *parts: kits.Part, **more: Any) -> str:
    """Push a kit as a/b:TAG and return its reference."""
    return fake.put_kit("a/b", kits.build(list(parts), **more), tag)


def one(path: str, content: bytes, kind: str = "model", **more: Any) -> kits.Part:
    """Return a layer that contains one file."""
    return part(kind, path, kit_tar({path: content}), **more)


def test_identical(kitfs: Kitfs, fake: FakeRegistry) -> None:
    """For two identical kits, diff prints one line, whatever the options are."""
    first, second = put(fake, "v1", one("w", b"1")), put(fake, "v2", one("w", b"1"))
    assert kitfs("diff", first, second, "--files", "--tensors").out == "ModelKits are identical\n"
    told = kitfs("diff", first, second, "--json").json
    assert (told["identical"], told["layers"]["first"], [k["remote"] for k in told["kits"]]) == (True, [], [True, True])


def test_kits_text(kitfs: Kitfs, fake: FakeRegistry) -> None:
    """Layers are sorted by media type. Digests are cut to 17 characters, and each section ends with an empty line."""
    same = one("c.py", b"1", "code")
    first = put(fake, "v1", one("w", b"1"), same)
    second = put(fake, "v2", one("w", bytes(2000)), same, one("d", b"d", "docs"))
    a, b = (re.findall(r'"digest":"(sha256:\w+)', fake.manifest("a/b", tag)[0].decode()) for tag in ("v1", "v2"))
    assert kitfs("diff", first, second).out == dedent(f"""\
        Comparing:
          ModelKit1: {first}
          ModelKit2: {second}

        Configurations:
        {RULE}
        Configs differ:
          ModelKit1 Config Digest: {a[0][:17]}
          ModelKit2 Config Digest: {b[0][:17]}

        Annotations:
        {RULE}
          Annotations are identical{" "}

        Shared Layers
        {RULE}
        Type    | Digest             | Size
        Code    | {a[2][:17]}  | 2.0 KiB

        Unique Layers to ModelKit1 ({first})
        {RULE}
        Type    | Digest             | Size
        Model   | {a[1][:17]}  | 2.0 KiB

        Unique Layers to ModelKit2 ({second})
        {RULE}
        Type    | Digest             | Size
        Docs    | {b[3][:17]}  | 2.0 KiB
        Model   | {b[1][:17]}  | 3.5 KiB

    """)


def test_configs_and_annotations(kitfs: Kitfs, fake: FakeRegistry) -> None:
    """Equal configs are shown with their digest. A list without layers is shown as <none>."""
    first = put(fake, "v1")
    second = put(fake, "v2", manifest_extra={"annotations": {"x": "y"}})
    out = kitfs("diff", first, second).out
    assert re.search(r"\n  Configs are identical \(Digest: sha256:\w{10}\)\n\nAnnotations:\n", out)
    assert f"\nAnnotations:\n{RULE}\n  Annotations does not match\n\nShared Layers\n{RULE}\n<none>\n\nUnique" in out


def test_a_digest_twice(kitfs: Kitfs, fake: FakeRegistry) -> None:
    """If one kit contains a digest twice and the other once, the layers with the same path are paired."""
    twice = [part("docs", path, b"same", format="raw") for path in ("x", "y")]
    first, second = put(fake, "v1", *twice), put(fake, "v2", part("docs", "y", b"same", format="raw"))
    told = kitfs("diff", first, second, "--json").json["layers"]
    assert {name: len(layers) for name, layers in told.items()} == {"shared": 1, "first": 1, "second": 0}


def test_where_kits_are_looked_for(kitfs: Kitfs, fake: FakeRegistry, tmp_path: Path) -> None:
    """A kit is searched in the store first, and then at its registry.

    With local://, only the store is searched. With remote://, only the registry is searched.
    """
    (tmp_path / "t").mkdir()
    (tmp_path / "t/Kitfile").write_text("manifestVersion: 1.0.0\npackage: {name: here}\n")
    here = f"{fake.host}/a/b:v1"
    there = put(fake, "v1", one("w", b"1"))
    assert here == there
    kitfs("pack", tmp_path / "t", "-t", here)
    for args, remote in (((here, here), [False, False]), ((f"local://{here}", f"remote://{here}"), [False, True])):
        assert [kit["remote"] for kit in kitfs("diff", *args, "--json").json["kits"]] == remote
    assert "(1 B)" in kitfs("diff", here, f"remote://{here}", "--files", "--plain-http").out
    done = kitfs("diff", here, f"local://{fake.host}/a/b:v2")
    assert (done.code, done.out) == (3, "")
    assert done.err.startswith(f"kitfs: Failed to get manifest for ModelKit2: {fake.host}/a/b:v2 is not in the store")
    assert kitfs("diff", f"{fake.host}/a/none:v1", here).err.startswith("kitfs: Failed to get manifest for ModelKit1: ")


def files(kitfs: Kitfs, first: str, second: str, *options: str) -> list[str]:
    """Return the lines about files that diff prints."""
    out: str = kitfs("diff", first, second, *(options or ("--files",))).out
    return out[out.index("Files: ") :].splitlines()


def test_files(kitfs: Kitfs, fake: FakeRegistry) -> None:
    """diff lists files as added, removed or changed.

    A file that moved to another layer may have changed. With --content, diff compares the bytes of such a file.
    """
    old = {"m/same": b"s", "m/size": b"1", "m/mode": b"m", "m/content": b"abc", "m/gone": b"g", "m/empty": b""}
    new = {"m/same": b"s", "m/size": b"12", "m/mode": b"m", "m/content": b"abd", "m/new": bytes(2000), "m/empty": b""}
    first = put(fake, "v1", part("model", "m", kit_tar(old)))
    second = put(fake, "v2", part("model", "m", kit_tar(new, modes={"m/mode": 0o755})))
    assert files(kitfs, first, second) == [
        "Files: 1 added, 1 removed, 2 changed, 2 may have changed",
        RULE,
        "+ m/new (1.9 KiB)",
        "- m/gone (1 B)",
        *(f"~ {line}" for line in ("m/mode (mode 0644 -> 0755; its bytes were not compared)", "m/size (1 B -> 2 B)")),
        *(
            f"? m/{name} ({size} B, in another layer; --content compares the bytes)"
            for name, size in (("content", 3), ("same", 1))
        ),
        "",
    ]
    assert files(kitfs, first, second, "--content") == [
        "Files: 1 added, 1 removed, 3 changed",
        RULE,
        "+ m/new (1.9 KiB)",
        "- m/gone (1 B)",
        "~ m/content (different bytes)",
        "~ m/mode (mode 0644 -> 0755)",
        "~ m/size (1 B -> 2 B)",
        "",
    ]
    told = kitfs("diff", first, second, "--content", "--json").json["files"]
    assert told["added"] == [{"path": "m/new", "size": 2000}]
    assert told["changed"][1] == {
        "path": "m/mode",
        "what": ["mode"],
        "before": {"size": 1, "mode": "0644"},
        "after": {"size": 1, "mode": "0755"},
    }


def test_raw_layers_need_no_reading(kitfs: Kitfs, fake: FakeRegistry) -> None:
    """Raw layers are compared by digest, because the digest of a raw layer is the digest of its only file."""
    first = put(fake, "v1", part("model", "w", b"abc", format="raw"), part("docs", "d", b"x", format="raw"))
    second = put(fake, "v2", part("model", "w", b"abd", format="raw"), part("docs", "e", b"x", format="raw"))
    assert files(kitfs, first, second)[2:] == [
        "+ e (1 B)",
        "- d (1 B)",
        "~ Kitfile (different bytes)",
        "~ w (different bytes)",
        "",
    ]
    assert not [
        s for s in fake.served("/blobs/") if any(s.path.endswith(kits.sha256(data)) for data in (b"abc", b"abd", b"x"))
    ]


def test_shared_compressed_layers_are_not_read(kitfs: Kitfs, fake: FakeRegistry) -> None:
    """Both kits contain a compressed layer, and no other layer has files below the path of this layer.

    Then only the first bytes of the layer are fetched.
    """
    big = part("dataset", "data", kit_tar({"data/x.bin": blob("x", 3 << 20)}), compression="gzip")
    first = put(fake, "v1", big, one("w", b"1"))
    second = put(fake, "v2", big, one("w", b"12"))
    assert "~ w (1 B -> 2 B)" in files(kitfs, first, second)
    digest = kits.sha256(big.stored())
    assert fake.moved(digest) < 512 << 10


def test_shared_layers_under_others_are_looked_at(kitfs: Kitfs, fake: FakeRegistry) -> None:
    """If another layer of one kit replaces a file of a layer that both kits contain, the file is listed as changed."""
    base = part("model", "m", kit_tar({"m/a": b"1", "m/b": b"2"}))
    first, second = put(fake, "v1", base), put(fake, "v2", base, one("m/b", b"longer", "docs"))
    assert [line for line in files(kitfs, first, second) if "m/" in line] == ["~ m/b (1 B -> 6 B)"]


def test_layers_in_another_order_are_looked_at(kitfs: Kitfs, fake: FakeRegistry) -> None:
    """If two layers contain a file with the same name, the file in the later layer is compared."""
    layers = [one("x", b"1", "docs"), part("docs", "x", kit_tar({"x": b"22"}))]
    first, second = put(fake, "v1", *layers), put(fake, "v2", *layers[::-1])
    assert [line for line in files(kitfs, first, second) if " x " in line] == ["~ x (2 B -> 1 B)"]


def tensors(kitfs: Kitfs, first: str, second: str) -> list[str]:
    """Return the lines about tensors that diff prints."""
    out: str = kitfs("diff", first, second, "--tensors").out
    return out[out.index("Tensors: ") :].splitlines()


def test_tensors(kitfs: Kitfs, fake: FakeRegistry) -> None:
    """Tensors of safetensors and GGUF files are listed if they were added, removed, reshaped, retyped or moved."""
    same = {"same": ("F32", [4])}
    old = {
        "m/1.safetensors": safetensors(
            "a", same | {"shape": ("F32", [2, 3]), "type": ("F32", [5]), "moved": ("I8", [7]), "old": ("I8", [])}
        ),
        "m/x.gguf": gguf("x"),
        "m/broken.safetensors": b"no",
    }
    new = {
        "m/1.safetensors": safetensors(
            "b", same | {"shape": ("F32", [3, 2]), "type": ("BF16", [5]), "new": ("I8", [])}
        ),
        "m/2.safetensors": safetensors("c", {"moved": ("I8", [7])}),
        "m/x.gguf": gguf("y"),
    }
    first, second = put(fake, "v1", part("model", "m", kit_tar(old))), put(fake, "v2", part("model", "m", kit_tar(new)))
    assert tensors(kitfs, first, second) == [
        "Tensors: 1 added, 1 removed, 3 changed",
        RULE,
        "+ new I8 [] in m/1.safetensors",
        "- old I8 [] in m/1.safetensors",
        "~ shape F32 [2, 3] -> F32 [3, 2] in m/1.safetensors (reshaped)",
        "~ type F32 [5] -> BF16 [5] in m/1.safetensors (retyped)",
        "~ moved I8 [7] in m/1.safetensors -> m/2.safetensors (moved)",
        "! ModelKit1 m/broken.safetensors: not a safetensors file: it has only 2 bytes",
        "= 4 tensors have the same name, type and shape in both; their values were not compared;"
        " --content compares the bytes of files",
        "",
    ]
    told = kitfs("diff", first, second, "--tensors", "--json").json["tensors"]
    assert told["changed"][0] == {
        "what": ["reshaped"],
        "before": {"name": "shape", "file": "m/1.safetensors", "dtype": "F32", "shape": [2, 3]},
        "after": {"name": "shape", "file": "m/1.safetensors", "dtype": "F32", "shape": [3, 2]},
    }
    assert told["unreadable"] == [
        {"kit": 1, "path": "m/broken.safetensors", "reason": "not a safetensors file: it has only 2 bytes"}
    ]


def test_equal_heads_are_not_equal_tensors(kitfs: Kitfs, fake: FakeRegistry) -> None:
    """diff says that it did not compare the values of tensors, or that it found no file with tensors."""
    heads = {"w": ("F32", [4])}
    first = put(fake, "v1", part("model", "m", kit_tar({"m/w.safetensors": safetensors("a", heads)})))
    second = put(fake, "v2", part("model", "m", kit_tar({"m/w.safetensors": safetensors("b", heads)})))
    words = "= 1 tensor has the same name, type and shape in both; its values were not compared"
    assert tensors(kitfs, first, second)[2:] == [f"{words}; --content compares the bytes of files", ""]
    assert f"\n{words}\n" in kitfs("diff", first, second, "--tensors", "--content").out
    assert kitfs("diff", first, second, "--tensors", "--json").json["tensors"]["same"] == 1
    other = put(fake, "v3", part("docs", "d", b"x", format="raw"))
    another = put(fake, "v4", part("docs", "d", b"y", format="raw"))
    assert tensors(kitfs, other, another)[2:] == [
        "<none>: the layers that differ contain no safetensors or GGUF files",
        "",
    ]


def test_big_kits_are_compared_by_kilobytes(kitfs: Kitfs, fake: FakeRegistry) -> None:
    """If the tensors of two kits of 64 MiB are compared, less than 1 MiB is transferred."""
    shape = ("F32", [2048, 1024])
    old = [safetensors(f"o{i}", {f"{i}.{n}": shape for n in "ab"}) for i in range(4)]
    new = [
        safetensors(f"n{i}", {f"{i}.{n}": shape if (i, n) != (2, "b") else ("F16", [2048, 2048]) for n in "ab"})
        for i in range(4)
    ]
    first = put(fake, "v1", part("model", "m", kit_tar({f"m/{i}.safetensors": old[i] for i in range(4)})))
    second = put(fake, "v2", *(part("modelpart", f"m/{i}.safetensors", new[i], format="raw") for i in range(4)))
    assert tensors(kitfs, first, second)[:3] == [
        "Tensors: 0 added, 0 removed, 1 changed",
        RULE,
        "~ 2.b F32 [2048, 1024] -> F16 [2048, 2048] in m/2.safetensors (reshaped, retyped)",
    ]
    assert fake.moved() < 1 << 20
