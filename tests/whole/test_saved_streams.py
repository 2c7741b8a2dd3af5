"""Streams that our commands save, checked by Xen's own verify-stream-v2 and our `inspect`."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.conftest import HostFactory
from tests.debian_packages import PackageUnavailableError
from tests.toolstack.two_hosts import Side, run
from tests.unavailable import unavailable
from tests.verify_stream import fetch, verify
from tests.whole.stage import QUICK_LIMITS, TOOLSTACK, Stage, toolstack
from xen_save_helper.toolstack.inspect.walk import inspect
from xen_save_helper.toolstack.operations.domain_save import domain_suspend


@pytest.fixture(scope="module", autouse=True)
def verifier() -> None:
    try:
        fetch()
    except PackageUnavailableError as error:
        unavailable(str(error))


def test_a_saved_file_is_accepted(host_factory: HostFactory, tmp_path: Path) -> None:
    host = host_factory("source")
    host.create_guest("g", 32 << 20, "random", type="pvh")
    file = tmp_path / "saved"
    assert toolstack("save", "g", file, "--host", host.directory).code == 0
    result = verify(file, "xl")
    assert result.returncode == 0, result.stderr
    assert "Libxl Record: End" in result.stdout


def suspended(host_factory: HostFactory, file: Path, kind: str) -> None:
    """What `domain_suspend` writes of a guest: a libxl stream, and nothing before it."""
    side = Side(host_factory("source"))
    domid = side.host.create_guest("g", 16 << 20, "random", type=kind)
    with file.open("wb") as stream:
        assert run(domain_suspend(side.ctx, domid, stream.fileno())).rc == 0


def test_a_bare_stream_is_accepted(host_factory: HostFactory, tmp_path: Path) -> None:
    file = tmp_path / "stream"
    suspended(host_factory, file, "pvh")
    result = verify(file, "libxl")
    assert result.returncode == 0, result.stderr
    assert "Libxl Record: End" in result.stdout


def test_a_stream_with_a_device_model_is_accepted(
    host_factory: HostFactory, tmp_path: Path
) -> None:
    """Without the record that the verifier has a fault of its own with; see test_verify_stream."""
    file = tmp_path / "stream"
    suspended(host_factory, file, "hvm")
    with file.open("rb") as stream:
        entries = [entry for entry in inspect(stream) if entry.layer == "libxl"]
    names = [entry.name for entry in entries]
    index = names.index("EMULATOR_XENSTORE_DATA")
    assert names[index + 1] == "EMULATOR_CONTEXT"
    data = file.read_bytes()
    file.write_bytes(data[: entries[index].offset] + data[entries[index + 1].offset :])
    result = verify(file, "libxl")
    assert result.returncode == 0, result.stderr
    assert "Libxl Record: Emulator context" in result.stdout
    assert "Libxl Record: End" in result.stdout


@pytest.mark.parametrize("rounds", ["0", "3"])
def test_a_migrated_stream_is_accepted(
    rounds: str, host_factory: HostFactory, tmp_path: Path
) -> None:
    """Captured between sender and receiver, as it went over the link."""
    stage = Stage(host_factory, 32 << 20, "random", "pvh")
    file = tmp_path / "stream"
    receive = " ".join([*TOOLSTACK, "receive", "--host", str(stage.destination.directory)])
    done = subprocess.run(
        [
            *TOOLSTACK, "migrate", "g", "--host", str(stage.source.directory),
            "--to", f"tee {file} | {receive}", "--max-rounds", rounds,
            *(f"--limit={name}={seconds}" for name, seconds in QUICK_LIMITS.items()),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = verify(file, "xl")
    assert "Libxl Record: End" in result.stdout, result.stderr
