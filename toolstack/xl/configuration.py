"""Reads the configuration of a guest from a file (`-C FILE`): libxl_domain_config as JSON.

`xl list -l NAME` prints it, in a list and with a `domid`, which may be there or not; `xl save`
writes it into its header.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from xen_save_helper.ipc_schema.streams.xl_header import MAX_OPTIONAL_DATA

TYPES: Final = ("hvm", "pv", "pvh")
"""libxl_domain_type."""

_WANTED: Final = "libxl's JSON, as `xl list -l NAME` or `xl create -q -n FILE.cfg` prints it"


class ConfigurationError(ValueError):
    """A file without a configuration; the text names the file and what it should hold."""


def read_configuration(path: Path) -> dict[str, Any]:
    """Read the configuration in `path`: an object with `c_info` (`name`, `type`) and `b_info`
    (`max_memkb`), of the types that libxl gives them, without the domid.

    Raises ConfigurationError if the file holds none, OSError if it cannot be read.
    """
    with path.open("rb") as file:
        text = file.read(MAX_OPTIONAL_DATA + 1)
    try:
        if len(text) > MAX_OPTIONAL_DATA:
            raise ValueError(f"is longer than {MAX_OPTIONAL_DATA >> 20} MiB")
        config = _unwrapped(_json(text))
        _check(config)
    except ValueError as error:
        raise ConfigurationError(f"{path}: {error}") from error
    config["c_info"].pop("domid", None)
    return config


def _json(text: bytes) -> object:
    """Decode JSON. Raises ValueError, which says where it breaks."""
    text = text.rstrip(b"\0")
    if text.lstrip()[:1] not in {b"{", b"["}:
        raise ValueError(f"is not JSON; want {_WANTED}")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno}, column {error.colno}: {error.msg}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"is not JSON: has the byte {text[error.start]:#04x}") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None


def _unwrapped(value: object) -> dict[str, Any]:
    if isinstance(value, list):
        if len(value) != 1:
            raise ValueError(f"has {len(value)} configurations, want one: `xl list -l NAME`")
        (value,) = value
    if isinstance(value, dict) and "config" in value and "c_info" not in value:
        value = value["config"]
    if not isinstance(value, dict):
        raise ValueError(f"holds {_seen(value)}, want {_WANTED}")
    return value


def _check(config: Mapping[str, Any]) -> None:
    c_info, b_info = (_part(config, name) for name in ("c_info", "b_info"))
    if not isinstance(c_info.get("name"), str) or not c_info["name"]:
        raise ValueError(f"c_info.name is {_seen(c_info.get('name'))}, want the guest's name")
    if c_info.get("type") not in TYPES:
        raise ValueError(f"c_info.type is {_seen(c_info.get('type'))}, want {' or '.join(TYPES)}")
    memory = b_info.get("max_memkb")
    if type(memory) is not int or memory <= 0:
        raise ValueError(f"b_info.max_memkb is {_seen(memory)}, want a number of KiB above 0")


def _part(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    part = config.get(name)
    if not isinstance(part, dict):
        raise ValueError(f"{name} is {_seen(part)}, want an object of {_WANTED}")
    return part


def _seen(value: object) -> str:
    """A value as an error shows it: in JSON's words, cut short."""
    kinds = {dict: "an object", list: "a list", type(None): "missing"}
    return kinds.get(type(value)) or f"{json.dumps(value):.40}"
