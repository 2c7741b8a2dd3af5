"""The command receive."""

from __future__ import annotations

import argparse
import os
import stat
from functools import partial

from xen_save_helper.toolstack.cancellation import told
from xen_save_helper.toolstack.commands.common import complain
from xen_save_helper.toolstack.commands.running import context_of, run
from xen_save_helper.toolstack.xl import receive as receiving
from xen_save_helper.toolstack.xl.outcome import ExitCode


def receive(arguments: argparse.Namespace) -> int:
    """Serve one migration on stdin and stdout.

    The stream is moved away from 0 and 1 first: no helper and no stray print may touch it.
    """
    ctx = context_of(arguments, "receiver")
    of_a_sender = all(_is_of_another_process(fd) for fd in (0, 1))
    stream, back = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    try:
        receive_guest = partial(
            receiving.receive,
            ctx,
            stream,
            back,
            peer=arguments.source,
            leave_paused=arguments.paused,
        )
        result = run(told(receive_guest))
    finally:
        os.close(stream)
        os.close(back)
    reason = result.reason or ("" if result.started else "not started")
    # The sender reports what it was told, and why it has gone.
    heard = result.told or (result.sender_gone and of_a_sender)
    if reason and (not heard or arguments.verbose):
        complain(arguments, reason)
    return ExitCode.SUCCESS if result.started else ExitCode.FAILED


def _is_of_another_process(fd: int) -> bool:
    mode = os.fstat(fd).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
