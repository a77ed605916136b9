from services.gateway.limits import stream_slots
from services.gateway.limits.rolling import Instant
from services.gateway.limits.stream_slots import HOLDS_MS, Held, Slots


def at(ms: int) -> Instant:
    return Instant(ms, ms + 5)


def test_slots_are_shared_and_there_is_never_one_too_many() -> None:
    slots: Slots = {}
    assert [stream_slots.take(slots, holder, 3, at(1)) for holder in "aabb"] == [True, True, True, False]
    assert slots == {"a": Held(2, 6), "b": Held(1, 6)}
    stream_slots.hold(slots, "a", 1, at(2))
    assert stream_slots.take(slots, "b", 3, at(3))
    stream_slots.hold(slots, "a", 0, at(4))
    stream_slots.hold(slots, "a", 0, at(4))
    assert slots == {"b": Held(2, 8)}


def test_what_a_silent_gateway_held_is_free_again() -> None:
    slots: Slots = {"a": Held(2, 1000), "b": Held(1, 1001)}
    stream_slots.forget(slots, Instant(HOLDS_MS + 999, HOLDS_MS + 5000))
    assert len(slots) == 2
    stream_slots.forget(slots, Instant(HOLDS_MS + 1000, HOLDS_MS + 5000))
    assert slots == {"b": Held(1, 1001)}
