"""The stage of a run: two simulated hosts with one guest, and the commands played on them."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Final, Self

from xen_save_helper.helper.hypervisors.simulated.domain_files import create_host
from xen_save_helper.ipc_schema import variables
from xen_save_helper.ipc_schema.faults import actions as fault_actions
from xen_save_helper.ipc_schema.faults.plan import STAGED, Plan
from xen_save_helper.ipc_schema.faults.points import Side, Who
from xen_save_helper.toolstack.campaign import processes
from xen_save_helper.toolstack.campaign.evidence import (
    NAME,
    Again,
    Ended,
    Event,
    Evidence,
    Guest,
    Mode,
    Outliving,
    Place,
    Scene,
)
from xen_save_helper.toolstack.campaign.onlooker import LonePids, Onlooker, outliving
from xen_save_helper.toolstack.campaign.seen import files_seen, guest_seen
from xen_save_helper.toolstack.faults.guest import arm
from xen_save_helper.toolstack.faults.tunnel import TunnelRelay, trace_to
from xen_save_helper.toolstack.helpers import control
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost
from xen_save_helper.toolstack.limits import Limits

_COMMAND: Final = (sys.executable, "-m", "xen_save_helper.toolstack.commands.main")
_LINK: Final = (sys.executable, "-m", "xen_save_helper.toolstack.faults.link")
_MODE_OPTIONS: Final[Mapping[Mode, tuple[str, ...]]] = {
    Mode.STOP_AND_COPY: ("--max-rounds", "0"),
    Mode.LIVE: ("--max-rounds", "3"),
    # So slow that the guest does fault.
    Mode.POSTCOPY: ("--max-rounds", "1", "--postcopy", "--bandwidth", "16M"),
    # All memory comes by the link, most of it once the guest runs.
    Mode.LINK: ("--max-rounds", "0", "--postcopy", "--link", "127.0.0.1", "--bandwidth", "8M"),
}
_LONGEST_DIRECTORY: Final = 64
"""Bytes of a directory's path that leave room for the name of a socket."""
_RATES: Final = {"random": 4_000.0}
"""Pages a second that a guest writes if its workload's own rate would take a third of the processor
time of a run: each page is still written many times in a round."""
_UNLIMITED: Final = frozenset({Who.CONTROLLER, Who.PAGE_SERVER, Who.PAGER, Who.TUNNEL})
_OF_LINK: Final = _UNLIMITED - {Who.CONTROLLER}
_HEALS_SECONDS: Final = 20.0
"""Seconds in which a connection of a tunnel that stands still is made anew."""
_START_UP_SECONDS: Final = 20.0
"""Seconds for the interpreters of a run to start on a busy machine."""
_CLEAN_SECONDS: Final = 60.0
"""The limit of a command without faults."""


def time_limit(plan: Plan, limits: Limits) -> float:
    """Seconds within which a command must end, however many of its limits it runs into."""
    each: float = sum(asdict(limits).values())
    waits = sum(
        # Nobody limits these; everything else that is late ends at a limit.
        seconds if fault.point.who in _UNLIMITED else min(seconds, each)
        for fault in plan.faults
        if fault.action.kind in fault_actions.WAITS
        for seconds in (float(fault.action.value or 0),)
    )
    heals = 2 * _HEALS_SECONDS * any(fault.point.who in _OF_LINK for fault in plan.faults)
    return each + 3 * limits.abort + limits.handshake + _START_UP_SECONDS + waits + heals


def need_room(directory: Path) -> None:
    """Raises ValueError if the path is too long for a run."""
    if len(os.fsencode(directory)) > _LONGEST_DIRECTORY:
        raise ValueError(
            f"{directory}: no room for a socket's path in it; set TMPDIR to a shorter one"
        )


class RunStage:
    """The stage of a `run.FaultRun`. As a context it ends what was started."""

    def __init__(
        self, plan: Plan, mode: Mode, memory: int, workload: str, directory: Path, limits: Limits
    ) -> None:
        """Raises ValueError for a directory whose path is too long, OSError."""
        directory = directory.absolute()
        need_room(directory)
        self._plan = plan
        self._mode = mode
        self._limits = limits
        self._token = processes.new_token()
        self._temporary = directory / "tmp"
        self._events = directory / "events"
        self._file = directory / "saved" / NAME
        self._target = directory / "tunnel"
        self._tunnel_port = 0
        self._persons: list[Ended] = []
        self._temporary.mkdir(parents=True)
        self._file.parent.mkdir()
        self._hosts: dict[Side, SimulatedHost] = {}
        for side in Side:
            create_host(directory / side.value)
            self._hosts[side] = SimulatedHost(directory / side.value)
        self._source.create_guest(NAME, memory, workload, _RATES.get(workload), plan.seed)
        arm(self._source, self._source.find(NAME), plan)
        self._limit = time_limit(plan, limits)
        self._descriptors = sys.maxsize
        self._lone = LonePids(self._hosts)

    @property
    def _source(self) -> SimulatedHost:
        return self._hosts[Side.SOURCE]

    @property
    def _destination(self) -> SimulatedHost:
        return self._hosts[Side.DESTINATION]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for host in self._hosts.values():
            for row in host.domains():
                with contextlib.suppress(ProcessLookupError):
                    host.destroy(row.domid)
        processes.kill(processes.marked(self._token))

    def play(self) -> Evidence:
        """Play the run to its end."""
        # A receiver's parent continues it first.
        patience = max(self._longest_stop(), self._limits.stopped) + 2.0
        with (
            processes.ending_stopped_controllers(self._token, patience),
            self._tunnel(),
            contextlib.nullcontext() if self._mode is not Mode.LINK else self._onlooker(patience),
        ):
            return self._play()

    def _play(self) -> Evidence:
        (row,) = self._source.domains()
        before = processes.descriptors(row.pid) if row.pid else {}
        self._descriptors = len(before)
        recoveries: list[Ended] = []
        restore = after_save = again = None
        if self._mode is Mode.SAVE:
            command = self._run("save", NAME, str(self._file), host=Side.SOURCE)
        else:
            command = self._run(
                "migrate",
                NAME,
                "--to",
                self._receiver(),
                *_MODE_OPTIONS[self._mode],
                host=Side.SOURCE,
            )
        ends = [self._scene()]
        recoveries += self._recover(ends[-1])
        if self._mode is Mode.SAVE:
            after_save = self._scene(verify=True)
            if after_save.saved and not after_save.places[Side.SOURCE].guests:
                restore = self._run("restore", str(self._file), host=Side.DESTINATION)
                ends.append(self._scene())
                recoveries += self._recover(ends[-1])
        recovered = self._scene(verify=True)
        persons = self._look(recovered)
        last = self._scene(verify=True) if persons else recovered
        if restore is not None and not last.places[Side.DESTINATION].guests:
            again = self._restore_again()
        return Evidence(
            mode=self._mode,
            command=command,
            restore=restore,
            recoveries=tuple(recoveries),
            persons=(*self._persons, *persons),
            after_save=after_save,
            ends=tuple(ends),
            recovered=recovered,
            last=last,
            restored_again=again,
            events=tuple(self._trace()),
            descriptors_before=before,
            limit=self._limit,
        )

    # -- commands -------------------------------------------------------------------------------

    def _arguments(self, host: Side) -> list[str]:
        limits = [f"--limit={name}={value}" for name, value in asdict(self._limits).items()]
        directory = str(self._hosts[host].directory)
        return ["--host", directory, "--events", str(self._events), *limits]

    @contextlib.contextmanager
    def _tunnel(self) -> Iterator[None]:
        """While the tunnel's faults may strike."""
        if not self._plan.of(Who.TUNNEL):
            yield
            return
        with (
            trace_to(self._events) as trace,
            TunnelRelay(self._plan, self._target, trace) as relay,
        ):
            self._tunnel_port = relay.port
            yield

    def _onlooker(self, patience: float) -> Onlooker:
        source, destination = (self._hosts[side].control_dir for side in Side)

        def abandon() -> None:
            self._persons += self._abandon(Side.SOURCE)

        return Onlooker(source, destination, patience, abandon)

    def _receiver(self) -> str:
        """The argument of `migrate --to`: the host, or the link with its faults in front of it."""
        plan = self._plan.part(Who.LINK, Who.TUNNEL)
        if not plan.faults:
            return str(self._destination.directory)
        receive = [
            *_COMMAND,
            "receive",
            *self._arguments(Side.DESTINATION),
            f"--from={self._source.directory}",
        ]
        led = [str(self._tunnel_port), str(self._target)]
        return shlex.join([*_LINK, str(plan), str(self._events), *led, *receive])

    def _environment(self, faults: bool) -> dict[str, str]:
        ours = {
            processes.MARK: self._token,
            "TMPDIR": str(self._temporary),
            "XDG_RUNTIME_DIR": str(self._temporary),
            "XEN_SAVE_HELPER_CONFIG": os.devnull,
        }
        if faults and (plan := self._plan.part(*{*Who} - STAGED)).faults:
            ours[variables.FAULTS] = str(plan)
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("XEN_SAVE_HELPER_")
        }
        return {**inherited, **ours}

    def _run(self, *arguments: str, host: Side, faults: bool = True) -> Ended:
        """One command to its end, or to the end of its limit; with the plan in force, or clean. Its
        output goes into files, which processes that it leaves behind may hold open."""
        name, *rest = arguments
        if faults:
            given, limit = [name, *rest, "--json", *self._arguments(host)], self._limit
        else:
            given = [name, *rest, "--host", str(self._hosts[host].directory)]
            limit = _CLEAN_SECONDS
        started, late = time.monotonic(), False
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            process = subprocess.Popen(
                [*_COMMAND, *given],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=self._environment(faults),
                start_new_session=True,
            )
            try:
                process.wait(limit)
            except BaseException as ended:
                # An interrupted run does not wait for what may never end.
                late = isinstance(ended, subprocess.TimeoutExpired)
                if faults or not late:
                    processes.kill(processes.marked(self._token))
                process.kill()
                process.wait()
                if not late:
                    raise
            seconds = round(time.monotonic() - started, 3)
            return Ended(
                name, process.pid, process.returncode, _text(out), _text(err), seconds, late
            )

    def _longest_stop(self) -> float:
        return max(
            (
                float(fault.action.value or 0)
                for fault in self._plan.faults
                if fault.action.kind is fault_actions.STOP
            ),
            default=0.0,
        )

    def _recover(self, scene: Scene) -> list[Ended]:
        """Run `recover` at each host with a journal, the destination first. It also sweeps, so it
        is the next command even if only temporary files were left."""
        sides = [side for side in (Side.DESTINATION, Side.SOURCE) if scene.places[side].journals]
        if scene.temporary:
            sides = sides or [Side.SOURCE]
        return [self._run("recover", NAME, host=side, faults=False) for side in sides]

    def _look(self, scene: Scene) -> list[Ended]:
        """Do what a person does after `recover` at the source has refused: look at the destination
        and say where the guest is to be."""
        done = []
        there = scene.places[Side.DESTINATION].guest(NAME)
        whole = there is not None and there.runs and there.memory_ok is True
        if scene.outliving.get(Side.DESTINATION):
            done += self._abandon(Side.DESTINATION)
            if there is not None and not whole:
                done.append(self._run("destroy", NAME, host=Side.DESTINATION, faults=False))
        if scene.places[Side.SOURCE].journals:
            kept = self._mode is Mode.LINK and not whole
            way = "--destroy" if there is not None and there.runs and not kept else "--resume"
            done.append(self._run("recover", NAME, way, host=Side.SOURCE, faults=False))
        if scene.outliving.get(Side.SOURCE):
            done += self._abandon(Side.SOURCE)
        return done

    def _abandon(self, side: Side) -> list[Ended]:
        """What outlives a migration at a side, and has not ended meanwhile."""
        return [
            self._run(
                *("postcopy", "abandon", str(one.domid), "--lose-the-guest"),
                host=side,
                faults=False,
            )
            for one in control.processes(self._hosts[side].control_dir)[:1]
        ]

    def _outliving(self) -> dict[Side, tuple[Outliving, ...]]:
        return {
            side: tuple(
                outliving(host.control_dir, one) for one in control.processes(host.control_dir)
            )
            for side, host in self._hosts.items()
        }

    def _restore_again(self) -> Again:
        """Restore from the file without faults: it must be as good as it was."""
        command = self._run("restore", str(self._file), host=Side.DESTINATION, faults=False)
        return Again(command, self._guests(self._destination, verify=True))

    # -- what is there --------------------------------------------------------------------------

    def _scene(self, *, verify: bool = False) -> Scene:
        began = time.monotonic()
        lone = self._lone
        left = processes.left_over(
            self._token, lambda: self._guest_pids() | lone.found(), self._patience
        )
        lingered = time.monotonic() - began
        return Scene(
            outliving=self._outliving(),
            places={
                # A guest that waits for pages does not answer.
                side: Place(
                    self._guests(host, verify=verify and not lone.of(side)), files_seen(host)
                )
                for side, host in self._hosts.items()
            },
            processes=tuple(map(str, left)),
            temporary=(
                *sorted(str(path.name) for path in self._temporary.iterdir()),
                *sorted(path.name for path in self._file.parent.iterdir() if path != self._file),
            ),
            saved=self._file.exists(),
            lingered=round(lingered, 3),
        )

    @property
    def _patience(self) -> float:
        """Seconds for processes to end whose controller has ended: a helper notices at once, a
        receiver ends its helper first."""
        limits = self._limits
        heals = _HEALS_SECONDS if self._mode is Mode.LINK else 0.0
        return limits.sender_silence + 4 * limits.abort + 2 + heals

    def _guest_pids(self) -> set[int]:
        return {row.pid for host in self._hosts.values() for row in host.domains() if row.pid}

    def _guests(self, host: SimulatedHost, *, verify: bool) -> tuple[Guest, ...]:
        # Nothing is compared with the descriptors of a guest at the destination.
        most = self._descriptors if host is self._source else sys.maxsize
        return tuple(guest_seen(host, row, most, verify=verify) for row in host.domains())

    def _trace(self) -> Iterator[Event]:
        """Yield the whole lines; none if nothing has begun."""
        if not self._events.exists():
            return
        text = self._events.read_text()
        for line in text[: text.rfind("\n") + 1].splitlines():
            event: dict[str, Any] = json.loads(line)
            yield event


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")
