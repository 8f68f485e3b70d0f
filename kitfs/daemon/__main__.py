"""Mount and unmount for programs that must not fork: ``python -m kitfs.daemon mount|umount``.

The program reads a JSON object from stdin, and writes a JSON object to stdout:

    mount    reads the fields of MountRequest; writes the fields of the Record, and "made", which is false if the same
             mount existed before
    umount   reads "mountpoint", "run_dir", and "lazy" unless it is false; writes an empty object

If the command fails, the program writes the error (``errors.error_to_json``), and exits with the exit code of the
error's class. On SIGINT, a daemon that is not ready yet is ended.
"""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import asdict

from kitfs.daemon.request import MountRequest
from kitfs.daemon.run_dir import RunDir
from kitfs.daemon.start import start
from kitfs.daemon.unmount import unmount
from kitfs.errors import KitfsError, UsageError, error_to_json
from kitfs.escaping import shown


def main() -> int:
    """Run the command in argv with the arguments on stdin, and return the exit code."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let jobs in the background ignore SIGINT
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
