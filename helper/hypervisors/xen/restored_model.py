"""Which device model libxl starts for an HVM domain that is restored, and whether it will take the
state that comes with it: known before the first page, or found out by libxl after the last.

Our controller has the domain's configuration. A save helper under another toolstack has none:
libxl stores a restored domain's when all is done, and xenstore has the domain's type alone. So who
names a device model in configurations (`device_model_override` in xl's) has a setting to tell the
helper.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping

from xen_save_helper.helper.hypervisors.own_programs import own_program
from xen_save_helper.helper.hypervisors.xen import qemu
from xen_save_helper.ipc_schema.hints import Any, Final
from xen_save_helper.ipc_schema.named_tuple import NamedTuple

SETTING: Final = "XEN_SAVE_HELPER_DEVICE_MODEL"
"""What libxl starts as a restored HVM domain's device model, a path, where that is not the packaged
QEMU; or UNCHECKED."""

UNCHECKED: Final = "unchecked"
"""Nobody looks at it: a device model in a domain of its own, or one that is no such QEMU."""

_HVM: Final = "hvm"
_QEMU_XEN: Final = "qemu_xen"
"""libxl_device_model_version, in xenstore, too: the only one that a packaged QEMU is."""


class Choice(NamedTuple):
    """`config` is the configuration to restore with, `setting` the helper's SETTING, empty if it
    need not be set, `remark` a line for people, empty if there is nothing to say."""

    config: dict[str, Any]
    setting: str = ""
    remark: str = ""


def choose(config: Mapping[str, Any]) -> Choice:
    """For a restore with libxl_domain_config's JSON `config`: with our wrapper as device model
    if QEMU needs it, and only then.

    Raises OSError: ENOTSUP for a QEMU of the configuration's own that needs it, ENOENT if the
    wrapper is not installed.
    """
    chosen = dict(config)
    build = dict(chosen.get("b_info") or {})
    if (chosen.get("c_info") or {}).get("type") != _HVM:
        return Choice(chosen)
    if _is_true(build.get("device_model_stubdomain")) or (
        build.get("device_model_version", _QEMU_XEN) != _QEMU_XEN
    ):
        return Choice(chosen, UNCHECKED)
    named = build.get("device_model") or ""
    if named and not qemu.is_wrapper(named):
        try:
            refusal = _refusal(named)
        except OSError as bad:
            return Choice(chosen, UNCHECKED, str(bad.strerror))
        if refusal:
            raise OSError(
                errno.ENOTSUP,
                f"{refusal}: name {own_program(qemu.WRAPPER)} as its device model, with "
                f"{qemu.PROGRAM_VARIABLE}={named} in the environment of who restores it",
            )
        return Choice(chosen, named)
    packaged = qemu.packaged()
    if packaged is None or qemu.is_wrapper(packaged):
        # libxl will say so, or it will do.
        return Choice(chosen, named)
    try:
        refusal = _refusal(packaged)
    except OSError as bad:
        return Choice(chosen, UNCHECKED, str(bad.strerror))
    if not refusal and not named:
        return Choice(chosen)
    if not refusal:
        # The wrapper of another host, which may not be here.
        del build["device_model"]
        return Choice({**chosen, "b_info": build})
    wrapper = str(own_program(qemu.WRAPPER))
    if named == wrapper:
        return Choice(chosen, wrapper)
    build["device_model"] = wrapper
    remark = (
        f"{refusal}: {wrapper} starts it, and stands in the domain's configuration from here on"
    )
    return Choice({**chosen, "b_info": build}, wrapper, remark)


def check(domid: int, named: str) -> str:
    """For a helper that is to restore into `domid`, SETTING being `named`: returns a doubt for the
    log, empty if there is none. Raises OSError (ENOTSUP) if the restore would fail when all
    memory has come."""
    if named == UNCHECKED:
        return ""
    program = named or qemu.packaged()
    if program is None or qemu.is_wrapper(program):
        return ""
    # Imported late: where no such program is, a restore need not wait for the sockets' module.
    from xen_save_helper.helper.hypervisors.xen.xenstore import Xenstore

    try:
        with Xenstore() as xenstore:
            kind = xenstore.text(f"/libxl/{domid}/type")
            version = xenstore.text(f"/libxl/{domid}/dm-version")
    except OSError as bad:
        return f"what domain {domid} has for a device model is not known: {bad.strerror}"
    if kind != _HVM or version != _QEMU_XEN:
        return ""
    try:
        refusal = _refusal(program)
    except OSError as bad:
        return str(bad.strerror)
    if refusal:
        try:
            wrapper = str(own_program(qemu.WRAPPER))
        except FileNotFoundError:
            wrapper = qemu.WRAPPER
        raise OSError(
            errno.ENOTSUP,
            f'{refusal}: put device_model_override="{wrapper}" into its configuration, and '
            f"set {SETTING} to the same path",
        )
    return ""


def _refusal(program: str) -> str:
    """Why it will not take the state; empty if it will. Raises OSError if it does not tell
    its version."""
    version = qemu.version_of(program)
    if qemu.takes_files(version):
        return ""
    number = ".".join(map(str, version))
    return (
        f"the device model {program} is QEMU {number}, which takes no saved state as libxl gives it"
    )


def _is_true(value: object) -> bool:
    """libxl_defbool's JSON."""
    return value in (True, "True")
