"""The records of a job's folder in the stream JOBS (DESIGN §3). Facts ride in one header, the body is text or a request.

| record   | header (`Arriero-Facts`) | body                                                        |
|----------|--------------------------|-------------------------------------------------------------|
| `new`    | Submission               | `requests.Request` as JSON                                  |
| `active` | Binding                  | the visible text to go on from: a prefix of the token log   |
| `done`   | Completion               | the token log, end event included                           |
| cancel   | CancelMark               | empty                                                       |

A record without facts has been emptied: it counts as absent, only its sequence counts.
`op_id` is new for every write that is tried: who finds its own op_id in the folder knows that a lost ack was a success.
Times are milliseconds since the epoch, from the NATS server's clock unless the name says otherwise.
"""

from libs.common.contracts.codec import Contract, Decoder
from libs.common.contracts.faults import Fault
from libs.common.contracts.requests import Kind, Priority
from libs.common.states import JobState

MAX_RUN_S = 3600.0  # one run; a generation that takes longer has run away (DESIGN §3)
MIN_RESULT_TTL_S = 60.0
MAX_ATTEMPTS = 3  # failures before a job ends `failed`; bindings do not count
INLINE_LIMIT = 512 * 1024  # bytes of a body or log in one message; above it, parts
PART_SIZE = 256 * 1024
# Jobs that ended so keep their `new`, for a retry; of others it is emptied after the end (DESIGN §3).
KEEPS_REQUEST = frozenset({JobState.FAILED, JobState.EXPIRED})


class Parts(Contract, frozen=True, kw_only=True):
    """Says that the record's body lies in `parts.<client>.<job>.<op_id>.0 … count-1`."""

    op_id: str
    count: int
    size: int


class Submission(Contract, frozen=True, kw_only=True):
    """The scheduling facts of a job, as the gateway knew them; all the router ever sees of the request."""

    op_id: str
    kind: Kind
    model: str  # as the client spelled it; answers echo it
    route: str
    priority: Priority = Priority.NORMAL
    deadline_s: float  # from the server's timestamp of `new` to the finish
    result_ttl_s: float  # after the deadline
    size: int
    digest: str  # of the request; with an Idempotency-Key the same key must come with the same digest
    prompt_tokens: int = 0  # estimate
    output_tokens: int = 0  # estimate
    affinity: tuple[
        str, ...
    ] = ()  # the prompt hashed block by block, each with all before it: the longest prefix is last
    num_ctx: int = 0  # the context this request needs; 0: it says nothing
    weight: float = 1.0  # the client's share among others, by its policy
    max_running: int = 0  # jobs of this client at nodes at once, by its policy; 0: no limit
    credential: str = ""  # what it was submitted with, as Principal has it: when that is revoked, the job is cancelled
    issued_at: int = 0  # of the token it was submitted with, by auth's clock; 0: no token, or not known
    kid: str = ""  # of the key that signed that token
    detached: bool = False  # nobody has to watch: never cancelled for want of a reader
    metadata: dict[str, str] | None = None
    include_usage: bool = False  # OpenAI's stream_options: a stream of chunks ends with one of usage, resumed or not
    webhook: str = ""  # of its client: hears of the end
    retry_of: str | None = None  # the job whose request this is once more
    parts: Parts | None = None


class PastEpoch(Contract, frozen=True, kw_only=True):
    """An earlier binding. `base` bytes of its log were carried into the next; None: not gathered yet, so nobody binds."""

    epoch: int
    base: int | None = None


class Attempt(Contract, frozen=True, kw_only=True):
    """A binding that failed. Bindings that ended through no fault (drain, router change) are not attempts."""

    epoch: int
    node: str
    fault: Fault
    at_ms: int


class Candidate(Contract, frozen=True, kw_only=True):
    """A node that was looked at. Seconds, as predicted; None when it was refused before it was priced."""

    node: str
    verdict: str
    wait_s: float | None = None  # until it has a slot for this model
    load_s: float | None = None  # of the model, with what has to leave memory for it
    prefill_s: float | None = None  # of the tokens that it does not hold already
    decode_s: float | None = None
    harm_s: float | None = None  # to others: reloading what is evicted
    score_s: float | None = None  # what was compared; the smallest won


class Decision(Contract, frozen=True, kw_only=True):
    """Why the router chose this node: kept with the job, readable by its owner."""

    node: str
    reason: str
    cold: bool = False  # the model was not in memory there: a load comes first
    waited_ms: int = 0
    ttft_s: float | None = None  # predicted, from this decision to the first token
    load_s: float = 0.0  # of it: the load
    cached_tokens: int = 0  # of the prompt, that the node is believed to hold already
    candidates: tuple[Candidate, ...] = ()


class Binding(Contract, frozen=True, kw_only=True):
    """`active`: a job bound to a node, or (node None) given back to the queue, not before `not_before_ms`.

    `epoch` is the stream sequence that this record's CAS named; it only grows. `submitted` is the sequence of `new`.
    """

    op_id: str
    job: Submission
    submitted: int
    created_ms: int
    epoch: int
    node: str | None = None
    boot: str | None = None
    base: int = 0
    past: tuple[PastEpoch, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    not_before_ms: int | None = None
    decision: Decision | None = None
    parts: Parts | None = None


class Usage(Contract, frozen=True, kw_only=True):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Timings(Contract, frozen=True, kw_only=True):
    """Seconds. `wait` until bound, `first_token` from submit; the others as Ollama reported them."""

    wait: float | None = None
    first_token: float | None = None
    load: float | None = None
    prefill: float | None = None
    decode: float | None = None
    total: float | None = None


class Completion(Contract, frozen=True, kw_only=True):
    """`done`: the final word. `log_size` and `log_digest` (sha256) describe the body, also after it was erased."""

    op_id: str
    job: Submission
    submitted: int
    created_ms: int
    state: JobState
    epoch: int
    past: tuple[PastEpoch, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    node: str | None = None
    boot: str | None = None
    started_ms: int | None = None
    finished_ms: int
    decision: Decision | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    fault: Fault | None = None
    log_size: int = 0
    log_digest: str = ""
    erased: bool = False
    parts: Parts | None = None


class CancelMark(Contract, frozen=True, kw_only=True):
    """Names the `new` it is meant for: a keyed id may live again, and an old mark must not hit the new life."""

    submitted: int
    reason: str


class Hint(Contract, frozen=True, kw_only=True):
    """On `evt.…` after a CAS: state, epoch and sequence. A hint, never a fact."""

    state: JobState
    epoch: int
    sequence: int


decode_submission = Decoder(Submission)
decode_binding = Decoder(Binding)
decode_completion = Decoder(Completion)
decode_cancel_mark = Decoder(CancelMark)
decode_hint = Decoder(Hint)
