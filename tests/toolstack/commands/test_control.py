"""Real migrations and saves between simulated hosts, seen and steered from another shell."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parsed
from prometheus_client.parser import text_string_to_metric_families as parsed_by_node_exporter

from tests import trace_lines
from tests.conftest import processes_under
from tests.toolstack.stage import Ended, Hosts, called, wait_for
from xen_save_helper.helper.control_socket import ControlSocket
from xen_save_helper.ipc_schema.control import Ask, Identity, Role, encode_line
from xen_save_helper.ipc_schema.operation_status import OperationStatus
from xen_save_helper.toolstack.helpers import control
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost

SLOW: Final = "1M"
"""Bytes a second at which nothing ends by itself while a test looks at it."""
FAST: Final = "0"


class Operation:
    """A command at work, and others that see and steer it."""

    def __init__(self, hosts: Hosts, *arguments: object, at: SimulatedHost | None = None) -> None:
        self._hosts = hosts
        self.host = hosts.source if at is None else at.directory
        self.events = hosts.source.parent / "events"
        self._process = hosts.start(
            *arguments, "--json", "--host", hosts.source, "--events", self.events
        )

    def call(self, command: str, *arguments: object, name: str = "g") -> Ended:
        return called(command, name, *arguments, "--json", "--host", self.host)

    def does(self, command: str, *arguments: object) -> Any:
        done = self.call(command, *arguments)
        assert done.code == 0, done.err
        return done.json

    def refuses(self, why: str, command: str, *arguments: object) -> None:
        done = self.call(command, *arguments)
        assert done.code == 1
        assert why in done.line, done.line

    def row(self) -> dict[str, Any]:
        """Empty before it begins."""
        done = self.call("status")
        return done.json[0] if done.code == 0 else {}

    def until(self, phase: str, **figures: int) -> dict[str, Any]:
        """Its row in a phase, with figures that are at least these."""

        def there() -> dict[str, Any]:
            row = self.row()
            right = row.get("phase") == phase
            return row if right and all(row[name] >= figures[name] for name in figures) else {}

        row: dict[str, Any] = wait_for(there, f"{phase}: {figures}")
        OperationStatus.decode(row)
        return row

    def ended(self) -> tuple[int, dict[str, Any]]:
        out, err = self._process.communicate(timeout=30)
        assert list((self.host / "control").iterdir()) == [], err
        return self._process.returncode, json.loads(out.splitlines()[0])

    def steered(self) -> list[str]:
        return [line["ask"] for line in trace_lines.read(self.events) if line["event"] == "control"]


def migration(hosts: Hosts, *more: object, **guest: Any) -> Operation:
    hosts.guest(**guest)
    return Operation(hosts, "migrate", "g", "--to", hosts.destination, "--bandwidth", SLOW, *more)


def test_both_ends_of_a_migration_can_be_seen(hosts: Hosts) -> None:
    operation = migration(hosts)
    row = operation.until("precopy", normal=1024)
    assert (row["role"], row["domain"], row["status"]) == ("migrate", "g", "active")
    assert row["total"] >= 8 << 20 > row["remaining"]
    assert row["max_bandwidth"] == 1 << 20
    (there,) = called("status", "--json", "--host", hosts.destination).json
    assert (there["role"], there["phase"]) == ("receive", "memory and state")
    assert there["transferred"] > 4 << 20
    assert "precopy" in called("status", "--host", hosts.source).out
    whole = called("status", "g", "--host", hosts.source).out
    assert "bandwidth 1 MiB/s" in whole
    text = called("status", "--openmetrics", "--host", hosts.source).out
    assert text.endswith("# EOF\n")
    for parse in (parsed, parsed_by_node_exporter):
        families = {family.name: family for family in parse(text)}
        (sample,) = families["xen_migration_transferred_bytes"].samples
        assert sample.labels == {"domain": "g", "domid": "1", "role": "migrate"}
        assert sample.value > 0
        assert {family.type for family in families.values()} == {"gauge"}
    watch = hosts.start("status", "g", "--watch", "0.05", "--json", "--host", hosts.source)
    assert watch.stdout is not None
    assert json.loads(watch.stdout.readline())[0]["phase"] == "precopy"

    assert operation.does("set", "--bandwidth", FAST)["bandwidth"] == 0
    assert operation.ended()[0] == 0
    out, err = watch.communicate(timeout=30)
    assert watch.returncode == 0, err
    assert json.loads(out.splitlines()[-1]) == []
    assert hosts.states(hosts.at_destination) == {"g": "running"}
    assert called("status", "--host", hosts.source).out == "nothing is going on\n"
    refused = called("status", "g", "--host", hosts.source)
    assert (refused.code, refused.line) == (
        1,
        "xen-toolstack: no operation on 'g' is going on here",
    )


def test_a_cancel_at_the_receiver(hosts: Hosts) -> None:
    operation = migration(hosts)
    operation.until("precopy", normal=1)
    done = called("cancel", "g", "--json", "--host", hosts.destination)
    assert done.code == 0, done.err
    assert operation.ended()[0] == 1
    assert hosts.states(hosts.at_source) == {"g": "running"}
    assert hosts.states(hosts.at_destination) == {}


def test_limits_and_the_way_out_are_changed_while_it_runs(hosts: Hosts) -> None:
    operation = migration(hosts, "--max-rounds", 1000, rate=12_000)
    operation.until("precopy")
    now = operation.does("set", "--max-downtime", 1, "--max-rounds", 900, "--bandwidth", "20M")
    assert (now["max_downtime"], now["max_rounds"]) == (1, 900)
    row = operation.until("precopy", rounds=2)
    assert row["dirty_pages"] > 0
    assert row["dirty_pages_rate"] > 0
    assert row["expected_downtime"] > 0
    operation.refuses("postcopy was not asked for", "switch", "postcopy")
    operation.does("switch", "stop-and-copy")
    code, told = operation.ended()
    assert (code, told["mode"]) == (0, "precopy")
    assert operation.steered() == ["set", "switch"]
    (line,) = (
        line
        for line in trace_lines.read(operation.events)
        if line["event"] == "precopy_policy" and line.get("answer") == "STOP_AND_COPY"
    )
    assert line["why"] == "asked for while it ran"


def test_before_and_after_the_postcopy_transition(hosts: Hosts) -> None:
    operation = migration(hosts, "--postcopy", megabytes=16)
    operation.until("precopy", normal=1)
    operation.does("switch", "postcopy")
    row = operation.until("postcopy pages")
    assert (row["status"], row["postcopy"]) == ("postcopy-active", True)
    assert 0 < row["postcopy_remaining"] <= row["postcopy_total"]
    operation.refuses("past the postcopy transition", "cancel")
    operation.refuses("precopy has ended", "set", "--max-rounds", 3)
    operation.refuses("precopy has ended", "switch", "stop-and-copy")
    # Pages that the guest waits for are sent all the same.
    operation.does("pause-sending")
    requests = operation.row()["postcopy_requests"]
    assert operation.until("postcopy pages", postcopy_requests=requests + 3)["paused"]
    (there,) = called("status", "g", "--json", "--host", hosts.destination).json
    assert there["postcopy_requests"] > requests
    assert there["postcopy_blocktime"] is not None
    refused = called("cancel", "g", "--host", hosts.destination)
    assert "the guest may run here already" in refused.line
    operation.does("resume-sending")
    operation.does("set", "--bandwidth", FAST)
    code, told = operation.ended()
    assert (code, told["mode"]) == (0, "postcopy")
    assert hosts.states(hosts.at_destination) == {"g": "running"}
    assert told["guest"]["memory_ok"]


def hot_pages(hosts: Hosts, *options: object, **limits: object) -> list[dict[str, Any]]:
    """What is traced of them if these limits are set once there are some."""
    never = ("--max-rounds", 100_000, "--dirty-threshold", 0)
    operation = migration(hosts, "--postcopy", *never, *options, rate=12_000)
    operation.until("precopy", normal=1)
    # As long as nothing is dirty yet, precopy cannot end.
    operation.does("set", "--max-downtime", 0, "--bandwidth", "20M")
    operation.until("precopy", rounds=3)
    for name, value in limits.items():
        operation.does("set", f"--{name.replace('_', '-')}", value)
    if not limits:
        operation.does("switch", "postcopy")
    code, told = operation.ended()
    assert (code, told["mode"]) == (0, "postcopy")
    return [line for line in trace_lines.read(operation.events) if line["event"] == "hot_pages"]


def test_a_downtime_that_is_set_while_it_runs_is_spent_on_hot_pages(hosts: Hosts) -> None:
    (line,) = hot_pages(hosts, max_downtime=60_000)
    assert line["max_downtime_ms"] == 60_000
    assert 0 < line["sent"] == line["hot"]


def test_a_downtime_that_is_taken_back_while_it_runs_is_not(hosts: Hosts) -> None:
    assert hot_pages(hosts, "--max-downtime", 60_000) == []


def test_a_postcopy_that_becomes_a_stop_and_copy(hosts: Hosts) -> None:
    operation = migration(hosts, "--postcopy")
    operation.until("precopy", normal=1)
    operation.does("switch", "stop-and-copy")
    operation.does("set", "--bandwidth", FAST)
    code, told = operation.ended()
    assert code == 0, told
    assert told["postcopy_transitioned"] == "never"
    assert hosts.states(hosts.at_destination) == {"g": "running"}


def test_a_paused_migration_does_not_stand_still_and_can_be_cancelled(hosts: Hosts) -> None:
    """It is paused for longer than a stream may stand still, at either side."""
    operation = migration(hosts, "--limit=stream_stall=2", "--limit=suspend=0.5")
    operation.until("precopy", normal=1)
    operation.does("pause-sending")
    row = operation.until("precopy", total_time=operation.row()["total_time"] + 3500)
    assert row["paused"]
    assert row["waits_for"] == "you: sending is paused (resume-sending)"
    operation.does("resume-sending")
    moved = row["transferred"]
    assert not operation.until("precopy", transferred=moved + (1 << 18))["paused"]
    operation.does("pause-sending")
    assert operation.does("cancel")["ended"]
    code, told = operation.ended()
    assert (code, told["outcome"]) == (1, "running-at-source")
    assert operation.steered() == ["pause-sending", "resume-sending", "pause-sending", "cancel"]
    assert hosts.states(hosts.at_source) == {"g": "running"}
    assert hosts.states(hosts.at_destination) == {}
    assert hosts.journals() == []


def test_a_sigterm_ends_what_is_paused(hosts: Hosts) -> None:
    operation = migration(hosts)
    pid = operation.until("precopy", normal=1)["pid"]
    operation.does("pause-sending")
    os.kill(pid, signal.SIGTERM)
    code, told = operation.ended()
    assert told["outcome"] == "running-at-source"
    assert code != 0
    assert hosts.states(hosts.at_source) == {"g": "running"}
    assert hosts.states(hosts.at_destination) == {}
    assert hosts.journals() == []


def test_two_who_cancel_at_once_are_told_the_same(hosts: Hosts) -> None:
    operation = migration(hosts)
    operation.until("precopy", normal=1)
    commands = [hosts.start("cancel", "g", "--json", "--host", hosts.source) for _ in range(2)]
    said = [command.communicate(timeout=30)[0] for command in commands]
    assert operation.ended()[0] == 1
    answers = [json.loads(text) for text in said]
    assert len({answer["ended"] for answer in answers if "ended" in answer}) == 1
    # One that comes when it is over finds no operation.
    assert all("no operation" in answer.get("error", "no operation") for answer in answers)
    assert hosts.states(hosts.at_source) == {"g": "running"}
    assert hosts.states(hosts.at_destination) == {}


def test_what_is_left_of_a_postcopy_is_not_an_operation(hosts: Hosts) -> None:
    server = Identity(Role.PAGE_SERVER, 5, "g", os.getpid())
    directory = hosts.source / "control"
    status = {"role": server.role, "domid": 5, "domain": "g"}
    with closing(ControlSocket(str(directory), server, lambda *_: status, lambda: None)):
        for command in ("cancel", "pause-sending"):
            refused = called(command, "g", "--host", hosts.source)
            assert refused.code == 1
            assert "but for its page-server: see `postcopy`" in refused.line


@contextmanager
def who_answers(directory: Path, answer: bytes) -> Iterator[None]:
    """An operation on guest g that gives this answer to whatever it is asked."""
    directory.mkdir(mode=0o700, exist_ok=True)
    one = Identity(Role.SAVE, 5, "g", os.getpid())
    (directory / f"{one.name}.json").write_bytes(encode_line(one._asdict()))

    def answer_all() -> None:
        with suppress(OSError):  # it is shut
            while True:
                with listener.accept()[0] as asked:
                    if asked.recv(1000):
                        asked.sendall(answer)

    with socket.socket(socket.AF_UNIX) as listener, ThreadPoolExecutor(1) as aside:
        listener.bind(str(directory / f"{one.name}.sock"))
        listener.listen(8)
        aside.submit(answer_all)
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
    for file in directory.iterdir():
        file.unlink()


@pytest.mark.parametrize("answer", [b"junk\n", b'{"role": "save"}\n', b"[]\n"])
def test_one_that_talks_nonsense_or_is_of_another_version(hosts: Hosts, answer: bytes) -> None:
    """It is shown, and hides nothing else."""
    hosts.guest()
    with who_answers(hosts.source / "control", answer):
        shown = called("status", "--host", hosts.source)
        assert shown.code == 0, shown.err
        assert "waits for itself: " in shown.out
        assert called("status", "g", "--host", hosts.source).code == 0
        if answer == b"junk\n":
            refused = called("pause-sending", "g", "--host", hosts.source)
            assert refused.code == 1
            assert "save of g: its answer is none: " in refused.line


def test_what_somebody_has_put_beside_the_sockets_hides_nothing(hosts: Hosts) -> None:
    (hosts.source / "control").mkdir(mode=0o700)
    (hosts.source / "control" / "notes.json").write_text("to do")
    assert called("status", "--host", hosts.source).out == "nothing is going on\n"


def test_two_operations_on_one_name(hosts: Hosts) -> None:
    """As of a guest that is migrated within its host."""
    with ExitStack() as stack:
        for role, domid in ((Role.MIGRATE, 5), (Role.RECEIVE, -1), (Role.RECEIVE, 6)):
            one = Identity(role, domid, "g", os.getpid())
            status = {"role": role, "domid": domid, "domain": "g"}
            server = ControlSocket(
                str(hosts.source / "control"), one, lambda *_, status=status: status, lambda: None
            )
            stack.enter_context(closing(server))
        refused = called("cancel", "g", "--host", hosts.source)
        assert refused.line.endswith(
            "more than one operation on 'g' is going on; name one by its domid: migrate of domid "
            "5, receive of domid 6, receive (its domain is not made yet)"
        )
        assert called("pause-sending", "5", "--host", hosts.source).code == 0


@contextmanager
def full_pipe(path: Path) -> Iterator[int]:
    """A FIFO whose reader reads nothing yet."""
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        yield reader
    finally:
        os.close(reader)


def test_a_save_into_a_pipe_that_nobody_reads(hosts: Hosts, tmp_path: Path) -> None:
    hosts.guest()
    with full_pipe(tmp_path / "pipe"):
        operation = Operation(hosts, "save", "g", tmp_path / "pipe")
        row = operation.until("stop and copy")
        assert (row["role"], row["status"]) == ("save", "device")
        operation.refuses("no precopy", "switch", "stop-and-copy")
        operation.refuses("no precopy", "set", "--max-rounds", 3)
        assert operation.does("set", "--bandwidth", "10M")["bandwidth"] == 10 << 20

        def told() -> bool:
            return "it has taken nothing for" in operation.row()["waits_for"]

        wait_for(told, "it says who is waited for")
        assert "cancelled" in operation.does("cancel")["ended"]
        assert operation.ended()[0] == 1
    assert hosts.states(hosts.at_source) == {"g": "running"}


def test_a_restore_that_waits_for_its_file(hosts: Hosts, tmp_path: Path) -> None:
    hosts.guest()
    assert called("save", "g", tmp_path / "file", "--host", hosts.source).code == 0
    data = (tmp_path / "file").read_bytes()
    os.mkfifo(tmp_path / "pipe")
    operation = Operation(hosts, "restore", tmp_path / "pipe")
    with open(tmp_path / "pipe", "wb", buffering=0) as pipe:
        pipe.write(data[: len(data) // 2])
        row = operation.until("memory and state", normal=1)
        assert row["role"] == "restore"
        operation.refuses("ask at the source", "set", "--bandwidth", "1M")
        operation.refuses("ask at the source", "pause-sending")
        operation.does("cancel")
        assert operation.ended()[0] == 1
    assert hosts.states(hosts.at_source) == {}


def heard_from_another_user(path: Path) -> str:
    """What nobody hears who has got to the socket and asks for a cancel."""
    os.chmod(path.parent, 0o755)
    os.chmod(path, 0o777)
    script = (
        "import os, socket\n"
        f"os.chdir({str(path.parent)!r})\n"
        "os.setuid(65534)\n"
        "sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)\n"
        f"sock.connect({path.name!r})\n"
        "try:\n"
        '    sock.sendall(b\'{"ask": "cancel"}\\n\')\n'
        "    print(sock.recv(100))\n"
        "except ConnectionError:\n"
        "    print(b'')\n"
    )
    return subprocess.run(
        [sys.executable, "-S", "-c", script],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    ).stdout


def asked(path: Path, data: bytes) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    fd = os.open(path.parent, os.O_PATH)
    sock.connect(f"/proc/self/fd/{fd}/{path.name}")
    os.close(fd)
    sock.setblocking(False)
    try:
        while data:
            data = data[sock.send(data) :]
    except (BlockingIOError, ConnectionError):
        pass  # it takes no more
    return sock


def test_one_that_stands_still_or_was_killed(hosts: Hosts, monkeypatch: Any) -> None:
    """It is shown as what it is; what a killed one has left is removed."""
    monkeypatch.setattr("xen_save_helper.toolstack.helpers.control._ANSWER_SECONDS", 0.3)
    operation = migration(hosts)
    pid = operation.until("precopy")["pid"]
    os.kill(pid, signal.SIGSTOP)
    (row,) = called("status", "--json", "--host", hosts.source).json
    assert "no answer within" in row["waits_for"]
    assert called("status", "g", "--host", hosts.source).code == 0
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not operation.row(), "it is not shown any more")
    # One that was about to die may have been found to be there.
    operation.row()
    assert list((hosts.source / "control").iterdir()) == []
    assert called("recover", "g", "--host", hosts.source).code == 0

    def others() -> list[str]:
        return [one for one in processes_under(hosts.source.parent) if "guest" not in one]

    wait_for(lambda: not others(), "its helper and the receiver end")


@pytest.mark.usefixtures("no_leaks")
def test_strangers_disturb_nothing(hosts: Hosts) -> None:
    """Another user, garbage, clients that never read, a hundred at once: the migration goes on and
    is right."""
    operation = migration(hosts)
    operation.until("precopy", normal=1)
    (path,) = (hosts.source / "control").glob("*.sock")
    if os.geteuid() == 0:
        assert heard_from_another_user(path) == "b''\n"
    strange = [
        b"\xff\x00garbage\n" * 50,
        b"x" * (1 << 20),
        b'{"ask": "status"}\n' * 20_000,
        b'{"ask": "set", "bandwidth": "much"}\n',
        b'{"ask": "switch"}\n',
        b'{"ask": "abandon"}\n',
        b"",
    ]
    with ExitStack() as stack:
        for number in range(100):
            stack.enter_context(asked(path, strange[number % len(strange)]))
        row = operation.row()
        assert row["phase"] == "precopy"
        assert row["max_bandwidth"] == 1 << 20
        operation.does("set", "--bandwidth", FAST)
        assert operation.ended()[0] == 0
    assert operation.steered() == ["set"]
    assert hosts.states(hosts.at_destination) == {"g": "running"}


def test_without_a_directory_of_its_own_it_goes_on(hosts: Hosts) -> None:
    (hosts.source / "control").write_text("in the way")
    hosts.guest()
    events = hosts.source.parent / "events"
    done = called(
        "migrate", "g", "--to", hosts.destination, "--host", hosts.source, "--events", events
    )
    assert done.code == 0, done.err
    lines = trace_lines.read(events)
    assert [line["process"] for line in lines if line["event"] == "no_control"] == ["controller"]
    (hosts.source / "control").unlink()


def test_metrics_without_their_library(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "xen_save_helper.toolstack.commands.openmetrics", False)
    monkeypatch.delattr("xen_save_helper.toolstack.commands.openmetrics", raising=False)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    done = called("status", "--openmetrics", "--host", hosts.source)
    assert done.code == 1
    assert "xen-save-helper[metrics]" in done.line


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("set", "g"), "set: want one or more of --bandwidth, --max-downtime"),
        (("set", "g", "--bandwidth", "quick"), "invalid size 'quick'"),
        (("set", "g", "--abort-after", "0"), "invalid number '0'"),
        (("switch", "g", "precopy"), "invalid choice: 'precopy'"),
        (("status", "--watch", "0"), "invalid interval '0'"),
        (("status", "--openmetrics", "--json"), "--openmetrics goes with neither"),
    ],
)
def test_usage(hosts: Hosts, arguments: tuple[str, ...], why: str) -> None:
    done = called(*arguments, "--host", hosts.source)
    assert done.code == 2
    assert why in done.err


def test_a_process_is_known_by_name_and_by_serial() -> None:
    names = {
        Identity(Role.MIGRATE, 1, "g", 7, serial=1).name,
        Identity(Role.MIGRATE, 1, "g", 7, serial=2).name,
        Identity(Role.RECEIVE, -1, "g", 7, serial=3).name,
        Identity(Role.PAGER, 1, "g", 7).name,
    }
    assert names == {"migrate-1-7.1", "migrate-1-7.2", "receive-new-7.3", "pager-1-7"}


def test_what_was_killed_at_its_start_is_removed(tmp_path: Path) -> None:
    gone = max(map(int, filter(str.isdecimal, os.listdir("/proc")))) + (1 << 22)
    for name in (f"migrate-1-{gone}.1.sock", f".save-2-{gone}.1.json"):
        (tmp_path / name).touch()
    others = [f"migrate-1-{os.getpid()}.1.sock", "notes.sock", ".hidden"]
    for name in others:
        (tmp_path / name).touch()
    assert control.operations(tmp_path) == []
    assert sorted(os.listdir(tmp_path)) == sorted(others)


def test_every_way_to_steer_has_a_command() -> None:
    from xen_save_helper.toolstack.commands.parser import make_parser

    for ask in set(Ask) - {Ask.WAIT, Ask.RECONNECT, Ask.ABANDON}:
        more = {Ask.SWITCH: ["postcopy"]}.get(ask, [])
        assert make_parser().parse_args([ask.value, "g", *more]).run.startswith("control:")
