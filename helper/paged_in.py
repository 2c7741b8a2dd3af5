"""Whether all of a guest's memory is here: a page that is paged out would be missing from its copy.

Xen gives such a page the type of a hole. A save that takes its word for it succeeds, and what is
restored from it dies.
"""

from __future__ import annotations

import errno


def check_paged_in(domid: int, paged_pages: int) -> None:
    """Raises OSError(EBUSY) unless `paged_pages` of the domain is 0."""
    if paged_pages:
        raise OSError(
            errno.EBUSY,
            f"domain {domid} is still being paged in, and {paged_pages} of its pages are missing: "
            "save it once its pager is done",
        )
