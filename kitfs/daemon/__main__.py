"""``python -m kitfs.daemon mount|umount``: mounts for programs that must not fork. JSON in on stdin, one JSON object out on stdout."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from kitfs.daemon.life import MountRequest, finish, start, told
from kitfs.daemon.record import RunDir
from kitfs.errors import KitfsError, UsageError
from kitfs.escaping import shown


def main() -> int:
    """Do it; the exit code."""
    try:
        request = json.load(sys.stdin)
        if sys.argv[1:] == ["mount"]:
            request["only"] = tuple(request["only"])
            answer = asdict(start(MountRequest(**request), lambda warning: print(shown(warning), file=sys.stderr)))  # noqa: T201
        elif sys.argv[1:] == ["umount"]:
            finish(RunDir(request["run_dir"]), request["mountpoint"], lazy=False)
            answer = {}
        else:
            raise UsageError("usage: python -m kitfs.daemon mount|umount")
    except KitfsError as e:
        json.dump(told(e), sys.stdout)
        return e.exit_code
    json.dump(answer, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
