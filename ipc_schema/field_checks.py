"""Whether values fit the catalogue's fields; both encodings ask here, so neither differs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from ipc_schema.messages import CATALOGUE, INTEGER_RANGES, Field, Kind


class Check(NamedTuple):
    """A field's rule: the exact Python type, and for integers the inclusive bounds."""

    field: str
    type: type
    low: int
    high: int


_OTHER_TYPES: Final[Mapping[Kind, type]] = {
    Kind.STRING: str,
    Kind.BYTES: bytes,
    Kind.BOOL: bool,
}


def _check(field: Field) -> Check:
    if field.kind in INTEGER_RANGES:
        return Check(field.name, int, *INTEGER_RANGES[field.kind])
    return Check(field.name, _OTHER_TYPES[field.kind], 0, 0)


CHECKS: Final[Mapping[str, tuple[Check, ...]]] = {
    row.name: tuple(map(_check, row.fields)) for row in CATALOGUE.values()
}
"""By message name, in the order of its fields."""


def value_problem(value: object, check: Check) -> str:
    """What is wrong with a field's value; empty where nothing is. A bool is no integer."""
    _field, kind, low, high = check
    if type(value) is not kind:
        return f"{type(value).__name__}, want {kind.__name__}"
    if type(value) is int and not low <= value <= high:
        return f"{value}, want {low} to {high}"
    return ""


def checked_values(name: str, fields: Mapping[str, object]) -> list[object]:
    """The values of message `name` in the catalogue's order.

    Raises ValueError for an unknown name, missing or extra fields, a value of the wrong type or
    out of range.
    """
    checks = CHECKS.get(name)
    if checks is None:
        raise ValueError(f"{name!r}: no such message")
    if len(fields) != len(checks):
        raise ValueError(f"{name}: fields {list(fields)}, want {[check.field for check in checks]}")
    values: list[object] = []
    for check in checks:
        try:
            value = fields[check.field]
        except KeyError:
            raise ValueError(f"{name}: field {check.field} is missing") from None
        if problem := value_problem(value, check):
            raise ValueError(f"{name}: field {check.field}: {problem}")
        values.append(value)
    return values
