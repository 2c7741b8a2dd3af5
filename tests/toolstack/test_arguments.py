"""Arguments that cannot be: an error that names the parameter, and nothing is begun."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import HostFactory
from tests.toolstack.two_hosts import Side
from xen_save_helper.ipc_schema.channel.helper_request import Engine
from xen_save_helper.toolstack import (
    Context,
    Limits,
    MemoryStrategy,
    PrecopyLimits,
    domain_create_restore,
    domain_live_migrate,
    domain_suspend,
)
from xen_save_helper.toolstack.xl import restore_file, save_file
from xen_save_helper.toolstack.xl.migrate import migrate
from xen_save_helper.toolstack.xl.migrate_options import CommandDestination, MigrateOptions
from xen_save_helper.toolstack.xl.receive import receive

CONFIG: dict[str, Any] = {"c_info": {"type": "pvh"}, "b_info": {"max_memkb": 4096}}


class Given:
    """A host, and descriptors of each kind. No domain is there: who looks for one is too late."""

    def __init__(self, side: Side, directory: Path) -> None:
        self.side = side
        self.ctx = side.ctx
        self.path = directory / "file"
        self.path.touch()
        self.file = self.path.open("r+b")
        self.both = self.file.fileno()
        self.reads = os.open(self.path, os.O_RDONLY)
        self.writes = os.open(self.path, os.O_WRONLY)
        self.nowhere = os.open(self.path, os.O_PATH)
        self.directory = os.open(self.path.parent, os.O_RDONLY)
        # A number that the loop does not take anew.
        self.closed = fcntl.fcntl(self.reads, fcntl.F_DUPFD_CLOEXEC, 500)
        os.close(self.closed)

    def close(self) -> None:
        self.file.close()
        for fd in (self.reads, self.writes, self.nowhere, self.directory):
            os.close(fd)

    def suspend(self, **changed: Any) -> Any:
        given = {"ctx": self.ctx, "domid": 1, "fd": self.writes, **changed}
        return domain_suspend(**given)

    def live_migrate(self, **changed: Any) -> Any:
        both = self.both
        given = {"ctx": self.ctx, "domid": 1, "send_fd": both, "flags": 0, "recv_fd": both}
        return domain_live_migrate(**{**given, **changed})

    def restore(self, **changed: Any) -> Any:
        given = {"ctx": self.ctx, "config": CONFIG, "name": "g", "restore_fd": self.reads}
        return domain_create_restore(**{**given, **changed})

    def migrate(self, **changed: Any) -> Any:
        destination = CommandDestination("false")
        given = {"ctx": self.ctx, "domid": 1, "destination": destination}
        return migrate(**{**given, "options": MigrateOptions(), **changed})

    def receive(self, **changed: Any) -> Any:
        given = {"ctx": self.ctx, "stream_fd": self.both, "back_fd": self.both, "peer": "a test"}
        return receive(**{**given, **changed})

    def save(self, **changed: Any) -> Any:
        return save_file.save(**{"ctx": self.ctx, "domid": 1, "file": self.path, **changed})


@pytest.fixture
def given(host_factory: HostFactory, tmp_path: Path) -> Iterator[Given]:
    made = Given(Side(host_factory("source")), tmp_path)
    yield made
    made.close()


CASES: list[tuple[Callable[[Given], Any], type[Exception], str]] = [
    (lambda g: g.suspend(ctx="sim:/host"), TypeError, "ctx: want a Context"),
    (lambda g: g.suspend(domid="web"), TypeError, "domid: want a domain's number, .* 'web'"),
    (lambda g: g.suspend(domid=True), TypeError, "domid: want a whole number"),
    (lambda g: g.suspend(domid=1.0), TypeError, "domid: want a whole number"),
    (lambda g: g.suspend(domid=-1), ValueError, "domid is -1: want 0 to 32751"),
    (lambda g: g.suspend(domid=0x7FF0), ValueError, "domid is 32752"),
    (lambda g: g.suspend(fd=g.file), TypeError, r"fd: want a descriptor's number.*BufferedRandom"),
    (lambda g: g.suspend(fd=True), TypeError, "fd: want a descriptor's number"),
    (lambda g: g.suspend(fd=-1), ValueError, "fd: -1 is not an open descriptor"),
    (lambda g: g.suspend(fd=1 << 40), ValueError, "fd: 1099511627776 is not an open descriptor"),
    (lambda g: g.suspend(fd=g.closed), ValueError, r"fd: \d+ is not an open descriptor"),
    (lambda g: g.suspend(fd=g.reads), ValueError, r"fd: descriptor \d+ is not open for writing"),
    (lambda g: g.suspend(fd=g.nowhere), ValueError, r"fd: descriptor \d+ is not open for writing"),
    (lambda g: g.suspend(flags=0x80), ValueError, "flags: .*SUSPEND_LIVE.*, not 0x80"),
    (lambda g: g.suspend(flags="live"), TypeError, "flags: want a whole number, not 'live'"),
    (lambda g: g.suspend(bandwidth=-1), ValueError, "bandwidth is -1: want 0 to .* bytes"),
    (lambda g: g.suspend(bandwidth=2**64), ValueError, "bandwidth"),
    (lambda g: g.suspend(bandwidth="100M"), TypeError, "bandwidth: .* bytes a second, not '100M'"),
    (
        lambda g: g.live_migrate(memory_strategy="postcopy"),
        TypeError,
        "memory_strategy: want a Mem",
    ),
    (lambda g: g.live_migrate(memory_strategy=None), TypeError, "memory_strategy"),
    (lambda g: g.live_migrate(precopy=5), TypeError, "precopy: want a PrecopyLimits, not 5"),
    (lambda g: g.live_migrate(on_transition=None), TypeError, "on_transition: want a function"),
    (lambda g: g.live_migrate(send_fd=g.reads), ValueError, "send_fd: .* not open for writing"),
    (lambda g: g.live_migrate(recv_fd=g.writes), ValueError, "recv_fd: .* not open for reading"),
    (lambda g: g.live_migrate(recv_fd=g.file), TypeError, "recv_fd"),
    (lambda g: g.live_migrate(recv_fd=-7), ValueError, "recv_fd"),
    (lambda g: g.restore(config=None), TypeError, "config: want a domain's configuration.* None"),
    (lambda g: g.restore(config="{}"), TypeError, "config"),
    (lambda g: g.restore(name=None), TypeError, "name: want a str, not None"),
    (lambda g: g.restore(name=""), ValueError, "name"),
    (lambda g: g.restore(restore_fd=g.writes), ValueError, "restore_fd: .* not open for reading"),
    (lambda g: g.restore(restore_fd=g.directory), ValueError, "restore_fd: .* is a directory"),
    (lambda g: g.restore(restore_fd=g.closed), ValueError, "restore_fd: .* not an open descriptor"),
    (lambda g: g.restore(send_back_fd=g.reads), ValueError, "send_back_fd: .* open for writing"),
    (lambda g: g.restore(on_resume=0), TypeError, "on_resume"),
    (lambda g: g.receive(stream_fd=g.writes), ValueError, "stream_fd"),
    (lambda g: g.receive(back_fd=g.reads), ValueError, "back_fd"),
    (lambda g: g.migrate(domid="web"), TypeError, "domid"),
    (lambda g: g.migrate(destination="there"), TypeError, "destination: .*HostDestination"),
    (lambda g: g.migrate(options=None), TypeError, "options: want a MigrateOptions"),
    (lambda g: g.save(domid="web"), TypeError, "domid"),
    (lambda g: g.save(bandwidth=-1), ValueError, "bandwidth"),
    (lambda g: g.save(file=True), TypeError, "file: want a path, or a descriptor's number"),
    (lambda g: g.save(file=g.file), TypeError, "file: want a path, .* as fileno.. returns"),
    (lambda g: restore_file.restore(g.ctx, None), TypeError, "file: want a path"),
]


@pytest.mark.parametrize(("call", "kind", "says"), CASES)
def test_of_an_operation(
    given: Given, call: Callable[[Given], Any], kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind, match=says):
        asyncio.run(call(given))
    assert given.side.happenings.events == []
    state = given.side.host.state_dir
    assert [*state.glob("*journal*"), *state.glob("operations*")] == []


@pytest.mark.parametrize(
    ("make", "kind", "says"),
    [
        (lambda: Context.open("kvm:/x"), ValueError, "uri: unknown hypervisor 'kvm:/x', want xen"),
        (lambda: Context.open(Path("/x")), TypeError, "uri: want a str"),
        (lambda: PrecopyLimits(max_rounds=-1), ValueError, "max_rounds is -1: want 0 to"),
        (lambda: PrecopyLimits("9"), TypeError, "dirty_threshold"),
        (lambda: Limits(suspend=-1), ValueError, "suspend: -1 is not a number of seconds above 0"),
        (lambda: Limits(abort=float("nan")), ValueError, "abort"),
        (lambda: Limits(abort="5"), TypeError, "abort"),
        (lambda: MigrateOptions("postcopy"), TypeError, "strategy"),
        (lambda: MigrateOptions(config="{}"), TypeError, "config"),
        (lambda: MigrateOptions(MemoryStrategy.POSTCOPY, bandwidth=-1), ValueError, "bandwidth"),
    ],
)
def test_of_a_setting(make: Callable[[], object], kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        make()


def test_of_a_context(given: Given) -> None:
    with pytest.raises(ValueError, match="hypervisor: unknown hypervisor 'qemu'"):
        replace(given.ctx, hypervisor="qemu")
    with pytest.raises(TypeError, match="limits: want a Limits"):
        replace(given.ctx, limits=60)
    with pytest.raises(TypeError, match="missing_cpu_features: want a MissingCpuFeatures"):
        replace(given.ctx, missing_cpu_features="ignore")
    with pytest.raises(TypeError, match=r"engine: want an? Engine"):
        replace(given.ctx, engine_choice="own")
    with pytest.raises(ValueError, match="engine: libxenguest works on xen alone"):
        Context.open(given.ctx.hypervisor, engine=Engine.LIBXENGUEST)
    assert Context.open(given.ctx.hypervisor).host.domains() == []
