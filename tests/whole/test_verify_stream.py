"""Xen's verify-stream-v2 and our decoders agree about real streams."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.debian_packages import PackageUnavailableError
from tests.streams import CUTS, read_cut
from tests.unavailable import unavailable
from tests.verify_stream import fetch, verify
from xen_save_helper.ipc_schema.streams import libxl_stream, xl_header
from xen_save_helper.ipc_schema.streams.libxl_stream import EmulatorId, RecordType


@pytest.fixture(scope="module", autouse=True)
def verifier() -> None:
    try:
        fetch()
    except PackageUnavailableError as error:
        unavailable(str(error))


@pytest.fixture(params=CUTS)
def cut(request: pytest.FixtureRequest) -> bytes:
    return read_cut(request.param)


def libxl_part(stream: bytes) -> bytes:
    fields = xl_header.decode_header(stream[: xl_header.HEADER_SIZE])
    return stream[xl_header.HEADER_SIZE + fields.optional_data_len :]


def test_accepts_a_cut(cut: bytes, tmp_path: Path) -> None:
    file = tmp_path / "stream"
    file.write_bytes(cut)
    result = verify(file, "xl")
    assert result.returncode == 0, result.stderr
    assert "Libxl Record: End" in result.stdout


def test_accepts_the_libxl_part(cut: bytes, tmp_path: Path) -> None:
    file = tmp_path / "stream"
    file.write_bytes(libxl_part(cut))
    assert verify(file, "libxl").returncode == 0


def test_refuses_a_broken_stream(cut: bytes, tmp_path: Path) -> None:
    file = tmp_path / "stream"
    file.write_bytes(cut[: len(cut) // 2])
    result = verify(file, "xl")
    assert result.returncode == 1
    assert "Stream truncated" in result.stderr


def test_has_a_fault_of_its_own_with_xenstore_data(cut: bytes, tmp_path: Path) -> None:
    """What tests/verify_stream.py says of it; once it is mended, streams of guests with a device
    model can be checked too."""
    body = libxl_stream.encode_emulator_xenstore_data(EmulatorId.QEMU_UPSTREAM, 0, [(b"k", b"v")])
    record = libxl_stream.encode_record(RecordType.EMULATOR_XENSTORE_DATA, body)
    part = libxl_part(cut)
    size = libxl_stream.HEADER_SIZE
    file = tmp_path / "stream"
    file.write_bytes(part[:size] + record + part[size:])
    assert "Data not NUL terminated" in verify(file, "libxl").stderr
