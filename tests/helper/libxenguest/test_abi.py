from __future__ import annotations

import ctypes
import json
import subprocess
from pathlib import Path

import pytest

from helper.hypervisors.xen import toollog, xenctrl
from helper.hypervisors.xen.libraries import SUPPORTED
from helper.libxenguest.abi import ABIS, PrecopyStats, RestoreCallbacks, SaveCallbacks
from tests.helper.libxenguest.peer import compiled

STRUCTS: dict[str, type[ctypes.Structure]] = {
    "struct precopy_stats": PrecopyStats,
    "struct save_callbacks": SaveCallbacks,
    "struct restore_callbacks": RestoreCallbacks,
    "xentoollog_logger": toollog._Struct,
}
DOMAIN_INFO = [
    name
    for name, _type in xenctrl._DomainInfo._fields_
    if name not in ("emulation_flags", "misc_flags")
]
"""Its own fields; the last two are in a struct of its."""

FIGURES = {
    "struct precopy_stats": {"iteration": 0, "total_written": 8, "dirty_count": 16, "": 24},
    "struct save_callbacks": {
        "suspend": 0,
        "precopy_policy": 8,
        "postcopy": 16,
        "checkpoint": 24,
        "wait_checkpoint": 32,
        "switch_qemu_logdirty": 40,
        "data": 48,
        "": 56,
    },
    "struct restore_callbacks": {
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
"""Offsets of fields, and the size, on x86-64: from xenguest.h of 4.17 and of 4.20, which do not
differ in them."""


def layout(struct: type[ctypes.Structure], names: list[str] | None = None) -> dict[str, int]:
    names = names or [field[0] for field in struct._fields_]
    return {name: getattr(struct, name).offset for name in names} | {"": ctypes.sizeof(struct)}


def test_each_supported_release_has_an_abi() -> None:
    assert set(ABIS) == set(SUPPORTED)


@pytest.mark.parametrize("version", SUPPORTED)
def test_the_structs_are_laid_out_as_xenguest_h_says(version: str) -> None:
    abi = ABIS[version]
    assert layout(PrecopyStats) == FIGURES["struct precopy_stats"]
    assert layout(abi.save_callbacks) == FIGURES["struct save_callbacks"]
    assert layout(abi.restore_callbacks) == FIGURES["struct restore_callbacks"]


def test_a_c_compiler_with_xens_headers_agrees(headers: Path, tmp_path: Path) -> None:
    rows = {name: layout(struct) for name, struct in STRUCTS.items()}
    rows["xc_domaininfo_t"] = layout(xenctrl._DomainInfo, DOMAIN_INFO)
    lines = [
        f'printf("{{\\"struct\\": \\"{struct}\\", \\"name\\": \\"{name}\\", \\"is\\": %zu}}\\n", '
        + (f"offsetof({struct}, {name}));" if name else f"sizeof({struct}));")
        for struct, fields in rows.items()
        for name in fields
    ]
    includes = ["stdio.h", "stddef.h", "xenctrl.h", "xenguest.h", "xentoollog.h"]
    source = tmp_path / "layout.c"
    source.write_text(
        "".join(f"#include <{name}>\n" for name in includes)
        + "int main(void) {\n"
        + "\n".join(lines)
        + "\nreturn 0; }\n"
    )
    program = compiled(source, tmp_path / "layout")
    told = subprocess.run([program], capture_output=True, text=True, check=True, timeout=10)
    found: dict[str, dict[str, int]] = {}
    for line in told.stdout.splitlines():
        row = json.loads(line)
        found.setdefault(row["struct"], {})[row["name"]] = row["is"]
    assert found == rows
