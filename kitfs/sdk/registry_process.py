"""``python -m kitfs.sdk.registry_process REQUEST`` runs the registry of ``kitfs.serve``.

REQUEST contains the fields of a ServeRequest as JSON. The process prints one line on stdout: {"url": …} or an error. It
exits on SIGTERM. It also exits when its stdin is closed, because then the program that started it has ended.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from typing import Any

from kitfs.errors import KitfsError, error_to_json
from kitfs.escaping import LogFormatter
from kitfs.server.serve import ServeRequest, serve


def main() -> int:
    """Serve until SIGTERM or the end of stdin, and return the exit code."""
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormatter("%(asctime)s %(levelname)s %(message)s"))
    log = logging.getLogger("kitfs")
    log.addHandler(handler)
    log.setLevel(logging.WARNING)
    threading.Thread(target=_end_with_stdin, name="kitfs-stdin", daemon=True).start()
    try:
        serve(ServeRequest(**json.loads(sys.argv[1])), log=log, ready=lambda url: _answer({"url": url}))
    except KitfsError as e:
        _answer(error_to_json(e))
        return e.exit_code
    return 0


def _answer(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)  # noqa: T201 - the answer of this process


def _end_with_stdin() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
