"""Whole streams, given to what reads streams: `inspect`, postcopy's assembler, the back channel."""

from __future__ import annotations

import io
import json
import socket
from random import Random
from typing import Final

from tests.fuzz import stream_seeds
from tests.fuzz.mutations import Seed, Words, joined, mutate
from tests.fuzz.record_targets import JSON_WORDS
from tests.fuzz.stream_seeds import PAGE, libxc_record, page_data, pages
from tests.fuzz.target import DECODED, BrokenPromiseError, Target, promise
from xen_save_helper.helper.engine.fault_channel import FaultReader
from xen_save_helper.helper.engine.page_assembler import RING, PageAssembler
from xen_save_helper.helper.engine.postcopy_pages import PostcopyPages
from xen_save_helper.ipc_schema.errors import DecodeError
from xen_save_helper.ipc_schema.streams import xl_header
from xen_save_helper.ipc_schema.streams.libxc_record_types import RecordType as Xc
from xen_save_helper.ipc_schema.streams.page_types import PageType
from xen_save_helper.toolstack.inspect.summary import Summary
from xen_save_helper.toolstack.inspect.walk import inspect

STREAM_WORDS: Final = Words(
    tokens=(
        *stream_seeds.libxl_records(),
        *(record for record in stream_seeds.libxc_records(3) if len(record) < 200),
        *(record for record in stream_seeds.libxc_records(2) if len(record) < 200),
        b"\0\0\0\x80\0\0\0\x40",
        b"\1\0\0\0\0\0\0\x08",
        bytes(8),
    )
)
_GUEST_PFNS: Final = 1 << 20


def targets() -> list[Target]:
    """All of this module."""
    return [_inspected(), _assembled(), _back_channel(2), _back_channel(3)]


# inspect


class _Pipe(io.BytesIO):
    """Octets that cannot be sought in."""

    def seekable(self) -> bool:
        return False


def _inspected() -> Target:
    seeds = [joined(*pieces) for pieces in stream_seeds.libxl_streams()]
    seeds += [joined(*stream_seeds.libxc_plain(version)) for version in (2, 3)]
    seeds += [joined(*stream_seeds.libxc_postcopy(version)) for version in (2, 3)]
    seeds += stream_seeds.xl_streams()

    def feed(data: bytes, _chance: Random) -> str:
        sought = _inspect(io.BytesIO(data))
        piped = _inspect(_Pipe(data))
        promise(sought[0] == piped[0], "a file and a pipe have other entries")
        promise(str(sought[1]) == str(piped[1]), f"a file: {sought[1]}; a pipe: {piped[1]}")
        if sought[1] is not None:
            raise sought[1]
        return DECODED

    after = b"".join(stream_seeds.libxl_streams()[0])

    def inside(chance: Random) -> bytes:
        """A mutated configuration in a right header, or a mutated stream."""
        if chance.random() < 0.2:
            config = mutate(chance, [Seed(stream_seeds.domain_config())], JSON_WORDS)
            return xl_header.encode_header(config.rstrip(b"\0") or b"{}") + after
        return mutate(chance, seeds, STREAM_WORDS)

    return Target("inspect", seeds, feed, 5, STREAM_WORDS, inside)


def _inspect(file: io.BytesIO) -> tuple[list[str], DecodeError | None]:
    """The entries as lines, and why there are no more."""
    entries: list[str] = []
    summary = Summary()
    end = 0
    try:
        for entry in inspect(file, summary):
            promise(
                entry.offset == end or not entries, f"{entry.name} at {entry.offset}, not {end}"
            )
            end = summary.octets
            entries.append(f"{entry} {json.dumps(entry.summary)}")
    except DecodeError as error:
        promise(error.offset >= 0, f"offset {error.offset}")
        return entries, error
    json.dumps(summary.as_dict())
    return entries, None


def accepted(stream: bytes) -> Summary:
    """What another reader of this stream has taken must be good for `inspect`, too."""
    summary = Summary()
    try:
        for _ in inspect(io.BytesIO(stream), summary):
            pass
    except DecodeError as error:
        raise BrokenPromiseError(f"decoded, but inspect says: {error}") from error
    return summary


# Postcopy's pages


def _assembled() -> Target:
    chance = Random("assembled")
    # What stands in a stream before the first page that came by postcopy, and the two and END.
    begun = {version: stream_seeds.libxc_postcopy(version)[:-3] for version in (2, 3)}
    seeds = []
    for version in (2, 3):
        for sizes in ((1,), (1, 3), (2, 1, 1), (RING // 16,) * 2):
            records = [
                page_data(
                    Xc.POSTCOPY_PAGE_DATA,
                    version,
                    *((chance.randrange(_GUEST_PFNS), PageType.NOTAB) for _ in range(size)),
                )
                for size in sizes
            ]
            seeds.append(joined(*records, libxc_record(Xc.END, version)))

    def feed(data: bytes, chance: Random) -> str:
        """In any pieces; pages are taken by turns and out of turn."""
        version = chance.choice((2, 3))
        assembler = PageAssembler(version, 0)
        at = 0
        came = 0
        while at < len(data) and not assembler.ended:
            piece = chance.choice((1, 7, 8, 100, PAGE, 3 * PAGE, 1 << 20))
            rest = memoryview(data)[at : at + piece]
            taken = 0
            for view in assembler.views():
                part = rest[taken : taken + len(view)]
                view[: len(part)] = part
                taken += len(part)
            promise(taken > 0, "there is room, and nothing is taken")
            at += taken
            pfns = assembler.filled(taken)
            came += len(pfns)
            if pfns and chance.random() < 0.2:
                promise(assembler.take(pfns[-1]) is not None, f"pfn {pfns[-1]:#x} is not held")
            while (run := assembler.take_oldest(4)) is not None:
                promise(len(run[1]) % PAGE == 0, f"{len(run[1])} octets of pages")
            promise(assembler.held == 0, f"{assembler.held} pages are held, all were taken")
        promise(came * PAGE <= at, f"{came} pages out of {at} octets")
        if not assembler.ended:
            return "cut"
        seen = accepted(b"".join(begun[version]) + data[:at])
        promise(seen.postcopy_pages == came, f"{came} pages, and for inspect {seen.postcopy_pages}")
        return DECODED

    return Target("postcopy pages", seeds, feed, 5, STREAM_WORDS)


# The back channel


def _back_channel(version: int) -> Target:
    complete = libxc_record(Xc.POSTCOPY_COMPLETE, version)

    def fault(*pfns: int) -> bytes:
        listed = pages(*((pfn, PageType.NOTAB) for pfn in pfns))
        return libxc_record(Xc.POSTCOPY_FAULT, version, listed)

    said = (
        [complete],
        [fault(1), complete],
        [fault(1, 2, 3), fault(_GUEST_PFNS - 1), stream_seeds.OPTIONAL_RECORD, complete],
        [fault(*range(64)), fault(7), fault(7), complete],
    )
    seeds = [joined(*records) for records in said]

    def feed(data: bytes, chance: Random) -> str:
        near, far = socket.socketpair()
        with near, far:
            reader = FaultReader(far.fileno(), version)
            wanted = PostcopyPages(bytearray(b"\1" * _GUEST_PFNS))
            rest = memoryview(data)
            faults = 0
            try:
                while rest and not reader.complete:
                    piece = chance.choice((1, 8, 12, 100, 1 << 14))
                    rest = rest[near.send(rest[:piece]) :]
                    pfns = reader.take()
                    faults += len(pfns)
                    wanted.fault(pfns)
                promise(8 * faults <= len(data), f"{faults} faults out of {len(data)} octets")
                if reader.complete:
                    return DECODED
                near.shutdown(socket.SHUT_WR)
                reader.take()
            except ConnectionResetError as error:
                promise("before POSTCOPY_COMPLETE" in str(error), str(error))
                return "closed early"
            except DecodeError:
                raise
            except ValueError as error:
                # What PostcopySender makes a DecodeError of.
                promise("is above the guest's" in str(error), str(error))
                return "a pfn that the guest has not"
        raise AssertionError("the channel's end was not seen")

    return Target(f"back channel, version {version}", seeds, feed, 5, STREAM_WORDS)
