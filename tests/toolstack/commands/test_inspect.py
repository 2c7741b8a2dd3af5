"""`inspect` as people see it: heads, columns, rounds, and a summary."""

from __future__ import annotations

import os
import pty
import subprocess
from pathlib import Path

import pytest

from tests.streams import CUTS, read_cut
from tests.toolstack.inspect.test_foreign_formats import FOREIGN
from tests.toolstack.inspect.test_walk import libxc_head, libxl_head, pages, xc, xl
from tests.toolstack.stage import TOOLSTACK, called
from xen_save_helper.ipc_schema.streams import libvirt_header, xl_header
from xen_save_helper.ipc_schema.streams.libxc_record_types import RecordType as Xc
from xen_save_helper.ipc_schema.streams.libxl_stream import RecordType as Xl

XML = b"<domain type='xen'><name>web</name><os><type>xenpvh</type></os></domain>\0"


def stream(*libxc: bytes, head: bytes = b"") -> bytes:
    return head + libxl_head() + libxc_head() + b"".join(libxc) + xc(Xc.END) + xl(Xl.END)


@pytest.mark.parametrize("name", CUTS)
def test_columns_have_heads(tmp_path: Path, name: str) -> None:
    file = tmp_path / "stream"
    file.write_bytes(read_cut(name))
    ended = called("inspect", file)
    assert ended.code == 0, ended
    table, _, figures = ended.out.partition("\n\n")
    head, *lines = table.splitlines()
    assert head.split() == ["OFFSET", "LAYER", "RECORD", "LENGTH", "CONTENTS"]
    layer, contents = head.index("LAYER"), head.index("CONTENTS")
    for line in lines:
        if not line.startswith("0x"):
            assert line[:layer].isspace(), "of the entry above, or the head of a round"
            continue
        assert line[:layer].strip() == line.split()[0]
        assert line[layer:].startswith(("xl ", "libxl ", "libxc "))
        assert line[contents - 3].isdigit(), "the length ends where its head does"
    assert any("guest " in line for line in lines)
    assert "\n              0" not in figures
    assert "records and headers" in figures


def test_a_round_has_a_line(tmp_path: Path) -> None:
    file = tmp_path / "stream"
    file.write_bytes(stream(pages([1, 3]), pages([2, 3]), pages([1])))
    lines = called("inspect", file).out.splitlines()
    assert [line.strip() for line in lines if "round" in line] == [
        "round 2",
        "round 3",
        "3  rounds",
    ]
    assert lines[6].endswith("  2 NOTAB, pfn 1-3")
    assert lines[10].endswith("  1 NOTAB, pfn 1")


def test_what_is_nought_is_not_in_the_summary(tmp_path: Path) -> None:
    file = tmp_path / "stream"
    file.write_bytes(stream(pages([1, 2])))
    figures = called("inspect", file).out.partition("\n\n")[2].splitlines()
    assert [line.split(maxsplit=1)[1] for line in figures] == [
        "OF",
        "bytes",
        "records and headers",
        "pages with contents",
        "distinct pfns",
        "distinct pages",
    ]


@pytest.mark.parametrize("data", [b"", b"#!/bin/sh\n", FOREIGN["zstd"][0]])
def test_nothing_is_printed_of_what_is_no_stream(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "file"
    file.write_bytes(data)
    ended = called("inspect", file)
    assert (ended.code, ended.out) == (1, "")
    assert str(file) in ended.line


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_something_else(tmp_path: Path, name: str) -> None:
    data, what, way = FOREIGN[name]
    file = tmp_path / "g.save"
    file.write_bytes(data)
    ended = called("inspect", file)
    assert ended.code == 1
    want = f"{file} is {what}; {way.format(file=file, command='inspect')}"
    assert ended.line == f"xen-toolstack: {want}"


def test_a_file_of_virsh_save(tmp_path: Path) -> None:
    file = tmp_path / "g.save"
    file.write_bytes(stream(pages([1]), head=libvirt_header.encode(XML)))
    ended = called("inspect", file)
    assert ended.code == 0, ended
    line = ended.out.splitlines()[1]
    assert line.split() == [
        "0x0000000000", "libvirt", "HEADER", str(64 + len(XML)),
        "guest", "web,", "type", "pvh",
    ]  # fmt: skip
    entry = called("inspect", "--json", file).json["entries"][0]
    assert (entry["layer"], entry["summary"]) == (
        "libvirt",
        {"xml": len(XML), "name": "web", "type": "pvh"},
    )


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_terminal_is_not_too_narrow(tmp_path: Path, columns: int) -> None:
    file = tmp_path / "stream"
    file.write_bytes(read_cut("pv-save-xen-4.17"))
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*TOOLSTACK, "inspect", str(file)],
        stdout=theirs,
        env=os.environ | {"COLUMNS": str(columns), "LINES": "24"},
    ):
        os.close(theirs)
        text = b""
        try:
            while some := os.read(ours, 1 << 16):
                text += some
        except OSError:
            pass  # the last writer has gone
    os.close(ours)
    lines = text.decode().splitlines()
    assert max(map(len, lines)) <= max(columns, 72)
    words = called("inspect", file).out.split()
    assert " ".join(text.decode().split()) == " ".join(words)


def test_a_name_does_not_reach_the_terminal_s_controls(tmp_path: Path) -> None:
    file = tmp_path / "stream"
    config = b'{"c_info": {"name": "a\\u001b[31mb\\n", "type": "pvh"}}'
    file.write_bytes(stream(pages([1]), head=xl_header.encode_header(config)))
    ended = called("inspect", file)
    assert "guest a\\x1b[31mb\\n, type pvh" in ended.out
    assert "\x1b" not in ended.out
