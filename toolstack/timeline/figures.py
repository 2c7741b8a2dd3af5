"""Rounds, decisions, faults and figures over time, from the traces of both sides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from xen_save_helper.toolstack.timeline import words
from xen_save_helper.toolstack.timeline.moments import Moments, Place
from xen_save_helper.toolstack.timeline.operations import Operation
from xen_save_helper.toolstack.timeline.picture import Counter, Details, Faults, Round
from xen_save_helper.toolstack.timeline.sides import Side
from xen_save_helper.toolstack.timeline.trace_lines import Line

_NAMES = {
    "Final precopy iteration": "last pages",
    "Frames ahead": "ahead of postcopy",
    "Frames verify": "verify pass",
}


def rounds_of(source: Side, place: Place) -> Iterator[Round]:
    """The rounds of memory at the source."""
    lines = [line for line in source.named("round") if _whole(line)]
    for position, line in enumerate(lines):
        end = place(line)
        pages = next(
            (value for name in ("pages", "frames") if isinstance(value := line.get(name), int)), 0
        )
        doing = str(line.get("doing_what"))
        after = lines[position + 1] if position + 1 < len(lines) else None
        dirty, decision, why = _decided(source, line, after)
        yield Round(
            name=_NAMES.get(doing) or _numbered(line, doing),
            start=end - float(line.get("seconds")),
            end=end,
            pages=pages,
            size=pages * words.PAGE_SIZE,
            dirty=dirty,
            decision=decision,
            why=why,
        )


def _numbered(line: Line, doing: str) -> str:
    """Of libxc's iteration 0 the name is round 1, as in all that people are shown."""
    iteration = line.get("iteration")
    return f"round {iteration + 1}" if isinstance(iteration, int) else doing


def _whole(line: Line) -> bool:
    return isinstance(line.get("seconds"), int | float)


def _decided(source: Side, line: Line, after: Line | None) -> tuple[int | None, str, str]:
    """How many pages were dirty after a round, and what the policy decided after or during it."""
    dirty: int | None = None
    decision, why = "", ""
    began = line.t - float(line.get("seconds"))
    until = None if after is None else after.t - float(after.get("seconds"))
    for told in source.lines:
        if told.t < began or (until is not None and told.t > until):
            continue
        if told.event == "precopy_policy":
            count = told.get("dirty_count")
            ends = (told.get("answer") or told.get("decision")) != "CONTINUE_PRECOPY"
            if told.t >= line.t or ends:
                decision = str(told.get("answer") or told.get("decision") or "")
                why = words.text(told.get("why"))
            if isinstance(count, int) and count >= 0:
                dirty = count
        elif told.event == "final_dirty" and isinstance(told.get("dirty_count"), int):
            dirty = told.get("dirty_count") if dirty is None else dirty
    return dirty, decision, why


def counters_of(
    operation: Operation, place: Place, rounds: Sequence[Round], moments: Moments, end: float
) -> Iterator[Counter]:
    """Figures over time: the rate, pages that are dirty or missing, faults."""
    rate = _rate(operation, place, rounds)
    if rate:
        yield Counter("rate", "B/s", (*rate, (end, 0.0)))
    dirty = [(one.end, float(one.dirty)) for one in rounds if one.dirty is not None]
    if dirty:
        stop = moments.suspended.at if moments.suspended else end
        sent = moments.pages_sent.at if moments.pages_sent else stop
        first = [(rounds[0].start, float(_first_dirty(operation) or rounds[0].pages))]
        points = [*first, *(one for one in dirty if one[0] > first[0][0])]
        if moments.suspended is not None:
            points.append((max(sent, points[-1][0]), 0.0))
        yield Counter("dirty", "pages", tuple(points))
    if operation.destination is not None and moments.postcopy:
        yield from _of_postcopy(operation, operation.destination, place, moments)


def _of_postcopy(
    operation: Operation, destination: Side, place: Place, moments: Moments
) -> Iterator[Counter]:
    """Pages that are missing, and faults a second."""
    begun = moments.state_in_place
    left = None if operation.source is None else operation.source.value("pages", "postcopy_pfns")
    missing = [] if begun is None or not isinstance(left, int) else [(begun.at, float(left))]
    faults: list[tuple[float, float]] = []
    since = None if moments.runs_there is None else moments.runs_there.at
    for line in destination.lines:
        at = place(line)
        done, total = line.get("done"), line.get("total")
        if line.event == "postcopy_complete":
            missing.append((at, 0.0))
        elif line.event == "postcopy_faults":
            count, still = line.get("faults"), line.get("missing")
            if isinstance(still, int):
                missing.append((at, float(still)))
            if isinstance(count, int) and since is not None and at > since:
                faults.append((since, count / (at - since)))
                since = at
        elif isinstance(done, int) and isinstance(total, int) and _is_of_postcopy(line):
            missing.append((at, float(total - done)))
    if missing:
        yield Counter("missing", "pages", tuple(sorted(missing)))
    if faults and since is not None:
        yield Counter("faults", "/s", (*faults, (since, 0.0)))


def _first_dirty(operation: Operation) -> int | None:
    """The pages of the first round: all that the guest has."""
    assert operation.source is not None
    value = operation.source.value("dirty_count", "round")
    return value if isinstance(value, int) else None


def _rate(operation: Operation, place: Place, rounds: Sequence[Round]) -> list[tuple[float, float]]:
    points: list[tuple[float, float]] = []
    for one in sorted(rounds, key=lambda one: one.start):
        if one.rate is None:
            continue
        if points and points[-1][0] > one.start:
            points.pop()
        points += [(one.start, one.rate), (one.end, 0.0)]
    if operation.source is not None:
        points += _postcopy_rate(operation.source, place)
    return points


def _postcopy_rate(source: Side, place: Place) -> Iterator[tuple[float, float]]:
    """By the progress that the controller was told; without a controller, the mean."""
    begun = done = None
    for line in source.lines:
        if line.event == "phase" and line.get("name") == "postcopy pages":
            if line.get("state") == "begin":
                begun, done = place(line), 0
            elif begun is not None and done is not None:
                pages = source.value("pages", "postcopy_pfns")
                end = place(line)
                if isinstance(pages, int) and pages > done and end > begun:
                    yield begun, (pages - done) * words.PAGE_SIZE / (end - begun)
                yield end, 0.0
                return
        elif begun is not None and done is not None and line.event == "callback":
            told = line.get("done")
            if isinstance(told, int) and _is_of_postcopy(line):
                at = place(line)
                if told > done and at - begun > 1e-3:
                    yield begun, (told - done) * words.PAGE_SIZE / (at - begun)
                    begun, done = at, told


def _is_of_postcopy(line: Line) -> bool:
    """Whether a report of progress is about the pages of a postcopy."""
    return str(line.get("doing_what")).startswith("postcopy")


def faults_of(operation: Operation) -> Faults | None:
    """The page faults of a postcopy, as the restoring helper counted them and the guest did."""
    classes: list[int] = []
    longest = 0.0
    if operation.destination is not None:
        for line in operation.destination.named("postcopy_faults"):
            counts = line.get("latencies")
            if not isinstance(counts, list) or not all(isinstance(one, int) for one in counts):
                continue
            classes += [0] * (len(counts) - len(classes))
            for number, count in enumerate(counts):
                classes[number] += count
            took = line.get("longest")
            longest = max(longest, float(took) if isinstance(took, int | float) else 0.0)
    told: Details = ()
    count = sum(classes)
    for side in operation.sides:
        report = side.value("postcopy", "migrated")
        if isinstance(report, dict):
            told = tuple(_guests_own(report))
            faults = report.get("faults")
            count = count or (faults if isinstance(faults, int) else 0)
    if not classes and not told:
        return None
    return Faults(count, tuple(classes), longest, told)


def _guests_own(report: dict[str, object]) -> Iterator[tuple[str, str]]:
    for name, shown in (("fault_p50_us", "median"), ("fault_p99_us", "99th percentile")):
        value = report.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield shown, words.seconds(float(value) / 1e6)
