"""Generate a Kitfile for a directory that has none, by guessing the kinds of its files from their names and sizes.

Follows KitOps' pkg/lib/kitfile/generate. Directories are treated as in kit 1.7; prompts, MCP bundles, PyTorch's
``.bin`` and files of operating systems are treated as in later versions. Some formats that kit would pack as code are
also recognised: ``OTHER_MODELS``, ``OTHER_DATASETS``, notebooks, and directories of partitioned Parquet, Arrow
(``save_to_disk``) and Zarr. Only licences and SKILL.md are read. A ``Directory`` is made from a file system or from a
list of files. Threading: each call uses one thread.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

import yaml

from kitfs.errors import ContextError, KitfsError, UsageError
from kitfs.modelkit.kitfile import Code, Dataset, Docs, Kitfile, MCPServer, Model, ModelPart, Package, Prompt
from kitfs.ops.events import Report, Warned, quiet
from kitfs.ops.pack.kitfiles import KITFILE_NAMES
from kitfs.ops.pack.licenses import license_of
from kitfs.store.durable import whole_file

MANIFEST_VERSION: Final = "1.0.0"
MODELS: Final = (
    ".safetensors", ".pkl", ".joblib", ".pth", ".pt", ".mar", ".pt2", ".ptl", ".pb", ".ckpt", ".tflite",
    ".tfrecords", ".npy", ".npz", ".keras", ".h5", ".caffemodel", ".pmml", ".coreml", ".gguf", ".ggml", ".ggmf",
    ".llamafile", ".onnx",
)  # fmt: skip
OTHER_MODELS: Final = (".engine", ".plan", ".pickle", ".onnx_data", ".onnx.data")  # TensorRT, pickle, ONNX' tensors
METADATA: Final = (".json", ".yaml", ".xml", ".txt")
DOCS: Final = (".md", ".adoc", ".html", ".pdf")
DATASETS: Final = (".tar", ".zip", ".parquet", ".csv")
OTHER_DATASETS: Final = (".arrow", ".feather", ".jsonl", ".ndjson")
TABLES: Final = (".parquet", *OTHER_DATASETS)  # files that make a directory with subdirectories a dataset
NOTEBOOK: Final = ".ipynb"
PARTITION: Final = re.compile(r"[^=]+=.*")  # the name of a directory of partitioned data: column=value
ZARR: Final = frozenset((".zgroup", ".zarray", ".zmetadata", "zarr.json"))
TABLE_MARKS: Final = frozenset(("_SUCCESS", "_metadata", "_common_metadata"))  # of Spark and Parquet
SUFFIXES: Final = (
    ("metadata", METADATA), ("docs", DOCS), ("dataset", DATASETS), ("model", OTHER_MODELS), ("dataset", OTHER_DATASETS),
    ("notebook", NOTEBOOK),
)  # fmt: skip
PROMPTS: Final = frozenset(("agents.md", "skill.md", "claude.md"))
CODE_DIRECTORIES: Final = frozenset(("src", "pkg", "lib", "build"))
JUNK: Final = frozenset((
    ".DS_Store", "Thumbs.db", "desktop.ini", "$RECYCLE.BIN", ".Spotlight-V100", ".Trashes", ".AppleDouble",
    ".LSOverride", "ehthumbs.db",
))  # fmt: skip
MAX_UNKNOWN: Final = 5  # if more directories have an unknown kind, one code layer contains the whole directory
MAX_READ: Final = 1 << 20  # bytes of a licence or SKILL.md
MAX_DEPTH: Final = 200

ReadStart = Callable[[str], bytes]  # returns the first MAX_READ bytes of a file, by its path


class File(NamedTuple):
    """A file. ``path`` is relative and separated by "/". ``size`` is in bytes."""

    path: str
    size: int

    @property
    def name(self) -> str:
        return posixpath.basename(self.path)


@dataclass(slots=True)
class Directory:
    """A directory with all entries below it, sorted by the bytes of their names. The path of the root is "."."""

    path: str
    files: list[File] = field(default_factory=list)
    directories: list[Directory] = field(default_factory=list)

    @property
    def name(self) -> str:
        return posixpath.basename(self.path)


def directory_of(context: str) -> Directory:
    """List a directory and all entries below it, without symbolic links and devices. Raises ContextError."""
    return _walked(context, ".", 0)


def _walked(context: str, path: str, depth: int) -> Directory:
    here = os.path.join(context, path) if path != "." else context
    if depth > MAX_DEPTH:
        raise ContextError(f"{path}: directories are nested more than {MAX_DEPTH} deep")
    made = Directory(path)
    try:
        with os.scandir(here) as found:
            entries = sorted(found, key=lambda e: os.fsencode(e.name))
        for entry in entries:
            below = entry.name if path == "." else f"{path}/{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                made.directories.append(_walked(context, below, depth + 1))
            elif entry.is_file(follow_symlinks=False):
                made.files.append(File(below, entry.stat(follow_symlinks=False).st_size))
    except OSError as e:
        raise ContextError(f"failed to read directory {here}: {(e.strerror or str(e)).lower()}")
    return made


def tree_of(files: Iterable[File]) -> Directory:
    """Make the tree of directories that a list of files implies. Paths must be clean and relative."""
    root = Directory(".")
    known: dict[str, Directory] = {"": root}

    def at(path: str) -> Directory:
        missing: list[str] = []
        while path not in known:
            missing.append(path)
            path = posixpath.dirname(path)
        for below in reversed(missing):
            known[below] = Directory(below)
            known[path].directories.append(known[below])
            path = below
        return known[path]

    for file in files:
        at(posixpath.dirname(file.path)).files.append(file)
    for directory in known.values():
        directory.files.sort(key=lambda f: os.fsencode(f.name))
        directory.directories.sort(key=lambda d: os.fsencode(d.name))
    return root


def reader_of(context: str) -> ReadStart:
    """Return a function that reads the start of a file below a directory. The function raises ContextError."""

    def read(path: str) -> bytes:
        try:
            with open(os.path.join(context, path), "rb") as f:
                return f.read(MAX_READ)
        except OSError as e:
            raise ContextError(f"cannot read {path}: {(e.strerror or str(e)).lower()}")

    return read


def kind_of(name: str) -> str:
    """Return the kind of a file with this name.

    It is "prompt", "mcpserver", "model", "metadata", "docs", "dataset" or "notebook", or "code" for every other name.
    """
    if name.lower() in PROMPTS or ".prompt" in name.lower():
        return "prompt"
    if name.endswith(".mcpb"):
        return "mcpserver"
    if name.endswith(MODELS) or (name.endswith(".bin") and "pytorch_model" in name):
        return "model"
    for kind, suffixes in SUFFIXES:
        if name.endswith(suffixes):
            return kind
    return "code"


def is_dataset(directory: Directory) -> bool:
    """Return whether a directory with subdirectories is one dataset: a Zarr store, or a directory of tables.

    The tables are in partitions (``column=value``), in the splits that ``save_to_disk`` writes, or in subdirectories
    that are themselves datasets. The directory may also contain metadata files, but no other files.
    """
    if directory.name.endswith(".zarr") or any(file.name in ZARR for file in directory.files):
        return True
    return _has_only_tables(directory) and _has_data(directory)


def _has_only_tables(directory: Directory) -> bool:
    in_partition = PARTITION.fullmatch(directory.name) is not None
    for file in directory.files:
        if file.name in TABLE_MARKS or file.name in JUNK or kind_of(file.name) == "metadata":
            continue
        if not file.name.endswith(TABLES) and not (in_partition and kind_of(file.name) == "dataset"):
            return False
    return all(_has_only_tables(d) or is_dataset(d) for d in directory.directories if d.name not in JUNK)


def _has_data(directory: Directory) -> bool:
    return any(kind_of(file.name) == "dataset" for file in directory.files) or any(
        _has_data(d) or is_dataset(d) for d in directory.directories
    )


def generate(root: Directory, package: Package, read: ReadStart, report: Report = quiet) -> Kitfile:
    """Generate a Kitfile for the files below ``root``. An unreadable file is reported as a warning."""
    guess = _Guess(read, report)
    metadata: list[File] = []
    catch_all = False
    for file in root.files:
        if file.name in KITFILE_NAMES or file.name in JUNK:
            continue
        lower = file.name.lower()
        kind = kind_of(file.name)
        if lower.startswith("readme"):
            guess.docs.append(Docs(file.path, "Readme file"))
        elif lower.startswith("license"):
            guess.docs.append(Docs(file.path, "License file"))
            guess.read_license(file)
        elif kind == "metadata":
            metadata.append(file)
        elif kind == "code":
            catch_all = True
        else:
            guess.add(kind, file)
    unknown = [d.path for d in root.directories if d.name not in JUNK and not guess.add_directory(d)]
    if guess.models:
        model = _model(guess.models)
        model = replace(model, parts=(*model.parts, *(ModelPart(path=f.path) for f in metadata)))
    else:
        model = None
        guess.datasets += [Dataset(path=f.path) for f in metadata]
    if catch_all or len(unknown) > MAX_UNKNOWN:
        guess.code = [Code(".")]
    else:
        guess.code += [Code(path) for path in unknown]
    kitfile = Kitfile(
        MANIFEST_VERSION,
        package,
        model,
        tuple(guess.code),
        tuple(guess.datasets),
        tuple(guess.docs),
        tuple(guess.prompts),
        tuple(guess.servers),
    )
    return _with_license(kitfile, guess.license)


class _Guess:
    """The entries of the Kitfile that have been found so far."""

    def __init__(self, read: ReadStart, report: Report) -> None:
        self._read = read
        self._report = report
        self.models: list[File] = []
        self.code: list[Code] = []
        self.datasets: list[Dataset] = []
        self.docs: list[Docs] = []
        self.prompts: list[Prompt] = []
        self.servers: list[MCPServer] = []
        self.license = ""

    def add(self, kind: str, file: File) -> None:
        """Add a file of the root directory, or an MCP bundle, as a separate entry."""
        if kind == "model":
            self.models.append(file)
        elif kind == "docs":
            self.docs.append(Docs(file.path))
        elif kind == "dataset":
            self.datasets.append(Dataset(path=file.path))
        elif kind == "notebook":
            self.code.append(Code(file.path))
        elif kind == "prompt":
            prompt = self._skill(file) if file.name.lower() == "skill.md" else Prompt()
            self.prompts.append(replace(prompt, path=file.path))
        else:
            name = posixpath.splitext(file.name)[0]
            if any(s.name == name for s in self.servers):
                name = posixpath.splitext(file.path)[0]
            self.servers.append(MCPServer(name, file.path))

    def add_directory(self, directory: Directory) -> bool:
        """Add a subdirectory of the root as an entry.

        Returns False if the kind of the subdirectory is unknown. Its model files are added even then.
        """
        path = directory.path
        if directory.name == "docs":
            self.docs.append(Docs(path))
            return True
        if directory.name in CODE_DIRECTORIES:
            self.code.append(Code(path))
            return True
        skill = next((f for f in directory.files if f.name == "SKILL.md"), None)
        if skill is not None:
            self.prompts.append(replace(self._skill(skill), path=path))
            return True
        nested = any(d.name not in JUNK for d in directory.directories)
        if is_dataset(directory) if nested else directory.name.endswith(".zarr"):
            self.datasets.append(Dataset(path=path))
            return True
        kinds: dict[str, list[File]] = {"code": []} if nested else {}
        for file in directory.files:
            if file.name not in JUNK:
                kinds.setdefault(kind_of(file.name), []).append(file)
        models, metadata = kinds.get("model", []), kinds.pop("metadata", [])
        self.models += models
        for server in kinds.get("mcpserver", []):
            self.add("mcpserver", server)
        if len(kinds) != 1 or "code" in kinds:
            return False
        if models:
            self.models += metadata
        elif "dataset" in kinds:
            self.datasets.append(Dataset(path=path))
        elif "docs" in kinds:
            self.docs.append(Docs(path))
        elif "prompt" in kinds:
            self.prompts.append(Prompt(path=path))
        elif "notebook" in kinds:
            self.code.append(Code(path))
        elif metadata:
            return False  # MCP bundles are separate layers, and the kind of the other files is unknown
        return True

    def read_license(self, file: File) -> None:
        """Identify a licence. If there are several licence files, the last one is used."""
        try:
            self.license = license_of(self._read(file.path))
        except KitfsError as e:
            self._report(Warned(f"Error determining license type: {e}"))
            self.license = ""
        if not self.license:
            self._report(Warned("Unable to determine license type"))

    def _skill(self, file: File) -> Prompt:
        """Return a prompt with the name and description in the front matter of a SKILL.md."""
        try:
            text = self._read(file.path).decode("utf-8", "replace")
        except KitfsError as e:
            self._report(Warned(f"{file.path}: {e}"))
            return Prompt()
        front = front_matter(text)
        return Prompt(front.get("name", ""), "", front.get("description", ""))


def front_matter(text: str) -> dict[str, str]:
    """Return the string fields of a Markdown file's front matter: the YAML between two lines "---" at its beginning.

    Returns {} for a file without front matter, or with front matter that is not YAML.
    """
    lines = text.removeprefix("\ufeff").splitlines()
    if not lines or lines[0].rstrip() != "---":
        return {}
    end = next((i for i, line in enumerate(lines[1:], 1) if line.rstrip() == "---"), 0)
    try:
        loaded = yaml.load("\n".join(lines[1:end]), Loader=yaml.BaseLoader)  # noqa: S506 - BaseLoader makes only texts
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}
    return (
        {k: v.strip() for k, v in loaded.items() if isinstance(k, str) and isinstance(v, str)}
        if isinstance(loaded, dict)
        else {}
    )


def save(path: str, text: str, *, overwrite: bool) -> None:
    """Write a Kitfile. With ``overwrite``, an existing file is replaced atomically.

    Raises UsageError if the file exists and ``overwrite`` is False, and ContextError if the file cannot be written.
    """
    try:
        with whole_file(path, private=False, durable=False) if overwrite else open(path, "xb") as f:
            f.write(text.encode())
    except FileExistsError:
        raise UsageError(f"Kitfile already exists at {path}. Use '--force' to overwrite")
    except OSError as e:
        raise ContextError(f"Failed to write Kitfile: {path}: {(e.strerror or str(e)).lower()}")


def _model(files: list[File]) -> Model:
    """Choose the model among the model files. The other files become its parts.

    The largest file is the model if its size exceeds one and a half times the average. Otherwise the first file is the
    model.
    """
    largest = max(files, key=lambda f: f.size)  # the first of several files with the same size
    average = sum(f.size for f in files) // len(files)
    if len(files) == 1 or largest.size > average + average // 2:
        suffix = os.path.splitext(f"x{largest.name}")[1]
        model = Model(largest.path.removesuffix(suffix) if suffix else largest.path, largest.path)
    else:
        largest = files[0]
        model = Model(path=largest.path)
    return replace(model, parts=tuple(ModelPart(path=f.path) for f in files if f != largest))


def _with_license(kitfile: Kitfile, found: str) -> Kitfile:
    """Set the licence on the model.

    Without a model, set it on the only dataset or code entry, otherwise on the package.
    """
    if not found:
        return kitfile
    if kitfile.model is not None:
        return replace(kitfile, model=replace(kitfile.model, license=found))
    if len(kitfile.datasets) == 1:
        return replace(kitfile, datasets=(replace(kitfile.datasets[0], license=found),))
    if len(kitfile.code) == 1:
        return replace(kitfile, code=(replace(kitfile.code[0], license=found),))
    return replace(kitfile, package=replace(kitfile.package, license=found))
