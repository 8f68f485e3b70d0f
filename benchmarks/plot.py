"""Draw the JSON results of ``python -m benchmarks`` as SVG for the manual and the README.

The pictures have a light and a dark palette and their own background, so they are legible on any page. They load no
other files.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable
from html import escape
from pathlib import Path
from typing import Any

WIDTH = 860
STYLE = """\
<style>
svg { --back: #ffffff; --ink: #1f2328; --soft: #59636e; --grid: #d1d9e0; --good: #1a7f37; --fair: #9a6700;
  --bad: #cf222e; --w0: #0969da; --w1: #54aeff; --w2: #8250df; --w3: #bc4c00; --w4: #bf3989; }
@media (prefers-color-scheme: dark) {
svg { --back: #0d1117; --ink: #e6edf3; --soft: #9198a1; --grid: #30363d; --good: #3fb950; --fair: #d29922;
  --bad: #f85149; --w0: #58a6ff; --w1: #a5d6ff; --w2: #bc8cff; --w3: #f0883e; --w4: #f778ba; } }
text { font: 12px ui-sans-serif, system-ui, sans-serif; fill: var(--ink); }
.soft { fill: var(--soft); } .title { font-size: 15px; font-weight: 600; } .end { text-anchor: end; }
.mid { text-anchor: middle; }
</style>"""


def _text(x: float, y: float, words: str, css: str = "left") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" class="{css}">{escape(words)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, style: str = "stroke: var(--grid)") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" style="{style}"/>'


def _picture(height: int, title: str, parts: Iterable[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">'
    back = f'<rect width="{WIDTH}" height="{height}" style="fill: var(--back)"/>'
    return "\n".join([head, f"<title>{escape(title)}</title>", STYLE, back, *parts, "</svg>", ""])


def machine_line(about: dict[str, Any]) -> str:
    """Return a line that says how values were measured: the machine, the size of the model, and the number of runs."""
    on = about["machine"]
    return f"{on['cpu']}, {on['memory']}, Linux {on['kernel']}; model of {about['mib']} MiB, medians of {about['runs']}"


# -- the table


def _distance(target: dict[str, Any], value: float, limit: float) -> float:
    """Return a value divided by its limit, or the inverse if ``at_least`` is set.

    The limit is met if the result is <= 1.
    """
    worse, better = (limit, value) if target["at_least"] else (value, limit)
    return max(worse, 0.01) / max(better, 0.01)


def table(about: dict[str, Any]) -> str:
    """Draw the distance of each number from its goal on a logarithmic scale."""
    left, right, step, top = 290.0, WIDTH - 150.0, 19, 92
    low, high = 0.1, 10.0

    def at(distance: float) -> float:
        place = (math.log(min(max(distance, low), high)) - math.log(low)) / (math.log(high) - math.log(low))
        return left + place * (right - left)

    parts = [_text(16, 26, "kitfs against its peers", "title"), _text(16, 46, machine_line(about), "soft")]
    groups = [(row, [one for one in row["targets"] if one["median"] is not None]) for row in about["rows"]]
    groups = [(row, targets) for row, targets in groups if targets]
    bottom = top + step * sum(1 + len(targets) for _, targets in groups)
    for mark, words in ((0.1, "10 × better"), (1.0, "goal"), (10.0, "10 × worse")):
        parts += [_text(at(mark), top - 14, words, "mid soft"), _line(at(mark), top - 8, at(mark), bottom)]
    y = float(top)
    for row, targets in groups:
        y += step
        parts.append(_text(16, y - 5, f"{row['number']}  {row['title'].replace('`', '')}", "soft"))
        for target in targets:
            y += step
            parts += [_text(36, y - 5, target["name"].replace("`", "")), *_bar(target, at, y - 9)]
            parts.append(_text(WIDTH - 16, y - 5, _number(target), "end"))
    parts.append(
        _text(
            16,
            bottom + 22,
            "Green numbers meet the goal, yellow numbers only the must (the tick), and red numbers neither.",
            "soft",
        )
    )
    return _picture(bottom + 36, "kitfs against its peers", parts)


def _bar(target: dict[str, Any], at: Callable[[float], float], y: float) -> list[str]:
    """Draw a line from the goal of a number to the number."""
    goal, must = target["goal"], target["must"]
    distance = _distance(target, target["median"], goal)
    allowed = _distance(target, must, goal) if must is not None else 1.0
    colour = f"var(--{'good' if distance <= 1.0 else 'fair' if distance <= allowed else 'bad'})"
    parts = [_line(at(1.0), y, at(distance), y, f"stroke: {colour}; stroke-width: 4"),
             f'<circle cx="{at(distance):.1f}" cy="{y:.1f}" r="4.5" style="fill: {colour}"/>']  # fmt: skip
    if must is not None:
        parts.append(_line(at(allowed), y - 6, at(allowed), y + 6, "stroke: var(--ink); stroke-width: 1.5"))
    return parts


def _number(target: dict[str, Any]) -> str:
    """Return a number and its goal as text."""
    unit = f" {target['unit']}" if target["unit"] in ("s", "MiB") else ""
    return f"{target['median']:.2f}{unit}  ({'≥' if target['at_least'] else '≤'} {target['goal']:g})"


# -- the curve


def curve(about: dict[str, Any]) -> str:
    """Draw one bar for each measured time until a part of the model was read. Each link has one panel."""
    points = about["curve"]
    links = list(dict.fromkeys(point["link"] for point in points))
    ways = list(dict.fromkeys(point["way"] for point in points))
    parts = [_text(16, 26, f"Until a program has read a part of a model of {about['mib'] / 1024:g} GiB", "title"),
             _text(16, 46, machine_line(about), "soft")]  # fmt: skip
    x = 16.0
    for n, way in enumerate(ways):
        parts.append(f'<rect x="{x:.0f}" y="58" width="12" height="12" style="fill: var(--w{n})"/>')
        parts.append(_text(x + 17, 68, way))
        x += 34 + 6.4 * len(way)
    height, gap = 220, 64
    for n, link in enumerate(links):
        top = 106 + n * (height + gap)
        here = [point for point in points if point["link"] == link]
        parts += _panel(here, ways, top, height, link or "loopback")
    return _picture(106 + len(links) * (height + gap) - 10, "Time until a part of a model is read", parts)


def _panel(points: list[dict[str, Any]], ways: list[str], top: int, height: int, name: str) -> list[str]:
    """Draw the bars of one link, grouped by the part that was read."""
    left, bottom = 56.0, top + height
    medians = {(point["percent"], point["way"]): statistics.median(point["seconds"]) for point in points}
    tick = tick_distance(max(medians.values()))
    most = 4 * tick
    percents = list(dict.fromkeys(point["percent"] for point in points))
    group = (WIDTH - 16 - left) / len(percents)
    bar = group * 0.84 / len(ways)
    parts = [_text(16, top - 14, f"{name}: seconds", "soft")]
    for n in range(5):
        y = bottom - height * n / 4
        parts += [_line(left, y, WIDTH - 16, y), _text(left - 6, y + 4, f"{tick * n:g}", "end soft")]
    for g, percent in enumerate(percents):
        start = left + g * group + group * 0.08
        parts.append(_text(start + group * 0.42, bottom + 18, f"{percent} % of the file", "mid"))
        for n, way in enumerate(ways):
            if (seconds := medians.get((percent, way))) is None:
                continue
            tall = height * seconds / most
            x = start + n * bar
            parts.append(f'<rect x="{x:.1f}" y="{bottom - tall:.1f}" width="{bar - 3:.1f}" height="{tall:.1f}"'
                         f' style="fill: var(--w{n})"/>')  # fmt: skip
            parts.append(_text(x + (bar - 3) / 2, bottom - tall - 4, f"{seconds:.1f}", "mid"))
    return parts


def tick_distance(most: float) -> float:
    """Return a round distance between grid lines. Four times this distance is at least ``most``."""
    power = float(10 ** math.floor(math.log10(most / 4)))
    return next(step * power for step in (1.0, 2.0, 2.5, 5.0, 10.0) if step * power * 4 >= most)


def markdown(about: dict[str, Any]) -> str:
    """Return the rows as a Markdown table for the manual."""
    lines = ["| # | what | | measured | goal | must |", "|---|---|---|---|---|---|"]
    for row in about["rows"]:
        for n, target in enumerate(row["targets"]):
            sign = "≥" if target["at_least"] else "≤"
            goal, must = (
                f"{sign} {limit:g}" if limit is not None else "" for limit in (target["goal"], target["must"])
            )
            unit = f" {target['unit']}" if target["unit"] in ("s", "MiB") else ""
            found = f"{target['median']:.2f}{unit}" if target["median"] is not None else "not measured"
            first = f"{row['number']} | {row['title']}" if n == 0 else " | "
            lines.append(f"| {first} | {target['name']} | {found} | {goal} | {must} |")
    return "\n".join(lines)


def draw(sources: list[Path], directory: Path) -> list[Path]:
    """Draw the results in the JSON files into a directory, and return the pictures."""
    made = []
    for source in sources:
        about = json.loads(source.read_text())
        for name, picture in (("rows", table), ("curve", curve)):
            if about.get(name):
                made.append(directory / f"benchmarks-{name}.svg")
                made[-1].write_text(picture(about))
    return made
