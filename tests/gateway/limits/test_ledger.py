from libs.common.contracts.clients import Limits
from libs.common.contracts.codec import encode
from services.gateway.limits import budgets, ledger, reader_slots, rolling, stream_slots
from services.gateway.limits.budgets import Ask
from services.gateway.limits.ledger import Ledger
from services.gateway.limits.rolling import Instant

NOW = Instant(1_795_438_990_061, 1_795_438_990_063)


def changed(found: Ledger) -> None:
    rolling.lease(found.requests, "g", "1", limit=5, count=2, now=NOW)
    rolling.close(found.requests, "g", "1", 1)
    rolling.lease(found.requests, "g", "2", limit=5, count=2, now=NOW)
    budgets.reserve(found.tokens, Limits(tokens_per_day=100), Ask(f"op{len(found.tokens.open)}", "job", 1, 2, 0, 600))
    stream_slots.take(found.streams, "g", 5, NOW)
    reader_slots.take(found.readers, f"job_{len(found.readers)}", 0, 5, NOW)


def test_a_draft_leaves_alone_what_it_was_made_of() -> None:
    """It may be thrown away: somebody else was faster."""
    found = ledger.draft(Ledger(), NOW, Limits())
    changed(found)
    before = encode(found)
    changed(ledger.draft(found, NOW, Limits()))
    assert encode(found) == before


def test_what_is_stored_is_read_back_and_nothing_is_a_new_ledger() -> None:
    found = ledger.draft(Ledger(client="acme"), NOW, Limits())
    changed(found)
    assert ledger.read(encode(found)) == found
    assert ledger.read(None) == Ledger()
    assert ledger.read(b'{"client":"acme","of_a_later_release":1}') == Ledger(client="acme")
