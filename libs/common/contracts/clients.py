"""Clients, their API keys, and what a token says. Records of the bucket `clients`, written by auth, watched by gateways.

Keys of the bucket: `client.<id>` and `key.<key id>`. Secrets are stored as keyed HMAC only.
"""

from enum import StrEnum

from libs.common.contracts.codec import Contract, Decoder
from libs.common.contracts.requests import Priority


class Scope(StrEnum):
    MODELS_READ = "models:read"
    INFERENCE = "inference"
    JOBS_WRITE = "jobs:write"
    JOBS_READ = "jobs:read"
    JOBS_CANCEL = "jobs:cancel"
    ADMIN_CLIENTS = "admin:clients"
    ADMIN_CLUSTER = "admin:cluster"


DEFAULT_SCOPES: tuple[str, ...] = (
    Scope.MODELS_READ,
    Scope.INFERENCE,
    Scope.JOBS_WRITE,
    Scope.JOBS_READ,
    Scope.JOBS_CANCEL,
)

# A token without a `scope` in its request gets all that its client has, but these: what changes credentials is asked for.
ONLY_WHEN_ASKED: frozenset[str] = frozenset({Scope.ADMIN_CLIENTS})

TOKEN_TTL_S = 300
AUDIENCE = "arriero"  # of every access token; the gateways' name


class Policy(Contract, frozen=True, kw_only=True):
    """What a client may ask for. `priority` is the best class it gets, whatever it asks; `deadline_s` and
    `result_ttl_s` replace the defaults of every route."""

    priority: Priority = Priority.INTERACTIVE
    deadline_s: float | None = None
    result_ttl_s: float | None = None
    weight: float = 1.0  # its share of the fleet while others wait, too
    max_running: int = 0  # jobs at nodes at once; the others wait. 0: no limit


class Client(Contract, frozen=True, kw_only=True):
    """`verifiers` are HMAC-SHA-256 of its secrets, hex; several while a secret is being rotated.
    Tokens issued before `not_before` (seconds since the epoch) do not count."""

    id: str
    name: str
    scopes: tuple[str, ...] = DEFAULT_SCOPES
    verifiers: tuple[str, ...] = ()
    disabled: bool = False
    not_before: int = 0
    policy: Policy = Policy()
    created_at: str = ""


class ApiKey(Contract, frozen=True, kw_only=True):
    """A static credential for tools that can send nothing else; its client's scopes bound its own."""

    id: str
    client: str
    verifier: str
    last4: str = ""
    scopes: tuple[str, ...] | None = None  # None: all of its client's
    disabled: bool = False
    expires_at: int | None = None
    created_at: str = ""


class Principal(Contract, frozen=True, kw_only=True):
    """Who a verified credential speaks for."""

    client: str
    scopes: frozenset[str]
    policy: Policy = Policy()
    credential: str = ""  # "token:<jti>" or "key:<id>", for the audit trail


decode_client = Decoder(Client)
decode_api_key = Decoder(ApiKey)
