"""Pair the items of two lists that have the same key."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Pairs(NamedTuple, Generic[T]):
    """The ``pairs`` of items with the same key, and the unpaired items of both lists.

    The three lists keep their order.
    """

    pairs: list[tuple[T, T]]
    first: list[T]
    second: list[T]


def pair(first: Sequence[T], second: Sequence[T], key: Callable[[T], Hashable]) -> Pairs[T]:
    """Pair each item of ``second`` with the first unpaired item of ``first`` that has the same key."""
    waiting: dict[Hashable, list[T]] = defaultdict(list)
    for item in first:
        waiting[key(item)].append(item)
    pairs, rest = [], []
    for item in second:
        if waiting[key(item)]:
            pairs.append((waiting[key(item)].pop(0), item))
        else:
            rest.append(item)
    return Pairs(pairs, [item for item in first if any(item is other for other in waiting[key(item)])], rest)
