"""mount.kitfs parses the options of a line in fstab."""

from __future__ import annotations

import pytest

from kitfs.cli.mount_helper import flags_of
from kitfs.errors import UsageError


def given(options: str) -> dict[str, object]:
    return {k: v for k, v in flags_of(options).items() if v is not None}


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ("rw,_netdev,noauto,x-systemd.automount,nofail,user", {}),
        ("", {}),
        ("only=model,only=docs:a\\,b,cache_size=1GiB", {"only": ["model", "docs:a,b"], "cache-size": "1GiB"}),
        ("label=quantization=q4_0,label=gpu=cuda", {"label": ["quantization=q4_0", "gpu=cuda"]}),
        ("plain_http,allow_other", {"plain-http": "true", "allow-other": "true"}),
        ("no_allow_other,tls-verify=false", {"allow-other": "false", "tls-verify": "false"}),
    ],
)
def test_options(options: str, flags: dict[str, object]) -> None:
    """The names of kitfs options may contain "_" instead of "-".

    Options that only mount(8) uses are ignored. Commas may be escaped.
    """
    assert given(options) == flags


@pytest.mark.parametrize("options", ["colour=red", "cache_size", "foreground"])
def test_unknown_options_are_refused(options: str) -> None:
    with pytest.raises(UsageError, match=r"-o cache_size needs a value|unknown mount option"):
        flags_of(options)
