"""The rules of the Trace Event Format ("Trace Event Format", Google, 2016), as Perfetto and
chrome://tracing read it."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import pairwise
from typing import Any

import pytest

from tests.toolstack.timeline.traces import precopy
from xen_save_helper.toolstack.timeline import trace_event
from xen_save_helper.toolstack.timeline.model import draw
from xen_save_helper.toolstack.timeline.picture import Picture

NEEDED = {
    "X": {"name", "cat", "ts", "dur", "pid", "tid"},
    "i": {"name", "ts", "pid", "tid", "s"},
    "C": {"name", "ts", "pid", "args"},
    "M": {"name", "pid", "args"},
    "s": {"name", "cat", "id", "ts", "pid", "tid"},
    "f": {"name", "cat", "id", "ts", "pid", "tid", "bp"},
}
METADATA = {
    "process_name": "name",
    "process_labels": "labels",
    "process_sort_index": "sort_index",
    "thread_name": "name",
    "thread_sort_index": "sort_index",
}


def breaches(document: dict[str, Any]) -> list[str]:
    """Each way in which a document breaks the rules."""
    found = []
    slices = defaultdict(list)
    flows: dict[object, dict[str, dict[str, Any]]] = defaultdict(dict)
    for event in document["traceEvents"]:
        kind = event["ph"]
        if kind not in NEEDED:
            found.append(f"unknown phase {kind}")
            continue
        found += [f"{kind}: no {name}" for name in NEEDED[kind] - set(event)]
        for name in {"ts", "dur"} & set(event):
            if isinstance(event[name], bool) or not isinstance(event[name], int | float):
                found.append(f"{name} is {event[name]!r}")
            elif event[name] < 0:
                found.append(f"{name} is negative")
        if kind == "X":
            slices[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
        elif kind == "i" and event["s"] not in {"g", "p", "t"}:
            found.append(f"scope {event['s']}")
        elif kind == "C" and not all(
            isinstance(one, int | float) for one in event["args"].values()
        ):
            found.append("a counter that is not a number")
        elif kind == "M" and list(event["args"]) != [METADATA.get(event["name"])]:
            found.append(f"metadata {event['name']}")
        elif kind in {"s", "f"}:
            flows[event["id"]][kind] = event
    for thread, intervals in slices.items():
        intervals.sort()
        for (_, end), (start, _) in pairwise(intervals):
            if start < end - 1e-3:
                found.append(f"slices of {thread} overlap")
    for identity, ends in flows.items():
        if set(ends) != {"s", "f"} or ends["s"]["ts"] > ends["f"]["ts"]:
            found.append(f"flow {identity}")
        for event in ends.values():
            # An arrow is bound to the slice that encloses it.
            if not any(
                start <= event["ts"] <= end for start, end in slices[event["pid"], event["tid"]]
            ):
                found.append(f"flow {identity} is not in a slice")
    return found


def test_a_real_migration_keeps_the_rules(real_picture: Picture) -> None:
    document = json.loads(trace_event.text(real_picture))
    assert breaches(document) == []
    names = {event["name"] for event in document["traceEvents"] if event["ph"] == "X"}
    assert {"runs, pages arrive", "postcopy pages", "send the guest", "suspend"} <= names
    processes = [
        event["args"]["name"]
        for event in document["traceEvents"]
        if event["name"] == "process_name"
    ]
    assert processes == [*(lane.name for lane in real_picture.lanes), "figures"]


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_so_does_one_between_two_machines(offset: float) -> None:
    picture = draw(precopy(offset).operation())
    document = trace_event.document(picture)
    assert [one for one in breaches(document) if "slice" not in one] == []
    if offset:
        assert document["otherData"]["which may be wrong by"].startswith("± ")


def test_the_rules_see_what_is_wrong() -> None:
    thread = {"pid": 1, "tid": 1, "name": "n", "cat": "c"}
    events = [{"ph": "X", "ts": 0, "dur": 5, **thread}, {"ph": "X", "ts": 3, "dur": 5, **thread}]
    assert breaches({"traceEvents": events}) == ["slices of (1, 1) overlap"]
    assert breaches({"traceEvents": [{"ph": "?"}]}) == ["unknown phase ?"]
