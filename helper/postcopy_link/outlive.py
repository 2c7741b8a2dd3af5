"""A restore whose work is done by a process that may outlive it, as a pager.

Whoever has started a helper waits for its end. So that one starts another, which does all the work
on the helper's own channel, and ends with it: or earlier, when the domain is restored and its last
pages are still to come. The other one says which it is (`last_word`).
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from xen_save_helper.helper.channels.channel import CONTEXT
from xen_save_helper.helper.job import EXIT_DONE, EXIT_FAILED
from xen_save_helper.helper.postcopy_link import last_word
from xen_save_helper.helper.settings import OUTLIVE

_EXIT_BY_SIGNAL = 128


def inherited() -> list[int]:
    """The descriptors that were handed to this process, besides the standard ones."""
    numbers = map(int, os.listdir("/proc/self/fd"))
    return [fd for fd in numbers if fd > 2 and _is_inheritable(fd)]


def _is_inheritable(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False  # that of the listing itself


def run_beside(arguments: list[str], streams: Sequence[int]) -> NoReturn:
    """Have another process do what this one was started for with `arguments`, on its inherited
    descriptors `streams`; end when it has, or when the domain is restored."""
    mine, its = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "xen_save_helper.helper.main", *arguments],
        env={**os.environ, OUTLIVE: str(its)},
        pass_fds=[its, *streams],
    )
    os.close(its)
    word = os.read(mine, 1)
    if word == last_word.GOES_ON:
        os._exit(EXIT_DONE)
    status = process.wait()
    if status < 0:
        _die_as(-status)
    if status == EXIT_DONE and word != last_word.ENDS:
        print(f"{CONTEXT}: the process that works for it ended too early", file=sys.stderr)
        status = EXIT_FAILED
    os._exit(status)


def _die_as(number: int) -> None:
    """As the one that has done the work, so that whoever waits is told why. That one has written
    its memory out if anybody wants it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with suppress(OSError):  # that of SIGKILL cannot be set
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)
    os._exit(_EXIT_BY_SIGNAL + number)
