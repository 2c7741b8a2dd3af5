from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from xen_save_helper.helper.waiting import WaitLog
from xen_save_helper.ipc_schema.channel.messages import XentoollogLevel
from xen_save_helper.ipc_schema.channel.waits import PERIOD


class Log:
    """Collects log lines; refuses them while `busy`."""

    def __init__(self) -> None:
        self.lines: list[tuple[XentoollogLevel, str]] = []
        self.busy = False

    def __call__(self, level: XentoollogLevel, text: str) -> bool:
        if not self.busy:
            self.lines.append((level, text))
        return not self.busy

    def taken(self) -> list[str]:
        lines, self.lines = self.lines, []
        return [f"{level.name}: {text}" for level, text in lines]


def not_ready() -> bool:
    return False


def test_a_wait_is_told_of_after_a_minute_and_each_further_one() -> None:
    log = Log()
    told = WaitLog(log, reading=False)
    for quiet in (0, 30, 59.9):
        told.look(quiet, not_ready)
    assert log.taken() == []
    told.look(61, not_ready)
    told.look(119, not_ready)
    still = "the stream has stood still for {} s: waiting for the other side to take more"
    assert log.taken() == [f"WARN: {still.format(61)}"]
    told.look(121, not_ready)
    assert log.taken() == [f"WARN: {still.format(121)}"]
    told.look(0.5, not_ready)
    assert log.taken() == ["NOTICE: the stream goes on after 121 s"]
    told.look(0.1, not_ready)
    assert log.taken() == []
    told.look(60, not_ready)
    assert log.taken() == [f"WARN: {still.format(60)}"]


def test_a_reader_waits_for_its_sender() -> None:
    log = Log()
    WaitLog(log, reading=True).look(60, not_ready)
    (line,) = log.taken()
    assert line.endswith("waiting for the other side to send more")


def test_where_the_other_side_could_go_on_it_is_not_blamed() -> None:
    log = Log()
    WaitLog(log, reading=False).look(60, lambda: True)
    assert log.taken() == [
        "WARN: the save helper has done nothing for 60 s, and its stream is ready: "
        "a call into Xen or the kernel does not return"
    ]


def test_what_cannot_be_told_at_once_is_told_at_the_next_look() -> None:
    log = Log()
    told = WaitLog(log, reading=False)
    log.busy = True
    told.look(60, not_ready)
    log.busy = False
    told.look(67.5, not_ready)
    assert "stood still for 68 s" in log.taken()[0]
    log.busy = True
    told.look(1, not_ready)
    log.busy = False
    told.look(2, not_ready)
    assert log.taken() == ["NOTICE: the stream goes on after 68 s"]


@given(st.lists(st.floats(0.1, 1000), max_size=8))
def test_each_wait_has_a_line_a_minute_and_one_when_it_is_over(lengths: list[float]) -> None:
    log = Log()
    told = WaitLog(log, reading=False)
    for length in lengths:
        quiet = 0.0
        while quiet < length:
            told.look(quiet, not_ready)
            quiet += PERIOD / 8
        last = quiet - PERIOD / 8
        told.look(0.0, not_ready)
        lines = log.taken()
        minutes = int(last // PERIOD)
        assert len(lines) == (minutes + 1 if minutes else 0)
        assert all(line.startswith("WARN: ") for line in lines[:-1])
        if lines:
            assert lines[-1] == f"NOTICE: the stream goes on after {last:.0f} s"
