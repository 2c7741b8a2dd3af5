"""Runs scenarios on machines. A scenario that failed is not run again; one that the emulator
spoiled is, at most twice."""

from __future__ import annotations

import shutil
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.xen.emulator import EmulatorError, MachineError, Setup
from tests.xen.images import SUITES, image
from tests.xen.kept_machine import KeptMachine, kept_machine
from tests.xen.machine import Machine, Outcome
from tests.xen.report import Row, print_table, tell_crossings, tell_faults
from tests.xen.scenarios import Case, SetupKey, cases, with_those_before
from tests.xen.shadow_xen import shadow_xen
from tests.xen.wheel import wheel

SCENARIOS_PER_BOOT: Final = 10
"""A start costs some seconds; a fresh machine now and then keeps a fault from spreading."""
RETRIES: Final = 2
HANDED_OVER: Final = "handed-over"
"""The directory, within that of a run, for what each scenario has left for later ones."""


def machine_of(suite: str, shadow: bool) -> KeptMachine:
    """What a scenario's machine starts from. It is made, with an image and a hypervisor, if there
    is none."""
    made = image(SUITES[suite])
    return kept_machine(Setup(made, shadow_xen(made.suite) if shadow else made.xen))


class Machines:
    """One machine at a time, started when needed, and kept for some scenarios of the same setup."""

    def __init__(self, directory: Path) -> None:
        """`directory`, which exists, gets a directory for each machine, and what scenarios hand
        over to later ones; several may share it."""
        self.starts = 0
        self.spoiled: list[str] = []
        self._directory = directory
        self._machine: Machine | None = None
        self._setup: SetupKey | None = None
        self._ran = 0
        self._failed: set[Case] = set()

    def run(self, case: Case) -> Outcome:
        """Run a case, after those that have to come before it. Raises EmulatorError if the emulator
        spoiled it three times, MachineError if dom0 went down or a case before it did not pass,
        TimeoutError if this computer carries no further machine."""
        given = self._given(case)
        scenario = case.scenario
        for attempt in range(RETRIES + 1):
            try:
                machine = self._ready(case.setup)
                outcome = machine.run_scenario(scenario.name, scenario.limit, given)
                if outcome.outcome == "passed":
                    machine.hand_over(self._handed_over(case))
                return outcome
            except EmulatorError as spoiled:
                self.close()
                self.spoiled.append(f"{scenario.name} ({case.suite}): {spoiled}")
                print(f"tests.xen: the emulator failed, not {scenario.name}: {spoiled}", flush=True)
                if attempt == RETRIES:
                    raise
            except MachineError:
                self.close()
                raise
        raise AssertionError("not reached")

    def _handed_over(self, case: Case) -> Path:
        return self._directory / HANDED_OVER / case.scenario.name

    def _given(self, case: Case) -> Path | None:
        if case.before is None:
            return None
        given = self._handed_over(case.before)
        if given.exists():
            return given
        if case.before in self._failed or self.run(case.before).outcome != "passed":
            self._failed.add(case.before)
            raise MachineError(f"{case.before.scenario.name}, which comes before, did not pass")
        return given

    def close(self) -> None:
        if self._machine is not None:
            self._machine.close()
            self._machine = None

    def _ready(self, setup: SetupKey) -> Machine:
        full = self._ran >= SCENARIOS_PER_BOOT
        if self._machine is not None and (full or setup != self._setup or not self._machine.usable):
            self.close()
        if self._machine is None:
            self.starts += 1
            directory = Path(tempfile.mkdtemp(prefix="machine-", dir=self._directory))
            self._machine = Machine(machine_of(*setup), wheel(), directory)
            self._setup, self._ran = setup, 0
            print(
                f"tests.xen: Xen {self._machine.xen} up after {self._machine.start_seconds:.0f} s "
                f"(of that {self._machine.install_seconds:.0f} s to install the package)",
                flush=True,
            )
        self._ran += 1
        return self._machine


def run_scenarios(
    names: list[str], suites: list[str], jobs: int, keep: Path | None, *, seldom: bool
) -> int:
    """Run scenarios (see `cases`) on `suites`, on `jobs` machines at once, print the table; 0 if
    there were some and all passed."""
    wanted = with_those_before(cases(suites, names, seldom=seldom))
    plan = Plan(wanted)
    print(f"tests.xen: {len(wanted)} scenarios, {jobs} machines at once", flush=True)
    with _directory(keep) as directory, ThreadPoolExecutor(jobs) as pool:
        done = list(pool.map(lambda _worker: _work(plan, directory), range(jobs)))
        row_of = {case: row for ended in done for case, row in ended.rows.items()}
        for case in wanted:
            row_of.setdefault(case, _not_run(case, row_of))
        rows = [row_of[case] for case in wanted]
        shutil.rmtree(directory / HANDED_OVER, ignore_errors=True)
        tell_faults(rows, directory)
        tell_crossings(rows, directory)
    print_table(
        rows,
        sum(ended.starts for ended in done),
        [spoiled for ended in done for spoiled in ended.spoiled],
    )
    return 0 if rows and all(row.passed for row in rows) else 1


class Plan:
    """Decides which machine gets which case next. A machine keeps to its setup while there are
    cases of it, unless one of another is waited for. Small setups come first; within a setup, so do
    the cases that others wait for and those that may take long. In the end there are short cases of
    the largest setup left for all machines to share.

    `wanted` includes the cases that each case depends on.
    """

    def __init__(self, wanted: Sequence[Case]) -> None:
        self._left: dict[SetupKey, list[Case]] = {}
        needed = {case.before for case in wanted}
        for case in sorted(wanted, key=lambda case: (case not in needed, -case.scenario.limit)):
            self._left.setdefault(case.setup, []).append(case)
        self._begun: Counter[str] = Counter()
        self._untouched = dict.fromkeys(self._left)
        self._running: set[Case] = set()
        self._passed: set[Case] = set()
        self._changed = threading.Condition()

    def take(self, setup: SetupKey | None) -> Case | None:
        """The next case for a machine that was started for `setup` and reports its end by `ended`.
        None if there is none, or none yet."""
        with self._changed:
            if (urgent := self._awaited()) is not None:
                setup = self._choose(urgent)
            elif setup is None or not self._ready(setup):
                setup = self._next_setup()
            if setup is None:
                return None
            case = self._ready(setup)[0]
            self._left[setup].remove(case)
            self._running.add(case)
            return case

    def ended(self, case: Case, passed: bool) -> None:
        """Note the end of a case; cases that depend on one that did not pass are not run."""
        with self._changed:
            self._running.discard(case)
            if passed:
                self._passed.add(case)
            self._changed.notify_all()

    def wait(self) -> bool:
        """Wait until there is a case to take; False if there will be none."""
        with self._changed:
            while not (ready := any(map(self._ready, self._left))) and self._running:
                self._changed.wait()
            return ready

    def _ready(self, setup: SetupKey) -> list[Case]:
        left = self._left[setup]
        return [case for case in left if case.before is None or case.before in self._passed]

    def _next_setup(self) -> SetupKey | None:
        """A setup that no machine has begun, of the suite that the fewest have, since its image may
        have to be made; else the setup with the most cases left."""
        untouched = [setup for setup in self._untouched if self._ready(setup)]
        if untouched:
            return self._choose(
                min(untouched, key=lambda key: (self._begun[key[0]], self._size(key)))
            )
        most = max(self._left, key=self._size, default=None)
        return most if most is not None and self._ready(most) else None

    def _awaited(self) -> SetupKey | None:
        """The setup of a case that others wait for, if no machine of it is at work: in the end they
        would be waited for."""
        needed = {case.before for cases in self._left.values() for case in cases}
        at_work = {case.setup for case in self._running}
        for setup in self._left.keys() - at_work:
            if needed.intersection(self._ready(setup)):
                return setup
        return None

    def _choose(self, setup: SetupKey) -> SetupKey:
        if setup in self._untouched:
            del self._untouched[setup]
            self._begun[setup[0]] += 1
        return setup

    def _size(self, setup: SetupKey) -> float:
        return sum(case.scenario.limit for case in self._ready(setup))


@dataclass
class _Done:
    """The results of the machines that one thread has run, one after another."""

    rows: dict[Case, Row] = field(default_factory=dict)
    starts: int = 0
    spoiled: list[str] = field(default_factory=list)


def _work(plan: Plan, directory: Path) -> _Done:
    machines, done = Machines(directory), _Done()
    setup: SetupKey | None = None
    try:
        while (case := plan.take(setup)) is not None or plan.wait():
            if case is None:
                continue
            setup = case.setup
            try:
                done.rows[case] = _run_one(machines, case)
            except TimeoutError as full:
                # Other users of this computer have all machines: it is no use asking again.
                print(f"tests.xen: {case.scenario.name}: {full}", flush=True)
                break
            finally:
                plan.ended(case, case in done.rows and done.rows[case].passed)
    finally:
        machines.close()
    done.starts, done.spoiled = machines.starts, machines.spoiled
    return done


def _not_run(case: Case, rows: Mapping[Case, Row]) -> Row:
    """The row of a case that had no machine, or that depends on one that did not pass."""
    before = None if case.before is None else rows.get(case.before)
    why = "no machine" if before is None or before.passed else "not run"
    return Row(case.suite, case.scenario.name, why, 0.0, {})


def run_script(script: Path, suite: str, shadow: bool, limit: float, keep: Path | None) -> int:
    """Start a machine, run a script, and print its output. Returns 0 if it exited with 0, else 1.

    Raises EmulatorError, MachineError.
    """
    with _directory(keep) as directory:
        machine = Machine(machine_of(suite, shadow), wheel(), directory)
        try:
            print(
                f"tests.xen: Xen {machine.xen} up after {machine.start_seconds:.0f} s", flush=True
            )
            outcome = machine.run_script(script, limit, _say)
        finally:
            machine.close()
    for line in outcome.faults:
        print(f"tests.xen: crashed: {line}")
    print(f"tests.xen: {outcome.outcome} after {outcome.seconds:.1f} s")
    return 0 if outcome.outcome == "passed" else 1


def _run_one(machines: Machines, case: Case) -> Row:
    name = case.scenario.name
    print(f"tests.xen: {case.suite}: {name} ...", flush=True)
    try:
        outcome = machines.run(case)
    except (EmulatorError, MachineError) as lost:
        print(f"tests.xen: {name}: {lost}", flush=True)
        kind = "emulator" if isinstance(lost, EmulatorError) else "lost"
        return Row(case.suite, name, kind, 0.0, {})
    if outcome.outcome != "passed":
        print(explained(outcome), flush=True)
    print(
        f"tests.xen: {case.suite}: {name}: {outcome.outcome} ({outcome.seconds:.0f} s)", flush=True
    )
    return Row(
        case.suite,
        name,
        outcome.outcome,
        outcome.seconds,
        outcome.figures,
        outcome.table,
        outcome.crossings,
    )


def explained(outcome: Outcome) -> str:
    """The output of a scenario that did not pass, the lines of dom0's kernel from that time, and
    the ends of the logs."""
    lines = [outcome.output.rstrip(), *(f"dom0 kernel: {line}" for line in outcome.kernel[-15:])]
    lines += [f"could not be cleared away: {what}" for what in outcome.left_over]
    for name, end in outcome.logs.items():
        lines += [f"--- {name} ends:", end]
    return "\n".join(lines)


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


@contextmanager
def _directory(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="xen-rig-") as scratch:
            yield Path(scratch)
    else:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep
