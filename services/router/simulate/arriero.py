"""The production policy: the router's own scheduler, fed with what happens in the simulation as the shell feeds it in service.

Nodes say what a heartbeat says; speeds, answer lengths and demand are learned from finished jobs. Only sizes are exact here: a
model takes what its file says.
"""

from collections.abc import Iterable, Mapping, Sequence
from random import Random

from libs.common.contracts.nodes import DiskModel, Heartbeat, LoadedModel, canonical_model
from libs.common.contracts.subjects import JobKey
from services.router.fleet import Fleet, NodeView
from services.router.look import Look
from services.router.pricing import Ask, Pricing
from services.router.queue import Waiting, cost
from services.router.scheduler import Ran, Scheduler
from services.router.simulate.fleet import ModelSpec
from services.router.simulate.policy import Binding, Job, Observed, Policy, Preload
from services.router.simulate.policy import NodeView as SimulatedNode
from services.router.wishes import Loading

GB = 1e9
BEGIN_S = 1_000.0  # a node heard at 0 was never heard
DEADLINE_S = 3600.0
WAKE_S = 0.25  # the router's tick


class Arriero(Policy):
    def __init__(self, nodes: Sequence[SimulatedNode], models: Mapping[str, ModelSpec], chance: Random) -> None:
        self._simulated = {node.name: node for node in nodes}
        self._sizes = {name: int(model.size_gb * GB) for name, model in models.items()}
        self._canonical = {name: canonical_model(name) for name in models}
        self._spelled = {canonical: name for name, canonical in self._canonical.items()}
        self._fleet = Fleet()
        self._disk = tuple(DiskModel(name=name, size=size) for name, size in self._sizes.items())
        self._scheduler = Scheduler(self._fleet, Pricing(exact_sizes=True))
        self._jobs: dict[JobKey, Job] = {}
        self._tokens: dict[JobKey, float] = {}
        self._cached: dict[JobKey, int] = {}  # of those that run: tokens of the prompt, as expected
        self._conversations: dict[str, tuple[int, int]] = {}  # turns, and tokens after the last
        self._beats = 0
        for node in nodes:
            self._fleet.nodes[node.name] = NodeView(node.name, self._beat(node), heard_at=BEGIN_S)

    def arrived(self, job: Job, now: float) -> Iterable[Binding]:
        pricing, model = self._scheduler.pricing, self._canonical[job.model]
        pricing.demand.asked(model, BEGIN_S + now)
        key = JobKey(job.client, str(job.id))
        expected = pricing.rates.answer_tokens(job.client, model, 0)
        created_ms = (BEGIN_S + now) * 1000
        self._jobs[key] = job
        self._tokens[key] = cost(job.prompt_tokens, expected)
        waiting = Waiting(
            key, model, job.priority, job.id, created_ms, created_ms + DEADLINE_S * 1000, self._tokens[key]
        )
        self._scheduler.add(waiting, Ask(model, job.priority, job.prompt_tokens, expected, self._chain(job)))
        return ()

    def changed(self, now: float) -> Iterable[Binding | Preload]:
        at = BEGIN_S + now
        look = Look(self._scheduler, at, at * 1000, at)
        while (placement := look.next()) is not None:
            if isinstance(placement, Loading):
                placement.node.preload(placement.model, placement.order)
                evict = tuple(self._spelled[m] for m in placement.order.evict)
                yield Preload(placement.node.name, self._spelled[placement.model], evict)
                continue
            job = self._jobs[placement.job.key]
            placement.node.reserve((placement.job.key, job.id), placement.hold)
            self._scheduler.commit(placement, at)
            self._cached[placement.job.key] = placement.decision.cached_tokens
            yield Binding(job.id, placement.node.name, tuple(self._spelled[m] for m in placement.hold.evict))
            self._hear(placement.node.name, now)

    def wake_at(self, now: float) -> float | None:
        if not len(self._scheduler.queue) or not any(node.free_slots for node in self._simulated.values()):
            return None
        return now + WAKE_S

    def loaded(self, model: str, node: str, now: float, seconds: float) -> None:
        self._scheduler.pricing.rates.learn(node, self._canonical[model], self._sizes[model], load_s=seconds)
        self._fleet.nodes[node].preload_ended(self._canonical[model])
        self._hear(node, now)

    def first_token(self, job: Job, node: str, now: float, prefill_s: float, prefilled_tokens: int) -> None:
        self._hear(node, now)

    def finished(self, job: Job, node: str, now: float, observed: Observed) -> None:
        key = JobKey(job.client, str(job.id))
        ran = Ran(
            node, self._canonical[job.model], job.prompt_tokens, observed.output_tokens, observed.prefill_s,
            observed.decode_s, cached_tokens=self._cached.pop(key, 0),
        )  # fmt: skip
        self._scheduler.ran(key, ran)
        self._scheduler.drop(key)
        self._scheduler.queue.ended(key, BEGIN_S + now, tokens=cost(job.prompt_tokens, observed.output_tokens))
        self._fleet.nodes[node].release((key, job.id), 0)
        if job.conversation is not None:
            turns, _ = self._conversations.get(job.conversation, (0, 0))
            self._conversations[job.conversation] = (turns + 1, job.prompt_tokens + observed.output_tokens)
        self._hear(node, now)

    def _chain(self, job: Job) -> tuple[str, ...]:
        if job.conversation is None:
            return ()
        turns, tokens = self._conversations.get(job.conversation, (0, 0))
        held = (f"{job.conversation}/{turns}:{min(tokens, job.prompt_tokens)}",) if turns else ()
        return (*held, f"{job.conversation}/{turns + 1}:{job.prompt_tokens}")

    def _hear(self, name: str, now: float) -> None:
        """The node's next heartbeat; at once, as a worker sends it on a change."""
        view = self._fleet.nodes[name]
        if {self._canonical[model] for model in self._simulated[name].residents} != view.loaded:
            view.take(self._beat(self._simulated[name]), BEGIN_S + now)
            self._scheduler.pricing.prefixes.keep_only(name, view.loaded | view.loading)

    def _beat(self, node: SimulatedNode) -> Heartbeat:
        self._beats += 1
        return Heartbeat(
            node=node.name, boot="simulated", beat=self._beats, changes=0, slots=node.spec.slots, models=self._disk,
            loaded=tuple(LoadedModel(name=m, size=self._sizes[m], size_vram=self._sizes[m]) for m in node.residents),
            vram=int(node.spec.vram_gb * GB),
        )  # fmt: skip
