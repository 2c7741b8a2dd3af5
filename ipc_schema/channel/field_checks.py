"""Checks of values against the catalogue's fields, the same for both encodings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum

from xen_save_helper.ipc_schema.channel.messages import CATALOGUE, INTEGER_RANGES, Field, Kind
from xen_save_helper.ipc_schema.hints import Any, Final
from xen_save_helper.ipc_schema.named_tuple import NamedTuple


class Check(NamedTuple):
    """A field's rule: the exact Python type, and for integers the inclusive bounds."""

    type: type[Any]
    low: int
    high: int


_OTHER_TYPES: Final[Mapping[Kind, type]] = {
    Kind.STRING: str,
    Kind.BYTES: bytes,
    Kind.BOOL: bool,
}


def _check(field: Field) -> Check:
    if field.kind in INTEGER_RANGES:
        return Check(int, *INTEGER_RANGES[field.kind])
    return Check(_OTHER_TYPES[field.kind], 0, 0)


FIELD_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    row.name: tuple(field.name for field in row.fields) for row in CATALOGUE.values()
}
"""The fields of each message, in the catalogue's order."""

_CHECKS: Final[Mapping[str, tuple[Check, ...]]] = {
    row.name: tuple(map(_check, row.fields)) for row in CATALOGUE.values()
}


def misfit(name: str, values: Sequence[Any]) -> tuple[int, str] | None:
    """The index of the first of `values` that does not fit its field of message `name`, and what is
    wrong with it; None if all fit. A bool is not an integer.

    There is a value for each field. This runs for every message, so it stays a plain loop.
    """
    for index, (kind, low, high) in enumerate(_CHECKS[name]):
        value = values[index]
        if type(value) is not kind:
            return index, f"{type(value).__name__}, want {kind.__name__}"
        if kind is int and not low <= value <= high:
            return index, f"{value}, want {low} to {high}"
    return None


def checked_values(name: str, fields: Mapping[str, object]) -> list[object]:
    """The values of message `name` in the catalogue's order, members of an IntEnum as integers.

    Raises ValueError for an unknown name, missing or extra fields, a value of the wrong type or
    out of range.
    """
    names = FIELD_NAMES.get(name)
    if names is None:
        raise ValueError(f"{name!r}: no such message")
    if len(fields) != len(names):
        raise ValueError(f"{name}: fields {list(fields)}, want {list(names)}")
    try:
        values = [fields[field] for field in names]
    except KeyError as missing:
        raise ValueError(f"{name}: field {missing.args[0]} is missing") from None
    if misfit(name, values):
        values = [int(value) if isinstance(value, IntEnum) else value for value in values]
        if problem := misfit(name, values):
            raise ValueError(f"{name}: field {names[problem[0]]}: {problem[1]}")
    return values


def whole_number(name: str, value: object, least: int, most: int, unit: str = "") -> int:
    """Return `value` if it is an int from `least` to `most`. Raises TypeError (for a bool too) and
    ValueError that call it `name` and say what is wanted."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}: want a whole number{unit}, not {value!r}")
    if not least <= value <= most:
        raise ValueError(f"{name} is {value}: want {least} to {most}{unit}")
    return value
