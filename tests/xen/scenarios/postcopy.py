"""Memory paging and postcopy, on a Xen that is built with it, and on one that is not."""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import statistics
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.xen.dom0.commands import run, wait_until
from tests.xen.dom0.gate import Gate
from tests.xen.dom0.lab import COMMAND_SECONDS, DEFAULT_ENGINE, LIBXL
from tests.xen.scenarios.scenario import BOOKWORM, NONE, TRIXIE, Scenario
from tests.xen.scenarios.toolstack import (
    PATIENCE,
    RECEIVE,
    RUNNING_AT_SOURCE,
    nothing_is_left,
    succeeds,
    toolstack,
)
from xen_save_helper.helper.hypervisors.interface import PAGE_SIZE
from xen_save_helper.helper.hypervisors.xen.domain import XenDomain
from xen_save_helper.ipc_schema.control import Role
from xen_save_helper.ipc_schema.control_directory import DEFAULT_DIRECTORY
from xen_save_helper.ipc_schema.streams.page_lists import contents_mask
from xen_save_helper.ipc_schema.streams.pfns import pfns_of, run_of, selected
from xen_save_helper.toolstack.helpers.control import processes

if TYPE_CHECKING:
    from tests.xen.dom0.guest import Guest
    from tests.xen.dom0.lab import Lab
    from xen_save_helper.helper.hypervisors.interface import Paging
    from xen_save_helper.ipc_schema.control import Identity

_AT_ONCE: Final = 1024
_ONE_ROUND: Final = {
    "XEN_SAVE_HELPER_MAX_ITERATIONS": "1",
    "XEN_SAVE_HELPER_DIRTY_THRESHOLD": "0",
}
BY_POSTCOPY: Final = {**_ONE_ROUND, "XEN_SAVE_HELPER_POSTCOPY": "127.0.0.1"}
PAGES_SECONDS: Final = 240
_LARGE_MIB: Final = 512
_OF_A_RESTORE: Final = ("memory and state", "state before postcopy")
_PAIRS: Final = 2
_HALF: Final = 50
_UNDER_WAY: Final = 6 << 20
"""What is sent after the gate holds the stream: a batch of 1,024 pages, and a pipe of 1 MiB."""
_ON_DEMAND_SECONDS: Final = 15.0
"""How long a guest gets only the pages that it has asked for."""


class _Pager:
    """Brings evicted pages back, from `pages`, by pfn."""

    def __init__(self, paging: Paging, pages: dict[int, bytes]) -> None:
        self._paging = paging
        self._pages = pages
        self._poll = select.poll()
        self._poll.register(paging.fileno(), select.POLLIN)
        self.faults = 0

    @property
    def left(self) -> int:
        return len(self._pages)

    def serve(self, seconds: float) -> None:
        """Serve the requests that come in the meantime."""
        end = time.monotonic() + seconds
        while True:
            left = max(0.0, end - time.monotonic())
            if self._poll.poll(left * 1000):
                self._take()
            elif not left:
                return

    def _take(self) -> None:
        for request in self._paging.take_requests():
            data = self._pages.pop(request.pfn, None)
            if data is None or request.dropped:
                self._paging.resume([request])
            else:
                self.faults += 1
                self._paging.load(request.pfn, memoryview(data))

    def load_all(self) -> None:
        for pfn in sorted(self._pages):
            self.serve(0)
            if (data := self._pages.pop(pfn, None)) is not None:
                self._paging.load(pfn, memoryview(data))


def paged_out_and_in(lab: Lab, kind: str) -> None:
    """All memory of a running guest is evicted, except what Xen itself needs, and brought back: on
    demand first, then the rest. The guest counts on, and finds its memory as it was."""
    guest = lab.guest(kind)
    run(["xl", "pause", guest.name])
    with closing(XenDomain(lab.domid(guest))) as domain:
        needed = domain.needed_at_once()
        lab.figure("pages that must stay", needed.tolist())
        assert needed, "Linux has a struct vcpu_info"
        pages = contents(domain, set(needed))
        with closing(domain.mem_paging_enable()) as paging:
            try:
                paging.evict(pfns_of(pages))
            except OSError as refused:
                # Once a guest has run, Xen has mapped pages of it that it uses itself: here the
                # vCPU's control block of event channels. All others are out.
                lab.figure("refused first", str(refused))
                if refused.errno != errno.EBUSY:
                    raise
            evicted = domain.getinfo().paged_pages
            lab.figure("evicted", evicted)
            assert evicted >= 0.95 * guest.octets // PAGE_SIZE
            pager = _Pager(paging, pages)
            run(["xl", "unpause", guest.name])
            pager.serve(_ON_DEMAND_SECONDS)
            lab.figure("faults on demand", pager.faults)
            lab.figure("still out then", pager.left)
            assert pager.faults
            assert pager.left
            pager.load_all()
            pager.serve(1.0)
            assert not domain.getinfo().paged_pages
    guest.goes_on()
    lab.save(guest, lab.directory / "saved")
    lab.restore(guest, lab.directory / "saved")


def contents(domain: XenDomain, needed: set[int]) -> dict[int, bytes]:
    """All pages except `needed`, by pfn, and those that hold a ring or the like."""
    rings = {domain.hvm_param_get(index) for index in (1, 5, 6, 11, 17, 27, 28, 29)}
    pages = {}
    end = domain.maximum_gpfn() + 1
    for first in range(0, end, _AT_ONCE):
        pfns = run_of(first, min(_AT_ONCE, end - first))
        pfns = selected(pfns, contents_mask(domain.get_pfn_type_batch(pfns)))
        views = domain.foreign_map(pfns) if pfns else []
        octets = b"".join(views)
        domain.foreign_unmap(views)
        for number, pfn in enumerate(pfns):
            if pfn not in needed and pfn not in rings:
                pages[pfn] = octets[number * PAGE_SIZE : (number + 1) * PAGE_SIZE]
    return pages


def migrates(lab: Lab, kind: str, rounds: int) -> None:
    """Our controllers at both ends: the guest leaves all of its memory behind, or what it writes
    during the rounds. It runs before all its memory has arrived, and counts on."""
    guest = lab.guest(kind)
    before = lab.domid(guest)
    options = ("--postcopy", "--max-rounds", str(rounds), "--json", "--events", lab.trace)
    done = succeeds("migrate", guest.name, "--to", RECEIVE, *options, *PATIENCE)
    assert lab.engines_done() == [DEFAULT_ENGINE] * 2
    # While it arrived, it still had the name of the guest at the source.
    succeeds("recover", guest.name)
    assert lab.assert_only(guest) != before
    guest.goes_on()
    result = json.loads(done.output[done.output.index("{") : done.output.rindex("}") + 1])
    assert result["postcopy_transitioned"] == "done", result
    postcopy = result["postcopy"]
    lab.figure("pages left behind", postcopy["pages"])
    lab.figure("faults", postcopy["faults"])
    if not rounds:
        assert postcopy["pages"] >= 0.9 * guest.octets // PAGE_SIZE
        assert postcopy["faults"]
    nothing_is_left()


def refused(lab: Lab) -> None:
    """Debian's Xen has no memory paging, which is reported before the guest is touched."""
    guest = lab.guest("pvh")
    domid = lab.domid(guest)
    done = toolstack(
        "migrate", guest.name, "--to", RECEIVE, "--postcopy", *PATIENCE, limit=COMMAND_SECONDS
    )
    assert done.status == RUNNING_AT_SOURCE, done.output
    assert "not built with memory paging (CONFIG_MEM_PAGING)" in done.output
    lab.assert_runs_on(guest, domid)
    nothing_is_left()


def by_xl(lab: Lab, kind: str) -> None:
    """Under an unmodified `xl` at both ends, which ends while pages are still to come: a page
    server and a pager deliver them. The guest counts on, and finds its memory as it was."""
    guest = lab.guest(kind)
    before = lab.domid(guest)
    done = lab.start_migrate(guest, env=BY_POSTCOPY).end(COMMAND_SECONDS)
    assert done.status == 0
    (kept,) = lab.events("pages_kept")
    lab.figure("pages left behind", kept["pages"])
    assert kept["pages"]
    succeeds("postcopy", "wait", "--timeout", str(PAGES_SECONDS))
    wait_until("the pager ends", lambda: not lab.running("xen_save_helper.helper"), 30)
    assert lab.assert_only(guest) != before
    guest.goes_on()
    lab.migrate(guest)


def left_by(lab: Lab, guest: Guest, how: str, share: int, name: str) -> None:
    """Migrate it by an unmodified `xl`, with `share` per cent of its memory left when precopy ends:
    the stream is held in the first round, and told meanwhile how it shall go on, by `postcopy` or
    by `stop-and-copy`. `name` is the gate's."""
    # By its domid: the guest that arrives may have the same name by then.
    domid = lab.domid(guest)
    gate = Gate(lab.directory / name)
    octets = max(1, guest.octets * (100 - share) // 100 - _UNDER_WAY)
    to = gate.command(octets, "xl migrate-receive")
    # Over a link what is left goes by postcopy, whatever is asked for.
    env = BY_POSTCOPY if how == "postcopy" else _ONE_ROUND
    program = lab.start_migrate(guest, receive=to, env=env)
    wait_until("the stream is held", lambda: gate.holds, COMMAND_SECONDS)
    succeeds("switch", str(domid), how)
    gate.open()
    assert program.end(COMMAND_SECONDS).status == 0


def downtime(lab: Lab, kind: str) -> None:
    """How long a guest stands still of which half is left when precopy ends, by stop-and-copy and
    by postcopy, in turns: a guest that writes all the time, whom log-dirty mode slows down so much
    in the emulator that little else would be left of it. Figures only."""
    guest = lab.guest(kind, memory=_LARGE_MIB, cmdline=f"touched={_LARGE_MIB // 4}")
    stood: dict[str, list[float]] = {"stop-and-copy": [], "postcopy": []}
    parts: dict[str, list[float]] = {"suspend": [], "state": [], "lists and evictions": []}
    for pair in range(_PAIRS):
        for how, times in stood.items():
            lab.trace.unlink(missing_ok=True)
            left_by(lab, guest, how, _HALF, f"gate-{how}-{pair}")
            succeeds("postcopy", "wait", "--timeout", str(PAGES_SECONDS))
            wait_until("the pager ends", lambda: not lab.running("xen_save_helper.helper"), 30)
            phases = {(event["name"], event["state"]): event["t"] for event in lab.events("phase")}
            (receiver,) = {
                event["pid"] for event in lab.events("phase") if event["name"] in _OF_A_RESTORE
            }
            # libxl is told so, and lets the guest run.
            there = next(event["t"] for event in lab.events("complete") if event["pid"] == receiver)
            suspend = "suspend for postcopy" if how == "postcopy" else "suspend"
            begun = phases[suspend, "begin"]
            times.append(round(there - begun, 2))
            if how == "postcopy":
                listed = phases["list of postcopy pages", "begin"]
                suspended = phases[suspend, "end"]
                for part, seconds in zip(
                    parts,
                    (suspended - begun, listed - suspended, there - listed),
                    strict=True,
                ):
                    parts[part].append(round(seconds, 2))
                ahead = sum(event["pages"] for event in lab.events("postcopy_pfns_ahead"))
                lab.figure("listed ahead, pages", ahead)
            guest.goes_on()
    lab.figure("stands still, s", stood)
    lab.figure("of postcopy's, s", parts)
    medians = {name: statistics.median(seconds) for name, seconds in stood.items()}
    lab.figure("ratio", round(medians["postcopy"] / medians["stop-and-copy"], 2))


def _stands(lab: Lab, guest: Guest) -> tuple[int, int]:
    """Migrate it by postcopy, and stop its page server before its last page has gone: the pids of
    that and of the pager."""
    program = lab.start_migrate(guest, env=BY_POSTCOPY)
    servers: list[Identity] = []

    def serves() -> bool:
        there = processes(Path(DEFAULT_DIRECTORY))
        servers[:] = [one for one in there if one.role is Role.PAGE_SERVER]
        return bool(servers and lab.events("pages_kept"))

    # Often, but it must leave the processor to those who work.
    wait_until("pages are kept", serves, COMMAND_SECONDS, 0.03)
    server = servers[0].pid
    os.kill(server, signal.SIGSTOP)
    assert program.end(COMMAND_SECONDS).status == 0
    wait_until("the pager goes on alone", lambda: bool(lab.events("pager")), 60)
    pager = lab.events("pager")[0]["pid"]
    (row,) = _status(lab.domid(guest))
    lab.figure("pages missing", row["pages_left"])
    assert row["pages_left"] > 0
    return server, pager


def _status(domid: int) -> list[dict[str, Any]]:
    done = toolstack("postcopy", "status", str(domid), "--json")
    rows: list[dict[str, Any]] = json.loads(done.output[done.output.index("[") :])
    return rows


def saved_meanwhile(lab: Lab, kind: str) -> None:
    """libxl's own helper would save a guest's missing pages as holes. So the guest does not see
    that it shall suspend before they are all there."""
    guest = lab.guest(kind)
    server, _pager = _stands(lab, guest)
    file = lab.directory / "saved"
    saving = lab.start_xl(["save", guest.name, file], LIBXL)
    wait_until("it is asked to suspend", lambda: bool(lab.events("suspend_held")), 60)
    assert not saving.wait(5)
    os.kill(server, signal.SIGCONT)
    assert saving.end(COMMAND_SECONDS).status == 0
    lab.verify_stream(file)
    lab.restore(guest, file, LIBXL)


def page_server_killed(lab: Lab, kind: str) -> None:
    """The guest is lost then, which is said at both ends; its pager ends with its domain."""
    guest = lab.guest(kind)
    server, pager = _stands(lab, guest)
    os.kill(server, signal.SIGKILL)
    domid = lab.domid(guest)
    wait_until(
        "the pager knows", lambda: "nobody listens" in _status(domid)[0]["trouble"], 60, every=1
    )
    (page_server,) = (row for row in _listed() if row["role"] == "page-server")
    assert "its process has died" in page_server["lost"]
    done = toolstack("postcopy", "wait", str(page_server["domid"]))
    assert done.status == 1
    assert lab.xl(["destroy", guest.name]).status == 0
    wait_until("the pager ends", lambda: not os.path.exists(f"/proc/{pager}"), 60)
    wait_until("the domain is gone", lambda: not lab.domains(), 60)
    for row in _listed():
        succeeds("postcopy", "abandon", str(row["domid"]))
    assert _listed() == []


def pager_killed(lab: Lab, kind: str) -> None:
    """Another one takes its place, while vCPUs wait for what the first was to bring."""
    guest = lab.guest(kind, vcpus=2)
    server, pager = _stands(lab, guest)
    domid = lab.domid(guest)
    wait_until("a vCPU waits", lambda: _status(domid)[0]["faults"], 60, every=1)
    os.kill(pager, signal.SIGKILL)
    wait_until("it has died", lambda: "has died" in _status(domid)[0]["lost"], 60, every=1)
    os.kill(server, signal.SIGCONT)
    succeeds("postcopy", "restart", str(domid), "--events", lab.trace)
    succeeds("postcopy", "wait", "--timeout", str(PAGES_SECONDS))
    wait_until("the pager ends", lambda: not lab.running("xen_save_helper.helper"), 60)
    (again,) = (event for event in lab.events("pager_again") if event["process"] == "helper")
    lab.figure("pages that the second one brought", again["missing"])
    lab.assert_only(guest)
    guest.goes_on()
    lab.migrate(guest)


def over_a_link(lab: Lab, kind: str) -> None:
    """Our controllers at both ends, which end while pages are still to come."""
    guest = lab.guest(kind)
    before = lab.domid(guest)
    options = ("--postcopy", "--link", "127.0.0.1", "--max-rounds", "1", "--json")
    done = succeeds(
        "migrate", guest.name, "--to", RECEIVE, *options, "--events", lab.trace, *PATIENCE
    )
    result = json.loads(done.output[done.output.index("{") : done.output.rindex("}") + 1])
    assert result["outcome"] == "success"
    lab.figure("pages left behind", result["postcopy"]["pages"])
    wait_until("the pager ends", lambda: not lab.running("xen_save_helper.helper"), 60)
    assert lab.assert_only(guest) != before
    guest.goes_on()
    nothing_is_left()


def _listed() -> list[dict[str, Any]]:
    done = succeeds("postcopy", "list", "--json")
    rows: list[dict[str, Any]] = json.loads(done.output[done.output.index("[") :])
    return rows


SCENARIOS: Final = (
    Scenario(
        "paged-out-and-in-pvh",
        partial(paged_out_and_in, kind="pvh"),
        BOOKWORM,
        TRIXIE,
        shadow=True,
    ),
    Scenario(
        "toolstack-postcopy-pvh",
        partial(migrates, kind="pvh", rounds=1),
        BOOKWORM,
        TRIXIE,
        shadow=True,
    ),
    Scenario(
        "toolstack-postcopy-of-all-pvh",
        partial(migrates, kind="pvh", rounds=0),
        shadow=True,
    ),
    Scenario("toolstack-postcopy-refused-pvh", refused),
    Scenario("xl-postcopy-pvh", partial(by_xl, kind="pvh"), BOOKWORM, TRIXIE, shadow=True),
    Scenario("xl-postcopy-hvm", partial(by_xl, kind="hvm"), shadow=True),
    Scenario(
        "xl-postcopy-downtime-pvh",
        partial(downtime, kind="pvh"),
        NONE,
        BOOKWORM,
        shadow=True,
        limit=3000,
    ),
    Scenario("xl-postcopy-saved-meanwhile-pvh", partial(saved_meanwhile, kind="pvh"), shadow=True),
    Scenario("xl-postcopy-pager-killed-pvh", partial(pager_killed, kind="pvh"), shadow=True),
    Scenario("toolstack-postcopy-link-pvh", partial(over_a_link, kind="pvh"), shadow=True),
    Scenario(
        "xl-postcopy-page-server-killed-pvh",
        partial(page_server_killed, kind="pvh"),
        shadow=True,
    ),
)
