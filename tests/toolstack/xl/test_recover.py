"""recover: the decision for each role and promise, and its effect on a real host."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.toolstack.stage import Hosts, called
from tests.waiting import wait_for
from xen_save_helper.helper.hypervisors.simulated.domain import open_on_host
from xen_save_helper.toolstack.hosts.interface import SuspendState
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost
from xen_save_helper.toolstack.xl import journal
from xen_save_helper.toolstack.xl.journal import PROMISES, Journal, JournalError, Promise, Role
from xen_save_helper.toolstack.xl.recover import (
    REMEDIES,
    PersonsChoice,
    Remedy,
    decide,
    recover,
    waits_for,
)

STATES = ("running", "paused", "suspended", "crashed", None)


def left(
    host: SimulatedHost, role: Role, promise: Promise, *, domid: int | None, domain_name: str = "g"
) -> None:
    """A journal of guest `g` by a process that is gone."""
    script = (
        "import sys; from pathlib import Path\n"
        "from xen_save_helper.toolstack.xl.journal import Journal, Role, Promise\n"
        "d, role, promise, domid, name = sys.argv[1:]\n"
        "j = Journal.begin(Path(d), 'g', Role(role), domid=int(domid) if domid else None,\n"
        "                  domain_name=name, peer='/there')\n"
        "j.promise(Promise(promise))\n"
    )
    where = [str(host.state_dir), role.value, promise.value, str(domid or ""), domain_name]
    subprocess.run([sys.executable, "-c", script, *where], check=True)


def suspend(host: SimulatedHost, domid: int) -> None:
    request = host.suspend_request(domid)
    try:
        wait_for(lambda: request.state() is SuspendState.SUSPENDED, "suspended")
    finally:
        request.close()


def states(host: SimulatedHost) -> dict[str, str]:
    return {row.name: row.state.value for row in host.domains()}


def test_every_promise_has_a_way() -> None:
    promised = {(role, promise) for role, promises in PROMISES.items() for promise in promises}
    assert set(REMEDIES) == promised


@pytest.mark.parametrize("state", STATES)
def test_a_guest_that_may_run_elsewhere_is_never_resumed(state: str | None) -> None:
    for promise in (Promise.GO, Promise.TRANSITION):
        assert decide(Role.SOURCE, promise, state) in {Remedy.REFUSE, Remedy.FORGET}
    assert decide(Role.SOURCE, Promise.DONE, state) in {Remedy.DESTROY, Remedy.FORGET}


def test_a_copy_without_go_never_starts() -> None:
    for state in STATES[:-1]:
        assert decide(Role.DESTINATION, Promise.RECEIVING, state) is Remedy.DESTROY


@pytest.mark.parametrize("role", [Role.SOURCE, Role.SAVE])
def test_begun_resumes(hosts: Hosts, role: Role) -> None:
    host = hosts.at_source
    domid = hosts.guest(type="hvm")
    suspend(host, domid)
    with open_on_host(host.directory, domid) as domain:
        domain.logdirty_enable()
    host.switch_qemu_logdirty(domid, True)
    host.rename(domid, "g--migratedaway")
    left(host, role, Promise.BEGUN, domid=domid)
    (recovery,) = recover(host, "g--migratedaway")
    assert (recovery.remedy, recovery.done) == (Remedy.RESUME, True)
    (row,) = host.domains()
    assert (row.name, row.state.value, row.log_dirty) == ("g", "running", False)
    steps = host.report(domid).steps
    wait_for(lambda: host.report(domid).steps > steps, "it runs")
    assert journal.entries(host.state_dir) == []


def test_begun_takes_back_a_request_to_suspend(hosts: Hosts) -> None:
    from xen_save_helper.helper.hypervisors.simulated.layout import Behaviour

    host = hosts.at_source
    domid = hosts.guest(behaviour=Behaviour.REFUSE)
    request = host.suspend_request(domid)
    request.close()
    left(host, Role.SOURCE, Promise.BEGUN, domid=domid)
    recover(host, "g")
    host.set_behaviour(domid, Behaviour.NORMAL)
    steps = host.report(domid).steps
    wait_for(lambda: host.report(domid).steps > steps + 10, "it runs on")
    assert states(host) == {"g": "running"}


@pytest.mark.parametrize(
    ("promise", "name"),
    [(Promise.GO, "g--migratedaway"), (Promise.TRANSITION, "g--postcopy-inconsistent")],
)
def test_refused_until_a_person_decides(hosts: Hosts, promise: Promise, name: str) -> None:
    host = hosts.at_source
    domid = hosts.guest()
    suspend(host, domid)
    host.rename(domid, "g--migratedaway")
    with open_on_host(host.directory, domid) as domain:
        domain.logdirty_enable()
    left(host, Role.SOURCE, promise, domid=domid)

    ended = called("recover", "g", "--host", hosts.source)
    assert ended.code == 1
    assert "/there" in ended.line
    assert "--resume" in ended.line
    assert "--destroy" in ended.line
    assert states(host) == {name: "suspended"}
    assert not host.domains()[0].log_dirty
    (row,) = called("list", "--json", "--host", hosts.source).json
    assert "/there" in row["waits"]

    assert called("recover", "g", "--resume", "--host", hosts.source).code == 0
    assert states(host) == {"g": "running"}
    assert hosts.journals() == []


def test_a_person_lets_it_go(hosts: Hosts) -> None:
    domid = hosts.guest()
    suspend(hosts.at_source, domid)
    left(hosts.at_source, Role.SOURCE, Promise.GO, domid=domid)
    (recovery,) = recover(hosts.at_source, "g", PersonsChoice.DESTROY)
    assert recovery.done
    assert states(hosts.at_source) == {}
    assert hosts.journals() == []


def test_a_resumed_guest_that_was_not_started_yet_is_started(hosts: Hosts) -> None:
    """Its controller died between the promise and the act."""
    host = hosts.at_destination
    domid = host.create_guest("g--incoming", 2 << 20, "random")
    host.pause(domid)
    left(host, Role.DESTINATION, Promise.RESUMED, domid=None, domain_name="g--incoming")
    (recovery,) = recover(host, "g")
    assert (recovery.remedy, recovery.done) == (Remedy.FINISH_IF_WHOLE, True)
    assert states(host) == {"g": "running"}
    assert hosts.journals() == []


def test_a_copy_that_does_not_answer_in_time_is_not_given_up(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = hosts.at_destination
    host.create_guest("g--incoming", 2 << 20, "random")
    (row,) = host.domains()
    assert row.pid is not None
    os.kill(row.pid, signal.SIGSTOP)
    left(host, Role.DESTINATION, Promise.RESUMED, domid=None, domain_name="g--incoming")
    monkeypatch.setattr("xen_save_helper.toolstack.xl.recover.VERIFY_LIMIT", 0.2)
    with pytest.raises(TimeoutError, match=r"has not compared its memory.*`destroy g--incoming`"):
        recover(host, "g")
    assert states(host) == {"g--incoming": "running"}
    assert hosts.journals() == ["g.destination.journal"]
    monkeypatch.undo()
    os.kill(row.pid, signal.SIGCONT)
    recover(host, "g")
    assert states(host) == {"g": "running"}


def test_another_guest_of_the_name_is_not_what_a_restore_left(hosts: Hosts) -> None:
    host = hosts.at_source
    hosts.guest()
    left(host, Role.RESTORE, Promise.RECEIVING, domid=None, domain_name="g--incoming")
    (recovery,) = recover(host, "g")
    assert recovery.remedy is Remedy.FORGET
    assert states(host) == {"g": "running"}
    assert hosts.journals() == []


def test_a_saved_guest_that_runs_is_not_destroyed(hosts: Hosts) -> None:
    host = hosts.at_source
    left(host, Role.SAVE, Promise.DONE, domid=hosts.guest())
    (recovery,) = recover(host, "g")
    assert (recovery.remedy, recovery.done) == (Remedy.FORGET, True)
    assert "runs here" in recovery.text
    assert states(host) == {"g": "running"}
    assert hosts.journals() == []


def test_what_is_taken_over_is_nobody_elses(hosts: Hosts) -> None:
    host = hosts.at_source
    left(host, Role.SOURCE, Promise.BEGUN, domid=hosts.guest())
    (entry,) = journal.entries(host.state_dir)
    with journal.taken_over(host.state_dir, entry):
        with pytest.raises(JournalError, match="is still at work on it"):
            recover(host, "g")
        with (
            pytest.raises(JournalError, match="in the middle of an operation"),
            journal.taken_over(host.state_dir, entry),
        ):
            pass
    assert journal.entries(host.state_dir) == [entry]
    recover(host, "g")
    assert hosts.journals() == []


def test_a_paused_guest_forgets_the_request_that_was_made_of_it(hosts: Hosts) -> None:
    host = hosts.at_source
    domid = hosts.guest()
    host.pause(domid)
    host.suspend_request(domid).close()
    left(host, Role.SOURCE, Promise.BEGUN, domid=domid)
    (recovery,) = recover(host, "g")
    assert "paused" in recovery.text
    steps = host.report(domid).steps
    host.unpause(domid)
    wait_for(lambda: host.report(domid).steps > steps + 10, "it runs on")
    assert states(host) == {"g": "running"}


def test_done_destroys_what_is_left(hosts: Hosts) -> None:
    domid = hosts.guest()
    suspend(hosts.at_source, domid)
    left(hosts.at_source, Role.SOURCE, Promise.DONE, domid=domid)
    recover(hosts.at_source, "g")
    assert states(hosts.at_source) == {}


def test_partial_copy_is_destroyed_and_no_other(hosts: Hosts) -> None:
    host = hosts.at_source
    domid = hosts.guest()
    host.create(host.config(domid), "g--incoming")
    left(host, Role.DESTINATION, Promise.RECEIVING, domid=None, domain_name="g--incoming")
    recover(host, "g")
    assert states(host) == {"g": "running"}


@pytest.mark.parametrize("renamed", [False, True])
def test_a_copy_that_was_let_go_is_started(hosts: Hosts, renamed: bool) -> None:
    host = hosts.at_source
    domid = hosts.guest("g" if renamed else "g--incoming")
    host.pause(domid)
    left(host, Role.DESTINATION, Promise.GO_RECEIVED, domid=None, domain_name="g--incoming")
    recover(host, "g")
    assert states(host) == {"g": "running"}


def test_a_resumed_copy_is_kept_if_it_is_whole(hosts: Hosts) -> None:
    host = hosts.at_source
    hosts.guest("g--incoming")
    left(host, Role.DESTINATION, Promise.RESUMED, domid=None, domain_name="g--incoming")
    (recovery,) = recover(host, "g")
    assert recovery.done
    assert states(host) == {"g": "running"}


def test_a_resumed_copy_that_died_is_destroyed(hosts: Hosts) -> None:
    host = hosts.at_source
    domid = hosts.guest("g--incoming")
    pid = next(row.pid for row in host.domains())
    assert pid is not None
    subprocess.run(["kill", "-9", str(pid)], check=True)
    wait_for(lambda: host.report(domid).state.value == "crashed", "crashed")
    left(host, Role.DESTINATION, Promise.RESUMED, domid=None, domain_name="g--incoming")
    (recovery,) = recover(host, "g")
    assert "--postcopy-inconsistent" in recovery.text
    assert states(host) == {}


def test_not_while_the_controller_lives(hosts: Hosts) -> None:
    domid = hosts.guest()
    held = Journal.begin(
        hosts.source, "g", Role.SOURCE, domid=domid, domain_name="g", peer="/there"
    )
    with pytest.raises(JournalError, match="still at work"):
        recover(hosts.at_source, "g")
    ended = called("recover", "g", "--host", hosts.source)
    assert ended.code == 1
    assert "still at work" in ended.line
    held.close()


def test_a_guest_that_crashed_is_left_to_be_looked_at(hosts: Hosts) -> None:
    domid = hosts.guest()
    pid = next(row.pid for row in hosts.at_source.domains())
    subprocess.run(["kill", "-9", str(pid)], check=True)
    wait_for(lambda: hosts.at_source.report(domid).state.value == "crashed", "crashed")
    left(hosts.at_source, Role.SOURCE, Promise.BEGUN, domid=domid)
    (recovery,) = recover(hosts.at_source, "g")
    assert not recovery.done
    assert states(hosts.at_source) == {"g": "crashed"}
    assert hosts.journals() == []


def test_the_domain_is_gone(hosts: Hosts) -> None:
    for role, promises in PROMISES.items():
        for promise in promises:
            left(hosts.at_source, role, promise, domid=77, domain_name="g--incoming")
            (recovery,) = recover(hosts.at_source, "g")
            assert (recovery.remedy, recovery.done) == (Remedy.FORGET, True)
    assert hosts.journals() == []


def test_another_domain_with_the_same_number_is_not_touched(hosts: Hosts) -> None:
    domid = hosts.guest("other")
    left(hosts.at_source, Role.SOURCE, Promise.DONE, domid=domid)
    recover(hosts.at_source, "g")
    assert states(hosts.at_source) == {"other": "running"}


def test_nothing_left(hosts: Hosts) -> None:
    hosts.guest()
    assert called("recover", "g", "--host", hosts.source, "--json").json == []
    ended = called("recover", "nobody", "--host", hosts.source)
    assert ended.code == 1
    assert "no guest 'nobody'" in ended.line


def test_a_suspended_guest_without_a_journal_is_resumed_on_demand(hosts: Hosts) -> None:
    suspend(hosts.at_source, hosts.guest())
    (row,) = called("list", "--host", hosts.source, "--json").json
    assert row["waits"] == "a person: see `recover g`"
    refused = called("recover", "g", "--host", hosts.source)
    assert refused.code == 1
    assert "`recover g --resume`" in refused.line
    assert states(hosts.at_source) == {"g": "suspended"}
    ended = called("recover", "g", "--resume", "--host", hosts.source, "--json")
    assert (ended.code, ended.json[0]["way"], ended.json[0]["role"]) == (0, "resume", None)
    assert states(hosts.at_source) == {"g": "running"}


def test_a_suspended_guest_without_a_journal_can_be_given_up(hosts: Hosts) -> None:
    suspend(hosts.at_source, hosts.guest())
    (recovery,) = recover(hosts.at_source, "g", PersonsChoice.DESTROY)
    assert (recovery.remedy, recovery.done) == (Remedy.DESTROY, True)
    assert states(hosts.at_source) == {}


def test_a_partial_file_goes(hosts: Hosts, tmp_path: Path) -> None:
    domid = hosts.guest()
    partial = tmp_path / ".f.partial"
    partial.write_bytes(b"half")
    entry = Journal.begin(
        hosts.source, "g", Role.SAVE, domid=domid, domain_name="g", peer="f", partial=str(partial)
    ).entry
    text = next(hosts.source.glob("*.journal")).read_text()
    next(hosts.source.glob("*.journal")).write_text(
        text.replace(f'"start_time": {entry.process.start_time}', '"start_time": 1')
    )
    assert "`recover g`" in waits_for(journal.entries(hosts.source)[0])
    begun = time.monotonic()
    recover(hosts.at_source, "g")
    assert time.monotonic() - begun < 5
    assert not partial.exists()
