"""The catalogue of trace events against the sources: it has every event that is written, with all
of its fields, and every name that a reader of traces looks for."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import xen_save_helper.ipc_schema.trace_events as catalogue
from xen_save_helper.ipc_schema.trace_events import (
    COMMON,
    TRACE_EVENTS,
    Writer,
    why_not_catalogued,
)
from xen_save_helper.toolstack.xl.outcome import MigrationResult

SOURCES = Path(catalogue.__file__).parent.parent
FORWARDERS = frozenset({"helper/channels/reporter.py", "helper/faults/seams.py"}) | {
    "toolstack/operations/stream_operation.py"
}
"""Functions that pass on events named by their callers."""
READERS = ("toolstack/campaign", "toolstack/commands")
LIBXL = frozenset({Writer.CONTROLLER, Writer.RECEIVER})


class Written(NamedTuple):
    place: str
    name: str
    given: frozenset[str]
    """The fields given at the call."""


def trees(*folders: str, with_text: str = "") -> Iterator[tuple[str, ast.Module]]:
    """The sources that have this text: to parse all of them takes every worker a second."""
    for folder in folders:
        for path in sorted((SOURCES / folder).rglob("*.py")):
            if with_text in (source := path.read_text()):
                yield str(path.relative_to(SOURCES)), ast.parse(source)


def text(node: ast.AST) -> str | None:
    """The value of a string literal."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def texts(node: ast.AST) -> Iterator[str]:
    """The strings in a literal, or in a literal set, list or tuple."""
    for each in node.elts if isinstance(node, ast.Set | ast.List | ast.Tuple) else [node]:
        if (found := text(each)) is not None:
            yield found


def calls(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            yield called, node


def written() -> Iterator[Written]:
    for place, tree in trees("ipc_schema", "helper", "toolstack", with_text="event("):
        for called, call in calls(tree):
            if called == "event" and call.args and (name := text(call.args[0])) is not None:
                given = frozenset(keyword.arg for keyword in call.keywords if keyword.arg)
                yield Written(f"{place}:{call.lineno}", name, given)


WRITTEN = list(written())


@pytest.mark.parametrize("one", WRITTEN, ids=[one.place for one in WRITTEN])
def test_what_is_written_is_in_it(one: Written) -> None:
    row = TRACE_EVENTS[one.name]
    assert one.given <= row.field_names
    if one.place.startswith("ipc_schema/trace.py"):
        assert row.writers == frozenset(Writer)
    elif one.place.startswith("helper/postcopy_link/page_server.py"):
        assert Writer.PAGE_SERVER in row.writers
    elif one.place.startswith("helper/"):
        assert Writer.HELPER in row.writers
    elif one.place.startswith("toolstack/faults/link.py"):
        assert Writer.LINK in row.writers
    else:
        assert row.writers & LIBXL


def test_all_that_is_in_it_is_written() -> None:
    assert {one.name for one in WRITTEN} == set(TRACE_EVENTS)


def test_names_stand_where_events_are_written() -> None:
    """Otherwise an event that this module does not see could get into a trace."""
    unseen = {
        place
        for place, tree in trees("ipc_schema", "helper", "toolstack", with_text="event(")
        for called, call in calls(tree)
        if called == "event"
        and call.args
        and text(call.args[0]) is None
        # `rules.helper_run` has its own events, members of an enum.
        and "_run.event" not in ast.unparse(call)
        and not ast.unparse(call.args[0]).startswith("HelperEvent.")
    }
    assert unseen == FORWARDERS


def looked_for() -> Iterator[tuple[str, str]]:
    """Names of events that are compared with, or asked for by name; `(event, field)` is compared
    with `(name, value)`."""
    for place, tree in trees(*READERS):
        for node in ast.walk(tree):
            if isinstance(node, ast.Compare):
                left, (right, *_) = node.left, node.comparators
                if isinstance(left, ast.Tuple) and isinstance(right, ast.Tuple):
                    left, right = left.elts[0], right.elts[0]
                if ast.unparse(left) == "what" or re.search(
                    r"\['event'\]|get\('event'\)", ast.unparse(left)
                ):
                    yield from ((place, name) for name in texts(right))
        for called, call in calls(tree):
            if called in {"named", "_named", "_count"}:
                yield from ((place, name) for each in call.args for name in texts(each))


def test_what_a_reader_looks_for_is_in_it() -> None:
    found = set(looked_for())
    assert {name for _place, name in found} <= set(TRACE_EVENTS), found
    assert len({place for place, _name in found}) > 5


def test_names_are_in_snake_case() -> None:
    names = {*TRACE_EVENTS, *(name for row in TRACE_EVENTS.values() for name in row.field_names)}
    assert [name for name in names if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name)] == []


@pytest.mark.parametrize("name", TRACE_EVENTS)
def test_a_field_is_told_once_and_hides_none_of_every_line(name: str) -> None:
    row = TRACE_EVENTS[name]
    assert len(row.field_names) == len(row.fields)
    assert not row.field_names & COMMON
    assert row.writers
    assert row.doc.endswith(".")


def test_the_end_of_a_migration_is_what_it_prints() -> None:
    """Its cause too, for programs."""
    printed = {field.name for field in fields(MigrationResult)}
    assert TRACE_EVENTS["migrated"].field_names == printed | {"cause", "errnoval"}


def line(event: str, process: str, **more: Any) -> dict[str, Any]:
    return {"t": 1.0, "pid": 1, "process": process, "event": event, **more}


def test_a_line_of_it() -> None:
    assert list(why_not_catalogued(line("helper_exited", "controller", status=-9))) == []
    suspend = line("callback", "helper", name="suspend", value=1, seconds=0)
    assert list(why_not_catalogued(suspend)) == []


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (line("helper ended", "controller", status=0), "unknown event 'helper ended'"),
        (line("helper_exited", "controller"), "helper_exited: no status"),
        (line("helper_exited", "controller", status="0"), "helper_exited: status is '0'"),
        (line("helper_exited", "controller", status=False), "helper_exited: status is False"),
        (line("helper_exited", "helper", status=0), "helper_exited: not written by 'helper'"),
        (line("helper_exited", "receiver", status=0, rc=0), "helper_exited: unknown field 'rc'"),
        ({"t": 1, "pid": 1, "event": "helper_ready"}, "no process"),
    ],
)
def test_a_line_that_is_none_of_it(found: dict[str, Any], why: str) -> None:
    assert why in list(why_not_catalogued(found))
