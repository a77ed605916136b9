"""What the admin routes take, and how a mistake in it is said: with the path of the field."""

import re
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Struct

from libs.common.contracts.clients import DEFAULT_SCOPES, Policy, Scope
from libs.common.contracts.faults import Code, Failed, failed
from services.auth.names import BadName, client_name

T = TypeVar("T")

MIN_WEIGHT, MAX_WEIGHT = 0.01, 100.0  # of a client's share: it waits, but it is never without one
MIN_RESULT_TTL_S = 60.0  # a result lives at least a minute (DESIGN §3)


class StrictPolicy(Policy, frozen=True, kw_only=True, forbid_unknown_fields=True):
    deadline_s: Annotated[float, Meta(gt=0)] | None = None
    result_ttl_s: Annotated[float, Meta(ge=MIN_RESULT_TTL_S)] | None = None
    weight: Annotated[float, Meta(ge=MIN_WEIGHT, le=MAX_WEIGHT)] = 1.0
    max_running: Annotated[int, Meta(ge=0, le=1_000_000)] = 0


class CreateClient(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    scopes: Annotated[tuple[Scope, ...], Meta(min_length=1)] = tuple(Scope(scope) for scope in DEFAULT_SCOPES)
    policy: StrictPolicy = StrictPolicy()


class CreateKey(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Nothing can be asked for: a key has all its client's scopes."""


_create_client = msgspec.json.Decoder(CreateClient)
_create_key = msgspec.json.Decoder(CreateKey)


def create_client(body: bytes) -> CreateClient:
    """Raises Failed (INVALID_REQUEST)."""
    asked = _decode(_create_client, body)
    try:
        client_name(asked.name)
    except BadName as error:
        raise failed(Code.INVALID_REQUEST, f"{error}.", path="$.name") from error
    return asked


def create_key(body: bytes) -> CreateKey:
    """Raises Failed (INVALID_REQUEST). No body at all is fine."""
    return _decode(_create_key, body or b"{}")


def _decode(decoder: "msgspec.json.Decoder[T]", body: bytes) -> T:
    try:
        return decoder.decode(body)
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
