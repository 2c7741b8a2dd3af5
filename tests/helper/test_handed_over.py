"""A restore under libxl that a controller of ours does: what the helper tells both of them."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.helper.libxl_side import Libxl, cbflags, started
from xen_save_helper.ipc_schema.channel import hand_over, packets
from xen_save_helper.ipc_schema.channel.hand_over import HandedOver
from xen_save_helper.ipc_schema.channel.helper_arguments import HelperArguments
from xen_save_helper.ipc_schema.channel.helper_request import HelperRequest
from xen_save_helper.ipc_schema.channel.messages import Dialect, Operation

DOMID = 7
DOMAIN = HandedOver(DOMID, 11, 12, 13, 14)


@contextmanager
def handed_over(directory: Path) -> Iterator[tuple[Libxl, socket.socket]]:
    """A helper that libxl has started, and the line on which it has handed over its domain."""
    request = HelperRequest(
        operation=Operation.RESTORE,
        domid=DOMID,
        io_fd=os.open(os.devnull, os.O_RDONLY),
        store_evtchn=11,
        store_domid=12,
        console_evtchn=13,
        console_domid=14,
    )
    flags = cbflags(Dialect.MAINLINE, "static_data_done", "restore_results")
    path = directory / "socket"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(str(path))
            listener.listen()
            listener.settimeout(20)
            arguments = HelperArguments(request, Dialect.MAINLINE, flags)
            with started(arguments, XEN_SAVE_HELPER_HAND_OVER=str(path)) as libxl:
                line, _ = listener.accept()
                with line:
                    line.settimeout(20)
                    assert HandedOver(**packets.receive(line)) == DOMAIN
                    yield libxl, line
    finally:
        os.close(request.io_fd)


def test_libxl_is_told_what_the_controller_has_restored(tmp_path: Path) -> None:
    with handed_over(tmp_path) as (libxl, line):
        packets.send(line, {hand_over.STATIC_DATA_DONE: 3})
        assert libxl.hear() == ("static_data_done", {"missing": 3})
        libxl.answer(0)
        assert packets.receive(line) == {hand_over.ANSWER: 0}
        packets.send(line, {hand_over.RESTORED: {"store_gfn": 5, "console_gfn": 6}})
        assert libxl.hear() == ("restore_results", {"store_gfn": 5, "console_gfn": 6})
        assert libxl.hear() == ("complete", {"retval": 0, "errnoval": 0})
        libxl.answer(0)
        assert libxl.exit_status() == 0


def test_libxl_is_told_of_a_controller_that_has_given_up(tmp_path: Path) -> None:
    with handed_over(tmp_path) as (libxl, line):
        line.close()
        assert libxl.hear() == ("restore_results", {"store_gfn": 0, "console_gfn": 0})
        assert libxl.hear() == ("complete", {"retval": -1, "errnoval": errno.ECANCELED})
        libxl.answer(0)
        assert libxl.exit_status() == 0


@pytest.mark.parametrize("packet", [b"[1]", b"{"])
def test_a_word_that_is_none_is_a_failure(tmp_path: Path, packet: bytes) -> None:
    with handed_over(tmp_path) as (libxl, line):
        line.send(packet)
        assert libxl.hear()[0] == "restore_results"
        assert libxl.hear() == ("complete", {"retval": -1, "errnoval": errno.ECANCELED})
        libxl.answer(0)
        assert libxl.exit_status() == 0


def test_without_libxl_there_is_nothing_to_tell(tmp_path: Path) -> None:
    with handed_over(tmp_path) as (libxl, _line):
        libxl.hang_up()
        assert libxl.exit_status() == 254
