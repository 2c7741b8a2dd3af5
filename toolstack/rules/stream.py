"""What the rules of writing a stream and of reading one have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


class OutOfTurn(RuntimeError):
    """An event that cannot come now; it has changed nothing."""


@dataclass(frozen=True)
class PointOfNoReturn:
    """Record durably that from here on the guest may run at the destination, then report
    `promised`. Nothing else happens in between."""


POINT_OF_NO_RETURN: Final = PointOfNoReturn()


@dataclass(frozen=True)
class StartHelper:
    """Run libxc's part (libxl__xc_domain_save or _restore); report its end as `helper_done`."""


@dataclass(frozen=True)
class PostcopyTransitionCallback:
    """The transition's records have been written or read, or that failed."""

    rc: int


@dataclass(frozen=True)
class Stopped:
    """The stream has ended: report it to the join."""

    rc: int
