"""The links of the repository's pages lead where they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
FOLDERS = ("ipc_schema", "helper", "toolstack", "tests")
PAGES = sorted(
    [
        REPOSITORY / "README.md",
        *(page for name in FOLDERS for page in (REPOSITORY / name).rglob("*.md")),
    ]
)
_LINK = re.compile(r"\]\(([^)#]*)(?:#([^)]*))?\)")


def headings(page: Path) -> set[str]:
    """The headings of a page, as GitHub names them in links."""
    found = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in found}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_link_leads_to_a_file_or_a_heading(page: Path) -> None:
    for path, heading in _LINK.findall(page.read_text()):
        target = page.parent / path if path else page
        assert target.exists(), path
        assert not heading or heading in headings(target), f"{path}#{heading}"
