"""mypy accepts correct programs that use the SDK, and reports errors in wrong ones."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

RIGHT = """
from pathlib import Path, PurePosixPath
import kitfs

options: kitfs.ReadOptions = {"cache_dir": Path("/var/cache/kits"), "read_timeout": 10}

def seen(event: kitfs.events.Event) -> None:
    if isinstance(event, kitfs.events.Moved):
        print(event.size)

with kitfs.open("r.example.com/a:v1", only="model", labels={"bits": "4"}, **options) as kit:
    data: bytes = kit.read(PurePosixPath("config.json"), 0, 8)
    text: str = kit.read_text("config.json")
    sizes: int = kit.size + sum(info.size for info in kit.glob("**/*.json"))
    names: dict[str, str] = kit.annotations
    widths: list[int] = [tensor.nbytes for tensor in kit.tensors()]
    weights: kitfs.Tensor = kit.tensor("w", PurePosixPath("model.safetensors"))
    values: bytes = weights.tobytes() + bytes(weights.data)
    total = weights.numpy().sum()
kitfs.pull("r.example.com/a:v1", progress=True, concurrency=2)
kitfs.push("r.example.com/a:v1", progress=seen, mirror={"r.example.com": ["http://m"]}, tls_cert=Path("ca.pem"))
rows: list[kitfs.KitSummary] = kitfs.list(cache_dir="/x")
with kitfs.mount("r.example.com/a:v1", Path("m"), file_mode=0o644) as models:
    print(models.upper())
with kitfs.serve() as registry:
    print(registry.url.upper())
digest: str = kitfs.index.create("r.example.com/a:all")
changed = kitfs.diff("a:v1", "a:v2", files=True).files
print(changed.added if changed is not None else (), kitfs.cache.info().blobs + 1)
kitfs.kitfile.Package("name", authors=("Ada",))
"""

WRONG = {
    'kitfs.open("a:v1", chache_dir="/x")': "Unexpected keyword argument",
    'kitfs.open("a:v1", read_timeout="soon")': "incompatible type",
    'kitfs.pull("a:v1", only="model")': "Unexpected keyword argument",
    'kitfs.pack(".", compression="lzma")': "incompatible type",
    'kitfs.mount("a:v1", "m", transport="nfs")': "incompatible type",
    'kitfs.open("a:v1").digest + 1': "Unsupported operand",
    'kitfs.open("a:v1").tensor(0)': "incompatible type",
}


@pytest.mark.slow
def test_mypy_accepts_right_programs_and_refuses_misspelled_options(tmp_path: Path) -> None:
    """mypy --strict reports an error in each wrong line, and in no other line."""
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(RIGHT) + "\n".join(WRONG) + "\n")
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(ROOT / ".mypy_cache"), str(program)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    first = len(textwrap.dedent(RIGHT).splitlines()) + 1
    errors = {int(line.split(":")[1]): line for line in done.stdout.splitlines() if ": error: " in line}
    assert list(errors) == list(range(first, first + len(WRONG))), done.stdout
    for (code, error), line in zip(WRONG.items(), errors.values(), strict=True):
        assert error in line, code
