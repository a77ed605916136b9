"""What all tests of auth have, also those without a whole service."""

import pytest

from services.auth import registry
from tests.auth.running import HEARD_WITHIN_S


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "SEEN_WITHIN_S", HEARD_WITHIN_S)
