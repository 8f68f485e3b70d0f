"""Find the file that a program loads as the model, such as a GGUF file or the index of safetensors shards.

Only the names and sizes of files are used. If a directory has files of several formats, the first format of ``FORMATS``
that occurs is the format of the model: many repositories have older formats beside safetensors.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from kitfs.formats.shards import is_shard_index

FORMATS: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    ("safetensors", (".safetensors",)),
    ("gguf", (".gguf",)),
    ("onnx", (".onnx",)),
    ("tensorrt", (".engine", ".plan")),
    ("keras", (".keras", ".h5")),
    ("tflite", (".tflite",)),
    ("tensorflow", (".pb",)),
    ("pytorch", (".pt", ".pth", ".pt2", ".ckpt", ".bin")),
    ("pickle", (".joblib", ".pkl", ".pickle")),
)
LATER_SHARD: Final = re.compile(r"-(?!0*1-of-)\d+-of-\d+\.\w+$")  # model-00002-of-00005.gguf, but not 00001


class ModelFiles(NamedTuple):
    """What a program needs to load a model.

    ``format`` is a name of ``FORMATS``, or "" if no file has a known format. ``main`` is the path of the file to load,
    or "". ``directory`` is the directory of this file, or "" for the root.
    """

    format: str
    main: str
    directory: str


def model_files(files: Iterable[tuple[str, int]]) -> ModelFiles:
    """Find the main file among (path, size) pairs, whose paths are relative and separated by "/".

    The main file of a model in several shards is the index of the safetensors shards, or else the first shard. Among
    several models, the main file is the largest one, and of equally large ones the first by name.
    """
    everything = sorted(files)
    for name, suffixes in FORMATS:
        found = [(path, size) for path, size in everything if path.lower().endswith(suffixes)]
        if not found:
            continue
        indexes = [path for path, _ in everything if is_shard_index(path)] if name == "safetensors" else []
        whole = [(path, size) for path, size in found if not LATER_SHARD.search(path)]
        main = indexes[0] if indexes else max(whole or found, key=lambda one: one[1])[0]
        return ModelFiles(name, main, posixpath.dirname(main))
    return ModelFiles("", "", "")
