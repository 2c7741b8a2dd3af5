"""Records and headers, each given to its codec as the readers of streams do."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final

from tests.fuzz import stream_seeds
from tests.fuzz.mutations import Seed, Words, mutate
from tests.fuzz.target import DECODED, Target, promise
from xen_save_helper.helper.hypervisors.simulated.config import capacity_for, check_config
from xen_save_helper.helper.hypervisors.simulated.kinds import NAMES
from xen_save_helper.ipc_schema.errors import DecodeError
from xen_save_helper.ipc_schema.streams import (
    libxc_record_types,
    libxc_records,
    libxc_stream,
    libxl_stream,
    page_lists,
    records,
    xl_handshake,
    xl_header,
)
from xen_save_helper.ipc_schema.streams.libxc_record_types import RecordType as Xc
from xen_save_helper.ipc_schema.streams.libxc_record_types import record_number
from xen_save_helper.ipc_schema.streams.libxc_records import WITH_CONTENTS
from xen_save_helper.ipc_schema.streams.libxc_stream import DomainHeader, DomainType, ImageHeader
from xen_save_helper.ipc_schema.streams.libxl_stream import RecordType as Xl
from xen_save_helper.ipc_schema.streams.page_types import PageType, type_octet
from xen_save_helper.ipc_schema.streams.pfns import pfns_of
from xen_save_helper.ipc_schema.streams.records import HEADER_SIZE
from xen_save_helper.toolstack.xl.receive import name_of, parse_config

_SHORT: Final = "the record is cut"
_SKIPPED: Final = "optional, skipped"

_RECORD_WORDS: Final = Words(
    tokens=(
        bytes(8),
        b"\xff" * 8,
        b"\0\0\0\x80\0\0\0\0",
        b"\0\0\0\0\0\0\0\x40",
        b"\0\0\0\0\xff\xff\xff\xff",
        b"\0\0\0\0\0\0\0\x08",
        b"\1\0\0\0\0\0\0\0",
        b"\0\0\0\0\0\0\0\xf0",
        b"\0\0\0\0\0\0\x10\0",
        stream_seeds.OPTIONAL_RECORD,
    )
)
JSON_WORDS: Final = Words(
    tokens=(
        *(b"[", b"{", b'"', b"\0", b"\xff", b"\\ud800", b"1e999", b"9" * 5000, b'{"c_info":'),
        *(b"[1]", b"null", b"true", b'"simulated":', b'"workload":', b'"max_memkb":'),
    ),
    openers=(b"[", b'{"":', b'{"c_info":', b'[{"a":', b'{"simulated":', b'{"b_info":'),
)


def targets() -> list[Target]:
    """All of this module."""
    return [
        _libxl_target(),
        *map(_libxc_target, (2, 3)),
        _headers(),
        _xl_header_target(),
        _verdict_target(),
        _page_lists(),
    ]


def _framed(made: list[bytes]) -> list[Seed]:
    """Records as seeds: type, length and the first fields of the body are worth striking."""
    marks = (0, 4, 8, 12, 16, 24)
    return [Seed(record, tuple(mark for mark in marks if mark < len(record))) for record in made]


def _split(data: bytes, check: Callable[[int, int], None]) -> tuple[int, bytes] | None:
    """Type and body of the record at the start of `data`, read as streams are: the header is asked
    about (`check(number, length)`) before its body is believed to be there. None where it ends too
    early. Raises DecodeError."""
    if len(data) < HEADER_SIZE:
        return None
    number, length = records.decode_record_header(data[:HEADER_SIZE], "record", 0)
    check(number, length)
    end = HEADER_SIZE + length
    padded = end + records.padding(length)
    if len(data) < padded:
        return None
    records.check_padding(data[end:padded], "record", end)
    return number, data[HEADER_SIZE:end]


def _well_framed(made: list[bytes]) -> Callable[[Random], bytes]:
    """Makes records with a mutated body: its length and padding are right."""
    bodies: dict[int, list[Seed]] = {}
    for record in made:
        number, length = records.decode_record_header(record[:HEADER_SIZE], "record", 0)
        body = record[HEADER_SIZE : HEADER_SIZE + length]
        bodies.setdefault(number, []).append(Seed(body, (0, 4, 8) if len(body) > 64 else ()))
    numbers = sorted(bodies)

    def inside(chance: Random) -> bytes:
        number = chance.choice(numbers)
        return records.encode_record(number, mutate(chance, bodies[number], _RECORD_WORDS))

    return inside


# libxl


def _libxl_target() -> Target:
    made = stream_seeds.libxl_records()
    inside = _well_framed(made)
    return Target("libxl record", _framed(made), _libxl, 24, _RECORD_WORDS, inside)


def _libxl(data: bytes, _chance: Random) -> str:
    def check(number: int, length: int) -> None:
        kind = libxl_stream.record_type(number, 0)
        if kind is not None:
            libxl_stream.check_length(kind, length, 0)

    record = _split(data, check)
    if record is None:
        return _SHORT
    number, body = record
    kind = libxl_stream.record_type(number, 0)
    if kind is None:
        return _SKIPPED
    again = _libxl_again(kind, body)
    promise(again == body, f"{kind.name}: decoded, but encoded it is {again.hex()}")
    whole = libxl_stream.encode_record(kind, again)
    promise(data.startswith(whole), f"{kind.name}: another frame: {whole.hex()}")
    return DECODED


def _libxl_again(kind: Xl, body: bytes) -> bytes:
    """The body, decoded and encoded."""
    match kind:
        case Xl.EMULATOR_XENSTORE_DATA:
            return libxl_stream.encode_emulator_xenstore_data(
                *libxl_stream.decode_emulator_xenstore_data(body, HEADER_SIZE)
            )
        case Xl.EMULATOR_CONTEXT:
            return libxl_stream.encode_emulator_context(
                *libxl_stream.decode_emulator_context(body, HEADER_SIZE)
            )
        case Xl.CHECKPOINT_STATE:
            state = libxl_stream.decode_checkpoint_state(body, HEADER_SIZE)
            # With the specification's padding or without: both are right.
            return libxl_stream.encode_checkpoint_state(state).ljust(len(body), b"\0")
    return body


# libxc


def _libxc_target(version: int) -> Target:
    def feed(data: bytes, _chance: Random) -> str:
        return _libxc(data, version)

    made = stream_seeds.libxc_records(version)
    if version > 2:
        for pieces in stream_seeds.real_libxc_streams():
            made += [piece for piece in pieces[2:] if len(piece) < 6000]
    name = f"libxc record, version {version}"
    return Target(name, _framed(made), feed, 24, _RECORD_WORDS, _well_framed(made))


def _libxc(data: bytes, version: int) -> str:
    def check(number: int, length: int) -> None:
        kind = libxc_record_types.record_type(number, version, 0)
        if kind is not None:
            libxc_records.check_length(kind, length, 0, version)

    record = _split(data, check)
    if record is None:
        return _SHORT
    number, body = record
    kind = libxc_record_types.record_type(number, version, 0)
    if kind is None:
        return _SKIPPED
    promise(record_number(kind, version) == number, f"{kind.name} has number {number:#x}")
    again = _pages_again(kind, body) if kind in WITH_CONTENTS else _body_again(kind, body, version)
    promise(again == body, f"{kind.name}: decoded, but encoded it is {again.hex()}")
    return DECODED


def _body_again(kind: Xc, body: bytes, version: int) -> bytes:
    value = libxc_records.decode_body(kind, body, HEADER_SIZE, version)
    return libxc_records.encode_body(kind, value, version)


def _pages_again(kind: Xc, body: bytes) -> bytes:
    """List and contents of a record, as long as one can follow from the other."""
    size = page_lists.HEADER_SIZE
    count = page_lists.decode_page_list_header(body[:size], kind.name, HEADER_SIZE)
    end = size + count * page_lists.ENTRY_SIZE
    if end > len(body):
        raise DecodeError(kind.name, HEADER_SIZE, f"{count} pfns in {len(body)} octets")
    pfns, types = page_lists.decode_entries(body[size:end], kind.name, HEADER_SIZE + size)
    promise(len(pfns) == len(types) == count, f"{len(pfns)} pfns, {len(types)} types of {count}")
    promise(max(pfns) <= page_lists.MAX_PFN, f"pfn {max(pfns):#x}")
    return page_lists.encode_page_list(pfns, types) + body[end:]


# Page lists: the short way and the long way


def _page_lists() -> Target:
    chance = Random("page lists")
    seeds = []
    for count in (1, 2, 16):
        pfns = pfns_of(chance.randrange(2**52) for _ in range(count))
        for kind in (PageType.NOTAB, PageType.L4TAB_PIN):
            types = bytes([type_octet(kind)]) * count
            seeds.append(Seed(page_lists.encode_page_list(pfns, types), (0, 4, 8)))

    def feed(data: bytes, _chance: Random) -> str:
        size = page_lists.HEADER_SIZE
        count = page_lists.decode_page_list_header(data[:size], "list", 0)
        entries = data[size:]
        short, long = _outcome(page_lists.decode_pfns, entries), None
        pfns, types = page_lists.decode_entries(entries, "list", size)
        if 0 not in page_lists.contents_mask(types):
            long = pfns.tolist()
        promise(short == long, f"the short way says {short}, the long way {long}")
        if count == len(pfns):
            again = page_lists.encode_page_list(pfns, types)
            promise(again == data, f"decoded, but encoded it is {again.hex()}")
        return DECODED

    return Target("page list", seeds, feed, 8, _RECORD_WORDS)


def _outcome(decode: Callable[[bytes, str, int], list[int]], entries: bytes) -> list[int] | None:
    """None where it is refused."""
    try:
        return decode(entries, "list", page_lists.HEADER_SIZE)
    except DecodeError:
        return None


# Headers


def _headers() -> Target:
    seeds = [Seed(libxl_stream.encode_header(), (0, 8, 12))]
    seeds += [
        Seed(libxc_stream.encode_image_header(ImageHeader(v)), (0, 8, 12, 16)) for v in (2, 3)
    ]
    seeds += [
        Seed(libxc_stream.encode_domain_header(DomainHeader(kind)), (0, 4, 6, 8, 12))
        for kind in DomainType
    ]

    def feed(data: bytes, _chance: Random) -> str:
        """What it is, its first octets and its length say."""
        if data[:4] == b"\xff" * 4 or len(data) == libxc_stream.IMAGE_HEADER_SIZE:
            image = libxc_stream.decode_image_header(data)
            again = libxc_stream.encode_image_header(image)
        elif data[:4] == libxl_stream.encode_header()[:4]:
            options = libxl_stream.decode_header(data)
            again = libxl_stream.encode_header()
            again = again[:-4] + options.to_bytes(4, "big")
        else:
            domain = libxc_stream.decode_domain_header(data, 0)
            again = libxc_stream.encode_domain_header(domain)
        promise(again == data, f"decoded, but encoded it is {again.hex()}")
        return DECODED

    return Target("header", seeds, feed, 8, _RECORD_WORDS)


def _verdict_target() -> Target:
    seeds = [
        Seed(xl_handshake.encode_verdict(xl_handshake.Verdict(rc, reason)))
        for rc, reason in (
            (0, ""),
            (-3, "there is another guest 'g' here already"),
            (-5, "é" * 300),
        )
    ]
    fixed = len(xl_handshake.VERDICT.data)
    bodies = [Seed(seed.data[fixed:]) for seed in seeds]

    def inside(chance: Random) -> bytes:
        return xl_handshake.VERDICT.data + mutate(chance, bodies)

    return Target("verdict", seeds, _verdict, 4, inside=inside)


def _verdict(data: bytes, _chance: Random) -> str:
    """As `toolstack.xl.link` reads it, behind the fixed bytes."""
    place = len(xl_handshake.VERDICT.data)
    if not data.startswith(xl_handshake.VERDICT.data):
        return "other bytes"
    end = place + xl_handshake.VERDICT_SIZE
    rc, length = xl_handshake.decode_verdict_head(data[place:end])
    reason = xl_handshake.decode_reason(data[end : end + length])
    promise(reason.isprintable(), f"not a line: {reason!r}")
    promise(len(reason) <= xl_handshake.MAX_REASON, f"{len(reason)} characters")
    promise(-255 < rc <= 0, f"rc {rc}")
    return DECODED


def _xl_header_target() -> Target:
    headers = stream_seeds.xl_headers()
    configs = [Seed(xl_header.decode(header.data).config) for header in headers]

    def inside(chance: Random) -> bytes:
        """A mutated configuration, in a header that is right."""
        return xl_header.encode_header(mutate(chance, configs, JSON_WORDS).rstrip(b"\0") or b"{}")

    return Target("xl header", headers, _xl_header, 10, JSON_WORDS, inside)


def _xl_header(data: bytes, _chance: Random) -> str:
    header = xl_header.decode(data)
    if header.config.endswith(b"\0") and len(header.config) > 1:
        again = xl_header.encode_header(header.config)
        # Flags and what a later xl adds behind the configuration are not ours to write.
        ours = header.mandatory_flags == xl_header.MANDATORY_KNOWN and not header.optional_flags
        if ours and len(again) == len(data):
            promise(again == data, f"decoded, but encoded it is {again.hex()}")
    if not header.mandatory_flags & xl_header.MANDATORY_JSON:
        return "decoded, xl.cfg text"
    config = parse_config(header.config)
    name_of(config)
    try:
        check_config(config)
    except ValueError as error:
        text = str(error)
        promise(0 < len(text) <= 200 and text.isprintable(), f"the error is not a line: {text!r}")
        return "decoded, not of a simulated host"
    # What a host makes of it, and says of it later.
    promise(capacity_for(config) > 0, "it has no room for a page")
    promise(config.get("simulated", {"workload": "idle"})["workload"] in NAMES, "its workload")
    return DECODED
