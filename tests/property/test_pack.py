"""Layers that are packed from random trees contain the entries that kit's rules require, in the order of filepath.Walk.

GNU tar and Python's tarfile read the layers. The rules are implemented here a second time, from the description of
kit's behaviour, without any code of kitfs. This second implementation decides for each path whether a layer contains
it. It compares patterns and paths segment by segment.
"""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kitfs.metrics import Counters
from kitfs.modelkit.kitfile import Kitfile
from kitfs.modelkit.writer import KitFormat, PackedKit
from kitfs.oci.names import Reference
from kitfs.ops.events import quiet
from kitfs.ops.pack.pack import pack_to_store
from kitfs.store.store import Store
from tests.conftest import needs

ROOT = os.geteuid() == 0
PLAIN = ["a", "b", "ab", "data", "data-v2", "src", "model.bin"]
ODD = [
    b"a..b",
    b"..a",
    b"...",
    b"a..",
    b" ",
    b"-",
    b"-C",
    b"--x",
    b"\xff\xfe",
    "é".encode(),
    "日本".encode(),
    b"a b",
    b"\\",
    b"a\\nb",
    b"*",
    b"[a]",
    b"!a",
    b"#a",
    b"%s",
    b"\x01\x7f",
    b'"',
    b"Kitfile",
    b"kitfile",
    b"x" * 99,
    b"y" * 101,
    b"z" * 155,
    b"w" * 255,
    "ü".encode() * 60,
    b"PaxHeaders.0",
    "😀".encode(),
]
MODES = [0o644, 0o755, 0o600, 0o4755, 0o2755, 0o1777, 0o7777, 0]
TARGETS = [b"a", b"../a", b"/etc", b".", b"nowhere"]
KINDS = ["file"] * 5 + ["dir"] * 4 + ["link", "fifo", "hard"]
SEGMENTS = st.one_of(st.sampled_from(PLAIN), st.sampled_from(["*", "?", "a*", "*b", "*a*", "da?a", "**"]))


@st.composite
def rules(draw: st.DrawFn) -> str:
    """Generate a line of a .kitignore."""
    segments = draw(st.lists(SEGMENTS, min_size=1, max_size=3))
    segments = [s for i, s in enumerate(segments) if i == 0 or (s, segments[i - 1]) != ("**", "**")]
    before = draw(st.sampled_from(["", "/", "!", "! ", "  "]))
    after = draw(st.sampled_from(["", "/", "  ", "\r"]))
    return before + "/".join(segments) + after


LINES = st.lists(st.one_of(rules(), st.sampled_from(["", "# a", "#*", "   "])), max_size=5)


# -- the rules


@dataclass
class Ignore:
    """A .kitignore as (negated, segments) for each line, followed by the four lines that kit adds."""

    patterns: list[tuple[bool, list[str]]]

    @classmethod
    def of(cls, lines: list[str]) -> Ignore:
        found = []
        for line in lines:
            text = line.strip()
            if not text or line.startswith("#"):
                continue
            back = text.startswith("!")
            found.append((back, text.removeprefix("!").strip().strip("/").split("/")))
        return cls([*found, *((False, [name]) for name in ("Kitfile", "kitfile", ".kitfile", ".kitignore"))])

    @property
    def takes_back(self) -> bool:
        return any(back for back, _ in self.patterns)

    def ignores(self, path: list[str]) -> bool:
        """Return whether a path is ignored.

        The last pattern that matches the path, or a directory above the path, decides.
        """
        above = [path[:n] for n in range(1, len(path) + 1)]
        decided = [back for back, pattern in self.patterns if any(matches(pattern, p) for p in above)]
        return bool(decided) and not decided[-1]


def matches(pattern: list[str], path: list[str]) -> bool:
    """Compare a pattern and a path by segments.

    ``**`` matches any number of segments, but at least one at the end of the pattern.
    """
    if not pattern:
        return not path
    if pattern[0] == "**":
        return bool(path) if len(pattern) == 1 else any(matches(pattern[1:], path[n:]) for n in range(len(path) + 1))
    return bool(path) and fits(pattern[0], path[0]) and matches(pattern[1:], path[1:])


def fits(pattern: str, name: str) -> bool:
    """Compare one segment. ``*`` matches any characters, and ``?`` matches one character."""
    if not pattern:
        return not name
    if pattern[0] == "*":
        return any(fits(pattern[1:], name[n:]) for n in range(len(name) + 1))
    return bool(name) and pattern[0] in ("?", name[0]) and fits(pattern[1:], name[1:])


def walked(directory: bytes, above: tuple[bytes, ...] = ()) -> Iterator[tuple[bytes, ...]]:
    """Return every path of a directory, in the order of filepath.Walk."""
    for name in sorted(os.listdir(directory)):
        yield (*above, name)
        full = os.path.join(directory, name)
        if stat.S_ISDIR(os.lstat(full).st_mode):
            yield from walked(full, (*above, name))


def within(path: list[str], directory: list[str]) -> bool:
    return path[: len(directory)] == directory


def expected(
    context: bytes, layer: list[str], others: list[list[str]], ignore: Ignore
) -> list[tuple[bytes, bool, int, bytes]]:
    """Return (name, whether the entry is a directory, mode, content) of every entry that a layer must contain."""

    def kept(path: list[str]) -> bool:
        theirs = any(within(path, other) and not within(layer, other) for other in others)
        return not ignore.ignores(path) and not theirs

    found = []
    for raw in walked(context):
        path = [os.fsdecode(name) for name in raw]
        full = os.path.join(context, *raw)
        about = os.lstat(full)
        directory = stat.S_ISDIR(about.st_mode)
        if not directory and not stat.S_ISREG(about.st_mode):
            continue
        if not within(path, layer) and not (directory and within(layer, path)):
            continue
        if not kept(path) or (not ignore.takes_back and not all(kept(path[:n]) for n in range(1, len(path)))):
            continue
        content = b"" if directory else read(full)
        found.append((b"/".join(raw), directory, stat.S_IMODE(about.st_mode), content))
    return found


def read(path: bytes) -> bytes:
    with open(path, "rb") as file:
        return file.read()


# -- trees on disk


def make(directory: bytes, dice: random.Random, files: list[bytes], depth: int = 0) -> None:
    """Fill a directory with random files.

    The target of a hard link is a file that was made before the link. Unless the test runs as root, every mode lets the
    owner read.
    """
    names = {name_of(dice) for _ in range(dice.randint(0 if depth else 3, 6 - depth))} | (
        {b"Kitfile"} if not depth else set()
    )
    for name in sorted(names):
        path = os.path.join(directory, name)
        kind = dice.choice(KINDS)
        mode = dice.choice([*MODES, dice.randrange(0o10000)])
        try:
            if kind == "link":
                os.symlink(dice.choice(TARGETS), path)
            elif kind == "fifo":
                os.mkfifo(path)
            elif kind == "dir":
                os.mkdir(path)
                if depth < 4:
                    make(path, dice, files, depth + 1)
                os.chmod(path, mode | (0 if ROOT else 0o700))
            elif kind == "hard" and files:
                os.link(dice.choice(files), path)
            else:
                with open(path, "wb") as file:
                    file.write(dice.randbytes(dice.choice([0, 1, 10, 511, 512, 513, 1600])))
                os.chmod(path, mode | (0 if ROOT else 0o600))
                files.append(path)
        except OSError:
            continue  # the path is too long, so the tree stays as it is


def name_of(dice: random.Random) -> bytes:
    choice = dice.random()
    if choice < 0.5:
        return dice.choice(PLAIN).encode()
    if choice < 0.8:
        return dice.choice(ODD)
    return dice.randbytes(dice.randint(1, 12)).translate(None, b"/\0\n").strip(b".") or b"x"


def packable(context: bytes) -> list[str]:
    """Return the context and every path in it that a Kitfile may name.

    Paths that lead out of the context are left out.
    """
    found = ["."]
    for raw in walked(context):
        path = b"/".join(raw)
        try:
            there = os.stat(os.path.join(context, path))
            text = path.decode()
        except (OSError, UnicodeDecodeError):
            continue
        inside = os.path.realpath(os.path.join(context, path)).startswith(os.path.realpath(context))
        if inside and (stat.S_ISREG(there.st_mode) or stat.S_ISDIR(there.st_mode)) and len(text) < 1000:
            found.append(text)
    return found


def packed(context: bytes, root: str, paths: list[str]) -> tuple[PackedKit, list[str]]:
    """Pack one code layer for each path, and return the kit and the files of its layers."""
    kitfile = Kitfile.from_json(
        json.dumps({"manifestVersion": "1.0.0", "package": {}, "code": [{"path": p} for p in paths]}).encode()
    )
    store = Store.open(root, counters=Counters(), log=logging.getLogger("kitfs.test"), free_share=0.0)
    try:
        made = pack_to_store(
            os.fsdecode(context), kitfile, store, [Reference.parse("a:b")], kit_format=KitFormat("1.7.0"), report=quiet
        )
        return made, [os.path.join(store.path(layer.digest), "rest") for layer in made.manifest.layers]
    finally:
        store.close()


def listed(archive: str) -> list[tuple[bytes, bool, int, bytes]]:
    """Return the entries of a layer as Python reads them, after checking that owners and times are the fixed ones."""
    found = []
    with tarfile.open(archive) as tar:
        for member in tar:
            assert (member.uid, member.gid, member.mtime, member.uname, member.gname) == (1000, 0, 0, "", "")
            data = tar.extractfile(member) if member.isfile() else None
            found.append((os.fsencode(member.name), member.isdir(), member.mode, data.read() if data else b""))
    return found


def extracted(archive: str, target: bytes) -> list[tuple[bytes, bool, int, bytes]]:
    """Return the entries of a layer as GNU tar extracts them, sorted.

    Directories that GNU tar creates without an entry are recognized by their mode and left out.
    """
    os.mkdir(target)
    command = [
        "tar",
        "--extract",
        "--preserve-permissions",
        "--no-same-owner",
        "--delay-directory-restore",
        "-f",
        archive,
        "-C",
        os.fsdecode(target),
    ]
    done = subprocess.run(command, capture_output=True, check=False, umask=0o027)
    assert (done.returncode, done.stderr) == (0, b""), done.stderr
    found = []
    for raw in walked(target):
        full = os.path.join(target, *raw)
        about = os.lstat(full)
        directory = stat.S_ISDIR(about.st_mode)
        found.append((b"/".join(raw), directory, stat.S_IMODE(about.st_mode), b"" if directory else read(full)))
    return sorted(found)


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 1 << 32), LINES, st.data())
def test_a_layer_contains_what_the_rules_say(seed: int, lines: list[str], data: st.DataObject) -> None:
    """Python's tarfile finds the names, order, types, modes and bytes that the rules require.

    GNU tar extracts the entries whose parent directories are not ignored.
    """
    needs("tar")
    scratch = tempfile.mkdtemp(prefix="kitfs-pack-")
    try:
        context = os.fsencode(os.path.join(scratch, "context"))
        os.mkdir(context)
        make(context, random.Random(seed), [])
        if lines:
            with open(os.path.join(context, b".kitignore"), "wb") as file:
                file.write("\n".join(lines).encode())
        paths = data.draw(
            st.lists(st.one_of(st.just("."), st.sampled_from(packable(context))), min_size=1, max_size=6, unique=True)
        )
        spelled = [data.draw(st.sampled_from([p, f"./{p}", f"{p}/", p.replace("/", "//")])) for p in paths]
        _, layers = packed(context, os.path.join(scratch, "store"), spelled)
        split = [[] if p == "." else p.split("/") for p in paths]
        for number, (layer, archive) in enumerate(zip(split, layers, strict=True)):
            rows = expected(context, layer, split, Ignore.of(lines))
            assert listed(archive) == rows
            assert extracted(archive, os.path.join(os.fsencode(scratch), b"out%d" % number)) == sorted(
                rows + made_up(rows)
            )
    finally:
        shutil.rmtree(scratch)


def made_up(rows: list[tuple[bytes, bool, int, bytes]]) -> list[tuple[bytes, bool, int, bytes]]:
    """Return the directories that tar creates without an entry.

    The .kitignore excludes such a directory, but not all of its children.
    """
    names = {row[0] for row in rows}
    missing = {name[:n] for name in names for n, c in enumerate(name) if c == 0x2F} - names
    return [(name, True, 0o750, b"") for name in missing]
