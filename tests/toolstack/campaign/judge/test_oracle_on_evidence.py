"""The oracle on fabricated evidence: of a run without a flaw it says nothing, and each thing that
is not as it must be it names."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.toolstack.campaign.judge import fabricated as made
from tests.toolstack.campaign.judge.fabricated import (
    HELPER,
    event,
    fault,
    guest,
    scene,
    waiting,
)
from xen_save_helper.ipc_schema.causes import Cause
from xen_save_helper.ipc_schema.faults.plan import parse
from xen_save_helper.toolstack.campaign.evidence import Again, Ended, Evidence, Mode, Outliving
from xen_save_helper.toolstack.campaign.judge.case import HERE, THERE
from xen_save_helper.toolstack.campaign.judge.oracle import judge
from xen_save_helper.toolstack.campaign.run import FAULT_LIMITS

FLAWLESS = {
    made.KILLED: made.KILLED_RUN,
    made.SLOW: made.SLOW_RUN,
    made.SENTENCED: made.SENTENCED_RUN,
    made.REPORT_LOST: made.REPORT_LOST_RUN,
    made.LATE: made.LATE_RUN,
    made.BACK: made.BACK_RUN,
    made.TRANSITIONED: made.TRANSITIONED_RUN,
    made.RESTORED: made.RESTORED_RUN,
    made.SERVER_DIES: made.SERVER_DIES_RUN,
    made.PAGER_DIES: made.PAGER_DIES_RUN,
    made.TUNNEL_CUT: made.TUNNEL_CUT_RUN,
}


def problems(plan: str, evidence: Evidence) -> tuple[str, ...]:
    judgement = judge(parse(plan), evidence, FAULT_LIMITS)
    assert judgement.fired
    return judgement.problems


@pytest.mark.parametrize("plan", FLAWLESS)
def test_of_a_run_without_a_flaw_it_says_nothing(plan: str) -> None:
    assert problems(plan, FLAWLESS[plan]) == ()


def test_of_a_save_without_a_flaw_it_says_nothing() -> None:
    assert problems(made.KILLED, made.SAVED_RUN) == ()


Spoil = Callable[[Evidence], Evidence]


def said(**fields: Any) -> Spoil:
    """The command says something else."""

    def spoil(evidence: Evidence) -> Evidence:
        command = evidence.command
        out = json.dumps({**json.loads(command.out), **fields})
        return replace(evidence, command=replace(command, out=out))

    return spoil


def command(**fields: Any) -> Spoil:
    return lambda evidence: replace(evidence, command=replace(evidence.command, **fields))


def at_end(one: Any, **more: Any) -> Spoil:
    """The scene at the command's end is another one, what follows is not."""
    return lambda evidence: replace(evidence, ends=(*evidence.ends[:-1], one), **more)


def recovered(one: Any) -> Spoil:
    return lambda evidence: replace(evidence, recovered=one, last=one)


def traced(pid: int, name: str, **fields: Any) -> Spoil:
    """Another line of the trace."""

    def spoil(evidence: Evidence) -> Evidence:
        events = tuple(
            {**one, **fields} if (one["pid"], one["event"]) == (pid, name) else one
            for one in evidence.events
        )
        assert events != evidence.events
        return replace(evidence, events=events)

    return spoil


def also(*events: Any) -> Spoil:
    return lambda evidence: replace(evidence, events=(*evidence.events, *events))


def untold(evidence: Evidence) -> Evidence:
    """Nothing tells a cause."""
    events = [{k: v for k, v in one.items() if k != "cause"} for one in evidence.events]
    return replace(evidence, events=tuple(events))


def again(code: int, *guests: Any) -> Spoil:
    tried = Again(Ended("restore", 9, code, "", "", 1.0), guests)
    return lambda evidence: replace(evidence, restored_again=tried)


def all_of(*spoils: Spoil) -> Spoil:
    def spoil(evidence: Evidence) -> Evidence:
        for one in spoils:
            evidence = one(evidence)
        return evidence

    return spoil


C, R = made.CONTROLLER, made.RECEIVER
AWAY = made.waiting("g--migratedaway")
INCONSISTENT = made.waiting("g--postcopy-inconsistent")
JOURNAL = {"here_files": ["g.journal"]}
WRONG = guest(memory_ok=False, crash="a page is wrong")

SPOILT: list[tuple[str, str, Spoil, str]] = [
    (
        "it ends long after what is seen at once",
        made.KILLED,
        command(seconds=68.0),
        r"ended 67\.\d s after the fault",
    ),
    (
        "two run, and recover destroys one",
        made.KILLED,
        at_end(scene([guest()], [guest()])),
        r"at the command's end two guests run",
    ),
    (
        "log-dirty mode is on, and recover turns it off",
        made.KILLED,
        at_end(scene([guest(log_dirty=True)])),
        r"at the command's end g \(running\) is in log-dirty mode",
    ),
    (
        "a helper is there for some seconds",
        made.KILLED,
        at_end(scene([guest()], lingered=5.0)),
        r"a process was there for 5 s",
    ),
    (
        "a process is left",
        made.KILLED,
        at_end(scene([guest()], processes=["9 (S): helper"])),
        r"a process was left after its end",
    ),
    (
        "the guest has a descriptor more",
        made.KILLED,
        recovered(scene([guest(descriptors=["socket:[1]"])])),
        r"left with descriptors: socket:",
    ),
    (
        "the rc is of another failure",
        made.KILLED,
        all_of(said(rc=-22), traced(C, "save_ended", rc=-22)),
        r"rc -22 at the source; right is -9 or -3|rc -22 at the source; right is -3",
    ),
    (
        "the rc that it says is not that of the save",
        made.KILLED,
        said(rc=-9),
        r"it says rc -9, and the save's was -3",
    ),
    ("no reason is said", made.KILLED, said(reason=""), r"says no reason"),
    (
        "the cause is another one",
        made.KILLED,
        traced(C, "save_ended", cause="silence"),
        r"the cause at the source is silence; right is helper \(status -9\)",
    ),
    (
        "the helper ended in another way",
        made.KILLED,
        traced(C, "helper_exited", status=-11),
        r"the cause at the source is helper \(status -11\); right is helper \(status -9\)",
    ),
    (
        "no cause is told",
        made.KILLED,
        untold,
        r"no cause is told at the source",
    ),
    (
        "the reason lacks the helper's last words",
        made.KILLED,
        also(
            event(C, "helper_stderr", 7.0, line="xen-save-helper: reply: malformed"),
            event(C, "helper_exited", 7.1, status=255),
            event(C, "failure", 7.2, cause="helper", reason="the helper ended"),
        ),
        r"the reason does not name the cause, 'xen-save-helper: reply: malformed'",
    ),
    (
        "no line of ours is on stderr",
        made.KILLED,
        command(err="banana\n"),
        r"migrate failed, and said nothing",
    ),
    (
        "the operation completes twice",
        made.KILLED,
        also(event(C, "save_ended", 8.6, rc=-3)),
        r"«save_ended» 2 times",
    ),
    (
        "the helper completes twice",
        made.SLOW,
        also(event(HELPER, "complete", 7, retval=0), event(HELPER, "complete", 7.1, retval=0)),
        r"completed 2 times",
    ),
    (
        "a success with an rc",
        made.SLOW,
        traced(C, "save_ended", rc=-3),
        r"exited with 0, though rc is -3",
    ),
    (
        "the memory is wrong at the destination",
        made.SLOW,
        all_of(at_end(scene(there=[WRONG])), recovered(scene(there=[WRONG]))),
        r"the memory of g \(running\) is wrong",
    ),
    (
        "the receiver failed, and says that it did not",
        made.KILLED,
        all_of(
            traced(R, "received", started=True, rc=0, reason=""),
            traced(C, "receiver_exited", status=0),
        ),
        r"the receiver said that started is True: g \(running\) at the source",
    ),
    (
        "the receiver failed, and exits with 0",
        made.KILLED,
        traced(C, "receiver_exited", status=0),
        r"the receiver exited with 0",
    ),
    (
        "the receiver completes nothing",
        made.KILLED,
        traced(R, "received", event="nothing"),
        r"the receiver exited with 1, and completed nothing",
    ),
    (
        "the receiver completes twice",
        made.KILLED,
        also(event(R, "received", 8.35, started=False, rc=-3, reason="it failed")),
        r"«received» 2 times",
    ),
    (
        "the receiver's rc is of another failure",
        made.KILLED,
        all_of(traced(R, "received", rc=-6), traced(R, "restore_ended", rc=-6)),
        r"the receiver's rc is -6",
    ),
    (
        "a guest that never suspended in time is migrated",
        made.LATE,
        lambda _: made.evidence(
            made.migrate(0, "success"),
            [
                *made.source(0, event(C, "suspend_request", 2.0)),
                *made.destination(0, started=True),
            ],
            made.THERE,
        ),
        r"migrate exited with 0; right is 1",
    ),
    (
        "a guest that did not answer is no failure of the helper's",
        made.LATE,
        all_of(said(rc=-3), traced(C, "save_ended", rc=-3)),
        r"rc -3 at the source; right is -8",
    ),
    (
        "what the back channel lost excuses no wrong memory",
        made.BACK,
        all_of(at_end(scene(there=[WRONG])), recovered(scene(there=[WRONG]))),
        r"the memory of g \(running\) is wrong",
    ),
    (
        "a socket stays when recover has swept",
        made.SENTENCED,
        recovered(scene([guest()], temporary=["xen-save-helper-1"])),
        r"a temporary file was left after `recover`: xen-save-helper-1",
    ),
    (
        "the guest is suspended here, and runs there",
        made.SENTENCED,
        recovered(scene([made.waiting("g")], [guest()])),
        r"the guest does not run here alone",
    ),
    (
        "a paused copy stays at the destination",
        made.SENTENCED,
        recovered(scene([guest()], [guest(state="paused", memory_ok=None)])),
        r"the guest does not run here alone",
    ),
    (
        "recover resumes what was let go",
        made.SENTENCED,
        also(event(C, "handshake", 1.9, action=made.GO)),
        r"resumed at the source when it might run at the destination",
    ),
    (
        "the source resumes after GO",
        made.REPORT_LOST,
        lambda evidence: replace(
            made.KILLED_RUN, events=evidence.events, command=made.migrate(1, "running-at-source")
        ),
        r"migrate exited with 1; right is 0 or 4",
    ),
    (
        "the source resumes after the transition",
        made.TRANSITIONED,
        all_of(
            at_end(scene([guest()])),
            recovered(scene([guest()])),
            command(code=1),
            said(outcome="running-at-source"),
        ),
        r"resumed at the source when it might run at the destination",
    ),
    (
        "after a person's choice it is suspended still",
        made.TRANSITIONED,
        lambda evidence: replace(evidence, last=scene([INCONSISTENT], **JOURNAL)),
        r"the guest is lost",
    ),
    (
        "restored again, it is a partial copy that has crashed",
        made.RESTORED,
        again(0, guest("g--incoming", "crashed", memory_ok=False, crash="a page is wrong")),
        r"the guest is lost: .* restored again without faults: g--incoming",
    ),
    ("restored again, it is wrong", made.RESTORED, again(0, WRONG), r"the guest is lost"),
    ("restored again, it is not there", made.RESTORED, again(1), r"the guest is lost"),
    (
        "restored again, and the restore failed",
        made.RESTORED,
        again(1, guest()),
        r"the guest is lost",
    ),
    (
        "no guest is left anywhere",
        made.REPORT_LOST,
        lambda evidence: replace(evidence, last=scene()),
        r"the guest is lost",
    ),
    (
        "the page server dies, and that is called success",
        made.SERVER_DIES,
        command(code=0),
        r"migrate exited with 0; right is 3",
    ),
    (
        "the page server dies, and the source lets the guest go",
        made.SERVER_DIES,
        recovered(scene(there=[guest(memory_ok=None)])),
        r"its last pages are lost, and the source has let it go",
    ),
    (
        "the page server dies, and the guest runs at both",
        made.SERVER_DIES,
        recovered(scene([guest()], [guest(memory_ok=None)])),
        r"two guests run",
    ),
    (
        "the page server dies, and the older guest runs again unasked",
        made.SERVER_DIES,
        recovered(scene([guest()], [guest(state="crashed", memory_ok=None)])),
        r"resumed at the source after it had run at the destination",
    ),
    (
        "the page server dies, and the other half stays for good",
        made.SERVER_DIES,
        lambda evidence: replace(evidence, last=scene([guest()], [guest(state="crashed")])),
        r"its last pages are lost, and yet it stays there",
    ),
    (
        "the pager dies, and recover destroys the guest that can live",
        made.PAGER_DIES,
        recovered(scene(there=[guest(state="crashed", crash="a page is paged out")])),
        r"its last pages are lost, and the source has let it go",
    ),
    (
        "a pager waits for a page server that works",
        made.SERVER_DIES,
        at_end(
            scene(
                [waiting("g--postcopy-inconsistent")],
                [guest(memory_ok=None)],
                here_files=["g.journal"],
                outliving={
                    HERE: (Outliving("page-server", True, 7),),
                    THERE: (Outliving("pager", True, 7),),
                },
            )
        ),
        r"a pager \(7 pages left\) waits after its end",
    ),
    (
        "a page server waits for nobody",
        made.TUNNEL_CUT,
        at_end(
            scene(there=[guest()], outliving={HERE: (Outliving("page-server", True, 7),)}),
        ),
        r"a page-server \(7 pages left\) waits for nobody after its end",
    ),
    (
        "one has left its files behind when all is over",
        made.TUNNEL_CUT,
        lambda evidence: replace(
            evidence,
            last=scene(there=[guest()], outliving={THERE: (Outliving("pager", False, None),)}),
        ),
        r"in the end there is a pager \(\? pages left, dead\) at the destination",
    ),
    (
        "a broken link alone fails the migration",
        made.TUNNEL_CUT,
        command(code=3),
        r"migrate exited with 3; right is 0",
    ),
    (
        "a broken link brings a wrong page",
        made.TUNNEL_CUT,
        recovered(scene(there=[guest(memory_ok=False)])),
        r"the memory of g \(running\) is wrong",
    ),
    (
        "a broken link needs a person",
        made.TUNNEL_CUT,
        lambda evidence: replace(
            evidence, persons=(Ended("postcopy", made.RECOVER, 0, "", "", 1.0),)
        ),
        r"the link alone was disturbed, and it took postcopy",
    ),
]
"""(what is wrong, the plan of a run without a flaw, how it is spoilt, what the oracle must say)"""


@pytest.mark.parametrize(
    ("plan", "spoil", "says"), [row[1:] for row in SPOILT], ids=[row[0] for row in SPOILT]
)
def test_what_is_wrong_is_named(plan: str, spoil: Spoil, says: str) -> None:
    found = problems(plan, spoil(FLAWLESS[plan]))
    assert any(re.search(says, problem) for problem in found), found


def test_an_rc_of_a_save_is_judged() -> None:
    found = problems(made.KILLED, traced(C, "save_ended", rc=-22)(made.SAVED_RUN))
    assert "rc -22 at the source; right is -3" in found


def test_with_several_faults_the_rc_is_that_of_the_first_that_fails_it() -> None:
    later = "source/exit=exit(3)"
    spoilt = all_of(also(fault(later, at=7.0)), said(rc=-22), traced(C, "save_ended", rc=-22))(
        made.KILLED_RUN
    )
    assert any("rc -22" in one for one in problems(f"{made.KILLED}; {later}", spoilt))


def test_a_helper_that_fails_before_the_guest_is_asked_has_libxls_code_for_it() -> None:
    plan = "source/switch_qemu_logdirty:after-answer=fail(EIO)"
    evidence = made.evidence(
        made.migrate(1, "running-at-source", "Input/output error"),
        [*made.source(-3, fault(plan), retval=-1), *made.destination(-3)],
        made.HERE,
    )
    assert "rc -3 at the source; right is -8" in problems(plan, evidence)


def test_another_fault_excuses_nothing() -> None:
    page = "source/record.libxc.X86_TSC_INFO:write=wrong-number"
    spoilt = all_of(
        also(fault(page)), at_end(scene(there=[WRONG])), recovered(scene(there=[WRONG]))
    )(made.BACK_RUN)
    assert any("the memory of" in one for one in problems(f"{made.BACK}; {page}", spoilt))


def test_a_page_that_is_changed_on_its_way_excuses_wrong_memory() -> None:
    plan = "source/record.libxc.PAGE_DATA:write=flip"
    evidence = made.evidence(
        made.migrate(0, "success"),
        [*made.source(0, fault(plan)), *made.destination(0, started=True)],
        scene(there=[WRONG]),
    )
    assert problems(plan, evidence) == ()


@pytest.mark.parametrize(
    "plan",
    [
        "source/phase.precopy=signal(KILL)",
        "source/phase.precopy=signal(TERM)",
        "destination/exit=signal(TERM)",
        "source.controller/suspend:heard=signal(TERM)",
        "guest/suspend=late(6)",
        "destination/record.libxc.HVM_CONTEXT:read=drop",
        "source/record.libxc.STATIC_DATA_END:write=drop",
        "destination/record.libxc.POSTCOPY_PFNS:read=drop",
        "source.controller/record.libxl.END:write=drop",
        "destination.controller/reply:before-send=drop",
    ],
)
def test_what_must_fail_is_no_success(plan: str) -> None:
    side, _, _point = plan.partition("/")
    struck = {
        "source": fault(plan),
        "destination": fault(plan, made.ITS_HELPER),
        "source.controller": fault(plan, C),
        "destination.controller": fault(plan, R),
        "guest": event(C, "suspend_request", 2.0),
    }
    evidence = made.evidence(
        made.migrate(0, "success"),
        [*made.source(0, struck[side]), *made.destination(0, started=True)],
        made.THERE,
    )
    assert "migrate exited with 0; right is 1" in problems(plan, evidence)


def test_a_stream_that_trickles_is_no_failure() -> None:
    plan = "source/record.libxc.PAGE_DATA:write=trickle(4194304)"
    events = [one for one in made.KILLED_RUN.events if one["event"] != "fault"]
    evidence = replace(made.KILLED_RUN, events=(*events, fault(plan)))
    assert "migrate exited with 1; right is 0" in problems(plan, evidence)


def test_a_helper_of_a_dead_controller_has_its_time() -> None:
    end = replace(made.SENTENCED_RUN.ends[0], lingered=9.0)
    assert problems(made.SENTENCED, at_end(end)(made.SENTENCED_RUN)) == ()


def test_a_page_server_of_a_dead_controller_waits_for_recover() -> None:
    linked = replace(made.SENTENCED_RUN, mode=Mode.LINK)
    waits = {HERE: (Outliving("page-server", True, 7),)}
    assert problems(made.SENTENCED, at_end(replace(linked.ends[0], outliving=waits))(linked)) == ()
    after = replace(linked.recovered, outliving=waits)
    (said, *_) = problems(made.SENTENCED, replace(linked, recovered=after))
    assert said == "a page-server (7 pages left) waits for nobody after recover"


def test_the_word_of_a_pager_is_left_as_long_as_the_copy_of_a_dead_receiver() -> None:
    plan = "destination.controller/record.libxl.END:read=exit(0)"
    left = {THERE: (Outliving("pager", False, None),)}
    copy = scene([guest()], [waiting("g--incoming")], there_files=["g.journal"], outliving=left)
    evidence = made.evidence(
        made.migrate(1, "running-at-source", "the receiver is gone"),
        [*made.source(-3, fault(plan, R), cause=Cause.PEER), *made.destination(-3)[:-2]],
        made.HERE,
        mode=Mode.LINK,
    )
    said = "there is what a pager (? pages left, dead) has left, and no guest waits for that"
    assert f"{said} after its end" not in problems(plan, at_end(copy)(evidence))
    gone = replace(made.HERE, outliving=left)
    assert f"{said} after its end" in problems(plan, at_end(gone)(evidence))
