"""Walk a stream record by record: an xl file, one of `virsh save`, a libxl stream or a bare libxc
stream.

The layers hand the stream to one another as they do in Xen: LIBXC_CONTEXT gives it to libxc until
its END; CHECKPOINT and POSTCOPY_TRANSITION give it back to libxl until CHECKPOINT_END and
POSTCOPY_TRANSITION_END. COLO's streams make sense only with both directions, and are not followed
past their first checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, BinaryIO, Final

from xen_save_helper.ipc_schema.errors import DecodeError
from xen_save_helper.ipc_schema.streams import (
    cpu_features,
    libvirt_header,
    libxc_bodies,
    libxc_record_types,
    libxc_records,
    libxc_stream,
    libxl_stream,
    records,
    xl_header,
)
from xen_save_helper.ipc_schema.streams.libxc_bodies import P2mFrames, PvInfo, TscInfo
from xen_save_helper.ipc_schema.streams.libxc_record_types import RecordType as Xc
from xen_save_helper.ipc_schema.streams.libxl_stream import RecordType as Xl
from xen_save_helper.toolstack.inspect.foreign_formats import (
    LEGACY_LIBVIRT,
    LEGACY_XL,
    LONGEST,
    NotAStreamError,
    foreign,
)
from xen_save_helper.toolstack.inspect.pages import PAGE_LISTS, read_pages
from xen_save_helper.toolstack.inspect.source import Source
from xen_save_helper.toolstack.inspect.summary import Summary

TRAILING_SHOWN: Final = 256
"""Bytes after the stream's end that an entry shows."""

_VCPU_CHECKED: Final = libxc_bodies.VCPU_HEADER_SIZE + 16
_LEAVES_READ: Final = 1 << 16
"""Bytes of the longest CPU policy that is read; Xen's have a tenth of that."""
_START_SIZE: Final = 8
_LIBXC_START: Final = b"\xff" * _START_SIZE
_STARTS: Final = {
    "xl": xl_header.MAGIC[:_START_SIZE],
    "libvirt": libvirt_header.MAGIC[:_START_SIZE],
    "libxl": libxl_stream.encode_header()[:_START_SIZE],
    "libxc": _LIBXC_START,
}
"""How each outermost layer begins."""


@dataclass(frozen=True)
class StreamEntry:
    """A header, a record, or what follows the stream.

    `offset` counts from the start of the stream; `length` is in bytes, of a record's body or of
    anything else as a whole. `summary` says what is in it, fit for JSON.
    """

    offset: int
    layer: str
    """`xl`, `libvirt`, `libxl` or `libxc`."""
    name: str
    length: int
    summary: Mapping[str, Any] = field(default_factory=dict)


def inspect(file: BinaryIO, summary: Summary | None = None) -> Iterator[StreamEntry]:
    """The entries of the stream in `file`, from its position to its end, in bounded memory.

    Page contents are skipped, by seeking if `file` can; pipes will do. `summary` is filled in on
    the way. Raises DecodeError, with the offset, at the place where the stream breaks, after the
    entries before it; and OSError as reading does. Anything after END (`xl migrate` goes on with
    its handshake) is one last entry, TRAILING.
    """
    return _Walker(Source(file), summary if summary is not None else Summary()).walk()


class _Phase(Enum):
    """What the libxl records belong to. The value is the record that ends the phase."""

    NORMAL = Xl.END
    CHECKPOINT = Xl.CHECKPOINT_END
    TRANSITION = Xl.POSTCOPY_TRANSITION_END


_EVERYWHERE: Final = frozenset(_Phase)
_PLACES: Final[Mapping[Xl, frozenset[_Phase]]] = {
    Xl.END: frozenset({_Phase.NORMAL}),
    Xl.LIBXC_CONTEXT: frozenset({_Phase.NORMAL}),
    Xl.EMULATOR_XENSTORE_DATA: _EVERYWHERE,
    Xl.EMULATOR_CONTEXT: _EVERYWHERE,
    Xl.CHECKPOINT_END: frozenset({_Phase.CHECKPOINT}),
    Xl.CHECKPOINT_STATE: frozenset({_Phase.NORMAL, _Phase.CHECKPOINT}),
    Xl.POSTCOPY_TRANSITION_END: frozenset({_Phase.TRANSITION}),
}

_BACK_CHANNEL: Final = frozenset(
    {
        Xc.CHECKPOINT_DIRTY_PFN_LIST,
        Xc.POSTCOPY_READY,
        Xc.POSTCOPY_FAULT,
        Xc.POSTCOPY_COMPLETE,
    }
)
"""Records that the receiver sends."""
_AFTER_STATIC_DATA: Final = frozenset({Xc.PAGE_DATA, Xc.X86_PV_P2M_FRAMES})
"""Records that come after STATIC_DATA_END in version 3."""
_SMALL: Final = frozenset({Xc.X86_PV_INFO, Xc.X86_PV_P2M_FRAMES, Xc.X86_TSC_INFO, Xc.HVM_PARAMS})
_VCPU: Final = frozenset(
    {
        Xc.X86_PV_VCPU_BASIC,
        Xc.X86_PV_VCPU_EXTENDED,
        Xc.X86_PV_VCPU_XSAVE,
        Xc.X86_PV_VCPU_MSRS,
    }
)


class _Walker:
    def __init__(self, source: Source, summary: Summary) -> None:
        self._source = source
        self._summary = summary
        self._in_libxl = False
        self._version = 0
        self._static_data_ended = False
        self._transitioned = False
        self._context_seen = False

    def walk(self) -> Iterator[StreamEntry]:
        for entry in self._stream():
            self._summary.octets = self._source.offset
            self._summary.add_record(entry.layer, entry.name)
            yield entry

    def _stream(self) -> Iterator[StreamEntry]:
        start = self._source.read_some(_START_SIZE)
        if start == _STARTS["xl"]:
            outermost = "xl"
            fields, entry = self._xl_header(start)
            yield entry
            start = self._source.read(_START_SIZE, "stream after the xl header")
            if fields.mandatory_flags & xl_header.MANDATORY_STREAM_V2:
                yield from self._libxl(start)
            elif start == _LIBXC_START:
                yield from self._libxc(start)
            else:
                raise NotAStreamError(LEGACY_XL)
        elif start == _STARTS["libvirt"]:
            outermost = "libvirt"
            version, entry = self._libvirt_header(start)
            yield entry
            if version < libvirt_header.VERSION:
                raise NotAStreamError(LEGACY_LIBVIRT)
            yield from self._libxl(self._source.read(_START_SIZE, "stream after the XML"))
        elif start == _STARTS["libxl"]:
            outermost = "libxl"
            yield from self._libxl(start)
        elif start == _LIBXC_START:
            outermost = "libxc"
            yield from self._libxc(start)
        else:
            rest = self._source.read_some(LONGEST - len(start))
            if (known := foreign(start + rest)) is not None:
                raise NotAStreamError(known)
            found = repr(start) if start else "it is empty"
            raise DecodeError(
                "stream", 0, f"{found}, want the start of an xl file, a libxl or a libxc stream"
            )
        yield from self._trailing(outermost)

    def _trailing(self, layer: str) -> Iterator[StreamEntry]:
        offset = self._source.offset
        shown = self._source.read_some(TRAILING_SHOWN)
        if shown:
            self._source.skip_rest()
            yield StreamEntry(
                offset, layer, "TRAILING", self._source.offset - offset, _what_follows(shown)
            )

    # xl

    def _xl_header(self, start: bytes) -> tuple[xl_header.HeaderFields, StreamEntry]:
        offset = self._source.offset - len(start)
        rest = self._source.read(xl_header.HEADER_SIZE - len(start), "xl header")
        fields = xl_header.decode_header(start + rest, offset)
        place = self._source.offset
        data = self._source.read(fields.optional_data_len, "xl optional data")
        config = xl_header.decode_optional_data(fields, data, place)
        summary: dict[str, Any] = {"config": len(config)}
        if config and fields.mandatory_flags & xl_header.MANDATORY_JSON:
            summary |= _named(config, place)
        length = xl_header.HEADER_SIZE + fields.optional_data_len
        return fields, StreamEntry(offset, "xl", "HEADER", length, summary)

    # libvirt

    def _libvirt_header(self, start: bytes) -> tuple[int, StreamEntry]:
        offset = self._source.offset - len(start)
        rest = self._source.read(libvirt_header.HEADER_SIZE - len(start), "libvirt header")
        header = libvirt_header.decode_header(start + rest, offset)
        place = self._source.offset
        xml = self._source.read(header.xml_len, "libvirt XML")
        summary = {"xml": header.xml_len, **libvirt_header.describe(xml, place)}
        length = libvirt_header.HEADER_SIZE + header.xml_len
        return header.version, StreamEntry(offset, "libvirt", "HEADER", length, summary)

    # libxl

    def _libxl(self, start: bytes) -> Iterator[StreamEntry]:
        self._in_libxl = True
        offset = self._source.offset - len(start)
        rest = self._source.read(libxl_stream.HEADER_SIZE - len(start), "libxl header")
        options = libxl_stream.decode_header(start + rest, offset)
        summary = {
            "version": libxl_stream.VERSION,
            "legacy": bool(options & libxl_stream.OPTION_LEGACY),
        }
        yield StreamEntry(offset, "libxl", "HEADER", libxl_stream.HEADER_SIZE, summary)
        yield from self._libxl_records(_Phase.NORMAL)

    def _libxl_records(self, phase: _Phase) -> Iterator[StreamEntry]:
        """The records up to the one that ends `phase`, and the libxc stream within them."""
        while True:
            offset = self._source.offset
            number, length = self._record_header("libxl record")
            kind = libxl_stream.record_type(number, offset)
            if kind is None:
                yield self._unknown(offset, "libxl", number, length)
                continue
            self._check_libxl_place(kind, phase, offset)
            libxl_stream.check_length(kind, length, offset)
            what = f"libxl {kind.name}"
            summary = self._libxl_body(kind, length, what)
            self._source.finish_record(length, what)
            yield StreamEntry(offset, "libxl", kind.name, length, summary)
            if kind is phase.value:
                return
            if kind is Xl.LIBXC_CONTEXT:
                self._context_seen = True
                yield from self._libxc(self._source.read(_START_SIZE, "libxc image header"))

    def _check_libxl_place(self, kind: Xl, phase: _Phase, offset: int) -> None:
        what = f"libxl {kind.name}"
        if phase not in _PLACES[kind]:
            raise DecodeError(what, offset, f"out of place, want records up to {phase.value.name}")
        if phase is not _Phase.NORMAL:
            return
        if self._transitioned and kind is not Xl.END:
            raise DecodeError(what, offset, "after a postcopy transition, want END")
        if kind is Xl.LIBXC_CONTEXT and self._context_seen:
            raise DecodeError(what, offset, "a second one, want only one")
        if kind is Xl.END and not self._context_seen:
            raise DecodeError(what, offset, "before any LIBXC_CONTEXT, want that first")

    def _libxl_body(self, kind: Xl, length: int, what: str) -> dict[str, Any]:
        offset = self._source.offset
        if kind is Xl.EMULATOR_XENSTORE_DATA:
            body = self._source.read(length, what)
            emulator, index, entries = libxl_stream.decode_emulator_xenstore_data(body, offset)
            return {"emulator": emulator.name, "index": index, "entries": len(entries)}
        if kind is Xl.EMULATOR_CONTEXT:
            head = self._source.read(libxl_stream.EMULATOR_HEADER_SIZE, what)
            emulator, index, _ = libxl_stream.decode_emulator_context(head, offset)
            self._source.skip(length - len(head), what)
            return {"emulator": emulator.name, "index": index, "octets": length - len(head)}
        if kind is Xl.CHECKPOINT_STATE:
            state = libxl_stream.decode_checkpoint_state(self._source.read(length, what), offset)
            return {"state": state.name}
        return {}

    # libxc

    def _libxc(self, start: bytes) -> Iterator[StreamEntry]:
        offset = self._source.offset - len(start)
        size = libxc_stream.IMAGE_HEADER_SIZE
        rest = self._source.read(size - len(start), "libxc image header")
        image = libxc_stream.decode_image_header(start + rest, offset)
        self._version = image.version
        yield StreamEntry(offset, "libxc", "IMAGE_HEADER", size, {"version": image.version})
        offset = self._source.offset
        size = libxc_stream.DOMAIN_HEADER_SIZE
        data = self._source.read(size, "libxc domain header")
        domain = libxc_stream.decode_domain_header(data, offset)
        xen = f"{domain.xen_major}.{domain.xen_minor}"
        summary = {"type": domain.type.name, "xen": xen}
        yield StreamEntry(offset, "libxc", "DOMAIN_HEADER", size, summary)
        yield from self._libxc_records()

    def _libxc_records(self) -> Iterator[StreamEntry]:
        while True:
            offset = self._source.offset
            number, length = self._record_header("libxc record")
            kind = libxc_record_types.record_type(number, self._version, offset)
            if kind is None:
                yield self._unknown(offset, "libxc", number, length)
                continue
            self._check_libxc_place(kind, offset)
            libxc_records.check_length(kind, length, offset, self._version)
            what = f"libxc {kind.name}"
            summary = self._libxc_body(kind, length, what)
            self._source.finish_record(length, what)
            yield StreamEntry(offset, "libxc", kind.name, length, summary)
            if kind is Xc.END:
                return
            yield from self._after(kind)

    def _check_libxc_place(self, kind: Xc, offset: int) -> None:
        what = f"libxc {kind.name}"
        if kind in _BACK_CHANNEL:
            raise DecodeError(what, offset, "belongs to the back channel, not to the stream")
        if kind in _AFTER_STATIC_DATA and self._version >= 3 and not self._static_data_ended:
            raise DecodeError(what, offset, "before STATIC_DATA_END, want that first")
        if kind is Xc.POSTCOPY_TRANSITION and self._transitioned:
            raise DecodeError(what, offset, "a second one, want only one")
        if kind is Xc.POSTCOPY_PAGE_DATA and not self._transitioned:
            raise DecodeError(what, offset, "before POSTCOPY_TRANSITION, want that first")

    def _after(self, kind: Xc) -> Iterator[StreamEntry]:
        """Apply what a record of this type changes for those after it."""
        if kind is Xc.STATIC_DATA_END:
            self._static_data_ended = True
        elif kind is Xc.VERIFY:
            self._summary.end_round()
        elif kind is Xc.CHECKPOINT:
            self._summary.end_round()
            if self._in_libxl:
                yield from self._libxl_records(_Phase.CHECKPOINT)
        elif kind is Xc.POSTCOPY_TRANSITION:
            if self._in_libxl:
                yield from self._libxl_records(_Phase.TRANSITION)
            self._transitioned = True

    def _libxc_body(self, kind: Xc, length: int, what: str) -> dict[str, Any]:
        offset = self._source.offset
        if kind in PAGE_LISTS:
            return read_pages(self._source, kind, length, self._summary)
        if kind in _SMALL:
            body = self._source.read(length, what)
            return _described(libxc_records.decode_body(kind, body, offset, self._version))
        if kind is Xc.POSTCOPY_TRANSITION:
            return self._transition(length, what)
        if kind in _VCPU:
            return self._vcpu(kind, length, what)
        if kind is Xc.X86_CPUID_POLICY and length <= _LEAVES_READ:
            leaves = self._source.read(length, what)
            count = length // cpu_features.LEAF_SIZE
            return {"leaves": count, "features": cpu_features.features(leaves)}
        self._source.skip(length, what)
        return {"octets": length} if length else {}

    def _transition(self, length: int, what: str) -> dict[str, Any]:
        offset = self._source.offset
        body = self._source.read(length, what)
        count = libxc_records.decode_body(Xc.POSTCOPY_TRANSITION, body, offset, self._version)
        if not isinstance(count, int):
            return {}  # the series'
        listed = self._summary.postcopy_pfns
        if count != listed:
            raise DecodeError(what, offset, f"{listed} pages were listed, want {count}")
        return {"listed": count}

    def _vcpu(self, kind: Xc, length: int, what: str) -> dict[str, Any]:
        offset = self._source.offset
        # Only the context's length is checked, for which its first bytes will do.
        body = self._source.read(min(length, _VCPU_CHECKED), what)
        vcpu = libxc_records.decode_body(kind, body, offset, self._version)
        assert isinstance(vcpu, libxc_bodies.VcpuContext)
        self._source.skip(length - len(body), what)
        return {"vcpu": vcpu.vcpu_id, "octets": length - libxc_bodies.VCPU_HEADER_SIZE}

    # any record

    def _record_header(self, what: str) -> tuple[int, int]:
        offset = self._source.offset
        header = self._source.read(records.HEADER_SIZE, f"{what} header")
        return records.decode_record_header(header, what, offset)

    def _unknown(self, offset: int, layer: str, number: int, length: int) -> StreamEntry:
        """Skip an optional record."""
        name = f"OPTIONAL_{number:#x}"
        self._source.skip(length, f"{layer} {name}")
        self._source.finish_record(length, f"{layer} {name}")
        return StreamEntry(offset, layer, name, length, {})


def _what_follows(shown: bytes) -> dict[str, str]:
    """What follows a stream: a handshake's text, or another stream."""
    for layer, magic in _STARTS.items():
        if shown.startswith(magic):
            return {"another_stream": layer}
    return {"text": shown.decode("ascii", "backslashreplace")}


def _named(config: bytes, offset: int) -> dict[str, Any]:
    """The guest's name and type, if the configuration has them."""
    try:
        c_info = json.loads(config.rstrip(b"\0"))["c_info"]
        return {key: c_info[key] for key in ("name", "type") if key in c_info}
    except (ValueError, KeyError, TypeError, RecursionError) as bad:
        raise DecodeError(
            "xl configuration", offset, f"{bad}, want the JSON of a libxl_domain_config"
        ) from None


def _described(body: libxc_bodies.Body) -> dict[str, Any]:
    match body:
        case PvInfo():
            return {"guest_width": body.guest_width, "pt_levels": body.pt_levels}
        case P2mFrames():
            span = {"start_pfn": body.start_pfn, "end_pfn": body.end_pfn}
            return {**span, "frames": len(body.p2m_pfns)}
        case TscInfo():
            return {"mode": body.mode, "khz": body.khz, "nsec": body.nsec}
        case list():
            return {"params": len(body)}
    raise AssertionError(f"a body of {type(body).__name__}")
