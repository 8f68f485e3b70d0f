"""kit's filters select layers (KitOps, pkg/cmd/unpack/filter.go). Some filters also apply to parent kits."""

from __future__ import annotations

import pytest

from kitfs.errors import UsageError
from kitfs.modelkit.filters import Filter, for_parent, selects, selects_kitfile
from kitfs.modelkit.kitfile import Entry

ENTRIES = {
    "m": Entry("model", "tiny", "model/tiny.safetensors"),
    "p": Entry("modelpart", "lora", "lora.bin"),
    "c": Entry("code", "", "src"),
    "C": Entry("code", "", "./run.sh"),
    "d": Entry("dataset", "train", "data/train.csv"),
    "e": Entry("dataset", "eval", "data/eval"),
    "r": Entry("docs", "", "README.md"),
    "q": Entry("prompt", "ask", "ask.prompt"),
    "s": Entry("mcpserver", "search", "search.mcpb"),
}


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], "mpcCderqs"),
        (["model"], "mp"),
        (["datasets"], "de"),
        (["code,docs"], "cCr"),
        (["kitfile"], ""),
        (["prompts,mcpservers"], "qs"),
        (["datasets:train"], "d"),
        (["datasets:train,eval"], "de"),
        (["datasets:data/eval"], "e"),
        (["datasets:data"], ""),
        (["datasets:Train"], ""),
        (["model:lora"], "p"),
        (["model,docs:tiny,README.md"], "mr"),
        (["code:run.sh"], "C"),
        (["code:./run.sh"], "C"),
        (["code:src,"], "c"),
        (["model:tiny", "docs"], "mr"),
        (["datasets:train", "datasets:eval", "code:none"], "de"),
    ],
)
def test_what_filters_select(texts: list[str], expected: str) -> None:
    """A layer is selected if any filter matches it. Types and names must match exactly.

    The type "model" also matches the parts of a model. A path matches in its cleaned form too.
    """
    filters = [Filter.parse(t) for t in texts]
    assert "".join(k for k, entry in ENTRIES.items() if selects(filters, entry)) == expected


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("bogus", "invalid filter type bogus (must be one of "),
        ("dataset", "invalid filter type dataset (must be one of "),
        ("model,", "invalid filter type  (must be one of "),
        ("Model", "invalid filter type Model (must be one of "),
        ("model:a:b", "invalid filter: should be in format <type1>,<type2>[:<filter1>,<filter2>]"),
        ("", "invalid filter: should be in format <type1>,<type2>[:<filter1>,<filter2>]"),
        (":a", "invalid filter: should be in format <type1>,<type2>[:<filter1>,<filter2>]"),
        ("model:", "invalid filter: should be in format <type1>,<type2>[:<filter1>,<filter2>]"),
    ],
)
def test_wrong_filters(text: str, told: str) -> None:
    """The UsageError has kit's words."""
    with pytest.raises(UsageError) as e:
        Filter.parse(text)
    assert " ".join(told.split()) in str(e.value)


@pytest.mark.parametrize(
    ("texts", "parents"),
    [
        ([], ["model"]),
        (["model"], ["model"]),
        (["model,code:a"], ["model:a"]),
        (["datasets"], None),
        (["kitfile"], None),
        (["docs", "model:x"], ["model:x"]),
    ],
)
def test_filters_of_a_parent(texts: list[str], parents: list[str] | None) -> None:
    """Only the model of a parent kit is used, and only if a filter selects a model.

    Without filters, the whole model is used.
    """
    found = for_parent([Filter.parse(t) for t in texts])
    assert (None if found is None else [str(f) for f in found]) == parents


def test_the_kitfile_is_wanted_unless_filters_leave_it_out() -> None:
    """With filters, the Kitfile is selected only by the type kitfile."""
    assert selects_kitfile([])
    assert selects_kitfile([Filter.parse("kitfile,model")])
    assert not selects_kitfile([Filter.parse("model"), Filter.parse("docs")])


@pytest.mark.parametrize("text", ["model", "model,code", "datasets:a,b"])
def test_filters_come_back_as_texts(text: str) -> None:
    """``str`` of a filter returns the string that was parsed."""
    assert str(Filter.parse(text)) == text
