"""libxenevtchn: an event channel from a domain."""

from __future__ import annotations

import ctypes
import os
from functools import cache

from xen_save_helper.helper.hypervisors.xen.libraries import Prototypes, call_error, load
from xen_save_helper.ipc_schema.hints import Final

_SONAME: Final = "libxenevtchn.so.1"
"""Its ABI is stable: all supported releases have this one."""

_HANDLE: Final = ctypes.c_void_p
_PROTOTYPES: Final[Prototypes] = {
    "xenevtchn_open": (_HANDLE, (ctypes.c_void_p, ctypes.c_uint)),
    "xenevtchn_close": (ctypes.c_int, (_HANDLE,)),
    "xenevtchn_fd": (ctypes.c_int, (_HANDLE,)),
    "xenevtchn_bind_interdomain": (ctypes.c_int, (_HANDLE, ctypes.c_uint32, ctypes.c_uint32)),
    "xenevtchn_pending": (ctypes.c_int, (_HANDLE,)),
    "xenevtchn_unmask": (ctypes.c_int, (_HANDLE, ctypes.c_uint32)),
    "xenevtchn_notify": (ctypes.c_int, (_HANDLE, ctypes.c_uint32)),
}


@cache
def _library() -> ctypes.CDLL:
    return load(_SONAME, _PROTOTYPES)


class EventChannel:
    """The local end of the domain's `remote_port`. Raises OSError if it cannot be bound."""

    def __init__(self, domid: int, remote_port: int) -> None:
        self._library = _library()
        self._what = f"domain {domid}"
        self._handle: int | None = self._library.xenevtchn_open(None, 0)
        if not self._handle:
            raise call_error("xenevtchn_open")
        try:
            bind = self._library.xenevtchn_bind_interdomain
            self._port: int = bind(self._handle, domid, remote_port)
            if self._port < 0:
                raise call_error(f"xenevtchn_bind_interdomain, {self._what}")
            os.set_blocking(self.fileno(), False)
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """Readable while an event is pending."""
        fd: int = self._library.xenevtchn_fd(self._handle)
        return fd

    def clear(self) -> None:
        """Take the event that is pending, if any: what it was about must be looked at after
        this."""
        if self._library.xenevtchn_pending(self._handle) >= 0:
            self._library.xenevtchn_unmask(self._handle, self._port)

    def notify(self) -> None:
        """Send an event. Raises EINVAL or ENOTCONN once the domain is gone."""
        if self._library.xenevtchn_notify(self._handle, self._port):
            raise call_error(f"xenevtchn_notify, {self._what}")

    def close(self) -> None:
        """Close the channel; a second time does nothing."""
        if self._handle:
            self._library.xenevtchn_close(self._handle)
            self._handle = None
