"""What is kept of nodes between looks is what a look at all of them would find."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from libs.common.contracts.requests import Priority
from libs.common.contracts.subjects import JobKey
from services.router.catalog import Catalog
from services.router.fleet import FAILED_JOBS, Hold, NodeView
from services.router.roster import Roster
from tests.router.building import a_beat

MODELS, NODES = ("m:1", "x:1", "y:1"), ("a", "b", "c")
KNOWN_MODELS = ("x:1", "y:1", "none:1", "m:1")


def said(roster: Roster) -> dict[str, Any]:
    """In order, where order counts."""
    found: dict[str, Any] = {
        "fit": [(name, id(node)) for name, node in roster.fit.items()],
        "unfit": list(roster.unfit.items()),
        "free": set(roster.free),
        "slots": roster.slots,
    }
    for model in MODELS:
        found[f"free holders of {model}"] = set(roster.free_holders(model))
        for priority in Priority:
            able, reasons = roster.able(model, priority)
            found[f"{model}, {priority}"] = [*able], reasons, [*roster.holders(model, priority)]
    return found


node, model = st.sampled_from(NODES), st.sampled_from(MODELS)
deeds = st.lists(
    st.one_of(
        st.tuples(st.just("beat"), node, st.sets(model, max_size=2), st.integers(0, 2), st.booleans(), st.sampled_from([0, 16])),
        st.tuples(st.just("boot"), node),
        st.tuples(st.just("reserve"), node, model),
        st.tuples(st.just("reserve"), node, model),
        st.tuples(st.just("release"), node),
        st.tuples(st.just("fail"), node),
        st.tuples(st.just("succeed"), node),
        st.tuples(st.just("bury"), node),
        st.tuples(st.just("later"), st.sampled_from([0.5, 3.0, 4.0, 20.0])),
    ),
    max_size=40,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(deeds, st.booleans())
def test_a_roster_says_what_one_made_anew_says(done, one_by_one) -> None:  # type: ignore[no-untyped-def]
    now, beats, catalog = 1000.0, 0, Catalog()
    nodes: dict[str, NodeView] = {}

    def heard(name: str, **facts: Any) -> Any:
        nonlocal beats
        beats += 1
        return a_beat(name, models=MODELS, sizes=dict.fromkeys(MODELS, 5 * 10**9), beat=beats, **{"slots": 1, **facts})

    for name in NODES:
        nodes[name] = NodeView(name, heard(name), heard_at=now)
    kept = Roster(nodes, catalog)
    kept.refresh(now, 900.0)
    for n, deed in enumerate(done):
        view = nodes[deed[1]] if deed[0] != "later" else None
        match deed:
            case ("later", seconds):
                now += seconds
            case ("beat", name, loaded, slots, draining, vram):
                view.take(
                    heard(name, loaded=tuple(sorted(loaded)), slots=slots, draining=draining, vram=vram * 10**9), now
                )
            case ("boot", name):
                nodes[name] = NodeView(name, heard(name, boot=f"boot{n}"), heard_at=now)
            case ("reserve", _, wanted):
                view.reserve((JobKey("ann", f"j{n}"), n), Hold(wanted))
            case ("release", _):
                for run in list(view.holds)[:1]:
                    view.release(run, 0)
            case ("fail", _):
                for job in range(FAILED_JOBS):  # then it is set aside
                    view.failed(JobKey("ann", f"f{job}"), now)
            case ("succeed", _):
                view.succeeded()
            case ("bury", _):
                view.bury()
        if one_by_one and deed[0] in ("reserve", "release"):
            kept.see(view, now, 900.0)  # as within a look
        else:
            kept.refresh(now, 900.0)
        anew = Roster(nodes, catalog)
        anew.refresh(now, 900.0)
        assert said(kept) == said(anew)
        assert kept.placeable(KNOWN_MODELS) == [
            model
            for model in KNOWN_MODELS
            if any(name in kept.free for name in kept.holding(model))
            or not all(kept.holders(model, priority) for priority in Priority)
        ]
