"""The table of the benchmarks has a description for every row, and decides whether a target is met."""

from __future__ import annotations

from benchmarks import rows
from benchmarks.table import ROWS, Absent, Result, Row, Sample, Target, speed, times

SLOW = Target(name="time", goal=1.5, must=2.0)
FAST = Target(name="speed", goal=0.75, must=0.6, at_least=True)


def result(*targets: Target) -> Result:
    return Result(Row(1, "a row", targets, lambda bench: {}))


def test_the_table_has_seventeen_rows_which_say_what_they_measure() -> None:
    assert rows.__all__
    assert sorted(ROWS) == list(range(1, 19))
    assert [number for number, row in ROWS.items() if not row.describes] == []


def test_a_ratio_of_times_is_ours_by_theirs_and_one_of_speeds_the_reverse() -> None:
    assert times(3.0, 2.0).value == 1.5
    assert speed(2.0, 1.5).value == 0.75


def test_the_median_of_the_runs_decides() -> None:
    of = result(SLOW)
    for value in (1.0, 9.0, 2.0):
        of.add({"time": Sample(value)})
    assert of.missed() == []
    assert "2.00  (1.00 to 9.00)" in of.lines()[1]
    assert "goal ≤ 1.5: missed" in of.lines()[1]
    assert "must ≤ 2: met" in of.lines()[1]


def test_a_speed_below_its_limit_is_missed() -> None:
    of = result(FAST)
    of.add({"speed": Sample(0.5)})
    assert of.missed() == [FAST]


def test_what_could_not_be_measured_is_missed_and_says_why() -> None:
    of = result(SLOW, FAST)
    of.add({"time": Sample(1.0), "speed": Absent("not sealed: tmpfs")})
    assert of.missed() == [FAST]
    assert of.lines()[2].endswith("not measured: not sealed: tmpfs")
    assert [one["absent"] for one in of.as_json()["targets"]] == [None, "not sealed: tmpfs"]
