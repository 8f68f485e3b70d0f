"""OCI distribution over httpx, and OCI layouts on disk.

httpx has a command line, which imports click, rich and pygments and takes more than half of the time of its import.
kitfs does not use that command line. With an entry of None in ``sys.modules``, Python raises ImportError for a module,
and httpx then works without its command line, as if rich were not installed.
"""

import sys
from typing import Any

_modules: dict[str, Any] = sys.modules
_modules.setdefault("httpx._main", None)
