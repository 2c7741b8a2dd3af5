"""A started dom0, which runs scenarios and scripts and returns their outcomes.

`tests.xen.dom0.agent`, the other end, describes the layout of the share.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.xen import crossings, fault_table, share
from tests.xen.cache import Slot
from tests.xen.crossings import Crossing
from tests.xen.dom0.lab import GIVEN, HANDED_OVER
from tests.xen.emulator import EmulatorError, MachineError, Setup
from tests.xen.fault_table import FaultRow
from tests.xen.kept_machine import KeptMachine

START_SECONDS: Final = 540
AFTER_LIMIT_SECONDS: Final = 120
"""Seconds for the agent to end what takes too long, and to clear up; an agent that takes longer
hangs."""
_LOG_LINES: Final = 15
_OUR_PROGRAMS: Final = ("python", "xen-save-helper", "xen-toolstack", "pip")

Listener = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """How one request went. `outcome`: passed, failed, timeout. `faults` are the kernel's lines
    about programs that crashed, `kernel` all lines of dom0's kernel, `left_over` what could not be
    cleared away, `table` the rows of a scenario about faults, `crossings` those of one about guests
    that go to another release of Xen. If it did not pass, `logs` has the ends of the logs of
    guests, Xen and our helpers, by name; if it took too long, that of dom0's console as well."""

    outcome: str
    seconds: float
    output: str
    figures: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    kernel: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)
    table: list[FaultRow] = field(default_factory=list)
    crossings: list[Crossing] = field(default_factory=list)
    logs: dict[str, str] = field(default_factory=dict)


class Machine:
    """A machine, started by the constructor and ended by `close`."""

    def __init__(self, kept: KeptMachine, wheel: Path, directory: Path) -> None:
        """`directory` (new or empty) gets the console and all results.

        Raises EmulatorError, MachineError, host_tools.MissingToolsError.
        """
        self.directory = directory
        self.usable = True
        self._requests = 0
        self._share = directory / "share"
        share.make(self._share)
        shutil.copy(wheel, self._share / "rig")
        installed = _installed(kept.setup, wheel)
        if installed.exists():
            shutil.copy(installed, self._share / "installed.tar")
        self._slot = Slot()
        started = time.monotonic()
        try:
            self._emulator = kept.start(self._share, directory / "console")
        except BaseException:
            self._slot.release()
            raise
        try:
            for _ in self._emulator.until(self._share / "boot.json", START_SECONDS, "start"):
                pass
            ready = json.loads((self._share / "boot.json").read_text())
            if "error" in ready:
                raise MachineError(ready["error"])
            if not installed.exists():
                _keep(self._share / "installed.tar", installed)
        except BaseException:
            self.close()
            raise
        self.start_seconds = time.monotonic() - started
        self.xen: str = ready["xen"]
        self.install_seconds: float = ready["install_seconds"]

    def run_scenario(self, name: str, limit: float, given: Path | None = None) -> Outcome:
        """Run a scenario; `given` is what an earlier one has handed over, on any machine."""
        there = self._share / GIVEN.name
        shutil.rmtree(there, ignore_errors=True)
        if given is not None:
            # Links: they are guests, and nobody writes into them.
            shutil.copytree(given, there, copy_function=os.link)
        return self._run({"scenario": name, "limit": limit}, limit, None)

    def hand_over(self, target: Path) -> None:
        """Move what the last scenario has handed over, if anything, to `target` for later ones."""
        handed = self.results() / HANDED_OVER
        if handed.is_dir():
            target.parent.mkdir(exist_ok=True)
            handed.rename(target)

    def run_script(self, script: Path, limit: float, listener: Listener) -> Outcome:
        """Run a script; `listener` is called with its output as it comes."""
        copy = self._share / "rig" / "scripts" / script.name
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(script, copy)
        path = f"/host/rig/scripts/{script.name}"
        return self._run({"script": path, "limit": limit}, limit, listener)

    def results(self) -> Path:
        """The directory of the last request: its output, logs, and what it put there itself."""
        return self._share / "results" / str(self._requests)

    def close(self) -> None:
        self.usable = False
        self._emulator.end()
        self._slot.release()

    def _run(self, request: dict[str, Any], limit: float, listener: Listener | None) -> Outcome:
        """Run a request. Raises EmulatorError and MachineError; the machine is then unusable."""
        self._requests += 1
        requests = self._share / "requests"
        scratch = requests / "next"
        scratch.write_text(json.dumps(request))
        scratch.rename(requests / f"{self._requests}.json")
        results, heard = self.results(), 0
        outcome = results / "outcome.json"
        what = request.get("scenario") or request["script"]
        try:
            for _ in self._emulator.until(outcome, limit + AFTER_LIMIT_SECONDS, what):
                if listener is not None:
                    heard += _tell(results / "output", heard, listener)
        except (EmulatorError, MachineError):
            self.usable = False
            raise
        if listener is not None:
            _tell(results / "output", heard, listener)
        told = json.loads(outcome.read_text())
        self.usable = not told["left_over"]
        return self._judged(told, results)

    def _judged(self, told: dict[str, Any], results: Path) -> Outcome:
        foreign = [f for f in told["faults"] if not f["program"].startswith(_OUR_PROGRAMS)]
        if told["outcome"] != "passed" and foreign:
            self.usable = False
            lines = "; ".join(fault["line"] for fault in foreign)
            raise EmulatorError(f"a program that is not ours crashed: {lines}")
        figures = results / "figures.json"
        logs = {} if told["outcome"] == "passed" else _ends_of_logs(results)
        if told["outcome"] == "timeout":
            logs["dom0's console"] = self._emulator.console_tail()
        return Outcome(
            outcome=told["outcome"],
            seconds=told["seconds"],
            output=(results / "output").read_text(errors="replace"),
            figures=json.loads(figures.read_text()) if figures.exists() else {},
            faults=[fault["line"] for fault in told["faults"]],
            kernel=told["kernel"],
            left_over=told["left_over"],
            table=fault_table.read(results / fault_table.RESULTS_NAME),
            crossings=crossings.read(results / crossings.RESULTS_NAME),
            logs=logs,
        )


def _tell(output: Path, heard: int, listener: Listener) -> int:
    if not output.exists():
        return 0
    with open(output, "rb") as file:
        file.seek(heard)
        new = file.read()
    if new:
        listener(new.decode(errors="replace"))
    return len(new)


def _ends_of_logs(results: Path) -> dict[str, str]:
    """The ends of the logs, for a reader who has only the output of the whole run."""
    paths = [results / "events", *sorted((results / "logs").glob("*"))]
    lines = {
        path.name: path.read_text(errors="replace").replace("\r", "").splitlines()
        for path in paths
        if path.is_file()
    }
    return {name: "\n".join(text[-_LOG_LINES:]) for name, text in lines.items() if text}


def _installed(setup: Setup, wheel: Path) -> Path:
    """The installed package, kept beside its wheel and removed with it."""
    return wheel.parent / f"{setup.image.directory.name}.tar"


def _keep(made: Path, target: Path) -> None:
    scratch = target.with_name(f"{target.name}.{os.getpid()}")
    shutil.copy(made, scratch)
    scratch.rename(target)
