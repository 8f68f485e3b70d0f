"""Verbs show their progress as lines, as bars on a terminal, or as JSON for programs."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kitfs import manual
from kitfs.cli import bars, output, progress
from kitfs.cli.progress import Reporter
from kitfs.oci.names import Digest
from kitfs.ops.events import Event, Moved, Noted, Saved, Sent, Total, Warned
from tests import kits
from tests.fakes.faults import Stall
from tests.fakes.registry import FakeRegistry
from tests.interpreters import REPOSITORY

MiB = 1 << 20
DIGEST = Digest.of(b"x")
EVENTS: list[Event] = [
    Noted("Pulling a.test/b:v1"),
    Total("one", 10, "w.bin"),
    Moved("one", 4),
    Moved("one", -2),
    Moved("one", 8),
    Sent("blob", DIGEST, 10, "pulled"),
    Saved("layer", "model", DIGEST, True),
    Saved("layer", "code", DIGEST, False),
    Saved("config", "", DIGEST, True),
    Saved("manifest", "", DIGEST, False),
    Warned("something"),
]
LINES = f"""\
Pulling a.test/b:v1
Saved model layer: {DIGEST}
Already saved code layer: {DIGEST}
Saved configuration: {DIGEST}
Manifest already exists in storage: {DIGEST}
Pulled it
"""


@pytest.mark.parametrize("mode", ["none", "plain", "fancy", "auto"])
def test_short_work_is_quiet(capsys: pytest.CaptureFixture[str], mode: str) -> None:
    """Short work prints its result on stdout and its warnings on stderr, and shows no progress."""
    with Reporter(mode) as report:
        for event in EVENTS:
            report(event)
        report.say("Pulled it", event="done")
    assert capsys.readouterr() == (LINES, "kitfs: warning: something\n")


def test_one_object_per_line(capsys: pytest.CaptureFixture[str]) -> None:
    """With JSON, stdout has one line with an object for every event and for the result. Stderr is empty."""
    with Reporter("auto", as_json=True) as report:
        for event in EVENTS:
            report(event)
        report.say("Pulled it", event="done", digest=DIGEST)
    out, err = capsys.readouterr()
    assert [json.loads(line) for line in out.splitlines()] == [
        {"event": "noted", "text": "Pulling a.test/b:v1"},
        {"event": "total", "name": "one", "size": 10, "label": "w.bin"},
        {"event": "moved", "name": "one", "size": 4},
        {"event": "moved", "name": "one", "size": -2},
        {"event": "moved", "name": "one", "size": 8},
        {"event": "sent", "what": "blob", "digest": DIGEST, "size": 10, "how": "pulled"},
        {"event": "saved", "what": "layer", "kind": "model", "digest": DIGEST, "added": True},
        {"event": "saved", "what": "layer", "kind": "code", "digest": DIGEST, "added": False},
        {"event": "saved", "what": "config", "kind": "", "digest": DIGEST, "added": True},
        {"event": "saved", "what": "manifest", "kind": "", "digest": DIGEST, "added": False},
        {"event": "warned", "text": "something"},
        {"event": "done", "digest": DIGEST},
    ]
    assert err == ""


def test_every_kind_of_event_is_documented() -> None:
    """The manual's page about progress lists every event with its fields."""
    text = manual.read("progress")
    rows = dict(re.findall(r"^\| `(\w+)` \| ((?:`\w+`(?:, )?)+) \|", text, re.MULTILINE))
    for event in EVENTS:
        name, *fields = (progress.as_json(event)["event"], *progress.as_json(event))
        assert re.findall(r"`(\w+)`", rows[name]) == fields[1:], name
    assert "| `done` |" in text


def test_names_drive_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter("none") as report:
        report(Noted("Pulling \x1b[31mred"))
        report(Warned("\x07"))
    assert capsys.readouterr() == ("Pulling \\x1b[31mred\n", "kitfs: warning: \\x07\n")


class Err:
    """A stderr that sets the event ``said`` as soon as a line is written to it."""

    def __init__(self) -> None:
        self.text = ""
        self.said = threading.Event()

    def isatty(self) -> bool:
        return False

    def write(self, text: str) -> None:
        self.text += text
        self.said.set()


def test_long_work_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal, lines on stderr show the total progress. Only the result is printed on stdout."""
    err = Err()
    monkeypatch.setattr(sys, "stderr", err)
    with Reporter("auto", interval=0.01) as report:
        report(Noted("Pulling"))
        assert not err.said.wait(0.1)  # no progress is reported before the first total is known
        report(Total("one", 3 * MiB, "w.bin"))
        report(Total("two", 1 * MiB, "d.bin"))
        report(Moved("one", 1 * MiB))
        err.said.clear()
        assert err.said.wait(20)
        assert err.said.wait(20)
        report.say("Pulled")
    assert re.fullmatch(r"kitfs: 1\.0 MiB of 4\.0 MiB \(25%\), \S+ [KMG]?i?B/s", err.text.splitlines()[-1])
    assert capsys.readouterr().out == "Pulling\nPulled\n"


# -- a terminal


class Screen:
    """A terminal of 100 columns. It records the lines that a person would see, without colours."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        self.raw = ""
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self.master, 65536)
            except OSError:  # EIO means that no process has opened the other end
                data = b""
            with self._changed:
                self.raw += data.decode()
                self._ended = not data
                self._changed.notify_all()
            if not data:
                return

    def wait_for(self, fact: Callable[[list[str]], bool]) -> list[str]:
        with self._changed:
            self._changed.wait_for(lambda: fact(self.lines()) or self._ended, 60)
            assert fact(self.lines()), self.raw[-3000:]
            return self.lines()

    def end(self) -> list[str]:
        os.close(self.slave)
        self._thread.join()
        os.close(self.master)
        return self.lines()

    def lines(self) -> list[str]:
        rows, at, column = [""], 0, 0
        for part in re.findall(r"\x1b\[[?0-9;]*[a-zA-Z]|\r|\n|[^\x1b\r\n]+", self.raw):
            if part == "\r":
                column = 0
            elif part == "\n":
                at += 1
                rows += [""] * (at + 1 - len(rows))
            elif up := re.fullmatch(r"\x1b\[(\d*)A", part):
                at -= int(up[1] or 1)
            elif part == "\x1b[2K":
                rows[at] = ""
            elif not part.startswith("\x1b"):
                rows[at] = rows[at][:column].ljust(column) + part + rows[at][column + len(part) :]
                column += len(part)
        return [row.rstrip() for row in rows if row.strip()]


@pytest.fixture
def screen() -> Iterator[Screen]:
    made = Screen()
    yield made
    for fd in (made.slave, made.master):
        try:
            os.close(fd)
        except OSError:
            pass


def environment(tmp_path: Path) -> dict[str, str]:
    kept = {key: os.environ[key] for key in ("PATH", "LANG") if key in os.environ}
    homes = {
        name: str(tmp_path / name)
        for name in ("HOME", "KITOPS_HOME", "DOCKER_CONFIG", "KITFS_CACHE_DIR", "KITFS_RUN_DIR")
    }
    return {**kept, **homes, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}


def held(fake: FakeRegistry) -> tuple[str, kits.Kit, list[Stall]]:
    """Return the reference of a kit, the kit, and two stalls.

    Each stall stops the transfer of one layer in the middle.
    """
    parts = [
        kits.part("model", "[red]\x1b[2J.bin", os.urandom(2 * MiB), format="raw"),
        kits.part("dataset", "d.bin", os.urandom(MiB), format="raw"),
    ]
    kit = kits.build([*parts, kits.part("code", "c.py", b"c", format="raw")])
    ref = fake.put_kit("team/kit", kit, "v1")
    stalls = [Stall(MiB // 2), Stall(MiB // 2)]
    for digest, stall in zip((kit.layers[0], kit.layers[2]), stalls, strict=True):
        fake.fail(digest, stall)
    return ref, kit, stalls


def kitfs(*args: str) -> list[str]:
    return [sys.executable, "-m", "kitfs", *args]


def pulled(ref: str, kit: kits.Kit) -> list[str]:
    """Return the lines that a pull prints on a terminal. The digest in the lines is shortened."""
    return [f"Pulling {ref}", f"Pulled {kit.digest[:19]}", "4 blobs: 4 pulled (3.0 MiB)"]


@pytest.mark.parametrize("piped", [False, True], ids=["all on the terminal", "stdout piped"])
def test_bars_come_and_go(tmp_path: Path, screen: Screen, piped: bool) -> None:
    """After a second, a pull on a terminal draws a bar for each active transfer.

    When the pull is finished, the bars are erased.
    """
    with FakeRegistry() as fake:
        ref, kit, stalls = held(fake)
        streams: dict[str, Any] = {
            "stdin": screen.slave,
            "stderr": screen.slave,
            "stdout": subprocess.PIPE if piped else screen.slave,
        }
        process = subprocess.Popen(kitfs("pull", ref), env=environment(tmp_path), cwd=REPOSITORY, **streams)
        try:
            above = [] if piped else [f"Pulling {ref}"]
            screen.wait_for(lambda lines: lines[:-1] == above and bool(re.search("total .* MiB", "".join(lines[-1:]))))
            for stall in stalls:
                stall.until.set()
            out, _ = process.communicate(timeout=60)
        finally:
            process.kill()
            process.wait()
    assert process.returncode == 0
    assert screen.end() == ([] if piped else pulled(ref, kit))
    if piped:
        assert out.decode().splitlines() == [f"Pulling {ref}", f"Pulled {kit.digest}"]


@pytest.mark.parametrize("mode", ["none", "plain"])
def test_no_bars_where_none_are_wanted(tmp_path: Path, screen: Screen, mode: str) -> None:
    """With --progress none or plain, no bars are drawn, even on a terminal."""
    with FakeRegistry() as fake:
        ref, kit, stalls = held(fake)
        process = subprocess.Popen(
            kitfs("pull", ref, "--progress", mode),
            env=environment(tmp_path),
            cwd=REPOSITORY,
            stderr=screen.slave,
            stdout=screen.slave,
        )
        try:
            assert all(stall.reached.wait(60) for stall in stalls)
            for stall in stalls:
                stall.until.set()
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()
    assert screen.end() == pulled(ref, kit)
    assert "\x1b" not in screen.raw


def test_bars_of_what_moves(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only active transfers have bars. Other lines are printed above the bars.

    Labels are printed without interpreting markup, and with their control characters escaped.
    """
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with open(screen.slave, "w", closefd=False) as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setattr(sys, "stdout", terminal)
        with Reporter("auto", delay=0.0) as report:
            for name, label in (("a", "[red]\x1b[2J.bin"), ("b", "d.bin"), ("c", "waits")):
                report(Total(name, 2 * MiB, label))
            report(Moved("a", MiB))
            report(Moved("b", MiB // 2))
            drawn = screen.wait_for(lambda lines: len(lines) == 3 and any("1.5/6.0 MiB" in line for line in lines))
            assert [line.split()[0] for line in drawn] == ["[red]\\x1b[2J.bin", "d.bin", "total"]
            assert "1.0/2.0 MiB" in next(line for line in drawn if "red" in line)
            report(Moved("b", 2 * MiB - MiB // 2))
            report(Noted("Pulling referenced image a.test/b:v1"))
            drawn = screen.wait_for(lambda lines: len(lines) == 3 and not any("d.bin" in line for line in lines))
            assert drawn[0] == "Pulling referenced image a.test/b:v1"
            report.say("Pulled it")
        terminal.flush()
    assert screen.end() == ["Pulling referenced image a.test/b:v1", "Pulled it"]


@pytest.mark.parametrize("width", [30, 40, 59, 60, 80, 100, 200])
def test_a_bar_is_one_line(screen: Screen, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """On a narrow terminal, long names are cut off at the beginning, and the size is always shown.

    The total is on the last line.
    """
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with open(screen.slave, "w", closefd=False) as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with Reporter("auto", delay=0.0) as report:
            names = [f"model/ordner-für-größe/model-{n:05}-of-00003.safetensors" for n in range(3)]
            for name in names:
                report(Total(name, 900 * MiB + 7, name))
            for name in names[:2]:
                report(Moved(name, 399 * MiB))
            screen.wait_for(lambda lines: len(lines) == 3 and any("0.7/2.6 GiB" in line for line in lines))
            report(Moved(names[2], 1023 * MiB // 2))
            drawn = screen.wait_for(lambda lines: len(lines) == 4 and any("1.2/2.6 GiB" in line for line in lines))
            assert [("399.0/900.0 MiB" in row, "511.5/900.0 MiB" in row) for row in drawn] == [(True, False)] * 2 + [
                (False, True),
                (False, False),
            ]
            assert drawn[-1].startswith("total ")
            assert max(len(row) for row in drawn) <= width
            assert all(("iB/s" in row or "0 B/s" in row) == (width >= 60) for row in drawn)
    screen.end()


def test_a_speed_is_that_of_the_last_seconds() -> None:
    """While a transfer receives nothing, its speed is shown as zero, and no remaining time is shown."""
    now = [0.0]
    speed = bars.Speed(0, lambda: now[0])
    for second in range(1, 8):
        now[0] = float(second)
        speed.tell(second * MiB)
    assert speed.now() == MiB
    now[0] = 60.0
    assert (speed.now(), bars.time_left(5 * MiB, speed.now()), bars.time_left(65 * MiB, MiB)) == (
        0.0,
        "-:--:--",
        "0:01:05",
    )


@pytest.mark.parametrize(
    ("done", "total", "words"),
    [
        (0, 0, "0/0 B"),
        (12, 900, "12/900 B"),
        (512, 1024, "0.5/1.0 KiB"),
        ((1 << 20) - 1, 1 << 20, "0.9/1.0 MiB"),
        (1, 5 << 60, "0.0/5120.0 PiB"),
    ],
)
def test_sizes_are_in_one_unit(done: int, total: int, words: str) -> None:
    """The transferred size is shown in the unit of the total size. Both are rounded down."""
    assert bars.sizes(done, total) == words


class Terminal(io.StringIO):
    """A stream that reports that it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_verb_without_bars_says_that_it_works_until_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal, a verb without bars shows a waiting line. The line is erased before the result is printed.

    The line is not shown for short work, without a terminal, or with --progress none.
    """
    out, err = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    looked = threading.Event()

    def fetched() -> int:
        looked.set()
        return 3 * MiB

    with progress.Waiting("auto", fetched, delay=0.01, interval=0.01):
        assert looked.wait(20)
        output.put("the answer")
        told = err.getvalue()
        assert re.match(r"\rkitfs: \d+ s, 3\.0 MiB fetched\x1b\[K", told)
        assert told.endswith("\r\x1b[K")
        output.put("more of it")
    assert (out.getvalue(), err.getvalue()) == ("the answer\nmore of it\n", told)
    for mode, stream in (("none", Terminal()), ("auto", io.StringIO())):
        monkeypatch.setattr(sys, "stderr", stream)
        with progress.Waiting(mode, fetched, delay=0.01, interval=0.01):
            threading.Event().wait(0.05)
        assert stream.getvalue() == ""
    monkeypatch.setattr(sys, "stderr", err := Terminal())
    with progress.Waiting("auto", fetched, delay=60.0):
        pass
    assert err.getvalue() == ""


def test_a_terminal_names_each_layer_and_sums_up_what_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digests are shortened. The summary counts uploaded blobs, and the blobs that the target had already."""
    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    with Reporter("none") as report:
        report(Saved("layer", "model", DIGEST, True, "model/w.bin", 3 * MiB))
        report(Sent("blob", DIGEST, 2 * MiB, "uploaded"))
        report(Sent("blob", DIGEST, MiB, "exists"))
        report(Sent("manifest", DIGEST, 1, "uploaded"))
        report.end(f"Pushed {report.short(DIGEST)}")
    short = DIGEST[:19]
    assert out.getvalue().splitlines() == [
        f"Saved model layer: {short}  model/w.bin (3.0 MiB)",
        f"Pushed {short}",
        "2 blobs: 1 uploaded (2.0 MiB), 1 already there (1.0 MiB)",
        "1 layer: 1 saved (3.0 MiB)",
    ]


def test_digests_are_full_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert Reporter("none", full=True).short(DIGEST) == DIGEST
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert Reporter("none").short(DIGEST) == DIGEST
