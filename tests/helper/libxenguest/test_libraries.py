from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from xen_save_helper.helper.hypervisors.xen.libraries import load, running_version, supported


def kernel_says(directory: Path, kind: str, version: str) -> str:
    major, minor = version.split(".")
    (directory / "version").mkdir()
    for name, text in (("type", kind), ("version/major", major), ("version/minor", minor)):
        (directory / name).write_text(f"{text}\n")
    return str(directory)


def test_the_running_version_is_the_kernels(tmp_path: Path) -> None:
    assert running_version(kernel_says(tmp_path, "xen", "4.17")) == "4.17"


def test_another_hypervisor_is_no_xen(tmp_path: Path) -> None:
    assert running_version(kernel_says(tmp_path, "kvm", "4.17")) is None
    assert running_version(str(tmp_path / "none")) is None


@pytest.mark.parametrize("version", [f"4.{minor}" for minor in range(14, 23)])
def test_a_known_release_is_taken(version: str) -> None:
    assert supported(version) == version


@pytest.mark.parametrize("version", ["4.13", "4.23", "4.170", "5.17"])
def test_an_unknown_release_is_refused_with_what_to_do(version: str) -> None:
    with pytest.raises(
        OSError,
        match=rf"Xen {version} runs here, .* knows the libraries of 4\.14 to 4\.22 alone: install "
        r"one that knows it; until then libxl's own helper .*\(unset LIBXL_SAVE_HELPER\)",
    ) as bad:
        supported(version)
    assert bad.value.errno == errno.ENOTSUP


def test_a_library_that_is_not_there_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"libxenguest\.so\.0\.0 cannot be loaded"):
        load("libxenguest.so.0.0", {})


def test_a_function_that_is_not_there_is_named() -> None:
    with pytest.raises(OSError, match=r"libc\.so\.6 has no function xc_domain_save") as bad:
        load("libc.so.6", {"xc_domain_save": (None, ())})
    assert bad.value.errno == errno.ENOSYS


XENCTRL = """
import json
from xen_save_helper.helper.hypervisors.xen.xenctrl import Xenctrl

def errors(call):
    try:
        return call()
    except OSError as error:
        return [error.errno, str(error)]

with Xenctrl() as xch:
    domains = xch.domain_list()
    last = xch.domain_getinfo(300)
    print(json.dumps({
        "domids": [info.domid for info in domains],
        "300": [*last[:8], last.handle.hex(), last.hvm, last.dying, last.paused,
                last.shutdown_reason],
        "2": [xch.domain_getinfo(2).hvm, xch.domain_getinfo(2).shutdown_reason],
        "param": xch.hvm_param_get(5, 17),
        "done": [xch.domain_pause(5), xch.domain_unpause(5), xch.domain_shutdown(5, 3),
                 xch.domain_destroy(5), xch.domain_resume(5, fast=True), xch.logdirty_off(5),
                 xch.hvm_param_set(5, 17, 1 << 60)],
        "404": [errors(call) for call in (
            lambda: xch.domain_getinfo(404),
            lambda: xch.domain_pause(404),
            lambda: xch.domain_resume(404, fast=False),
            lambda: xch.logdirty_off(404),
        )],
    }))
xch.close()
"""


def test_libxenctrls_operations(each_version: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", XENCTRL],
        env={**os.environ, "LD_LIBRARY_PATH": each_version},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["domids"] == [*range(301), 500], "more than one call's worth, and a gap"
    shut_down = 4 | 1 | 8 | 2 | 2 << 16
    figures = [300, shut_down, 400, 500, 3, 4, 5, 6]
    assert told["300"] == [*figures, "00" * 15 + "07", True, True, True, 2]
    assert told["2"] == [False, None]
    assert told["param"] == 17 << 40
    assert told["done"] == [None] * 7
    assert [row[0] for row in told["404"]] == [errno.ESRCH] * 4
    assert "there is no domain 404" in told["404"][0][1]
    assert "xc_domain_pause, domain 404: No such process" in told["404"][1][1]
