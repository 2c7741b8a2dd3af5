from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests import trace_lines
from tests.helper.engine.running import suspend
from tests.helper.libxl_side import (
    HELPER,
    Libxl,
    cbflags,
    restore_of,
    save_of,
    started,
)
from tests.waiting import until_blocked
from xen_save_helper.ipc_schema.channel.helper_arguments import HelperArguments
from xen_save_helper.ipc_schema.channel.helper_request import HelperRequest
from xen_save_helper.ipc_schema.channel.messages import Dialect, Operation, XentoollogLevel
from xen_save_helper.toolstack.hosts.interface import GuestState
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost

MEMORY = 8 << 20


def by_hand(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*HELPER, *arguments],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ([], "--save-domain, --restore-domain or --connect is missing"),
        (["nonsense"], "unknown option 'nonsense'"),
        (["--nonsense", "1"], "unknown option '--nonsense'"),
        (["--connect"], "--connect needs a value"),
        (["--connect", "ipc:///nonexistent/controller"], "--secret-fd is missing"),
        (["--connect", "ipc:///nonexistent", "--secret-fd", "0"], "want ipc:// and the path"),
        (["--connect", "tcp://127.0.0.1:1", "--secret-fd", "0"], "want ipc:// and the path"),
        (["--connect", "ipc:///dev/null", "--secret-fd", "99"], "--secret-fd 99: Bad file"),
        (["--connect", "ipc:///dev/null", "--secret-fd", "0"], "--secret-fd: 0 bytes, want 32"),
        (["--secret-fd", "x", "--connect", "ipc:///dev/null"], "--secret-fd 'x': want a number"),
        (["--start-limit", "-1", "--save-domain"], "--start-limit '-1': want a number"),
        (["--stream-stall", "1e9", "--save-domain"], "want a number from 0 to 2000000"),
        (["--save-domain"], "--save-domain with 0 numbers matches no known libxl"),
        (["--save-domain", "1", "2", "3"], "with 3 numbers matches no known libxl"),
        (["--connect", "x", "--save-domain"], "exclude each other"),
    ],
)
def test_by_hand_it_says_what_is_missing(arguments: list[str], what: str) -> None:
    done = by_hand(*arguments)
    assert done.returncode == 255
    assert done.stdout == ""
    assert what in done.stderr.splitlines()[-1]
    assert "saves or restores one Xen domain" in done.stderr
    assert "Traceback" not in done.stderr


def test_help() -> None:
    done = by_hand("--help")
    assert done.returncode == 0
    assert "LIBXL_SAVE_HELPER" in done.stdout


def test_an_unknown_dialect() -> None:
    done = by_hand("--save-domain", "1", XEN_SAVE_HELPER_DIALECT="klingon")
    assert done.returncode == 255
    assert "XEN_SAVE_HELPER_DIALECT 'klingon': want one of mainline" in done.stderr


def test_without_xen_it_says_so_in_libxls_words() -> None:
    with open(os.devnull, "wb") as null, started(save_of(null.fileno(), 1)) as libxl:
        lines = []
        while (said := libxl.hear_any())[0] == "log":
            lines.append(said[1]["formatted"])
        assert said == ("complete", {"retval": -1, "errnoval": errno.ENODEV})
        libxl.answer(0)
        assert libxl.exit_status() == 0
    assert lines[0] == "starting save"
    assert any("no Xen here: /sys/hypervisor/version is missing" in line for line in lines)
    assert lines[-1] == "complete r=-1"


def test_a_descriptor_that_is_not_open_is_named() -> None:
    with started(save_of(900, 1)) as libxl:
        libxl.hear_any()
        _name, failure = libxl.hear_any()
        assert failure["formatted"] == "io_fd 900: Bad file descriptor"
        assert libxl.hear() == ("complete", {"retval": -1, "errnoval": errno.EBADF})
        libxl.answer(0)
        assert libxl.exit_status() == 0


def save_to_the_end(host: SimulatedHost, domid: int, libxl: Libxl) -> None:
    """Answer a save's callbacks as libxl does, until it ends."""
    while True:
        match libxl.hear():
            case ("suspend", _):
                libxl.answer(suspend(host, domid))
            case ("switch_qemu_logdirty", {"enable": enable}):
                host.switch_qemu_logdirty(domid, bool(enable))
                libxl.answer(0)
            case ("complete", fields):
                assert fields == {"retval": 0, "errnoval": 0}
                libxl.answer(0)
                assert libxl.exit_status() == 0
                return
            case other:
                raise AssertionError(other)


@pytest.mark.parametrize("dialect", list(Dialect))
def test_a_guest_is_saved_and_restored_in_each_of_libxls_dialects(
    host: SimulatedHost, tmp_path: Path, dialect: Dialect
) -> None:
    domid = host.create_guest("g", MEMORY, "random", type="pvh")
    uri = f"sim:{host.directory}"
    with (tmp_path / "stream").open("w+b") as stream:
        with started(save_of(stream.fileno(), domid, dialect, xcflags=1), uri) as libxl:
            save_to_the_end(host, domid, libxl)
        config = host.config(domid)
        steps = host.report(domid).steps
        host.destroy(domid)
        stream.seek(0)
        restored = host.create(config, "g")
        with started(restore_of(stream.fileno(), restored, dialect), uri) as libxl:
            name, gfns = libxl.hear()
            assert name == "restore_results"
            assert all(gfns.values())
            assert libxl.hear() == ("complete", {"retval": 0, "errnoval": 0})
            libxl.answer(0)
            assert libxl.exit_status() == 0
    host.unpause(restored)
    report = host.verify(restored, 20)
    assert report.memory_ok
    assert report.state is GuestState.RUNNING
    assert report.steps >= steps


def test_the_policy_of_the_environment_holds_for_our_engine_too(
    host: SimulatedHost, tmp_path: Path
) -> None:
    domid = host.create_guest("g", MEMORY, "write-heavy")
    events = tmp_path / "events"
    environment = {
        "XEN_SAVE_HELPER_MAX_ITERATIONS": "2",
        "XEN_SAVE_HELPER_DIRTY_THRESHOLD": "0",
        "XEN_SAVE_HELPER_EVENTS": str(events),
    }
    with (
        (tmp_path / "stream").open("wb") as stream,
        started(
            save_of(stream.fileno(), domid, xcflags=1), f"sim:{host.directory}", **environment
        ) as libxl,
    ):
        save_to_the_end(host, domid, libxl)
    told = trace_lines.read(events)
    decisions = [line for line in told if line["event"] == "precopy_policy"]
    assert [line["iteration"] for line in decisions if line["dirty_count"] >= 0] == [1, 2]
    assert decisions[-1]["decision"] == "STOP_AND_COPY"
    assert decisions[-1]["why"] == "2 rounds, at most 2"


def test_a_restore_that_fails_tells_its_results_before_it_completes(
    host: SimulatedHost, tmp_path: Path
) -> None:
    domid = host.create({**host.config(host.create_guest("model", MEMORY, "idle"))}, "g")
    (tmp_path / "stream").write_bytes(b"no stream")
    with (
        (tmp_path / "stream").open("rb") as stream,
        started(restore_of(stream.fileno(), domid), f"sim:{host.directory}") as libxl,
    ):
        assert libxl.hear() == ("restore_results", {"store_gfn": 0, "console_gfn": 0})
        # An errno of its own: a stream that ends tells that its writer has gone.
        assert libxl.hear() == ("complete", {"retval": -1, "errnoval": errno.ENODATA})
        libxl.answer(0)
        assert libxl.exit_status() == 0


@pytest.fixture
def unread_stream() -> Iterator[socket.socket]:
    """The sending end of a stream that nobody reads."""
    near, far = socket.socketpair()
    with near, far:
        yield near


def test_sigterm_in_a_blocked_write_is_the_error_path(
    host: SimulatedHost, unread_stream: socket.socket
) -> None:
    domid = host.create_guest("g", MEMORY, "random")
    arguments = save_of(unread_stream.fileno(), domid, xcflags=1)
    with started(arguments, f"sim:{host.directory}") as libxl:
        assert libxl.hear() == ("switch_qemu_logdirty", {"domid": domid, "enable": 1})
        libxl.answer(0)
        until_blocked(unread_stream)
        libxl.process.send_signal(signal.SIGTERM)
        assert libxl.hear() == ("switch_qemu_logdirty", {"domid": domid, "enable": 0})
        libxl.answer(0)
        assert libxl.hear() == ("complete", {"retval": -1, "errnoval": errno.ECANCELED})
        libxl.answer(0)
        assert libxl.process.wait(1) == 0
    at_rest(host, domid)


def at_rest(host: SimulatedHost, domid: int) -> None:
    """Whether the guest runs on and is not in log-dirty mode."""
    (row,) = (row for row in host.domains() if row.domid == domid)
    assert not row.log_dirty
    assert row.state is GuestState.RUNNING
    assert host.verify(domid, 20).memory_ok


@pytest.mark.parametrize("when", ["in a callback", "in a blocked write"])
def test_libxls_death_is_the_error_path_and_254(
    host: SimulatedHost, unread_stream: socket.socket, when: str
) -> None:
    domid = host.create_guest("g", MEMORY, "random")
    arguments = save_of(unread_stream.fileno(), domid, xcflags=1)
    with started(arguments, f"sim:{host.directory}") as libxl:
        assert libxl.hear()[0] == "switch_qemu_logdirty"
        if when == "in a blocked write":
            libxl.answer(0)
            until_blocked(unread_stream)
        libxl.hang_up()
        assert libxl.process.wait(2) == 254
        assert "Traceback" not in libxl.errors()
    at_rest(host, domid)


def test_a_stream_that_stands_still_is_given_up(
    host: SimulatedHost, unread_stream: socket.socket
) -> None:
    domid = host.create_guest("g", MEMORY, "idle")
    flags = cbflags(Dialect.MAINLINE, "suspend")
    request = HelperRequest(Operation.SAVE, domid, unread_stream.fileno(), xcflags=1)
    arguments = HelperArguments(request, Dialect.MAINLINE, flags)
    with started(arguments, f"sim:{host.directory}", XEN_SAVE_HELPER_STREAM_STALL="0.5") as libxl:
        assert libxl.hear() == ("complete", {"retval": -1, "errnoval": errno.ETIMEDOUT})
        libxl.answer(0)
        assert libxl.exit_status() == 0
    at_rest(host, domid)


@pytest.mark.parametrize("operation", ["save", "restore"])
def test_a_stream_may_stand_still_for_ever_unless_a_limit_is_set(
    tmp_path: Path, operation: str
) -> None:
    events = tmp_path / "events"
    made = save_of if operation == "save" else restore_of
    with (
        open(os.devnull, "r+b") as null,
        started(made(null.fileno(), 1), XEN_SAVE_HELPER_EVENTS=str(events)) as libxl,
    ):
        while libxl.hear()[0] != "complete":
            pass
        libxl.answer(0)
        assert libxl.exit_status() == 0
    lines = [json.loads(line) for line in events.read_text().splitlines()]
    start = next(line for line in lines if line["event"] == "start")
    assert start["stream_stall"] == 0.0


def test_a_stream_that_stands_still_is_waited_for_and_told_of(
    host: SimulatedHost, unread_stream: socket.socket, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "from xen_save_helper.ipc_schema.channel import waits\nwaits.PERIOD = 0.3\n"
    )
    events = tmp_path / "events"
    domid = host.create_guest("g", MEMORY, "random")
    environment = {"PYTHONPATH": str(tmp_path), "XEN_SAVE_HELPER_EVENTS": str(events)}
    arguments = save_of(unread_stream.fileno(), domid, xcflags=1)
    with started(arguments, f"sim:{host.directory}", **environment) as libxl:
        assert libxl.hear()[0] == "switch_qemu_logdirty"
        libxl.answer(0)
        told: list[str] = []
        while len(told) < 2:
            name, fields = libxl.hear_any()
            # On a busy machine it may be the helper that has done nothing for a while.
            if name == "log" and "stood still" in fields["formatted"]:
                assert fields["level"] == XentoollogLevel.WARN
                told.append(fields["formatted"])
        libxl.process.send_signal(signal.SIGTERM)
        assert libxl.hear() == ("switch_qemu_logdirty", {"domid": domid, "enable": 0})
        libxl.answer(0)
        assert libxl.hear() == ("complete", {"retval": -1, "errnoval": errno.ECANCELED})
        libxl.answer(0)
        assert libxl.process.wait(1) == 0
    assert all("s: waiting for the other side to take more" in text for text in told)
    # The stream may still have moved between the two, which is told otherwise.
    lines = map(json.loads, events.read_text().splitlines())
    waits = [line["text"] for line in lines if line["event"] == "waiting"]
    assert [text for text in waits if "stood still" in text][:2] == told
    at_rest(host, domid)


def test_sigterm_kills_a_restore_whatever_it_has_inherited(
    host: SimulatedHost, unread_stream: socket.socket
) -> None:
    domid = host.create(host.config(host.create_guest("model", MEMORY, "idle")), "g")
    old = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        restoring = started(restore_of(unread_stream.fileno(), domid), f"sim:{host.directory}")
        libxl = restoring.__enter__()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        signal.signal(signal.SIGTERM, old)
    with contextlib.ExitStack() as stack:
        stack.push(restoring.__exit__)
        assert libxl.hear_any()[0] == "log"
        libxl.process.send_signal(signal.SIGTERM)
        assert libxl.exit_status() == -signal.SIGTERM


def test_an_answer_that_does_not_come_is_the_error_path(
    host: SimulatedHost, unread_stream: socket.socket
) -> None:
    domid = host.create_guest("g", MEMORY, "random")
    arguments = save_of(unread_stream.fileno(), domid, xcflags=1)
    with started(arguments, f"sim:{host.directory}", XEN_SAVE_HELPER_ANSWER_LIMIT="0.5") as libxl:
        assert libxl.hear()[0] == "switch_qemu_logdirty"
        assert libxl.process.wait(10) == 255
        assert "no answer to switch_qemu_logdirty within 0.5 s" in libxl.errors()
    at_rest(host, domid)


def test_a_stray_print_does_not_get_into_the_conversation(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import xen_save_helper.helper.run\n"
        "starts = xen_save_helper.helper.run._operate\n"
        "def talkative(*a):\n"
        "    print('stray')\n"
        "    return starts(*a)\n"
        "xen_save_helper.helper.run._operate = talkative\n"
    )
    with (
        open(os.devnull, "wb") as null,
        started(save_of(null.fileno(), 1), PYTHONPATH=str(tmp_path)) as libxl,
    ):
        assert libxl.hear()[0] == "complete"
        libxl.answer(0)
        assert libxl.exit_status() == 0
        assert "stray" in libxl.errors()


INSTALLED: Final = [*HELPER[:2], str(Path(sys.executable).with_name("xen-save-helper"))]


@pytest.mark.parametrize("command", [HELPER, INSTALLED], ids=["module", "installed"])
def test_the_drop_in_loads_little(command: list[str]) -> None:
    with (
        open(os.devnull, "wb") as null,
        started(save_of(null.fileno(), 1), "xen", "-X", "importtime", command=command) as libxl,
    ):
        errors: list[str] = []
        reader = threading.Thread(target=lambda: errors.append(libxl.errors()))
        reader.start()
        assert libxl.hear()[0] == "complete"
        libxl.answer(0)
        assert libxl.exit_status() == 0
        reader.join()
    loaded = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in errors[0].splitlines()}
    assert "xen_save_helper" in loaded
    slow = {"zmq", "rich", "msgpack", "numpy", "asyncio", "construct", "dataclasses", "typing"}
    assert loaded & slow == set()
    # json, which the control socket has, loads it.
    assert "re" not in loaded or "json" in loaded


def logged_of_a_save(**environment: str) -> list[tuple[int, str]]:
    """Level and text of the lines that a successful save logs."""
    lines = []
    with open(os.devnull, "wb") as null, started(save_of(null.fileno(), 1), **environment) as libxl:
        while (said := libxl.hear_any())[0] == "log":
            lines.append((said[1]["level"], said[1]["formatted"]))
        assert said == ("complete", {"retval": -1, "errnoval": errno.ENODEV})
        libxl.answer(0)
        assert libxl.exit_status() == 0
        assert libxl.errors() == ""
    return lines


def warnings(lines: list[tuple[int, str]]) -> list[str]:
    return [text for level, text in lines if level == XentoollogLevel.WARN]


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("no directory", "No such file or directory: there is no trace"),
        ("a directory", "Is a directory: there is no trace"),
        ("a FIFO that nobody reads", "No such device or address: there is no trace"),
        ("full", "No space left on device: the trace ends here"),
    ],
)
def test_a_trace_that_cannot_be_had_fails_nothing(tmp_path: Path, kind: str, why: str) -> None:
    events = tmp_path / "events"
    if kind == "no directory":
        events /= "events"
    elif kind == "a directory":
        events.mkdir()
    elif kind == "full":
        events = Path("/dev/full")
    else:
        os.mkfifo(events)
    lines = logged_of_a_save(XEN_SAVE_HELPER_EVENTS=str(events))
    assert warnings(lines) == [f"events file {events}: {why}"]


def test_what_is_wrong_in_the_settings_is_told_in_libxls_log_and_fails_nothing(
    tmp_path: Path,
) -> None:
    conf = tmp_path / "conf"
    conf.write_text("XEN_SAVE_HELPER_MAX_ITERATIONS=five\nnonsense\n")
    lines = logged_of_a_save(XEN_SAVE_HELPER_CONFIG=str(conf), XEN_SAVE_HELPER_EVNTS="/tmp/e")
    first, second, third = warnings(lines)
    assert first.startswith(f"{conf}, line 2: 'nonsense': want NAME=VALUE")
    assert second.startswith("environment: unknown setting 'XEN_SAVE_HELPER_EVNTS'")
    assert third.startswith(f"{conf}, line 1: XEN_SAVE_HELPER_MAX_ITERATIONS='five'")


def test_events_are_appended_to_a_file(tmp_path: Path) -> None:
    events = tmp_path / "events"
    events.write_text("before\n")
    with (
        open(os.devnull, "wb") as null,
        started(save_of(null.fileno(), 1), XEN_SAVE_HELPER_EVENTS=str(events)) as libxl,
    ):
        assert libxl.hear()[0] == "complete"
        libxl.answer(0)
        assert libxl.exit_status() == 0
    before, *lines = events.read_text().splitlines()
    assert before == "before"
    told = [json.loads(line) for line in lines]
    trace_lines.check(told)
    assert {line["process"] for line in told} == {"helper"}
    assert told[-1]["event"] == "complete"
    assert told[-1]["errnoval"] == errno.ENODEV
