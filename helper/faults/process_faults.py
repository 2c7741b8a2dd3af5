"""What a fault does to its whole process."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from xen_save_helper.ipc_schema.faults import actions
from xen_save_helper.ipc_schema.faults.actions import Action


def carry_out(action: Action) -> None:
    """Do one of `fault_actions.PROCESS`; from any thread."""
    _DOES[action.kind.name](action.value)


def _die(name: str) -> None:
    """Die by the signal, whatever handles or blocks it, and leave no core file. Returns if the
    signal does not end a process by default."""
    signum = signal.Signals[f"SIG{name}"]
    # 1, not 0: then a core_pattern that is a program is not run either (core(5)).
    soft = 1
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    if hard == resource.RLIM_INFINITY or hard >= soft:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))
    # signal.signal works in the main thread only.
    ctypes.CDLL(None).signal(ctypes.c_int(signum), None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signum})
    os.kill(os.getpid(), signum)
    # It may take effect in another thread.
    if name not in actions.HARMLESS | actions.STOPPING:
        threading.Event().wait()


def _stop(seconds: float | None) -> None:
    """Stop the process (SIGSTOP). After `seconds`, if given, the kernel continues it."""
    if seconds is not None:
        _continue_after(seconds)
    os.kill(os.getpid(), signal.SIGSTOP)


_DOES: Final[Mapping[str, Callable[[Any], None]]] = {
    actions.EXIT.name: os._exit,
    actions.DIE.name: _die,
    actions.STOP.name: _stop,
    actions.DELAY.name: time.sleep,
    actions.SIGNAL.name: lambda name: os.kill(os.getpid(), signal.Signals[f"SIG{name}"]),
}

_CLOCK_MONOTONIC: Final = 1
_SIGEVENT: Final = struct.Struct("Pii48x")
"""sigev_value, sigev_signo, sigev_notify; SIGEV_SIGNAL is 0."""
_ITIMERSPEC: Final = struct.Struct("4l")
"""Seconds and nanoseconds of it_interval and of it_value."""


def _continue_after(seconds: float) -> None:
    """Set a timer in the kernel, so that no other process has to send SIGCONT. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    event = _SIGEVENT.pack(0, signal.SIGCONT, 0)
    timer = ctypes.c_void_p()
    # A timer of 0 would be disarmed.
    whole, nanoseconds = divmod(max(1, int(seconds * 1e9)), 10**9)
    due = _ITIMERSPEC.pack(0, 0, whole, nanoseconds)
    if libc.timer_create(_CLOCK_MONOTONIC, event, ctypes.byref(timer)) or (
        libc.timer_settime(timer, 0, due, None)
    ):
        raise OSError(ctypes.get_errno(), "timer")
