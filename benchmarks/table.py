"""Define the rows of the table, their targets and how a row is printed. Nothing in this module measures."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from benchmarks.machine import Bench


@dataclass(frozen=True, slots=True)
class Sample:
    """A number from one run: a ratio and the two measurements that it compares, or a single measurement."""

    value: float
    ours: float | None = None
    theirs: float | None = None


def times(ours: float, theirs: float) -> Sample:
    """Return the time of kitfs divided by that of its peer."""
    return Sample(ours / theirs, ours, theirs)


def speed(ours: float, theirs: float) -> Sample:
    """Return the speed of kitfs divided by that of its peer. Both arguments are seconds."""
    return Sample(theirs / ours, ours, theirs)


@dataclass(frozen=True, slots=True)
class Absent:
    """The reason why a number could not be measured."""

    reason: str


Found = Mapping[str, "Sample | Absent"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A number with its limits. ``goal`` and ``must`` are None if the table sets no such limit.

    ``unit`` is "" for a ratio. With ``at_least``, the number must not be below its limits.
    """

    name: str
    goal: float | None = None
    must: float | None = None
    unit: str = ""
    at_least: bool = False

    def meets(self, value: float, limit: float) -> bool:
        """Return whether a number meets a limit. Both are rounded as they are printed."""
        value, limit = round(value, 2), round(limit, 2)
        return value >= limit if self.at_least else value <= limit


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table.

    ``measure`` measures every target once, and ``needs`` lists the programs that ``measure`` runs.
    """

    number: int
    title: str
    targets: tuple[Target, ...]
    measure: Callable[[Bench], Found] = field(repr=False)
    needs: tuple[str, ...] = ()

    @property
    def describes(self) -> str:
        """Return a description of the measurement on both sides."""
        return self.measure.__doc__ or ""

    def only(self, text: str) -> Row:
        """Return the row with only the targets whose name contains ``text``."""
        return replace(self, targets=tuple(target for target in self.targets if text in target.name))


ROWS: Final[dict[int, Row]] = {}


def row(
    number: int, title: str, *targets: Target, needs: tuple[str, ...] = ()
) -> Callable[[Callable[[Bench], Found]], Callable[[Bench], Found]]:
    """Return a decorator that makes a function a row of the table."""

    def add(measure: Callable[[Bench], Found]) -> Callable[[Bench], Found]:
        ROWS[number] = Row(number, title, targets, measure, ("docker-registry", *needs))
        return measure

    return add


class Result:
    """The results of all runs of a row."""

    def __init__(self, of: Row) -> None:
        self.row = of
        self._samples: dict[str, list[Sample]] = {target.name: [] for target in of.targets}
        self._absent: dict[str, str] = {}

    def add(self, found: Found) -> None:
        """Add the numbers of a run. Numbers for which the row has no target are ignored."""
        for name, sample in found.items():
            if name not in self._samples:
                continue
            if isinstance(sample, Absent):
                self._absent[name] = sample.reason
            else:
                self._samples[name].append(sample)

    def skip(self, reason: str) -> None:
        """Record why nothing can be measured."""
        self._absent = {target.name: reason for target in self.row.targets}

    def missed(self) -> list[Target]:
        """Return the targets whose *must* is not met, including those that were not measured."""
        return [one for one in self.row.targets if one.must is not None and not self._met(one, one.must)]

    def _median(self, target: Target) -> float | None:
        samples = self._samples[target.name]
        return statistics.median(one.value for one in samples) if samples else None

    def _met(self, target: Target, limit: float) -> bool:
        value = self._median(target)
        return value is not None and target.meets(value, limit)

    def lines(self) -> list[str]:
        """Return the row as text, with one line for each target below its title."""
        return [f"{self.row.number:2}  {self.row.title}", *map(self._line, self.row.targets)]

    def _line(self, target: Target) -> str:
        samples = self._samples[target.name]
        name = f"      {target.name:34} "
        if not samples:
            return f"{name}not measured: {self._absent.get(target.name, 'the row did not report it')}"
        values = sorted(one.value for one in samples)
        text = f"{statistics.median(values):.2f}{target.unit and ' ' + target.unit}"
        line = f"{name}{text:>10}  ({values[0]:.2f} to {values[-1]:.2f})".ljust(70)
        for word, limit in (("goal", target.goal), ("must", target.must)):
            line += " " + (f"{word} {'≥' if target.at_least else '≤'} {limit:g}: {self._verdict(target, limit)}"
                           if limit is not None else "").ljust(21)  # fmt: skip
        if samples[0].ours is not None and samples[0].theirs is not None:
            ours = statistics.median(one.ours for one in samples if one.ours is not None)
            theirs = statistics.median(one.theirs for one in samples if one.theirs is not None)
            line += f" {ours:.2f} s, peer {theirs:.2f} s"
        return line.rstrip()

    def _verdict(self, target: Target, limit: float) -> str:
        return "met" if self._met(target, limit) else "missed"

    def as_json(self) -> dict[str, Any]:
        """Return the row for JSON, with every sample of every target."""
        return {
            "number": self.row.number,
            "title": self.row.title,
            "targets": [
                {
                    "name": target.name,
                    "unit": target.unit,
                    "goal": target.goal,
                    "must": target.must,
                    "at_least": target.at_least,
                    "median": self._median(target),
                    "absent": self._absent.get(target.name) if not self._samples[target.name] else None,
                    "samples": [
                        {"value": one.value, "ours": one.ours, "theirs": one.theirs}
                        for one in self._samples[target.name]
                    ],
                }
                for target in self.row.targets
            ],
        }
