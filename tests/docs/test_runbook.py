"""docs/runbook.md has a line for every error code, and says of each whether trying again helps, as the table in the code does."""

import re
from pathlib import Path

from libs.common.contracts.faults import MEANING

TEXT = (Path(__file__).parents[2] / "docs" / "runbook.md").read_text().partition("## Error codes")[2]


def test_every_error_code_has_one_line_with_the_right_advice():
    lines = re.findall(r"^\| `(\w+)` \| (yes|no) \| .{10,} \|$", TEXT, re.MULTILINE)

    assert lines == [(str(code), "yes" if meaning.retryable else "no") for code, meaning in MEANING.items()]
