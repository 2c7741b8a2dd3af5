"""What the rules of a stream that is written and of one that is read have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


class OutOfTurn(RuntimeError):
    """An event that cannot come now. Nothing has changed by it."""


@dataclass(frozen=True)
class PointOfNoReturn:
    """Write down, durably, that from here on the guest may run at the destination; then report
    `promised`. Nothing else happens in between."""


POINT_OF_NO_RETURN: Final = PointOfNoReturn()


@dataclass(frozen=True)
class StartHelper:
    """Run libxc's part (libxl__xc_domain_save or _restore); its end is `helper_done`."""


@dataclass(frozen=True)
class PostcopyTransitionCallback:
    """The transition's records are written or read, or failed."""

    rc: int


@dataclass(frozen=True)
class Stopped:
    """The stream has come to its end; the join is told."""

    rc: int
