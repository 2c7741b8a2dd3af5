"""Checks of the public operations' arguments, made before anything is begun.

A value of the wrong type is a TypeError, an impossible one a ValueError; both name the parameter
and say what is wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from xen_save_helper.ipc_schema.channel.field_checks import whole_number
from xen_save_helper.ipc_schema.channel.listen import parse_listen
from xen_save_helper.ipc_schema.channel.messages import INTEGER_RANGES, Kind

_T = TypeVar("_T")
_F = TypeVar("_F", bound=Callable[..., object])

DOMID_FIRST_RESERVED: Final = 0x7FF0
"""Xen's public/xen.h: every domain's number is below it."""


def domain_number(value: object) -> int:
    """Return `value` if it can be a `domid`."""
    if isinstance(value, str):
        raise TypeError(
            f"domid: want a domain's number, not its name {value!r}; Context.host.find(name) has it"
        )
    return whole_number("domid", value, 0, DOMID_FIRST_RESERVED - 1)


def link(value: object) -> str:
    """Return `value` if it is an IP address, and perhaps :PORT; or empty."""
    if not isinstance(value, str):
        raise TypeError(f"link: want a string, not {value!r}")
    try:
        if value:
            parse_listen(value)
    except ValueError as error:
        raise ValueError(f"link {value!r}: want {error}") from None
    return value


def bandwidth(value: object) -> int:
    """Return `value` if it is a bandwidth: bytes a second, 0 for no limit."""
    return whole_number("bandwidth", value, *INTEGER_RANGES[Kind.ULONG], " bytes a second")


def flags(value: object, **known: int) -> int:
    """Return `value` if it has no bits but the `known` ones, which are given by name."""
    given = whole_number("flags", value, *INTEGER_RANGES[Kind.U32])
    if unknown := given & ~sum(known.values()):
        raise ValueError(f"flags: want {' and '.join(known)} only, not {unknown:#x}")
    return given


def instance(name: str, value: object, kind: type[_T]) -> _T:
    """Return `value` if it is a `kind`."""
    if not isinstance(value, kind):
        raise TypeError(f"{name}: want a {kind.__name__}, not {value!r}")
    return value


def function(name: str, value: _F) -> _F:
    """Return `value` if it can be called."""
    if not callable(value):
        raise TypeError(f"{name}: want a function, not {value!r}")
    return value


def configuration(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return `value` if it can be a domain's configuration (libxl_domain_config's JSON)."""
    if not isinstance(value, Mapping):
        raise TypeError(
            f"config: want a domain's configuration, a mapping as Context.host.config(domid) "
            f"returns, not {value!r}"
        )
    return value


def domain_name(value: object) -> str:
    """Return `value` if a domain can have this `name`."""
    name = instance("name", value, str)
    if not name:
        raise ValueError("name: want a name that is not empty")
    return name
