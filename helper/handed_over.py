"""A restore under libxl that our own controller does (`ipc_schema.channel.hand_over`): it has a
helper of its own for the work, since libxl's restore ends before a postcopy does."""

from __future__ import annotations

import errno
import select
import socket

from xen_save_helper.helper.abort import Abort
from xen_save_helper.helper.channels.channel import Channel
from xen_save_helper.helper.job import EXIT_CONTROLLER_GONE, EXIT_DONE
from xen_save_helper.ipc_schema.channel import hand_over, packets
from xen_save_helper.ipc_schema.channel.hand_over import HandedOver
from xen_save_helper.ipc_schema.channel.helper_request import HelperRequest
from xen_save_helper.ipc_schema.hints import Final

_FAILED: Final = -1


def serve(path: str, request: HelperRequest, channel: Channel, abort: Abort) -> int:
    """Hand the domain of libxl's request over to the controller at the socket `path`, and tell
    libxl its results; returns the exit status. Raises ChannelError if libxl is gone."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as line:
        try:
            line.connect(path)
            fields = {name: getattr(request, name) for name in HandedOver._fields}
            packets.send(line, fields)
            while _comes(line, abort):
                packet = packets.receive(line)
                if hand_over.STATIC_DATA_DONE in packet:
                    missing = packet[hand_over.STATIC_DATA_DONE]
                    answer = channel.call("static_data_done", missing=missing)
                    packets.send(line, {hand_over.ANSWER: answer})
                    continue
                gfns = packet.get(hand_over.RESTORED)
                return _tell(channel, gfns)
        except (OSError, ValueError):
            # The controller has failed, and knows why.
            return _tell(channel, None)
    return EXIT_CONTROLLER_GONE


def _comes(line: socket.socket, abort: Abort) -> bool:
    """Wait for the controller; False once libxl has gone."""
    poll = select.poll()
    for fd in (line.fileno(), abort.fileno()):
        poll.register(fd, select.POLLIN)
    poll.poll()
    return not abort.requested


def _tell(channel: Channel, gfns: dict[str, int] | None) -> int:
    channel.tell("restore_results", **(gfns or {"store_gfn": 0, "console_gfn": 0}))
    if gfns:
        channel.call("complete", retval=0, errnoval=0)
    else:
        channel.call("complete", retval=_FAILED, errnoval=errno.ECANCELED)
    return EXIT_DONE
