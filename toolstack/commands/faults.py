"""The commands faults list and faults run."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NoReturn

from xen_save_helper.ipc_schema.faults import actions as fault_actions
from xen_save_helper.ipc_schema.faults import plan as fault_plan
from xen_save_helper.ipc_schema.faults.actions import DEATHS, ActionKind, on_pipe, sides
from xen_save_helper.ipc_schema.faults.plan import Plan, PlanError, parse
from xen_save_helper.ipc_schema.faults.points import POINTS, Point, Side
from xen_save_helper.toolstack.aio.scratch import ScratchDirectory
from xen_save_helper.toolstack.campaign.evidence import Mode
from xen_save_helper.toolstack.campaign.report.figures import not_fired, value_text
from xen_save_helper.toolstack.campaign.report.timelines import picture_of_run
from xen_save_helper.toolstack.campaign.run import FAULT_LIMITS, FaultRun, Verdict, run_fault
from xen_save_helper.toolstack.campaign.worker import end_all_in
from xen_save_helper.toolstack.commands.common import CommandError, UsageError, show
from xen_save_helper.toolstack.commands.own_timeline import check_target
from xen_save_helper.toolstack.commands.running import limits_of
from xen_save_helper.toolstack.limits import Limits
from xen_save_helper.toolstack.timeline.files import write_page
from xen_save_helper.toolstack.xl.outcome import ExitCode

PREFIX: Final = "xen-faults-"
AROUND: Final = 8
"""Lines of the trace to show before and after each fault."""
_SHOWN: Final = 110
"""Columns for the fields of a trace line."""
_HEADLINES: Final = {
    "holds": "holds: all that must be true is true",
    "fails": "FAILS",
    "did not fire": "did not fire: the run never came to the fault, so nothing is known",
}


def show_points(arguments: argparse.Namespace) -> int:
    """Show each point with the actions that it admits, and which sides and channels lack some."""
    rows = [
        {
            "point": str(point),
            "sides": _names(point.sides),
            "on_pipe": point.on_pipe,
            "doc": point.doc,
            "actions": [*DEATHS] * (fault_actions.DIE in kinds) + [str(kind) for kind in kinds],
            "only": {
                kind.name: {"sides": _names(sides(point, kind)), "on_pipe": on_pipe(point, kind)}
                for kind in kinds
                if _limits_of(point, kind)
            },
        }
        for point, kinds in _admitted()
    ]

    def human() -> None:
        for point, kinds in _admitted():
            shown = [f"{kind}{_note(_limits_of(point, kind))}" for kind in kinds]
            print(f"{point}\n    {point.doc}{_note(_limits_of(point))}\n    {', '.join(shown)}")
        deaths = ", ".join(f"{name} is die({signal})" for name, signal in DEATHS.items())
        print(f"\n{deaths}. The actions:")
        for kind in fault_actions.ACTIONS.values():
            print(f"  {kind!s:28} {kind.doc}")
        print(f"\n{fault_plan.__doc__}")

    return show(arguments, rows, human)


def _admitted() -> Iterator[tuple[Point, Sequence[ActionKind]]]:
    for point in POINTS.values():
        yield point, fault_actions.admitted(point)


def _limits_of(point: Point, kind: ActionKind | None = None) -> list[str]:
    """The sides and channels that lack a point, or an action that the point has elsewhere."""
    where = point.sides if kind is None else sides(point, kind)
    everywhere = frozenset(Side) if kind is None else point.sides
    there = point.on_pipe if kind is None else on_pipe(point, kind)
    of_sides = [f"{', '.join(_names(where))} only"] if where and where != everywhere else []
    return of_sides + ["not on libxl's pipes"] * (not there and (kind is None or point.on_pipe))


def _note(limits: Sequence[str]) -> str:
    return f" ({'; '.join(limits)})" if limits else ""


def _names(where: frozenset[Side]) -> list[str]:
    return sorted(side.value for side in where)


def run(arguments: argparse.Namespace) -> int:
    """Run a plan once, and show the verdict."""
    plan = plan_of(arguments.plan)
    limits = fault_limits(arguments)
    rows = []
    with contextlib.ExitStack() as stack:
        if arguments.timeline is not None:
            check_target(arguments.timeline)
        # Before the run: an error afterwards would waste it.
        events = arguments.events and stack.enter_context(open(arguments.events, "a"))
        stack.enter_context(_ended_in_order())
        scratch = stack.enter_context(ScratchDirectory(PREFIX, clear=end_all_in))
        directory = scratch.path / "run"
        directory.mkdir()
        given = (Mode(arguments.mode), arguments.memory, arguments.workload, directory)
        try:
            verdict = run_fault(FaultRun(plan, *given), limits=limits)
        except ValueError as error:
            raise CommandError(str(error)) from error
        if events:
            events.writelines(json.dumps(event) + "\n" for event in verdict.events)
    if arguments.timeline is not None:
        picture = picture_of_run(verdict.events, verdict.plan)
        if picture is not None:
            write_page(picture, Path(arguments.timeline))
            rows.append(f"{'timeline':19} {arguments.timeline}")
    code = ExitCode.SUCCESS if verdict.holds else ExitCode.FAILED
    return show(
        arguments, verdict.as_json(), lambda: print("\n".join([*text_of(verdict), *rows])), code
    )


@contextlib.contextmanager
def _ended_in_order() -> Iterator[None]:
    """Have SIGTERM and SIGHUP clean up before they end the process, as SIGINT does."""

    def end(signum: int, _frame: object) -> NoReturn:
        name = signal.Signals(signum).name
        print(f"xen-toolstack: ended by {name}", file=sys.stderr, flush=True)
        sys.exit(128 + signum)

    before = {one: signal.signal(one, end) for one in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def plan_of(text: str) -> Plan:
    """The plan that was typed, or that is in the file after an `@`. Raises UsageError."""
    try:
        return parse(Path(text[1:]).read_text() if text.startswith("@") else text)
    except (PlanError, OSError, UnicodeDecodeError) as error:
        raise UsageError(str(error)) from error


def fault_limits(arguments: argparse.Namespace) -> Limits:
    """Short limits, except those that `--limit` sets. Raises UsageError."""
    given = limits_of(arguments)
    names = {setting.partition("=")[0] for setting in arguments.limit}
    return replace(FAULT_LIMITS, **{name: getattr(given, name) for name in names})


def text_of(verdict: Verdict) -> Iterator[str]:
    """A verdict for people: what was expected, what was seen, what is wrong, and the trace around
    the faults."""
    yield f"{_HEADLINES[verdict.kind]} ({verdict.seconds:.1f} s)"
    rows = {
        "plan": verdict.plan,
        "mode": verdict.mode,
        "fired": ", ".join(verdict.fired) or "nothing",
        **_idle(verdict),
        "expected": verdict.expected,
        **verdict.seen,
    }
    for name, value in rows.items():
        yield f"{name:19} {value_text(name, value)}"
    for problem in verdict.problems:
        yield f"{'WRONG':19} {problem}"
    yield ""
    yield from trace_text(verdict.events)


def _idle(verdict: Verdict) -> dict[str, str]:
    """Those of several faults that the run never came to."""
    idle = not_fired(verdict)
    return {"did not fire": ", ".join(idle)} if idle and verdict.fired else {}


def trace_text(events: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The lines around each fault, or the last lines if there is none; times are from the first
    event."""
    struck = [index for index, event in enumerate(events) if event["event"] == "fault"]
    shown = sorted(
        {
            near
            for index in struck or [len(events) - 1]
            for near in range(index - AROUND, index + AROUND + 1)
            if 0 <= near < len(events)
        }
    )
    helpers = _helpers(events)
    for position, index in enumerate(shown):
        if position and shown[position - 1] != index - 1:
            yield "      ..."
        event = events[index]
        milliseconds = (event["t"] - events[0]["t"]) * 1000
        who = helpers.get(event["pid"], event["process"])
        fields = " ".join(
            f"{name}={value_text(name, value)}"
            for name, value in event.items()
            if name not in {"t", "pid", "process", "event"}
        )
        mark = ">" if event["event"] == "fault" else " "
        yield f"{mark} {milliseconds:8.1f} ms  {who:18} {event['event']:16} {fields[:_SHOWN]}"


def _helpers(events: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """The helpers' pids, with the names to show."""
    return {
        event["helper"]: f"{event['process']}'s helper"
        for event in events
        if event["event"] == "helper_started"
    }
