"""Run the drop-in on a machine, as libxl starts it, with either engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tests import xen_structs
from tests.helper.libxl_side import Libxl, cbflags, started
from tests.hypercalls.build import Release
from tests.hypercalls.machine import (
    PAGE,
    PARAM_CONSOLE_PFN,
    PARAM_PAGING_RING_PFN,
    PARAM_STORE_PFN,
    SPECIAL_PFNS,
    Domain,
    Kind,
    Machine,
)
from xen_save_helper.ipc_schema.channel.helper_arguments import HelperArguments
from xen_save_helper.ipc_schema.channel.helper_request import Engine, HelperRequest
from xen_save_helper.ipc_schema.channel.messages import Dialect, Operation, PrecopyPolicy, XCFlags

DIALECT = Dialect.SERIES
"""The dialect that has precopy_policy."""


@dataclass
class Done:
    """How a helper's work ended, and its messages on the way."""

    retval: int = -1
    errnoval: int = 0
    said: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    logged: list[str] = field(default_factory=list)
    printed: str = ""
    """On stderr."""

    @property
    def result(self) -> tuple[int, int]:
        return self.retval, self.errnoval


Answer = Callable[[dict[str, Any]], int | None]


def run(libxl: Libxl, **answers: Answer) -> Done:
    """Answer each callback until the helper is complete, and see it exit."""
    done = answered(libxl, **answers)
    status, done.printed = libxl.exit_status(), libxl.errors()
    assert status == 0, done.printed
    return done


def answered(libxl: Libxl, **answers: Answer) -> Done:
    """Answer each callback, `complete` too; None leaves one unanswered."""
    done = Done()
    while True:
        lines, (name, fields) = libxl.hear_logs()
        done.logged += [line["formatted"] for line in lines]
        if name == "complete":
            done.retval, done.errnoval = fields["retval"], fields["errnoval"]
            libxl.answer(0)
            return done
        done.said.append((name, fields))
        answer = answers[name](fields)
        if answer is not None:
            libxl.answer(answer)


@contextmanager
def _helper(
    arguments: HelperArguments,
    release: Release,
    machine: Machine,
    engine: Engine,
    settings: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Libxl]:
    environment = {
        **release.environment,
        **machine.environment,
        "XEN_SAVE_HELPER_ENGINE": engine.value,
        **settings,
    }
    with started(arguments, "xen", loader=release.loader, **environment) as libxl:
        yield libxl


def save(
    stream: Path,
    domain: Domain,
    machine: Machine,
    release: Release,
    engine: Engine = Engine.LIBXENGUEST,
    *,
    policy: Answer | None = None,
    sparse: bool = False,
) -> Done:
    """Save into a file, live if there is a policy."""
    names = ["suspend", "switch_qemu_logdirty", *(["precopy_policy"] if policy else [])]

    def suspend(_fields: dict[str, Any]) -> int:
        domain.suspend()
        return 1

    with stream.open("wb") as file:
        xcflags = XCFlags.LIVE if policy else 0
        request = HelperRequest(Operation.SAVE, domain.domid, file.fileno(), xcflags=xcflags)
        arguments = HelperArguments(request, DIALECT, cbflags(DIALECT, *names))
        settings = {"XEN_SAVE_HELPER_SPARSE": str(int(sparse))}
        with _helper(arguments, release, machine, engine, settings) as libxl:
            return run(
                libxl,
                suspend=suspend,
                switch_qemu_logdirty=lambda _fields: 0,
                precopy_policy=policy or (lambda _fields: PrecopyPolicy.STOP_AND_COPY),
            )


def restore(
    stream: Path,
    domain: Domain,
    machine: Machine,
    release: Release,
    engine: Engine = Engine.LIBXENGUEST,
) -> Done:
    with stream.open("rb") as file:
        request = HelperRequest(
            Operation.RESTORE, domain.domid, file.fileno(), store_evtchn=11, console_evtchn=13
        )
        arguments = HelperArguments(request, DIALECT, cbflags(DIALECT, "restore_results"))
        with _helper(arguments, release, machine, engine) as libxl:
            return run(libxl, restore_results=lambda _fields: None)


def guest(machine: Machine, domid: int, ram: Sequence[range], version: int = 0) -> Domain:
    """Make a running guest: RAM with contents, xenstore's and the console's rings, a context whose
    page tables are in the second page of RAM."""
    domain = machine.domain(domid)
    rings = (SPECIAL_PFNS + 1, SPECIAL_PFNS + 2)
    for pfns in (*ram, rings):
        domain.set_kind(pfns)
        domain.fill(pfns, version)
    domain.set_kind([SPECIAL_PFNS + 7], Kind.SPECIAL)
    domain.state.params[PARAM_STORE_PFN], domain.state.params[PARAM_CONSOLE_PFN] = rings
    domain.state.params[PARAM_PAGING_RING_PFN] = SPECIAL_PFNS
    domain.context = xen_structs.context(xen_structs.cpu(0, cr3=(ram[0].start + 1) * PAGE))
    domain.tsc = (1, 123456789012, 2_400_000, 3)
    domain.resume()
    return domain
