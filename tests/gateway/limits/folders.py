"""Jobs' folders in memory: as much of a bus as settling asks for."""

from types import SimpleNamespace
from typing import Any

from libs.common.bus.link import Message
from libs.common.bus.stored import Stored
from libs.common.contracts import subjects
from libs.common.contracts.codec import encode
from libs.common.contracts.headers import FACTS
from libs.common.contracts.jobs import Binding, Completion, Submission, Usage
from libs.common.contracts.requests import Kind
from libs.common.contracts.subjects import JobKey
from libs.common.states import JobState

KEY = "acme"


class Folders:
    """`replicated` and the methods are those of a Bus."""

    replicated = False

    def __init__(self) -> None:
        self.records: dict[str, Stored] = {}
        self.sequence = 0
        self.connections = 1
        self.hints: list[Any] = []

    async def subscribe(self, subject: str, receive: Any, *, queue: str = "") -> Any:
        self.hints.append(receive)

        async def stop() -> None:
            self.hints.remove(receive)

        return SimpleNamespace(stop=stop)

    async def last(self, stream: str, subject: str) -> Stored | None:
        start = subject.removesuffix("*")
        found = [stored for name, stored in self.records.items() if name == subject or name.startswith(start)]
        return max(found, key=lambda stored: stored.sequence, default=None)

    # In whichever order: nobody may rely on one.
    async def last_of_each(self, stream: str, wanted: list[str], **_: Any) -> list[Stored]:
        return [self.records[subject] for subject in reversed(wanted) if subject in self.records]

    def write(self, job: str, name: Any, facts: Submission | Binding | Completion | None) -> None:
        self.sequence += 1
        subject = subjects.record(JobKey(KEY, job), name)
        headers = {FACTS: encode(facts).decode()} if facts else {}
        self.records[subject] = Stored(subject, self.sequence, 0, headers, b"")

    def submit(self, job: str, op_id: str) -> Submission:
        facts = submission(op_id)
        self.write(job, "new", facts)
        return facts

    def bind(self, job: str, facts: Submission, node: str | None = "n") -> None:
        binding = Binding(op_id="b", job=facts, submitted=1, created_ms=0, epoch=1, node=node, boot="b")
        self.write(job, "active", binding)

    def finish(self, job: str, facts: Submission, tokens: int) -> None:
        done = Completion(
            op_id="d", job=facts, submitted=1, created_ms=0, state=JobState.SUCCEEDED, epoch=1, finished_ms=1,
            usage=Usage(prompt_tokens=tokens, completion_tokens=0), started_ms=1,
        )  # fmt: skip
        self.write(job, "done", done)

    async def hint(self, job: str, payload: bytes) -> None:
        for receive in list(self.hints):
            waiting = receive(Message(f"evt.{KEY}.{job}", payload, {}, ""))
            assert waiting is None


def submission(op_id: str, **more: Any) -> Submission:
    fields: dict[str, Any] = {
        "op_id": op_id, "kind": Kind.CHAT, "model": "m", "route": "/jobs", "deadline_s": 3600, "result_ttl_s": 3600,
        "size": 1, "digest": "d",
    }  # fmt: skip
    return Submission(**(fields | more))
