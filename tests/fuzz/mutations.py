"""What is done to a valid input: damage, and what a liar would write.

All chance comes from the `Random` that is given, so that an input is made again from its seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from typing import Final

LARGEST: Final = 256 << 10
"""Octets of an input at most."""

_BOUNDARIES: Final = tuple(
    sorted(
        {
            (1 << bits) + step & (1 << 64) - 1
            for bits in (0, 3, 4, 7, 8, 12, 15, 16, 20, 27, 30, 31, 32, 52, 60, 62, 63, 64)
            for step in (-1, 0, 1)
        }
    )
)
"""The ends of what fields of any width, page lists and records can hold, and their neighbours."""

_LIES: Final = (1 << 16, 1 << 20, (128 << 20) - 8, 128 << 20, (128 << 20) + 8, 1 << 30)
_ALL_ONES: Final = (2**16 - 1, 2**31 - 1, 2**32 - 1, 2**32 - 8, 2**63 - 1, 2**64 - 1)
_LENGTHS: Final = (*_LIES, *_ALL_ONES)
"""What a length may say that is not true: up to 1 GiB, and all ones."""

_WIDTHS: Final = (1, 2, 4, 8)
_DEPTHS: Final = (2, 10, 100, 600, 1100, 5_000, 60_000)
"""Around the limits of Python's stack, and of msgpack's."""


@dataclass(frozen=True)
class Seed:
    """A valid input. At `marks` its fields begin (record headers, say): most mutations of a long
    input happen there, where its meaning is. Without marks any place is as good as another."""

    data: bytes
    marks: tuple[int, ...] = ()


@dataclass(frozen=True)
class Words:
    """What else an input of this format may have in it: `tokens` are inserted whole, `openers` as
    often as it takes to nest deeply."""

    tokens: tuple[bytes, ...] = ()
    openers: tuple[bytes, ...] = ()


NO_WORDS: Final = Words()


def joined(*parts: bytes) -> Seed:
    """The parts in a row, each beginning with fields."""
    ends = accumulate(map(len, parts), initial=0)
    return Seed(b"".join(parts), tuple(ends)[:-1])


def mutate(chance: Random, seeds: Sequence[Seed], words: Words = NO_WORDS) -> bytes:
    """One of `seeds`, with one to four mutations in a row."""
    seed = chance.choice(seeds)
    data = bytearray(seed.data)
    for _ in range(chance.choice((1, 1, 1, 2, 2, 3, 4))):
        chance.choice(_MUTATIONS)(chance, data, seed, seeds, words)
    return bytes(data[:LARGEST])


def _place(chance: Random, data: bytearray, seed: Seed) -> int:
    """Where to strike: mostly in the first octets after a mark."""
    if seed.marks and chance.random() < 0.75:
        return min(chance.choice(seed.marks) + chance.choice(_FIELD_STARTS), len(data))
    return chance.randint(0, len(data))


_FIELD_STARTS: Final = (0, 0, 0, 1, 2, 3, 4, 4, 4, 8, 8, 12, 16, 24)


def _flip_bits(chance: Random, data: bytearray, seed: Seed, _s: Sequence[Seed], _w: Words) -> None:
    for _ in range(chance.choice((1, 1, 1, 2, 8))):
        place = _place(chance, data, seed)
        if place < len(data):
            data[place] ^= 1 << chance.randrange(8)


def _set_octet(chance: Random, data: bytearray, seed: Seed, _s: Sequence[Seed], _w: Words) -> None:
    place = _place(chance, data, seed)
    if place < len(data):
        data[place] = chance.randrange(256)


def _truncate(chance: Random, data: bytearray, seed: Seed, _s: Sequence[Seed], _w: Words) -> None:
    del data[_place(chance, data, seed) :]


def _cut(chance: Random, data: bytearray, seed: Seed, _s: Sequence[Seed], _w: Words) -> None:
    place = _place(chance, data, seed)
    del data[place : place + chance.choice((1, 2, 4, 8, 16, chance.randint(1, 64)))]


def _insert(chance: Random, data: bytearray, seed: Seed, _s: Sequence[Seed], words: Words) -> None:
    octets = chance.randbytes(chance.choice((1, 2, 4, 8, chance.randint(1, 64))))
    if words.tokens and chance.random() < 0.6:
        octets = chance.choice(words.tokens)
    elif chance.random() < 0.3:
        octets = bytes(len(octets))
    place = _place(chance, data, seed)
    data[place:place] = octets


def _duplicate(chance: Random, data: bytearray, seed: Seed, _s: Sequence[Seed], _w: Words) -> None:
    """A piece comes again, mostly a whole record or field, and some time later."""
    if len(seed.marks) > 1 and chance.random() < 0.8:
        index = chance.randrange(len(seed.marks) - 1)
        start, end = seed.marks[index : index + 2]
        place = chance.choice(seed.marks)
    else:
        start = chance.randint(0, len(data))
        end = start + chance.randint(1, 32)
        place = min(end, len(data))
    data[place:place] = data[start:end] * chance.choice((1, 1, 1, 2, 9))


def _integer(
    chance: Random, data: bytearray, seed: Seed, values: Sequence[int], widths: Sequence[int]
) -> None:
    width = chance.choice(widths)
    place = _place(chance, data, seed)
    value = chance.choice(values) & (1 << 8 * width) - 1
    data[place : place + width] = value.to_bytes(width, chance.choice(("little", "little", "big")))


def _boundary(chance: Random, data: bytearray, seed: Seed, _s: Sequence[Seed], _w: Words) -> None:
    _integer(chance, data, seed, _BOUNDARIES, _WIDTHS)


def _lying_length(
    chance: Random, data: bytearray, seed: Seed, _s: Sequence[Seed], _w: Words
) -> None:
    """Anywhere, or where a record that begins at a mark has its length."""
    if seed.marks and chance.random() < 0.5:
        place = chance.choice(seed.marks) + 4
        length = chance.choice(_LENGTHS) & 0xFFFFFFFF
        data[place : place + 4] = length.to_bytes(4, "little")
    else:
        _integer(chance, data, seed, _LENGTHS, _WIDTHS[1:])


def _near_integer(
    chance: Random, data: bytearray, seed: Seed, _s: Sequence[Seed], _w: Words
) -> None:
    """What stands there, one or eight more or less: lengths and counts that are nearly right."""
    width = chance.choice(_WIDTHS)
    place = _place(chance, data, seed)
    field = data[place : place + width]
    value = int.from_bytes(field, "little") + chance.choice((-8, -1, 1, 8))
    data[place : place + width] = (value % (1 << 8 * len(field))).to_bytes(len(field), "little")


def _splice(chance: Random, data: bytearray, seed: Seed, seeds: Sequence[Seed], _w: Words) -> None:
    """The beginning of this one and the end of another."""
    other = chance.choice(seeds)
    begin = chance.choice(other.marks) if other.marks else chance.randint(0, len(other.data))
    data[_place(chance, data, seed) :] = other.data[begin:]


def _nest(chance: Random, data: bytearray, seed: Seed, _s: Sequence[Seed], words: Words) -> None:
    if words.openers:
        place = _place(chance, data, seed)
        data[place:place] = chance.choice(words.openers) * chance.choice(_DEPTHS)


_MUTATIONS: Final[tuple[Callable[[Random, bytearray, Seed, Sequence[Seed], Words], None], ...]] = (
    _flip_bits,
    _set_octet,
    _truncate,
    _cut,
    _insert,
    _duplicate,
    _boundary,
    _lying_length,
    _near_integer,
    _splice,
    _nest,
)
