"""The configuration before a stream is read, or refused with the offset of what is wrong."""

from __future__ import annotations

import pytest

from xen_save_helper.ipc_schema.errors import DecodeError
from xen_save_helper.ipc_schema.streams import xl_header
from xen_save_helper.toolstack.xl.receive import name_of, parse_config

HEADER = xl_header.HEADER_SIZE


def test_a_configuration_and_its_name() -> None:
    config = parse_config(b'{"c_info": {"name": "web--incoming"}}\0')
    assert name_of(config) == "web--incoming"


@pytest.mark.parametrize(
    ("text", "offset", "problem"),
    [
        (b"", HEADER, "is empty"),
        (b"\0", HEADER + 4, "Expecting value"),
        (b"name = 'xl.cfg'\0", HEADER + 4, "Expecting value"),
        (b"\xff\0", HEADER + 4, "can't decode byte 0xff"),
        (b"[]\0", HEADER + 4, "want a JSON object"),
        (b"[" * 100_000, HEADER + 4, "recursion"),
        (b'{"c_info":' * 100_000, HEADER + 4, "recursion"),
    ],
)
def test_what_is_no_configuration(text: bytes, offset: int, problem: str) -> None:
    with pytest.raises(DecodeError, match=problem) as refused:
        parse_config(text)
    assert refused.value.offset == offset


@pytest.mark.parametrize("config", [{}, {"c_info": []}, {"c_info": {"name": ""}}, {"c_info": 1}])
def test_a_configuration_without_a_name(config: dict[str, object]) -> None:
    with pytest.raises(DecodeError, match=r"has no c_info\.name"):
        name_of(config)
