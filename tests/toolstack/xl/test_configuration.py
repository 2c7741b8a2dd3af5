"""A configuration from a file: read as xl prints it, or refused with the file and what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from xen_save_helper.toolstack.xl.configuration import ConfigurationError, read_configuration

WEB: dict[str, Any] = {
    "c_info": {"name": "web", "type": "pvh"},
    "b_info": {"max_memkb": 98304, "kernel": "/boot/vmlinuz"},
    "on_reboot": "restart",
}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(WEB),
        json.dumps(WEB) + "\0",
        json.dumps({"domid": None, "config": WEB}, indent=4),
        json.dumps([{"domid": 7, "config": WEB}]),
        json.dumps(WEB | {"c_info": WEB["c_info"] | {"domid": 7}}),
    ],
)
def test_as_xl_prints_it(tmp_path: Path, text: str) -> None:
    file = tmp_path / "web.json"
    file.write_text("\n  " + text)
    assert read_configuration(file) == WEB


def with_(part: str, **values: object) -> bytes:
    return json.dumps(WEB | {part: WEB[part] | values}).encode()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            b"",
            r"is not JSON; want libxl's JSON, as `xl list -l NAME` or `xl create -q -n FILE.cfg`",
        ),
        (b"name = 'web'\nmemory = 96\n", "is not JSON; want libxl's JSON"),
        (b'{"c_info": {"name": "web",}}', r"line 1, column \d+: "),
        (b'{"c_info":\n {"name" "web"}}', "line 2, column 10: Expecting ':' delimiter"),
        (b'{"c_info": "\xff"}', "is not JSON: has the byte 0xff"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[]", r"has 0 configurations, want one: `xl list -l NAME`"),
        (json.dumps([{"config": WEB}] * 2).encode(), "has 2 configurations, want one"),
        (b"[3]", "holds 3, want libxl's JSON"),
        (b"{}", "c_info is missing, want an object"),
        (b'{"c_info": [], "b_info": {}}', "c_info is a list, want an object"),
        (with_("c_info", name=""), 'c_info.name is "", want the guest\'s name'),
        (with_("c_info", name=None), "c_info.name is missing, want the guest's name"),
        (with_("c_info", type="xen"), 'c_info.type is "xen", want hvm or pv or pvh'),
        (with_("c_info", type=["hvm"]), "c_info.type is a list, want hvm or pv or pvh"),
        (with_("b_info", max_memkb="96"), 'max_memkb is "96", want a number of KiB above 0'),
        (with_("b_info", max_memkb=True), "max_memkb is true, want a number of KiB above 0"),
        (b" " * (16 << 20) + b"{}", "is longer than 16 MiB"),
    ],
)
def test_no_configuration(tmp_path: Path, text: bytes, problem: str) -> None:
    file = tmp_path / "web.json"
    file.write_bytes(text)
    with pytest.raises(ConfigurationError, match=problem) as refused:
        read_configuration(file)
    line = str(refused.value)
    assert line.startswith(f"{file}: ")
    assert "\n" not in line
    assert len(line) < 300


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_configuration(tmp_path / "none")
