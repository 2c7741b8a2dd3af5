"""restore under another name, by another configuration, and from files of other formats."""

from __future__ import annotations

import contextlib
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tests.toolstack.inspect.test_foreign_formats import FOREIGN
from tests.toolstack.stage import Hosts, called, toolstack
from xen_save_helper.ipc_schema.streams import libvirt_header, xl_header

XML = b"<domain type='xen'><name>g</name><os><type>xenpvh</type></os></domain>\0"


@pytest.fixture
def file(hosts: Hosts, tmp_path: Path) -> Path:
    """A guest `g` of 2 MiB, saved, and still running at the source."""
    hosts.guest(megabytes=2)
    path = tmp_path / "g.save"
    assert called("save", "-c", "g", path, "--host", hosts.source).code == 0
    return path


def parts(file: Path) -> tuple[dict[str, Any], bytes]:
    """Configuration and libxl stream."""
    data = file.read_bytes()
    size = xl_header.HEADER_SIZE
    end = size + xl_header.decode_header(data[:size]).optional_data_len
    return json.loads(xl_header.decode(data[:end]).config.rstrip(b"\0")), data[end:]


def test_under_another_name(hosts: Hosts, file: Path) -> None:
    ended = called("restore", file, "--name", "copy", "--host", hosts.source, "--json")
    assert ended.code == 0, ended
    assert ended.json["name"] == "copy"
    assert hosts.states(hosts.at_source) == {"g": "running", "copy": "running"}
    domid = ended.json["domid"]
    assert hosts.at_source.verify(domid, 30).memory_ok
    configs = [hosts.at_source.config(row.domid)["c_info"] for row in hosts.at_source.domains()]
    assert {config["name"] for config in configs} == {"g", "copy"}
    uuids = [config["uuid"] for config in configs if "uuid" in config]
    assert len(set(uuids)) == len(uuids)


@pytest.mark.parametrize("arguments", [[], ["--name", "g"], ["--name", "g", "-C", "config"]])
def test_a_name_that_is_taken(hosts: Hosts, file: Path, arguments: list[str]) -> None:
    """At once, even if the file is broken or nobody writes to the pipe."""
    (file.parent / "config").write_text(json.dumps(parts(file)[0]))
    with contextlib.chdir(file.parent):
        ended = called("restore", file, *arguments, "--host", hosts.source)
    assert ended.code == 1
    assert "there is already a guest 'g' on this host; restore under another name (--name)" in (
        ended.line
    )
    assert hosts.states(hosts.at_source) == {"g": "running"}


@pytest.mark.parametrize(("name", "words"), [("7", "taken for a domid"), ("", "is empty")])
def test_names_that_cannot_be(hosts: Hosts, file: Path, name: str, words: str) -> None:
    ended = called("restore", file, "--name", name, "--host", hosts.destination)
    assert ended.code == 2
    assert words in ended.line


def test_by_another_configuration(hosts: Hosts, file: Path) -> None:
    config, _ = parts(file)
    config["c_info"]["name"] = "other"
    config["on_crash"] = "preserve"
    (file.parent / "config").write_text(json.dumps([{"domid": 3, "config": config}]))
    ended = called(
        "restore", file, "-C", file.parent / "config", "--host", hosts.destination, "--json"
    )
    assert ended.code == 0, ended
    assert ended.json["name"] == "other"
    host = hosts.at_destination
    assert host.config(ended.json["domid"])["on_crash"] == "preserve"
    assert host.verify(ended.json["domid"], 30).memory_ok


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name = 'g'", "is not JSON; want libxl's JSON, as `xl list -l NAME`"),
        ('{"c_info": {}}', "c_info.name is missing"),
    ],
)
def test_a_configuration_that_is_none(hosts: Hosts, file: Path, text: str, words: str) -> None:
    (file.parent / "config").write_text(text)
    with contextlib.chdir(file.parent):
        ended = called("restore", file, "-C", "config", "--host", hosts.destination)
    assert ended.code == 1
    if text.startswith("{"):
        words = "b_info is missing"
    assert ended.line.startswith("xen-toolstack: config: ")
    assert words in ended.line
    assert hosts.states(hosts.at_destination) == {}


def test_a_file_of_virsh_save(hosts: Hosts, file: Path) -> None:
    config, stream = parts(file)
    saved = file.parent / "virsh.save"
    saved.write_bytes(libvirt_header.encode(XML) + stream)
    ended = called("restore", saved, "--host", hosts.destination)
    assert ended.code == 1
    assert "was saved by libvirt" in ended.line
    assert "`virsh restore`, or give one with -C" in ended.line
    (file.parent / "config").write_text(json.dumps(config))
    ended = called("restore", saved, "-C", file.parent / "config", "--host", hosts.destination)
    assert ended.code == 0, ended
    assert hosts.states(hosts.at_destination) == {"g": "running"}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_something_else(hosts: Hosts, tmp_path: Path, name: str) -> None:
    data, what, way = FOREIGN[name]
    file = tmp_path / "g save"
    file.write_bytes(data)
    ended = called("restore", file, "--host", hosts.destination)
    assert ended.code == 1
    want = f"{file} is {what}; {way.format(file=repr(str(file)), command='restore')}"
    assert ended.line == f"xen-toolstack: {want}"


def test_a_compressed_stream_in_a_pipe(hosts: Hosts, file: Path) -> None:
    packed = file.parent / "packed"
    packed.write_bytes(gzip.compress(file.read_bytes(), 1))
    with packed.open("rb") as stdin:
        ended = toolstack("restore", "-", "--host", hosts.destination, stdin=stdin)
    assert ended.code == 1
    assert ended.line == (
        "xen-toolstack: stdin is compressed with gzip; try `… | zcat | xen-toolstack restore -`"
    )
