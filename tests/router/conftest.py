import pytest

from services.router import loop, orders, oversight, pings, settle, strays
from tests.router.building import Routers


@pytest.fixture
def routers(monkeypatch: pytest.MonkeyPatch) -> Routers:
    """Routers whose patience is short, so that a test need not wait for it. The lengths are policy, not safety."""
    for module, name, value in (
        (loop, "TICK_S", 0.05),
        (loop, "RETRY_MS", 200),
        (oversight, "ASK_S", 0.15),
        (pings, "PING_S", 0.1),
        (strays, "STRAY_S", 0.2),
    ):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(orders, "ANSWER_S", 0.3)
    monkeypatch.setattr(settle, "BACKOFF_MS", (50, 100, 150))
    monkeypatch.setattr(settle, "BUSY_BACKOFF_MS", 50)
    monkeypatch.setattr(settle, "REFUSED_BACKOFF_MS", 50)
    return Routers(monkeypatch)
