from __future__ import annotations

import os
import pty
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xen_save_helper.helper.standard_streams import Output
from xen_save_helper.toolstack.commands.progress import Progress, amount, clock, in_words, rate_of

MIB = 256
"""Pages."""
LONG = "migrate a-guest-with-a-very-long-name-of-a-web-server-in-production-number-7"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def shown(title: str, *steps: tuple[float, str, int, int], columns: int = 120) -> str:
    """The line after `steps`: the seconds that pass, and what is told then."""
    clock = Clock()
    progress = Progress(title, clock)
    for seconds, doing_what, done, total in steps:
        clock.now += seconds
        progress.update(doing_what, done, total)
    return progress.line(columns)


def test_it_says_what_how_far_how_fast_and_how_long() -> None:
    line = shown(
        "migrate web",
        (0, "Frames iteration 2", 1 * MIB, 256 * MIB),
        (1, "Frames iteration 2", 41 * MIB, 256 * MIB),
    )
    text, _, bar = line.partition(" [")
    assert text == "migrate web: round 3, 41 MiB of 256, 40 MiB/s, 0:05 left"
    assert bar.endswith("]")


def test_a_wait_says_how_long_it_has_lasted() -> None:
    clock = Clock()
    progress = Progress("migrate web", clock)
    progress.update("Frames iteration 0", 5, 10)
    progress.update("waiting for the guest to suspend", 0, 0)
    assert progress.line(80) == "migrate web: waiting for the guest to suspend"
    clock.now += 12.3
    assert progress.line(80) == "migrate web: waiting for the guest to suspend, 12 s"


def test_faults_that_are_counted_are_no_new_phase() -> None:
    line = shown(
        "m",
        (0, "postcopy: 1,100 faults", 0, 64 * MIB),
        (2, "postcopy: 1,200 faults", 16 * MIB, 64 * MIB),
    )
    assert line.startswith("m: postcopy: 1,200 faults, 16 MiB of 64, 8.0 MiB/s, 0:06 left [")


def test_the_bar_is_one_for_the_whole() -> None:
    first = (0.0, "Frames iteration 0", 100, 100)
    halfway = shown("m", first, (1, "Frames iteration 1", 0, 50), columns=80)
    bar = re.search(r"\[(=*)( *)\]", halfway)
    assert bar is not None
    assert len(bar[1]) == len(bar[2])
    done = shown("m", first, (1, "Final precopy iteration", 7, 7), columns=80)
    assert re.search(r"\[=+\]", done)


@pytest.mark.parametrize("columns", [80, 120])
def test_a_long_name_is_what_is_cut(columns: int) -> None:
    line = shown(
        LONG,
        (0, "Frames iteration 0", 0, 256 * MIB),
        (1, "Frames iteration 0", 41 * MIB, 256 * MIB),
        columns=columns,
    )
    assert "round 1, 41 MiB of 256, 41 MiB/s, 0:05 left" in line
    assert line.startswith("migrate a-")
    assert len(line) <= columns


@given(
    st.text(max_size=200),
    st.lists(
        st.tuples(
            st.floats(0, 10),
            st.sampled_from(["Frames iteration 1", "Frames", "waiting", "postcopy: 3 faults"]),
            st.integers(0, 1 << 40),
            st.integers(0, 1 << 40),
        ).map(lambda step: (step[0], step[1], min(step[2], step[3]), step[3]))
    ),
    st.integers(20, 300),
)
def test_it_fits_whatever_comes(
    title: str, steps: list[tuple[float, str, int, int]], columns: int
) -> None:
    assert len(shown(title, *steps, columns=columns)) <= columns


def test_words_and_figures() -> None:
    assert in_words("Frames iteration 4 of 5") == "round 5"
    assert in_words("something of libxc's") == "something of libxc's"
    assert amount(41 << 20, 256 << 20) == "41 MiB of 256"
    assert amount(1 << 29, 1 << 30) == "0.5 GiB of 1.0"
    assert rate_of(212 << 20) == "212 MiB/s"
    assert (clock(4.4), clock(3723)) == ("0:04", "1:02:03")


def test_a_log_line_comes_above_it() -> None:
    terminal, end = pty.openpty()
    output = Output(end, "utf-8")
    output.show_status("round 1")
    print("a line", file=output)
    output.flush()
    output.show_status("")
    said = ""
    while said.count("\r\x1b[K") < 2:
        said += os.read(terminal, 1000).decode()
    assert said.split("\r\x1b[K") == ["\rround 1\x1b[K", "a line\r\n\rround 1\x1b[K", ""]
    for fd in (terminal, end):
        os.close(fd)
