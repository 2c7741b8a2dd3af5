"""Campaigns on a Dask cluster: a scheduler and workers, each a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.toolstack.campaign.test_campaign import GUEST, lines_of, of
from tests.toolstack.stage import TOOLSTACK, Ended, called, wait_for
from xen_save_helper.toolstack.campaign.worker import PREFIX

pytestmark = pytest.mark.timeout(300)

DASK = str(Path(sys.executable).with_name("dask"))
WAITS = ("--points", "suspend:before-answer", "--modes", "save", "--limit", "callback=60")
"""Among them are runs that wait for a minute."""


class Cluster:
    """A scheduler, and workers with a directory for temporary files of their own."""

    def __init__(self, directory: Path, **environment: str) -> None:
        self.directory = directory
        self._started: list[subprocess.Popen[bytes]] = []
        file = directory / "scheduler.json"
        self.scheduler = self._start(
            "scheduler", "--scheduler-file", file, "--port", "0", **environment
        )
        self.address: str = wait_for(lambda: self._address(file), "a scheduler", 90)

    @staticmethod
    def _address(file: Path) -> str | None:
        try:
            return str(json.loads(file.read_text())["address"])
        except (OSError, ValueError):
            return None

    def worker(self, **environment: str) -> subprocess.Popen[bytes]:
        return self._start("worker", self.address, "--no-nanny", "--nthreads", "1", **environment)

    def _start(self, *arguments: object, **environment: str) -> subprocess.Popen[bytes]:
        with (self.directory / f"{len(self._started)}.log").open("wb") as log:
            process = subprocess.Popen(
                [DASK, *map(str, arguments), "--host", "127.0.0.1", "--no-dashboard"],
                env={**os.environ, "TMPDIR": str(self.directory), **environment},
                cwd=self.directory,
                stderr=log,
            )
        self._started.append(process)
        return process

    def runs(self) -> list[psutil.Process]:
        """The processes of runs at its workers."""
        dask = {process.pid for process in self._started}
        return [process for process in of(str(self.directory)) if process.pid not in dask]

    def close(self) -> None:
        for process in reversed(self._started):
            process.kill()
            process.wait()
        wait_for(lambda: not self.runs(), "the end of the processes at the workers")
        assert [path.name for path in self.directory.glob(f"{PREFIX}*")] == []


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="fd-") as directory:
        made = Cluster(Path(directory))
        try:
            yield made
        finally:
            made.close()


@pytest.fixture
def start(cluster: Cluster, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a campaign on the cluster, which reports into `tmp_path`/out."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [*TOOLSTACK, "faults", "campaign", *arguments, "--scheduler", cluster.address]
        process = subprocess.Popen(
            [*command, "--out", str(tmp_path / "out")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with process:
            process.kill()


def ended(process: subprocess.Popen[str]) -> Ended:
    out, err = process.communicate(timeout=150)
    return Ended(process.returncode, out, err)


def test_a_worker_that_dies_costs_a_second_try(
    cluster: Cluster, start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    """And the verdicts are those of one machine."""
    campaign = start(*GUEST)
    first = cluster.worker()
    second = cluster.worker()
    wait_for(lambda: lines_of(tmp_path / "out"), "a verdict", 120)
    wait_for(lambda: psutil.Process(first.pid).children(), "a run at the first worker")
    first.kill()
    told = ended(campaign)
    assert told.code == 0, told
    assert "all 4 hold" in told.out
    assert len(re.findall(r"worker tcp://\S+ has gone: what it was running runs", told.err)) == 1
    assert second.poll() is None
    wait_for(lambda: not cluster.runs(), "the end of the processes of its runs")

    here = called("faults", "campaign", *GUEST, "--jobs", 4, "--out", tmp_path / "here")
    assert here.code == 0, here

    def told_by(directory: Path) -> dict[str, tuple[object, ...]]:
        keys = ("plan", "holds", "fired", "problems", "expected")
        return {line["cell"]: tuple(map(str, map(line.get, keys))) for line in lines_of(directory)}

    assert told_by(tmp_path / "out") == told_by(tmp_path / "here")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda one: one.name)
def test_nothing_of_an_ended_campaign_stays_at_the_workers(
    cluster: Cluster, start: Callable[..., subprocess.Popen[str]], number: signal.Signals
) -> None:
    cluster.worker()
    campaign = start(*WAITS)
    wait_for(lambda: len(cluster.runs()) > 3, "the helper of a run", 120)
    campaign.send_signal(number)
    ended(campaign)
    wait_for(lambda: not cluster.runs(), "the end of the processes of its runs", 60)
    wait_for(lambda: not list(cluster.directory.glob(f"{PREFIX}*")), "no directory of a run")


def test_without_its_scheduler_it_can_go_on_here(
    cluster: Cluster, start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    cluster.worker()
    campaign = start(*GUEST)
    wait_for(lambda: lines_of(tmp_path / "out"), "a verdict", 120)
    cluster.scheduler.kill()
    told = ended(campaign)
    assert told.code == 1
    assert f"the connection to the scheduler at {cluster.address} is lost" in told.err
    assert f"`--resume --out {tmp_path / 'out'}` continues" in told.err
    assert all(line.startswith("xen-toolstack: ") for line in told.err.splitlines()), told.err
    assert called("faults", "campaign", "--resume", "--out", tmp_path / "out").code == 0


@pytest.fixture
def older(tmp_path: Path) -> str:
    """A directory in which a Python path finds an older version of our package."""
    info = tmp_path / "site" / "xen_save_helper-0.0.9.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: xen-save-helper\nVersion: 0.0.9\n")
    return str(info.parent)


def test_another_version_is_refused_by_name_before_the_first_cell(
    cluster: Cluster, start: Callable[..., subprocess.Popen[str]], tmp_path: Path, older: str
) -> None:
    cluster.worker(PYTHONPATH=older)
    told = ended(start(*GUEST))
    assert told.code == 1
    assert re.search(r"worker tcp://\S+ has xen-save-helper 0\.0\.9, and this is \S+", told.err)
    assert not (tmp_path / "out").exists()
    assert not cluster.runs()


def test_a_scheduler_of_another_version_is_refused(tmp_path: Path, older: str) -> None:
    cluster = Cluster(tmp_path, PYTHONPATH=older)
    try:
        at = ("--scheduler", cluster.address, "--out", tmp_path / "out")
        told = called("faults", "campaign", *GUEST, *at)
    finally:
        cluster.close()
    assert told.code == 1
    assert f"the scheduler at {cluster.address} has xen-save-helper 0.0.9, and" in told.err
    assert not (tmp_path / "out").exists()


def test_no_scheduler_is_told(tmp_path: Path) -> None:
    told = called(
        "faults", "campaign", *GUEST, "--scheduler", "nowhere:what", "--out", tmp_path / "out"
    )
    assert told.code == 1
    assert "no Dask scheduler at nowhere:what: " in told.err
    assert not (tmp_path / "out").exists()


def test_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    told = called(
        "faults", "campaign", *GUEST, "--scheduler", "tcp://nowhere:1", "--out", tmp_path / "out"
    )
    assert told.code == 1
    assert "pip install 'xen-save-helper[cluster]'" in told.err
    assert not (tmp_path / "out").exists()
