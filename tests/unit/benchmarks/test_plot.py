"""The pictures of the benchmarks are valid XML and show every measured number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks import plot

ABOUT: dict[str, Any] = {
    "machine": {"cpu": "2 x <CPU>", "memory": "24 GiB", "kernel": "6.18", "python": "3.11", "load": "0.1"},
    "mib": 512,
    "runs": 3,
}


def target(name: str, median: float | None, **more: Any) -> dict[str, Any]:
    return {"name": name, "unit": "", "goal": 1.5, "must": 2.0, "at_least": False, "median": median} | more


ROWS = ABOUT | {
    "rows": [
        {"number": 1, "title": "cold & full", "targets": [target("time", 1.25), target("later", 3.5, unit="s")]},
        {"number": 5, "title": "sealed", "targets": [target("mmap", None)]},
        {"number": 9, "title": "left", "targets": [target("processes", 0.0, goal=0, must=0)]},
    ]
}
CURVE = ABOUT | {
    "curve": [
        {"link": link, "way": way, "percent": percent, "seconds": [0.5, 7.25, 9.0]}
        for link in ("", "1 Gbit/s 20 ms")
        for way in ("kitfs mount", "curl -o")
        for percent in (1, 100)
    ]
}


def words(picture: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}text")]


def test_the_table_shows_what_was_measured_and_its_goal() -> None:
    shown = words(plot.table(ROWS))
    assert {"1.25  (≤ 1.5)", "3.50 s  (≤ 1.5)", "0.00  (≤ 0)", "1  cold & full"} <= set(shown)
    assert "mmap" not in shown


def test_the_curve_shows_the_median_of_every_bar() -> None:
    shown = words(plot.curve(CURVE))
    assert shown.count("7.2") == 8
    assert {"loopback: seconds", "1 Gbit/s 20 ms: seconds"} <= set(shown)


@pytest.mark.parametrize(("most", "tick"), [(0.4, 0.1), (4.1, 2.0), (8.5, 2.5), (39.0, 10.0)])
def test_lines_are_at_round_numbers(most: float, tick: float) -> None:
    assert plot.tick_distance(most) == pytest.approx(tick)


def test_pictures_are_drawn_from_files(tmp_path: Path) -> None:
    sources = [tmp_path / "rows.json", tmp_path / "curve.json"]
    for source, about in zip(sources, (ROWS, CURVE), strict=True):
        source.write_text(json.dumps(about))
    made = plot.draw(sources, tmp_path)
    assert [path.name for path in made] == ["benchmarks-rows.svg", "benchmarks-curve.svg"]
    assert all("prefers-color-scheme: dark" in path.read_text() for path in made)


def test_the_table_of_the_manual_has_a_line_for_every_target() -> None:
    lines = plot.markdown(ROWS).splitlines()
    assert lines[2] == "| 1 | cold & full | time | 1.25 | ≤ 1.5 | ≤ 2 |"
    assert lines[4] == "| 5 | sealed | mmap | not measured | ≤ 1.5 | ≤ 2 |"
    assert len(lines) == 6
