"""Arriero's Python client for internal services: jobs over NATS, without HTTP (docs/nats.md).

async with Arriero.connect("nats://127.0.0.1:8702", client="billing", nkey_seed="SU…") as arriero:
    job = await arriero.submit(model="llama3.2:3b", messages=[{"role": "user", "content": "Why do llamas hum?"}])
    async for event in job.stream():
        ...
    result = await job.result()
"""

from libs.client.arriero import Arriero
from libs.client.errors import (
    ArrieroError,
    Forbidden,
    IdempotencyMismatch,
    InvalidRequest,
    JobCancelled,
    JobExpired,
    JobFailed,
    JobNotFound,
    Limited,
    ModelNotFound,
    NoAnswer,
    NoGateway,
    NotConnected,
    PositionLost,
    SubmitUnconfirmed,
    TimedOut,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from libs.client.events import Data, Reset, StreamEvent, Text, Thinking, ToolCall
from libs.client.job import Job
from libs.client.result import Result

__all__ = [
    "Arriero",
    "ArrieroError",
    "Data",
    "Forbidden",
    "IdempotencyMismatch",
    "InvalidRequest",
    "Job",
    "JobCancelled",
    "JobExpired",
    "JobFailed",
    "JobNotFound",
    "Limited",
    "ModelNotFound",
    "NoAnswer",
    "NoGateway",
    "NotConnected",
    "PositionLost",
    "Reset",
    "Result",
    "StreamEvent",
    "SubmitUnconfirmed",
    "Text",
    "Thinking",
    "TimedOut",
    "TooLarge",
    "ToolCall",
    "Unauthenticated",
    "Unavailable",
]
