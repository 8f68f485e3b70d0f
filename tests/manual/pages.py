"""The blocks of examples in the README and the manual, and a machine that runs these blocks.

A block is the text between a pair of ``` lines. The word after the first ``` is the kind of the block.

- ``sh``: commands. Each command must succeed.

- ``console``: lines that begin with ``$ `` are commands. The other lines are the output on a terminal of 80 columns.

- ``python``: a program.

The blocks of one page run one after the other in one directory. A line ``<!-- not run: REASON -->`` in front of a block
says that a test cannot run the block. The commands of such a block are only parsed.

In the examples, registry.example.com stands for a registry on this machine. Absolute paths are replaced by paths in the
directory of the page. This directory contains ``llama``, from which the kits of that registry were packed.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kitfs import manual
from tests.terminals import run_on_terminal, without_colours

ROOT = Path(__file__).parents[2]
REGISTRY = "registry.example.com"
OWN = "localhost:5050"  # the port of a registry that an example starts itself
KITFILE = """manifestVersion: 1.0.0
package:
  name: llama
  version: 1.0.0
  description: A very small model
  authors: [The Kit Team]
model:
  name: llama
  path: model
  format: safetensors
  parameters: {temperature: 0.7}
datasets:
  - name: train
    path: data/train.csv
docs:
  - path: README.md
"""
FENCE = re.compile(r"(?:<!-- not run: (?P<reason>[^\n]*) -->\n)?```(?P<kind>[a-z]*)\n(?P<text>.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A block of a page.

    ``reason`` says why a test cannot run the block. ``span`` is the position of the block's text in the page.
    """

    kind: str
    text: str
    reason: str | None
    span: tuple[int, int]

    @property
    def steps(self) -> list[tuple[str, str | None]]:
        """Return the commands of the block with their outputs. An output is None if the page does not show it."""
        if self.kind != "console":
            return [(self.text, None)]
        found: list[tuple[str, str | None]] = []
        for part in re.split(r"^\$ ", self.text, flags=re.M)[1:]:
            command = re.match(r"(?:[^\n]*\\\n)*[^\n]*\n", part)
            assert command
            found.append((command[0], part[command.end() :]))
        return found


def blocks(text: str) -> list[Block]:
    """Return the blocks of a page in order."""
    return [Block(m["kind"], m["text"], m["reason"], m.span("text")) for m in FENCE.finditer(text)]


def pages() -> dict[str, str]:
    """Return the text of the README and of every page of the manual."""
    return {"README": (ROOT / "README.md").read_text(), **{name: manual.read(name) for name in manual.topics()}}


def path_of(page: str) -> Path:
    """Return the file of a page."""
    return ROOT / "README.md" if page == "README" else ROOT / f"kitfs/manual/{page}.md"


# -- the machine


def make_tree(directory: Path) -> None:
    """Write the directory ``llama`` of the examples."""
    (directory / "model").mkdir(parents=True)
    (directory / "data").mkdir()
    weights = b'{"w":{"dtype":"F32","shape":[64,64],"data_offsets":[0,16384]}}'
    (directory / "model/model.safetensors").write_bytes(struct.pack("<Q", len(weights)) + weights + bytes(16384))
    (directory / "model/config.json").write_text('{"architectures": ["LlamaForCausalLM"]}\n')
    (directory / "data/train.csv").write_text("prompt,answer\nhello,world\n")
    (directory / "README.md").write_text("# llama\n")
    (directory / "Kitfile").write_text(KITFILE)
    for path in directory.rglob("*"):
        os.utime(path, (1_750_000_000, 1_750_000_000))


def free_port() -> int:
    """Return a port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True)
class Machine:
    """A directory, a registry and a terminal, in which the examples of one page run."""

    home: Path
    registry: str
    own: str

    @property
    def env(self) -> dict[str, str]:
        """Return the environment of the commands, without any settings of the user."""
        return {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "TERM": "xterm-256color",
            "KITFS_CACHE_DIR": str(self.home / "var/lib/kitfs"),
            "KITFS_RUN_DIR": str(self.home / "run/kitfs"),
            "KITFS_PROGRESS": "none",
            "SOURCE_DATE_EPOCH": "1750000000",
            "PS1": "",
        }

    def real(self, text: str) -> str:
        """Replace the names in an example by the registries and directories of this machine."""
        text = (
            text.replace(REGISTRY, self.registry)
            .replace(OWN, self.own)
            .replace(OWN.split(":")[1], self.own.split(":")[1])
        )
        return re.sub(r"(?<![\w./:-])/(?=(models|data|srv|var/lib|var/cache|tmp|backup)\b)", f"{self.home}/", text)

    def terminal(self, command: str, *, columns: int = 80) -> str:
        """Run a command and return its output with colours."""
        return self.named(self._run(["bash", "-c", self.real(command)], columns)[1])

    def named(self, text: str) -> str:
        """Replace the names of this machine in a text by the names in the examples."""
        text = (
            text.replace(self.registry, REGISTRY)
            .replace(self.own, OWN)
            .replace("127.0.0.1:" + self.own.split(":")[1], "127.0.0.1:5050")
        )
        return text.replace(f"{self.home}/", "/").replace(str(self.home), "/")

    def run(self, block: Block) -> list[tuple[int, str]]:
        """Run a block. Return the exit code and the output on the terminal, without colours, of each step."""
        first = "set -e\n" if block.kind == "sh" else ""
        programs = [["bash", "-c", first + self.real(command)] for command, _ in block.steps]
        if block.kind == "python":
            programs = [[sys.executable, "-c", self.real(block.text)]]
        done = [self._run(program, 80) for program in programs]
        return [(code, self.named(without_colours(printed))) for code, printed in done]

    def _run(self, command: list[str], columns: int) -> tuple[int, str]:
        """Run a program on a terminal of its own. Return its exit code and its output."""
        background = command[-1].rstrip().endswith("&")
        return run_on_terminal(command, cwd=self.home, env=self.env, columns=columns, background=background)


@contextlib.contextmanager
def machine(registry: str) -> Iterator[Machine]:
    """Yield a machine in a directory with a short name, because the path of a socket is limited to 108 bytes.

    Its mounts and background jobs are ended at the end of the block.
    """
    home = Path(tempfile.mkdtemp(prefix="kitfs-m", dir="/tmp"))
    made = Machine(home, registry, f"localhost:{free_port()}")
    make_tree(home / "llama")
    (home / "srv").mkdir()
    try:
        yield made
    finally:
        subprocess.run(["kitfs", "umount", "--all", "--lazy"], env=made.env, cwd=home, check=False, capture_output=True)
        for environ in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if f"HOME={home}\0".encode() in environ.read_bytes() and int(environ.parent.name) != os.getpid():
                    os.kill(int(environ.parent.name), signal.SIGKILL)
        shutil.rmtree(home, ignore_errors=True)


def fill(registry: str) -> None:
    """Push the kits that the examples use to a registry."""
    with machine(registry) as made:
        kit = f"{REGISTRY}/team/llama"
        for command in (
            f"kitfs pack llama -t {kit}:v1,latest,q4",
            f"for tag in v1 latest q4; do kitfs push {kit}:$tag; done",
            "sed -i s/0.7/0.8/ llama/Kitfile; echo good,bye >> llama/data/train.csv",
            f"kitfs pack llama -t {kit}:v2,q8",
            f"for tag in v2 q8; do kitfs push {kit}:$tag; done",
        ):
            [(code, printed)] = made.run(Block("sh", command, None, (0, 0)))
            assert code == 0, printed


# -- comparing

MASKS = (
    (re.compile(r"\bSHA256:[A-Za-z0-9+/]{43}="), "SHA256:#"),  # the name of a key
    (re.compile(r"\b[0-9a-f]{6,}\b…?"), "#"),
    (re.compile(r"\bpid \d+|\bsealed(?= log /)"), "pid #"),  # whether a kit is sealed depends on the system
    (re.compile(r"^(cached|fetched|cache|served by|waiting):.*$", re.M), r"\1: #"),
    (re.compile(r"\b\d+(\.\d+)?(e-?\d+)? ?(s|ms|min|seconds?)\b"), "# s"),
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?(\.\d+)?(Z|[+-]\d\d:?\d\d)?"), "TIME"),
    (re.compile(r"[ \t]+"), " "),
    (re.compile(r"-{3,}|─+|━+"), "-"),
)


def masked(text: str) -> str:
    """Return a text without the parts that differ from run to run: digests, pids, times and the width of columns."""
    for pattern, put in MASKS:
        text = pattern.sub(put, text)
    return "\n".join(line.strip() for line in text.strip().splitlines())
