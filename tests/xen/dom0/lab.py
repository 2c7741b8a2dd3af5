"""What a scenario works with: guests, and `xl` with either helper."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.xen.dom0 import clean_up, kept_guests
from tests.xen.dom0.commands import Ended, Program, run, wait_until
from tests.xen.dom0.guest import CONSOLES, GOES_ON_SECONDS, Guest
from tests.xen.dom0.slow_link import over_slow_link

XEN_BIN: Final = Path(os.environ.get("RIG_XEN_BIN", "/usr/lib/xen-4.17/bin"))


@dataclass(frozen=True)
class Helper:
    """What libxl starts for a save or a restore: libxl's own helper, or ours. Our helper uses the
    given engine, or its default if none is given."""

    program: Path
    engine: str = ""

    @property
    def environment(self) -> dict[str, str | None]:
        """The variables that make libxl start it; None stands for a variable that must not be
        set."""
        return {
            "LIBXL_SAVE_HELPER": None if self == LIBXL else str(self.program),
            "XEN_SAVE_HELPER_ENGINE": self.engine or None,
        }


LIBXL: Final = Helper(XEN_BIN / "libxl-save-helper")
"""libxl's own helper."""

DEFAULT_ENGINE: Final = "own"
OURS: Final = Helper(Path("/usr/local/bin/xen-save-helper"))
OURS_LIBXENGUEST: Final = Helper(OURS.program, "libxenguest")
ENGINES: Final = (OURS, OURS_LIBXENGUEST)
"""Our helper with each of its engines, for HVM and PVH guests."""

COMMAND_SECONDS: Final = 600
"""The limit of a command that sends a guest or builds one: several times what it usually takes,
since the computer that emulates this one may be busy."""

MISSING: Final = "CPU features"
"""The beginning of our helper's message about a guest that arrives, if the guest was offered more
than this host has, and if our helper cannot know."""

GIVEN: Final = Path("/host/given")
HANDED_OVER: Final = "handed-over"
"""The name among a scenario's results."""

_LOGS: Final = (CONSOLES, Path("/var/log/xen"))


def xen_version() -> str:
    """The release of the running hypervisor, such as "4.17.5"."""
    version = Path("/sys/hypervisor/version")
    parts = [(version / name).read_text().strip() for name in ("major", "minor", "extra")]
    return f"{parts[0]}.{parts[1]}{parts[2]}"


@dataclass(frozen=True)
class DomainRow:
    """A line of `xl list`."""

    name: str
    domid: int
    memory: int
    state: str


class Lab:
    """The lab of one scenario: its guests have names of their own, and its results go to one
    directory."""

    def __init__(self, results: Path) -> None:
        self.results = results
        self.directory = Path("/tmp/lab")
        self.directory.mkdir(exist_ok=True)
        self.trace = self.directory / "events"
        """The file to which our helpers append their events."""
        self.given = GIVEN
        """The directory of what the preceding scenario has handed over."""
        self.handed_over = results / HANDED_OVER
        """The directory of what the next scenario gets."""
        self._programs: list[Program] = []
        self._figures: dict[str, Any] = {}
        self._made = 0

    def guest(
        self, kind: str, memory: int = 0, cmdline: str = "", dirty: int = 0, vcpus: int = 1
    ) -> Guest:
        """Create a guest (see `Guest` for the parameters); it already counts."""
        self._made += 1
        return kept_guests.bring_back(
            Guest(f"{kind}{self._made}", kind, memory, cmdline, dirty, vcpus)
        )

    def figure(self, name: str, value: Any) -> None:
        """Add a measured value to the scenario's result; JSON must be able to express it."""
        self._figures[name] = value
        (self.results / "figures.json").write_text(json.dumps(self._figures))

    def events(self, name: str = "") -> list[dict[str, Any]]:
        """The events of our helpers so far, from all runs; if `name` is given, only those with that
        name."""
        if not self.trace.exists():
            return []
        # The last line may be incomplete.
        lines = self.trace.read_text().rpartition("\n")[0].splitlines()
        events = [json.loads(line) for line in lines]
        return [event for event in events if not name or event["event"] == name]

    def engines_done(self) -> list[str]:
        """The engine of each of our helpers that has reported success, in the order in which they
        ended."""
        engines = {event["pid"]: event["engine"] for event in self.events("engine")}
        ended = self.events("complete")
        return [engines[event["pid"]] for event in ended if event["retval"] == 0]

    def _assert_done(self, guest: Guest, before: int, *helpers: Helper) -> None:
        """Check that since `before` helpers had finished, exactly those of `helpers` that are ours
        have finished, each with the engine that is right for this guest."""
        done = Counter(self.engines_done()[before:])
        engines = [engine_for(guest, helper) for helper in helpers if helper != LIBXL]
        assert done == Counter(engines)

    def domains(self) -> dict[str, DomainRow]:
        """The existing guests, by name, including those that are being built or destroyed."""
        rows = {}
        done = subprocess.run(
            ["xl", "list"], check=True, capture_output=True, text=True, timeout=30
        )
        for line in done.stdout.splitlines()[1:]:
            name, domid, memory, _vcpus, state, _time = line.rsplit(None, 5)
            if domid != "0":
                rows[name] = DomainRow(name, int(domid), int(memory), state)
        return rows

    def domid(self, guest: Guest) -> int:
        """The domain that has the guest's name. Raises KeyError if there is none."""
        return self.domains()[guest.name].domid

    def xenstore(self, path: str) -> str | None:
        """The value of the node, or None if it does not exist."""
        done = subprocess.run(
            ["xenstore-read", path], check=False, capture_output=True, text=True, timeout=30
        )
        return None if done.returncode else done.stdout.rstrip("\n")

    def save(
        self,
        guest: Guest,
        file: Path,
        helper: Helper = OURS,
        env: Mapping[str, str | None] | None = None,
        limit: float = COMMAND_SECONDS,
    ) -> Ended:
        """Run `xl save`. It must succeed, with the helper's work, and leave no domain."""
        before = len(self.engines_done())
        done = self.xl(["save", guest.name, file], helper, env, limit)
        assert done.status == 0, "xl save failed"
        assert guest.name not in self.domains()
        self._assert_done(guest, before, helper)
        return done

    def restore(
        self,
        guest: Guest,
        file: Path,
        helper: Helper = OURS,
        env: Mapping[str, str | None] | None = None,
        limit: float = COMMAND_SECONDS,
    ) -> Ended:
        """Run `xl restore`. It must succeed, with the helper's work, and the guest must go on from
        where it was."""
        before = len(self.engines_done())
        done = self.xl(["restore", file], helper, env, limit)
        assert done.status == 0, "xl restore failed"
        assert MISSING not in done.output, "a false alarm"
        self._assert_done(guest, before, helper)
        guest.goes_on()
        return done

    def migrate(
        self,
        guest: Guest,
        sender: Helper = OURS,
        receiver: Helper = OURS,
        env: Mapping[str, str | None] | None = None,
        capture: Path | None = None,
        limit: float = COMMAND_SECONDS,
        slow: bool = False,
    ) -> Ended:
        """Run `xl migrate` to this same host. It must succeed, with the helpers' work, and exactly
        one guest must go on. `capture` receives everything that goes to the receiver; `slow`: the
        link becomes slow before the first round is over."""
        before, domid = len(self.engines_done()), self.domid(guest)
        receive = receive_command(receiver, capture)
        if slow:
            receive = over_slow_link(guest.octets, receive)
        program = self.start_migrate(guest, sender, receive, env)
        done = program.end(limit)
        assert done.status == 0, "xl migrate failed"
        assert MISSING not in done.output, "a false alarm"
        assert self.assert_only(guest) != domid
        self._assert_done(guest, before, sender, receiver)
        guest.goes_on()
        return done

    def start_migrate(
        self,
        guest: Guest,
        sender: Helper = OURS,
        receive: str = "xl migrate-receive",
        env: Mapping[str, str | None] | None = None,
    ) -> Program:
        """Start `xl migrate` with a shell command that stands for ssh and the other host."""
        return self.start_xl(["migrate", "-s", "", guest.name, receive], sender, env)

    def xl(
        self,
        arguments: Sequence[str | Path],
        helper: Helper = OURS,
        env: Mapping[str, str | None] | None = None,
        limit: float = 60,
    ) -> Ended:
        return self.start_xl(arguments, helper, env).end(limit)

    def start_xl(
        self,
        arguments: Sequence[str | Path],
        helper: Helper = OURS,
        env: Mapping[str, str | None] | None = None,
    ) -> Program:
        """Start `xl` with this helper; ours writes its trace into `events`."""
        ours = {"XEN_SAVE_HELPER_EVENTS": str(self.trace)}
        program = Program(["xl", *arguments], {**helper.environment, **ours, **(env or {})})
        self._programs.append(program)
        return program

    @staticmethod
    def running(word: str) -> list[str]:
        """The commands of the processes that contain `word`."""
        return [command for command in clean_up.processes().values() if word in command]

    def tell_unfinished(self) -> None:
        """Print the output of each `xl` that has not been waited for."""
        for program in self._programs:
            program.tell_unfinished()

    def assert_only(self, guest: Guest, limit: float = 10) -> int:
        """Check that this guest is the only one, once Xen has freed those that were destroyed;
        returns its domid."""
        rows: dict[str, DomainRow] = {}

        def is_alone() -> bool:
            rows.clear()
            rows.update(self.domains())
            return list(rows) == [guest.name]

        wait_until("there is only the guest", is_alone, limit)
        return rows[guest.name].domid

    def assert_runs_on(self, guest: Guest, domid: int, limit: float = GOES_ON_SECONDS) -> None:
        """Check that it is the only guest, under its own name, still the same domain, and that it
        counts on."""
        assert self.assert_only(guest, limit) == domid
        guest.goes_on(limit=limit)

    def verify_stream(self, file: Path, layer: str = "xl", limit: float = 120) -> None:
        """Check that Xen's own verifier accepts the stream."""
        library = XEN_BIN.parent / "lib" / "python"
        done = run(
            ["python3", XEN_BIN / "verify-stream-v2", "-f", layer, "-v", "-i", file],
            limit,
            {"PYTHONPATH": str(library)},
        )
        assert done.status == 0, f"verify-stream-v2: {done.output[-1000:]}"

    def collect_logs(self, with_hypervisor: bool) -> None:
        """Copy our helpers' traces, the consoles and Xen's logs to the results."""
        logs = self.results / "logs"
        if self.trace.exists():
            shutil.copy(self.trace, self.results / "events")
        for directory in _LOGS:
            for path in directory.glob("*.log"):
                logs.mkdir(exist_ok=True)
                shutil.copy(path, logs / path.name)
        if with_hypervisor:
            logs.mkdir(exist_ok=True)
            done = run(["xl", "dmesg"], limit=30)
            (logs / "xl-dmesg").write_text(done.output[-20000:])


def engine_for(guest: Guest, helper: Helper = OURS) -> str:
    """The engine with which our helper works on this guest."""
    return "libxenguest" if guest.kind == "pv" else helper.engine or DEFAULT_ENGINE


def receive_command(helper: Helper = OURS, capture: Path | None = None) -> str:
    """A shell command for `xl migrate -s ''` that receives on this same host."""
    variables = (
        f"-u {name}" if value is None else f"{name}={value}"
        for name, value in helper.environment.items()
    )
    receive = f"env {' '.join(sorted(variables))} xl migrate-receive"
    return receive if capture is None else f"tee {capture} | {receive}"
