"""Checks a domain's configuration against what a simulated host supports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from xen_save_helper.helper.hypervisors.simulated import layout
from xen_save_helper.helper.hypervisors.simulated.kinds import NAMES

MAXMEM_CONSTANT: Final = 1024
"""KiB that a domain may have beyond `max_memkb`, for its special pages
(LIBXL_MAXMEM_CONSTANT; libxl adds the video memory, too)."""

MAX_MEMKB: Final = 1 << 30
"""1 TiB."""

TYPES: Final = ("pvh", "hvm")


def check_config(config: Mapping[str, Any]) -> None:
    """Raise ValueError for a configuration that a domain of this host cannot have. It may come from
    a peer or a file, so everything that is read later is checked here."""
    c_info, b_info = _part(config, "c_info"), _part(config, "b_info")
    kind = c_info.get("type")
    if not isinstance(kind, str) or kind not in TYPES:
        known = " and ".join(TYPES)
        raise ValueError(f"c_info.type is {_seen(kind)}: a simulated host has only {known} guests")
    _check_number("max_memkb", b_info.get("max_memkb"), 4)
    # libxl uses -1 for a size that is still to be chosen.
    _check_number("video_memkb", b_info.get("video_memkb", 0), -1)
    if "simulated" not in config:
        return  # a real guest's
    workload = _part(config, "simulated").get("workload")
    if not isinstance(workload, str) or workload not in NAMES:
        raise ValueError(f"unknown workload {_seen(workload)}, want one of {', '.join(NAMES)}")


def _part(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = config.get(name)
    if not isinstance(part, Mapping):
        raise ValueError(f"not a domain configuration: {name} is {_seen(part)}, not an object")
    return part


def _check_number(name: str, value: object, least: int) -> None:
    if type(value) is not int or not least <= value <= MAX_MEMKB:
        raise ValueError(
            f"b_info.{name} is {_seen(value)}, not a number from {least} to {MAX_MEMKB}"
        )


def _seen(value: object) -> str:
    """A value as shown in an error: on one short line."""
    if value is None:
        return "missing"
    return f"{value!r:.40}" if isinstance(value, str | int | float) else type(value).__name__


def memory_of(config: Mapping[str, Any]) -> int:
    """The part of the host's memory, in bytes, that a domain has from its creation to its end: what
    it may populate, without its few special pages."""
    b_info = config["b_info"]
    kib: int = b_info["max_memkb"] + max(0, b_info.get("video_memkb", 0))
    return kib * 1024


def uuid_of(config: Mapping[str, Any]) -> str | None:
    """`c_info.uuid` in lower case; None if there is none."""
    uuid = config["c_info"].get("uuid")
    return uuid.lower() if isinstance(uuid, str) else None


def capacity_for(config: Mapping[str, Any]) -> int:
    """Pfns that the domain has room for."""
    pages: int = config["b_info"]["max_memkb"] // 4
    capacity = layout.MIN_CAPACITY
    while capacity < pages + MAXMEM_CONSTANT:
        capacity *= 2
    return capacity
