"""The xl header and the libxl stream."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.streams import CUTS, read_cut
from xen_save_helper.ipc_schema.errors import DecodeError
from xen_save_helper.ipc_schema.streams import libxl_stream, xl_header
from xen_save_helper.ipc_schema.streams.libxl_stream import CheckpointState, EmulatorId, RecordType

STRINGS = st.binary(max_size=20).filter(lambda data: b"\0" not in data)
INDEX = st.integers(0, (1 << 32) - 1)
HEADER = b"LibxlFmt" + struct.pack(">II", 2, 0)


def test_xl_header_is_what_xl_writes() -> None:
    data = xl_header.encode_header(b'{"a": 1}')
    text = b'{"a": 1}\0'
    fields = struct.pack("<IIII", 0x01020304, 3, 0, 4 + len(text))
    magic = b"Xen saved domain, xl format\n \0 \r"
    assert data == magic + fields + struct.pack("<I", len(text)) + text
    assert xl_header.decode(data) == xl_header.XLHeader(3, 0, text)


@pytest.mark.parametrize("name", CUTS)
def test_xl_headers_of_a_real_xl_are_made_again(name: str) -> None:
    stream = read_cut(name)
    fields = xl_header.decode_header(stream[:48])
    whole = stream[: 48 + fields.optional_data_len]
    assert xl_header.encode_header(xl_header.decode(whole).config) == whole


def xl(
    magic: bytes = xl_header.MAGIC, order: int = 0x01020304, flags: int = 3, size: int = 0
) -> bytes:
    return magic + struct.pack("<IIII", order, flags, 0, size)


@pytest.mark.parametrize(
    ("data", "offset"),
    [
        (xl(magic=bytes(32)), 0),
        (xl(order=0x04030201), 32),
        (xl(flags=7), 36),
        (xl(size=xl_header.MAX_OPTIONAL_DATA + 1), 44),
        (xl()[:-1], 0),
    ],
)
def test_bad_xl_headers(data: bytes, offset: int) -> None:
    with pytest.raises(DecodeError, match="want") as seen:
        xl_header.decode_header(data)
    assert seen.value.offset == offset


@pytest.mark.parametrize("data", [b"\1\0\0", struct.pack("<I", 2) + b"a"])
def test_bad_optional_data(data: bytes) -> None:
    with pytest.raises(DecodeError, match="want at") as seen:
        xl_header.decode_optional_data(xl_header.HeaderFields(3, 0, len(data)), data)
    assert seen.value.offset == 48


def test_optional_data_after_the_configuration_is_skipped() -> None:
    data = struct.pack("<I", 2) + b"{}later"
    fields = xl_header.HeaderFields(3, 0, len(data))
    assert xl_header.decode_optional_data(fields, data) == b"{}"
    assert xl_header.decode_optional_data(xl_header.HeaderFields(2, 0, 0), b"") == b""


@pytest.mark.parametrize("config", [b"", bytes(xl_header.MAX_OPTIONAL_DATA)])
def test_configurations_that_do_not_fit(config: bytes) -> None:
    with pytest.raises(ValueError, match="want 2 to"):
        xl_header.encode_header(config)


def test_header_round_trip() -> None:
    assert libxl_stream.encode_header() == HEADER
    assert libxl_stream.decode_header(HEADER) == 0
    legacy = HEADER[:-1] + b"\2"
    assert libxl_stream.decode_header(legacy) == libxl_stream.OPTION_LEGACY


@pytest.mark.parametrize(
    ("data", "offset"),
    [
        (b"LibxlFmu" + HEADER[8:], 5),
        (HEADER[:8] + struct.pack(">II", 1, 0), 13),
        (HEADER[:8] + struct.pack(">II", 2, 1), 17),
        (HEADER[:8] + struct.pack(">II", 2, 4), 17),
        (HEADER[:8] + struct.pack(">II", 2, 1 << 31), 17),
        (HEADER[:-1], 5),
    ],
)
def test_bad_headers(data: bytes, offset: int) -> None:
    with pytest.raises(DecodeError, match="want") as seen:
        libxl_stream.decode_header(data, 5)
    assert seen.value.offset == offset


def test_numbers_are_those_of_the_specification() -> None:
    assert [kind.name for kind in sorted(RecordType)] == [
        "END",
        "LIBXC_CONTEXT",
        "EMULATOR_XENSTORE_DATA",
        "EMULATOR_CONTEXT",
        "CHECKPOINT_END",
        "CHECKPOINT_STATE",
        "POSTCOPY_TRANSITION_END",
    ]
    assert sorted(RecordType) == list(range(7))


def test_record_types() -> None:
    assert libxl_stream.record_type(6, 0) is RecordType.POSTCOPY_TRANSITION_END
    assert libxl_stream.record_type(0x80000000, 0) is None
    with pytest.raises(DecodeError, match="unknown mandatory type 0x7") as seen:
        libxl_stream.record_type(7, 33)
    assert seen.value.offset == 33


@pytest.mark.parametrize(
    ("kind", "length"),
    [
        (RecordType.END, 8),
        (RecordType.LIBXC_CONTEXT, 1),
        (RecordType.POSTCOPY_TRANSITION_END, 8),
        (RecordType.EMULATOR_CONTEXT, 7),
        (RecordType.EMULATOR_XENSTORE_DATA, (1 << 20) + 1),
        (RecordType.CHECKPOINT_STATE, 0),
        (RecordType.CHECKPOINT_STATE, 6),
    ],
)
def test_lengths_that_a_record_cannot_have(kind: RecordType, length: int) -> None:
    with pytest.raises(DecodeError, match=kind.name) as seen:
        libxl_stream.check_length(kind, length, 16)
    assert seen.value.offset == 20
    with pytest.raises(ValueError, match=kind.name):
        libxl_stream.encode_record(kind, bytes(length))


@given(st.sampled_from(EmulatorId), INDEX, st.lists(st.tuples(STRINGS, STRINGS)))
def test_xenstore_data_round_trip(
    emulator: EmulatorId, index: int, entries: list[tuple[bytes, bytes]]
) -> None:
    body = libxl_stream.encode_emulator_xenstore_data(emulator, index, entries)
    assert body[:8] == struct.pack("<II", emulator, index)
    assert libxl_stream.decode_emulator_xenstore_data(body) == (emulator, index, entries)


@given(st.sampled_from(EmulatorId), INDEX, st.binary())
def test_emulator_context_round_trip(emulator: EmulatorId, index: int, context: bytes) -> None:
    body = libxl_stream.encode_emulator_context(emulator, index, context)
    assert libxl_stream.decode_emulator_context(body) == (emulator, index, context)


@pytest.mark.parametrize("state", CheckpointState)
def test_checkpoint_state_round_trip(state: CheckpointState) -> None:
    body = libxl_stream.encode_checkpoint_state(state)
    assert libxl_stream.decode_checkpoint_state(body) is state
    assert libxl_stream.decode_checkpoint_state(body.ljust(8, b"\0")) is state


@pytest.mark.parametrize(
    ("body", "offset"),
    [
        (struct.pack("<II", 2, 0) + b"path\0value", 117),
        (struct.pack("<II", 2, 0) + b"path\0value\0path\0", 108),
        (struct.pack("<II", 3, 0), 100),
        (bytes(7), 100),
    ],
)
def test_bad_xenstore_data(body: bytes, offset: int) -> None:
    with pytest.raises(DecodeError) as seen:
        libxl_stream.decode_emulator_xenstore_data(body, 100)
    assert seen.value.offset == offset


@pytest.mark.parametrize("body", [b"", bytes(6), struct.pack("<I", 4), struct.pack("<II", 0, 1)])
def test_bad_checkpoint_state(body: bytes) -> None:
    with pytest.raises(DecodeError, match="want"):
        libxl_stream.decode_checkpoint_state(body)


def test_a_nul_cannot_be_in_xenstore_data() -> None:
    with pytest.raises(ValueError, match="NUL"):
        libxl_stream.encode_emulator_xenstore_data(EmulatorId.UNKNOWN, 0, [(b"a\0", b"")])


@given(st.binary(max_size=64))
def test_garbage_is_refused_or_read_never_worse(data: bytes) -> None:
    for decode in (
        xl_header.decode,
        xl_header.decode_header,
        libxl_stream.decode_header,
        libxl_stream.decode_emulator_xenstore_data,
        libxl_stream.decode_emulator_context,
        libxl_stream.decode_checkpoint_state,
    ):
        try:
            decode(data)
        except DecodeError:
            continue
