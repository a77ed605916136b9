"""What a job costs on a node, term by term, in seconds."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.contracts.catalog import ModelPolicy
from libs.common.contracts.nodes import LoadedModel
from libs.common.contracts.requests import Priority
from libs.common.contracts.subjects import JobKey
from services.router import vram
from services.router.fleet import Hold, NodeView, Preload
from services.router.pricing import ON_CPU, Ask, Pricing, Terms
from services.router.rates import CPU_PRIOR, GPU_PRIOR, REFERENCE_BYTES
from tests.router.building import a_beat

NOW = 1_000.0
GB = 10**9
SIZES = {"m:1": 5 * GB, "x:1": 5 * GB, "y:1": 2 * GB, "big:1": 40 * GB}


def a_node(**more: Any) -> NodeView:
    facts: dict[str, Any] = {"slots": 2, "models": tuple(SIZES), "loaded": (), "sizes": SIZES, "vram": 24 * GB}
    return NodeView("n1", a_beat("n1", **{**facts, **more}), heard_at=NOW)


def holding(*, vram: int | None = 24 * GB, slots: int = 2, **on_gpu: int) -> NodeView:
    """With models of 10 GB each in memory: by their letter, how many bytes of each are on the GPU."""
    node = a_node(vram=vram, slots=slots)
    loaded = tuple(LoadedModel(name=f"{m}:1", size=10 * GB, size_vram=size) for m, size in on_gpu.items())
    node.take(msgspec.structs.replace(node.beat, loaded=loaded), NOW)
    return node


def a_pricing(*learned: str, work: float = 6.0) -> Pricing:
    """What n1 was seen to do with these models: 1,000 tokens/s prefill, 50 decode, loads in 4 s, 6 s a job."""
    pricing = Pricing()
    for model in learned:
        pricing.rates.learn(
            "n1", model, SIZES[model], new_tokens=1000, prefill_s=1.0, output_tokens=100, decode_s=2.0, load_s=4.0
        )
        pricing.worked(model, work)
    return pricing


def an_ask(model: str = "m:1", **more: Any) -> Ask:
    facts: dict[str, Any] = {"priority": Priority.NORMAL, "prompt_tokens": 2_000, "output_tokens": 100.0}
    return Ask(model, **{**facts, **more})


def no_harm(model: str, node: str) -> float:
    return 0.0


def priced(pricing: Pricing, node: NodeView, ask: Ask | None = None, harm: Any = no_harm) -> Terms:
    terms = pricing.terms(ask or an_ask(), node, harm, NOW)
    assert terms is not None
    return terms


def run(model: str, n: int = 1, **hold: Any) -> tuple[tuple[JobKey, int], Hold]:
    return (JobKey("acme", f"r{n}"), n), Hold(model, **hold)


# -- a model in memory -----------------------------------------------------------------------------------------------------


def test_in_memory_with_a_free_slot_only_prompt_and_answer_take_time() -> None:
    terms = priced(a_pricing("m:1"), a_node(loaded=("m:1",)))
    assert terms == Terms(0.0, 0.0, pytest.approx(2.0), pytest.approx(2.0), 0.0, 0.0, 0, ())
    assert terms.ttft_s == pytest.approx(2.0)


def test_a_prompt_that_is_cached_needs_no_prefill_but_for_its_last_token() -> None:
    pricing, node = a_pricing("m:1"), a_node(loaded=("m:1",))
    pricing.prefixes.remember("n1", "m:1", ("one:1500", "two:2000"))
    some = priced(pricing, node, an_ask(affinity=("one:1500", "other:2000")))
    assert (some.cached_tokens, some.prefill_s) == (1500, pytest.approx(0.5))
    whole = priced(pricing, node, an_ask(affinity=("one:1500", "two:2000")))
    assert (whole.cached_tokens, whole.prefill_s) == (1999, pytest.approx(0.001))
    assert priced(pricing, node, an_ask(affinity=("else:1500",))).cached_tokens == 0
    assert (
        priced(pricing, a_node(), an_ask(affinity=("one:1500", "two:2000"))).cached_tokens == 0
    )  # it has to be loaded


def test_of_a_cached_prompt_as_much_counts_as_the_node_turned_out_to_keep() -> None:
    pricing, node = a_pricing("m:1"), a_node(loaded=("m:1",))
    pricing.prefixes.remember("n1", "m:1", ("one:1500",))
    pricing.prefixes.remember("n1", "m:1", ("other:100",))
    for _ in range(200):
        pricing.keeping.learn("n1", 1, 0.5)
    half = priced(pricing, node, an_ask(affinity=("one:1500", "two:2000")))
    assert half.cached_tokens == pytest.approx(750, abs=5)
    assert half.prefill_s == pytest.approx(1.25, abs=0.01)
    newest = priced(pricing, node, an_ask(affinity=("other:100",)))
    assert newest.cached_tokens == 100


def test_a_slot_comes_when_the_first_answer_is_expected_to_end() -> None:
    node = a_node(loaded=("m:1",))
    for n, ends_in in ((1, 9.0), (2, 4.0)):
        node.reserve(*run("m:1", n, ends_at=NOW + ends_in))
    terms = priced(a_pricing("m:1"), node)
    assert (terms.wait_s, terms.load_s, terms.ttft_s) == (4.0, 0.0, pytest.approx(6.0))


def test_a_run_that_nothing_is_known_of_and_one_that_is_late_end_after_a_jobs_work_or_now() -> None:
    unknown = a_node(loaded=("m:1",), slots=1, running=[(JobKey("else", "r"), 1)])
    assert priced(a_pricing("m:1"), unknown).wait_s == 6.0
    late = a_node(loaded=("m:1",), slots=1)
    late.reserve(*run("m:1", ends_at=NOW - 5))
    assert priced(a_pricing("m:1"), late).wait_s == 0.0


# -- a load ------------------------------------------------------------------------------------------------------------------


def test_a_cold_model_costs_its_load_first() -> None:
    terms = priced(a_pricing("m:1"), a_node())
    assert (terms.load_s, terms.evict, terms.harm_s) == (pytest.approx(4.0), (), 0.0)
    assert terms.ttft_s == pytest.approx(6.0)


def test_of_a_load_on_its_way_only_what_is_left_counts() -> None:
    for_a_job, ahead = a_node(), a_node()
    for_a_job.reserve(*run("m:1", ready_at=NOW + 1.5))
    ahead.preload("m:1", Preload(NOW + 1.5))
    for node in (for_a_job, ahead):
        assert priced(a_pricing("m:1"), node).load_s == pytest.approx(1.5)
    late = a_node()
    late.reserve(*run("m:1", ready_at=NOW - 3))
    assert priced(a_pricing("m:1"), late).load_s == 0.0


def test_who_leaves_costs_what_others_lose_and_the_cheapest_leave() -> None:
    """24 GB hold three of 10 GB at most two at a time, with what m:1 needs."""
    node = holding(x=10 * GB, y=10 * GB)
    harm = {"x:1": 7.0, "y:1": 3.0}
    terms = priced(a_pricing("m:1"), node, harm=lambda model, name: harm[model])
    assert (terms.evict, terms.harm_s, terms.load_s) == (("y:1",), 3.0, pytest.approx(4.0))
    assert terms.score(Priority.NORMAL) == pytest.approx(terms.ttft_s + 0.3 * terms.decode_s + 3.0 + terms.crowd_s)
    harm["y:1"] = 8.0
    assert priced(a_pricing("m:1"), node, harm=lambda model, name: harm[model]).evict == ("x:1",)


def test_a_load_waits_until_the_answers_of_who_leaves_have_ended() -> None:
    node = holding(x=10 * GB, y=10 * GB)
    node.reserve(*run("y:1", ends_at=NOW + 2.5))
    terms = priced(a_pricing("m:1", "x:1"), node, harm=lambda model, name: {"x:1": 9.0, "y:1": 3.0}[model])
    assert (terms.evict, terms.load_s, terms.wait_s) == (("y:1",), pytest.approx(4.0 + 2.5), 0.0)
    # The drain is part of who is the cheapest: x:1, idle, costs 9 and y:1 from now on 3 and 6.5.
    node.reserve(*run("y:1", 2, ends_at=NOW + 6.5))
    terms = priced(a_pricing("m:1", "x:1"), node, harm=lambda model, name: {"x:1": 9.0, "y:1": 3.0}[model])
    assert (terms.evict, terms.load_s) == (("x:1",), pytest.approx(4.0))


def test_a_pinned_model_stays_and_what_cannot_be_made_to_fit_has_no_price() -> None:
    node, pricing = holding(x=10 * GB, y=10 * GB), a_pricing("m:1")
    for name in ("x:1", "y:1"):
        pricing.catalog.models[name] = ModelPolicy(name=name, pins=("n1",))
        terms = pricing.terms(an_ask(), node, no_harm, NOW)
        assert terms is None if name == "y:1" else (terms and terms.evict == ("y:1",))


def test_what_loads_takes_memory_and_what_leaves_for_it_has_given_its_own_back() -> None:
    node = holding(x=10 * GB, vram=18 * GB)
    node.preload("y:1", Preload(NOW + 5))
    assert priced(a_pricing("m:1"), node).evict == ("x:1",)
    full = holding(x=10 * GB, y=10 * GB)
    full.preload("m:1", Preload(NOW + 5, evict=("y:1",)))
    assert full.resident == {"x:1"}
    assert priced(a_pricing("y:1"), full, an_ask("y:1")).evict == ()


def test_a_larger_context_needs_more_room() -> None:
    node = holding(x=10 * GB, vram=18 * GB)
    assert priced(a_pricing("m:1"), node).evict == ()
    assert priced(a_pricing("m:1"), node, an_ask(num_ctx=32_768)).evict == ("x:1",)


def test_where_memory_is_not_known_or_there_is_no_gpu_nobody_is_made_to_leave() -> None:
    for capacity in (None, 0):
        node = holding(vram=capacity, x=10 * GB, y=10 * GB)
        assert priced(a_pricing("m:1"), node).evict == ()


def test_a_node_whose_models_are_asked_for_all_the_time_is_crowded() -> None:
    def crowd(asked: int, **facts: int) -> float:
        pricing = a_pricing("m:1", "x:1")
        for n in range(asked):
            pricing.demand.asked("x:1", NOW - 100.0 + 100.0 * n / asked)
        return priced(pricing, holding(**facts)).crowd_s

    here = 10 * GB
    assert crowd(0, x=here) == 0.0
    assert 0 < crowd(5, x=here) < crowd(15, x=here)
    assert crowd(15, x=here, slots=8) < crowd(15, x=here)
    assert crowd(15) == 0.0  # they are asked for elsewhere
    assert crowd(15, x=here, vram=11 * GB) == 0.0  # it leaves
    assert crowd(10**5, x=here) == pytest.approx(9.0)  # never endless


# -- speeds ------------------------------------------------------------------------------------------------------------------


def test_what_was_never_seen_is_guessed_by_size() -> None:
    terms = priced(Pricing(), a_node(loaded=("m:1",)))
    scale = SIZES["m:1"] / REFERENCE_BYTES
    assert terms.prefill_s == pytest.approx(2_000 * GPU_PRIOR.prefill_s * scale)
    assert terms.decode_s == pytest.approx(100 * GPU_PRIOR.decode_s * scale)
    assert priced(Pricing(), a_node()).load_s == pytest.approx(GPU_PRIOR.load_s * scale)


@pytest.mark.parametrize(("gpu", "slower"), [(10, 1.0), (8, 1 + 0.2 * (ON_CPU - 1)), (5, 5.5), (0, ON_CPU)])
@pytest.mark.parametrize("capacity", [24 * GB, None])
def test_a_model_that_lies_in_part_in_main_memory_is_slower(gpu: int, slower: float, capacity: int | None) -> None:
    whole, part = (priced(Pricing(), holding(vram=capacity, m=n * GB)) for n in (10, gpu))
    assert part.prefill_s == pytest.approx(slower * whole.prefill_s)
    assert part.decode_s == pytest.approx(slower * whole.decode_s)
    with_affinity = priced(Pricing(), holding(vram=capacity, m=gpu * GB), an_ask(affinity=("a:10",)))
    assert with_affinity.decode_s == pytest.approx(part.decode_s)


def test_a_model_too_large_for_the_gpu_is_expected_to_be_slower_by_what_does_not_fit() -> None:
    ask = an_ask("big:1")
    roomy, tight = (priced(Pricing(), a_node(vram=n * GB), ask) for n in (80, 24))
    spilled = 1 - 24 * GB / vram.need(40 * GB, None)
    assert 0.3 < spilled < 0.6
    assert tight.decode_s == pytest.approx(roomy.decode_s * (1 + spilled * (ON_CPU - 1)))
    assert tight.prefill_s == pytest.approx(roomy.prefill_s * (1 + spilled * (ON_CPU - 1)))
    assert tight.load_s == pytest.approx(roomy.load_s)
    assert priced(Pricing(), a_node(vram=None), ask).decode_s == pytest.approx(roomy.decode_s)  # nothing speaks for it


def test_what_was_seen_counts_more_than_any_guess_of_offload() -> None:
    node = holding(m=2 * GB)
    for chain in ((), ("a:10",)):
        assert priced(a_pricing("m:1"), node, an_ask(affinity=chain)).decode_s == pytest.approx(2.0)
    assert priced(a_pricing("x:1"), node).decode_s > 10  # another model of that node says nothing of it


def test_a_node_without_gpu_is_guessed_by_its_own_prior_once() -> None:
    terms = priced(Pricing(), holding(vram=0, m=0))
    scale = SIZES["m:1"] / REFERENCE_BYTES
    assert terms.prefill_s == pytest.approx(2_000 * CPU_PRIOR.prefill_s * scale)
    assert terms.decode_s == pytest.approx(100 * CPU_PRIOR.decode_s * scale)


# -- together ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("priority", "decode"), [(Priority.INTERACTIVE, 0.3), (Priority.NORMAL, 0.3), (Priority.BATCH, 1.0)]
)
def test_the_score_is_the_sum_and_the_end_counts_more_for_batch(priority: Priority, decode: float) -> None:
    terms = Terms(1.0, 20.0, 300.0, 4_000.0, 50_000.0, 600_000.0, 7, ("x:1",))
    assert terms.score(priority) == pytest.approx(650_321 + decode * 4_000)


@given(st.integers(0, 10_000), st.floats(1, 5_000), st.booleans(), st.sampled_from(["m:1", "x:1"]), st.integers(0, 2))
def test_no_term_is_negative_and_with_and_without_affinity_are_priced_alike(
    prompt, output, loaded, model, runs
) -> None:  # type: ignore[no-untyped-def]
    """A job without affinity takes a shorter way through the prices."""
    node = a_node(loaded=("m:1", "y:1") if loaded else ())
    for n in range(runs):
        node.reserve(*run("y:1", n, ends_at=NOW + n))
    ask = an_ask(model, prompt_tokens=prompt, output_tokens=output)
    plain, affine = (priced(a_pricing("m:1"), node, ask._replace(affinity=chain)) for chain in ((), ("never-seen:5",)))
    assert plain == affine
    assert min(plain[:6]) >= 0
