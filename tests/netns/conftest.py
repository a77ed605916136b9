"""Namespaces, where they can be made."""

import pytest

from tests.netns.network import why_not


@pytest.fixture(scope="session")
def namespaces() -> None:
    if (reason := why_not()) is not None:
        pytest.skip(reason)
