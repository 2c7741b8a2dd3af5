"""The command `xen-save-helper-qemu`: a device model for HVM guests on a host whose QEMU refuses
the state of a restored guest in the form in which libxl passes it (`helper.hypervisors.xen.qemu`).

It takes QEMU's arguments, changes `-incoming fd:N` to `-incoming file:/proc/self/fd/N` if N is a
regular file and QEMU needs it so, and becomes QEMU: the same process, the same descriptors.
"""

from __future__ import annotations

import os
import signal
import stat
import sys
from collections.abc import Sequence
from typing import Final

from xen_save_helper.helper.hypervisors.xen import qemu

EXIT_NO_QEMU: Final = 127
"""As in a shell."""

_INCOMING: Final = ("-incoming", "--incoming")
_BY_DESCRIPTOR: Final = "fd:"


def main() -> int:
    """Run as a process; does not return if there is a QEMU."""
    try:
        program = qemu.started_by_wrapper(os.environ)
        arguments = _arguments(sys.argv[1:], program)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            # Python ignores them, and QEMU would inherit that.
            signal.signal(number, signal.SIG_DFL)
        try:
            os.execv(program, [program, *arguments])
        except OSError as bad:
            raise OSError(bad.errno, f"{program}: {bad.strerror}") from None
    except OSError as bad:
        _say(str(bad.strerror))
        return EXIT_NO_QEMU


def _arguments(given: Sequence[str], program: str) -> list[str]:
    """The arguments for this QEMU."""
    changed = with_state_by_name(given)
    if changed == list(given):
        return changed
    try:
        version = qemu.version_of(program)
    except OSError as bad:
        # This goes into the device model's log; QEMU will say whether it accepts the state.
        _say(f"the state is passed on unchanged: {bad.strerror}")
        return list(given)
    return list(given) if qemu.takes_files(version) else changed


def with_state_by_name(given: Sequence[str]) -> list[str]:
    """The arguments, with `-incoming file:PATH` for each `-incoming fd:N` whose N is a regular
    file."""
    changed = list(given)
    for place in range(1, len(changed)):
        if changed[place - 1] in _INCOMING and changed[place].startswith(_BY_DESCRIPTOR):
            number = changed[place].removeprefix(_BY_DESCRIPTOR)
            if number.isdecimal() and _is_regular(int(number)):
                changed[place] = f"file:/proc/self/fd/{number}"
    return changed


def _is_regular(fd: int) -> bool:
    """Also false if it is not open: QEMU reports that itself."""
    try:
        return stat.S_ISREG(os.fstat(fd).st_mode)
    except OSError:
        return False


def _say(text: str) -> None:
    print(f"{qemu.WRAPPER}: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
