"""The relay of a tunnel: whom it leads where, and what it does to connections."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from xen_save_helper.ipc_schema.faults.plan import parse
from xen_save_helper.ipc_schema.streams import postcopy_offer
from xen_save_helper.ipc_schema.streams.libxc_record_types import VERSION, RecordType, record_number
from xen_save_helper.ipc_schema.streams.postcopy_offer import PostcopyOffer
from xen_save_helper.ipc_schema.streams.records import encode_record
from xen_save_helper.toolstack.faults.tunnel import Led, TunnelRelay, trace_to

OFFER = PostcopyOffer("192.0.2.7", 40000, "s" * 40, "c" * 40, "x" * 40)


def record(offer: PostcopyOffer) -> bytes:
    body = postcopy_offer.encode(offer)
    return encode_record(record_number(RecordType.POSTCOPY_OFFER, VERSION), body)


def test_a_pager_is_led_to_the_relay(tmp_path: Path) -> None:
    """Wherever the offer is cut in two on its way."""
    before, after = b"before it", b"and after"
    target = tmp_path / "target"
    whole = before + record(OFFER) + after
    # The type of a record comes in one piece.
    for cut in (0, len(before), *range(len(before) + 4, len(whole) + 1)):
        led = Led(50000, target)
        passed = led(whole[:cut]) + led(whole[cut:])
        assert passed == before + record(OFFER._replace(port=50000)) + after
        assert target.read_text() == "40000"
        target.unlink()


def test_what_only_looks_like_an_offer_passes(tmp_path: Path) -> None:
    head = record(OFFER)[:8]
    for data in (b"", b"nothing", head[:4] + b"\xff" * 8, head + b"\xff" * 200):
        assert Led(50000, tmp_path / "target")(data) == data
    assert not (tmp_path / "target").exists()


class Ends:
    """A pager's end, and that of a server which answers nothing by itself."""

    def __init__(self, relay: TunnelRelay, server: socket.socket) -> None:
        self._relay = relay
        self._server = server

    @contextmanager
    def connected(self) -> Iterator[tuple[socket.socket, socket.socket]]:
        with (
            socket.create_connection(("127.0.0.1", self._relay.port)) as pager,
            self._server.accept()[0] as served,
        ):
            for end in (pager, served):
                end.settimeout(30)
            yield pager, served


@pytest.fixture
def events(tmp_path: Path) -> Path:
    return tmp_path / "events"


@contextmanager
def relayed(plan: str, directory: Path) -> Iterator[Ends]:
    target = directory / "target"
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        trace_to(directory / "events") as trace,
        TunnelRelay(parse(plan).seeded(), target, trace) as relay,
    ):
        server.settimeout(30)
        target.write_text(str(server.getsockname()[1]))
        yield Ends(relay, server)


def all_of(sock: socket.socket) -> bytes:
    data = b""
    while part := sock.recv(100):
        data += part
    return data


def test_a_connection_is_cut_at_its_offset(tmp_path: Path, events: Path) -> None:
    with relayed("tunnel/stream@3#2=cut", tmp_path) as ends:
        for cut in (False, True, False):
            with ends.connected() as (pager, served):
                served.sendall(b"abcdef")
                served.shutdown(socket.SHUT_WR)
                assert all_of(pager) == (b"abc" if cut else b"abcdef")
    (struck,) = [json.loads(line) for line in events.read_text().splitlines() if "fault" in line]
    assert (struck["process"], struck["fault"]) == ("link", "tunnel/stream@3#2=cut")


def test_each_connection_counts_anew(tmp_path: Path) -> None:
    with relayed("tunnel/back@3#*=flip", tmp_path) as ends:
        for _ in range(3):
            with ends.connected() as (pager, served):
                pager.sendall(b"abcdef")
                pager.shutdown(socket.SHUT_WR)
                assert all_of(served) == b"abceef"


def test_a_connection_that_stands_still_ends_with_its_end(tmp_path: Path) -> None:
    with (
        relayed("tunnel/stream@3=stall", tmp_path) as ends,
        ends.connected() as (pager, served),
    ):
        served.sendall(b"abcdef")
        assert pager.recv(100) == b"abc"
        pager.sendall(b"the other way")
        assert served.recv(100) == b"the other way"
        served.close()
        assert all_of(pager) == b""


def test_a_server_that_has_gone_is_reached_by_nobody(tmp_path: Path) -> None:
    with relayed("tunnel/stream@3=cut", tmp_path) as ends:
        ends._server.close()
        with socket.create_connection(("127.0.0.1", ends._relay.port)) as pager:
            pager.settimeout(30)
            assert all_of(pager) == b""
