"""`NamedTuple`, for modules that every helper loads at its start.

`typing.NamedTuple` compiles each annotation to see that it may be a type. For the thirty classes of
a helper that takes longer than for all else that their modules do; mypy checks them in any case.
"""

from __future__ import annotations

from collections import namedtuple
from typing import TYPE_CHECKING, Any

__all__ = ["NamedTuple"]

if TYPE_CHECKING:
    from typing import NamedTuple
else:

    class _Maker(type):
        """Makes a class of the fields that a body annotates, with the body's methods."""

        def __new__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> type:
            if not bases:
                return super().__new__(cls, name, bases, body)
            fields = tuple(body["__annotations__"])
            with_defaults = tuple(field for field in fields if field in body)
            if with_defaults != fields[len(fields) - len(with_defaults) :]:
                raise TypeError(f"{name}: fields with a default come last")
            made = namedtuple(
                name,
                fields,
                defaults=[body[field] for field in with_defaults],
                module=body["__module__"],
            )
            for key, value in body.items():
                if key not in fields:
                    setattr(made, key, value)
            return made

    class NamedTuple(metaclass=_Maker):
        """As `typing.NamedTuple`, in a module with `from __future__ import annotations`."""
