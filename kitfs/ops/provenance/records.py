"""Read what other tools have recorded about the origin of data: DVC in its files, and MLflow in the Kitfile.

DVC's ``dvc.lock`` has the inputs and outputs of each stage, and a file ``NAME.dvc`` has the hash of a tracked file or
directory. kit writes the block ``mlflow_provenance`` in ``model.parameters`` when it imports a run of MLflow. Files
that cannot be read or are not in this form are skipped, and reported. Threading: the functions have no state.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

from kitfs.modelkit.kitfile import Kitfile, clean_path
from kitfs.ops.events import Report, Warned
from kitfs.ops.provenance.objects import mapping, without_empty
from kitfs.ownership import read_start
from kitfs.redaction import public

MAX_FILE: Final = 1 << 20  # bytes of a file of DVC
MAX_DEPTH: Final = 100  # of nested brackets
MAX_FILES: Final = 1000  # files of DVC that are read
MAX_RECORDS: Final = 10_000
SKIPPED: Final = frozenset((".git", ".dvc", ".venv", "node_modules"))
HASHES: Final = ("md5", "etag", "checksum")  # the names of hashes in DVC's files
MLFLOW: Final = "mlflow_provenance"
RUN_FIELDS: Final = ("run_id", "run_name", "experiment_id", "status", "start_time", "end_time")


def dvc_records(directory: str, report: Report) -> list[dict[str, Any]]:
    """Return what DVC has recorded in a directory, as resource descriptors of in-toto.

    ``annotations.role`` is "dvc-data" for a tracked file, "dvc-input" or "dvc-output" for a file of a stage.
    """
    found = list(islice(_dvc_records(directory, report), MAX_RECORDS + 1))
    if len(found) > MAX_RECORDS:
        report(Warned(f"DVC has recorded more than {MAX_RECORDS} files; the others are left out of the provenance"))
    return found[:MAX_RECORDS]


def _dvc_records(directory: str, report: Report) -> Iterator[dict[str, Any]]:
    for path in _files(directory):
        fields = mapping(_yaml(os.path.join(directory, path), report))
        if os.path.basename(path) != "dvc.lock":
            yield from _records(fields.get("outs"), path, "dvc-data")
            continue
        for stage, value in mapping(fields.get("stages")).items():
            yield from _records(mapping(value).get("deps"), path, "dvc-input", str(stage))
            yield from _records(mapping(value).get("outs"), path, "dvc-output", str(stage))


def mlflow_run(kitfile: Kitfile) -> dict[str, Any] | None:
    """Return the run of MLflow that is recorded in a Kitfile, as a resource descriptor of in-toto."""
    parameters = None if kitfile.model is None else kitfile.model.parameters
    block = mapping(mapping(parameters).get(MLFLOW))
    if not block:
        return None
    server, run = public(_text(block.get("mlflow_tracking_uri"))), _text(block.get("run_id"))
    annotations = {name: _text(block[name]) for name in RUN_FIELDS if block.get(name) is not None}
    found = {
        "name": _text(block.get("run_name")) or run,
        "uri": f"{server.rstrip('/')}/#/experiments/{_text(block.get('experiment_id'))}/runs/{run}" if server else "",
        "annotations": {"role": "mlflow-run", **annotations},
    }
    return without_empty(found)


def _files(directory: str) -> Iterator[str]:
    """Yield the paths of DVC's files below a directory, in order."""
    count = 0
    for here, below, names in os.walk(directory):
        below[:] = sorted(name for name in below if name not in SKIPPED)
        for name in sorted(names):
            if name == "dvc.lock" or (name.endswith(".dvc") and name != ".dvc"):
                count += 1
                if count > MAX_FILES:
                    return
                yield os.path.relpath(os.path.join(here, name), directory)


def _yaml(path: str, report: Report) -> Any:
    import yaml

    try:
        data = read_start(path, MAX_FILE + 1)
        if len(data) > MAX_FILE:
            raise ValueError(f"it has more than {MAX_FILE} bytes")
        if _depth(data) > MAX_DEPTH:  # the time that PyYAML takes grows with the square of the depth
            raise ValueError(f"its brackets are nested more than {MAX_DEPTH} deep")
        return yaml.load(data, Loader=getattr(yaml, "CBaseLoader", yaml.BaseLoader))  # noqa: S506 - it makes strings
    except (OSError, yaml.YAMLError, ValueError, OverflowError, RecursionError) as e:
        reason = "it is not YAML" if isinstance(e, yaml.YAMLError) else getattr(e, "strerror", None) or str(e)
        report(Warned(f"{path} is left out of the provenance: {reason}"))
        return None


def _depth(data: bytes) -> int:
    """Return how deep brackets are nested in a file, at most. Brackets in strings are counted, too."""
    depth = deepest = 0
    for byte in data:
        if byte in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"]}":
            depth -= 1
    return deepest


def _records(listed: Any, file: str, role: str, stage: str = "") -> Iterator[dict[str, Any]]:
    """Yield the entries of a list of DVC that have a path and a hash."""
    for one in listed if isinstance(listed, list) else ():
        entry = mapping(one)
        name = next((name for name in HASHES if isinstance(entry.get(name), str)), None)
        path = entry.get("path")
        if name is None or not isinstance(path, str) or not path:
            continue
        value = entry[name]
        is_directory = value.endswith(".dir")  # the hash of a list of files, not of bytes
        algorithm = "dvcDirectory" if is_directory else name
        place = clean_path(os.path.join(os.path.dirname(file), path))
        annotations = {"role": role, "file": _unicode(file), **({"stage": _unicode(stage)} if stage else {})}
        digest = {algorithm: _unicode(value.removesuffix(".dir"))}
        yield {"name": _unicode(place), "digest": digest, "annotations": annotations}


def _unicode(text: str) -> str:
    """Return a string that JSON can represent. Bytes of a file name that are not UTF-8 become backslash escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def _text(value: Any) -> str:
    return "" if value is None else str(value)
