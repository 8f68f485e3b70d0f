"""What a Kitfile is guessed to be: kit's rules one by one, and what later versions of kit changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from kitfs.errors import ContextError, UsageError
from kitfs.modelkit.kitfile import Code, Dataset, Docs, Kitfile, MCPServer, Model, Package, Prompt
from kitfs.ops.events import Event, Warned
from kitfs.ops.pack.generate import File, directory_of, front_matter, generate, kind_of, reader_of, save, tree_of
from kitfs.ops.pack.licenses import license_of

MIT = b"""MIT License

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
associated documentation files (the "Software"), to deal in the Software without restriction.
The above copyright notice and this permission notice shall be included in all copies or
substantial portions of the Software.
"""
SKILL = b"---\nname: folding\ndescription: Folds shirts.\nlicense: MIT\n---\n# Folding\n"


def guessed(*paths: str, content: bytes = b"", **sizes: int) -> Kitfile:
    files = [File(p, 10) for p in paths] + [File(p.replace("__", "."), size) for p, size in sizes.items()]
    return generate(tree_of(files), Package(), lambda _: content)


def parts(kitfile: Kitfile) -> list[str]:
    assert kitfile.model is not None
    return [kitfile.model.path, *(p.path for p in kitfile.model.parts)]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("w.safetensors", "model"),
        ("w.gguf", "model"),
        ("w.bin", "code"),
        ("pytorch_model.bin", "model"),
        ("x.pytorch_model-1-of-2.bin", "model"),
        ("config.json", "metadata"),
        ("a.txt", "metadata"),
        ("a.md", "docs"),
        ("AGENTS.md", "prompt"),
        ("Claude.MD", "prompt"),
        ("my.prompt.yaml", "prompt"),
        ("x.prompt", "prompt"),
        ("tool.mcpb", "mcpserver"),
        ("t.parquet", "dataset"),
        ("a.py", "code"),
        ("a", "code"),
        ("A.MD", "code"),
        ("net.engine", "model"),
        ("net.plan", "model"),
        ("m.onnx", "model"),
        ("m.onnx_data", "model"),
        ("m.joblib", "model"),
        ("m.pkl", "model"),
        ("m.pickle", "model"),
        ("t.arrow", "dataset"),
        ("t.jsonl", "dataset"),
        ("eda.ipynb", "notebook"),
    ],
)
def test_a_file_is_known_by_its_name(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_one_model_gives_its_name() -> None:
    kitfile = guessed("weights.v2.gguf")
    assert kitfile == Kitfile("1.0.0", Package(), Model("weights.v2", "weights.v2.gguf"))


def test_the_largest_of_several_is_the_model_where_it_stands_out() -> None:
    """More than one and a half times the average; metadata are parts too, at the end."""
    kitfile = guessed("config.json", a__gguf=10, b__gguf=100, c__gguf=10)
    assert parts(kitfile) == ["b.gguf", "a.gguf", "c.gguf", "config.json"]
    assert kitfile.model is not None
    assert kitfile.model.name == "b"


def test_the_first_of_shards_is_the_model() -> None:
    kitfile = guessed(b__gguf=12, a__gguf=10, c__gguf=11)
    assert parts(kitfile) == ["a.gguf", "b.gguf", "c.gguf"]
    assert kitfile.model is not None
    assert kitfile.model.name == ""


def test_without_a_model_metadata_are_datasets() -> None:
    assert guessed("a.csv", "b.json").datasets == (Dataset(path="a.csv"), Dataset(path="b.json"))


def test_readme_and_license_are_documents_whatever_their_suffix() -> None:
    kitfile = guessed("README", "readme.json", "LICENSE.txt", "notes.md")
    assert kitfile.docs == (
        Docs("LICENSE.txt", "License file"),
        Docs("README", "Readme file"),
        Docs("notes.md"),
        Docs("readme.json", "Readme file"),
    )


def test_a_file_that_nobody_knows_makes_one_layer_of_all_code() -> None:
    """Also in the place of directories that are code for sure."""
    assert guessed("train.py", "src/a.py", "lib/b.py").code == (Code("."),)


def test_directories_of_one_kind_are_layers() -> None:
    kitfile = guessed("d/a.csv", "d/about.json", "m/b.md", "p/x.prompt", "docs/x.py", "src/x", "w/a.gguf", "w/c.json")
    assert kitfile.datasets == (Dataset(path="d"),)
    assert kitfile.docs == (Docs("docs"), Docs("m"))
    assert kitfile.prompts == (Prompt(path="p"),)
    assert kitfile.code == (Code("src"),)
    assert parts(kitfile) == ["w/a.gguf", "w/c.json"]


@pytest.mark.parametrize(
    "paths",
    [
        ("data/split=train/0.parquet", "data/split=test/0.parquet", "data/_SUCCESS"),
        ("data/by_fold/fold=0/split=train/0.parquet", "data/by_fold/fold=1/split=train/0.parquet"),
        ("data/split=train/a.csv", "data/split=test/a.csv"),
        ("data/dataset_dict.json", "data/train/data-0.arrow", "data/train/state.json", "data/test/data-0.arrow"),
        ("data/data-0.arrow", "data/dataset_info.json", "data/state.json"),
        ("data/train/a.jsonl", "data/test/b.jsonl"),
        ("data/a.jsonl",),
        ("data/x.zarr/.zattrs", "data/x.zarr/0.0", "data/y/t.parquet"),
        ("data/.zgroup", "data/temperature/.zarray", "data/temperature/0.0"),
        ("data/zarr.json", "data/t/c/0/0"),
    ],
    ids=" ".join,
)
def test_a_tree_of_tables_or_a_zarr_store_is_one_dataset(paths: tuple[str, ...]) -> None:
    """One entry for the directory of the root, however deep its files lie, and no code."""
    assert guessed(*paths) == Kitfile("1.0.0", datasets=(Dataset(path="data"),))


@pytest.mark.parametrize(
    "paths", [("d/x=1/a.py",), ("d/x=1/a.parquet", "d/run.py"), ("d/deep/a.csv",), ("d/x=1/about.json",)], ids=" ".join
)
def test_a_tree_with_other_files_is_code_as_kit_has_it(paths: tuple[str, ...]) -> None:
    assert guessed(*paths) == Kitfile("1.0.0", code=(Code("d"),))


def test_notebooks_are_code_of_their_own() -> None:
    """A notebook of the root does not turn everything into one layer of code, as a file of no known kind does."""
    assert guessed("eda.ipynb", "notes/a.ipynb", "t.csv") == Kitfile(
        "1.0.0", code=(Code("eda.ipynb"), Code("notes")), datasets=(Dataset(path="t.csv"),)
    )


def test_the_tensors_beside_an_onnx_file_are_parts_of_the_model() -> None:
    assert parts(guessed(net__onnx=10, net__onnx_data=9)) == ["net.onnx", "net.onnx_data"]


def test_a_mixed_directory_is_code_and_its_models_are_models() -> None:
    kitfile = guessed("m/a.gguf", "m/b.py", "n/deep/x.csv", "o/a.json")
    assert kitfile.code == (Code("m"), Code("n"), Code("o"))
    assert parts(kitfile) == ["m/a.gguf"]


def test_more_than_five_unknown_directories_are_one_layer() -> None:
    assert len(guessed(*(f"d{i}/x" for i in range(5))).code) == 5
    assert guessed(*(f"d{i}/x" for i in range(6))).code == (Code("."),)


def test_bundles_have_names_of_their_own() -> None:
    kitfile = guessed("files.mcpb", "more/files.mcpb")
    assert kitfile.mcp_servers == (MCPServer("files", "files.mcpb"), MCPServer("more/files", "more/files.mcpb"))
    assert kitfile.code == ()
    kitfile.validate()


def test_a_directory_with_a_skill_is_a_prompt() -> None:
    kitfile = guessed("fold/SKILL.md", "fold/scripts/run.py", "AGENTS.md", content=SKILL)
    assert kitfile.prompts == (Prompt(path="AGENTS.md"), Prompt("folding", "fold", "Folds shirts."))
    assert kitfile.code == ()


@pytest.mark.parametrize(
    "text", ["", "# no", "---\nname: x", "---\n[a\n---\n", "---\n- a\n---\n", "---\nname: [a]\n---\n"]
)
def test_front_matter_that_is_none(text: str) -> None:
    assert front_matter(text) == {}


def test_kitfiles_and_rubbish_are_left_out() -> None:
    kitfile = guessed("Kitfile", ".kitfile", ".DS_Store", "Thumbs.db", "d/.DS_Store", "d/a.csv", ".Trashes/x")
    assert kitfile == Kitfile("1.0.0", datasets=(Dataset(path="d"),))


@pytest.mark.parametrize(
    ("paths", "where"),
    [
        (["a.gguf", "b.csv"], lambda k: k.model.license),
        (["b.csv", "x.py"], lambda k: k.datasets[0].license),
        (["x.py"], lambda k: k.code[0].license),
        (["a.csv", "b.csv"], lambda k: k.package.license),
    ],
)
def test_a_licence_goes_where_it_belongs(paths: list[str], where: object) -> None:
    assert callable(where)
    assert where(guessed(*paths, "LICENSE", content=MIT)) == "MIT"


def test_a_licence_that_nobody_knows_is_said(tmp_path: Path) -> None:
    """And nothing of the others is lost for it."""
    (tmp_path / "LICENSE").write_text("All rights reserved.")
    (tmp_path / "a.gguf").write_bytes(b"x")
    told: list[Event] = []
    kitfile = generate(directory_of(str(tmp_path)), Package(), reader_of(str(tmp_path)), told.append)
    assert kitfile.model == Model("a", "a.gguf")
    assert told == [Warned("Unable to determine license type")]


def test_two_licences_in_one_file_are_none() -> None:
    assert (license_of(MIT), license_of(MIT + MIT), license_of(b"\xff\x00")) == ("MIT", "", "")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Attribution 4.0 International\n\nCreative Commons Corporation", "CC-BY-4.0"),
        ("Attribution-NonCommercial-ShareAlike 4.0 International", "CC-BY-NC-SA-4.0"),
        ("Apache License\n  Version 2.0, January 2004\n http://", "Apache-2.0"),
        ("GNU LESSER GENERAL PUBLIC LICENSE\n Version 3, 29 June 2007", "LGPL-3.0"),
        ("GNU AFFERO GENERAL PUBLIC LICENSE\n Version 3, 19 November 2007", "AGPL-3.0"),
        ("Mozilla Public License Version 2.0\n=====", "MPL-2.0"),
    ],
)
def test_licences_are_known_by_their_titles(text: str, name: str) -> None:
    assert license_of(text.encode()) == name


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").symlink_to("/etc/passwd")
    (tmp_path / "d").symlink_to("/etc")
    assert generate(directory_of(str(tmp_path)), Package(), reader_of(str(tmp_path))) == Kitfile("1.0.0")


def test_a_list_of_files_is_the_tree_of_its_directory(tmp_path: Path) -> None:
    paths = ["b/c/d.json", "a.gguf", "b/x", "b.md", "B/y", "é/ü"]
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"12345")
    assert tree_of(File(p, 5) for p in paths) == directory_of(str(tmp_path))


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ContextError, match=r"failed to read directory .*/absent: no such file"):
        directory_of(str(tmp_path / "absent"))


def test_a_kitfile_is_overwritten_on_demand_only(tmp_path: Path) -> None:
    path = tmp_path / "Kitfile"
    save(str(path), "one", overwrite=False)
    with pytest.raises(UsageError, match="Use '--force' to overwrite"):
        save(str(path), "two", overwrite=False)
    assert path.read_text() == "one"
    save(str(path), "three", overwrite=True)
    assert (path.read_text(), [p.name for p in tmp_path.iterdir()]) == ("three", ["Kitfile"])


def test_a_kitfile_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ContextError, match="Failed to write Kitfile"):
        save(str(tmp_path / "no/Kitfile"), "", overwrite=True)
