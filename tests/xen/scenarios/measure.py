"""Our helper beside libxl's own: what they write of the same memory, and what it costs.

Modules that take long to import are imported where they are used: each scenario's process loads
this one.
"""

from __future__ import annotations

import os
import statistics
import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from tests.xen.dom0.commands import wait_until
from tests.xen.dom0.guest import KINDS
from tests.xen.dom0.lab import LIBXL, OURS, Helper
from tests.xen.scenarios.scenario import BOOKWORM, NONE, Scenario
from xen_save_helper.helper.hypervisors import XEN
from xen_save_helper.toolstack.hosts import open_host

if TYPE_CHECKING:
    from tests.xen.dom0.guest import Guest
    from tests.xen.dom0.lab import Lab
    from xen_save_helper.toolstack.helpers.request import HelperProgram, HelperResult
    from xen_save_helper.toolstack.inspect.walk import StreamEntry

SUSPEND_SECONDS: Final = 60
PAIRS: Final = 3
MEASURED_MIB: Final = 384
MOST: Final = 1.3
"""How many times as long as libxl's helper ours may take, by the median of the pairs."""
_SAMPLE_SECONDS: Final = 0.25
TIME_STAMPS: Final = {
    ("X86_TSC_INFO", 0): {"X86_TSC_INFO nsec": range(8, 16)},
    ("HVM_CONTEXT", 2): {"HVM_CONTEXT CPU tsc": range(1008, 1016)},
    ("HVM_CONTEXT", 12): {
        "HVM_CONTEXT HPET main counter": range(240, 248),
        "HVM_CONTEXT HPET comparator 0": range(264, 272),
        "HVM_CONTEXT HPET comparator 1": range(296, 304),
        "HVM_CONTEXT HPET comparator 2": range(328, 336),
    },
    ("HVM_CONTEXT", 13): {"HVM_CONTEXT PM timer, and that it has wrapped": range(5)},
}
"""What may differ: fields that depend on the time of the save, since Xen updates them then
(hpet_save, acpi_save). By record, and in an HVM context by Xen's type of the entry (structs
hvm_hw_cpu, hvm_hw_hpet, hvm_hw_pmtimer): names, and their bytes in the body."""

_MAY_DIFFER: Final = {name for fields in TIME_STAMPS.values() for name in fields}
_RECORD_HEADER: Final = 8
_HVM_ENTRY: Final = struct.Struct("=HHI")


def identical_streams(lab: Lab, kind: str) -> None:
    """A guest that is suspended once is saved by libxl's helper and by ours, both under our
    controller: the libxc streams are the same, except for TIME_STAMPS."""
    import asyncio

    from xen_save_helper.ipc_schema.channel.messages import Dialect
    from xen_save_helper.toolstack.helpers.request import OwnHelper, PipeHelper
    from xen_save_helper.toolstack.hosts.interface import SuspendState

    guest = lab.guest(kind)
    domid = lab.domid(guest)
    host = open_host(XEN)
    request = host.suspend_request(domid)
    wait_until(
        "the guest suspends", lambda: request.state() is SuspendState.SUSPENDED, SUSPEND_SECONDS
    )
    request.close()
    helpers: dict[str, HelperProgram] = {
        "libxl": PipeHelper(LIBXL.program, Dialect.MAINLINE),
        "ours": OwnHelper(),
    }
    files = {}
    for name, program in helpers.items():
        files[name] = lab.directory / name
        with open(files[name], "wb") as out:
            result = asyncio.run(_save(domid, out.fileno(), program))
        assert (result.rc, result.retval) == (0, 0), result.reason
    host.resume(domid)
    guest.goes_on()
    differing = sorted(set(differing_fields(files["libxl"], files["ours"])))
    lab.figure("octets", files["ours"].stat().st_size)
    lab.figure("differing", differing)
    assert set(differing) <= _MAY_DIFFER, f"the streams differ in {differing}"


async def _save(domid: int, fd: int, program: HelperProgram) -> HelperResult:
    """Let a helper save a domain that is suspended already, so that its callbacks have nothing to
    do."""
    import asyncio

    from xen_save_helper.ipc_schema.channel.helper_request import HelperRequest
    from xen_save_helper.ipc_schema.channel.messages import Operation
    from xen_save_helper.ipc_schema.trace import Trace
    from xen_save_helper.toolstack.helpers.supervisor import SaveHelper
    from xen_save_helper.toolstack.limits import Limits

    ended: asyncio.Future[HelperResult] = asyncio.get_running_loop().create_future()
    request = HelperRequest(Operation.SAVE, domid, fd, hypervisor=XEN)

    def suspend() -> None:
        helper.async_callback_done(1)

    def switch_qemu_logdirty(domid: int, enable: int) -> None:
        helper.async_callback_done(0)

    helper = SaveHelper(
        request,
        {"suspend": suspend, "switch_qemu_logdirty": switch_qemu_logdirty},
        ended.set_result,
        limits=Limits(),
        trace=Trace("controller"),
        program=program,
    )
    helper.start()
    return await ended


def differing_fields(one: Path, other: Path) -> Iterator[str]:
    """The record of each byte that differs, and a name for its place in it."""
    from xen_save_helper.toolstack.inspect.summary import Summary
    from xen_save_helper.toolstack.inspect.walk import inspect

    first, second = one.read_bytes(), other.read_bytes()
    if len(first) != len(second):
        yield f"length: {len(first)} and {len(second)} octets"
        return
    with open(one, "rb") as file:
        entries = list(inspect(file, Summary()))
    for entry, following in zip(entries, [*entries[1:], None], strict=True):
        end = len(first) if following is None else following.offset
        if first[entry.offset : end] == second[entry.offset : end]:
            continue
        for offset in range(entry.offset, end):
            if first[offset] != second[offset]:
                yield _field(entry, first, offset)


def _field(entry: StreamEntry, stream: bytes, offset: int) -> str:
    body = entry.offset + _RECORD_HEADER
    kind, at = 0, body
    if entry.name == "HVM_CONTEXT" and offset >= body:
        kind, at = _hvm_entry(stream, body, offset)
    for name, octets in TIME_STAMPS.get((entry.name, kind), {}).items():
        if offset - at in octets:
            return name
    return f"{entry.name} type {kind} octet {offset - at}"


def _hvm_entry(stream: bytes, body: int, offset: int) -> tuple[int, int]:
    """The entry that `offset` is in, of an HVM context, which is a list of Xen's own entries
    (struct hvm_save_descriptor, then as many bytes as it says): its type, and the offset of its
    bytes."""
    at = body
    while True:
        kind, _instance, length = _HVM_ENTRY.unpack_from(stream, at)
        at += _HVM_ENTRY.size
        if offset < at + length:
            return kind, at
        at += length


class Cost(NamedTuple):
    """One `xl save`: its seconds, the helper's peak memory in KiB, and when its process began."""

    seconds: float
    peak: int
    started: float


def cost_ratio(lab: Lab) -> None:
    """`xl save` with libxl's helper and with ours, in turns, of a guest with enough memory; each
    goes first in every other pair, so that the order favours neither. This gives figures only: a
    busy machine makes no scenario fail."""
    guest = lab.guest("pvh", memory=MEASURED_MIB)
    costs: dict[Helper, list[Cost]] = {LIBXL: [], OURS: []}
    for pair in range(PAIRS):
        for helper in (LIBXL, OURS) if pair % 2 == 0 else (OURS, LIBXL):
            costs[helper].append(_cost(lab, guest, helper))
    pairs = list(zip(costs[OURS], costs[LIBXL], strict=True))
    times = [ours.seconds / theirs.seconds for ours, theirs in pairs]
    peaks = [ours.peak / theirs.peak for ours, theirs in pairs]
    lab.figure("time ratios", [round(time, 2) for time in times])
    ratio = statistics.median(times)
    lab.figure("median time ratio", round(ratio, 2))
    lab.figure(f"above {MOST}", "YES" if ratio > MOST else "no")
    lab.figure("median memory ratio", round(statistics.median(peaks), 2))
    for name, helper in (("libxl", LIBXL), ("ours", OURS)):
        median = statistics.median(cost.seconds for cost in costs[helper])
        lab.figure(f"{name} s", round(median, 2))
        lab.figure(f"{name} KiB", max(cost.peak for cost in costs[helper]))
    for what, seconds in _where_it_goes(lab, [cost.started for cost in costs[OURS]]).items():
        lab.figure(f"ours, {what} s", round(seconds, 2))
    guest.goes_on()


def _where_it_goes(lab: Lab, started: list[float]) -> dict[str, float]:
    """Medians over our helper's runs, in seconds, from its trace. `started` are the times at which
    its processes began."""
    begun, engine, ended = (
        [float(event["t"]) for event in lab.events(name)]
        for name in ("start", "engine", "complete")
    )
    parts = {
        "interpreter": zip(begun, started, strict=True),
        "Xen's libraries": zip(engine, begun, strict=True),
        "libxc with callbacks": zip(ended, engine, strict=True),
    }
    callbacks = sum(float(event["seconds"]) for event in lab.events("callback"))
    return {
        **{
            what: statistics.median(later - earlier for later, earlier in times)
            for what, times in parts.items()
        },
        "callbacks": callbacks / len(started),
    }


def _cost(lab: Lab, guest: Guest, helper: Helper) -> Cost:
    """Save the guest and let it run on: a restore in between would take longer than the save."""
    file = lab.directory / "measured"
    program = lab.start_xl(["save", "-c", guest.name, file], helper)
    peak, started = 0, 0.0
    while not program.wait(_SAMPLE_SECONDS):
        for pid in _children(program.pid):
            peak = max(peak, _peak(pid))
            started = started or _started(pid)
    done = program.end(limit=1)
    assert done.status == 0
    file.unlink()
    return Cost(done.seconds, peak, started)


def _children(pid: int) -> list[int]:
    """The only child of xl, which is its helper."""
    try:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _started(pid: int) -> float:
    """When a process began, in seconds of the trace's clock; 0 if it has gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def _peak(pid: int) -> int:
    """VmHWM in KiB; 0 if the process has gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


SCENARIOS: Final = (
    *(
        Scenario(f"identical-streams-{kind}", partial(identical_streams, kind=kind))
        for kind in KINDS
    ),
    Scenario("cost-ratio-pvh", cost_ratio, NONE, BOOKWORM, limit=900),
)
