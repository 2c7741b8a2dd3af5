"""What is known of a scenario."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.xen.dom0.lab import Lab


@dataclass(frozen=True)
class Scenario:
    """`run` runs inside dom0, on the dom0 of each of `suites`, for at most `limit` seconds.
    `seldom`: it also runs on these suites, if all scenarios or this one are asked for by name; what
    it adds is not worth its time at each change. `shadow`: it needs a Xen with shadow paging and
    memory paging, which Debian's lacks. `after`: another scenario, of one suite, which must have
    passed; this one finds in `Lab.given` what that one has put into `Lab.handed_over`."""

    name: str
    run: Callable[[Lab], None]
    suites: tuple[str, ...] = ("bookworm",)
    seldom: tuple[str, ...] = ()
    shadow: bool = False
    limit: float = 1200
    after: str = ""


BOOKWORM = ("bookworm",)
TRIXIE = ("trixie",)
BOTH = (*BOOKWORM, *TRIXIE)
"""Suites of a scenario that applies to every ABI of libxenguest."""
NONE: tuple[str, ...] = ()
