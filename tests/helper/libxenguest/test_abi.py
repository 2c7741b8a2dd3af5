from __future__ import annotations

import ctypes
import json
import subprocess
from pathlib import Path

import pytest

from tests.helper.libxenguest.peer import HEADERS_OF, compiled, libraries
from xen_save_helper.helper.hypervisors.xen import toollog
from xen_save_helper.helper.hypervisors.xen.libraries import SUPPORTED
from xen_save_helper.helper.hypervisors.xen.xenctrl_abi import XENCTRL_ABIS
from xen_save_helper.helper.libxenguest.abi import ABIS

IN_ARCH_CONFIG = ("emulation_flags", "misc_flags")
"""The last two fields of `xc_domaininfo_t`, which are in a nested struct."""

STATS = {
    "4.14": {"iteration": 0, "total_written": 4, "dirty_count": 8, "": 16},
    "4.15": {"iteration": 0, "total_written": 8, "dirty_count": 16, "": 24},
}
"""`struct precopy_stats` from each release on: offsets of fields, and the size, on x86-64."""
CALLBACKS = {
    "save_callbacks": {
        "suspend": 0,
        "precopy_policy": 8,
        "postcopy": 16,
        "checkpoint": 24,
        "wait_checkpoint": 32,
        "switch_qemu_logdirty": 40,
        "data": 48,
        "": 56,
    },
    "restore_callbacks": {
        "static_data_done": 0,
        "suspend": 8,
        "postcopy": 16,
        "checkpoint": 24,
        "wait_checkpoint": 32,
        "restore_results": 40,
        "data": 48,
        "": 56,
    },
}
"""The same in every release."""
DOMAIN_INFO = {
    "4.14": {"domain": 0, "tot_pages": 8, "cpu_time": 56, "handle": 76, "cpupool": 92, "": 104},
    "4.16": {"domain": 0, "tot_pages": 8, "cpu_time": 56, "handle": 76, "cpupool": 92, "": 112},
}
"""`xc_domaininfo_t` from each release on."""


def layout(struct: type[ctypes.Structure], names: list[str] | None = None) -> dict[str, int]:
    names = names or [field[0] for field in struct._fields_]
    return {name: getattr(struct, name).offset for name in names} | {"": ctypes.sizeof(struct)}


def row(table: dict[str, dict[str, int]], version: str) -> dict[str, int]:
    """The row for `version`: that of the newest release not newer than it."""
    return table[max(release for release in table if release <= version)]


def stats_of(version: str) -> type[ctypes.Structure]:
    policy = dict(field[:2] for field in ABIS[version].save_callbacks._fields_)["precopy_policy"]
    struct: type[ctypes.Structure] = policy._argtypes_[0]
    return struct


def test_each_supported_release_has_its_rows() -> None:
    assert list(ABIS) == list(SUPPORTED)
    assert list(XENCTRL_ABIS) == list(SUPPORTED)
    assert tuple(f"4.{minor}" for minor in range(14, 23)) == SUPPORTED


@pytest.mark.parametrize("version", SUPPORTED)
def test_the_structs_are_laid_out_as_the_releases_headers_say(version: str) -> None:
    abi = ABIS[version]
    assert layout(abi.save_callbacks) == CALLBACKS["save_callbacks"]
    assert layout(abi.restore_callbacks) == CALLBACKS["restore_callbacks"]
    assert layout(stats_of(version)) == row(STATS, version)
    domain_info = row(DOMAIN_INFO, version)
    names = [name for name in domain_info if name]
    assert layout(XENCTRL_ABIS[version].domain_info, names) == domain_info


@pytest.mark.parametrize("version", SUPPORTED)
def test_a_c_compiler_with_the_releases_declarations_agrees(version: str, tmp_path: Path) -> None:
    agrees(version, tmp_path)


def test_a_c_compiler_with_xens_headers_agrees(
    headers: tuple[str | Path, ...], tmp_path: Path
) -> None:
    agrees(HEADERS_OF, tmp_path, *headers)


def test_the_peers_declarations_are_xens(headers: tuple[str | Path, ...], tmp_path: Path) -> None:
    libraries(tmp_path / "peer", HEADERS_OF, *headers)


def agrees(version: str, tmp_path: Path, *options: str | Path) -> None:
    domain_info = XENCTRL_ABIS[version].domain_info
    own = [field[0] for field in domain_info._fields_ if field[0] not in (*IN_ARCH_CONFIG, "pad1")]
    rows = {
        "struct precopy_stats": layout(stats_of(version)),
        "struct save_callbacks": layout(ABIS[version].save_callbacks),
        "struct restore_callbacks": layout(ABIS[version].restore_callbacks),
        "xentoollog_logger": layout(toollog._Struct),
        "xc_domaininfo_t": layout(domain_info, own),
    }
    lines = [
        f'printf("{{\\"struct\\": \\"{struct}\\", \\"name\\": \\"{name}\\", \\"is\\": %zu}}\\n", '
        + (f"offsetof({struct}, {name}));" if name else f"sizeof({struct}));")
        for struct, fields in rows.items()
        for name in fields
    ]
    source = tmp_path / "layout.c"
    source.write_text(
        '#include <stddef.h>\n#include <stdio.h>\n#include "xen_abi.h"\nint main(void) {\n'
        + "\n".join(lines)
        + "\nreturn 0; }\n"
    )
    release = f"-DXEN_RELEASE={version.replace('.', '')}"
    program = compiled(source, tmp_path / "layout", release, "-I", Path(__file__).parent, *options)
    told = subprocess.run([program], capture_output=True, text=True, check=True, timeout=10)
    found: dict[str, dict[str, int]] = {}
    for line in told.stdout.splitlines():
        one = json.loads(line)
        found.setdefault(one["struct"], {})[one["name"]] = one["is"]
    assert found == rows
