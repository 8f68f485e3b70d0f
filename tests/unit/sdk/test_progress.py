"""The SDK shows the progress of a verb, or calls a function with each event."""

from __future__ import annotations

import io
import logging
import re

import pytest

from kitfs.ops.events import Event, Moved, Noted, Total, Warned
from kitfs.sdk.progress import Bar, Line, Meter, display_on, reporting

MIB = 1 << 20


class Terminal(io.StringIO):
    """A stream that reports that it is a terminal."""

    def isatty(self) -> bool:
        return True


class Clock:
    """A clock. Tests set its time."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_callback_gets_every_event_as_it_is() -> None:
    events: list[Event] = [Total("a", 10, "model"), Moved("a", 10), Noted("step"), Warned("careful")]
    seen: list[Event] = []
    with reporting(seen.append, "pull") as report:
        for event in events:
            report(event)
    assert seen == events


@pytest.mark.parametrize("progress", [True, False])
def test_without_a_callback_a_warning_goes_to_the_log(progress: bool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "kitfs"), reporting(progress, "pull") as report:
        report(Warned("labels are ignored"))
        report(Noted("step"))
    assert [record.getMessage() for record in caplog.records] == ["labels are ignored"]


def test_without_progress_nothing_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    with reporting(False, "pull") as report:
        report(Total("a", 10))
        report(Moved("a", 10))
    assert capsys.readouterr() == ("", "")


def test_a_terminal_has_a_bar_that_names_the_verb_and_counts_bytes() -> None:
    stream = Terminal()
    meter = Meter(display_on(stream, "pull r.example.com/[bold]a:v1"))
    meter(Total("a", 3 * MIB))
    meter(Total("b", MIB))
    meter(Moved("a", 3 * MIB))
    meter(Moved("b", MIB))
    meter.close()
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    assert "pull r.example.com/[bold]a:v1" in text
    assert "4.0/4.0 MiB" in text


def test_a_bar_of_a_verb_that_moved_nothing_is_not_drawn() -> None:
    stream = Terminal()
    Bar(stream, "pull").close()
    assert "pull" not in stream.getvalue()


def test_a_live_line_is_written_over_itself_and_ends_with_the_last_state() -> None:
    stream, clock = io.StringIO(), Clock()
    meter = Meter(Line(stream, "pull a", live=True, clock=clock))
    meter(Total("a", 4 * MIB))
    for second in (1, 2):
        clock.now = second
        meter(Moved("a", 2 * MIB))
    meter.close()
    lines = stream.getvalue().split("\r")
    assert lines[1].rstrip() == "pull a: 2.0 of 4.0 MiB (50 %), 2.0 MiB/s"
    assert lines[-1] == "pull a: 4.0 of 4.0 MiB (100 %), 2.0 MiB/s\n"


def test_where_no_line_can_be_rewritten_a_line_comes_every_five_seconds() -> None:
    stream, clock = io.StringIO(), Clock()
    meter = Meter(Line(stream, "pull a", live=False, clock=clock))
    meter(Total("a", 100 * MIB))
    for second in range(11):
        clock.now = second
        meter(Moved("a", MIB))
    meter.close()
    assert stream.getvalue().splitlines() == [
        "pull a: 6.0 of 100.0 MiB (6 %), 1.2 MiB/s",
        "pull a: 11.0 of 100.0 MiB (11 %), 1.1 MiB/s",
    ]


def test_bytes_that_must_be_done_again_are_taken_back() -> None:
    stream, clock = io.StringIO(), Clock()
    meter = Meter(Line(stream, "pull a", live=True, clock=clock))
    meter(Total("a", 2 * MIB))
    meter(Moved("a", 2 * MIB))
    meter(Moved("a", -MIB))
    meter.close()
    assert "1.0 of 2.0 MiB (50 %)" in stream.getvalue()
