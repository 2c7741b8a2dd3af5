"""Breaks one thing in every process that has this directory in its PYTHONPATH: see MUTANTS.

XEN_TEST_MUTANT names which. A module is broken right after it is imported.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

Break = Callable[[Any], None]
MUTANTS: dict[str, tuple[str, Break]] = {}
"""By name: the module, and what is done to it."""


def mutant(module: str) -> Callable[[Break], Break]:
    def register(function: Break) -> Break:
        MUTANTS[function.__name__.replace("_", "-")] = (module, function)
        return function

    return register


@mutant("xen_save_helper.toolstack.rules.helper_run")
def forgets_the_rc(module: Any) -> None:
    module.HelperRun._fail = lambda _self, _rc, _reason, _why=None: None


@mutant("xen_save_helper.toolstack.rules.helper_run")
def keeps_the_last_rc(module: Any) -> None:
    def fail(self: Any, rc: int, reason: str, why: Any = module._ENDED) -> None:
        if rc:
            self.rc, self.reason, self.why = rc, reason, why

    module.HelperRun._fail = fail


@mutant("xen_save_helper.toolstack.rules.helper_run")
def skips_sigkill(module: Any) -> None:
    step = module.TABLE[module.HelperPhase.COMPLETED, module.HelperEvent.LIMIT]
    done = (
        module.HelperAction.STOP_LISTENING,
        module.HelperAction.NO_LIMIT,
        module.HelperAction.DONE,
    )
    module.TABLE[module.HelperPhase.COMPLETED, module.HelperEvent.LIMIT] = step._replace(
        phase=module.HelperPhase.ENDED, actions=done
    )


@mutant("xen_save_helper.toolstack.helpers.supervisor")
def completes_twice(module: Any) -> None:
    begin = module.SaveHelper.__init__

    def twice(self: Any, request: Any, callbacks: Any, done: Any, **more: Any) -> None:
        begin(self, request, callbacks, lambda result: (done(result), done(result)), **more)

    module.SaveHelper.__init__ = twice


@mutant("xen_save_helper.toolstack.helpers.supervisor")
def waits_without_an_end(module: Any) -> None:
    module.SaveHelper._set_limit = lambda _self, _seconds, _what: None
    module.SaveHelper._watch = lambda _self: None


@mutant("xen_save_helper.toolstack.standstill")
def lets_nobody_go_on(module: Any) -> None:
    module.let_go_on = lambda _leader: None


@mutant("xen_save_helper.toolstack.rules.stream_write")
def gives_the_usual_rc(module: Any) -> None:
    """Also where the guest has not answered."""
    module.save_rc = lambda rc, retval, **_known: rc or (-3 if retval else 0)


@mutant("xen_save_helper.toolstack.xl.outcome")
def takes_a_known_state_for_undefined(module: Any) -> None:
    module.EXIT_CODES[module.Outcome.RUNNING_AT_SOURCE] = module.ExitCode.UNDEFINED


@mutant("xen_save_helper.toolstack.aio.scratch")
def sweeps_nothing(module: Any) -> None:
    module.sweep = lambda *_of, **_more: None


@mutant("xen_save_helper.helper.run")
def leaves_a_process_for_some_seconds(module: Any) -> None:
    tell = module._tell

    def told(*of: Any) -> None:
        tell(*of)
        if os.fork() == 0:
            os.closerange(0, 1 << 10)
            time.sleep(5)
            os._exit(0)

    module._tell = told


@mutant("xen_save_helper.toolstack.xl.restore_file")
def spoils_the_file_that_it_restores(module: Any) -> None:
    restore = module.restore_domain

    async def spoil(ctx: Any, parameters: Any) -> Any:
        result = await restore(ctx, parameters)
        if result.rc:
            os.truncate(f"/proc/self/fd/{parameters.restore_fd}", 4096)
        return result

    module.restore_domain = spoil


@mutant("xen_save_helper.helper.hypervisors.simulated.guest_loop")
def keeps_a_descriptor(module: Any) -> None:
    """The guest's process does, of each that talks to it."""
    drop = module.GuestLoop._drop

    def keep(self: Any, fd: int) -> None:
        os.dup(fd)
        drop(self, fd)

    module.GuestLoop._drop = keep


@mutant("xen_save_helper.toolstack.xl.receive")
def receiver_hides_its_failure(module: Any) -> None:
    result = module.ReceiveResult
    module.ReceiveResult = lambda *_of, **_more: result(True, module.Error.OK, "g", None, "")


@mutant("xen_save_helper.toolstack.rules.handshake")
def resumes_after_a_transition(module: Any) -> None:
    failed = module.Event.FAILED_AFTER_TRANSITION
    module.SENDER_TABLE[module.Sender.RUN_STREAM, failed] = module.Sender.RESUME


@mutant("xen_save_helper.toolstack.rules.handshake")
def resumes_after_go(module: Any) -> None:
    lost = (module.Sender.READ_REPORT, module.Event.FAILED)
    module.SENDER_TABLE[lost] = module.Sender.RENAME_BACK


@mutant("xen_save_helper.toolstack.operations.settle")
def leaves_log_dirty_on(module: Any) -> None:
    module.heal = lambda _host, _domid: ""


@mutant("xen_save_helper.toolstack.xl.migrate")
def does_not_resume(module: Any) -> None:
    async def resume(_self: Any) -> Any:
        return module.Event.OK

    module._Sending._resume = resume


@mutant("xen_save_helper.toolstack.xl.migrate")
def destroys_the_inconsistent(module: Any) -> None:
    async def rename(self: Any) -> Any:
        self._host.destroy(self._domid)
        return module.Event.OK

    module._Sending._rename_inconsistent = rename


@mutant("xen_save_helper.toolstack.rules.cause")
def says_no_reason(module: Any) -> None:
    module.Failures.reason = ""


@mutant("xen_save_helper.toolstack.xl.migrate")
def says_another_outcome(module: Any) -> None:
    """What is printed, not what is done."""
    as_json = module.MigrationResult.as_json

    def lie(self: Any) -> Any:
        return {**as_json(self), "postcopy_transitioned": "never"}

    module.MigrationResult.as_json = lie


@mutant("xen_save_helper.toolstack.hosts.simulated.host")
def leaves_the_copy(module: Any) -> None:
    destroy = module.SimulatedHost.destroy

    def spare(self: Any, domid: int) -> None:
        if not self.config(domid)["c_info"]["name"].endswith("--incoming"):
            destroy(self, domid)

    module.SimulatedHost.destroy = spare


@mutant("xen_save_helper.toolstack.xl.journal")
def leaves_the_journal(module: Any) -> None:
    module.Journal.close = lambda _self: None


@mutant("xen_save_helper.toolstack.xl.save_target")
def leaves_the_partial_file(module: Any) -> None:
    module._Replacing.__exit__ = lambda self, *_: os.close(self.fd)


@mutant("xen_save_helper.toolstack.xl.save_target")
def keeps_a_broken_file(module: Any) -> None:
    def keep(self: Any, *_: object) -> None:
        if self.partial is not None:
            self.partial.replace(self._path)
        os.close(self.fd)

    module._Replacing.__exit__ = keep


@mutant("xen_save_helper.toolstack.xl.outcome")
def exits_with_another_code(module: Any) -> None:
    module.EXIT_CODES[module.Outcome.POSTCOPY_FAILED] = module.ExitCode.FAILED


@mutant("xen_save_helper.toolstack.xl.recover")
def recovers_by_guesswork(module: Any) -> None:
    module.REMEDIES[module.Role.SOURCE, module.Promise.TRANSITION] = module.Remedy.RESUME


@mutant("xen_save_helper.helper.channels.zmq_channel")
def takes_no_refusal(module: Any) -> None:
    """The helper goes on without its guest's suspension."""
    call = module.ZmqChannel.call

    def deaf(self: Any, name: str, **fields: Any) -> int:
        value = int(call(self, name, **fields))
        return 1 if name == "suspend" else value

    module.ZmqChannel.call = deaf


@mutant("xen_save_helper.helper.channels.zmq_channel")
def tells_its_result_twice(module: Any) -> None:
    call = module.ZmqChannel.call

    def twice(self: Any, name: str, **fields: Any) -> int:
        if name == "complete":
            call(self, name, **fields)
        return int(call(self, name, **fields))

    module.ZmqChannel.call = twice


@mutant("xen_save_helper.helper.hypervisors.simulated.domain")
def loses_dirty_pages(module: Any) -> None:
    clean = module.SimulatedDomain.logdirty_clean

    def lose(self: Any, dirty: Any, *, final: bool = False) -> int:
        count = int(clean(self, dirty, final=final))
        dirty[:] = bytes(len(dirty))
        return count

    module.SimulatedDomain.logdirty_clean = lose


@mutant("xen_save_helper.helper.hypervisors.simulated.domain")
def leaves_to_postcopy_what_the_hypervisor_needs(module: Any) -> None:
    module.SimulatedDomain.needed_at_once = lambda _self: module.pfns_of()


@mutant("xen_save_helper.ipc_schema.streams.libxc_record_types")
def takes_any_record(module: Any) -> None:
    record_type = module.record_type

    def take(number: int, version: int, offset: int) -> Any:
        return record_type(number if number < 32 else number | module.OPTIONAL, version, offset)

    module.record_type = take


@mutant("xen_save_helper.helper.engine.postcopy_restore")
def counts_no_pages(module: Any) -> None:
    module.PostcopyReceiver.check_count = lambda _self, _count, _offset: None


@mutant("xen_save_helper.toolstack.xl.migrate")
def harms_the_source(module: Any) -> None:
    resume = module._Sending._resume

    async def scribble(self: Any) -> Any:
        with self._host.domain(self._domid) as domain:
            for begin in range(0, 4096 * domain.shared.domain.maximum_gpfn, 4096):
                domain.shared.memory[begin : begin + 8] = bytes(8 * [255])
        return await resume(self)

    module._Sending._resume = scribble


@mutant("xen_save_helper.toolstack.rules.helper_run")
def hides_the_cause(module: Any) -> None:
    exited = module.HelperRun.exited
    module.HelperRun.exited = lambda self, status, _last_words="": exited(self, status)


@mutant("xen_save_helper.toolstack.rules.handshake")
def resumes_when_pages_are_lost(module: Any) -> None:
    lost = (module.Sender.SERVE_PAGES, module.Event.FAILED)
    module.SENDER_TABLE[lost] = module.Sender.RESUME


@mutant("xen_save_helper.toolstack.xl.left_pages")
def takes_lost_pages_for_sent(module: Any) -> None:
    all_sent = module.all_sent

    async def sent(*of: Any) -> Any:
        try:
            return await all_sent(*of)
        except module.PagesLostError:
            return None

    module.all_sent = sent


@mutant("xen_save_helper.helper.postcopy_link.tunnel")
def says_nothing_again(module: Any) -> None:
    """What was on its way when the connection broke."""
    module.Tunnel._say_again = lambda self: setattr(self, "_went_on", time.monotonic())


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, module: str, broken: Break) -> None:
        self._module = module
        self._break = broken

    def find_spec(
        self, fullname: str, path: Any, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._module:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            self._break(module)

        spec.loader.exec_module = exec_module
        return spec


if (name := os.environ.get("XEN_TEST_MUTANT")) is not None:
    sys.meta_path.insert(0, _Finder(*MUTANTS[name]))
