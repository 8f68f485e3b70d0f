"""Identify the SPDX identifier of a licence text by phrases that only one licence contains.

kit uses google/licensecheck, which identifies hundreds of licences. This module identifies the usual licences of
models, datasets and code, and returns the same identifiers for them. A text with several licences, or with none of
these, is not identified. These functions do no I/O.
"""

from __future__ import annotations

import re
from typing import Final

HEAD: Final = 400  # characters at the beginning of a text that contain its title

GRANT: Final = (
    "permission is hereby granted free of charge to any person obtaining a copy of this software and associated "
    "documentation files"
)
ISC_GRANT: Final = (
    "permission to use copy modify and or distribute this software for any purpose with or without fee "
    "is hereby granted"
)
# SPDX identifier → patterns. The normalised text must match each pattern (the first one only once), and must not match
# a pattern after "!". A pattern after "^" must match in the first HEAD characters, any number of times.
MARKS: Final[dict[str, tuple[str, ...]]] = {
    "Apache-2.0": ("^apache license version 2 0 (january 2004|the license you may not use)",),
    "MIT": (
        GRANT,
        "the above copyright notice and this permission notice shall be included in all copies",
    ),
    "MIT-0": (
        GRANT,
        "!this permission notice shall be included in all copies",
        "!the above copyright notice",
    ),
    "ISC": (f"{ISC_GRANT} provided that",),
    "0BSD": (
        ISC_GRANT,
        "!hereby granted provided that",
    ),
    "BSD-2-Clause": (
        "redistribution and use in source and binary forms with or without modification are permitted provided that",
        "redistributions in binary form must reproduce",
        "!may be used to endorse or promote products",
        "!advertising materials",
    ),
    "BSD-3-Clause": (
        "redistribution and use in source and binary forms with or without modification are permitted provided that",
        "redistributions in binary form must reproduce",
        "may be used to endorse or promote products",
        "!advertising materials",
    ),
    "GPL-2.0": ("^gnu general public license version 2 june 1991",),
    "GPL-3.0": ("^gnu general public license version 3 29 june 2007",),
    "LGPL-2.1": ("^gnu lesser general public license version 2 1 february 1999",),
    "LGPL-3.0": ("^gnu lesser general public license version 3 29 june 2007",),
    "AGPL-3.0": ("^gnu affero general public license version 3 19 november 2007",),
    "MPL-2.0": ("^mozilla public license v(ersion)? 2 0",),
    "EPL-2.0": ("^eclipse public license v 2 0",),
    "BSL-1.0": ("^boost software license version 1 0",),
    "Unlicense": ("this is free and unencumbered software released into the public domain",),
    "Zlib": (
        "in no event will the authors be held liable for any damages arising from the use of this software",
        "altered source versions must be plainly marked as such",
    ),
    "CC0-1.0": ("^cc0 1 0 universal",),
    "CC-BY-4.0": ("^attribution 4 0 international",),
    "CC-BY-SA-4.0": ("^attribution sharealike 4 0 international",),
    "CC-BY-NC-4.0": ("^attribution noncommercial 4 0 international",),
    "CC-BY-NC-SA-4.0": ("^attribution noncommercial sharealike 4 0 international",),
    "CC-BY-NC-ND-4.0": ("^attribution noncommercial noderivatives 4 0 international",),
    "CC-BY-ND-4.0": ("^attribution noderivatives 4 0 international",),
}


def license_of(text: bytes) -> str:
    """Return the SPDX identifier of a licence text, or "" if it is unknown or contains several licences."""
    normal = " ".join(re.findall(r"[a-z0-9]+", text.decode("utf-8", "replace").lower()))
    found = [name for name, marks in MARKS.items() if all(_holds(normal, mark) for mark in marks)]
    if len(found) != 1 or len(re.findall(MARKS[found[0]][0], normal)) > 1:
        return ""
    return found[0]


def _holds(normal: str, mark: str) -> bool:
    if mark.startswith("!"):
        return re.search(mark[1:], normal) is None
    if mark.startswith("^"):
        return re.search(mark[1:], normal[:HEAD]) is not None
    return re.search(mark, normal) is not None
