"""The plan of an unpack needs little memory, even for many names."""

from __future__ import annotations

import tracemalloc

from kitfs.kit.layering import PlacedLayer
from kitfs.layers.builder import IndexBuilder
from kitfs.layers.index import Extent
from kitfs.ops.unpack.plan import plan_unpack

FILES = 20_000


def test_the_memory_of_a_plan() -> None:
    """A name in the plan needs less than 300 bytes of memory, including its path."""
    builder = IndexBuilder(max_entries=FILES)
    names = [f"data/{n // 100}/sample-{n:08}.json" for n in range(FILES)]
    for n, name in enumerate(names):
        builder.add_file(name, 700, 0o644, (Extent(0, 512 + 1536 * n, 700),))
    index = builder.finish()
    tracemalloc.start()
    try:
        plan = plan_unpack([PlacedLayer("layer", index, "data")])
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [item.path for item in plan.files[0]] == names
    assert taken / FILES < 300
