"""Small fleets whose figures can be computed by hand, and jobs for them.

With the usual node a model of 4.5 GB loads in 4.5 s, 100 prompt tokens take 1 s, and so do 10 tokens of the answer; a
model of 9 GB takes twice as long for each.
"""

from collections.abc import Sequence
from typing import Any

from services.router.simulate.fleet import Fleet, ModelSpec, NodeSpec
from services.router.simulate.policies import POLICIES
from services.router.simulate.policy import Factory
from services.router.simulate.simulation import Outcome, simulate
from services.router.simulate.trace import TraceJob


def node(name: str = "n1", **changed: Any) -> NodeSpec:
    usual = {"vram_gb": 10, "slots": 1, "decode_tps": 10, "prefill_tps": 100, "load_gbps": 1}
    return NodeSpec(name=name, **{**usual, **changed})


def fleet(*nodes: NodeSpec, **sizes: float) -> Fleet:
    """Models by name and size; `a`, `b` and `c` of 4.5 GB when none are named."""
    sizes = sizes or {"a": 4.5, "b": 4.5, "c": 4.5}
    return Fleet(nodes=nodes, models={name: ModelSpec(name=name, size_gb=size) for name, size in sizes.items()})


def job(t: float, model: str = "a", *, prompt: int = 100, output: int = 10, **more: Any) -> TraceJob:
    """1 s of prefill, 1 s of decode."""
    return TraceJob(t=t, model=model, prompt_tokens=prompt, output_tokens=output, **more)


def play(fleet: Fleet, jobs: Sequence[TraceJob], policy: str | Factory = "loaded-then-depth", seed: int = 1) -> Outcome:
    return simulate(fleet, jobs, POLICIES[policy] if isinstance(policy, str) else policy, seed=seed)


def first_tokens(outcome: Outcome) -> list[float]:
    """When each job's first token came, in the order of arrival."""
    return [round(run.first_token_at, 6) for run, _ in outcome.runs]


def places(outcome: Outcome) -> str:
    """The nodes' names in the order of the jobs' arrival, with spaces."""
    return " ".join(name for _, name in outcome.runs)
