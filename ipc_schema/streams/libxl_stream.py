"""The libxl stream, version 2 (docs/specs/libxl-migration-stream.pandoc), with the postcopy
series' record.

A header, then records (`records`) up to END. A libxc stream follows the LIBXC_CONTEXT record
without a frame of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import Final

from construct import Int32ub, Int32ul, Int64ub, Struct

from xen_save_helper.ipc_schema.errors import DecodeError
from xen_save_helper.ipc_schema.streams import records
from xen_save_helper.ipc_schema.streams.records import check_size

IDENT: Final = int.from_bytes(b"LibxlFmt", "big")
VERSION: Final = 2
OPTION_BIG_ENDIAN: Final = 1 << 0
OPTION_LEGACY: Final = 1 << 1
"""The stream was converted from Xen 4.5 or before."""

_HEADER: Final = Struct("ident" / Int64ub, "version" / Int32ub, "options" / Int32ub)
HEADER_SIZE: Final[int] = _HEADER.sizeof()

_EMULATOR: Final = Struct("emulator_id" / Int32ul, "index" / Int32ul)
EMULATOR_HEADER_SIZE: Final[int] = _EMULATOR.sizeof()
_CHECKPOINT_STATE: Final = Struct("control_id" / Int32ul, "padding" / Int32ul)
_CHECKPOINT_STATE_SIZE: Final[int] = _CHECKPOINT_STATE.sizeof()


class RecordType(IntEnum):
    """REC_TYPE_* of libxl_sr_stream_format.h."""

    END = 0x0
    LIBXC_CONTEXT = 0x1
    EMULATOR_XENSTORE_DATA = 0x2
    EMULATOR_CONTEXT = 0x3
    CHECKPOINT_END = 0x4
    CHECKPOINT_STATE = 0x5
    POSTCOPY_TRANSITION_END = 0x6


class EmulatorId(IntEnum):
    """EMULATOR_*."""

    UNKNOWN = 0
    QEMU_TRADITIONAL = 1
    QEMU_UPSTREAM = 2


class CheckpointState(IntEnum):
    """CHECKPOINT_*: messages between the two sides of COLO."""

    NEW = 0
    SVM_SUSPENDED = 1
    SVM_READY = 2
    SVM_RESUMED = 3


LENGTHS: Final[Mapping[RecordType, range]] = {
    RecordType.END: range(1),
    RecordType.LIBXC_CONTEXT: range(1),
    RecordType.EMULATOR_XENSTORE_DATA: range(EMULATOR_HEADER_SIZE, (1 << 20) + 1),
    RecordType.EMULATOR_CONTEXT: range(EMULATOR_HEADER_SIZE, records.MAX_LENGTH + 1),
    RecordType.CHECKPOINT_END: range(1),
    # libxl writes its structure of 4 bytes; the specification counts the padding: 8.
    RecordType.CHECKPOINT_STATE: range(4, _CHECKPOINT_STATE_SIZE + 1, 4),
    RecordType.POSTCOPY_TRANSITION_END: range(1),
}
"""The lengths that each record's body may have, in bytes. libxl has no limits; a device model's
xenstore data is some hundred bytes, its state at most a few MiB."""


def encode_header() -> bytes:
    """Encode the HEADER_SIZE bytes in front of a little-endian stream."""
    return bytes(_HEADER.build({"ident": IDENT, "version": VERSION, "options": 0}))


def decode_header(data: bytes, offset: int = 0) -> int:
    """The options in the HEADER_SIZE bytes `data` at `offset`: 0 or OPTION_LEGACY.

    Raises DecodeError for a wrong ident or version, big-endian streams and reserved options.
    """
    what = "libxl header"
    check_size(data, HEADER_SIZE, what, offset)
    fields = _HEADER.parse(data)
    if fields.ident != IDENT:
        raise DecodeError(what, offset, f"ident {fields.ident:#018x}, want {IDENT:#018x}")
    if fields.version != VERSION:
        raise DecodeError(what, offset + 8, f"version {fields.version}, want {VERSION}")
    if fields.options & OPTION_BIG_ENDIAN:
        raise DecodeError(what, offset + 12, "a big-endian stream, want a little-endian one")
    if reserved := fields.options & ~OPTION_LEGACY:
        raise DecodeError(what, offset + 12, f"reserved options {reserved:#x}, want 0")
    return int(fields.options)


def record_type(number: int, offset: int) -> RecordType | None:
    """The type of the record at `offset`; None for an unknown optional one, which is to be skipped.

    Raises DecodeError for an unknown mandatory one.
    """
    try:
        return RecordType(number)
    except ValueError:
        if number & records.OPTIONAL:
            return None
    raise DecodeError(
        "libxl record",
        offset,
        f"unknown mandatory type {number:#x}, want 0 to {max(RecordType):#x} or bit 31 set",
    )


def check_length(kind: RecordType, length: int, offset: int) -> None:
    """Raise DecodeError unless the body of the `kind` record at `offset` may have `length` bytes.
    Call it before reading the body."""
    allowed = LENGTHS[kind]
    if length not in allowed:
        want = f"{allowed[0]}" if len(allowed) == 1 else f"{allowed[0]} to {allowed[-1]}"
        raise DecodeError(f"libxl {kind.name}", offset + 4, f"body of {length} bytes, want {want}")


def encode_record(kind: RecordType, body: bytes = b"") -> bytes:
    """Encode a whole record with its padding. Raises ValueError for a body it cannot have."""
    if len(body) not in LENGTHS[kind]:
        raise ValueError(f"libxl {kind.name} with a body of {len(body)} bytes")
    return records.encode_record(kind, body)


def encode_emulator_xenstore_data(
    emulator_id: EmulatorId, index: int, entries: Iterable[tuple[bytes, bytes]]
) -> bytes:
    """Encode the body of EMULATOR_XENSTORE_DATA; `entries` are (path relative to the device
    model's own, value). Raises ValueError for a NUL in one of them."""
    strings = [string for entry in entries for string in entry]
    if any(b"\0" in string for string in strings):
        raise ValueError("xenstore data contains a NUL")
    data = b"".join(string + b"\0" for string in strings)
    return _encode_emulator(emulator_id, index) + data


def decode_emulator_xenstore_data(
    body: bytes, offset: int = 0
) -> tuple[EmulatorId, int, list[tuple[bytes, bytes]]]:
    """Emulator, index and entries of the body at `offset`. Raises DecodeError."""
    what = "libxl EMULATOR_XENSTORE_DATA"
    emulator_id, index = _decode_emulator(body, what, offset)
    data = body[EMULATOR_HEADER_SIZE:]
    if not data:
        return emulator_id, index, []
    if not data.endswith(b"\0"):
        raise DecodeError(what, offset + len(body) - 1, "no NUL at the end of the last string")
    strings = data[:-1].split(b"\0")
    if len(strings) % 2:
        raise DecodeError(
            what,
            offset + EMULATOR_HEADER_SIZE,
            f"{len(strings)} strings, want pairs of path and value",
        )
    return emulator_id, index, list(zip(strings[::2], strings[1::2], strict=True))


def encode_emulator_context(emulator_id: EmulatorId, index: int, context: bytes) -> bytes:
    """Encode the body of EMULATOR_CONTEXT."""
    return _encode_emulator(emulator_id, index) + context


def decode_emulator_context(body: bytes, offset: int = 0) -> tuple[EmulatorId, int, bytes]:
    """Emulator, index and context of the body at `offset`. Raises DecodeError."""
    emulator_id, index = _decode_emulator(body, "libxl EMULATOR_CONTEXT", offset)
    return emulator_id, index, body[EMULATOR_HEADER_SIZE:]


def encode_checkpoint_state(state: CheckpointState) -> bytes:
    """Encode the body of CHECKPOINT_STATE, the 4 bytes that libxl writes."""
    return bytes(Int32ul.build(state))


def decode_checkpoint_state(body: bytes, offset: int = 0) -> CheckpointState:
    """Decode the body at `offset`, with the specification's padding or, as libxl writes it, without
    it. Raises DecodeError."""
    what = "libxl CHECKPOINT_STATE"
    if len(body) not in LENGTHS[RecordType.CHECKPOINT_STATE]:
        raise DecodeError(what, offset, f"{len(body)} bytes, want 4 or 8")
    fields = _CHECKPOINT_STATE.parse(body.ljust(_CHECKPOINT_STATE_SIZE, b"\0"))
    if fields.padding:
        raise DecodeError(what, offset + 4, f"padding {fields.padding:#x}, want 0")
    try:
        return CheckpointState(fields.control_id)
    except ValueError:
        raise DecodeError(
            what, offset, f"state {fields.control_id}, want 0 to {max(CheckpointState)}"
        ) from None


def _encode_emulator(emulator_id: EmulatorId, index: int) -> bytes:
    if not 0 <= index < 1 << 32:
        raise ValueError(f"emulator index {index} is not a u32")
    return bytes(_EMULATOR.build({"emulator_id": emulator_id, "index": index}))


def _decode_emulator(body: bytes, what: str, offset: int) -> tuple[EmulatorId, int]:
    if len(body) < EMULATOR_HEADER_SIZE:
        raise DecodeError(what, offset, f"{len(body)} bytes, want at least {EMULATOR_HEADER_SIZE}")
    fields = _EMULATOR.parse(body[:EMULATOR_HEADER_SIZE])
    try:
        return EmulatorId(fields.emulator_id), int(fields.index)
    except ValueError:
        raise DecodeError(
            what, offset, f"emulator {fields.emulator_id}, want 0 to {max(EmulatorId)}"
        ) from None
