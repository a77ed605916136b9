"""Which job next, and on which node: the queue, the fleet and what was learned, put together. Pure: the shell tells it what
happened and when, and carries out what it wants; the simulator does the same in virtual time."""

from typing import NamedTuple

from libs.common.contracts.jobs import Completion
from libs.common.contracts.nodes import canonical_model
from libs.common.contracts.subjects import JobKey
from services.router.backlog import worked_off
from services.router.copies import CopySearch
from services.router.fleet import Fleet
from services.router.prefixes import Found
from services.router.pricing import Ask, Pricing
from services.router.queue import PendingQueue, Waiting
from services.router.rates import ENOUGH_TOKENS
from services.router.replicas import Survey, survey
from services.router.roster import Roster
from services.router.wishes import Placement

SURVEY_EVERY_S = 1.0
BACKLOG_DOUBT = 2.0  # standard deviations of a queue that chance alone explains
BACKLOG_WITHIN_S = 120.0  # what waits for a model beyond its due counts as demand, to be worked off within so long


class Ran(NamedTuple):
    """What a job that ended well was seen to take. Seconds, as Ollama reports them; `prompt_tokens` are all, also cached ones."""

    node: str
    model: str  # canonical
    prompt_tokens: int
    output_tokens: int
    prefill_s: float
    decode_s: float
    load_s: float = 0.0  # 0: not known, or another one's
    cached_tokens: int = 0  # as they were expected when it was bound


class Scheduler:
    def __init__(self, fleet: Fleet, pricing: Pricing | None = None) -> None:
        self.fleet = fleet
        self.queue = PendingQueue()
        self.pricing = pricing or Pricing()
        self.roster = Roster(fleet.nodes, self.pricing.catalog)
        self.asks: dict[JobKey, Ask] = {}
        self.avoiding: set[JobKey] = set()  # of those that some node has failed
        self.found: dict[JobKey, tuple[str, Found]] = {}  # of those that run: of the prompt, on their node
        self.copies_at = 0.0  # when to look again whether a copy of a model is worth its load
        self._survey: Survey | None = None
        self._surveyed_at = 0.0
        self.search: CopySearch | None = None  # under way
        self.delayed = 0.0  # jobs for each slot that wait behind a load, as of the survey

    def clear(self) -> None:
        """The jobs; what was learned stays."""
        self.queue.clear()
        self.asks.clear()
        self.avoiding.clear()
        self.found.clear()
        self.search = None

    def add(self, job: Waiting, ask: Ask) -> None:
        self.queue.add(job)
        self.asks[job.key] = ask
        if ask.avoid:
            self.avoiding.add(job.key)
        else:
            self.avoiding.discard(job.key)

    def discard(self, key: JobKey) -> None:
        self.queue.discard(key)
        self.asks.pop(key, None)
        self.avoiding.discard(key)

    def drop(self, key: JobKey) -> None:
        """The job has ended."""
        self.discard(key)
        self.found.pop(key, None)

    def commit(self, placement: Placement, now: float) -> None:
        """The placement is being carried out: its node has reserved the slot, the job leaves the queue."""
        if placement.decision.cold:
            self._survey = None
        node, key = placement.node, placement.job.key
        ask = self.asks.pop(key, None)
        self.avoiding.discard(key)
        self.queue.serve(key, now)
        node.last_bound_at = now
        if ask is not None and ask.affinity:
            self.found[key] = node.name, self.pricing.prefixes.remember(node.name, ask.model, ask.affinity)

    def learn(self, key: JobKey, done: Completion) -> None:
        """From a job that ended."""
        usage, timings, decision = done.usage, done.timings, done.decision
        if usage is None or timings is None or done.node is None or done.node not in self.fleet.nodes:
            return
        ran = Ran(
            done.node, canonical_model(done.job.model), usage.prompt_tokens, usage.completion_tokens,
            timings.prefill or 0.0, timings.decode or 0.0,
            load_s=(timings.load or 0.0) if decision and decision.cold else 0.0,
            cached_tokens=decision.cached_tokens if decision else 0,
        )  # fmt: skip
        self.ran(key, ran)

    def ran(self, key: JobKey, ran: Ran) -> None:
        """Speeds, what the node has kept of prompts, the length of answers, the work of a job."""
        node, pricing = ran.node, self.pricing
        rates = pricing.rates
        rates.learn(
            node, ran.model, self.fleet.nodes[node].sizes.get(ran.model, 0),
            new_tokens=self._new_tokens(key, ran), prefill_s=ran.prefill_s,
            output_tokens=ran.output_tokens, decode_s=ran.decode_s, load_s=ran.load_s,
        )  # fmt: skip
        rates.learn_answer(key.client, ran.model, ran.output_tokens)
        if ran.prefill_s + ran.decode_s > 0:
            pricing.worked(ran.model, (ran.prefill_s + ran.decode_s) * rates.pace(node))

    def _new_tokens(self, key: JobKey, ran: Ran) -> float:
        """Those of the prompt that were not cached: as many as fit its time, at the rate that is known."""
        where, found = self.found.pop(key, ("", Found(ran.cached_tokens, 0)))
        cached = max(0, min(found.tokens, ran.prompt_tokens - 1)) if where in (ran.node, "") else 0
        known = self.pricing.rates.seen(ran.node, ran.model)
        if known is None or ran.prefill_s <= 0:
            return ran.prompt_tokens - min(cached, ran.cached_tokens)
        new = min(max(ran.prefill_s / known[0], float(ran.prompt_tokens - cached)), float(ran.prompt_tokens))
        if where and cached >= ENOUGH_TOKENS:
            self.pricing.keeping.learn(ran.node, found.since, (ran.prompt_tokens - new) / cached)
        return new

    def moved(self) -> None:
        """Something was loaded, or ordered to be: the survey is out of date."""
        self._survey = None

    def survey(self, now: float) -> Survey:
        if self._survey is None or now - self._surveyed_at >= SURVEY_EVERY_S:
            self._survey, self._surveyed_at = self._look_around(now), now
        return self._survey

    def _look_around(self, now: float) -> Survey:
        pricing, waiting = self.pricing, self.queue.waiting_by_model()
        holders = {model: frozenset(nodes) for model, nodes in self.roster.held().items()}
        work = {model: pricing.work(model) for model in (*waiting, *holders, *pricing.demand.models())}
        load = {model: seconds * pricing.demand.per_second(model, now) for model, seconds in work.items()}
        queued = dict.fromkeys(work, 0.0) | worked_off(waiting, work, self.roster.slots * BACKLOG_WITHIN_S)
        jobs = sum(seconds / work[model] for model, seconds in queued.items() if seconds)
        self.delayed = jobs / max(1, self.roster.slots)
        due = sum(queued.values()) / (sum(load.values()) or 1.0)  # were every model waited for as it is asked for
        load = {
            model: seconds
            + max(
                0.0,
                queued[model] - due * seconds - BACKLOG_DOUBT * (queued[model] * work[model]) ** 0.5,
            )
            / BACKLOG_WITHIN_S
            for model, seconds in load.items()
        }
        nodes = self.roster.fit.values()
        slots = {node.name: max(1, node.beat.slots) * pricing.rates.pace(node.name) for node in nodes}
        return survey(load, work, slots, holders)
