"""``python -m kitfs.daemon mount|umount``: mounts for programs that must not fork. JSON in on stdin, one JSON object
out on stdout.

mount    the fields of MountRequest → those of the Record, and "made": false when the same mount was there before
umount   "mountpoint", "run_dir", and "lazy" unless it is false → nothing
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from kitfs.daemon.request import MountRequest
from kitfs.daemon.run_dir import RunDir
from kitfs.daemon.start import error_to_json, start
from kitfs.daemon.unmount import finish
from kitfs.errors import KitfsError, UsageError
from kitfs.escaping import shown


def main() -> int:
    """Do it; the exit code."""
    try:
        request = json.load(sys.stdin)
        if sys.argv[1:] == ["mount"]:
            started = start(MountRequest.from_json(request), lambda warning: print(shown(warning), file=sys.stderr))  # noqa: T201
            answer = asdict(started.record) | {"made": started.made}
        elif sys.argv[1:] == ["umount"]:
            finish(RunDir(request["run_dir"]), request["mountpoint"], lazy=request.get("lazy", False))
            answer = {}
        else:
            raise UsageError("usage: python -m kitfs.daemon mount|umount")
    except KitfsError as e:
        json.dump(error_to_json(e), sys.stdout)
        return e.exit_code
    json.dump(answer, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
