"""What is fuzzed: a target takes an input as its real reader would, and judges what came of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from tests.fuzz.mutations import NO_WORDS, Seed, Words, mutate
from xen_save_helper.ipc_schema.errors import DecodeError

DECODED: Final = "decoded"
REFUSED: Final = "refused"
"""By a DecodeError."""

_LONGEST_PROBLEM: Final = 400
"""Characters of an error's text: a log line, not a dump of the input."""


class BrokenPromiseError(Exception):
    """The reader did what it must not."""


Feed = Callable[[bytes, Random], str]
"""Gives an input to the reader and returns a word for how it ended. Chance decides what is not in
the input: in which pieces it comes, say. Raises DecodeError where the reader refused it, and
BrokenPromiseError; any other exception is a failure, too."""


@dataclass(frozen=True)
class Target:
    """`weight` is how often it is chosen, against the others. `inside`, where there is one, makes
    every second input: one whose frame is right, so that what is in it is reached. `close` gives up
    what `feed` keeps between inputs."""

    name: str
    seeds: Sequence[Seed]
    feed: Feed
    weight: int
    words: Words = NO_WORDS
    inside: Callable[[Random], bytes] | None = None
    close: Callable[[], None] = lambda: None

    def input(self, chance: Random) -> bytes:
        if self.inside is not None and chance.random() < 0.5:
            return self.inside(chance)
        return mutate(chance, self.seeds, self.words)


def promise(kept: bool, what: str) -> None:
    """Raises BrokenPromiseError that says `what`, unless it is `kept`."""
    if not kept:
        raise BrokenPromiseError(what)


def judge_error(error: DecodeError, size: int) -> None:
    """What was refused names the format and field, a place in the input of `size` octets, and what
    is wrong, in one line that can be shown. Raises BrokenPromiseError."""
    text = str(error)
    promise(bool(error.what and error.problem), f"the error does not say what is wrong: {text!r}")
    promise(0 <= error.offset <= size, f"offset {error.offset:#x} of {size} octets: {text!r}")
    promise(hex(error.offset) in text and error.what in text, f"left out of its text: {text!r}")
    promise(len(text) <= _LONGEST_PROBLEM, f"{len(text)} characters: {text[:80]!r}")
    promise(text.isprintable(), f"not printable: {text!r}")
