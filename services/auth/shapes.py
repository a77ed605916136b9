"""What answers look like, and the forms that the OAuth endpoints take, as types: the OpenAPI document has them from here. Nothing
decodes with them; that answers are so is what tests/openapi checks. Strict: a member that is not here fails there.
"""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from libs.common.contracts.clients import Scope
from libs.common.contracts.requests import Priority
from services.auth import assertions
from services.auth.rotation import State


class ModelsShown(Struct, forbid_unknown_fields=True):
    allow: list[str]
    deny: list[str]


class LimitsShown(Struct, forbid_unknown_fields=True):
    """0: no limit."""

    requests_per_minute: int
    tokens_per_minute: int
    tokens_per_day: int
    tokens_per_month: int
    open_streams: int
    queued: int


class PolicyShown(Struct, forbid_unknown_fields=True):
    priority: Priority
    deadline_s: float | None
    result_ttl_s: float | None
    weight: float
    max_running: int
    models: ModelsShown
    limits: LimitsShown


class JwkSet(Struct, forbid_unknown_fields=True):
    """RFC 7517 §5, public parts only."""

    keys: list[dict[str, Any]]


class KeyShown(Struct, forbid_unknown_fields=True, kw_only=True):
    """`scopes` null: all of its client's."""

    key_id: str
    client_id: str
    name: str
    last4: str
    scopes: list[Scope] | None
    models: ModelsShown | None
    limits: LimitsShown | None
    disabled: bool
    expires_at: int | None
    created_at: str


class NewKey(KeyShown, forbid_unknown_fields=True, kw_only=True):
    """`api_key` is shown this once."""

    api_key: str


class KeyList(Struct, forbid_unknown_fields=True):
    keys: list[KeyShown]


class ClientShown(Struct, forbid_unknown_fields=True, kw_only=True):
    """Times in seconds since the epoch, but `created_at`. `replaced_until`: when each replaced secret stops to count."""

    client_id: str
    name: str
    scopes: list[Scope]
    policy: PolicyShown
    disabled: bool
    expires_at: int | None
    jwks: JwkSet
    nats: str
    not_before: int
    replaced_until: list[int]
    created_at: str


class ClientWithKeys(ClientShown, forbid_unknown_fields=True, kw_only=True):
    keys: list[KeyShown]


class NewClient(ClientShown, forbid_unknown_fields=True, kw_only=True):
    """`client_secret` is shown this once; a client with public keys has none."""

    client_secret: str | UnsetType = UNSET


class NewSecret(ClientShown, forbid_unknown_fields=True, kw_only=True):
    client_secret: str


class ClientList(Struct, forbid_unknown_fields=True):
    clients: list[ClientShown]


class ClientDeleted(Struct, forbid_unknown_fields=True):
    client_id: str
    deleted: Literal[True]
    keys: list[str]


class KeyRevoked(Struct, forbid_unknown_fields=True):
    key_id: str
    revoked: Literal[True]


class SigningKey(Struct, forbid_unknown_fields=True):
    """`until`: when the state ends at the earliest."""

    kid: str
    state: State
    since: int
    until: int
    created_at: str


class SigningKeys(Struct, forbid_unknown_fields=True):
    keys: list[SigningKey]
    rotation_asked: Any
    withdrawn: list[str]


class Metadata(Struct):
    """RFC 8414 §2."""

    issuer: str
    token_endpoint: str
    revocation_endpoint: str
    introspection_endpoint: str
    jwks_uri: str
    scopes_supported: list[Scope]
    grant_types_supported: list[str]


class ProofForm(Struct, kw_only=True):
    """How a client proves itself in the form, if not by HTTP Basic (RFC 6749 §2.3, RFC 7523 §2.2).

    Empty is as if it were left out.
    """

    client_id: str | UnsetType = UNSET
    client_secret: str | UnsetType = UNSET
    client_assertion_type: Annotated[str, Meta(pattern=f"^({assertions.TYPE})?$")] | UnsetType = UNSET
    client_assertion: str | UnsetType = UNSET


class TokenForm(ProofForm, kw_only=True):
    """`scope`: names, with blanks between; without it all of the client's, but admin:clients."""

    grant_type: Literal["client_credentials"]
    scope: str | UnsetType = UNSET


class OneTokenForm(ProofForm, kw_only=True):
    """`token`: an access token, or an API key."""

    token: str
    token_type_hint: str | UnsetType = UNSET


class TokenIssued(Struct, forbid_unknown_fields=True):
    access_token: str
    token_type: Literal["Bearer"]
    expires_in: int
    scope: str


class Introspected(Struct, forbid_unknown_fields=True, kw_only=True):
    """RFC 7662 §2.2; of what does not count, only `active`."""

    active: bool
    client_id: str | UnsetType = UNSET
    sub: str | UnsetType = UNSET
    scope: str | UnsetType = UNSET
    aud: str | UnsetType = UNSET
    exp: int | UnsetType = UNSET
    token_type: Literal["Bearer", "api_key"] | UnsetType = UNSET
    key_id: str | UnsetType = UNSET
    iss: str | UnsetType = UNSET
    iat: int | UnsetType = UNSET
    jti: str | UnsetType = UNSET
