"""Whether a Xen host may have room for a guest, as far as that is certain.

xl makes room by taking memory from the control domain (libxl_set_memory_target, `autoballoon`), and
only xl knows how far it can go. It never takes memory from other guests.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from typing import Any, Final

from xen_save_helper.toolstack.hosts.xen import xl

_TOTAL: Final = re.compile(rb"^total_memory\s*:\s*(\d+)\s*$", re.MULTILINE)


def total_kib() -> int:
    """The host's memory in KiB. Raises OSError as `xl.run` does, and (EPROTO) if `xl info` does not
    have it."""
    found = _TOTAL.search(xl.run("info"))
    if found is None:
        raise OSError(errno.EPROTO, "`xl info` shows no total_memory")
    return int(found[1]) * 1024


def needed_kib(config: Mapping[str, Any]) -> int:
    """The least memory that a guest of this configuration takes, in KiB; 0 if it does not say. With
    populate-on-demand that is `target_memkb`."""
    b_info = config.get("b_info")
    if not isinstance(b_info, Mapping):
        return 0
    sizes = (b_info.get(name) for name in ("target_memkb", "max_memkb"))
    return min((size for size in sizes if type(size) is int and size > 0), default=0)


def why_no_room(needed: int, total: int, others: int) -> str:
    """Why there is no room for `needed` KiB if other guests have `others`; "" if there may be."""
    if needed <= total - others:
        return ""
    return (
        f"there is no room for {needed >> 10} MiB: of this host's {total >> 10} MiB, other guests "
        f"have {others >> 10} MiB"
    )
