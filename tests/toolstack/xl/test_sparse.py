"""Pages of zeros are left out of a file and of a migration, if whoever reads them knows how."""

from __future__ import annotations

from pathlib import Path

from tests.toolstack.stage import TOOLSTACK, Hosts, called
from xen_save_helper.ipc_schema.channel.helper_request import Engine
from xen_save_helper.ipc_schema.channel.messages import Dialect
from xen_save_helper.toolstack import Context
from xen_save_helper.toolstack.helpers.request import PipeHelper
from xen_save_helper.toolstack.operations.domain_save import beyond_sparse


def idle(hosts: Hosts) -> None:
    """A guest that leaves some pages as they came, so that there are zeros."""
    called("create", "g", "--host", hosts.source, "--memory", "16M", "--workload", "idle")


def test_a_sparse_file_is_smaller_and_restores_whole(hosts: Hosts, tmp_path: Path) -> None:
    idle(hosts)
    whole, sparse = tmp_path / "whole", tmp_path / "sparse"
    assert called("save", "-c", "g", whole, "--host", hosts.source).code == 0
    assert called("save", "g", sparse, "--host", hosts.source, "--sparse").code == 0
    assert sparse.stat().st_size < whole.stat().st_size
    told = called("inspect", sparse).out
    assert "SPARSE" in told
    assert "XALLOC" in told
    assert called("restore", sparse, "--host", hosts.destination).code == 0
    host = hosts.at_destination
    assert host.verify(host.find("g"), 30).memory_ok


def test_a_sparse_migration(hosts: Hosts) -> None:
    idle(hosts)
    source, destination = hosts.source, hosts.destination

    def pages_sent(here: Path, to: Path, *more: str) -> int:
        ended = called("migrate", "g", "--host", here, "--to", to, "--json", *more)
        assert ended.code == 0, ended
        return int(ended.json["pages_sent"])

    whole = pages_sent(source, destination)
    assert pages_sent(destination, source, "--sparse") < whole
    assert pages_sent(source, destination, "--sparse", "--postcopy") < whole
    host = hosts.at_destination
    assert host.verify(host.find("g"), 30).memory_ok


def test_a_receiver_that_knows_nothing_of_it(hosts: Hosts) -> None:
    """As xl's, which says its banner and waits for the stream."""
    idle(hosts)
    banner = "printf 'xl migration receiver ready, send binary domain data.\\n'; cat >/dev/null"
    ended = called("migrate", "g", "--host", hosts.source, "--to", banner, "--sparse",
                      "--limit=handshake=1")  # fmt: skip
    assert ended.code == 1
    assert "the receiver did not say whether it can do sparse streams; xl's cannot" in ended.line
    assert hosts.states(hosts.at_source) == {"g": "running"}


def test_a_receiver_that_cannot_refuses(hosts: Hosts) -> None:
    """Before the first page, with its reason."""
    idle(hosts)
    helper = tmp_helper(hosts)
    receiver = f"exec {' '.join(TOOLSTACK)} receive --host {hosts.destination} --helper {helper}"
    ended = called("migrate", "g", "--host", hosts.source, "--to", receiver, "--sparse")
    assert ended.code == 1
    assert "may know nothing of pages that are left out" in ended.line
    assert hosts.states(hosts.at_source) == {"g": "running"}


def tmp_helper(hosts: Hosts) -> Path:
    program = hosts.source.parent / "helper"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    return program


def test_which_helpers_can(hosts: Hosts) -> None:
    def told(**changed: object) -> str:
        return beyond_sparse(Context(hosts.at_source, "xen", **changed))

    assert told() == ""
    assert "the engine own does" in told(engine_choice=Engine.LIBXENGUEST)
    assert "may know nothing" in told(program=PipeHelper(Path("/x"), Dialect.MAINLINE))
