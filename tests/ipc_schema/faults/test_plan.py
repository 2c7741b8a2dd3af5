from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ipc_schema.faults.plans import plans
from xen_save_helper.ipc_schema.faults import plan as fault_plan
from xen_save_helper.ipc_schema.faults.actions import ACTIONS, DEATHS, DIE, DROP, Action
from xen_save_helper.ipc_schema.faults.plan import Fault, Plan, PlanError, Times, parse
from xen_save_helper.ipc_schema.faults.points import POINTS, Side, Who


@given(plans)
def test_a_plan_is_read_as_it_is_written(plan: Plan) -> None:
    assert parse(str(plan)) == plan


def test_the_examples_of_the_documentation() -> None:
    assert fault_plan.__doc__ is not None
    examples = fault_plan.__doc__.split("Examples:")[1]
    assert len(parse(examples).faults) == 11


def point(name: str, who: Who = Who.HELPER) -> fault_plan.Point:
    return POINTS[who, name]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("suspend:before-send=kill", Fault(point("suspend:before-send"), Action(DIE, "KILL"))),
        ("exit=abort", Fault(point("exit"), Action(DIE, "ABRT"))),
        ("exit=die(sigabrt)", Fault(point("exit"), Action(DIE, "ABRT"))),
        ("exit=die(sigkill)", Fault(point("exit"), Action(DIE, "KILL"))),
        (
            " source.helper/log:before-send 30% = drop ",
            Fault(point("log:before-send"), Action(DROP), Side.SOURCE, None, Times(percent=30)),
        ),
        (
            "log:before-send#3+=drop",
            Fault(point("log:before-send"), Action(DROP), times=Times(3, True)),
        ),
        (
            "reply:before-send#*=drop",
            Fault(
                point("reply:before-send", Who.CONTROLLER), Action(DROP), times=Times(1, True)
            ),
        ),
        (
            "hello #1  of all=exit(3)",
            Fault(point("hello"), Action(ACTIONS["exit"], 3), times=Times(of_all=True)),
        ),
        (
            "log:before-send#3+ of all=drop",
            Fault(point("log:before-send"), Action(DROP), times=Times(3, True, of_all=True)),
        ),
        ("page@0x1F#2=cut", Fault(point("page"), Action(ACTIONS["cut"]), at=31, times=Times(2))),
        (
            "link/stream@7#5%=stall( 1.5 )",
            Fault(
                POINTS[Who.LINK, "stream"],
                Action(ACTIONS["stall"], 1.5),
                at=7,
                times=Times(percent=5),
            ),
        ),
    ],
)  # fmt: skip
def test_how_it_may_be_typed(text: str, fault: Fault) -> None:
    assert parse(text) == Plan((fault,))


def test_lines_comments_and_the_seed() -> None:
    text = "# why\n\n suspend:before-send=kill ; exit=exit(3);\n  # more\nseed = 0x10\n"
    assert str(parse(text)) == "suspend:before-send=kill; exit=exit(3); seed=16"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "the plan has no fault; want POINT=ACTION"),
        ("# only this", "the plan has no fault"),
        ("seed=3", "the plan has no fault"),
        ("suspend:before-send", "'suspend:before-send': want POINT=ACTION"),
        ("=kill", "want POINT=ACTION"),
        ("exit=kill; seed=x", "'seed=x': seed 'x': want a whole number from 0"),
        ("seed=1; seed=2; exit=kill", "has a seed already"),
        ("suspnd:before-send=kill", "no point 'suspnd:before-send'; close to it: suspend:before-s"),
        ("qqq=kill", "there is no point 'qqq'; want start, hello, exit, "),
        ("qqq=kill", "; phase.NAME as phase."),
        ("qqq=kill", "; `xen-toolstack faults list` has them all"),
        ("qqq=kill", "; controller/NAME:MOMENT as controller/log:heard; "),
        ("link/qqq=cut", "no point of the link 'qqq'; want link/stream@OFFSET, link/back@OFFSET; "),
        ("suspnd=kill", "no point 'suspnd'; close to it: suspend:heard, "),
        ("transition=kill", "no point 'transition'; close to it: "),
        ("suspend:before-sent=kill", "no moment 'before-sent'; close to it: before-send"),
        ("suspend=kill", "suspend needs a moment: want suspend:before-send, "),
        ("complete=kill", "complete needs a moment: want complete:before-send, complete"),
        ("helper/reply:before-send=drop", "the helper has no point 'reply:before-send'; want"),
        ("controller/log:after-send=kill", "log has no moment 'after-send'; want log:heard"),
        ("phase.precopi=kill", "close to it: phase.precopy"),
        ("record.libxc.PAGE_DAT:write=cut", "close to it: record.libxc.PAGE_DATA:write"),
        ("sorce/exit=kill", "'sorce' does not say where; close to it: source; want SIDE/"),
        ("helper.source/exit=kill", "'helper.source' does not say where"),
        ("exit#2=kill", "exit is passed once; leave #2 out"),
        ("stream@1#*=cut", "stream@OFFSET is passed once; leave #* out"),
        ("stream=cut", "stream needs a place, as in stream@4096"),
        ("stream@-1=cut", "OFFSET '-1': want a whole number from 0"),
        ("exit@1=kill", "exit takes no @; stream, back and page do"),
        ("log:before-send#0=drop", "# '0': want a whole number from 1"),
        ("log:before-send#0%=drop", "0%: want a probability above 0%"),
        ("log:before-send#101%=drop", "101%: want a probability"),
        ("exit=kil", "there is no action 'kil'; close to it: kill; at exit there are kill, ab"),
        ("exit=dropp", "there is no action 'dropp'; at exit there are"),
        ("log:after-send=drop", "drop cannot be done at log:after-send; at log:after-send there"),
        ("guest/suspend=kill", "kill cannot be done at guest/suspend; at guest/suspend there"),
        ("suspend:before-send=reorder", "reorder cannot be done at suspend:before-send"),
        ("exit=abort(6)", "abort takes no argument; another signal is die(SIGNAL)"),
        ("exit=kill(9)", "kill takes no argument; another signal is die(SIGNAL)"),
        ("exit=exit", "exit needs an exit status from 0 to 255: exit(CODE)"),
        ("exit=exit()", "exit needs an exit status"),
        ("exit=stop()", "stop needs seconds, as 2 or 0.5: stop[(SECONDS)]"),
        ("exit=exit(256)", "exit(256): want an exit status"),
        ("exit=die(RTMAX+1)", "die(RTMAX+1): want a signal's name"),
        ("exit=delay(inf)", "delay(inf): want seconds"),
        ("exit=delay(-1)", "delay(-1): want seconds"),
        ("phase.end=fail(EFOO)", "fail(EFOO): want an errno's name, as EIO"),
        ("phase.end=fail(errorcode)", "want an errno's name"),
        ("log:before-send=drop(1)", "drop takes no argument"),
        ("log:before-send=drop)", "is not an action; want NAME or NAME(ARGUMENT)"),
        ("destination/stream@1=enospc", "no enospc at stream@OFFSET at the destination, only at"),
        ("source/back@1=epipe", "no epipe at back@OFFSET at the source, only at the destination"),
        ("destination/precopy_policy:after-send=kill", "no precopy_policy:after-send at the dest"),
        ("handshake.go=kill", "handshake.go needs a moment: want handshake.go:before-send, "),
        ("link/handshake.goo=cut", "point of the link 'handshake.goo'; close to it: handshake.go"),
        ("source/handshake.ready:before-send=kill", "at the source, only at the destination"),
        ("handshake.go:before-send#2=kill", "is passed once; leave #2 out"),
        ("link/handshake.go=kill", "kill cannot be done at link/handshake.go; at link/handsh"),
        ("source.link/stream@1=cut", "link/stream@OFFSET has no side; leave source out"),
        ("link/stream@1#1 of all=cut", "is passed by one process alone; leave `of all` out"),
        ("guest/suspend#1 of all=crash", "is passed by one process alone; leave `of all` out"),
        ("log:before-send#* of all=drop", "`of all` follows a number of times, as in #1 of"),
        ("log:before-send#9% of all=drop", "`of all` follows a number of times"),
        ("exit=kill; counts=here", "counts 'here': want a file's absolute path, as /tmp/counts"),
        ("exit=kill; counts=/a; counts=/b", "the plan has its counts already"),
    ],
)  # fmt: skip
def test_a_wrong_plan_is_refused_with_what_would_be_right(text: str, what: str) -> None:
    with pytest.raises(PlanError) as refused:
        parse(text)
    assert what in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["suspend=kill", "suspend:befor=kill", "precopy_policy=kill"])
def test_what_would_be_right_is_said_once(text: str) -> None:
    with pytest.raises(PlanError) as refused:
        parse(text)
    wanted = str(refused.value).partition("want ")[2].split(", ")
    assert sorted(set(wanted)) == sorted(wanted)
    assert len(wanted) == 5  # of the helper four, and the controller's own


def test_a_place_for_the_counts_is_named_where_it_is_needed() -> None:
    counted = parse("hello#1 of all=exit(3)")
    assert str(counted.counting_in("/tmp/c")) == "hello#1 of all=exit(3); counts=/tmp/c"
    assert counted.counting_in("/tmp/c").counting_in("/tmp/d").counts == "/tmp/c"
    assert parse("hello=exit(3)").counting_in("/tmp/c").counts is None


@given(st.text(st.sampled_from("suspend:before-answer=kill()#@/%;.0134 \nlgwrit"), max_size=60))
def test_whatever_is_typed_it_is_a_plan_or_refused(text: str) -> None:
    try:
        plan = parse(text)
    except PlanError:
        return
    assert parse(str(plan)) == plan


def test_who_carries_what_out() -> None:
    plan = parse(
        "exit=kill; source/exit=stop; destination/exit=delay(1); stream@0=enospc;"
        "reply:before-send=drop; destination.controller/abort:after-send=kill; link/stream@0=cut"
    )

    def of(who: Who, side: Side | None = None) -> list[str]:
        return [str(fault) for fault in plan.of(who, side=side)]

    assert of(Who.HELPER, Side.SOURCE) == ["exit=kill", "source/exit=stop", "stream@0=enospc"]
    assert of(Who.HELPER, Side.DESTINATION) == ["exit=kill", "destination/exit=delay(1)"]
    assert of(Who.CONTROLLER, Side.SOURCE) == ["controller/reply:before-send=drop"]
    assert len(of(Who.CONTROLLER, Side.DESTINATION)) == 2
    assert of(Who.LINK) == of(Who.LINK, Side.SOURCE) == ["link/stream@0=cut"]
    assert not DEATHS.keys() & ACTIONS.keys()
