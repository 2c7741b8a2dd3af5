from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xen_save_helper.ipc_schema.channel.helper_arguments import HelperArguments, build, parse
from xen_save_helper.ipc_schema.channel.helper_request import HelperRequest
from xen_save_helper.ipc_schema.channel.messages import Dialect, Operation, StreamType


def said(
    operation: Operation,
    dialect: Dialect,
    io_fd: int,
    back_fd: int,
    domid: int,
    *,
    cbflags: int,
    hvm: bool | None = None,
    **fields: Any,
) -> HelperArguments:
    """In the order of libxl's arguments."""
    request = HelperRequest(operation, domid, io_fd, back_fd, **fields)
    return HelperArguments(request, dialect, cbflags, hvm)


# What each release of libxl prints, told by name.
LINES = {
    "--save-domain 8 -1 5 1 136 0": said(
        Operation.SAVE, Dialect.MAINLINE, 8, -1, 5, xcflags=1, cbflags=136
    ),
    "--save-domain 8 9 5 3 1 248 1": said(
        Operation.SAVE, Dialect.MAINLINE_4_7, 8, 9, 5, xcflags=3, cbflags=248,
        stream_type=StreamType.REMUS, hvm=True,
    ),
    # 4.10 to 4.13: an HVM guest's bit 2 in xcflags, and Remus with compression, bit 4.
    "--save-domain 8 -1 5 5 1 136 0": said(
        Operation.SAVE, Dialect.MAINLINE_4_7, 8, -1, 5, xcflags=1, cbflags=136, hvm=True
    ),
    "--save-domain 8 9 5 23 1 248 1": said(
        Operation.SAVE, Dialect.MAINLINE_4_7, 8, 9, 5, xcflags=3, cbflags=248,
        stream_type=StreamType.REMUS, hvm=True,
    ),
    # 4.7 to 4.9
    "--save-domain 8 -1 5 0 0 4 1 136 0": said(
        Operation.SAVE, Dialect.MAINLINE_4_7, 8, -1, 5, xcflags=0, cbflags=136, hvm=True
    ),
    "--save-domain 8 -1 5 0 0 1 0 136 0": said(
        Operation.SAVE, Dialect.MAINLINE_4_7, 8, -1, 5, xcflags=1, cbflags=136, hvm=False
    ),
    "--save-domain 8 9 5 1 1 0 3208": said(
        Operation.SAVE, Dialect.SERIES, 8, 9, 5, xcflags=3, cbflags=3208
    ),
    "--restore-domain 7 -1 6 2 0 3 0 768 0": said(
        Operation.RESTORE, Dialect.MAINLINE, 7, -1, 6, cbflags=768,
        store_evtchn=2, console_evtchn=3,
    ),
    "--restore-domain 7 9 6 2 1 3 4 1 1 368 2": said(
        Operation.RESTORE, Dialect.MAINLINE_4_7, 7, 9, 6, cbflags=368,
        stream_type=StreamType.COLO, hvm=True,
        store_evtchn=2, store_domid=1, console_evtchn=3, console_domid=4,
    ),
    "--restore-domain 7 -1 6 2 0 3 0 1 1 0 256 0": said(
        Operation.RESTORE, Dialect.MAINLINE_4_7, 7, -1, 6, cbflags=256, hvm=True,
        store_evtchn=2, console_evtchn=3,
    ),
    "--restore-domain 7 9 6 2 0 3 0 0 2304": said(
        Operation.RESTORE, Dialect.SERIES, 7, 9, 6, cbflags=2304,
        store_evtchn=2, console_evtchn=3,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("line", "meaning"), LINES.items())
def test_the_dialect_is_told_by_the_line(line: str, meaning: HelperArguments) -> None:
    assert parse(line.split()) == meaning
    assert parse(line.split(), meaning.dialect) == meaning


@given(st.data(), st.sampled_from(list(Dialect)), st.sampled_from(list(Operation)))
def test_what_is_built_is_parsed(
    data: st.DataObject, dialect: Dialect, operation: Operation
) -> None:
    u32 = st.integers(0, 2**32 - 1)
    save = operation is Operation.SAVE
    ports = {
        name: 0 if save else data.draw(u32)
        for name in ("store_evtchn", "store_domid", "console_evtchn", "console_domid")
    }
    arguments = said(
        operation,
        dialect,
        io_fd=data.draw(st.integers(3, 1000)),
        back_fd=data.draw(st.integers(-1, 1000)),
        domid=data.draw(u32),
        xcflags=data.draw(st.integers(0, 3)) if save else 0,
        cbflags=data.draw(st.integers(8, 2**12)),
        stream_type=data.draw(st.sampled_from(list(StreamType))),
        hvm=data.draw(st.booleans()) if dialect is Dialect.MAINLINE_4_7 else None,
        **ports,
    )
    assert parse(build(arguments)) == arguments


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("", "no arguments: want --save-domain or --restore-domain"),
        ("--help", "'--help' first: want --save-domain"),
        ("--save-domain", "0 numbers matches no known libxl: 6 \\(4.14 and later\\): io_fd"),
        ("--save-domain 8 9 5 1 0 0 0", "fit dialects mainline-4.7 or postcopy-series"),
        ("--save-domain 8 -1 5 1 136 3", "matches no known libxl"),
        ("--save-domain 8 -1 5 5 136 0", "matches no known libxl"),
        ("--save-domain 8 -1 5 37 1 136 0", "matches no known libxl"),
        ("--save-domain 8 -1 x 1 136 0", "domid 'x': want a decimal number"),
        ("--save-domain 8 -2 5 1 136 0", "back_fd '-2'"),
        ("--save-domain 8 -1 -1 1 136 0", "domid '-1'"),
        ("--save-domain 8 -1 4294967296 1 136 0", "below 2\\*\\*32"),
        ("--save-domain 8 -1 ٣ 1 136 0", "domid"),
    ],
)
def test_the_error_says_what_would_be_right(line: str, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        parse(line.split())


def test_a_named_dialect_settles_what_is_ambiguous() -> None:
    line = ["--save-domain", "8", "9", "5", "1", "0", "0", "0"]
    assert parse(line, Dialect.SERIES).request.xcflags == 1
    assert parse(line, Dialect.MAINLINE_4_7).hvm is False


def test_a_named_dialect_does_not_take_the_line_of_another() -> None:
    with pytest.raises(ValueError, match="matches no known libxl"):
        parse(["--save-domain", "8", "-1", "5", "1", "136", "0"], Dialect.SERIES)
