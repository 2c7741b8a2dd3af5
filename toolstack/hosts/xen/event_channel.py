"""An event channel to a guest, through the kernel's device (include/uapi/xen/evtchn.h)."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import Final

DEVICE: Final = "/dev/xen/evtchn"

_BIND_INTERDOMAIN: Final = struct.Struct("=II")
_NOTIFY: Final = struct.Struct("=I")


def _request(number: int, size: int) -> int:
    """_IOC(_IOC_NONE, 'E', number, size)."""
    return size << 16 | ord("E") << 8 | number


_IOCTL_BIND_INTERDOMAIN: Final = _request(1, _BIND_INTERDOMAIN.size)
_IOCTL_NOTIFY: Final = _request(4, _NOTIFY.size)


class EventChannel:
    """An event channel bound to `port` of domain `domid` until it is closed. Raises OSError."""

    def __init__(self, domid: int, port: int) -> None:
        self._fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._port = self._ioctl(
                _IOCTL_BIND_INTERDOMAIN, _BIND_INTERDOMAIN.pack(domid, port), "bind"
            )
        except BaseException:
            self.close()
            raise

    def notify(self) -> None:
        """Send the guest an event."""
        self._ioctl(_IOCTL_NOTIFY, _NOTIFY.pack(self._port), "notify")

    def close(self) -> None:
        """Unbind it; the guest's end then waits for somebody else to bind to it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _ioctl(self, request: int, argument: bytes, what: str) -> int:
        # Only with a mutable argument is the result the ioctl's own, a port number.
        try:
            return int(fcntl.ioctl(self._fd, request, bytearray(argument)))
        except OSError as error:
            number = error.errno or errno.EIO
            raise OSError(number, f"{DEVICE}: {what}: {os.strerror(number)}") from error
