"""Reads traces: files of JSON lines, as `ipc_schema.trace` writes them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

_COMMON: Final[Mapping[str, type | tuple[type, ...]]] = {
    "t": (int, float),
    "pid": int,
    "process": str,
    "event": str,
}
_SHOWN: Final = 60
"""Characters of a bad line that are shown."""


class TraceError(ValueError):
    """A file is not a trace; the text names it and its line."""


class ClockName(NamedTuple):
    """A CLOCK_MONOTONIC. `boot` and `time_namespace` are those of the event `clock`; a file without
    such an event has a clock of its own, which its `path` names."""

    boot: str | None
    time_namespace: int | None
    path: str = ""


@dataclass(frozen=True)
class Line:
    """A line of a trace. `t` is in seconds of `clock`; `fields` are those of the event alone."""

    t: float
    pid: int
    process: str
    event: str
    guest: str | None
    fields: Mapping[str, Any]
    clock: ClockName

    def get(self, name: str) -> Any:
        return self.fields.get(name)


@dataclass(frozen=True)
class TraceFile:
    """The lines of a file, in the order of their times. `notes` says for people what could not be
    read."""

    path: str
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = field(default=())


def read_trace(path: Path) -> TraceFile:
    """Read a file. Raises OSError, and TraceError for a line that is not a trace's. A last line
    that is cut, since its writer was killed or still writes, is left out, and noted."""
    with path.open("rb") as file:
        return parse_trace(str(path), file)


def parse_trace(path: str, lines: Iterable[bytes]) -> TraceFile:
    """As `read_trace`, for lines that were read. `path` names them for people."""
    notes: list[str] = []
    found = list(_objects(path, lines, notes))
    if not found:
        notes.append(f"{path}: there is no event in it")
    return TraceFile(path, _with_clocks(path, found), tuple(notes))


def _objects(path: str, lines: Iterable[bytes], notes: list[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield _object(line)
        except ValueError as error:
            if not line.endswith(b"\n"):
                notes.append(f"{path}: line {number}, the last one, is cut, and left out")
                return
            shown = line.strip()[:_SHOWN].decode(errors="replace")
            raise TraceError(
                f"{path}: line {number} is not a line of a trace ({error}): {shown!r}; a trace is "
                "what --events FILE or XEN_SAVE_HELPER_EVENTS writes"
            ) from error


def _object(line: bytes) -> dict[str, Any]:
    """Raises ValueError for anything but an object with the fields of every line."""
    try:
        value = json.loads(line)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"it is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError("it is not an object")
    for name, kinds in _COMMON.items():
        if name not in value:
            raise ValueError(f"it has no {name!r}")
        if not isinstance(value[name], kinds) or isinstance(value[name], bool):
            raise ValueError(f"its {name!r} is {value[name]!r}")
    try:
        finite = math.isfinite(value["t"])
    except OverflowError:
        finite = False
    if not finite:
        raise ValueError(f"its 't' is {str(value['t'])[:_SHOWN]}")
    return value


def _with_clocks(path: str, found: list[dict[str, Any]]) -> tuple[Line, ...]:
    """Give each line its process's clock, or the file's only one."""
    of_pid: dict[int, ClockName] = {}
    for value in found:
        if value["event"] == "clock" and isinstance(value.get("boot"), str):
            namespace = value.get("time_namespace")
            of_pid.setdefault(
                value["pid"],
                ClockName(value["boot"], namespace if isinstance(namespace, int) else None),
            )
    every = set(of_pid.values())
    usual = every.pop() if len(every) == 1 else ClockName(None, None, path)
    lines = [
        Line(
            t=float(value["t"]),
            pid=value["pid"],
            process=value["process"],
            event=value["event"],
            guest=value["guest"] if isinstance(value.get("guest"), str) else None,
            fields={
                name: one for name, one in value.items() if name not in _COMMON and name != "guest"
            },
            clock=of_pid.get(value["pid"], usual),
        )
        for value in found
    ]
    return tuple(sorted(lines, key=lambda line: line.t))
