"""What passes between a controller that restores a domain which `xl` makes, and the helper that
xl's libxl starts for it: that one hands the domain over, and tells libxl what becomes of it.

They are `packets`. The helper's first one is a `HandedOver`.
The controller then sends `{STATIC_DATA_DONE: missing}`, answered by `{ANSWER: rc}`, and at last
`{RESTORED: {"store_gfn": gfn, "console_gfn": gfn}}`. The end without that is a failure.
"""

from __future__ import annotations

from typing import Final, NamedTuple

STATIC_DATA_DONE: Final = "static_data_done"
ANSWER: Final = "answer"
RESTORED: Final = "restored"


class HandedOver(NamedTuple):
    """The domain, and the event channels of its xenstore's and its console's ring, which libxl has
    made for it (arguments of xc_domain_restore)."""

    domid: int
    store_evtchn: int = 0
    store_domid: int = 0
    console_evtchn: int = 0
    console_domid: int = 0
