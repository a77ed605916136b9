"""What the router says to workers, and what it hears: run, cancel, ping. Saying any of it again is always safe."""

import structlog

from libs.common.bus.connection import Bus
from libs.common.bus.failures import Away, BusError, NoResponders
from libs.common.contracts import subjects
from libs.common.contracts.codec import Malformed, encode
from libs.common.contracts.control import (
    CancelRun,
    ModelAnswer,
    ModelOrder,
    ModelWork,
    Run,
    RunAnswer,
    decode_model_answer,
    decode_run_answer,
)
from libs.common.contracts.jobs import MAX_RUN_S, Binding
from libs.common.contracts.subjects import JobKey
from services.router.fleet import NodeView
from services.router.index import Job
from services.router.residency import Stay

log = structlog.get_logger()

ANSWER_S = 1.0
PING_S = 0.9
MODEL_S = 5.0


class Orders:
    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def run(
        self, job: Job, binding: Binding, now_ms: int, stay: Stay | None, evict: tuple[str, ...]
    ) -> RunAnswer | None:
        """None: no answer, which decides nothing; ask again, until an answer or a heartbeat decides."""
        assert binding.node is not None
        assert binding.boot is not None
        order = Run(
            client=job.key.client,
            job=job.key.job,
            epoch=binding.epoch,
            revision=job.sequence,
            submitted=job.submitted,
            seconds_left=min(MAX_RUN_S, max(0.0, (job.deadline_ms - now_ms) / 1000)),
            keep_alive=stay.keep_alive if stay else None,
            num_ctx=stay.num_ctx if stay else None,
            evict=evict,
        )
        subject = subjects.worker(binding.node, binding.boot, "run")
        try:
            return decode_run_answer(await self._bus.request(subject, encode(order), timeout=ANSWER_S))
        except (NoResponders, Away, Malformed) as error:
            log.info("run.unanswered", job_id=job.key.job, node=binding.node, error=str(error))
            return None

    async def cancel(self, key: JobKey, node: str, boot: str, epoch: int, reason: str, *, fenced: bool = False) -> None:
        """Raises BusError when nobody heard."""
        wish = CancelRun(client=key.client, job=key.job, epoch=epoch, reason=reason, fenced=fenced)
        await self._bus.request(subjects.worker(node, boot, "cancel"), encode(wish), timeout=ANSWER_S)

    async def load(self, node: str, boot: str, order: ModelOrder) -> ModelAnswer:
        """How far it is; asking again joins the same load. Raises BusError."""
        subject = subjects.worker(node, boot, "model")
        try:
            return decode_model_answer(await self._bus.request(subject, encode(order), timeout=MODEL_S))
        except Malformed as error:
            return ModelAnswer(state=ModelWork.FAILED, status=f"answer cannot be read: {error}")

    async def ping(self, view: NodeView) -> tuple[bool, bool]:
        """(answered, nobody is there). Both false: it is slow, or NATS is."""
        try:
            await self._bus.request(subjects.worker(view.name, view.beat.boot, "ping"), timeout=PING_S)
        except NoResponders:
            return False, True
        except BusError:
            return False, False
        return True, False
