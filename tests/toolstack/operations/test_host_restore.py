"""Restores by a host's own toolstack, which is `xen-toolstack restore` here."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socket
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import HostFactory
from tests.nursery import children
from tests.toolstack.operations.like_xl import HELPER_VARIABLE
from tests.toolstack.two_hosts import MEMORY, Side, cancelled, run
from tests.waiting import wait_for
from xen_save_helper.ipc_schema.channel import waits
from xen_save_helper.ipc_schema.channel.messages import Dialect, MissingCpuFeatures
from xen_save_helper.ipc_schema.control import Ask, Role
from xen_save_helper.ipc_schema.errors import Error
from xen_save_helper.ipc_schema.streams import xl_header
from xen_save_helper.toolstack.context import OURS
from xen_save_helper.toolstack.helpers import control
from xen_save_helper.toolstack.helpers.request import OUR_HELPER, PipeHelper
from xen_save_helper.toolstack.hosts.interface import GuestState, RestoreProgram
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost
from xen_save_helper.toolstack.hosts.xen import xl
from xen_save_helper.toolstack.operations.domain_restore import (
    domain_create_restore,
    restore_domain,
    restore_parameters,
)
from xen_save_helper.toolstack.operations.domain_save import domain_suspend
from xen_save_helper.toolstack.operations.restore import RestoreResult
from xen_save_helper.toolstack.xl.controlled import controlled

pytestmark = pytest.mark.usefixtures("no_leaks")

RESTORE = (
    sys.executable,
    "-m",
    "xen_save_helper.toolstack.commands.main",
    "restore",
    "-p",
    "/proc/self/fd/0",
)
MISSING_CPU = "XEN_SAVE_HELPER_MISSING_CPU_FEATURES"


class ProgrammedHost(SimulatedHost):
    """A simulated host whose domains are restored by a program."""

    program: tuple[str, ...] = ()
    environment: Mapping[str, str] = {}
    remark = ""
    refusal = ""

    def restore_program(
        self, config: Mapping[str, Any], name: str, *, postcopy: bool = False
    ) -> RestoreProgram:
        if self.refusal:
            raise OSError(errno.ENOTSUP, self.refusal)
        named = {**config, "c_info": {**config["c_info"], "name": name}}
        return RestoreProgram(
            self.program or (*RESTORE, "--host", str(self.directory)),
            xl_header.encode_header(json.dumps(named).encode()),
            HELPER_VARIABLE,
            xl.complaint,
            self.environment,
            self.remark,
        )


@pytest.fixture
def destination(host_factory: HostFactory) -> Side:
    made = host_factory("destination")
    return Side(ProgrammedHost(made.directory))


@pytest.fixture
def saved(host_factory: HostFactory, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A saved guest's stream in a file, and its configuration."""
    source = Side(host_factory("source"))
    domid = source.host.create_guest("g", MEMORY, "random")
    path = tmp_path / "stream"
    with path.open("wb") as file:
        assert run(domain_suspend(source.ctx, domid, file.fileno())).rc == 0
    return path, source.host.config(domid)


def programmed(side: Side, *command: str) -> None:
    assert isinstance(side.host, ProgrammedHost)
    side.host.program = command


def restore(side: Side, config: dict[str, Any], fd: int, name: str = "h") -> RestoreResult:
    return run(domain_create_restore(side.ctx, config, name, fd))


def test_the_domain_is_there_and_paused(
    destination: Side, saved: tuple[Path, dict[str, Any]]
) -> None:
    path, config = saved
    with path.open("rb") as file:
        result = restore(destination, config, file.fileno())
    assert result.rc == 0, result
    assert result.domid == destination.host.find("h")
    assert destination.state("h") is GuestState.PAUSED
    destination.host.unpause(result.domid)
    destination.at_rest(result.domid)


def test_what_the_sender_says_after_the_stream_is_left_to_be_read(
    destination: Side, saved: tuple[Path, dict[str, Any]]
) -> None:
    path, config = saved
    ours, theirs = socket.socketpair()
    with ours, theirs:
        feeder = threading.Thread(target=theirs.sendall, args=(path.read_bytes(),))
        feeder.start()
        result = restore(destination, config, ours.fileno())
        feeder.join(20)
        theirs.sendall(b"GO")
        assert ours.recv(100) == b"GO"
    assert result.rc == 0, result


def test_the_word_that_it_is_received_comes_before_the_rest_of_the_stream(
    destination: Side, saved: tuple[Path, dict[str, Any]]
) -> None:
    path, config = saved
    stream = path.read_bytes()
    ours, theirs = socket.socketpair()
    said = threading.Event()

    async def say() -> None:
        said.set()

    def feed() -> None:
        theirs.sendall(stream[: len(stream) // 2])
        if said.wait(20):
            theirs.sendall(stream[len(stream) // 2 :])
        theirs.shutdown(socket.SHUT_WR)

    with ours, theirs:
        feeder = threading.Thread(target=feed)
        feeder.start()
        parameters = restore_parameters(config, "h", ours.fileno(), receiving=say)
        result = run(restore_domain(destination.ctx, parameters))
        feeder.join(20)
    assert result.rc == 0, result


def test_a_word_that_cannot_be_said_ends_the_restore(
    destination: Side, saved: tuple[Path, dict[str, Any]]
) -> None:
    path, config = saved
    ours, theirs = socket.socketpair()

    async def say() -> None:
        raise BrokenPipeError(errno.EPIPE, "nobody hears it")

    with ours, theirs:
        theirs.sendall(path.read_bytes()[:100_000])
        parameters = restore_parameters(config, "h", ours.fileno(), receiving=say)
        result = run(restore_domain(destination.ctx, parameters))
    assert result.rc == Error.FAIL
    assert "nobody hears it" in result.reason
    assert destination.host.domains() == []


def test_who_asks_the_receiver_sees_what_the_programs_helper_does(
    destination: Side, saved: tuple[Path, dict[str, Any]]
) -> None:
    """The bytes, the phase and the domain, in one place; and a cancel there ends all."""
    path, config = saved
    directory = destination.host.control_dir
    command = (sys.executable, "-m", "tests.toolstack.operations.like_xl")
    programmed(destination, *command, str(destination.host.directory))
    ended: list[RestoreResult] = []

    def look_and_cancel() -> dict[str, Any]:
        def halfway() -> dict[str, Any]:
            running = control.operations(directory)
            assert {one.role for one in running} <= {Role.RECEIVE}
            row = control.ask(directory, running[0], Ask.STATUS) if running else {}
            moved = row and row["transferred"] > 1 << 20 and row["domid"] > 0
            return row if moved else {}

        row: dict[str, Any] = wait_for(halfway, "it tells of the bytes")
        (one,) = control.operations(directory)
        assert control.cancel(directory, one, 20)
        return row

    async def restored(fd: int) -> dict[str, Any]:
        async def receive() -> RestoreResult:
            with controlled(destination.ctx, Role.RECEIVE, "h") as ctx:
                return await domain_create_restore(ctx, config, "h", fd, on_end=ended.append)

        task = asyncio.ensure_future(receive())
        row = await asyncio.to_thread(look_and_cancel)
        await cancelled(task, ended)
        return row

    ours, theirs = socket.socketpair()
    with ours, theirs:
        half = path.read_bytes()[: MEMORY // 2]
        feeder = threading.Thread(target=theirs.sendall, args=(half,))
        feeder.start()
        row = run(restored(ours.fileno()))
        feeder.join(20)
    assert (row["phase"], row["engine"], row["status"]) == ("memory and state", "own", "active")
    assert ended[0].rc == Error.ABORTED
    assert destination.host.domains() == []
    assert list(directory.iterdir()) == []


def test_half_a_stream_leaves_nothing_but_the_programs_complaint(
    destination: Side, saved: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    path, config = saved
    half = tmp_path / "half"
    half.write_bytes(path.read_bytes()[: MEMORY // 2])
    with half.open("rb") as file:
        result = restore(destination, config, file.fileno())
    assert (result.rc, result.domid) == (Error.FAIL, None)
    assert "cannot restore 'h'" in result.reason
    assert destination.host.domains() == []


def test_a_sender_that_falls_silent_is_given_up(
    destination: Side, saved: tuple[Path, dict[str, Any]]
) -> None:
    path, config = saved
    destination.limited(stream_stall=1, suspend=0.5)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(path.read_bytes()[:50_000])
        result = restore(destination, config, ours.fileno())
    assert result.rc == Error.TIMEDOUT, result
    assert "neither bytes nor the end have come for 2 s" in result.reason
    assert destination.host.domains() == []


@pytest.fixture
def lock(destination: Side, tmp_path: Path) -> Path:
    """A FIFO: the host's program begins to read the stream when that is opened, as xl does when it
    has its lock."""
    path = tmp_path / "lock"
    os.mkfifo(path)
    command = [*RESTORE, "--host", str(destination.host.directory)]
    script = f"import os; open({str(path)!r}, 'rb'); os.execv({command[0]!r}, {command!r})"
    programmed(destination, sys.executable, "-c", script)
    return path


def test_a_program_that_waits_its_turn_is_waited_for(
    destination: Side,
    saved: tuple[Path, dict[str, Any]],
    lock: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waits, "PERIOD", 6.0)
    destination.limited(stream_stall=4, suspend=0.5)
    path, config = saved
    lines: list[str] = []

    def log(_level: int, context: str, text: str) -> None:
        if context != OURS or text.startswith("this process"):
            return
        lines.append(text)
        if "the stream has stood still" in text and len(lines) == 1:
            os.close(os.open(lock, os.O_WRONLY | os.O_NONBLOCK))

    ctx = replace(destination.ctx, log=log)
    with path.open("rb") as file:
        result = run(domain_create_restore(ctx, config, "h", file.fileno()))
    assert result.rc == 0, result
    assert lines[0].startswith("the stream has stood still for ")
    assert any(line.startswith("the other side goes on after ") for line in lines)


def test_a_program_that_never_begins_is_given_up(
    destination: Side, saved: tuple[Path, dict[str, Any]], lock: Path
) -> None:
    destination.limited(admission=1.5, abort=1)
    path, config = saved
    with path.open("rb") as file:
        result = restore(destination, config, file.fileno())
    assert (result.rc, result.domid) == (Error.TIMEDOUT, None)
    assert result.reason == f"{sys.executable} has not begun to read the stream for 1.5 s"


def test_a_program_that_does_not_end_is_killed_and_its_domain_destroyed(
    destination: Side, saved: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    path, config = saved
    script = """
import json, os, signal, sys
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost
signal.signal(signal.SIGTERM, signal.SIG_IGN)
SimulatedHost(sys.argv[1]).create(json.loads(sys.argv[2]), "h")
print("xl: it is made", file=sys.stderr, flush=True)
while True:
    signal.pause()
"""
    programmed(
        destination,
        *(sys.executable, "-c", script, str(destination.host.directory), json.dumps(config)),
    )
    destination.limited(stream_stall=2, suspend=1, abort=0.3, admission=2)
    with path.open("rb") as file:
        result = restore(destination, config, file.fileno())
    assert (result.rc, result.domid) == (Error.TIMEDOUT, None)
    lines = [event["line"] for event in destination.happenings.events if "line" in event]
    assert lines == ["xl: it is made"]
    assert destination.host.domains() == []


def test_a_name_in_use_is_refused_before_anything_is_read(
    destination: Side, saved: tuple[Path, dict[str, Any]]
) -> None:
    path, config = saved
    there = destination.host.create(config, "h")
    with path.open("rb") as file:
        result = restore(destination, config, file.fileno())
        assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == 0
    assert (result.rc, result.domid) == (Error.INVAL, None)
    assert [row.domid for row in destination.host.domains()] == [there]


def test_a_program_that_is_not_there_is_named(
    destination: Side, saved: tuple[Path, dict[str, Any]]
) -> None:
    path, config = saved
    programmed(destination, "/nowhere/xl")
    with path.open("rb") as file:
        result = restore(destination, config, file.fileno())
    assert result.rc == Error.FAIL
    assert "/nowhere/xl" in result.reason


def test_the_program_is_told_which_helper(
    destination: Side, saved: tuple[Path, dict[str, Any]]
) -> None:
    path, config = saved
    programmed(destination, "sh", "-c", 'echo "x: error: helper $THE_HELPER" >&2; exit 7')
    other = PipeHelper(Path("/usr/lib/other-helper"), Dialect.MAINLINE)
    for program, helper in ((destination.ctx.program, OUR_HELPER.path), (other, other.path)):
        ctx = replace(destination.ctx, program=program)
        with path.open("rb") as file:
            result = run(domain_create_restore(ctx, config, "h", file.fileno()))
        assert result.reason == f"sh: helper {helper}"


@pytest.mark.parametrize("choice", MissingCpuFeatures)
def test_the_programs_helper_is_told_what_to_do_about_missing_cpu_features(
    destination: Side, saved: tuple[Path, dict[str, Any]], choice: MissingCpuFeatures
) -> None:
    path, config = saved
    programmed(destination, "sh", "-c", f'echo "x: error: to ${MISSING_CPU}" >&2; exit 7')
    ctx = replace(destination.ctx, missing_cpu_features=choice)
    with path.open("rb") as file:
        result = run(domain_create_restore(ctx, config, "h", file.fileno()))
    assert result.reason == f"sh: to {choice}"


def test_what_the_host_knows_goes_to_the_program_and_to_people(
    destination: Side, saved: tuple[Path, dict[str, Any]]
) -> None:
    path, config = saved
    programmed(destination, "sh", "-c", 'echo "x: error: model $THE_MODEL" >&2; exit 7')
    assert isinstance(destination.host, ProgrammedHost)
    destination.host.environment = {"THE_MODEL": "/usr/bin/wrapper"}
    destination.host.remark = "the wrapper starts it"
    said: list[str] = []
    ctx = replace(destination.ctx, log=lambda _level, _context, text: said.append(text))
    with path.open("rb") as file:
        result = run(domain_create_restore(ctx, config, "h", file.fileno()))
    assert result.reason == "sh: model /usr/bin/wrapper"
    assert said[0] == "the wrapper starts it"


def test_what_the_host_knows_to_fail_is_refused_before_anything_is_read(
    destination: Side, saved: tuple[Path, dict[str, Any]]
) -> None:
    path, config = saved
    assert isinstance(destination.host, ProgrammedHost)
    destination.host.refusal = "the device model takes no saved state"
    with path.open("rb") as file:
        result = restore(destination, config, file.fileno())
        assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == 0
    assert result.rc == Error.FAIL
    assert result.reason == (
        "the domain h cannot be restored: the device model takes no saved state"
    )
    assert destination.host.domains() == []


def test_a_stream_that_cannot_be_read_leaves_no_program_behind(
    destination: Side, saved: tuple[Path, dict[str, Any]]
) -> None:
    _, config = saved
    programmed(destination, "cat")
    with socket.socket() as unconnected:
        result = restore(destination, config, unconnected.fileno())
    assert result.rc == Error.FAIL
    assert "not connected" in result.reason
    assert [child.name() for child in children()] == []


def test_nothing_is_started_on_a_host_that_does_not_list_its_domains(
    destination: Side, saved: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(_host: ProgrammedHost, _name: str) -> int:
        raise TimeoutError("no answer")

    path, config = saved
    monkeypatch.setattr(ProgrammedHost, "find", silent)
    with path.open("rb") as file:
        result = restore(destination, config, file.fileno())
    assert (result.rc, result.domid) == (Error.TIMEDOUT, None)
    assert "restore_program_started" not in destination.happenings.names()
