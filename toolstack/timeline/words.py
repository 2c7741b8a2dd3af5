"""Numbers, times and values as people read them."""

from __future__ import annotations

import json
from typing import Final

from xen_save_helper.ipc_schema.channel.messages import NO_ERRNO

PAGE_SIZE: Final = 4096
_LONGEST: Final = 300
"""Characters of a value that are shown."""


def seconds(value: float) -> str:
    """A duration, to three digits: `230 µs`, `34.2 ms`, `1.36 s`, `2 min 05 s`."""
    size = abs(value)
    sign = "-" if value < 0 else ""
    if size < 1e-7:
        return "0"
    if size < 0.9995e-3:
        return f"{sign}{_digits(size * 1e6)} µs"
    if size < 0.9995:
        return f"{sign}{_digits(size * 1e3)} ms"
    if size < 99.95:
        return f"{sign}{_digits(size)} s"
    minutes, rest = divmod(round(size), 60)
    return f"{sign}{minutes} min {rest:02} s"


def moment(value: float) -> str:
    """A time from the beginning, to the tenth of a millisecond: `512.3 ms`, `2.2134 s`."""
    if abs(value) < 0.99995:
        return f"{value * 1e3:.1f} ms"
    return f"{value:,.4f} s"


def counted(number: int, what: str) -> str:
    """`1 page`, `1,024 pages`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def offset(value: float) -> str:
    """The difference of two clocks, to the microsecond: `86,400.000312 s`."""
    return f"{value:,.6f} s"


def size(value: float) -> str:
    """Bytes: `32.1 MiB`."""
    number, unit = float(value), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if number < 999.5 or unit == "TiB":
            break
        number /= 1024
    return f"{_digits(number)} {unit}"


def rate(value: float) -> str:
    """Bytes a second."""
    return f"{size(value)}/s"


def number(value: float) -> str:
    return f"{value:,.0f}"


def _digits(value: float) -> str:
    if value >= 99.95 or value == int(value):
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def text(value: object, name: str = "") -> str:
    """A value of a trace, on one line; cut if it is long."""
    if name == "errnoval" and value == NO_ERRNO:
        return "-1"
    if isinstance(value, bool) or value is None or isinstance(value, dict | list):
        shown = json.dumps(value, default=str, ensure_ascii=False)
    elif isinstance(value, float):
        shown = f"{value:.6g}"
    else:
        shown = str(value)
    shown = " ".join(shown.split())
    return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}…"
