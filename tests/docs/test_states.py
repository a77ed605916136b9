"""docs/states.md draws the table of libs.common.states, each arrow with a letter and a line that says who makes it."""

import re
from pathlib import Path

from libs.common.states import FINAL, TRANSITIONS, JobState

TEXT = (Path(__file__).parents[2] / "docs" / "states.md").read_text()
ARROWS = re.findall(r"^ +(\w+) --> (\w+): ([A-Z]) (\w+)$", TEXT, re.MULTILINE)


def test_the_diagram_is_the_table():
    drawn = {((source, event), target) for source, target, _, event in ARROWS}

    assert drawn == {((str(source), str(event)), str(target)) for (source, event), target in TRANSITIONS.items()}
    assert len(ARROWS) == len(TRANSITIONS)


def test_it_begins_queued_and_no_arrow_leaves_a_final_state():
    assert re.findall(r"\[\*\] --> (\w+)", TEXT) == [str(JobState.QUEUED)]
    assert not {source for source, *_ in ARROWS} & {str(state) for state in FINAL}


def test_every_arrow_has_one_letter_and_one_line_of_its_own():
    letters = [letter for _, _, letter, _ in ARROWS]
    told = re.findall(r"^\| ([A-Z]) \| (.+) \|$", TEXT, re.MULTILINE)

    assert letters == [letter for letter, _ in told]
    assert len(set(letters)) == len(letters)
