"""libxentoollog: a logger of Xen's libraries whose lines and progress go to Python functions.

`struct xentoollog_logger` (xentoollog.h) is the same in every release since 4.1, so no library is
needed for it. A `va_list` is a pointer on x86-64 when it is handed over, which vasprintf takes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

from xen_save_helper.ipc_schema.hints import Any, Final, Protocol

NO_ERRNO: Final = -1
"""`errnoval` of a line that is not about an errno."""

_VMESSAGE = ctypes.CFUNCTYPE(
    None,
    ctypes.c_void_p,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_void_p,
    use_errno=True,
)
_PROGRESS = ctypes.CFUNCTYPE(
    None,
    ctypes.c_void_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_int,
    ctypes.c_ulong,
    ctypes.c_ulong,
    use_errno=True,
)
_DESTROY = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Struct(ctypes.Structure):
    _fields_ = [("vmessage", _VMESSAGE), ("progress", _PROGRESS), ("destroy", _DESTROY)]


class LogLine(Protocol):
    def __call__(self, level: int, errnoval: int, context: str, formatted: str) -> None:
        """A line of an XTL_* level; `errnoval` is NO_ERRNO if there is none."""


class Progress(Protocol):
    def __call__(self, context: str, doing_what: str, done: int, total: int) -> None:
        """`done` of `total` of what `doing_what` names; both 0 for a step without a measure.
        libxc reports each batch of pages; what comes here is one report for each percent."""


class Logger:
    """A `xentoollog_logger`, for `xc_interface_open` and its like. It must outlive whatever was
    opened with it.

    An exception of `line` or `progress` cannot pass through C: it goes to `failed`, which must not
    raise, and C carries on. errno is for C as it was before the line.
    """

    def __init__(
        self, line: LogLine, progress: Progress, failed: Callable[[str, BaseException], None]
    ) -> None:
        def vmessage(
            _self: int,
            level: int,
            errnoval: int,
            context: bytes | None,
            form: bytes,
            arguments: int,
        ) -> None:
            try:
                line(level, errnoval, _text(context), _text(_formatted(form, arguments)))
            except BaseException as error:
                failed("log", error)

        last_percent = -1

        def report(
            _self: int,
            context: bytes | None,
            doing_what: bytes | None,
            percent: int,
            done: int,
            total: int,
        ) -> None:
            nonlocal last_percent
            if percent == last_percent and 0 < done < total:
                return
            last_percent = percent
            try:
                progress(_text(context), _text(doing_what), done, total)
            except BaseException as error:
                failed("progress", error)

        def destroy(_self: int) -> None:
            failed("destroy", RuntimeError("a library destroyed a logger that is not its own"))

        self._struct = _Struct(_VMESSAGE(vmessage), _PROGRESS(report), _DESTROY(destroy))

    @property
    def pointer(self) -> int:
        """The address of the struct, a `xentoollog_logger *`."""
        return ctypes.addressof(self._struct)


@cache
def _libc() -> Any:
    libc = ctypes.CDLL(None)
    libc.vasprintf.restype = ctypes.c_int
    libc.vasprintf.argtypes = (
        ctypes.POINTER(ctypes.c_void_p),
        ctypes.c_char_p,
        ctypes.c_void_p,
    )
    libc.free.restype = None
    libc.free.argtypes = (ctypes.c_void_p,)
    return libc


def _formatted(form: bytes, arguments: int) -> bytes:
    """vasprintf, which goes over the va_list once, as it must."""
    libc = _libc()
    text = ctypes.c_void_p()
    if libc.vasprintf(ctypes.byref(text), form, arguments) < 0:
        raise MemoryError(f"log line {form!r} cannot be formatted")
    try:
        return ctypes.string_at(text.value or 0)
    finally:
        libc.free(text)


def _text(octets: bytes | None) -> str:
    """A null pointer is an empty text; what is no UTF-8 is shown as `\\xNN`."""
    return (octets or b"").decode(errors="backslashreplace")
