"""The main file of a model is found by the names and sizes of its files."""

from __future__ import annotations

import pytest

from kitfs.formats.main_file import ModelFiles, model_files


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"model.gguf": 9}, ModelFiles("gguf", "model.gguf", "")),
        ({"m/model.safetensors": 9, "m/config.json": 1}, ModelFiles("safetensors", "m/model.safetensors", "m")),
        (
            {"m/a-00001-of-00002.gguf": 1, "m/a-00002-of-00002.gguf": 9},
            ModelFiles("gguf", "m/a-00001-of-00002.gguf", "m"),
        ),
        (
            {
                "model-00001-of-00002.safetensors": 9,
                "model-00002-of-00002.safetensors": 9,
                "model.safetensors.index.json": 1,
            },
            ModelFiles("safetensors", "model.safetensors.index.json", ""),
        ),
        (
            {"pytorch_model.bin": 90, "model.safetensors": 9, "onnx/model.onnx": 50},
            ModelFiles("safetensors", "model.safetensors", ""),
        ),
        ({"q4.gguf": 4, "q8.gguf": 8, "mmproj.gguf": 1}, ModelFiles("gguf", "q8.gguf", "")),
        ({"b.ONNX": 5, "a.onnx": 5}, ModelFiles("onnx", "a.onnx", "")),
        ({"x-11-of-20.gguf": 1}, ModelFiles("gguf", "x-11-of-20.gguf", "")),
        ({"README.md": 1}, ModelFiles("", "", "")),
        ({}, ModelFiles("", "", "")),
    ],
)
def test_the_main_file_of_a_model(files: dict[str, int], found: ModelFiles) -> None:
    assert model_files(reversed(list(files.items()))) == found
