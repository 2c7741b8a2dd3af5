"""What it costs to leave a page behind, and to load one, beside the bare hypercalls made from C."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from tests.benchmarks import limits
from tests.benchmarks.line import Line
from tests.debian_packages import unpacked
from tests.hypercalls.build import Release, built
from tests.hypercalls.helpers import guest
from tests.hypercalls.machine import SPECIAL_PFNS, Domain, Machine

RELEASE: Final = "4.17"
FIRST: Final = 0x1000
PAGES: Final = 1 << 14
AT_ONCE: Final = 16
"""As many as the engine loads, unless a vCPU waits."""
REPOSITORY: Final = Path(__file__).parents[2]


class Cost(NamedTuple):
    """Microseconds of processor time a page."""

    evict: float
    load: float


class _Bench:
    def __init__(self, directory: Path) -> None:
        self._release: Release = built(directory / RELEASE, RELEASE)
        (directory / "machine").mkdir()
        self._machine = Machine(directory / "machine", RELEASE)
        self._machine.state.keeps = True
        self._domain: Domain = guest(self._machine, 1, [range(FIRST, FIRST + PAGES)])
        self._program = directory / "bare_paging"
        libraries = self._release.directory
        subprocess.run(
            [
                *("gcc", "-O2", "-Wall", "-Werror", "-o", self._program),
                *("-isystem", unpacked("libxen-dev") / "usr/include"),
                Path(__file__).with_name("bare_paging.c"),
                *(libraries / name for name in (f"libxenctrl.so.{RELEASE}", "libxencall.so.1")),
                f"-Wl,-rpath-link,{libraries}",
            ],
            check=True,
            timeout=240,
        )

    def bare(self) -> Cost:
        # The ring's page, which our pager populates itself.
        self._domain.set_kind([SPECIAL_PFNS])
        return self._run([self._program, "1", str(FIRST), str(PAGES)])

    def ours(self, at_once: int) -> Cost:
        module = "tests.benchmarks.our_paging"
        arguments = [str(number) for number in (1, FIRST, PAGES, at_once)]
        return self._run([sys.executable, "-m", module, *arguments])

    def _run(self, command: list[Path | str]) -> Cost:
        environment = {**os.environ, **self._release.environment, **self._machine.environment}
        done = subprocess.run(
            command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, check=True, timeout=60
        )
        evict, load = (float(number) / 1000 / PAGES for number in done.stdout.split())
        return Cost(evict, load)


@contextmanager
def _bench() -> Iterator[_Bench]:
    directory = Path(tempfile.mkdtemp(dir="/dev/shm"))
    try:
        yield _Bench(directory)
    finally:
        shutil.rmtree(directory)


def paging(runs: int) -> Iterator[Line]:
    """Raises PackageUnavailableError where Debian's packages cannot be had."""
    others = limits.Others()
    with _bench() as bench:
        many = [(bench.ours(AT_ONCE), bench.bare()) for _ in range(runs)]
        one = [(bench.ours(1), bench.bare()) for _ in range(runs)]
    load = others.processors()
    evictions = [(ours.evict, bare.evict) for ours, bare in many + one]
    yield Line("page left behind", "µs", evictions, "two hypercalls in C", 2, others=load)
    for what, pairs, reach in (
        (f"page loaded, {AT_ONCE} at once", many, 2),
        ("page loaded alone", one, None),
    ):
        loads = [(ours.load, bare.load) for ours, bare in pairs]
        yield Line(what, "µs", loads, "its hypercall in C", reach, others=load)
