"""Refuses to save a guest that is still being paged in: the copy would lack the missing pages.

Xen reports such a page as a hole, so the save would succeed, and the restored guest would die.
"""

from __future__ import annotations

import errno


def check_paged_in(domid: int, paged_pages: int) -> None:
    """Raise OSError(EBUSY) unless `paged_pages` of the domain is 0."""
    if paged_pages:
        raise OSError(
            errno.EBUSY,
            f"domain {domid} is still being paged in, and {paged_pages} of its pages are missing: "
            "save it once its pager is done",
        )
