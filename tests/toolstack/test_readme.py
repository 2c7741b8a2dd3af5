"""The library's page has an example that does as it stands there."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from tests.toolstack.stage import Hosts
from xen_save_helper.ipc_schema.errors import Error
from xen_save_helper.toolstack import PostcopyTransitioned, RestoreResult, SaveResult

README = Path(__file__).parents[2] / "toolstack/README.md"


def example() -> Any:
    """The function `migrate` of the page."""
    blocks = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    (block,) = (block for block in blocks if "async def migrate(" in block)
    names: dict[str, Any] = {}
    exec(block, names)
    return names["migrate"]


def migrated(hosts: Hosts) -> tuple[SaveResult, RestoreResult]:
    async def limited() -> Any:
        async with asyncio.timeout(30):
            return await example()("g", str(hosts.source), str(hosts.destination))

    saved, restored = asyncio.run(limited())
    return saved, restored


@pytest.mark.usefixtures("no_leaks")
class TestLibrary:
    def test_a_guest_goes_over(self, hosts: Hosts) -> None:
        domid = hosts.guest()
        saved, restored = migrated(hosts)
        assert (saved.rc, restored.rc) == (Error.OK, Error.OK), (saved, restored)
        assert saved.postcopy_transitioned is PostcopyTransitioned.DONE
        assert restored.domid is not None
        assert hosts.at_destination.verify(restored.domid, 30).memory_ok
        assert hosts.states(hosts.at_source) == {"g": "suspended"}
        hosts.at_source.destroy(domid)

    def test_a_name_that_is_taken_ends_both_at_once(self, hosts: Hosts) -> None:
        domid = hosts.guest()
        hosts.at_destination.create_guest("g", 1 << 20, "idle")
        saved, restored = migrated(hosts)
        assert restored.rc is Error.INVAL
        assert "there is already a domain 'g'" in restored.reason
        assert saved.rc
        assert "Broken pipe" in saved.reason, "not a stall: the other side has gone"
        hosts.at_source.resume(domid)
        assert hosts.at_source.verify(domid, 30).memory_ok
        assert hosts.states(hosts.at_destination) == {"g": "running"}
