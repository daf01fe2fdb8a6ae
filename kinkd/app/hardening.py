"""Keep key material out of core dumps and swap, as far as a process can see to it itself."""

from __future__ import annotations

import ctypes
import resource

_PR_SET_DUMPABLE = 4  # prctl(2)
_MCL_CURRENT, _MCL_FUTURE = 1, 2  # mlockall(2)


def forbid_core_dumps() -> None:
    """No core dump, and no reading of our memory by other processes of our user."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def lock_memory() -> bool:
    """Keep all pages out of swap. False where RLIMIT_MEMLOCK does not allow it."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft != resource.RLIM_INFINITY:
        return False  # a later allocation over the limit would fail: worse than swap
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.mlockall(_MCL_CURRENT | _MCL_FUTURE) == 0)
