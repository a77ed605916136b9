"""When a fault fires; what it does to a client is in test_fault_injection."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.ollama_sim.faults import ArmedFault, BadFaultSpec, Fault, FaultKind, Occasion, Phase, fire, parse_faults

STREAM = Occasion(Phase.STREAM, "/api/chat", "m:latest")


def fired(faults: tuple[Fault, ...], occasions: list[Occasion], chance: float = 0.0) -> list[FaultKind | None]:
    armed = tuple(ArmedFault(fault) for fault in faults)
    kinds: list[FaultKind | None] = []
    for occasion in occasions:
        armed, fault = fire(armed, occasion, chance)
        kinds.append(fault.kind if fault else None)
    return kinds


@given(request=st.integers(1, 5), count=st.integers(0, 5), total=st.integers(0, 15))
def test_a_fault_fires_from_its_request_on_as_often_as_it_may(request: int, count: int, total: int) -> None:
    kinds = fired((Fault(FaultKind.CRASH, request=request, count=count),), [STREAM] * total)

    expected = [index + 1 >= request and (count == 0 or index + 1 < request + count) for index in range(total)]
    assert [kind is not None for kind in kinds] == expected


@given(st.floats(0, 1, exclude_max=True), st.floats(0, 1))
def test_chance_decides_against_the_probability(chance: float, probability: float) -> None:
    (kind,) = fired((Fault(FaultKind.CRASH, probability=probability),), [STREAM], chance)

    assert (kind is not None) == (chance < probability)


def test_a_fault_of_a_model_spares_the_others_whatever_the_spelling() -> None:
    faults = (Fault(FaultKind.CRASH, model="M"),)
    other = Occasion(Phase.STREAM, "/api/chat", "other:latest")

    assert fired(faults, [other, STREAM]) == [None, FaultKind.CRASH]


def test_a_fault_waits_for_its_phase() -> None:
    faults = (Fault(FaultKind.LOAD_OOM), Fault(FaultKind.BUSY))
    request = Occasion(Phase.REQUEST, "/api/chat", "m:latest")

    assert fired(faults, [STREAM, request, request]) == [None, FaultKind.BUSY, None]


def test_without_a_route_only_inference_suffers() -> None:
    ps = Occasion(Phase.REQUEST, "/api/ps")

    assert fired((Fault(FaultKind.HTML),), [ps]) == [None]
    assert fired((Fault(FaultKind.HTML, route="/api/ps"),), [ps]) == [FaultKind.HTML]


def test_the_first_of_several_faults_wins_and_leaves_the_next_for_later() -> None:
    faults = (Fault(FaultKind.CRASH), Fault(FaultKind.HANG))

    assert fired(faults, [STREAM] * 3) == [FaultKind.CRASH, FaultKind.HANG, None]


def test_a_specification_lists_kinds_with_settings() -> None:
    assert parse_faults("crash:after_tokens=5,count=2; busy:probability=0.1,count=0") == (
        Fault(FaultKind.CRASH, after_tokens=5, count=2),
        Fault(FaultKind.BUSY, probability=0.1, count=0),
    )


@pytest.mark.parametrize("spec", ["explode", "crash:5", "crash:when=now", "crash:count=many"])
def test_what_cannot_be_read_is_named(spec: str) -> None:
    with pytest.raises(BadFaultSpec):
        parse_faults(spec)
