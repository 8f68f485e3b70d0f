"""Mount and unmount for programs that must not fork: ``python -m kitfs.daemon mount|umount``.

One JSON object comes in on stdin, and one goes out on stdout:

    mount    the fields of MountRequest → those of the Record, and "made": false when the same mount existed before
    umount   "mountpoint", "run_dir", and "lazy" unless it is false → an empty object

A failure prints the error (``errors.error_to_json``), and the exit code is that of its class.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from kitfs.daemon.request import MountRequest
from kitfs.daemon.run_dir import RunDir
from kitfs.daemon.start import start
from kitfs.daemon.unmount import unmount
from kitfs.errors import KitfsError, UsageError, error_to_json
from kitfs.escaping import shown


def main() -> int:
    """Run the command that stdin describes, and return the exit code."""
    try:
        request = json.load(sys.stdin)
        if sys.argv[1:] == ["mount"]:
            started = start(MountRequest.from_json(request), lambda warning: print(shown(warning), file=sys.stderr))  # noqa: T201
            answer = asdict(started.record) | {"made": started.made}
        elif sys.argv[1:] == ["umount"]:
            unmount(RunDir(request["run_dir"]), request["mountpoint"], lazy=request.get("lazy", False))
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
