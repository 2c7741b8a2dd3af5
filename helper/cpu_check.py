"""Whether this host has what a guest's CPU policy offered it, before anything of it is taken.

Xen takes a policy that offers more than its CPUs have, without a word: it hides the rest from the
guest, and refuses its registers at the end where they show that it uses some of that.
"""

from __future__ import annotations

import errno
from typing import Final

from xen_save_helper.helper.channels.reporter import Reporter
from xen_save_helper.helper.settings import PREFIX
from xen_save_helper.ipc_schema.channel.messages import MissingCpuFeatures, XentoollogLevel
from xen_save_helper.ipc_schema.streams.cpu_features import missing

_WAY_OUT: Final = (
    f"`--missing-cpu-features {MissingCpuFeatures.IGNORE}` (under xl "
    f"{PREFIX}MISSING_CPU_FEATURES={MissingCpuFeatures.IGNORE})"
)


def check_features(
    wanted: bytes, offered: bytes, choice: MissingCpuFeatures, reporter: Reporter
) -> None:
    """`wanted` and `offered` are CPUID leaves, of the guest's policy and of all that a guest of its
    kind may have here. Raises OSError(ENOTSUP) that names what is missing, unless that is to be
    ignored: then the log has it."""
    lacking = missing(wanted, offered)
    if not lacking:
        return
    text = f"this host lacks CPU features that the guest was offered: {', '.join(lacking)}"
    if choice is MissingCpuFeatures.IGNORE:
        reporter.log(XentoollogLevel.WARN, f"{text}; it is restored all the same, as was asked for")
        return
    raise OSError(
        errno.ENOTSUP,
        f"{text}. A guest that uses none of them can be restored with {_WAY_OUT}; one that was "
        "created with `cpuid` without them can come here",
    )
