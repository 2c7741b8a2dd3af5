"""save and restore: the guest comes back, and no half-written file is taken for a whole one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from tests.conftest import processes_under
from tests.toolstack.stage import TOOLSTACK, Hosts, called, toolstack
from tests.toolstack.two_hosts import Side, run
from tests.waiting import wait_for
from xen_save_helper.ipc_schema.streams import xl_header
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost
from xen_save_helper.toolstack.inspect import walk as inspect
from xen_save_helper.toolstack.xl import journal, restore_file, save_file
from xen_save_helper.toolstack.xl.recover import domain_of


def save(hosts: Hosts, *arguments: object) -> object:
    ended = called("save", "g", *arguments, "--host", hosts.source, "--json")
    assert ended.code == 0, ended
    return ended.json


@pytest.mark.parametrize("kind", ["pvh", "hvm"])
def test_there_and_back(hosts: Hosts, tmp_path: Path, kind: str) -> None:
    hosts.guest(type=kind)
    file = tmp_path / "g.save"
    file.write_text("what was there before")
    save(hosts, file)
    assert hosts.states(hosts.at_source) == {}
    with file.open("rb") as stream:
        names = [entry.name for entry in inspect.inspect(stream)]
    assert names[-1] == "END"

    ended = called("restore", file, "--host", hosts.destination, "--json")
    assert ended.code == 0, ended
    assert ended.json["name"] == "g"
    report = hosts.at_destination.verify(hosts.at_destination.find("g"), 30)
    assert report.memory_ok
    assert hosts.states(hosts.at_destination) == {"g": "running"}
    assert hosts.journals() == []
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


@pytest.mark.parametrize(("option", "state"), [("-c", "running"), ("-p", "paused")])
def test_the_guest_stays(hosts: Hosts, tmp_path: Path, option: str, state: str) -> None:
    hosts.guest()
    save(hosts, option, tmp_path / "g.save")
    assert hosts.states(hosts.at_source) == {"g": state}
    ended = called("restore", tmp_path / "g.save", "-p", "--host", hosts.destination)
    assert ended.code == 0, ended
    assert hosts.states(hosts.at_destination) == {"g": "paused"}


def test_restore_where_the_guest_is(hosts: Hosts, tmp_path: Path) -> None:
    hosts.guest()
    save(hosts, "-c", tmp_path / "g.save")
    ended = called("restore", tmp_path / "g.save", "--host", hosts.source)
    assert ended.code == 1
    assert "already" in ended.line
    assert hosts.states(hosts.at_source) == {"g": "running"}


def test_into_a_pipe(hosts: Hosts, tmp_path: Path) -> None:
    hosts.guest()
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    read = threading.Thread(target=lambda: (tmp_path / "out").write_bytes(fifo.read_bytes()))
    read.start()
    save(hosts, fifo)
    read.join(20)
    assert called("restore", tmp_path / "out", "--host", hosts.destination).code == 0
    assert fifo.is_fifo()


def test_a_pipe_that_nobody_reads(hosts: Hosts, tmp_path: Path) -> None:
    hosts.guest()
    os.mkfifo(tmp_path / "fifo")
    ended = called(
        "save", "g", tmp_path / "fifo", "--limit", "handshake=0.3", "--host", hosts.source
    )
    assert ended.code == 1
    assert "nobody has opened the pipe for reading" in ended.line


def no_room(size: int = 3 << 20) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


@pytest.mark.parametrize("where", ["a small disk", "/dev/full"])
def test_a_full_disk(hosts: Hosts, tmp_path: Path, where: str) -> None:
    domid = hosts.guest()
    small = where == "a small disk"
    file = tmp_path / "g.save" if small else Path(where)
    if small:
        file.write_text("what was there before")
    ended = toolstack(
        "save", "g", file, "--host", hosts.source, **({"preexec_fn": no_room} if small else {})
    )
    assert ended.code == 1
    assert ("File too large" if small else "No space left") in ended.line
    assert hosts.states(hosts.at_source) == {"g": "running"}
    steps = hosts.at_source.report(domid).steps
    wait_for(lambda: hosts.at_source.report(domid).steps > steps, "the guest runs on")
    assert hosts.journals() == []
    if small:
        assert file.read_text() == "what was there before"
        assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_a_guest_that_refuses(hosts: Hosts, tmp_path: Path) -> None:
    from xen_save_helper.helper.hypervisors.simulated.layout import Behaviour

    hosts.guest(behaviour=Behaviour.REFUSE)
    ended = called("save", "g", tmp_path / "f", "--limit", "suspend=0.3", "--host", hosts.source)
    assert ended.code == 1
    assert ended.line == (
        f"xen-toolstack: cannot save 'g' to {tmp_path / 'f'}: the guest did not acknowledge the "
        "suspend request in time; the guest is running here"
    )
    assert hosts.states(hosts.at_source) == {"g": "running"}
    assert not (tmp_path / "f").exists()
    assert hosts.journals() == []


def test_what_fails_before_the_guest_is_asked_is_named(hosts: Hosts, tmp_path: Path) -> None:
    """libxl's code is that of a guest that did not suspend, which has nothing to do with it."""
    hosts.guest()
    save(hosts, "-c", tmp_path / "whole")
    libxc_begins = (tmp_path / "whole").read_bytes().index(b"\xff" * 8)
    process = hosts.start("save", "g", "/dev/stdout", "--host", hosts.source)
    assert process.stdout is not None
    # The reader takes what comes before the helper is started, and goes.
    while libxc_begins:
        libxc_begins -= len(os.read(process.stdout.fileno(), libxc_begins))
    process.stdout.close()
    assert process.stderr is not None
    complaint = process.stderr.read()
    assert process.wait(timeout=30) == 1
    assert "Broken pipe" in complaint
    assert "suspend" not in complaint
    assert hosts.states(hosts.at_source) == {"g": "running"}


@pytest.fixture
def saved(hosts: Hosts, tmp_path: Path) -> bytes:
    hosts.guest(megabytes=2)
    save(hosts, tmp_path / "g.save")
    return (tmp_path / "g.save").read_bytes()


def test_truncated_anywhere(hosts: Hosts, tmp_path: Path, saved: bytes) -> None:
    for size in (0, 10, xl_header.HEADER_SIZE + 3, 2000, len(saved) // 2, len(saved) - 1):
        cut = tmp_path / "cut"
        cut.write_bytes(saved[:size])
        ended = called("restore", cut, "--host", hosts.destination)
        assert ended.code == 1
        assert str(cut) in ended.line
        assert hosts.states(hosts.at_destination) == {}
        assert hosts.journals() == []


def test_a_configuration_that_cannot_be(hosts: Hosts, tmp_path: Path, saved: bytes) -> None:
    size = xl_header.HEADER_SIZE
    end = size + xl_header.decode_header(saved[:size]).optional_data_len
    config = json.loads(xl_header.decode(saved[:end]).config.rstrip(b"\0")) | {"simulated": [1]}
    stream = saved[end:]
    file = tmp_path / "other"
    file.write_bytes(xl_header.encode_header(json.dumps(config).encode()) + stream)
    ended = called("restore", file, "--host", hosts.destination)
    assert ended.code == 1
    assert "simulated is list, not an object" in ended.line
    assert hosts.states(hosts.at_destination) == {}
    assert hosts.journals() == []


def test_truncated_in_a_pipe(hosts: Hosts, saved: bytes) -> None:
    done = subprocess.run(
        [*TOOLSTACK, "restore", "/dev/stdin", "--host", str(hosts.destination)],
        input=saved[: len(saved) // 2],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert b"xen-toolstack: " in done.stderr
    assert b"Traceback" not in done.stderr
    assert hosts.states(hosts.at_destination) == {}


def test_no_stream(hosts: Hosts) -> None:
    for path, words in (
        ("/etc/passwd", "no"),
        (sys.executable, "is an ELF program"),
        ("/nowhere", "No such"),
    ):
        ended = called("restore", path, "--host", hosts.destination)
        assert ended.code == 1
        assert words in ended.line


def test_a_controller_that_is_killed_leaves_nothing_after_recover(
    hosts: Hosts, tmp_path: Path
) -> None:
    from xen_save_helper.helper.hypervisors.simulated.layout import Behaviour

    hosts.guest(behaviour=Behaviour.LATE, behaviour_seconds=2)
    events = tmp_path / "events"
    process = hosts.start("save", "g", tmp_path / "f", "--host", hosts.source, "--events", events)
    wait_for(lambda: events.exists() and '"suspend_request"' in events.read_text(), "it suspends")
    assert len(list(tmp_path.glob(".f.*.partial"))) == 1
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate(timeout=30)
    assert called("recover", "g", "--host", hosts.source).code == 0
    assert hosts.states(hosts.at_source) == {"g": "running"}
    assert list(tmp_path.glob(".f.*.partial")) == []
    assert hosts.journals() == []
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []


def test_sigterm_ends_it_in_order(hosts: Hosts, tmp_path: Path) -> None:
    from xen_save_helper.helper.hypervisors.simulated.layout import Behaviour

    hosts.guest(behaviour=Behaviour.REFUSE)
    process = hosts.start("save", "g", tmp_path / "f", "--host", hosts.source)
    wait_for(hosts.journals, "the journal stands")
    process.terminate()
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1, err
    assert "Traceback" not in err
    assert hosts.states(hosts.at_source) == {"g": "running"}
    assert list(tmp_path.glob(".f.*.partial")) == []
    assert hosts.journals() == []


def test_a_guest_that_is_destroyed_while_it_is_saved(hosts: Hosts, tmp_path: Path) -> None:
    hosts.guest()
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    process = hosts.start("save", "g", fifo, "--host", hosts.source)
    with open(fifo, "rb", buffering=0) as stream:
        wait_for(lambda: stream.read(1), "the save has begun")
        assert called("destroy", "g", "--host", hosts.source).code == 0
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.count("the guest was destroyed") == 1, err
    assert hosts.journals() == []


@pytest.mark.parametrize("option", [(), ("-c",), ("-p",)])
def test_a_guest_that_is_destroyed_when_its_file_is_whole(
    hosts: Hosts, tmp_path: Path, option: tuple[str, ...]
) -> None:
    domid = hosts.guest(megabytes=2)

    class Raced(SimulatedHost):
        """Somebody else destroys the guest when all of it is written."""

        def _race(self) -> None:
            with contextlib.suppress(ProcessLookupError):
                super().destroy(domid)

        def destroy(self, domid: int) -> None:
            self._race()
            super().destroy(domid)

        def pause(self, domid: int) -> None:
            self._race()
            super().pause(domid)

        def resume(self, domid: int) -> None:
            self._race()
            super().resume(domid)

    saved = run(
        save_file.save(
            Side(Raced(hosts.source)).ctx,
            domid,
            tmp_path / "f",
            checkpoint="-c" in option,
            leave_paused="-p" in option,
        )
    )
    assert saved.state is None
    assert hosts.journals() == []
    assert called("restore", tmp_path / "f", "--host", hosts.destination).code == 0


def test_a_pipe_that_nobody_writes_to(hosts: Hosts, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    ended = called("restore", fifo, "--limit", "handshake=0.3", "--host", hosts.destination)
    assert ended.code == 1
    assert f"{fifo}: nobody has written to it within 0.3 s" in ended.line


def test_a_directory_is_no_save_file(hosts: Hosts, tmp_path: Path) -> None:
    ended = called("restore", tmp_path, "--host", hosts.destination)
    assert ended.code == 1
    assert ended.line == f"xen-toolstack: Is a directory: {tmp_path}"


def opened_by(process: subprocess.Popen[str], path: Path) -> bool:
    for fd in os.listdir(f"/proc/{process.pid}/fd"):
        try:
            if os.readlink(f"/proc/{process.pid}/fd/{fd}") == str(path):
                return True
        except FileNotFoundError:
            continue  # closed by now
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("wait", ["for a writer", "for a reader", "for room for the xl header"])
def test_a_signal_where_a_pipe_is_waited_for(
    hosts: Hosts, tmp_path: Path, wait: str, number: signal.Signals
) -> None:
    """Nothing has begun there, and what becomes of the guest is told all the same."""
    hosts.guest()
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    full = -1
    if wait == "for room for the xl header":
        full = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
        os.write(full, bytes(fcntl.fcntl(full, fcntl.F_GETPIPE_SZ)))
    if wait == "for a writer":
        process = hosts.start("restore", fifo, "--host", hosts.destination)
    else:
        process = hosts.start("save", "g", fifo, "--host", hosts.source)
    if wait == "for a reader":
        wait_for(hosts.journals, "the journal stands")
    else:
        wait_for(lambda: opened_by(process, fifo), "the pipe is open")
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    if full >= 0:
        os.close(full)
    assert process.returncode == 1
    if wait == "for a writer":
        said = f"cannot restore from {fifo}: the restore was cancelled; nothing of it is left here"
    else:
        said = f"cannot save 'g' to {fifo}: the save was cancelled; the guest is running here"
    assert err == f"xen-toolstack: {said}\n"
    assert hosts.states(hosts.at_source) == {"g": "running"}
    assert hosts.states(hosts.at_destination) == {}
    assert hosts.journals() == []


def test_a_domain_that_there_is_not(hosts: Hosts, tmp_path: Path) -> None:
    source = Side(hosts.at_source)
    with pytest.raises(ProcessLookupError, match="no domain 77"):
        run(save_file.save(source.ctx, 77, tmp_path / "f"))


class Indestructible(SimulatedHost):
    def destroy(self, domid: int) -> None:
        raise OSError(errno.EIO, "this host ends no domain")


def test_a_killed_restore_is_not_taken_for_a_guest_that_has_come_since(
    hosts: Hosts, tmp_path: Path, saved: bytes
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    process = hosts.start("restore", fifo, "--host", hosts.destination)
    with open(fifo, "wb", buffering=0) as feed:
        feed.write(saved[: len(saved) // 2])
        wait_for(lambda: hosts.states(hosts.at_destination), "it is being built")
        process.kill()
        process.communicate(timeout=30)
    wait_for(
        lambda: (
            not any("xen_save_helper.helper.main" in line for line in processes_under(tmp_path))
        ),
        "its helper, which may just have been starting, sees that it is alone",
    )
    hosts.at_destination.create_guest("g", 2 << 20, "idle")
    ended = called("recover", "g", "--host", hosts.destination)
    assert ended.code == 0, ended
    assert hosts.states(hosts.at_destination) == {"g": "running"}
    assert hosts.journals() == []


def test_a_restored_guest_whose_name_was_taken_meanwhile_is_left_to_its_file(
    hosts: Hosts, tmp_path: Path, saved: bytes
) -> None:
    class Contested(SimulatedHost):
        def rename(self, domid: int, name: str) -> None:
            self.create_guest(name, 2 << 20, "idle")
            super().rename(domid, name)

    file = tmp_path / "file"
    file.write_bytes(saved)
    side = Side(Contested(hosts.destination))
    with pytest.raises(save_file.SaveFileError, match="its file still holds it"):
        run(restore_file.restore(side.ctx, file))
    assert [row.workload for row in side.host.domains()] == ["idle"]
    assert hosts.journals() == []


def test_what_a_failed_restore_cannot_take_away_is_left_to_recover(
    hosts: Hosts, tmp_path: Path, saved: bytes
) -> None:
    side = Side(Indestructible(hosts.destination))
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    feeder = threading.Thread(target=fifo.write_bytes, args=(saved[: len(saved) // 2],))
    feeder.start()
    with pytest.raises(save_file.SaveFileError, match=r"a part of it is left.*recover g`"):
        run(restore_file.restore(side.ctx, fifo))
    feeder.join(20)
    (entry,) = journal.entries(side.host.state_dir)
    assert (entry.role, entry.promise) == (journal.Role.RESTORE, journal.Promise.RECEIVING)
    row = domain_of(hosts.at_destination, entry)
    assert row is not None
    hosts.at_destination.destroy(row.domid)
