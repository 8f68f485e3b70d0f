"""The terms of a mount request are equal for equal options, and contain nothing secret."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kitfs.daemon.request import MountRequest, differences, terms_of
from kitfs.registry.options import ClientOptions

PLAIN = MountRequest("r.io/a/b:v1", "/m", "/cache", "/run", "/home")


def differ(one: MountRequest, other: MountRequest) -> list[str]:
    return differences(terms_of(one, "salt"), terms_of(other, "salt"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("model", "docs:a"), ("docs:a", "model")),
        (("model,docs:a,b",), ("docs:b,a", "model:a,b")),
        (("docs:a", "docs:b"), ("docs:b,a",)),
        (("docs", "docs:a"), ("docs",)),
    ],
)
def test_filters_that_select_the_same_are_the_same(one: tuple[str, ...], other: tuple[str, ...]) -> None:
    """The order and the grouping of filters do not matter. A redundant filter changes nothing."""
    assert differ(replace(PLAIN, only=one), replace(PLAIN, only=other)) == []


@pytest.mark.parametrize(
    ("one", "other"), [(("docs",), ()), (("docs",), ("docs:a",)), (("docs:a", "model"), ("docs", "model:a"))]
)
def test_filters_that_select_something_else_differ(one: tuple[str, ...], other: tuple[str, ...]) -> None:
    assert len(differ(replace(PLAIN, only=one), replace(PLAIN, only=other))) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"mirrors": {"a": ("u",), "b": ("v", "w")}}, {"mirrors": {"b": ["v", "w"], "a": ["u"]}}),
        ({"tls_certs": ("/x", "/y")}, {"tls_certs": ["/y", "/x"]}),
        ({"read_timeout": 60.0}, {"read_timeout": 60}),
        ({}, {"proxy": None, "tls_verify": True}),
    ],
)
def test_network_options_are_compared_by_what_they_mean(one: dict[str, Any], other: dict[str, Any]) -> None:
    """The order of hosts and of CA files does not matter, also for options that were read from JSON."""
    assert (
        differ(
            replace(PLAIN, client=ClientOptions.from_json(one)), replace(PLAIN, client=ClientOptions.from_json(other))
        )
        == []
    )


def test_the_order_of_a_hosts_mirrors_matters() -> None:
    """The mirrors are tried in the order in which they are given."""
    one, other = (replace(PLAIN, client=ClientOptions(mirrors={"r.io": urls})) for urls in (("u", "v"), ("v", "u")))
    assert differ(one, other) == ["--mirror r.io=u v (asked for: r.io=v u)"]


@pytest.mark.parametrize("url", ["http://me:hunter2@p:1", "http://hunter2@p:1", "http://me:hunter2@x/y@p:1"])
def test_users_and_passwords_are_not_in_the_terms(url: str) -> None:
    """The terms contain only a salted hash of each user and password."""
    asked = replace(PLAIN, client=ClientOptions(proxy=url, mirrors={"r.io": (url,)}))
    terms = terms_of(asked, "salt")
    assert not [text for text in terms.values() if "hunter2" in text]
    assert terms["proxy"] != terms_of(asked, "pepper")["proxy"]
    other = replace(asked, client=ClientOptions(proxy=url.replace("2", "3"), mirrors={"r.io": (url,)}))
    assert differ(asked, other) == ["--proxy http://p:1 with another user or password"]


def test_what_an_older_kitfs_did_not_record_counts_as_equal() -> None:
    """Options that the record of an older mount does not have are not compared with the request."""
    assert differences({}, terms_of(PLAIN, "salt")) == []
    assert differences({"umask": "000"}, terms_of(replace(PLAIN, umask=0o22, uid=7), "salt")) == [
        "--umask 000 (asked for: 022)"
    ]
