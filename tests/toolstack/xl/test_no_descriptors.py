"""Without a free descriptor, an operation fails in order, and nothing stays open."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from pathlib import Path

import pytest
import zmq

from tests.conftest import HostFactory
from tests.nursery import children
from tests.toolstack.two_hosts import MEMORY, Side, run
from xen_save_helper.ipc_schema.channel.helper_request import HelperRequest
from xen_save_helper.ipc_schema.channel.messages import Dialect, Operation
from xen_save_helper.ipc_schema.errors import Error
from xen_save_helper.ipc_schema.trace import Trace
from xen_save_helper.toolstack.helpers.request import (
    HelperProgram,
    HelperResult,
    OwnHelper,
    PipeHelper,
)
from xen_save_helper.toolstack.helpers.supervisor import SaveHelper
from xen_save_helper.toolstack.limits import Limits
from xen_save_helper.toolstack.operations.domain_save import domain_suspend
from xen_save_helper.toolstack.xl.migrate_options import CommandDestination
from xen_save_helper.toolstack.xl.receiver_process import start_receiver

pytestmark = pytest.mark.usefixtures("no_leaks")

PROGRAMS = [OwnHelper(), PipeHelper(Path("/bin/true"), Dialect.MAINLINE)]


def no_zmq_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_context: object, _kind: int) -> None:
        raise zmq.ZMQError(errno.EMFILE)

    monkeypatch.setattr(zmq.Context, "socket", refuse)


def only_pipes(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """`count` more pipes are to be had."""
    pipe, made = os.pipe, []

    def limited() -> tuple[int, int]:
        if len(made) == count:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        made.append(None)
        return pipe()

    monkeypatch.setattr(os, "pipe", limited)


async def start(program: HelperProgram) -> HelperResult:
    ended: asyncio.Future[HelperResult] = asyncio.get_running_loop().create_future()
    helper = SaveHelper(
        HelperRequest(Operation.SAVE, 1, -1),
        {},
        ended.set_result,
        limits=Limits(),
        trace=Trace("controller"),
        program=program,
    )
    helper.start()
    return await ended


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("pipes", [0, 1])
def test_a_helper_without_pipes(
    monkeypatch: pytest.MonkeyPatch, program: HelperProgram, pipes: int
) -> None:
    async def short_of_pipes() -> HelperResult:
        only_pipes(monkeypatch, pipes)
        try:
            return await start(program)
        finally:
            monkeypatch.undo()

    result = run(short_of_pipes())
    assert result.rc == Error.FAIL
    assert "Too many open files" in result.reason


def test_a_save_without_a_zmq_socket(
    host_factory: HostFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Side(host_factory("source"))
    domid = source.host.create_guest("g", MEMORY, "random")
    no_zmq_socket(monkeypatch)
    with open("/dev/null", "wb") as file:
        result = run(domain_suspend(source.ctx, domid, file.fileno()))
    assert result.rc == Error.FAIL
    assert "cannot start the save helper: " in result.reason
    assert "Too many open files" in result.reason
    source.at_rest(domid)


def test_a_receiver_that_cannot_be_reached_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(_fd: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patched, contextlib.suppress(OSError):
        patched.setattr(os, "dup", none_left)
        receiver = start_receiver(CommandDestination("exec cat"), paused=False)
        receiver.dispose()
        receiver.process.wait(10)
    assert [child.name() for child in children()] == []
