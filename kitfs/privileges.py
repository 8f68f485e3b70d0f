"""Drop the privileges that the daemon of a mount does not need.

The daemon of root keeps the capabilities in ``KEPT``, and neither it nor a program that it starts can get others. It
also sets no_new_privs (prctl(2)), so a set-user-ID program gets no privileges from it. The daemon of an ordinary user
has no capabilities, and it needs the set-user-ID program fusermount3 to unmount, so nothing is changed there.

Capabilities belong to a thread (capabilities(7)), so ``drop`` must be called before other threads start.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Final

from kitfs.system import LIBC

DAC_OVERRIDE: Final = 1  # open layouts, caches and mount points of other users
DAC_READ_SEARCH: Final = 2
SYS_PTRACE: Final = 19  # find the processes of other users that use a mount
SYS_ADMIN: Final = 21  # mount, unmount, seal, and hand files to the kernel for passthrough
SYS_RESOURCE: Final = 24  # raise the limit on open files
KEPT: Final = frozenset({DAC_OVERRIDE, DAC_READ_SEARCH, SYS_PTRACE, SYS_ADMIN, SYS_RESOURCE})

_PR_CAPBSET_DROP: Final = 24  # linux/prctl.h
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_VERSION: Final = 0x20080522  # _LINUX_CAPABILITY_VERSION_3 of linux/capability.h


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def drop() -> None:
    """Drop all capabilities of root except ``KEPT``, for this process and its children, and set no_new_privs.

    Does nothing for other users and on other systems than Linux. If the kernel refuses a step, the process keeps the
    privileges that this step would have dropped.
    """
    if sys.platform != "linux" or os.geteuid() != 0:
        return
    header, data = _Header(_VERSION, 0), (_Data * 2)()
    if LIBC.capget(ctypes.byref(header), data) != 0:
        return
    LIBC.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    for capability in range(64):  # prctl fails for the numbers that the kernel does not know
        if capability not in KEPT:
            LIBC.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    for number, word in enumerate(data):
        mask = sum(1 << capability - 32 * number for capability in KEPT if capability // 32 == number)
        word.effective &= mask
        word.permitted &= mask
        word.inheritable = 0
    LIBC.capset(ctypes.byref(header), data)
    LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
