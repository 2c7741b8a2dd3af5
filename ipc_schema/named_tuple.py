"""`NamedTuple`, for modules that every helper loads at its start.

`typing.NamedTuple` compiles each annotation to see that it may be a type, and
`collections.namedtuple` compiles a `__new__` for each class. For the forty classes of a helper that
takes longer than all else that their modules do; mypy checks annotations and calls in any case.
"""

from __future__ import annotations

from xen_save_helper.ipc_schema.hints import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import NamedTuple
else:
    from operator import itemgetter
    from types import MappingProxyType

    class _Maker(type):
        """Gives a class whose body annotates fields a property for each, by its place."""

        def __new__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> type:
            if bases[0].__base__ is not tuple:  # `NamedTuple` itself, or a class derived further
                return super().__new__(cls, name, bases, body)
            fields = tuple(body.get("__annotations__", ()))
            defaults = {field: body.pop(field) for field in fields if field in body}
            if tuple(defaults) != fields[len(fields) - len(defaults) :]:
                raise TypeError(f"{name}: fields with a default come last")
            places = {field: property(itemgetter(at)) for at, field in enumerate(fields)}
            own = {"_fields": fields, "_field_defaults": defaults, "__match_args__": fields}
            return super().__new__(cls, name, bases, {"__slots__": (), **own, **places, **body})

        @property
        def __signature__(cls) -> object:
            """For those that ask how to call it."""
            from inspect import Parameter, Signature

            return Signature(
                Parameter(
                    field,
                    Parameter.POSITIONAL_OR_KEYWORD,
                    default=cls._field_defaults.get(field, Parameter.empty),
                    annotation=cls.__annotations__[field],
                )
                for field in cls._fields
            )

    class NamedTuple(tuple, metaclass=_Maker):
        """As `typing.NamedTuple`, in a module with `from __future__ import annotations`."""

        __slots__ = ()
        _fields = ()
        _field_defaults = MappingProxyType({})

        def __new__(cls, *values: object, **named: object) -> NamedTuple:
            if named or len(values) != len(cls._fields):
                values = cls._complete(values, named)
            return tuple.__new__(cls, values)

        @classmethod
        def _complete(cls, given: tuple[object, ...], named: dict[str, object]) -> list[object]:
            """The value of each field. Raises TypeError as a call of a function does."""
            fields, call = cls._fields, f"{cls.__name__}.__new__()"
            if len(given) > len(fields):
                raise TypeError(f"{call} takes {len(fields)} arguments but {len(given)} were given")
            values = {**cls._field_defaults, **dict(zip(fields, given, strict=False))}
            for field in named:
                if field in fields[: len(given)]:
                    raise TypeError(f"{call} got multiple values for argument {field!r}")
                if field not in fields:
                    raise TypeError(f"{call} got an unexpected keyword argument {field!r}")
            values.update(named)
            if missing := [repr(field) for field in fields if field not in values]:
                many = "argument" if len(missing) == 1 else "arguments"
                raise TypeError(
                    f"{call} missing {len(missing)} required positional {many}: "
                    f"{' and '.join(missing)}"
                )
            return [values[field] for field in fields]

        @classmethod
        def _make(cls, values: Any) -> NamedTuple:
            return cls(*values)

        def _replace(self, **named: object) -> NamedTuple:
            return type(self)(**{**self._asdict(), **named})

        __replace__ = _replace

        def _asdict(self) -> dict[str, object]:
            return dict(zip(self._fields, self, strict=True))

        def __repr__(self) -> str:
            fields = ", ".join(f"{name}={value!r}" for name, value in self._asdict().items())
            return f"{type(self).__name__}({fields})"

        def __getnewargs__(self) -> tuple[object, ...]:
            return tuple(self)


__all__ = ["NamedTuple"]
