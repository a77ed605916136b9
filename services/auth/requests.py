"""What the admin routes take, and how a mistake in it is said: with the path of the field."""

import re
from collections.abc import Iterable
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from libs.common.contracts.clients import DEFAULT_SCOPES, ApiKey, Client, Limits, ModelRule, Policy, Scope
from libs.common.contracts.faults import Code, Failed, failed
from libs.common.contracts.subjects import TOKEN
from services.auth import public_keys
from services.auth.names import MAX_LENGTH, BadName, client_name

T = TypeVar("T")

MIN_WEIGHT, MAX_WEIGHT = 0.01, 100.0  # of a client's share: it waits, but it is never without one
MIN_RESULT_TTL_S = 60.0  # a result lives at least a minute (DESIGN §3)
MAX_DEADLINE_S, MAX_RESULT_TTL_S = 7 * 86400.0, 30 * 86400.0  # the gateways' own bounds
MAX_LIMIT = 10**15  # exact in every JSON reader
MAX_GRACE_S = 30 * 86400
DEFAULT_GRACE_S = 86400
MAX_EXPIRY = 2**40  # seconds since the epoch, beyond anybody's calendar

Count = Annotated[int, Meta(ge=0, le=MAX_LIMIT)]
Pattern = Annotated[str, Meta(min_length=1, max_length=200, pattern=r"^\S+\Z")]
Patterns = Annotated[tuple[Pattern, ...], Meta(max_length=100)]
Expiry = Annotated[int, Meta(gt=0, le=MAX_EXPIRY)]
Scopes = Annotated[tuple[Scope, ...], Meta(min_length=1)]


class StrictModels(ModelRule, frozen=True, kw_only=True, forbid_unknown_fields=True):
    allow: Patterns = ("*",)
    deny: Patterns = ()


class StrictLimits(Limits, frozen=True, kw_only=True, forbid_unknown_fields=True):
    requests_per_minute: Count = 0
    tokens_per_minute: Count = 0
    tokens_per_day: Count = 0
    tokens_per_month: Count = 0
    open_streams: Count = 0
    queued: Count = 0


class StrictPolicy(Policy, frozen=True, kw_only=True, forbid_unknown_fields=True):
    deadline_s: Annotated[float, Meta(gt=0, le=MAX_DEADLINE_S)] | None = None
    result_ttl_s: Annotated[float, Meta(ge=MIN_RESULT_TTL_S, le=MAX_RESULT_TTL_S)] | None = None
    weight: Annotated[float, Meta(ge=MIN_WEIGHT, le=MAX_WEIGHT)] = 1.0
    max_running: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    models: StrictModels = StrictModels()
    limits: StrictLimits = StrictLimits()


class KeySet(Struct, frozen=True, forbid_unknown_fields=True):
    """RFC 7517 §5."""

    keys: tuple[dict[str, Any], ...] = ()


class Settable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an administrator decides about a client. `expires_at` in seconds since the epoch, `nats` a public user nkey."""

    scopes: Scopes = tuple(Scope(scope) for scope in DEFAULT_SCOPES)
    policy: StrictPolicy = StrictPolicy()
    jwks: KeySet = KeySet()
    nats: Annotated[str, Meta(pattern=r"^(U[A-Z2-7]{55})?\Z")] = ""
    expires_at: Expiry | None = None


class CreateClient(Settable, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: Annotated[
        str, Meta(extra_json_schema={"pattern": f"^{TOKEN.pattern}$", "maxLength": MAX_LENGTH})
    ]  # `client_name`


class CreateKey(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`scopes` left out: all that its client has, also later. `models` and `limits` count beside its client's."""

    name: Annotated[str, Meta(max_length=100)] = ""
    scopes: Scopes | None = None
    models: StrictModels | None = None
    limits: StrictLimits | None = None
    expires_at: Expiry | None = None


class Rotate(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`now`: the old secret and all tokens end at once. Else the old secret counts for `grace_s` more, tokens go on."""

    grace_s: Annotated[int, Meta(ge=0, le=MAX_GRACE_S)] | None = None
    now: bool = False


class RotateSigning(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`now`: the keys that sign and signed are withdrawn, and with them every token there is."""

    now: bool = False


def create_client(body: bytes, now: float) -> CreateClient:
    """Raises Failed (INVALID_REQUEST)."""
    asked = _decode(body, CreateClient)
    try:
        client_name(asked.name)
    except BadName as error:
        raise failed(Code.INVALID_REQUEST, f"{error}.", path="$.name") from error
    _require_future(asked.expires_at, now)
    return asked


def read_patch(body: bytes) -> dict[str, Any]:
    """A JSON merge patch (RFC 7396). Raises Failed (INVALID_REQUEST)."""
    return _decode(body, dict[str, Any])


def update_client(client: Client, patch: dict[str, Any], now: float) -> Settable:
    """What it is set to after `patch`. Raises Failed (INVALID_REQUEST)."""
    shown = shown_client(client)
    try:
        merged = _merged({name: shown[name] for name in Settable.__struct_fields__}, patch)
        after = msgspec.convert(msgspec.to_builtins(merged), Settable)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from error
    except RecursionError as error:
        raise failed(Code.INVALID_REQUEST, "The body is nested too deeply.", path="$") from error
    if after.expires_at != client.expires_at:
        _require_future(after.expires_at, now)
    return after


def settled(client: Client, asked: Settable) -> Client:
    """`client` as it was asked for. Raises Failed (INVALID_REQUEST) for public keys that cannot be used."""
    return msgspec.structs.replace(
        client,
        scopes=once_each(asked.scopes),
        policy=msgspec.convert(msgspec.to_builtins(asked.policy), Policy),  # the plain one: equal to what is read back
        jwks=public_keys.checked(list(asked.jwks.keys)),
        nats=asked.nats,
        expires_at=asked.expires_at,
    )


def once_each(scopes: Iterable[Scope]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(scope) for scope in scopes))


def create_key(body: bytes, client: Client, now: float) -> CreateKey:
    """Raises Failed (INVALID_REQUEST). No body at all is fine."""
    asked = _decode(body or b"{}", CreateKey)
    for n, scope in enumerate(asked.scopes or ()):
        if scope not in client.scopes:
            raise failed(
                Code.INVALID_REQUEST,
                f"Client {client.id!r} does not have the scope {scope} itself; it has {' '.join(client.scopes)}.",
                path=f"$.scopes[{n}]",
            )
    _require_future(asked.expires_at, now)
    return asked


def rotate(body: bytes) -> Rotate:
    """Raises Failed (INVALID_REQUEST)."""
    asked = _decode(body or b"{}", Rotate)
    if asked.now and asked.grace_s:
        raise failed(Code.INVALID_REQUEST, "Give either now or a grace_s, not both.", path="$.grace_s")
    return asked


def rotate_signing(body: bytes) -> RotateSigning:
    """Raises Failed (INVALID_REQUEST)."""
    return _decode(body or b"{}", RotateSigning)


def shown_key(key: ApiKey) -> dict[str, Any]:
    return {
        "key_id": key.id,
        "client_id": key.client,
        "name": key.name,
        "last4": key.last4,
        "scopes": key.scopes,
        "models": _fields(key.models) if key.models else None,
        "limits": _fields(key.limits) if key.limits else None,
        "disabled": key.disabled,
        "expires_at": key.expires_at,
        "created_at": key.created_at,
    }


def shown_client(client: Client) -> dict[str, Any]:
    policy = client.policy
    return {
        "client_id": client.id,
        "name": client.name,
        "scopes": client.scopes,
        "policy": {**_fields(policy), "models": _fields(policy.models), "limits": _fields(policy.limits)},
        "disabled": client.disabled,
        "expires_at": client.expires_at,
        "jwks": {"keys": client.jwks},
        "nats": client.nats,
        "not_before": client.not_before,
        "replaced_until": [old.until for old in client.replaced],
        "created_at": client.created_at,
    }


def _fields(struct: Any) -> dict[str, Any]:
    """All of them: defaults too, which contracts do not send."""
    return msgspec.structs.asdict(struct)


def _merged(target: Any, patch: Any) -> Any:
    """RFC 7396 §2."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = _merged(result.get(name), value)
    return result


def _require_future(expires_at: int | None, now: float) -> None:
    if expires_at is not None and expires_at <= now:
        raise failed(Code.INVALID_REQUEST, "This time has passed.", path="$.expires_at")


def _decode(body: bytes, shape: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=shape)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise failed(Code.INVALID_REQUEST, "The body is not JSON in UTF-8.", path="$") from error


def _invalid(text: str) -> Failed:
    what, _, at = text.partition(" - at `")
    path = at.rstrip("`") or "$"
    if named := re.search(r"field `([^`]*)`", what):  # unknown, or missing: msgspec gives the path of what is around it
        path = f"{path}.{named[1]}"
    return failed(Code.INVALID_REQUEST, f"{what}.", path=path)
