"""OCI distribution over httpx, and OCI layouts on disk.

httpx brings a command line of its own, which imports click, rich and pygments, and takes more than half of the time of
its import. kitfs does not use it. An entry of None in ``sys.modules`` makes Python raise ImportError for a module, and
httpx does without its command line then, as if rich were not installed.
"""

import sys
from typing import Any

_modules: dict[str, Any] = sys.modules
_modules.setdefault("httpx._main", None)
