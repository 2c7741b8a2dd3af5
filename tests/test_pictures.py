"""The pages show what the tables say."""

from __future__ import annotations

import re

import pytest

from tests import pictures


@pytest.mark.parametrize("name", pictures.PAGES)
def test_a_page_is_up_to_date(name: str) -> None:
    page = (pictures.REPOSITORY / name).read_text()
    assert page == pictures.with_pictures(page), "run: python -m tests.pictures"


def test_all_that_is_made_has_a_place() -> None:
    text = "".join((pictures.REPOSITORY / name).read_text() for name in pictures.PAGES)
    assert set(re.findall(r"<!-- made by tests/pictures\.py: (\w+) -->", text)) == set(
        pictures.MAKERS
    )
