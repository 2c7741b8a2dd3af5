"""libxenguest's ABI for save and restore, by release (xenguest.h).

A release gets a row once its header has been compared with this module. They differ in two places:
`total_written` of the precopy statistics, which are passed by value, is an `unsigned int` in 4.14,
and `xc_domain_restore` has a 13th parameter since 4.22.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping

from xen_save_helper.helper.hypervisors.xen.libraries import Prototypes
from xen_save_helper.ipc_schema.hints import Any, Final
from xen_save_helper.ipc_schema.named_tuple import NamedTuple

_INTERFACE = ctypes.c_void_p
_DOMID = ctypes.c_uint32
_STREAM_TYPE = ctypes.c_int
_GFN = ctypes.c_ulong


class PrecopyStats(ctypes.Structure):
    """`struct precopy_stats` since 4.15; `dirty_count` is -1 if it is not known."""

    _fields_ = [
        ("iteration", ctypes.c_uint),
        ("total_written", ctypes.c_ulong),
        ("dirty_count", ctypes.c_long),
    ]


class PrecopyStats4_14(ctypes.Structure):
    """`struct precopy_stats` of 4.14."""

    _fields_ = [
        ("iteration", ctypes.c_uint),
        ("total_written", ctypes.c_uint),
        ("dirty_count", ctypes.c_long),
    ]


# use_errno: libxc sees an errno that a callback sets (ctypes.set_errno), and otherwise its own.
_PLAIN = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, use_errno=True)
_POLICY = ctypes.CFUNCTYPE(ctypes.c_int, PrecopyStats, ctypes.c_void_p, use_errno=True)
_POLICY_4_14 = ctypes.CFUNCTYPE(ctypes.c_int, PrecopyStats4_14, ctypes.c_void_p, use_errno=True)
_LOGDIRTY = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_uint32, ctypes.c_uint, ctypes.c_void_p, use_errno=True
)
_STATIC_DATA = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_uint, ctypes.c_void_p, use_errno=True)
_RESULTS = ctypes.CFUNCTYPE(None, _GFN, _GFN, ctypes.c_void_p, use_errno=True)


def _save_callbacks(policy: Any) -> list[tuple[str, Any]]:
    return [
        ("suspend", _PLAIN),
        ("precopy_policy", policy),
        ("postcopy", _PLAIN),
        ("checkpoint", _PLAIN),
        ("wait_checkpoint", _PLAIN),
        ("switch_qemu_logdirty", _LOGDIRTY),
        ("data", ctypes.c_void_p),
    ]


class SaveCallbacks(ctypes.Structure):
    """`struct save_callbacks` since 4.15; a field that is not set is a null pointer."""

    _fields_ = _save_callbacks(_POLICY)


class SaveCallbacks4_14(ctypes.Structure):
    """`struct save_callbacks` of 4.14."""

    _fields_ = _save_callbacks(_POLICY_4_14)


class RestoreCallbacks(ctypes.Structure):
    """`struct restore_callbacks`; a field that is not set is a null pointer."""

    _fields_ = [
        ("static_data_done", _STATIC_DATA),
        ("suspend", _PLAIN),
        ("postcopy", _PLAIN),
        ("checkpoint", _PLAIN),
        ("wait_checkpoint", _PLAIN),
        ("restore_results", _RESULTS),
        ("data", ctypes.c_void_p),
    ]


class Abi(NamedTuple):
    """The structs of one release, and the declarations of its functions. `restore_tail` are the
    arguments of `xc_domain_restore` after `send_back_fd`, as libxl's helper passes them."""

    save_callbacks: type[SaveCallbacks] | type[SaveCallbacks4_14]
    restore_callbacks: type[RestoreCallbacks]
    prototypes: Prototypes
    restore_tail: tuple[int, ...]


def _prototypes(
    save_callbacks: type[ctypes.Structure], restore_tail: tuple[Any, ...] = ()
) -> Prototypes:
    return {
        # xch, io_fd, dom, flags, callbacks, stream_type, recv_fd
        "xc_domain_save": (
            ctypes.c_int,
            (
                _INTERFACE,
                ctypes.c_int,
                _DOMID,
                ctypes.c_uint32,
                ctypes.POINTER(save_callbacks),
                _STREAM_TYPE,
                ctypes.c_int,
            ),
        ),
        # xch, io_fd, dom, store_evtchn, store_mfn, store_domid, console_evtchn, console_mfn,
        # console_domid, stream_type, callbacks, send_back_fd
        "xc_domain_restore": (
            ctypes.c_int,
            (
                _INTERFACE,
                ctypes.c_int,
                _DOMID,
                ctypes.c_uint,
                ctypes.POINTER(_GFN),
                _DOMID,
                ctypes.c_uint,
                ctypes.POINTER(_GFN),
                _DOMID,
                _STREAM_TYPE,
                ctypes.POINTER(RestoreCallbacks),
                ctypes.c_int,
                *restore_tail,
            ),
        ),
    }


_4_14: Final = Abi(SaveCallbacks4_14, RestoreCallbacks, _prototypes(SaveCallbacks4_14), ())
_4_15: Final = Abi(SaveCallbacks, RestoreCallbacks, _prototypes(SaveCallbacks), ())
_4_22: Final = _4_15._replace(
    prototypes=_prototypes(SaveCallbacks, (ctypes.c_uint,)),
    # memflags: XENMEMF_* for all populated memory.
    restore_tail=(0,),
)

ABIS: Final[Mapping[str, Abi]] = {
    "4.14": _4_14,
    "4.15": _4_15,
    "4.16": _4_15,
    "4.17": _4_15,
    "4.18": _4_15,
    "4.19": _4_15,
    "4.20": _4_15,
    "4.21": _4_15,
    "4.22": _4_22,
}
"""The ABI of each release in `libraries.SUPPORTED`."""


def callback_names(struct: type[ctypes.Structure]) -> tuple[str, ...]:
    """The struct's callbacks: all fields but `data`."""
    return tuple(field[0] for field in struct._fields_ if field[0] != "data")


def provide(struct: ctypes.Structure, name: str, function: Callable[..., int | None]) -> None:
    """Set the callback `name` to `function`; the struct keeps it alive."""
    types = {field[0]: field[1] for field in struct._fields_}
    setattr(struct, name, types[name](function))
