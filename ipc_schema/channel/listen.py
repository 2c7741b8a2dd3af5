"""Where a page server listens."""

from __future__ import annotations

from xen_save_helper.ipc_schema.named_tuple import NamedTuple


class Listen(NamedTuple):
    """Where a page server listens: an IP address, and a port, 0 for any that is free."""

    address: str
    port: int = 0


def parse_listen(text: str) -> Listen:
    """From `ADDRESS` or `ADDRESS:PORT`. Raises ValueError that says what is wanted."""
    # Imported late: it would slow down every helper's start.
    from ipaddress import ip_address

    # An IPv6 address has colons of its own, and brackets before a port.
    address, port = text, "0"
    if text.count(":") == 1 or "]:" in text:
        address, _, port = text.rpartition(":")
    try:
        listen = Listen(str(ip_address(address.strip("[]"))), int(port))
        if not 0 <= listen.port < 1 << 16:
            raise ValueError
    except ValueError:
        raise ValueError("an IP address of this host, and perhaps :PORT") from None
    return listen
