"""The domain's socket, for requests of the toolstack and the pager to a vCPU.

A request and its answer are one SOCK_SEQPACKET message each, a JSON object; descriptors are passed
with SCM_RIGHTS. The request says what to do in `do`; the answer has `errno` and `error` if that
failed.
"""

from __future__ import annotations

import json
import os
import socket
from typing import Any, Final

from xen_save_helper.helper.hypervisors.simulated.shared import GuestGoneError

SOCKET: Final = "vcpu"
MAX_MESSAGE: Final = 65_536

Message = dict[str, Any]


def _path(directory: int) -> str:
    """The socket's path through the directory's descriptor, since sun_path has only 108 bytes."""
    return f"/proc/self/fd/{directory}/{SOCKET}"


def listen(directory: int) -> socket.socket:
    """The guest's end. `directory` is a descriptor of the domain's directory."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(_path(directory))
    listener.listen(128)
    listener.setblocking(False)
    return listener


def send(
    connection: socket.socket, message: Message, fds: list[int] | None = None, flags: int = 0
) -> None:
    """Send one message; raises OSError."""
    socket.send_fds(connection, [json.dumps(message).encode()], fds or [], flags)


def receive(connection: socket.socket) -> tuple[Message | None, list[int]]:
    """The next message, None at the end, and the descriptors that came with it.

    Raises ValueError for anything but a message.
    """
    data, fds, _, _ = socket.recv_fds(connection, MAX_MESSAGE, 4, socket.MSG_CMSG_CLOEXEC)
    if not data:
        return None, fds
    message = json.loads(data)
    if not isinstance(message, dict):
        raise ValueError(f"not a message: {data[:100]!r}")
    return message, fds


def connect(directory: int, timeout: float) -> socket.socket:
    """A connection to the vCPU, with `timeout` for each operation.

    Raises GuestGoneError if nobody listens, TimeoutError if too many wait already.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(timeout)
    try:
        connection.connect(_path(directory))
    except (FileNotFoundError, ConnectionRefusedError) as error:
        connection.close()
        raise GuestGoneError("the guest's process is gone") from error
    except BlockingIOError as error:
        connection.close()
        raise TimeoutError("the guest does not answer: too many requests wait") from error
    except BaseException:
        connection.close()
        raise
    return connection


def ask(connection: socket.socket, message: Message) -> tuple[Message, list[int]]:
    """Send a request and wait for the answer, no longer than the connection's time limit.

    Raises TimeoutError, GuestGoneError if the guest ends, and the OSError that the guest answers.
    """
    what = message["do"]
    try:
        send(connection, message)
        answer, fds = receive(connection)
    except TimeoutError as error:
        limit = connection.gettimeout()
        raise TimeoutError(f"the guest did not answer {what!r} within {limit} s") from error
    except (BrokenPipeError, ConnectionResetError) as error:
        raise GuestGoneError(f"the guest's process ended at {what!r}") from error
    if answer is None:
        raise GuestGoneError(f"the guest's process ended at {what!r}")
    if "errno" in answer:
        for fd in fds:
            os.close(fd)
        raise OSError(answer["errno"], answer["error"])
    return answer, fds


def request(directory: int, timeout: float, **message: Any) -> Message:
    """Make one request on its own connection; raises the errors of `connect` and `ask`."""
    with connect(directory, timeout) as connection:
        answer, _ = ask(connection, message)
    return answer
