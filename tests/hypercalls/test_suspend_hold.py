"""Who asks a guest to suspend while its memory comes: it is not shown that, and nothing is lost."""

from __future__ import annotations

import errno
import json
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.debian_packages import PackageUnavailableError, unpacked, unpacked_from
from tests.helper.libxl_side import cbflags, started
from tests.hypercalls.build import Release
from tests.hypercalls.helpers import Answer, Done, answered, restore
from tests.hypercalls.machine import (
    PARAM_CONSOLE_PFN,
    PARAM_STORE_PFN,
    Domain,
    Kind,
    Machine,
)
from tests.hypercalls.test_paging import OUT, Pager, domain, off, pager
from tests.hypercalls.test_postcopy import LEFT, Migration, migration, source
from tests.hypercalls.xenstored import Guest, Xenstored
from tests.unavailable import unavailable
from xen_save_helper.ipc_schema.channel.helper_arguments import HelperArguments
from xen_save_helper.ipc_schema.channel.helper_request import HelperRequest
from xen_save_helper.ipc_schema.channel.messages import Dialect, Operation, XCFlags

__all__ = ["domain", "migration", "off", "pager", "source"]  # fixtures


@pytest.fixture
def events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "events"
    monkeypatch.setenv("XEN_SAVE_HELPER_EVENTS", str(path))
    return path


def traced(events: Path) -> list[tuple[str, Any]]:
    lines = map(json.loads, events.read_text().splitlines())
    return [
        (line["event"], line.get("request") or line.get("error"))
        for line in lines
        if line["event"].startswith("suspend_")
    ]


def test_a_guest_is_not_asked_before_its_last_page_is_there(
    migration: Migration, destination: Domain, xenstored: Xenstored, restored: Guest, events: Path
) -> None:
    """As `xl save` asks it, whose helper would take missing pages for holes."""
    fired: list[int] = []
    heard: list[int] = []

    def resume(_fields: dict[str, Any]) -> int:
        restored.watch(lambda: fired.append(destination.state.paged_pages))
        xenstored.write(restored.path, b"suspend")
        heard.extend(fired)
        with pytest.raises(PermissionError):
            restored.read()
        destination.resume()
        return 1

    sent, received = migration.run(resume)
    assert sent.result == (0, 0), sent.logged
    assert received.result == (0, 0), received.logged
    # A watch fires as it is made, with the request, and when all pages are there.
    assert heard == [LEFT, LEFT]
    assert fired == [LEFT, LEFT, 0]
    assert restored.read() == "suspend"
    restored.answer()
    assert xenstored.permissions(restored.path) == ["n2"]
    assert traced(events) == [("suspend_held", "suspend"), ("suspend_let_through", "suspend")]
    (line,) = (json.loads(x) for x in events.read_text().splitlines() if "suspend_held" in x)
    assert line["missing"] == LEFT
    assert any(f"asked for `suspend` while {LEFT} of its pages" in x for x in received.logged)


def test_a_request_that_is_taken_back(
    migration: Migration, destination: Domain, xenstored: Xenstored, restored: Guest, events: Path
) -> None:
    """As libxl does when the guest has not answered for a minute."""

    def resume(_fields: dict[str, Any]) -> int:
        xenstored.write(restored.path, b"suspend")
        xenstored.write(restored.path, b"")
        destination.resume()
        return 1

    _sent, received = migration.run(resume)
    assert received.result == (0, 0), received.logged
    assert "suspend_let_through" not in dict(traced(events))
    assert restored.read() == ""


def test_a_guest_that_lacks_pages_for_ever_is_never_asked(
    migration: Migration,
    destination: Domain,
    xenstored: Xenstored,
    restored: Guest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = "record.libxc.POSTCOPY_PAGE_DATA:read#2=cut"
    monkeypatch.setenv("XEN_SAVE_HELPER_FAULTS", plan)
    _sent, received = migration.run(lambda _fields: 1)
    assert received.retval == -1
    assert destination.state.paged_pages
    xenstored.write(restored.path, b"suspend")
    with pytest.raises(PermissionError):
        restored.read()


def test_xenstored_hangs_up(
    migration: Migration, destination: Domain, xenstored: Xenstored, restored: Guest, events: Path
) -> None:
    """The guest's memory comes all the same; that requests stay hidden is said."""

    def resume(_fields: dict[str, Any]) -> int:
        xenstored.close()
        destination.resume()
        return 1

    _sent, received = migration.run(resume)
    assert received.result == (0, 0), received.logged
    (seen, shown) = traced(events)
    assert seen[0] == shown[0] == "suspend_hold_failed"
    assert "cannot be seen" in seen[1]
    assert "stay hidden from it" in shown[1]
    assert any("requests to domain 2 to suspend stay hidden" in line for line in received.logged)


@pytest.mark.parametrize("missing", ["xenstored", "node"])
def test_where_requests_cannot_be_held_the_guest_stays_at_its_source(
    migration: Migration,
    destination: Domain,
    xenstored: Xenstored,
    restored: Guest,
    missing: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if missing == "node":
        xenstored.forget(restored.path)
    else:
        monkeypatch.setenv("XENSTORED_PATH", "/nowhere/socket")
    resumed: list[int] = []

    def resume(_fields: dict[str, Any]) -> int:
        resumed.append(1)
        return 1

    sent, received = migration.run(resume)
    assert received.result == (-1, errno.ENOENT)
    assert sent.retval == -1
    assert resumed == []


def libxls_helper(version: str) -> Path:
    name = f"xen-utils-{version}"
    try:
        if version == "4.17":
            package = unpacked(name)
        else:
            (package,) = unpacked_from("trixie", name)
    except PackageUnavailableError as error:
        unavailable(str(error))
    return package / f"usr/lib/xen-{version}/bin/libxl-save-helper"


def saved_by_libxls_own(
    stream: Path, domid: int, machine: Machine, release: Release, suspend: Answer, xcflags: int = 0
) -> Done:
    command = [str(libxls_helper(release.version))]
    flags = cbflags(Dialect.MAINLINE, "suspend", "switch_qemu_logdirty")
    environment = {**release.environment, **machine.environment}
    with stream.open("wb") as file:
        request = HelperRequest(Operation.SAVE, domid, file.fileno(), xcflags=xcflags)
        arguments = HelperArguments(request, Dialect.MAINLINE, flags)
        with started(
            arguments, "xen", loader=release.loader, command=command, **environment
        ) as libxl:
            done = answered(libxl, suspend=suspend, switch_qemu_logdirty=lambda _fields: 0)
            assert libxl.exit_status() == 0
    return done


def test_libxls_own_helper_saves_a_guest_while_its_memory_comes(
    release: Release,
    machine: Machine,
    migration: Migration,
    source: Domain,
    destination: Domain,
    xenstored: Xenstored,
    restored: Guest,
    tmp_path: Path,
) -> None:
    """`xl save`, begun as soon as the guest runs, which does at once what it is asked."""
    stream = tmp_path / "stream"
    asked, asleep = threading.Event(), threading.Event()

    def hear() -> None:
        with suppress(PermissionError):
            if restored.read() == "suspend":
                destination.suspend()
                restored.answer()
                asleep.set()

    def ask(_fields: dict[str, Any]) -> int:
        xenstored.write(restored.path, b"suspend")
        asked.set()
        return int(asleep.wait(60))

    with ThreadPoolExecutor(1) as xl:

        def resume(_fields: dict[str, Any]) -> int:
            destination.resume()
            restored.watch(hear)
            saving.append(xl.submit(saved_by_libxls_own, stream, 2, machine, release, ask))
            # Only when it is asked do the pages begin to come.
            assert asked.wait(60)
            return 1

        saving: list[Future[Done]] = []
        _sent, received = migration.run(resume)
        assert received.result == (0, 0), received.logged
        saved = saving[0].result(60)
    assert saved.result == (0, 0), saved.logged
    again = machine.domain(3)
    assert restore(stream, again, machine, release).result == (0, 0)
    rings = {source.params[PARAM_STORE_PFN], source.params[PARAM_CONSOLE_PFN]}
    assert set(source.differences(again)) <= rings


def test_libxls_own_helper_saves_a_guest_live_while_its_memory_comes(
    release: Release,
    machine: Machine,
    domain: Domain,
    destination: Domain,
    pager: Pager,
    tmp_path: Path,
) -> None:
    """It begins when half of the pages are out, and has taken them for holes when it asks the guest
    to suspend. That waits for the last page, as above; what has been loaded by then is dirty, and
    is sent."""
    pager.do("evict", pfns=list(OUT))
    stream = tmp_path / "stream"

    def suspend(_fields: dict[str, Any]) -> int:
        assert domain.state.log_dirty
        assert domain.state.paged_pages == len(OUT)
        for first in range(OUT.start, OUT.stop, 16):
            pager.do("load", first=first, byte=first % 256, pages=16)
        domain.suspend()
        return 1

    saved = saved_by_libxls_own(stream, 1, machine, release, suspend, XCFlags.LIVE)
    assert saved.result == (0, 0), saved.logged
    assert restore(stream, destination, machine, release).result == (0, 0)
    assert set(destination.pages(Kind.RAM)) >= set(OUT)
    assert not set(domain.differences(destination)) & set(OUT)
