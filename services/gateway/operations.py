"""What each route says about itself in the OpenAPI document: what it takes, gives, and can refuse."""

from typing import Annotated, Any, Literal

from msgspec import Meta

from libs.common.contracts.events import POSITION
from libs.common.contracts.faults import Code
from libs.common.contracts.headers import DETACH, IDEMPOTENCY_KEY, JOB_ID
from libs.common.contracts.subjects import TOKEN
from libs.common.openapi import LINES, SSE, Answer, Body, Header, Link, Operation, Parameter
from libs.common.states import JobState
from services.gateway import shapes
from services.gateway.job_bodies import JobBody
from services.gateway.job_service import MAX_KEY, MAX_WAIT_S
from services.gateway.listing import CURSOR, MAX_LIMIT
from services.gateway.openai_request import ChatBody
from services.gateway.policies import ModelChangeBody, NodePolicyBody, OrderBody
from services.gateway.webhooks.bodies import NewWebhook

_Token = Annotated[str, Meta(pattern=f"^{TOKEN.pattern}$")]
_Flag = Literal["1", "true", "0", "false"]
_Seconds = Annotated[float, Meta(ge=0)]
# Empty is as if it were left out, as with EventSource.
_Place = Annotated[str, Meta(pattern=f"^({POSITION.pattern})?$")]
_ChunkPlace = Annotated[str, Meta(pattern=f"^({POSITION.pattern}(-[0-9])?)?$")]

_KEY = Parameter(
    IDEMPOTENCY_KEY, Annotated[str, Meta(min_length=1, max_length=MAX_KEY)],
    "the same key with the same body gives the same job again, with another body 422", "header",
)  # fmt: skip
_JOB = Header(JOB_ID, "the job behind this answer", required=True)
_LOCATION = Header("Location", "where the job is", required=True)
_ID = Parameter("id", _Token, "of a job", "path")
_NODE = Parameter("node", str, "name of a node", "path")
_NAME = Parameter("name", str, "of a model, such as `llama3.2:3b` or `hf.co/org/name:Q4_K_M`, slashes and all", "path")


def _places(type_: Any) -> tuple[Parameter, ...]:
    about = "where the reader was: the `id` of the last event it has; only what comes after it is sent"
    return (Parameter("Last-Event-ID", type_, about, "header"), Parameter("after", type_, "the same, in the query"))


# -- codes -----------------------------------------------------------------------------------------------------------

_SUBMITS = (
    Code.UNSUPPORTED_PARAMETER,
    Code.CONTEXT_LENGTH_EXCEEDED,
    Code.MODEL_NOT_FOUND,
    Code.IDEMPOTENCY_MISMATCH,
    Code.REQUEST_GONE,
    Code.TOO_LARGE,
    Code.OVERLOADED,
    Code.SUBMIT_UNCONFIRMED,
    Code.DEADLINE_UNMEETABLE,
    Code.QUOTA_EXHAUSTED,
    Code.QUEUE_FULL,
    Code.WRONG_STATE,  # its webhook is disabled
)
_STREAMS = (Code.POSITION_LOST, Code.OVERLOADED)
# How the job behind a chat can end instead of an answer.
_ENDS = (
    Code.CANCELLED,
    Code.NODE_REJECTED,
    Code.NODE_FAILED,
    Code.NODE_BUSY,
    Code.INTERRUPTED,
    Code.RESULT_TOO_LARGE,
    Code.DEADLINE_EXCEEDED,
)

# -- jobs ------------------------------------------------------------------------------------------------------------

_OF_THE_NEW_JOB = {"id": "$response.body#/id"}
_LINKS = {
    "look": Link("GET /jobs/{id}", _OF_THE_NEW_JOB),
    "stream": Link("GET /jobs/{id}/stream", _OF_THE_NEW_JOB),
    "cancel": Link("DELETE /jobs/{id}", _OF_THE_NEW_JOB),
    "retry": Link("POST /jobs/{id}/retry", _OF_THE_NEW_JOB),
}
_CREATED = Answer(
    "stored; it runs when a node has room", (shapes.JobCreated,), 202, headers=(_LOCATION, _JOB), links=_LINKS
)
_EXISTED = "the job that this Idempotency-Key made before"

SUBMIT_JOB = Operation(
    "Submit a job",
    (
        _CREATED,
        Answer(
            f"{_EXISTED}; or, with `dry_run`, where it would go", (shapes.JobView, shapes.DryRun),
            headers=(_LOCATION._replace(required=False), _JOB._replace(required=False)),
        ),
    ),
    Body(JobBody, example={"model": "llama3.2", "prompt": "Why is the sky blue?"}),
    (_KEY, Parameter("dry_run", _Flag, "say where the job would go, and store nothing")),
    (*_SUBMITS, Code.IDEMPOTENCY_MISMATCH),
    about="Exactly one of `messages` (chat), `prompt` (generate) and `input` (embed). Unknown fields are refused.",
)  # fmt: skip
LIST_JOBS = Operation(
    "List one's own jobs, oldest first",
    (Answer("a page", (shapes.JobList,)),),
    parameters=(
        Parameter("limit", Annotated[int, Meta(ge=1, le=MAX_LIMIT)], "rows of a page; 50 unless given"),
        Parameter("cursor", Annotated[str, Meta(pattern=f"^{CURSOR.pattern}$")], "the `cursor` of the page before"),
        Parameter("state", JobState, "only jobs in this state"),
    ),
)
GET_JOB = Operation(
    "Look at a job",
    (Answer("as it stands", (shapes.JobView,)),),
    parameters=(
        _ID,
        Parameter("wait", _Seconds, f"answer when the job has ended, at most so many seconds later (up to {MAX_WAIT_S:.0f})"),
        Parameter("explain", _Flag, "say why it is where it is, too"),
    ),
    codes=(Code.JOB_NOT_FOUND, Code.OVERLOADED),
)  # fmt: skip
STREAM_JOB = Operation(
    "Read a job along",
    (
        Answer(
            "server-sent events: `queued`, `bound`, `loading`, `token`, `reset`, then `succeeded`, `failed`, `cancelled` or "
            "`expired`", (shapes.JobEvent,), content_type=SSE, headers=(_JOB,),
        ),
    ),
    parameters=(_ID, *_places(_Place), Parameter("reset", str, "1 or true: begin anew when the place is lost, after a `reset`")),
    codes=(Code.JOB_NOT_FOUND, *_STREAMS),
    about="Reading never cancels the job, and ends after its last event.",
)  # fmt: skip
RETRY_JOB = Operation(
    "Submit the request of an unsuccessful job once more",
    (_CREATED, Answer(_EXISTED, (shapes.JobView,), headers=(_LOCATION, _JOB))),
    parameters=(_ID, _KEY),
    codes=(Code.JOB_NOT_FOUND, Code.WRONG_STATE, *_SUBMITS),
)
CANCEL_JOB = Operation(
    "Cancel a job, or erase one that has ended",
    (
        Answer("it has ended, or is erased", (shapes.JobView, shapes.JobErased)),
        Answer("it is being cancelled", (shapes.JobView,), 202),
    ),
    parameters=(_ID,),
    codes=(Code.JOB_NOT_FOUND, Code.OVERLOADED),
)

# -- webhooks ----------------------------------------------------------------------------------------------------------

_WEBHOOK = Parameter("webhook", str, "id of a webhook", "path")

CREATE_WEBHOOK = Operation(
    "Register a receiver for the ends of jobs",
    (
        Answer(
            "registered; its secret is shown this once", (shapes.WebhookCreated,), 201,
            headers=(Header("Location", "where the webhook is", required=True),),
            links={
                "look": Link("GET /webhooks/{webhook}", {"webhook": "$response.body#/id"}),
                "test": Link("POST /webhooks/{webhook}/test", {"webhook": "$response.body#/id"}),
                "delete": Link("DELETE /webhooks/{webhook}", {"webhook": "$response.body#/id"}),
            },
        ),
    ),
    Body(NewWebhook, example={"url": "https://hooks.example.org/arriero"}),
    codes=(Code.TOO_LARGE, Code.WRONG_STATE),
    about="A job names it as `webhook`. How deliveries look and are signed: docs/webhooks.md.",
)  # fmt: skip
LIST_WEBHOOKS = Operation("List one's own webhooks", (Answer("all of them", (shapes.WebhookList,)),))
GET_WEBHOOK = Operation("Look at a webhook", (Answer("it", (shapes.WebhookView,)),), parameters=(_WEBHOOK,))
DELETE_WEBHOOK = Operation(
    "Delete a webhook", (Answer("nothing more is sent there", (shapes.WebhookDeleted,)),), parameters=(_WEBHOOK,)
)
TEST_WEBHOOK = Operation(
    "Send a test now",
    (Answer("what came of it", (shapes.WebhookTested,)),),
    parameters=(_WEBHOOK,),
    codes=(Code.OVERLOADED,),
    about="A success enables a webhook that was disabled.",
)

# -- OpenAI's dialect ------------------------------------------------------------------------------------------------

_EVENTS = "a stream of `chat.completion.chunk`, then `[DONE]`; a failure is an error object instead of `[DONE]`"

CHAT = Operation(
    "Chat completion",
    (
        Answer("the whole answer", (shapes.ChatCompletion,), headers=(_JOB,)),
        Answer(f"with `stream`: {_EVENTS}", (shapes.ChunkEvent,), content_type=SSE),
    ),
    Body(ChatBody, example={"model": "llama3.2", "messages": [{"role": "user", "content": "Why is the sky blue?"}]}),
    (
        _KEY,
        Parameter(DETACH, Literal["true", "false", ""], "true: the job goes on when the client leaves", "header"),
        *_places(_ChunkPlace),
    ),
    (*_SUBMITS, Code.POSITION_LOST, *_ENDS),
    about="As OpenAI's. A known parameter that cannot be honoured is refused, an unknown one is ignored.",
)
COMPLETION = Operation(
    "The answer of a chat completion, from wherever its reader stands",
    (
        Answer("the whole answer", (shapes.ChatCompletion,), headers=(_JOB,)),
        Answer(f"with `stream`: {_EVENTS}", (shapes.ChunkEvent,), content_type=SSE),
    ),
    parameters=(
        Parameter("id", str, "`chatcmpl-…`, or the job's id", "path"),
        Parameter("stream", _Flag, "as server-sent events"),
        *_places(_ChunkPlace),
    ),
    codes=(Code.JOB_NOT_FOUND, *_STREAMS, *_ENDS),
)
OPENAI_MODELS = Operation("The models that one may use", (Answer("all of them", (shapes.OpenAiModels,)),))
OPENAI_MODEL = Operation(
    "One model that one may use",
    (Answer("it", (shapes.OpenAiModel,)),),
    parameters=(_NAME._replace(name="model"),),
    codes=(Code.MODEL_NOT_FOUND,),
)

# -- the fleet -------------------------------------------------------------------------------------------------------

NODES = Operation("All nodes", (Answer("as their last heartbeats say", (shapes.NodeList,)),))
DECIDE_NODE = Operation(
    "Drain a node, or let it work again",
    (Answer("decided", (shapes.NodeDecided,)),),
    Body(NodePolicyBody, example={"draining": True}),
    (_NODE,),
    (Code.TOO_LARGE,),
)
WORK_ON_NODE = Operation(
    "Load, unload or pull a model on a node",
    (
        Answer("with `stream=false`: how it ended", (shapes.WorkLine,)),
        Answer("lines of JSON, the last one with state `done` or `failed`", (shapes.WorkLine,), content_type=LINES),
    ),
    Body(OrderBody, example={"op": "load", "model": "llama3.2"}),
    (_NODE, Parameter("stream", _Flag, "false: only how it ended")),
    (Code.TOO_LARGE, Code.MODEL_NOT_FOUND, Code.NODE_FAILED),
    about="The work goes on when whoever asked for it leaves.",
)
MODELS = Operation(
    "All models of the fleet, and what was decided about them", (Answer("by name", (shapes.ModelList,)),)
)
DECIDE_MODEL = Operation(
    "Decide about a model",
    (Answer("its policy now", (shapes.ModelDecided,)),),
    Body(ModelChangeBody, example={"num_ctx": 8192}),
    (_NAME,),
    (Code.TOO_LARGE, Code.MODEL_NOT_FOUND),
    about="What is not named stays, null is back to the default.",
)
FORGET_MODEL = Operation(
    "Back to the defaults for a model",
    (Answer("the defaults", (shapes.ModelDecided,)),),
    parameters=(_NAME,),
)

DESCRIPTION = Operation("This document", (Answer("OpenAPI 3.1", (dict[str, Any],)),))
