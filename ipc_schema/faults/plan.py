"""Plans: which faults are injected, written so that a person types them.

    [[SIDE.]WHO/]POINT[TIMES]=ACTION[(ARGUMENT)]

on a line each, or several on a line with `;` between. A line that starts with `#` is a comment.
`seed=N` makes chance repeatable: the same choices wherever the plan is carried out. Without it,
whoever reads the plan first draws one, prints it, and passes it on to all processes that it starts.
SIDE is `source` or `destination`; WHO is `helper` (the default), `controller`, `link`, `guest`,
`page-server`, `pager` or `tunnel`; one of them may stand alone. TIMES is `#3` (the third time
alone), `#3+` (from the third on), `#*` (each time) or `#30%` (each time with that probability);
without it, the first time alone.

Each process counts for itself: `#1` strikes in each helper that is started. Offsets of the tunnel
are counted in each of its connections, and times are the connections that have come so far.
`#1 of all` and `#3+ of all` count over all processes that carry out the plan, as in "the first try
fails, the second succeeds". They count in a file, which `counts=FILE` names (an absolute path; a
plan that is read from `@FILE` and names none has FILE.counts); to begin anew, remove it. Examples:

    postcopy_transition:before-answer=kill
    source/log:before-send#30%=drop; seed=7
    destination/record.libxc.PAGE_DATA:read#3=garbage
    controller/suspend:before-answer=answer(0)
    stream@4096=cut; page@0x1f=flip; link/stream@0=stall(2); guest/suspend=late(5)
    page-server/sends#3=kill; tunnel/stream@300000#*=cut
    hello#1 of all=exit(3); counts=/tmp/tries
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Sequence
from random import Random
from typing import Final, NamedTuple

from xen_save_helper.ipc_schema.faults.actions import (
    ACTIONS,
    DEATHS,
    DIE,
    GARBAGE,
    Action,
    ActionKind,
    admitted,
    sides,
    text_of,
)
from xen_save_helper.ipc_schema.faults.points import Kind, Point, Side, Who, find
from xen_save_helper.ipc_schema.faults.suggestions import close_to, no_point

_SEED: Final = "seed"
_COUNTS: Final = "counts"
_OF_ALL: Final = " of all"
MAX_SEED: Final = 2**63 - 1
_MAX_TIMES: Final = 10**9
_MAX_AT: Final = 2**63 - 1


class PlanError(ValueError):
    """An invalid plan. The text names the fault, what is wrong with it and what would be right."""


class Times(NamedTuple):
    """When a fault fires, of all the times that its point is passed: the `nth` time; with `onwards`
    from then on; with `percent` (above 0, at most 100) each time by chance. `of_all`: count over
    all processes that carry out the plan, not in each."""

    nth: int = 1
    onwards: bool = False
    percent: float | None = None
    of_all: bool = False

    @property
    def is_first(self) -> bool:
        """Whether it can fire only the first time, which `of_all` does not change for one
        process."""
        return self.nth == 1 and not self.onwards and self.percent is None

    def __str__(self) -> str:
        if self.percent is not None:
            return f"#{text_of(self.percent)}%"
        if self.of_all:
            return f"#{self.nth}{'+' * self.onwards}{_OF_ALL}"
        if self.onwards:
            return "#*" if self.nth == 1 else f"#{self.nth}+"
        return "" if self.nth == 1 else f"#{self.nth}"


FIRST: Final = Times()

STAGED: Final = frozenset({Who.LINK, Who.GUEST, Who.TUNNEL})
"""Who are no processes of ours: whoever starts those carries out their faults."""


class Fault(NamedTuple):
    """A fault. `at` is the offset or pfn of a point that has one; `side` is None for either."""

    point: Point
    action: Action
    side: Side | None = None
    at: int | None = None
    times: Times = FIRST

    @property
    def sides(self) -> frozenset[Side]:
        """The sides at which it can fire; empty for the link and the tunnel."""
        possible = sides(self.point, self.action.kind)
        return possible if self.side is None else possible & {self.side}

    def __str__(self) -> str:
        """The fault as it is typed, without defaults."""
        who = "" if self.point.who is Who.HELPER else self.point.who.value
        where = ".".join(part for part in (self.side.value if self.side else "", who) if part)
        place = (
            ""
            if self.at is None
            else f"@{self.at:#x}"
            if self.point.of == "page"
            else f"@{self.at}"
        )
        deaths = {Action(DIE, signal): name for name, signal in DEATHS.items()}
        action = deaths.get(self.action, str(self.action))
        return f"{where}{where and '/'}{self.point.name}{place}{self.times}={action}"


class Plan(NamedTuple):
    """A plan. If `seed` is None, whoever is given the plan draws one (`seeded`). `counts` is the
    file of the counts over all processes; if None, whoever has a place for it names it
    (`counting_in`)."""

    faults: tuple[Fault, ...]
    seed: int | None = None
    counts: str | None = None

    def of(self, *who: Who, side: Side | None = None) -> tuple[Fault, ...]:
        """The faults that `who` carry out, at `side` if it is given."""
        return tuple(
            fault
            for fault in self.faults
            if fault.point.who in who and (side is None or not fault.sides or side in fault.sides)
        )

    def part(self, *who: Who, side: Side | None = None) -> Plan:
        """Their part of the plan."""
        return self._replace(faults=self.of(*who, side=side))

    def drawn(self, who: Who) -> list[Fault]:
        """The faults of the guest that strike. Its point is passed once, so chance can be drawn
        beforehand; the plan has a seed if it has any."""
        return [
            fault
            for index, fault in enumerate(self.of(who))
            if fault.times.nth == 1
            and (
                fault.times.percent is None
                or Random(f"{self.seed}/{who.value}/{index}").random() * 100 < fault.times.percent
            )
        ]

    @property
    def by_chance(self) -> bool:
        """Whether the seed decides anything."""
        return any(
            fault.times.percent is not None or fault.action.kind is GARBAGE for fault in self.faults
        )

    def seeded(self) -> Plan:
        """The plan with a seed, which is drawn if it has none."""
        return self if self.seed is not None else self._replace(seed=secrets.randbelow(1 << 32))

    def counting_in(self, path: str) -> Plan:
        """The plan with `path` for its counts if it needs a file and names none. Raises
        PlanError."""
        if self.counts is not None or not any(fault.times.of_all for fault in self.faults):
            return self
        return self._replace(counts=_file(path))

    def __str__(self) -> str:
        """One line from which `parse` reads this plan."""
        parts = [str(fault) for fault in self.faults]
        if self.seed is not None:
            parts.append(f"{_SEED}={self.seed}")
        if self.counts is not None:
            parts.append(f"{_COUNTS}={self.counts}")
        return "; ".join(parts)


def parse(text: str) -> Plan:
    """Read a plan. Raises PlanError."""
    faults: list[Fault] = []
    seed: int | None = None
    counts: str | None = None
    for part in _parts(text):
        name, equals, action = (word.strip() for word in part.partition("="))
        try:
            if not equals or not name or not action:
                raise PlanError("want POINT=ACTION, as in suspend:before-send=kill")
            if name == _SEED:
                if seed is not None:
                    raise PlanError("the plan has a seed already")
                seed = _number(action, "seed", MAX_SEED)
            elif name == _COUNTS:
                if counts is not None:
                    raise PlanError("the plan has its counts already")
                counts = _file(action)
            else:
                faults.append(_fault(name, action))
        except PlanError as bad:
            raise PlanError(f"{part!r}: {bad}") from None
    if not faults:
        raise PlanError("the plan has no fault; want POINT=ACTION, as in suspend:before-send=kill")
    return Plan(tuple(faults), seed, counts)


def _file(path: str) -> str:
    if not path.startswith("/") or not path.isprintable() or ";" in path or path != path.strip():
        raise PlanError(f"{_COUNTS} {path!r}: want a file's absolute path, as /tmp/counts")
    return path


def _parts(text: str) -> Iterable[str]:
    for line in text.splitlines():
        if not line.lstrip().startswith("#"):
            yield from (part for one in line.split(";") if (part := one.strip()))


# Before the equals sign

_TIMES: Final = re.compile(
    r"""(?P<place>.*?)\s*
    (?:\#(?P<nth>[0-9]+)(?P<onwards>\+)?
     | \#(?P<each>\*)
     | (?:\#|\s|(?<=[a-zA-Z]))(?P<percent>[0-9]+(?:\.[0-9]+)?(?:e-?[0-9]+)?)%)?
    (?P<of_all>\s+of\s+all)?""",
    re.VERBOSE | re.ASCII,
)


def _fault(name: str, action_text: str) -> Fault:
    side, who, rest = _where(name)
    match = _TIMES.fullmatch(rest)
    assert match is not None
    point, at = _place(match["place"], side, who)
    times = _times(match, point)
    action = _action(action_text, point)
    fault = Fault(point, action, side, at, times)
    if side is not None and not fault.sides:
        possible = sides(point, action.kind)
        if not possible:
            raise PlanError(f"{point} has no side; leave {side.value} out")
        where = " or ".join(sorted(one.value for one in possible))
        what = f"{action.kind.name} at {point}" if side in point.sides else str(point)
        raise PlanError(f"there is no {what} at the {side.value}, only at the {where}")
    return fault


def _where(name: str) -> tuple[Side | None, Who | None, str]:
    prefix, slash, rest = name.rpartition("/")
    if not slash:
        return None, None, name
    side: Side | None = None
    who: Who | None = None
    for word in prefix.split("."):
        if word in _SIDES and side is None and who is None:
            side = Side(word)
        elif word in _WHOS and who is None:
            who = Who(word)
        else:
            known = (*_SIDES, *_WHOS)
            raise PlanError(
                f"{prefix!r} does not say where; {close_to(word, known)}want SIDE/, WHO/ or "
                f"SIDE.WHO/ with SIDE {' or '.join(_SIDES)}, and WHO {', '.join(_WHOS)}"
            )
    return side, who, rest.strip()


_SIDES: Final = tuple(side.value for side in Side)
_WHOS: Final = tuple(who.value for who in Who)


def _place(text: str, side: Side | None, who: Who | None) -> tuple[Point, int | None]:
    name, sign, number = text.partition("@")
    point = find(name, who)
    if point is None:
        raise PlanError(no_point(name, side, who))
    if not point.at:
        if sign:
            raise PlanError(f"{point} takes no @; stream, back and page do")
        return point, None
    if not number:
        raise PlanError(f"{name} needs a place, as in {name}@4096")
    return point, _number(number, point.at, _MAX_AT)


def _times(match: re.Match[str], point: Point) -> Times:
    of_all = bool(match["of_all"])
    if of_all and not match["nth"]:
        raise PlanError("`of all` follows a number of times, as in #1 of all, #3+ of all")
    if of_all and point.who in STAGED:
        raise PlanError(f"{point} is passed by one process alone; leave `of all` out")
    if match["percent"]:
        percent = float(match["percent"])
        if not 0 < percent <= 100:
            raise PlanError(f"{match['percent']}%: want a probability above 0%, up to 100%")
        return Times(percent=percent)
    if match["each"]:
        times = Times(onwards=True)
    elif match["nth"]:
        nth = _number(match["nth"], "#", _MAX_TIMES, least=1)
        times = Times(nth, bool(match["onwards"]), of_all=of_all)
    else:
        return FIRST
    if times != FIRST and not of_all and _is_passed_once(point):
        raise PlanError(f"{point} is passed once; leave {times} out")
    return times


def _is_passed_once(point: Point) -> bool:
    if point.kind is Kind.STREAM:
        return point.of != "page" and point.who is not Who.TUNNEL
    return point.kind in {Kind.MILESTONE, Kind.HANDSHAKE}


# After it

_ACTION: Final = re.compile(r"(?P<name>[^()\s]*)\s*(?:\(\s*(?P<argument>[^()]*?)\s*\))?")


def _action(text: str, point: Point) -> Action:
    match = _ACTION.fullmatch(text)
    if match is None:
        raise PlanError(f"{text!r} is not an action; want NAME or NAME(ARGUMENT), as exit(3)")
    name, argument = match["name"], match["argument"]
    if name in DEATHS:
        if argument is not None:
            raise PlanError(f"{name} takes no argument; another signal is die(SIGNAL)")
        name, argument = DIE.name, DEATHS[name]
    possible = admitted(point)
    kind = ACTIONS.get(name)
    if kind is None:
        close = close_to(name, [*DEATHS, *(kind.name for kind in possible)])
        raise PlanError(f"there is no action {name!r}; {close}{_possible(point, possible)}")
    if kind not in possible:
        typed = match["name"]
        raise PlanError(f"{typed} cannot be done at {point}; {_possible(point, possible)}")
    return Action(kind, _value(kind, argument))


def _possible(point: Point, possible: Sequence[ActionKind]) -> str:
    names = [*DEATHS] * (DIE in possible) + [str(kind) for kind in possible]
    return f"at {point} there are {', '.join(names)}"


def _value(kind: ActionKind, text: str | None) -> int | float | str | None:
    if kind.argument is None:
        if text is not None:
            raise PlanError(f"{kind.name} takes no argument")
        return None
    if not text:
        if text is None and kind.optional:
            return None
        raise PlanError(f"{kind.name} needs {kind.argument.want}: {kind}")
    try:
        return kind.argument.read(text)
    except ValueError:
        raise PlanError(f"{kind.name}({text}): want {kind.argument.want}") from None


def _number(text: str, what: str, most: int, least: int = 0) -> int:
    if re.fullmatch(r"0x[0-9a-fA-F]+|[0-9]+", text, re.ASCII):
        number = int(text, 16) if text.startswith("0x") else int(text)
        if least <= number <= most:
            return number
    raise PlanError(f"{what} {text!r}: want a whole number from {least} to {most}, 0x for base 16")
