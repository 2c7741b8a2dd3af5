"""Makes the parts of the pages that show tables; `python -m tests.pictures` rewrites them in place.

A page marks a place with `<!-- made by tests/pictures.py: NAME -->` and `<!-- end -->`; between
them goes what `MAKERS[NAME]` makes from the tables themselves.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Final

from xen_save_helper.helper.engine import page_states, save_phases
from xen_save_helper.ipc_schema.channel import turn_taking
from xen_save_helper.ipc_schema.channel.messages import (
    CALLBACKS,
    CHANNEL_MESSAGES,
    Dialect,
    Message,
    Operation,
)
from xen_save_helper.ipc_schema.errors import Error
from xen_save_helper.ipc_schema.streams.libxc_record_types import RecordType, record_number
from xen_save_helper.ipc_schema.trace_events import TRACE_EVENTS, Writer
from xen_save_helper.toolstack.rules import (
    handshake,
    helper_run,
    join,
    postcopy_join,
    stream_write,
    suspend,
)

REPOSITORY: Final = Path(__file__).parents[1]
PAGES: Final = (
    "toolstack/campaign/README.md",
    "ipc_schema/protocol.md",
    "ipc_schema/trace.md",
    "toolstack/rules/teardown.md",
    "helper/engine/postcopy.md",
)

_PLACE: Final = re.compile(
    r"(?<=<!-- made by tests/pictures\.py: )(\w+)( -->\n).*?(?=<!-- end -->)", re.DOTALL
)
Edge = tuple[str, str, str]
"""From, to, and the label of the arrow."""


def with_pictures(page: str) -> str:
    """The text of a page, with every made part made again. Raises KeyError."""
    return _PLACE.sub(lambda place: f"{place[1]}{place[2]}{MAKERS[place[1]]()}\n", page)


def diagram(edges: Iterable[Edge], ends: Iterable[str] = ()) -> str:
    """A Mermaid state diagram. Events with the same ends and actions share an arrow."""
    events: dict[Edge, list[str]] = {}
    for source, target, label in edges:
        event, _, actions = label.partition(" / ")
        events.setdefault((source, target, actions), []).append(event)
    names = dict.fromkeys(name for source, target, _ in events for name in (source, target))
    ids = {name: f"s{number}" for number, name in enumerate(names)}
    lines = ["```mermaid", "stateDiagram-v2"]
    lines += [f'    state "{name}" as {ids[name]}' for name in names]
    lines.append(f"    [*] --> {next(iter(ids.values()))}")
    for (source, target, actions), texts in events.items():
        label = f"{', '.join(dict.fromkeys(texts))}{actions and f' / {actions}'}"
        lines.append(f"    {ids[source]} --> {ids[target]} : {label}")
    lines += [f"    {ids[end]} --> [*]" for end in ends]
    return "\n".join([*lines, "```"])


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    texts = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in texts)


def explored(
    start: Any, events: Mapping[str, Callable[[Any], object]], name: Callable[[Any], str]
) -> list[Edge]:
    """Every step of a machine whose table is its code: each event in each state that it reaches.

    What `events` return (actions) labels the arrow; a RuntimeError means that it cannot come.
    """
    edges: list[Edge] = []
    known, left = {name(start)}, [start]
    while left:
        before = left.pop(0)
        for label, event in events.items():
            after = copy.deepcopy(before)
            try:
                done = event(after)
            except RuntimeError:
                continue
            if name(after) == name(before) and not done:
                continue
            edges.append((name(before), name(after), f"{label}{done and f' / {done}'}"))
            if name(after) not in known:
                known.add(name(after))
                left.append(after)
    return edges


def messages() -> str:
    def number(message: Message, dialect: Dialect) -> str:
        return str(message.numbers.get(dialect, ""))

    def text(message: Message) -> tuple[str, ...]:
        fields = ", ".join(f"`{field.kind.value} {field.name}`" for field in message.fields)
        return (f"`{message.name}`", fields, message.doc)

    def used_by(message: Message) -> str:
        return " and ".join(one.value for one in Operation if one in message.operations)

    dialects = (Dialect.MAINLINE_4_7, Dialect.MAINLINE, Dialect.SERIES)
    callbacks = table(
        (
            "message",
            "arguments",
            "what it says",
            "in a",
            "answer",
            "4.7 to 4.13",
            "4.14+",
            "series",
        ),
        (
            (*text(row), used_by(row), row.answer.value, *(number(row, one) for one in dialects))
            for row in CALLBACKS
        ),
    )
    channel = table(
        ("on ZeroMQ only", "arguments", "what it says", "sent by"),
        ((*text(row), row.sender.value) for row in CHANNEL_MESSAGES),
    )
    return f"{callbacks}\n\n{channel}"


def conversation() -> str:
    """`turn_taking.CONVERSATION`; the messages that the controller sends out of turn get a line."""
    told: dict[str, list[str]] = {}
    edges = []
    for (before, turn), after in turn_taking.CONVERSATION.items():
        if turn in {turn_taking.Turn.ABORT, turn_taking.Turn.REFUSED}:
            told.setdefault(turn.value, []).append(before.name)
        else:
            edges.append((before.value, after.value, turn.value))
    lines = [f"`{turn}` may come in {', '.join(states)}." for turn, states in told.items()]
    return "\n".join([diagram(edges), "", *lines])


def joined() -> str:
    """`rules.join`, as it behaves."""

    def acted(actions: tuple[join.JoinAction, ...]) -> str:
        return ", ".join(
            f"abort the {one.task.value}" if isinstance(one, join.AbortTask) else type(one).__name__
            for one in actions
            if not isinstance(one, join.Unwind)
        )

    def name(machine: join.Join) -> str:
        running = [task.value for task in join.Task if machine.running(task)]
        what = f"{' and '.join(running) or 'none'} running"
        if machine.completed:
            what = "completed"
        failed = ", failed" if machine.rc else ""
        return f"{what}{failed}{', aborting' if machine._sync_teardown else ''}"

    start = join.Join()
    events: dict[str, Callable[[join.Join], str]] = {}
    for task in join.Task:
        start.started(task)
        events[f"{task.value} stops, rc 0"] = lambda m, task=task: acted(m.stopped(task, 0))
        events[f"{task.value} fails"] = lambda m, task=task: acted(m.stopped(task, Error.FAIL))
    events["caller gives up"] = lambda m: acted(m.fail(Error.FAIL))

    def unwound(machine: join.Join) -> str:
        return acted(machine.unwound()) if machine._sync_teardown else ""

    events["unwound"] = unwound
    edges = explored(start, events, name)
    # Once it has failed, how the other one ends makes no difference.
    ends = dict.fromkeys(target for _, target, _ in edges if target.startswith("completed"))
    return diagram(_merged(edges), ends)


def _merged(edges: list[Edge]) -> list[Edge]:
    """«X stops, rc 0» and «X fails», where both do the same, are «X stops»."""
    merged = []
    for source, target, label in edges:
        event, slash, action = label.partition(" / ")
        what = event.removesuffix(" fails").removesuffix(" stops, rc 0")
        twins = [f"{what}{end}{slash}{action}" for end in (" fails", " stops, rc 0")]
        both = all((source, target, twin) in edges for twin in twins)
        merged.append((source, target, f"{what} stops{slash}{action}" if both else label))
    return merged


def writing() -> str:
    """`stream_write.SEQUENCES` and `ON_FAILURE`, a line for each cause."""
    lines = ["```mermaid", "flowchart LR"]
    for row, (cause, (phase, steps, then)) in enumerate(stream_write.SEQUENCES.items()):
        boxes = [f'c{row}["{cause.value}"]']
        for column, step in enumerate(steps):
            is_part = isinstance(step, stream_write.Part)
            left, right = ("[", "]") if is_part else ("{{", "}}")
            text = step.value if is_part else "point of no return"
            only = "<br>(device model)" if step in stream_write.EMULATOR else ""
            boxes.append(f's{row}_{column}{left}"{text}{only}"{right}')
        boxes.append(f't{row}(["{then.value}"])')
        lines.append(f"    {' --> '.join(boxes)}")
        failure = stream_write.ON_FAILURE[phase].value.replace(", rc 0", ", the rc")
        lines.append(f'    c{row} -. "a write fails" .-> f{row}(["{failure}"])')
    return "\n".join([*lines, "```"])


def suspending() -> str:
    """`rules.suspend`, as it behaves."""

    def acted(actions: suspend.Actions) -> str:
        names = []
        for one in actions:
            if isinstance(one, suspend.Finished):
                rc = "the abort's rc" if one.rc == Error.ABORTED else Error(one.rc).name
                names.append(rc if one.rc else "rc 0")
            else:
                names.append({"StartLimit": "start the limit"}.get(type(one).__name__, "withdraw"))
        return ", ".join(names)

    def name(machine: suspend.SuspendRules) -> str:
        if machine.stage is suspend.SuspendStage.ENDED:
            may = ", may suspend" if machine.may_suspend else ""
            return f"ended{may}"
        withdrawing = machine._withdrawing
        if withdrawing is None:
            return machine.stage.value
        why = "limit" if withdrawing[0].rc == Error.GUEST_TIMEDOUT else "abort"
        return f"{machine.stage.value}, withdrawing ({why} when {withdrawing[1].value})"

    events: dict[str, Callable[[suspend.SuspendRules], str]] = {
        "acknowledged": lambda m: acted(m.acknowledged()),
        "suspended": lambda m: acted(m.suspended()),
        "refused or crashed": lambda m: acted(m.refused()),
        "limit": lambda m: acted(m.limit()),
        "abort": lambda m: acted(m.abort(Error.ABORTED)),
        "withdrawn": lambda m: acted(m.withdrawn(True)),
        "not withdrawn": lambda m: acted(m.withdrawn(False)),
    }
    return diagram(explored(suspend.SuspendRules(), events, name), ("ended", "ended, may suspend"))


def from_table(rows: Mapping[tuple[Any, Any], Enum], ends: Iterable[Enum] = ()) -> str:
    """A table of (state, event) to state."""
    edges = [(_text(one), _text(to), _text(event)) for (one, event), to in rows.items()]
    return diagram(edges, [_text(end) for end in ends])


def _text(member: Enum) -> str:
    value = member.value if isinstance(member.value, str) else member.name
    return str(value).lower() if value == member.name else str(value)


def of_handshake(rows: Mapping[Any, Any], ends: Iterable[Enum]) -> str:
    return from_table(rows, sorted(ends, key=lambda end: list(type(end)).index(end)))


def running_a_helper() -> str:
    """`helper_run.TABLE`."""
    edges = []
    for (phase, event), step in helper_run.TABLE.items():
        doing = ", ".join(action.name for action in step.actions)
        name = event.name.lower().replace("_", " ")
        edges.append(
            (phase.name.lower(), step.phase.name.lower(), f"{name} / {doing}".rstrip(" /"))
        )
    return diagram(edges, [helper_run.HelperPhase.ENDED.name.lower()])


def resuming() -> str:
    """`postcopy_join.RESUMPTION`: each stage is what is waited for."""
    ended = postcopy_join.ResumeStage.NOTHING
    edges = []
    for stage, (action, after) in postcopy_join.RESUMPTION.items():
        edges.append((stage.value, after.value, f"rc 0 / {type(action).__name__}"))
        edges.append((stage.value, ended.value, "another rc / Resumed"))
    return diagram(edges, [ended.value])


def events() -> str:
    """`trace_events.TRACE_EVENTS`."""
    return table(
        ("event", "when", "fields", "written by"),
        (
            (
                f"`{event.name}`",
                event.doc,
                ", ".join(
                    f"`{field.name}{'?' * field.optional}` {' or '.join(sorted(field.kinds))}"
                    for field in event.fields
                ),
                ", ".join(writer for writer in Writer if writer in event.writers),
            )
            for event in TRACE_EVENTS.values()
        ),
    )


def program(name: str) -> str:
    """The code of an example, without its docstring."""
    text = (REPOSITORY / "tests/examples" / name).read_text()
    _, _, code = text.partition('"""\n\n')
    return f"```python\n{code}```"


def postcopy_records() -> str:
    def number(record: RecordType, version: int) -> str:
        try:
            return f"{record_number(record, version):#x}"
        except ValueError:
            return ""

    return table(
        ("record", "version 2 (series)", "version 3 (this project)"),
        (
            (record.name, number(record, 2), number(record, 3))
            for record in RecordType
            if record.name.startswith("POSTCOPY")
        ),
    )


MAKERS: Final[Mapping[str, Callable[[], str]]] = {
    "messages": messages,
    "turn_taking": conversation,
    "join": joined,
    "stream_write": writing,
    "postcopy_join": resuming,
    "suspend": suspending,
    "helper_run": running_a_helper,
    "sender": lambda: of_handshake(handshake.SENDER_TABLE, handshake.SENDER_ENDS),
    "receiver": lambda: of_handshake(handshake.RECEIVER_TABLE, handshake.RECEIVER_ENDS),
    "save_phases": lambda: from_table(save_phases.NEXT, [save_phases.Phase.FINISHED]),
    "page_states": lambda: from_table(page_states.TRANSITIONS),
    "postcopy_records": postcopy_records,
    "trace_events": events,
    "failure_path": lambda: program("test_failure_path.py"),
}


def main() -> None:
    for name in PAGES:
        path = REPOSITORY / name
        made = with_pictures(path.read_text())
        if made != path.read_text():
            path.write_text(made)
            print(f"{name}: written anew")


if __name__ == "__main__":
    main()
