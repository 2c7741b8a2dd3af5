"""What passes between a controller that restores a domain which `xl` makes, and the helper that
xl's libxl starts for it: that one hands the domain over, and tells libxl what becomes of it.

Packets of a SOCK_SEQPACKET socket, each a JSON object. The helper's first one is a `HandedOver`.
The controller then sends `{STATIC_DATA_DONE: missing}`, answered by `{ANSWER: rc}`, and at last
`{RESTORED: {"store_gfn": gfn, "console_gfn": gfn}}`. The end without that is a failure.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

STATIC_DATA_DONE: Final = "static_data_done"
ANSWER: Final = "answer"
RESTORED: Final = "restored"

_MOST: Final = 4096


class HandedOver(NamedTuple):
    """The domain, and the event channels of its xenstore's and its console's ring, which libxl has
    made for it (arguments of xc_domain_restore)."""

    domid: int
    store_evtchn: int = 0
    store_domid: int = 0
    console_evtchn: int = 0
    console_domid: int = 0


def send(line: socket.socket, packet: Mapping[str, Any]) -> None:
    """Raises OSError."""
    line.sendall(json.dumps(packet).encode())


def receive(line: socket.socket) -> dict[str, Any]:
    """The next packet, empty at the end. Raises OSError, TimeoutError, and ValueError for one that
    is none."""
    data = line.recv(_MOST)
    packet = json.loads(data) if data else {}
    if not isinstance(packet, dict):
        raise ValueError(f"{packet!r} is no object")
    return packet
