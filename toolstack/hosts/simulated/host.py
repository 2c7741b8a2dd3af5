"""interface.Host of a simulated host: what the toolstack does to its domains."""

from __future__ import annotations

import errno
import os
import secrets
import signal
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from xen_save_helper.helper.hypervisors.simulated import (
    control,
    device_model,
    domain_files,
    userfault,
)
from xen_save_helper.helper.hypervisors.simulated.config import check_config, memory_of, uuid_of
from xen_save_helper.helper.hypervisors.simulated.kinds import NAMES
from xen_save_helper.helper.hypervisors.simulated.layout import Behaviour
from xen_save_helper.helper.hypervisors.simulated.open_domain import ANSWER_LIMIT, OpenDomain
from xen_save_helper.helper.hypervisors.simulated.shared import GuestGoneError, GuestProcess
from xen_save_helper.toolstack.hosts.interface import (
    DomainSummary,
    GuestReport,
    GuestState,
    RestoredGfns,
    RestoreProgram,
    Rings,
)
from xen_save_helper.toolstack.hosts.simulated.names import Names
from xen_save_helper.toolstack.hosts.simulated.process import StartingGuest
from xen_save_helper.toolstack.hosts.simulated.reports import report_of, state_of
from xen_save_helper.toolstack.hosts.simulated.suspend import SimulatedSuspendRequest

BUILD_TIMEOUT: Final = 120.0
"""Seconds for a guest to fill its memory."""
LONGEST_NAME: Final = 150
"""Bytes of a new guest's name, as in a URL: this leaves room for the suffixes of a migration, and
for file names that contain it."""


class SimulatedHost:
    """The host in `directory`. A domain's process may take `timeout` seconds to answer a request,
    to start and to end."""

    def __init__(self, directory: str | os.PathLike[str], timeout: float = ANSWER_LIMIT) -> None:
        """Raises FileNotFoundError or NotADirectoryError if the directory is not a host."""
        self.directory = Path(directory).absolute()
        domain_files.check_host(self.directory)
        self.state_dir = self.directory
        self.control_dir = self.directory / "control"
        self.timeout = timeout
        self._names = Names(self.directory)

    # -- who is there ---------------------------------------------------------------------------

    def domains(self) -> list[DomainSummary]:
        rows = []
        for domid in domain_files.domids(self.directory):
            try:
                rows.append(self.summary(domid))
            except ProcessLookupError:
                # Destroyed while we looked.
                continue
        return rows

    def summary(self, domid: int) -> DomainSummary:
        with self.domain(domid) as domain:
            return self._summary(domain)

    @staticmethod
    def _summary(domain: OpenDomain) -> DomainSummary:
        config = domain.config()
        pid = domain.pid
        page = domain.shared.domain if pid is not None else None
        return DomainSummary(
            domid=domain.domid,
            name=config["c_info"].get("name", ""),
            memory=config["b_info"]["max_memkb"] * 1024,
            type=config["c_info"]["type"],
            # A real guest's configuration has none.
            workload=config.get("simulated", {}).get("workload"),
            state=state_of(domain),
            log_dirty=page is not None and bool(page.logdirty_epoch % 2 or page.qemu_logdirty),
            pid=pid,
            uuid=uuid_of(config),
        )

    def find(self, name: str) -> int:
        domid = self._names.find(name)
        if domid is None:
            text = f"there is no domain {name!r} on {self.directory}"
            raise ProcessLookupError(errno.ESRCH, text)
        return domid

    def domain(self, domid: int) -> OpenDomain:
        path = domain_files.domain_path(self.directory, domid)
        return OpenDomain(path, domid, self.timeout)

    def config(self, domid: int) -> dict[str, Any]:
        with self._directory(domid) as fd:
            return domain_files.read_config(fd)

    @contextmanager
    def _directory(self, domid: int) -> Iterator[int]:
        """A descriptor of the domain's directory. Raises ProcessLookupError."""
        try:
            with domain_files.directory_fd(domain_files.domain_path(self.directory, domid)) as fd:
                yield fd
        except FileNotFoundError as error:
            raise ProcessLookupError(errno.ESRCH, f"there is no domain {domid}") from error

    def _ask(self, domid: int, timeout: float | None = None, **message: Any) -> control.Message:
        with self._directory(domid) as fd:
            return control.request(fd, timeout or self.timeout, **message)

    def why_not_create(self, config: Mapping[str, Any]) -> str:
        try:
            check_config(config)
        except ValueError as error:
            return str(error)
        return self._why_no_room(config)

    def _why_no_room(self, config: Mapping[str, Any]) -> str:
        free, needed = self.free_memory(), memory_of(config)
        if free is None or needed <= free:
            return ""
        return (
            f"no room for {_mib(needed)}: of {_mib(self.memory or 0)} there are {_mib(free)} free "
            f"on {self.directory}"
        )

    @property
    def memory(self) -> int | None:
        """The bytes that the host's guests may have together; None if there is no bound."""
        return domain_files.read_memory(self.directory)

    def free_memory(self) -> int | None:
        memory = self.memory
        return None if memory is None else max(0, memory - self.memory_in_use())

    def memory_in_use(self) -> int:
        """The bytes that all its domains have, including suspended and crashed ones, and those that
        are being made."""
        configs = domain_files.being_made(self.directory)
        for domid in domain_files.domids(self.directory):
            with suppress(ProcessLookupError):
                configs[domid] = self.config(domid)
        return sum(map(memory_of, configs.values()))

    def bound_memory(self, memory: int) -> None:
        """Set the bytes that the host's guests may have together. Raises OSError (EBUSY) if they
        have more."""
        with domain_files.host_lock(self.directory, self.timeout):
            if (in_use := self.memory_in_use()) > memory:
                raise OSError(
                    errno.EBUSY,
                    f"the guests on {self.directory} have {_mib(in_use)}, more than {_mib(memory)}",
                )
            domain_files.write_memory(self.directory, memory)

    @property
    def lacks(self) -> list[str]:
        """The CPU features that it lacks, by the names of `ipc_schema.streams.cpu_features`."""
        return domain_files.read_lacks(self.directory)

    def take_away(self, lacks: Sequence[str]) -> None:
        """Set the CPU features that it lacks. Existing guests keep what they were offered."""
        with domain_files.host_lock(self.directory, self.timeout):
            domain_files.write_lacks(self.directory, lacks)

    def why_no_postcopy(self) -> str:
        return userfault.why_not()

    def restore_program(
        self, config: Mapping[str, Any], name: str, *, postcopy: bool
    ) -> RestoreProgram | None:
        return None

    # -- making and ending ----------------------------------------------------------------------

    def create(self, config: Mapping[str, Any], name: str) -> int:
        check_config(config)
        named = {**config, "c_info": {**config["c_info"], "name": name}}
        with domain_files.host_lock(self.directory, self.timeout):
            self._check_name_free(name)
            if problem := self._why_no_room(config):
                raise OSError(errno.ENOMEM, problem)
            domid, path, claim = domain_files.new_domain_directory(self.directory, named)
        # Without the lock, which others wait for: its name and memory are taken from here on.
        try:
            self._start(domid, path)
        finally:
            os.close(claim)
        return domid

    def _start(self, domid: int, path: Path) -> None:
        """Start the process of a domain that is being made in `path`, and put that in place."""
        try:
            with domain_files.directory_fd(path) as fd:
                guest = StartingGuest(domid, fd, self.timeout)
        except BaseException:
            domain_files.remove_tree(path)
            raise
        try:
            with domain_files.host_lock(self.directory, self.timeout):
                path.rename(domain_files.domain_path(self.directory, domid))
        except BaseException:
            guest.cancel()
            raise
        try:
            guest.release()
        except BaseException:
            with (
                domain_files.host_lock(self.directory, self.timeout),
                suppress(FileNotFoundError),  # the process has ended because that was destroyed
            ):
                domain_files.remove_domain(self.directory, domid)
            raise

    def _check_name_free(self, name: str) -> None:
        """Raise FileExistsError if the name is taken, ValueError if it is not a name. The caller
        holds the host's lock."""
        if not name or len(name) > 200 or not name.isprintable():
            raise ValueError(f"{name!r} is not a name for a domain")
        domid = self._names.find(name)
        if domid is None:
            made = domain_files.being_made(self.directory)
            names = {config["c_info"]["name"]: domid for domid, config in made.items()}
            domid = names.get(name)
        if domid is not None:
            raise FileExistsError(errno.EEXIST, f"there is already a domain {name!r} ({domid})")

    def create_guest(
        self,
        name: str,
        memory_bytes: int,
        workload: str,
        rate: float | None = None,
        seed: int | None = None,
        type: str = "hvm",  # noqa: A002 - libxl's name of it
        behaviour: Behaviour = Behaviour.NORMAL,
        behaviour_seconds: float = 0.0,
    ) -> int:
        """Make a new guest and let it run; returns when its memory is built. `rate` is in pages a
        second, None for the workload's own. An `hvm` guest has a device model, a `pvh` guest none.

        Raises ValueError for invalid arguments, and as `create` does.
        """
        if len(quote(name)) > LONGEST_NAME:
            raise ValueError(
                f"the name {name!r} is too long: want at most {LONGEST_NAME} characters, of which "
                "those that are not ASCII count three to twelve times"
            )
        if workload not in NAMES:
            raise ValueError(f"unknown workload {workload!r}; there are {', '.join(NAMES)}")
        if memory_bytes % 4096 or memory_bytes < 1 << 20:
            raise ValueError(f"memory of {memory_bytes} bytes: want whole pages, at least 1 MiB")
        if rate is not None and not rate > 0:
            raise ValueError(f"a rate of {rate} pages a second: want more than 0")
        simulated = {
            "workload": workload,
            "rate": rate,
            "seed": secrets.randbits(63) if seed is None else seed,
        }
        config = {
            "c_info": {"type": type, "name": name, "uuid": str(uuid.uuid4())},
            "b_info": {
                "max_vcpus": 1,
                "max_memkb": memory_bytes // 1024,
                "target_memkb": memory_bytes // 1024,
            },
            "simulated": simulated,
        }
        domid = self.create(config, name)
        try:
            pages = memory_bytes // 4096
            self._ask(domid, BUILD_TIMEOUT, do="build", pages=pages, **simulated)
            self.set_behaviour(domid, behaviour, behaviour_seconds)
            self.unpause(domid)
        except BaseException:
            self.destroy(domid)
            raise
        return domid

    def set_behaviour(self, domid: int, behaviour: Behaviour, seconds: float = 0.0) -> None:
        """Set how the guest reacts to suspend requests from now on."""
        with self.domain(domid) as domain:
            page = domain.shared.domain
            page.behaviour_seconds = seconds
            page.behaviour = behaviour

    def destroy(self, domid: int) -> None:
        with self._directory(domid) as fd:
            try:
                process = GuestProcess.open(fd)
            except GuestGoneError:
                process = None
            if process is not None:
                self._kill(process, domid)
        with domain_files.host_lock(self.directory, self.timeout):
            try:
                domain_files.remove_domain(self.directory, domid)
            except FileNotFoundError as error:
                raise ProcessLookupError(errno.ESRCH, f"there is no domain {domid}") from error

    def _kill(self, process: GuestProcess, domid: int) -> None:
        try:
            if process.alive():
                signal.pidfd_send_signal(process.pidfd, signal.SIGKILL)
            if not process.wait_end(self.timeout):
                raise TimeoutError(
                    f"process {process.pid} of domain {domid} did not end within {self.timeout} s"
                )
        finally:
            process.close()

    def clear_up(self) -> None:
        with domain_files.host_lock(self.directory, self.timeout):
            domain_files.clear_up(self.directory)

    def rename(self, domid: int, name: str) -> None:
        with domain_files.host_lock(self.directory, self.timeout):
            config = self.config(domid)
            if config["c_info"].get("name") == name:
                return
            self._check_name_free(name)
            config["c_info"]["name"] = name
            domain_files.write_config(domain_files.domain_path(self.directory, domid), config)

    # -- running --------------------------------------------------------------------------------

    def pause(self, domid: int) -> None:
        self._ask(domid, do="pause")

    def unpause(self, domid: int) -> None:
        """Raises ENOEXEC if the domain's registers are not a simulated guest's, EINVAL if it has
        none: such a domain can be saved, but not run."""
        self._ask(domid, do="unpause")

    def suspend_request(self, domid: int) -> SimulatedSuspendRequest:
        domain = self.domain(domid)
        try:
            with self._directory(domid) as fd:
                directory = os.dup(fd)
        except BaseException:
            domain.close()
            raise
        return SimulatedSuspendRequest(domain, directory, self.timeout)

    def resume(self, domid: int) -> None:
        """Also withdraws a suspend request that the guest has not acknowledged."""
        with self.domain(domid) as domain, self._directory(domid) as fd:
            page = domain.shared.domain
            with domain_files.suspend_lock(fd, self.timeout):
                page.suspend_wanted = 0
            control.request(fd, self.timeout, do="resume")

    def balloon(self, domid: int, pages: int) -> int:
        """Have the running guest give back its last `pages` pages; returns how many it gave."""
        return int(self._ask(domid, do="balloon", pages=pages)["pages"])

    # -- device model ---------------------------------------------------------------------------

    def switch_qemu_logdirty(self, domid: int, enable: bool) -> None:
        with self.domain(domid) as domain:
            page = domain.shared.domain
            if page.hvm:
                page.qemu_logdirty = int(enable)

    def suspend_emulator(self, domid: int, live: bool) -> None:
        """Do nothing: a simulated device model does not write guest memory."""

    def emulator_xenstore_data(self, domid: int) -> list[tuple[bytes, bytes]]:
        with self._directory(domid) as fd:
            model = device_model.load(fd)
        return [] if model is None else list(model.xenstore)

    def emulator_context(self, domid: int) -> bytes | None:
        """Raises EBUSY if the domain is running."""
        with self.domain(domid) as domain, self._directory(domid) as fd:
            model = device_model.load(fd)
            if model is None:
                return None
            page = domain.shared.domain
            if not page.stands_still:
                raise OSError(errno.EBUSY, f"domain {domid} runs; suspend it first")
            return model.save(page.steps)

    def rings(self, domid: int) -> Rings:
        return Rings()

    def static_data_done(self, domid: int, missing: int) -> int:
        return 0

    def rebuild_done(
        self,
        domid: int,
        gfns: RestoredGfns,
        xenstore: Sequence[tuple[bytes, bytes]],
        context: bytes | None,
    ) -> None:
        self.restore_emulator(domid, xenstore, context)

    def restore_emulator(
        self, domid: int, xenstore: Sequence[tuple[bytes, bytes]], context: bytes | None
    ) -> None:
        """Start a restored domain's device model from what was saved. Raises EINVAL if it cannot
        have one."""
        with self._directory(domid) as fd:
            if domain_files.read_config(fd)["c_info"]["type"] != "hvm":
                if xenstore or context is not None:
                    raise OSError(errno.EINVAL, f"domain {domid} has no device model")
                return
            device_model.store(fd, device_model.DeviceModel.restored(xenstore, context))

    # -- reports --------------------------------------------------------------------------------

    def report(self, domid: int) -> GuestReport:
        with self.domain(domid) as domain:
            return report_of(domain)

    def verify(self, domid: int, timeout: float) -> GuestReport:
        """Raises TimeoutError. A guest that has crashed reports that at once."""
        with self.domain(domid) as domain:
            if state_of(domain) is not GuestState.CRASHED:
                self._ask(domid, timeout, do="verify")
            return report_of(domain)


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.6g} MiB"
