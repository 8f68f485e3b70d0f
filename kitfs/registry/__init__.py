"""Access OCI registries over httpx, and OCI layouts on disk.

Importing httpx also imports its command line, with click, rich and pygments. This takes more than half of the import
time, and kitfs does not use the command line. If ``sys.modules`` has the entry None for a module, Python raises
ImportError for the module. httpx then works without its command line, as if rich were not installed.
"""

import sys
from typing import Any

_modules: dict[str, Any] = sys.modules
_modules.setdefault("httpx._main", None)
