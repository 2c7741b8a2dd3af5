"""`named_tuple.NamedTuple` beside `typing.NamedTuple`."""

from __future__ import annotations

import pickle
import typing

import pytest

from xen_save_helper.ipc_schema.named_tuple import NamedTuple


class Ours(NamedTuple):
    """With a default, a method and a property."""

    first: int
    second: str = "two"

    @property
    def both(self) -> str:
        return f"{self.first} {self.second}"

    @classmethod
    def of(cls, first: int) -> Ours:
        return cls(first)


class Theirs(typing.NamedTuple):
    """With a default, a method and a property."""

    first: int
    second: str = "two"

    @property
    def both(self) -> str:
        return f"{self.first} {self.second}"

    @classmethod
    def of(cls, first: int) -> Theirs:
        return cls(first)


def test_it_is_the_same_tuple() -> None:
    ours, theirs = Ours(1), Theirs(1)
    assert ours == theirs == (1, "two")
    assert repr(ours) == repr(theirs).replace("Theirs", "Ours")
    assert ours._replace(second="x")._asdict() == {"first": 1, "second": "x"}
    assert ours.both == theirs.both
    assert Ours.of(3) == Theirs.of(3)
    assert pickle.loads(pickle.dumps(ours)) == ours
    for name in ("_fields", "_field_defaults", "__match_args__", "__module__", "__doc__"):
        assert getattr(Ours, name) == getattr(Theirs, name), name
    assert typing.get_type_hints(Ours) == typing.get_type_hints(Theirs)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'first'"):
        Ours()  # type: ignore[call-arg]
    with pytest.raises(AttributeError):
        ours.third = 3  # type: ignore[attr-defined]


def test_a_default_before_a_field_without_one_is_refused() -> None:
    with pytest.raises(TypeError, match="Wrong: fields with a default come last"):
        type(NamedTuple)(
            "Wrong",
            (NamedTuple,),
            {"__module__": __name__, "__annotations__": {"a": "int", "b": "int"}, "a": 1},
        )
