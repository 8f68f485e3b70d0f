"""Each hostile tar has the expected index."""

from __future__ import annotations

import pytest

from kitfs.errors import LayerError
from kitfs.layers.read import read_member
from kitfs.layers.tar import index_tar
from tests.corpus.tars import CASES
from tests.unit.layers.test_tar import Bytes


@pytest.mark.parametrize("sized", [True, False], ids=["sized", "unsized"])
@pytest.mark.parametrize("name", CASES)
def test_nasty_tar(name: str, sized: bool) -> None:
    """Indexing a tar gives the expected members and left-out names, or raises a LayerError.

    The result is the same whether the size of the tar is known or not.
    """
    case = CASES[name]
    if case.error:
        with pytest.raises(LayerError) as caught:
            index_tar(Bytes(case.archive, sized=sized))
        assert case.error in str(caught.value)
        return
    index = index_tar(Bytes(case.archive, sized=sized))
    shown = {
        p: (m.kind, read_member(Bytes(case.archive), m, 0, m.size) if m.kind == "file" else m.target)
        for p, m in index.members.items()
    }
    assert shown == case.members
    assert tuple(s.name for s in index.skipped) == case.skipped
