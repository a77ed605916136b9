"""What answers look like, as types: the OpenAPI document has them from here. Nothing decodes with them; that answers are so is
what tests/openapi checks, on every answer it gets. Strict: a member that is not here fails there.

Times are RFC 3339 in UTC, durations (`…_s`) seconds, sizes bytes.
"""

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

from libs.common.contracts.catalog import OnCpu
from libs.common.contracts.control import ModelOp, ModelWork
from libs.common.contracts.faults import Code
from libs.common.contracts.jobs import Timings, Usage
from libs.common.contracts.requests import Kind, Priority
from libs.common.contracts.webhooks import EventType
from libs.common.states import JobState


class FaultShown(Struct, forbid_unknown_fields=True):
    code: Code
    message: str
    retryable: bool
    path: str | UnsetType = UNSET


class FailedAttempt(Struct, forbid_unknown_fields=True):
    node: str
    epoch: int
    at: str
    error: FaultShown


class Lineage(Struct, forbid_unknown_fields=True):
    """An earlier binding, and how many bytes of its log the next one went on from."""

    epoch: int
    base: int | None


class CandidateShown(Struct, forbid_unknown_fields=True):
    node: str
    verdict: str
    wait_s: float | None
    load_s: float | None
    prefill_s: float | None
    decode_s: float | None
    harm_s: float | None
    score_s: float | None


class DecisionShown(Struct, forbid_unknown_fields=True):
    """Why the router chose this node."""

    node: str
    reason: str
    cold: bool
    waited_s: float
    ttft_s: float | None
    load_s: float | None
    cached_tokens: int
    candidates: list[CandidateShown]


class JobView(Struct, forbid_unknown_fields=True, kw_only=True):
    """`result` is Ollama's final object with the whole answer. `decision` and `waiting` come with `explain`, `cancelling` from
    a cancel that takes longer."""

    id: str
    kind: Kind
    model: str
    state: JobState
    priority: Priority
    node: str | None
    epoch: int | None
    lineage: list[Lineage]
    attempts: int
    position: int | None
    eta_s: float | None
    created_at: str
    started_at: str | None
    finished_at: str | None
    result: dict[str, Any] | None
    usage: Usage | None
    timings: Timings | None
    error: FaultShown | None
    metadata: dict[str, str] | UnsetType = UNSET
    retry_of: str | UnsetType = UNSET
    failed_attempts: list[FailedAttempt] | UnsetType = UNSET
    decision: DecisionShown | UnsetType | None = UNSET
    waiting: str | UnsetType | None = UNSET
    cancelling: Literal[True] | UnsetType = UNSET


class JobCreated(Struct, forbid_unknown_fields=True):
    id: str
    state: Literal["queued"]
    kind: Kind
    model: str
    retry_of: str | UnsetType = UNSET


class JobErased(Struct, forbid_unknown_fields=True):
    id: str
    state: JobState
    erased: Literal[True]


class JobEvent(Struct, forbid_unknown_fields=True):
    """`id`: the place after this event; changes of state have none. `data`: JSON."""

    event: Literal[
        "queued", "bound", "loading", "token", "reset", "succeeded", "failed", "cancelled", "expired", "error"
    ]
    data: str
    id: str | UnsetType = UNSET


class ChunkEvent(Struct, forbid_unknown_fields=True):
    """`id`: the place after this event, for streams that can be resumed."""

    data: str
    id: str | UnsetType = UNSET
    event: Literal["message", "error"] | UnsetType = UNSET  # without a name it is a message (WHATWG HTML §9.2)


class JobRow(Struct, forbid_unknown_fields=True):
    id: str
    kind: Kind
    model: str
    state: JobState
    priority: Priority
    node: str | None
    created_at: str
    finished_at: str | None


class JobList(Struct, forbid_unknown_fields=True):
    """`cursor` gives the next page; null: this was the last. A page may have fewer rows than asked for, and yet go on."""

    jobs: list[JobRow]
    cursor: str | None


class DryRun(Struct, forbid_unknown_fields=True):
    """Where the job would go now. Nothing was stored."""

    dry_run: Literal[True]
    kind: Kind
    model: str
    priority: Priority
    prompt_tokens: int
    output_tokens: int | None
    num_ctx: int | None
    decision: DecisionShown | None
    reason: str | None
    eta_s: float | None
    finish_s: float | None


class WebhookView(Struct, forbid_unknown_fields=True):
    """`reason`: why deliveries fail, or why it was disabled."""

    id: str
    url: str
    events: list[EventType]
    include_result: bool
    created_at: str
    failing_since: str | None
    disabled_at: str | None
    reason: str | None


class WebhookCreated(WebhookView, forbid_unknown_fields=True, kw_only=True):
    secret: str


class WebhookList(Struct, forbid_unknown_fields=True):
    webhooks: list[WebhookView]


class WebhookDeleted(Struct, forbid_unknown_fields=True):
    id: str
    deleted: Literal[True]


class WebhookTested(Struct, forbid_unknown_fields=True):
    """`status`: of the receiver's answer; null when there was none."""

    id: str
    delivered: bool
    status: int | None
    reason: str | None


class OpenAiModel(Struct, forbid_unknown_fields=True):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class OpenAiModels(Struct, forbid_unknown_fields=True):
    object: Literal["list"]
    data: list[OpenAiModel]


class FunctionCalled(Struct, forbid_unknown_fields=True):
    """`arguments`: JSON in a string."""

    name: str
    arguments: str


class ToolCalled(Struct, forbid_unknown_fields=True):
    id: str
    type: Literal["function"]
    function: FunctionCalled


class AnswerMessage(Struct, forbid_unknown_fields=True):
    role: Literal["assistant"]
    content: str
    reasoning: str | UnsetType = UNSET
    tool_calls: list[ToolCalled] | UnsetType = UNSET


class Logprobs(Struct, forbid_unknown_fields=True):
    content: list[dict[str, Any]]


class Choice(Struct, forbid_unknown_fields=True):
    index: int
    message: AnswerMessage
    logprobs: Logprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class TokensUsed(Struct, forbid_unknown_fields=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatCompletion(Struct, forbid_unknown_fields=True):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: TokensUsed


class ModelHeld(Struct, forbid_unknown_fields=True):
    name: str
    size: int
    digest: str
    capabilities: list[str]


class ModelLoaded(Struct, forbid_unknown_fields=True):
    name: str
    size: int
    size_vram: int
    context_length: int


class NodeView(Struct, forbid_unknown_fields=True):
    name: str
    state: Literal["ready", "draining", "unreachable", "suspect", "dead"]
    draining: bool
    problem: str | None
    last_seen_s: float
    slots: int
    running: int
    vram: int | None
    models: list[ModelHeld]
    loaded: list[ModelLoaded]
    ollama_version: str
    arriero_version: str
    boot: str


class NodeList(Struct, forbid_unknown_fields=True):
    nodes: list[NodeView]


class NodePolicyShown(Struct, forbid_unknown_fields=True):
    draining: bool


class NodeDecided(Struct, forbid_unknown_fields=True):
    name: str
    policy: NodePolicyShown


class WorkLine(Struct, forbid_unknown_fields=True):
    """How far a node is with a model; also one line of the stream. `code`: why the stream ended before the work did."""

    node: str
    op: ModelOp
    model: str
    state: ModelWork
    status: str
    completed: int
    total: int
    code: Code | UnsetType = UNSET


class ModelOnNode(Struct, forbid_unknown_fields=True):
    name: str
    state: str
    digest: str
    loaded: bool
    size: int | None
    size_vram: int | None
    context_length: int | None
    expires_at: str | None


class ModelPolicyShown(Struct, forbid_unknown_fields=True):
    pins: list[str]
    num_ctx: int | None
    keep_alive: str | int | None
    on_cpu: OnCpu


class ModelView(Struct, forbid_unknown_fields=True):
    name: str
    size: int | None
    parameter_size: str | None
    quantization: str | None
    capabilities: list[str]
    same_everywhere: bool
    nodes: list[ModelOnNode]
    policy: ModelPolicyShown


class ModelList(Struct, forbid_unknown_fields=True):
    models: list[ModelView]


class ModelDecided(Struct, forbid_unknown_fields=True):
    name: str
    policy: ModelPolicyShown
