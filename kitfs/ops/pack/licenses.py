"""Which licence a text is: SPDX identifiers, by what only the text of that licence says.

kit asks google/licensecheck, which knows some hundreds; these are the ones that models, data sets and code come with,
and they get the same identifiers. A text that is several licences, or none of these, has no answer. Pure.
"""

from __future__ import annotations

import re
from typing import Final

HEAD: Final = 400  # characters in which a text says which licence it is, where others name it too

# identifier → patterns: what the normalised text must hold (the first once), what not (after "!"); "^": in its head,
# as often as it likes
MARKS: Final[dict[str, tuple[str, ...]]] = {
    "Apache-2.0": ("^apache license version 2 0 (january 2004|the license you may not use)",),
    "MIT": (
        "permission is hereby granted free of charge to any person obtaining a copy of this software and associated documentation files",
        "the above copyright notice and this permission notice shall be included in all copies",
    ),
    "MIT-0": (
        "permission is hereby granted free of charge to any person obtaining a copy of this software and associated documentation files",
        "!this permission notice shall be included in all copies",
        "!the above copyright notice",
    ),
    "ISC": (
        "permission to use copy modify and or distribute this software for any purpose with or without fee is hereby granted provided that",
    ),
    "0BSD": (
        "permission to use copy modify and or distribute this software for any purpose with or without fee is hereby granted",
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
    """The SPDX identifier of a licence text, "" when it is none of those known, or several."""
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
