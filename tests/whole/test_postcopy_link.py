"""A postcopy whose last pages go over a link of their own, with our controllers at both ends."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.conftest import HostFactory, processes_under
from tests.helper.postcopy_link.cable import Link
from tests.toolstack.stage import called
from tests.waiting import wait_for
from tests.whole.stage import TOOLSTACK, Ended, Stage, toolstack
from xen_save_helper.ipc_schema.control import Identity, PostcopyStatus, lives
from xen_save_helper.toolstack.helpers import control
from xen_save_helper.toolstack.hosts.interface import GuestState
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost
from xen_save_helper.toolstack.xl.journal import Journal, Promise

MEMORY: Final = 16 << 20
LINK: Final = ("--postcopy", "--max-rounds", "0", "--link", "127.0.0.1")
SLOW: Final = ("--bandwidth", "4M")
"""All memory takes four seconds."""


@pytest.fixture
def stage(host_factory: HostFactory) -> Iterator[Stage]:
    stage = Stage(host_factory, MEMORY, "random")
    yield stage
    for host in stage.hosts:
        for row in host.domains():
            host.destroy(row.domid)
    root = stage.events.parent
    wait_for(lambda: processes_under(root) == [], "page server and pager have ended")


@dataclass
class Halfway:
    """A migration whose guest runs at the destination; most of its pages are still to come, since
    its pager stands still."""

    process: subprocess.Popen[str]
    pager: int

    def go_on(self) -> None:
        os.kill(self.pager, signal.SIGCONT)

    def ended(self) -> Ended:
        out, err = self.process.communicate(timeout=60)
        return Ended(self.process.returncode, out, err)


@pytest.fixture
def halfway(stage: Stage) -> Iterator[Halfway]:
    process = subprocess.Popen(
        stage.migrate_arguments(*LINK, *SLOW),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    there = stage.destination.control_dir

    def pager() -> int:
        """Once it no longer keeps its controller waiting."""
        assert process.poll() is None, process.communicate()
        left = any(
            (event["process"], event["event"]) == ("receiver", "helper_exited")
            for event in stage.trace()
        )
        return control.processes(there)[0].pid if left else 0

    try:
        pid = wait_for(pager, "there is a pager")
        os.kill(pid, signal.SIGSTOP)
        wait_for(
            lambda: any(event["event"] == "receiver_exited" for event in stage.trace()),
            "the guest runs there",
        )
        yield Halfway(process, pid)
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        process.kill()
        process.communicate()


def identity(host: SimulatedHost) -> Identity:
    (found,) = control.processes(host.control_dir)
    return found


def status(host: SimulatedHost) -> PostcopyStatus:
    return control.status(host.control_dir, identity(host))


def is_whole(stage: Stage) -> None:
    """The guest runs at the destination alone, with all its memory."""
    assert stage.source.domains() == []
    (row,) = stage.destination.domains()
    assert (row.name, row.state) == ("g", GuestState.RUNNING)
    report = stage.destination.verify(row.domid, 30)
    assert report.memory_ok
    assert report.crash is None


def postcopy(host: SimulatedHost, *arguments: str) -> Ended:
    return toolstack("postcopy", *arguments, "--host", str(host.directory), "--json")


def test_the_last_pages_come_after_the_migration(stage: Stage) -> None:
    done = toolstack(*stage.migrate_arguments(*LINK)[len(TOOLSTACK) :])
    assert done.code == 0, done.err
    result = done.json
    assert result["outcome"] == "success"
    assert result["mode"] == "postcopy"
    assert result["postcopy_transitioned"] == "never"
    assert result["postcopy"]["pages"] >= MEMORY // 4096
    assert not [line for line in result["warnings"] if "stood still" not in line]
    is_whole(stage)
    assert list(stage.source.control_dir.iterdir()) == []


def test_its_timeline_shows_both_ends(stage: Stage, tmp_path: Path) -> None:
    """The process that does the receiving helper's work is not the one that was started."""
    assert toolstack(*stage.migrate_arguments(*LINK)[len(TOOLSTACK) :]).code == 0
    file = tmp_path / "timeline.json"
    assert toolstack("timeline", stage.events, "--trace-event", file).code == 0
    shown = {event["name"] for event in json.loads(file.read_text())["traceEvents"]}
    assert {"runs, pages arrive", "postcopy pages", "wait until the last pages are there"} <= shown
    assert not {name for name in shown if "went wrong" in name}


def test_a_paused_guest_gets_its_pages(stage: Stage) -> None:
    done = toolstack(*stage.migrate_arguments(*LINK, "--paused")[len(TOOLSTACK) :])
    assert done.code == 0, done.err
    (row,) = stage.destination.domains()
    assert row.state is GuestState.PAUSED
    stage.destination.unpause(row.domid)
    is_whole(stage)


def test_the_senders_controller_dies(stage: Stage, halfway: Halfway) -> None:
    """Nothing is lost: the page server goes on, and `recover` does the rest once it is done."""
    halfway.process.kill()
    halfway.process.wait()
    early = toolstack("recover", "g", "--host", str(stage.source.directory))
    assert early.code == 1
    assert "still to be sent" in early.err + early.out
    assert "xen-toolstack postcopy wait" in early.err + early.out
    halfway.go_on()
    assert postcopy(stage.source, "wait", "g").code == 0
    late = toolstack("recover", "g", "--host", str(stage.source.directory))
    assert late.code == 0, late.err
    is_whole(stage)


def test_an_interrupt_ends_the_waiting_alone(stage: Stage, halfway: Halfway) -> None:
    halfway.process.send_signal(signal.SIGINT)
    done = halfway.ended()
    assert done.code == 0
    assert done.json["outcome"] == "success"
    assert any("recover g" in line for line in done.json["warnings"])
    assert status(stage.source).pages_left > 0
    halfway.go_on()
    assert postcopy(stage.destination, "wait", "g").code == 0
    wait_for(lambda: not control.processes(stage.source.control_dir), "the page server has ended")
    assert toolstack("recover", "g", "--host", str(stage.source.directory)).code == 0
    is_whole(stage)


def test_the_page_server_dies(stage: Stage, halfway: Halfway) -> None:
    """The domain that holds the pages is kept, and both ends say that they are lost."""
    os.kill(identity(stage.source).pid, signal.SIGKILL)
    done = halfway.ended()
    assert done.code == 3
    assert done.json["outcome"] == "postcopy-failed"
    assert "has died" in done.json["reason"]
    (row,) = stage.source.domains()
    assert row.name == "g--postcopy-inconsistent"
    told = postcopy(stage.source, "status", "g")
    assert told.code == 1
    assert json.loads(told.out)[0]["lost"]
    assert postcopy(stage.source, "abandon", "g").code == 0


def test_anothers_file_beside_that_of_the_page_server(stage: Stage) -> None:
    strange = stage.source.control_dir / "page-server-9-1.json"
    strange.parent.mkdir(mode=0o700, exist_ok=True)
    strange.write_text("this is not of ours")
    done = toolstack(*stage.migrate_arguments(*LINK)[len(TOOLSTACK) :])
    assert done.code == 0, done.err
    assert done.json["outcome"] == "success"
    strange.unlink()
    is_whole(stage)


def test_a_journal_that_cannot_be_written(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest runs there already, and gets its pages."""
    promise = Journal.promise

    def full(self: Journal, what: Promise) -> None:
        if what in {Promise.PAGES, Promise.DONE}:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        promise(self, what)

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "promise", full)
        done = called(*stage.migrate_arguments(*LINK)[len(TOOLSTACK) :])
    assert done.code == 0, done.err
    assert done.json["outcome"] == "success"
    assert any("No space left" in line for line in done.json["warnings"])
    assert any("recover g" in line for line in done.json["warnings"])
    (row,) = stage.source.domains()
    assert (row.name, row.state) == ("g--migratedaway", GuestState.SUSPENDED)
    stage.source.destroy(row.domid)
    is_whole(stage)


def test_the_page_server_is_terminated(stage: Stage, halfway: Halfway) -> None:
    os.kill(identity(stage.source).pid, signal.SIGTERM)
    done = halfway.ended()
    assert done.code == 3
    assert "SIGTERM" in done.json["reason"]
    (row,) = stage.source.domains()
    assert row.name == "g--postcopy-inconsistent"
    halfway.go_on()


def test_what_was_abandoned_is_not_taken_for_sent(stage: Stage, halfway: Halfway) -> None:
    """The guest that is left belongs to a person."""
    assert postcopy(stage.source, "abandon", "g", "--lose-the-guest").code == 0
    assert halfway.ended().code == 3
    done = toolstack("recover", "g", "--host", str(stage.source.directory))
    assert done.code == 1
    assert "is not resumed here" in done.out + done.err
    assert [row.name for row in stage.source.domains()] == ["g--postcopy-inconsistent"]
    halfway.go_on()


@pytest.mark.parametrize("first", ["killed", "works"])
def test_what_was_abandoned_after_its_controller_is_not_taken_for_sent(
    stage: Stage, halfway: Halfway, first: str
) -> None:
    server = identity(stage.source)
    wait_for(lambda: stage.trace()[-1]["event"] == "receiver_exited", "it waits")
    halfway.process.kill()
    halfway.process.wait()
    if first == "killed":
        os.kill(server.pid, signal.SIGKILL)
        wait_for(lambda: not Path(f"/proc/{server.pid}").exists(), "it is dead")
    assert postcopy(stage.source, "abandon", str(server.domid), "--lose-the-guest").code == 0
    done = toolstack("recover", "g", "--host", str(stage.source.directory))
    assert done.code == 1
    assert "is not resumed here" in done.out + done.err
    assert [row.name for row in stage.source.domains()] == ["g--postcopy-inconsistent"]
    halfway.go_on()


def test_what_is_forgotten_before_its_controller_has_looked_is_not_taken_for_sent(
    stage: Stage, halfway: Halfway
) -> None:
    server = identity(stage.source)
    wait_for(lambda: stage.trace()[-1]["event"] == "receiver_exited", "it waits")
    halfway.process.send_signal(signal.SIGSTOP)
    os.kill(server.pid, signal.SIGKILL)
    wait_for(lambda: not lives(server.pid), "it is dead")
    told = postcopy(stage.source, "abandon", str(server.domid), "--lose-the-guest")
    assert told.code == 0, told.err
    halfway.process.send_signal(signal.SIGCONT)
    done = halfway.ended()
    assert (done.code, done.json["outcome"]) == (3, "postcopy-failed")
    assert "has died" in done.json["reason"]
    assert [row.name for row in stage.source.domains()] == ["g--postcopy-inconsistent"]
    assert postcopy(stage.source, "abandon", str(server.domid)).code == 0
    assert control.processes(stage.source.control_dir) == []
    halfway.go_on()


def test_nobody_can_listen_there(stage: Stage) -> None:
    """It is an ordinary migration then, and says so."""
    arguments = stage.migrate_arguments("--postcopy", "--link", "192.0.2.7")[len(TOOLSTACK) :]
    done = toolstack(*arguments, "-v")
    assert done.code == 0
    assert done.json["postcopy"] is None
    assert any("192.0.2.7" in line for line in done.json["warnings"])
    is_whole(stage)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--link", "127.0.0.1"), "only a postcopy has last pages"),
        (("--postcopy", "--link", "localhost"), "want an IP address"),
        (("--postcopy", "--link", "127.0.0.1:70000"), "want an IP address"),
    ],
)
def test_a_link_that_cannot_be(stage: Stage, options: tuple[str, ...], problem: str) -> None:
    done = toolstack(*stage.migrate_arguments(*options)[len(TOOLSTACK) :])
    assert done.code == 2
    assert problem in done.err


def test_a_link_that_breaks_twenty_times(stage: Stage, halfway: Halfway) -> None:
    halfway.go_on()
    with closing(Link(status(stage.source).port)) as link:
        where = f"127.0.0.1:{link.port}"
        assert postcopy(stage.destination, "reconnect", "g", where).code == 0
        for cut in range(1, 21):
            wait_for(
                lambda cut=cut: link.made >= cut and link.carried > cut * MEMORY // 100,
                "it carries again",
            )
            link.cut()
        done = halfway.ended()
        assert link.made > 20
    assert done.json["outcome"] == "success"
    is_whole(stage)
