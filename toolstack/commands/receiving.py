"""receive."""

from __future__ import annotations

import argparse
import os
from functools import partial

from toolstack import receive as receiving
from toolstack.cancellation import told
from toolstack.commands.common import complain
from toolstack.commands.running import context_of, run
from toolstack.outcome import ExitCode


def receive(arguments: argparse.Namespace) -> int:
    """Serve one migration on stdin and stdout.

    They are moved away from 0 and 1 first: no helper and no stray print may touch the stream.
    """
    ctx = context_of(arguments, "receiver")
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
    # What the sender was told, it tells.
    if reason and not result.told:
        complain(arguments, reason)
    return ExitCode.SUCCESS if result.started else ExitCode.FAILED
