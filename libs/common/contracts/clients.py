"""Clients, their API keys, and what a token says. Records of the bucket `clients`, written by auth, watched by gateways.

Keys of the bucket: `client.<id>` and `key.<key id>`. Secrets are stored as keyed HMAC only.
"""

from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any

from libs.common.contracts.codec import Contract, Decoder
from libs.common.contracts.nodes import canonical_model
from libs.common.contracts.requests import Priority


class Scope(StrEnum):
    MODELS_READ = "models:read"
    INFERENCE = "inference"
    JOBS_WRITE = "jobs:write"
    JOBS_READ = "jobs:read"
    JOBS_CANCEL = "jobs:cancel"
    ADMIN_CLIENTS = "admin:clients"
    ADMIN_CLUSTER = "admin:cluster"
    AUDIT_READ = "audit:read"


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


class ModelRule(Contract, frozen=True, kw_only=True):
    """Which models there are for a caller: shell patterns (`llama3*`, `hf.co/*`) on canonical names; `deny` goes first."""

    allow: tuple[str, ...] = ("*",)
    deny: tuple[str, ...] = ()

    def allows(self, model: str) -> bool:
        """`model` in any spelling. A pattern without a tag means every tag."""
        name = canonical_model(model)
        return any(_matches(name, pattern) for pattern in self.allow) and not any(
            _matches(name, pattern) for pattern in self.deny
        )


def _matches(name: str, pattern: str) -> bool:
    last = pattern.lower().rpartition("/")[2]
    return fnmatchcase(name.lower(), pattern.lower() if ":" in last or last.endswith("*") else f"{pattern.lower()}:*")


class Limits(Contract, frozen=True, kw_only=True):
    """Of one account over all gateways together; 0: no limit. Tokens are those of prompts and of answers."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    tokens_per_day: int = 0  # days and months of UTC
    tokens_per_month: int = 0
    open_streams: int = 0
    queued: int = 0  # jobs that wait for a node


class Policy(Contract, frozen=True, kw_only=True):
    """What a client may ask for. `priority` is the best class it gets, whatever it asks; `deadline_s` and
    `result_ttl_s` replace the defaults of every route."""

    priority: Priority = Priority.INTERACTIVE
    deadline_s: float | None = None
    result_ttl_s: float | None = None
    weight: float = 1.0  # its share of the fleet while others wait, too
    max_running: int = 0  # jobs at nodes at once; the others wait. 0: no limit
    models: ModelRule = ModelRule()
    limits: Limits = Limits()


class ReplacedSecret(Contract, frozen=True, kw_only=True):
    """A secret that counts until then (seconds since the epoch), so that there is time to bring its successor everywhere."""

    verifier: str
    until: int


class Client(Contract, frozen=True, kw_only=True):
    """`verifiers` are HMAC-SHA-256 of its secrets, hex; `replaced` those of secrets before, each with its end.
    Tokens issued before `not_before` (seconds since the epoch) do not count."""

    id: str
    name: str
    scopes: tuple[str, ...] = DEFAULT_SCOPES
    verifiers: tuple[str, ...] = ()
    replaced: tuple[ReplacedSecret, ...] = ()
    disabled: bool = False
    not_before: int = 0
    policy: Policy = Policy()
    jwks: tuple[dict[str, Any], ...] = ()  # its public keys, for private_key_jwt (RFC 7523)
    nats: str = ""  # the public nkey of its own NATS user; empty: it has none
    expires_at: int | None = None  # seconds since the epoch
    created_at: str = ""


class ApiKey(Contract, frozen=True, kw_only=True):
    """A static credential for tools that can send nothing else; its client's scopes bound its own."""

    id: str
    client: str
    verifier: str
    last4: str = ""
    name: str = ""  # what its owner calls it
    scopes: tuple[str, ...] | None = None  # None: all of its client's
    models: ModelRule | None = None  # beside its client's rule: a model must pass both
    limits: Limits | None = None  # beside its client's: an account of its own
    disabled: bool = False
    expires_at: int | None = None
    created_at: str = ""


class Account(Contract, frozen=True, kw_only=True):
    """What limits are counted on: `client.<id>` or `key.<id>`."""

    name: str
    limits: Limits


class Principal(Contract, frozen=True, kw_only=True):
    """Who a verified credential speaks for."""

    client: str
    scopes: frozenset[str]
    policy: Policy = Policy()
    credential: str = ""  # "token:<jti>", "key:<id>" or "nats", for the audit trail
    models: tuple[ModelRule, ...] = ()  # a model must pass all of them
    accounts: tuple[Account, ...] = ()  # only those with limits
    issued_at: int = 0  # of a token, seconds since the epoch
    kid: str = ""  # the key that signed it

    def allows(self, model: str) -> bool:
        return all(rule.allows(model) for rule in self.models)


decode_client = Decoder(Client)
decode_api_key = Decoder(ApiKey)
