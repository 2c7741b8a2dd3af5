"""Whether a Xen host can have room for a guest: only what is certain.

xl makes room by taking memory from the control domain (libxl_set_memory_target, `autoballoon`), and
how far that goes nobody else knows. What other guests have, it never takes.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from typing import Any, Final

from xen_save_helper.toolstack.hosts.xen import xl

_TOTAL: Final = re.compile(rb"^total_memory\s*:\s*(\d+)\s*$", re.MULTILINE)


def total_kib() -> int:
    """The host's memory. Raises OSError as `xl.run`, and (EPROTO) for an answer without it."""
    found = _TOTAL.search(xl.run("info"))
    if found is None:
        raise OSError(errno.EPROTO, "`xl info` tells no total_memory")
    return int(found[1]) * 1024


def needed_kib(config: Mapping[str, Any]) -> int:
    """What a guest of this configuration takes at the least; 0 if it does not say. With
    populate-on-demand that is `target_memkb`."""
    b_info = config.get("b_info")
    if not isinstance(b_info, Mapping):
        return 0
    sizes = (b_info.get(name) for name in ("target_memkb", "max_memkb"))
    return min((size for size in sizes if type(size) is int and size > 0), default=0)


def why_no_room(needed: int, total: int, others: int) -> str:
    """In KiB; `others` is what guests have. "" where there may be room."""
    if needed <= total - others:
        return ""
    return (
        f"there is no room for {needed >> 10} MiB: of this host's {total >> 10} MiB, other guests "
        f"have {others >> 10} MiB"
    )
