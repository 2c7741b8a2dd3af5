"""One operation on a domain at a time; the second is refused at once, and harms nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.toolstack.stage import Hosts, toolstack
from tests.toolstack.two_hosts import Side, cancelled
from tests.waiting import wait_for
from xen_save_helper.ipc_schema.errors import Error
from xen_save_helper.toolstack.operations.domain_lock import DomainBusyError, domain_lock
from xen_save_helper.toolstack.operations.domain_save import domain_live_migrate, domain_suspend
from xen_save_helper.toolstack.operations.save import SaveResult
from xen_save_helper.toolstack.xl import save_file
from xen_save_helper.toolstack.xl.journal import JournalError
from xen_save_helper.toolstack.xl.migrate import migrate
from xen_save_helper.toolstack.xl.migrate_options import CommandDestination, MigrateOptions

HOLDER = """
import sys, time
from pathlib import Path
from xen_save_helper.toolstack.operations.domain_lock import domain_lock
with domain_lock(Path(sys.argv[1]), 7, "save"):
    print("held", flush=True)
    time.sleep(60)
"""


class TestLock:
    def test_in_one_process(self, tmp_path: Path) -> None:
        said = rf"domain 7 is in the middle of another operation \(source, process {os.getpid()}\)"
        with domain_lock(tmp_path, 7, "source"), domain_lock(tmp_path, 8, "save"):
            with pytest.raises(DomainBusyError, match=said), domain_lock(tmp_path, 7, "save"):
                pass
            with pytest.raises(DomainBusyError), domain_lock(tmp_path, 7, "save"):
                pytest.fail("the first refusal has released it")
        with domain_lock(tmp_path, 7, "save"):
            pass

    def test_in_another_process_that_is_killed(self, tmp_path: Path) -> None:
        with subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE
        ) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            said = rf"\(save, process {holder.pid}\)"
            with pytest.raises(DomainBusyError, match=said), domain_lock(tmp_path, 7, "save"):
                pass
            holder.send_signal(signal.SIGKILL)
            holder.wait()
            with domain_lock(tmp_path, 7, "save"):
                pass

    def test_a_dead_process_is_not_named_as_the_holder(self, tmp_path: Path) -> None:
        (tmp_path / "operations.lock").write_bytes(b"4711 save".ljust(32, b"\0") * 8)
        with (
            domain_lock(tmp_path, 7, "source"),
            pytest.raises(DomainBusyError, match=f"process {os.getpid()}"),
            domain_lock(tmp_path, 7, "save"),
        ):
            pass


class Saving:
    """A save of the guest by the API, in a thread of its own, of which nobody reads the stream."""

    def __init__(self, side: Side, domid: int) -> None:
        self.side = side
        self.result: SaveResult | None = None
        self._domid = domid
        self._at_work = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._save(),))

    async def _save(self) -> None:
        ended: list[SaveResult] = []
        ours, theirs = socket.socketpair()
        with ours, theirs:
            fd = ours.fileno()
            live = domain_live_migrate(self.side.ctx, self._domid, fd, 0, fd, on_end=ended.append)
            task = asyncio.ensure_future(live)
            loop = asyncio.get_running_loop()
            self.end = lambda: loop.call_soon_threadsafe(task.cancel)
            self.side.happenings.at("callback precopy_policy", self._at_work.set)
            self.result = await cancelled(task, ended)

    def __enter__(self) -> Saving:
        self._thread.start()
        assert self._at_work.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self._thread.join(60)
        assert self.result is not None
        assert self.result.rc is Error.ABORTED, "the first one was harmed"


@pytest.mark.usefixtures("no_leaks")
class TestTwice:
    def test_by_the_api(self, hosts: Hosts, tmp_path: Path) -> None:
        side = Side(hosts.at_source)
        domid = hosts.guest()
        others = Side(hosts.at_source).ctx
        with Saving(side, domid):
            with (tmp_path / "image").open("wb") as file:
                saved = asyncio.run(domain_suspend(others, domid, file.fileno()))
            assert saved.rc is Error.LOCK_FAIL
            assert saved.reason == (
                f"domain {domid} is in the middle of another operation "
                f"(save, process {os.getpid()})"
            )
            assert not saved.suspended
            with pytest.raises(JournalError, match="in the middle of another operation"):
                asyncio.run(save_file.save(others, domid, tmp_path / "file"))
            with pytest.raises(JournalError, match="in the middle of another operation"):
                asyncio.run(migrate(others, domid, CommandDestination("true"), MigrateOptions()))
            assert hosts.journals() == []
            assert not (tmp_path / "file").exists()
            # The first save was left alone: whoever ends one turns this off.
            assert hosts.at_source.domains()[0].log_dirty
        side.at_rest(domid)

    @pytest.mark.parametrize("command", ["save", "migrate", "recover"])
    def test_a_command(self, hosts: Hosts, tmp_path: Path, command: str) -> None:
        side = Side(hosts.at_source)
        domid = hosts.guest()
        more = {
            "save": (tmp_path / "file",),
            "migrate": ("--to", hosts.destination),
            "recover": ("--resume",),
        }[command]
        with Saving(side, domid):
            ended = toolstack(command, "g", *more, "--host", hosts.source)
            if command == "recover":
                # Nothing was left in the middle.
                assert ended.code == 0
            else:
                assert ended.code == 1
                assert f"in the middle of another operation (save, process {os.getpid()})" in (
                    ended.err
                )
            assert hosts.journals() == []
            assert hosts.at_source.domains()[0].log_dirty
        side.at_rest(domid)

    def test_by_the_api_while_a_command_is_running(self, hosts: Hosts, tmp_path: Path) -> None:
        domid = hosts.guest()
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        process = hosts.start("save", "g", fifo, "--host", hosts.source)
        reader = os.open(fifo, os.O_RDONLY)
        try:
            os.read(reader, 1)
            wait_for(hosts.journals, "the save has begun")
            with open("/dev/null", "wb") as null:
                work = domain_suspend(Side(hosts.at_source).ctx, domid, null.fileno())
                saved = asyncio.run(work)
            assert saved.rc is Error.LOCK_FAIL
            assert f"(save, process {process.pid})" in saved.reason
        finally:
            os.close(reader)
            process.communicate(timeout=60)
        Side(hosts.at_source).at_rest(domid)
