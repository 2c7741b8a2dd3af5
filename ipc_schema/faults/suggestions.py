"""What the author of a plan may have meant by a name that does not exist, and which names do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from xen_save_helper.ipc_schema.faults.points import POINTS, Moment, Point, Side, Who, find

_CLOSE: Final = 4
"""How many close names are shown."""


def close_to(word: str, names: Iterable[str]) -> str:
    """`close to it: A, B; ` or nothing."""
    from difflib import get_close_matches

    lower = {name.lower(): name for name in names}
    close = get_close_matches(word.lower(), lower, n=_CLOSE, cutoff=0.6)
    return f"close to it: {', '.join(lower[name] for name in close)}; " if close else ""


def no_point(name: str, side: Side | None, who: Who | None) -> str:
    """What is wrong with a point's name, of `who` at `side` if they are given."""
    points = [
        point
        for point in POINTS.values()
        if (who is None or point.who is who) and (side is None or side in point.sides)
    ]
    names = [
        point.name if who or find(point.name) else f"{point.who.value}/{point.name}"
        for point in points
    ]
    what = "point" if who is None else f"point of the {who.value}"
    if (of_message := _moments(name, names)) is not None:
        return of_message
    elsewhere = [one.who.value for one in POINTS.values() if one.name == name]
    if elsewhere:
        asked = who.value if who else Who.HELPER.value
        return f"the {asked} has no point {name!r}; want {' or '.join(elsewhere)}/{name}"
    return f"there is no {what} {name!r}; {_close_point(name, names)}want {_forms(points)}"


def _close_point(name: str, names: Sequence[str]) -> str:
    """Names close to `name` by all its letters, or else by one of its words."""
    if close := close_to(name, names):
        return close
    from difflib import get_close_matches

    words = {word for one in names for word in _words(one)}
    meant = {close for word in _words(name.lower()) for close in get_close_matches(word, words)}
    holding = [one for one in names if meant & set(_words(one))][:_CLOSE]
    return f"close to it: {', '.join(holding)}; " if holding else ""


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[.:@]", name.lower()) if word]


def _forms(points: Iterable[Point]) -> str:
    """The points in a line: those that stand alone, and one of each family."""
    families: dict[str, str] = {}
    alone = []
    for point in points:
        base, colon, _moment = str(point).partition(":")
        family = base.rpartition(".")[0]
        if family or colon:
            form = f"{family}.NAME" if family else f"{base.rpartition('/')[0]}/NAME".lstrip("/")
            families.setdefault(f"{form}:MOMENT" if colon else form, str(point))
        else:
            alone.append(str(point))
    shown = [", ".join(alone)] if alone else []
    shown += [f"{form} as {one}" for form, one in families.items()]
    return "; ".join([*shown, "`xen-toolstack faults list` has them all"])


def _moments(name: str, names: list[str]) -> str | None:
    """What is wrong with the name of a message or record without a valid moment; None for
    others."""
    base, _, moment = name.partition(":")
    # Some points of the helper and the controller have the same name.
    own = list(dict.fromkeys(one for one in names if one.startswith(f"{base}:")))
    if not own:
        return None
    moments = [one.removeprefix(f"{base}:") for one in own]
    if not moment:
        return f"{base} needs a moment: want {', '.join(own)}"
    what = "" if moment in {m.value for m in Moment} else f"{close_to(moment, moments)}"
    return f"{base} has no moment {moment!r}; {what}want {', '.join(own)}"
