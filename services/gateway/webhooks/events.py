"""The bytes that a receiver gets. Pure: from the same record the same bytes."""

from typing import Any

from libs.common.contracts.codec import encode
from libs.common.contracts.jobs import Completion
from libs.common.contracts.subjects import JobKey
from libs.common.contracts.webhooks import TEST_EVENT, Webhook, event_of
from libs.common.folder import Entry
from services.gateway.view import job_view, row, time_text

MAX_BODY = 64 * 1024
MAX_LOG = 1024 * 1024  # of a log's frames most is not text; what is above that is not even tried


def message_id(job: str, submitted: int) -> str:
    """Of one life of a job, the same on every attempt; without dots, since these part what is signed."""
    return f"msg_{job.removeprefix('job_')}_{submitted}"


def wants_log(webhook: Webhook, completion: Completion) -> bool:
    return webhook.include_result and 0 < completion.log_size <= MAX_LOG and not completion.erased


def body_of(key: JobKey, entry: Entry, webhook: Webhook, log: bytes | None) -> bytes:
    """`entry` is a Completion. At most MAX_BODY: what is too large goes without its result, and says so."""
    completion = entry.facts
    assert isinstance(completion, Completion)
    if completion.erased:
        return bare_body(key.job, completion)
    data = job_view(key.job, entry, log=log)
    if not webhook.include_result:
        del data["result"]
    whole = _event(completion, data)
    if len(whole) <= MAX_BODY and (log is not None or not webhook.include_result or not completion.log_size):
        return whole
    data = {name: value for name, value in data.items() if name != "result"} | {"result_omitted": True}
    whole = _event(completion, data)
    if len(whole) <= MAX_BODY:
        return whole
    return _event(completion, row(key.job, completion, entry.at_ms) | {"result_omitted": True})


def bare_body(job: str, completion: Completion) -> bytes:
    """For a job that was erased."""
    return _event(completion, {"id": job, "state": str(completion.state)})


def _event(completion: Completion, data: dict[str, Any]) -> bytes:
    return encode(
        {"type": str(event_of(completion.state)), "timestamp": time_text(completion.finished_ms), "data": data}
    )


def body_of_test(webhook: Webhook, now_ms: int) -> bytes:
    return encode({"type": TEST_EVENT, "timestamp": time_text(now_ms), "data": {"webhook": webhook.id}})
