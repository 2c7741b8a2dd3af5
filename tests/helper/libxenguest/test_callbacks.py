"""Exceptions in callbacks, with C in between: the library is loaded into this process."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helper.engine.running import Controller
from xen_save_helper.helper.abort import Abort
from xen_save_helper.helper.channels.channel import ChannelError
from xen_save_helper.helper.libxenguest.abi import ABIS, provide
from xen_save_helper.helper.libxenguest.callbacks import Callbacks
from xen_save_helper.ipc_schema.channel.messages import XentoollogLevel
from xen_save_helper.ipc_schema.trace import Trace

VERSION = "4.17"
PV_DOMID = 2


@dataclass
class Engine:
    """The peer's xc_domain_save, with our callbacks."""

    library: ctypes.CDLL
    controller: Controller
    callbacks: Callbacks
    abort: Abort
    events: list[bytes]

    def save(self, *names: str) -> tuple[int, int]:
        """Save with the callbacks `names`; returns retval and errno."""
        struct = ABIS[VERSION].save_callbacks()
        for name in names:
            provide(struct, name, self.callbacks.ask(name))
        near, far = socket.socketpair()
        logger = self.callbacks.logger()
        handle = self.library.xc_interface_open(logger.pointer, logger.pointer, 0)
        with near, far:
            arguments = (handle, near.fileno(), PV_DOMID, 0, ctypes.byref(struct), 0, -1)
            retval = self.library.xc_domain_save(*arguments)
        errnoval = ctypes.get_errno()
        self.library.xc_interface_close(handle)
        return retval, errnoval


@pytest.fixture
def engine(xen: str, no_leaks: None) -> Iterator[Engine]:
    library = ctypes.CDLL(str(Path(xen) / f"libxenguest.so.{VERSION}"), use_errno=True)
    library.xc_interface_open.restype = ctypes.c_void_p
    library.xc_interface_open.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint)
    library.xc_interface_close.argtypes = (ctypes.c_void_p,)
    restype, argtypes = ABIS[VERSION].prototypes["xc_domain_save"]
    library.xc_domain_save.restype, library.xc_domain_save.argtypes = restype, argtypes
    os.environ.pop("XEN_PEER", None)
    controller = Controller({"suspend": 1})
    events: list[bytes] = []
    with Abort() as abort:
        callbacks = Callbacks(controller, abort, Trace("helper", events.append), None)
        yield Engine(library, controller, callbacks, abort, events)


def raising(error: BaseException) -> Callable[..., int]:
    def answer(**_fields: object) -> int:
        raise error

    return answer


def test_a_save_without_exceptions(engine: Engine) -> None:
    assert engine.save("suspend")[0] == 0
    engine.callbacks.check("xc_domain_save", 0, errno.EDOM)


@pytest.mark.parametrize(
    ("error", "errnoval"),
    [
        (RuntimeError("a bug"), errno.EIO),
        (OSError(errno.ENXIO, "no such thing"), errno.ENXIO),
        (ChannelError(errno.EPIPE, "gone"), errno.EPIPE),
        (SystemExit(3), errno.EIO),
        (KeyboardInterrupt(), errno.EIO),
    ],
)
def test_an_exception_fails_its_callback_and_is_raised_when_libxc_is_back(
    engine: Engine, error: BaseException, errnoval: int
) -> None:
    engine.controller.answers = {"suspend": raising(error)}
    assert engine.save("suspend") == (-1, errnoval)
    assert "suspend = 0" in engine.controller.logged()
    with pytest.raises(type(error)) as raised:
        engine.callbacks.check("xc_domain_save", -1, errnoval)
    assert raised.value is error
    assert error.__notes__ == ["in libxc's callback suspend"]
    (failure,) = (line for line in engine.events if b'"failure"' in line)
    assert type(error).__name__.encode() in failure


def test_an_exception_where_there_is_nothing_to_fail_asks_for_the_abort(engine: Engine) -> None:
    told = engine.controller.tell

    def tell(name: str, **fields: int | str) -> None:
        if fields.get("level") == XentoollogLevel.DEBUG:
            raise RuntimeError("a bug")
        told(name, **fields)

    engine.controller.tell = tell
    engine.save("suspend")
    assert engine.abort.reason == "log: a bug"
    with pytest.raises(RuntimeError, match="a bug"):
        engine.callbacks.check("xc_domain_save", 0, 0)


def test_an_abort_is_a_failure_whatever_libxc_comes_to(engine: Engine) -> None:
    engine.abort.request(errno.ETIMEDOUT, "the stream stands still")
    assert engine.save("suspend")[0] == 0
    with pytest.raises(OSError, match="xc_domain_save finished in spite of the abort") as raised:
        engine.callbacks.check("xc_domain_save", 0, errno.EDOM)
    assert raised.value.errno == errno.ETIMEDOUT


def test_the_first_exception_counts(engine: Engine) -> None:
    first, second = RuntimeError("first"), RuntimeError("second")
    answers = iter((first, second))
    engine.controller.answers = {
        "switch_qemu_logdirty": lambda **_fields: raising(next(answers))(),
        "suspend": lambda **_fields: raising(next(answers))(),
    }
    engine.save("switch_qemu_logdirty", "suspend")
    assert engine.callbacks.error is first


def test_what_libxc_complained_of_is_the_error(engine: Engine) -> None:
    engine.controller.answers = {"suspend": 0}
    retval, errnoval = engine.save("suspend")
    with pytest.raises(OSError, match="Domain has not been suspended") as raised:
        engine.callbacks.check("xc_domain_save", retval, errnoval)
    assert raised.value.errno == errno.EDOM
