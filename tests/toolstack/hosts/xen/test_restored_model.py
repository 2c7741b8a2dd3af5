"""What we know, before the first page, of how libxl will start a restored domain's device model.
QEMU is a script here that prints a version."""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.toolstack.hosts.xen.scripted_server import read_exactly, serving
from xen_save_helper.helper.hypervisors.xen import qemu, restored_model
from xen_save_helper.helper.hypervisors.xen.restored_model import UNCHECKED, check, choose

pytestmark = pytest.mark.usefixtures("no_leaks")

WRAPPER = str(Path(sys.executable).with_name("xen-save-helper-qemu").resolve())
OLD, NEW = "10.2.1 (Debian 1:10.2.1+ds-1)", "11.1.3 (Debian 1:11.1.3+ds-1)"
READ, ERROR = 2, 16

Qemu = Callable[[str, str], str]


@pytest.fixture
def qemu_is(tmp_path: Path) -> Qemu:
    """Makes a program that prints a version, and returns its path."""

    def make(version: str, name: str = "qemu-system-i386") -> str:
        program = tmp_path / name
        program.write_text(
            f"#!/bin/sh\n[ \"$*\" = --version ] && echo 'QEMU emulator version {version}'\n"
        )
        program.chmod(0o755)
        return str(program)

    return make


@pytest.fixture
def packaged_is(qemu_is: Qemu, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Makes the QEMU that libxl starts if it is not told which."""

    def make(version: str) -> str:
        path = qemu_is(version, "packaged-qemu")
        monkeypatch.setattr(qemu, "PACKAGED", ("/nowhere/qemu", path))
        return path

    return make


def config(kind: str = "hvm", **build: Any) -> dict[str, Any]:
    """A configuration as `xl list -l` prints it."""
    described = {"max_memkb": 131072, "device_model_version": "qemu_xen", **build}
    return {"c_info": {"type": kind, "name": "g"}, "b_info": described}


def test_a_qemu_that_takes_no_files_is_started_by_the_wrapper(
    packaged_is: Callable[[str], str],
) -> None:
    path = packaged_is(NEW)
    given = config(stubdomain_version="none")
    choice = choose(given)
    build = {**given["b_info"], "device_model": WRAPPER}
    assert choice.config == {**given, "b_info": build}
    assert choice.setting == WRAPPER
    assert f"{path} is QEMU 11.1.3" in choice.remark
    assert "device_model" not in given["b_info"]


@pytest.mark.parametrize("given", [config("pv"), config("pvh"), config()])
def test_nowhere_else(packaged_is: Callable[[str], str], given: dict[str, Any]) -> None:
    packaged_is(NEW if given["c_info"]["type"] != "hvm" else OLD)
    assert choose(given) == (given, "", "")


@pytest.mark.parametrize("version", [OLD, NEW])
def test_a_configuration_that_has_the_wrapper_keeps_it_if_needed(
    packaged_is: Callable[[str], str], version: str
) -> None:
    """The wrapper may be another host's, with another path."""
    packaged_is(version)
    for path in (WRAPPER, "/opt/bin/xen-save-helper-qemu"):
        choice = choose(config(device_model=path))
        if version == NEW:
            assert choice.config == config(device_model=WRAPPER)
            assert choice.setting == WRAPPER
        else:
            assert choice == (config(), "", "")


def test_a_wrapper_in_the_packaged_ones_place_will_do(
    qemu_is: Qemu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(qemu.PROGRAM_VARIABLE, qemu_is(NEW, "diverted-qemu"))
    link = tmp_path / "xen-qemu-system-i386"
    link.symlink_to(WRAPPER)
    monkeypatch.setattr(qemu, "PACKAGED", (str(link),))
    assert choose(config()) == (config(), "", "")
    monkeypatch.setenv("XENSTORED_PATH", "/nowhere/socket")
    assert check(7, "") == "", "xenstore need not be asked"


def test_a_qemu_that_the_configuration_names_is_examined(
    packaged_is: Callable[[str], str], qemu_is: Qemu
) -> None:
    packaged_is(NEW)
    given = config(device_model=qemu_is(OLD, "own-qemu"))
    assert choose(given) == (given, given["b_info"]["device_model"], "")
    given = config(device_model=qemu_is(NEW, "own-qemu"))
    with pytest.raises(OSError, match=r"own-qemu is QEMU 11\.1\.3, .*: name \S*-qemu as its"):
        choose(given)


@pytest.mark.parametrize(
    "build",
    [
        {"device_model_stubdomain": "True"},
        {"device_model_stubdomain": True},
        {"device_model_version": "qemu_xen_traditional"},
        {"device_model_version": "none"},
        {"device_model": "/nowhere/qemu"},
        {"device_model": "/bin/true"},
    ],
)
def test_anything_but_a_packaged_qemu_is_left_to_libxl(
    packaged_is: Callable[[str], str], build: dict[str, Any]
) -> None:
    packaged_is(NEW)
    choice = choose(config(**build))
    assert (choice.config, choice.setting) == (config(**build), UNCHECKED)


@contextmanager
def xenstored(path: Path, nodes: dict[str, str]) -> Iterator[None]:
    def serve(connection: socket.socket) -> None:
        while True:
            try:
                head = read_exactly(connection, 16)
            except (AssertionError, ConnectionResetError):
                return
            kind, request, _, length = struct.unpack("=IIII", head)
            asked = read_exactly(connection, length).rstrip(b"\0").decode()
            assert kind == READ
            answer = nodes.get(asked)
            kind, text = (ERROR, "ENOENT\0") if answer is None else (READ, answer)
            connection.sendall(struct.pack("=IIII", kind, request, 0, len(text)) + text.encode())

    with serving(path, serve):
        yield


def checked(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    named: str = "",
    kind: str = "hvm",
    model: str | None = "qemu_xen",
) -> str:
    """Run the helper's check of domain 7, of which xenstore has `kind` and `model`."""
    path = tmp_path / "xenstored"
    path.unlink(missing_ok=True)
    monkeypatch.setenv("XENSTORED_PATH", str(path))
    nodes = {"/libxl/7/type": kind} | ({} if model is None else {"/libxl/7/dm-version": model})
    with xenstored(path, nodes):
        return check(7, named)


def test_the_drop_in_refuses_before_the_first_page_and_says_what_to_do(
    packaged_is: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = packaged_is(NEW)
    with pytest.raises(OSError, match="is QEMU") as refused:
        checked(tmp_path, monkeypatch)
    assert refused.value.strerror == (
        f"the device model {path} is QEMU 11.1.3, which takes no saved state as libxl gives it: "
        f'put device_model_override="{WRAPPER}" into its configuration, and set '
        "XEN_SAVE_HELPER_DEVICE_MODEL to the same path"
    )


def test_the_drop_in_goes_on_if_a_wrapper_is_in_use_or_none_is_needed(
    packaged_is: Callable[[str], str],
    qemu_is: Qemu,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packaged_is(NEW)
    assert checked(tmp_path, monkeypatch, qemu_is(OLD, "own-qemu")) == ""
    assert checked(tmp_path, monkeypatch, kind="pvh", model="none") == ""
    assert checked(tmp_path, monkeypatch, kind="pv", model=None) == ""
    assert checked(tmp_path, monkeypatch, model="qemu_xen_traditional") == ""
    packaged_is(OLD)
    assert checked(tmp_path, monkeypatch) == ""
    with pytest.raises(OSError, match=r"own-qemu is QEMU 11\.1\.3"):
        checked(tmp_path, monkeypatch, qemu_is(NEW, "own-qemu"))
    monkeypatch.setenv("XENSTORED_PATH", "/nowhere/socket")
    assert check(7, WRAPPER) == "", "xenstore need not be asked"
    monkeypatch.setattr(qemu, "PACKAGED", ())
    assert check(7, "") == "", "nor if there is no QEMU: libxl will say so"


def test_what_cannot_be_known_is_logged(
    packaged_is: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packaged_is(NEW)
    assert "/bin/false --version tells no version" in checked(tmp_path, monkeypatch, "/bin/false")
    monkeypatch.setenv("XENSTORED_PATH", "/nowhere/socket")
    assert "what domain 7 has for a device model is not known" in check(7, "")
    assert check(7, UNCHECKED) == ""


def test_the_setting_is_one_of_the_helpers() -> None:
    assert restored_model.SETTING == "XEN_SAVE_HELPER_DEVICE_MODEL"
