"""The tests that docs/threat-model.md and SECURITY.md speak of are there, and so are the pages they link to."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ["docs/threat-model.md", "SECURITY.md", "docs/authorization.md"]


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_is_there(page: str) -> None:
    text = (ROOT / page).read_text()
    for path in re.findall(r"`(tests/[\w/.]+)`", text):
        assert (ROOT / path).exists(), path
    for link in re.findall(r"\]\(([^)#:]+\.md)", text):
        assert (ROOT / page).parent.joinpath(link).exists(), link
