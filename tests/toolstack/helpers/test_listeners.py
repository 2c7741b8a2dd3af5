"""An operation's listeners may fail: it ends as it would have ended without them."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import HostFactory
from tests.toolstack.stage import TOOLSTACK, Hosts, toolstack
from tests.toolstack.two_hosts import MEMORY, Side
from xen_save_helper.ipc_schema.trace import Trace
from xen_save_helper.toolstack.context import Context
from xen_save_helper.toolstack.operations.domain_save import SUSPEND_LIVE, domain_suspend
from xen_save_helper.toolstack.operations.save import SaveResult

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def source(host_factory: HostFactory) -> Side:
    return Side(host_factory("source"))


def full_after(lines: int) -> Callable[[bytes], None]:
    """A trace's file that has room for `lines` lines."""
    taken: list[bytes] = []

    def write(line: bytes) -> None:
        taken.append(line)
        if len(taken) > lines:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return write


def gone(*_line: object) -> None:
    raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def save(ctx: Context, domid: int, path: str) -> tuple[SaveResult, list[BaseException]]:
    """Save into `path`; return the result, and the listeners' errors that the loop got."""
    told: list[BaseException] = []

    async def bounded() -> SaveResult:
        asyncio.get_running_loop().set_exception_handler(
            lambda _loop, context: told.append(context["exception"])
        )
        with open(path, "wb", buffering=0) as file:
            async with asyncio.timeout(30):
                return await domain_suspend(ctx, domid, file.fileno(), SUSPEND_LIVE)

    return asyncio.run(bounded()), told


@pytest.mark.parametrize("lines", [0, 3, 5, 8])
def test_a_trace_that_cannot_be_written_ends(source: Side, lines: int) -> None:
    domid = source.host.create_guest("g", MEMORY, "random")
    ended: list[OSError] = []
    trace = Trace("controller", full_after(lines), ended.append)
    result, told = save(replace(source.ctx, trace=trace), domid, "/dev/null")
    assert (result.rc, told) == (0, []), result
    assert [error.errno for error in ended] == [errno.ENOSPC]
    source.at_rest(domid)


@pytest.mark.parametrize(("path", "rc"), [("/dev/null", 0), ("/dev/full", -3)])
def test_a_log_that_nobody_takes(source: Side, path: str, rc: int) -> None:
    domid = source.host.create_guest("g", MEMORY, "random")
    result, told = save(replace(source.ctx, log=gone, progress=gone), domid, path)
    assert result.rc == rc, result
    assert {type(error) for error in told} == {BrokenPipeError}
    source.at_rest(domid)


def test_the_commands_say_that_the_trace_has_ended(hosts: Hosts, tmp_path: Path) -> None:
    hosts.guest()
    ended = toolstack(
        *("save", "g", tmp_path / "g", "--host", hosts.source, "--json", "--events", "/dev/full")
    )
    assert ended.code == 0, ended
    assert json.loads(ended.out)["state"] is None
    (line,) = ended.err.splitlines()
    assert (
        line == "xen-toolstack: events file /dev/full: No space left on device: the trace ends here"
    )


def test_the_commands_go_on_without_a_trace_that_cannot_be_opened(
    hosts: Hosts, tmp_path: Path
) -> None:
    hosts.guest()
    where = "/nonexistent/events"
    ended = toolstack(
        *("save", "g", tmp_path / "g", "--host", hosts.source, "--json", "--events", where)
    )
    assert ended.code == 0, ended
    (line,) = ended.err.splitlines()
    why = "No such file or directory: there is no trace"
    assert line == f"xen-toolstack: events file {where}: {why}"


def test_a_log_on_a_stderr_that_nobody_reads(hosts: Hosts, tmp_path: Path) -> None:
    hosts.guest()
    nobody, stderr = os.pipe()
    os.close(nobody)
    command = [*TOOLSTACK, "save", "g", tmp_path / "g", "--host", hosts.source, "--verbose"]
    try:
        ended = subprocess.run([*command, "--json"], stderr=stderr, timeout=60, check=False)
    finally:
        os.close(stderr)
    assert ended.returncode == 0
    assert hosts.states(hosts.at_source) == {}
