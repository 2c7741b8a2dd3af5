"""What a scenario says of itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.xen.dom0.lab import Lab


@dataclass(frozen=True)
class Scenario:
    """`run` inside dom0, on the dom0 of each of `suites`, may take `limit` seconds.

    `seldom`: on those of these suites, too, if all scenarios are asked for, or this one by name.
    What it adds to the others is not worth its time at each change.

    `shadow`: on a Xen built with shadow paging and memory paging, which Debian's is not.
    `after`: another scenario, of one suite, which must have passed: what that one has put into
    `Lab.handed_over` this one finds in `Lab.given`.
    """

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
"""Suites of a scenario that holds for every ABI of libxenguest."""
NONE: tuple[str, ...] = ()
