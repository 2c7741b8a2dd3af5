"""Whether this process may open what a restore opens (RLIMIT_NOFILE)."""

from __future__ import annotations

import os
import resource
from typing import Final

NEEDED: Final = 32
"""Descriptors that a restore opens at once beside those that are open already, in the controller or
in a helper, which starts with fewer: sockets, pipes and their watches, the guest's memory and
paging."""


def why_no_descriptors() -> str:
    """Why a restore would run out of descriptors, with the way out; "" if it would not."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return ""
    opened = len(os.listdir("/proc/self/fd"))
    if opened + NEEDED <= soft:
        return ""
    return (
        f"this process may have {soft} descriptors and has {opened}; a restore needs {NEEDED} "
        "more: raise the limit (ulimit -n)"
    )
