from __future__ import annotations

from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xen_save_helper.ipc_schema.board import (
    AS_ASKED,
    CALLBACKS,
    PHASES,
    SIZE,
    UNKNOWN,
    WORDS,
    Board,
    Word,
    WordKind,
)
from xen_save_helper.ipc_schema.channel.helper_request import Engine
from xen_save_helper.ipc_schema.streams.phases import Phase, Stage

VALUES: Final = {
    WordKind.INT: st.integers(-(2**63), 2**63 - 1),
    WordKind.REAL: st.floats(allow_nan=False),
}


def test_every_word_has_a_place_of_its_own_on_the_page() -> None:
    assert WORDS.keys() == set(Word)
    assert len({*map(int, Word)}) == len(Word)
    assert max(Word) < SIZE // 8


@given(st.data())
def test_what_is_written_is_seen_by_who_has_the_page(data: st.DataObject) -> None:
    page = bytearray(SIZE)
    one, other = Board(memoryview(page)), Board(memoryview(page))
    values = {word: data.draw(VALUES[row.kind]) for word, row in WORDS.items()}
    for word, value in values.items():
        views = {WordKind.INT: one.ints, WordKind.REAL: one.reals}
        views[WORDS[word].kind][word] = value
    for word, value in values.items():
        views = {WordKind.INT: other.ints, WordKind.REAL: other.reals}
        assert views[WORDS[word].kind][word] == value


def test_a_new_board_says_that_nothing_is_known() -> None:
    board = Board()
    assert board.is_ours
    assert (board.phase, board.callback, board.engine) == ("", "", None)
    assert board.ints[Word.DIRTY_COUNT] == UNKNOWN
    assert board.ints[Word.BANDWIDTH] == AS_ASKED
    assert board.ints[Word.MAX_DOWNTIME] == AS_ASKED


@pytest.mark.parametrize("name", [one.value for one in (*Phase, *Stage)])
def test_every_phase_can_be_told(name: str) -> None:
    board = Board()
    board.phase = name
    assert board.phase == name
    assert name in PHASES


def test_engines_and_callbacks() -> None:
    board = Board()
    for engine in Engine:
        board.engine = engine
        assert board.engine is engine
    for name in CALLBACKS:
        board.callback = name
        assert board.callback == name


def test_the_board_of_another_version() -> None:
    page = bytearray(SIZE)
    Board(memoryview(page)).ints[Word.MAGIC] += 1
    assert not Board(memoryview(page)).is_ours
