"""Checks that this host has the CPU features that a guest was offered, before taking its memory.

Xen silently accepts a policy that offers more than its CPUs have: it hides the rest from the guest,
and refuses the guest's registers at the end if they show that it uses any of that.
"""

from __future__ import annotations

import errno

from xen_save_helper.helper.channels.reporter import Reporter
from xen_save_helper.helper.settings import PREFIX
from xen_save_helper.ipc_schema.channel.messages import MissingCpuFeatures, XentoollogLevel
from xen_save_helper.ipc_schema.hints import Final
from xen_save_helper.ipc_schema.streams.cpu_features import missing

_WAY_OUT: Final = (
    f"`--missing-cpu-features {MissingCpuFeatures.IGNORE}` (under xl "
    f"{PREFIX}MISSING_CPU_FEATURES={MissingCpuFeatures.IGNORE})"
)


def check_features(
    wanted: bytes, offered: bytes, choice: MissingCpuFeatures, reporter: Reporter
) -> None:
    """Compare CPUID leaves: those `wanted` by the guest's policy, and all that are `offered` to a
    guest of its kind here. Raises OSError(ENOTSUP) that names what is missing; if it is to be
    ignored, logs it instead."""
    lacking = missing(wanted, offered)
    if not lacking:
        return
    text = f"this host lacks CPU features that the guest was offered: {', '.join(lacking)}"
    if choice is MissingCpuFeatures.IGNORE:
        reporter.log(XentoollogLevel.WARN, f"{text}; it is restored anyway, as requested")
        return
    raise OSError(
        errno.ENOTSUP,
        f"{text}. A guest that uses none of them can be restored with {_WAY_OUT}; one that was "
        "created with a `cpuid` option that masks them can come here",
    )
