"""How a fault looks in each dialect, as schemas; `contracts.faults` is the table behind all of them."""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import msgspec

from libs.common.contracts.faults import Code


class Problem(msgspec.Struct):
    """RFC 9457; some have further members, such as the models that exist."""

    type: str
    title: str
    status: int
    detail: str
    code: Code
    retryable: bool
    path: str | msgspec.UnsetType = msgspec.UNSET


class OpenAiFault(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: Code


class OpenAiError(msgspec.Struct, forbid_unknown_fields=True):
    """As OpenAI's clients expect it; `code` is one of ours."""

    error: OpenAiFault


class OAuthError(msgspec.Struct, forbid_unknown_fields=True):
    """RFC 6749 §5.2."""

    error: str
    error_description: str | msgspec.UnsetType = msgspec.UNSET


class ErrorForm(NamedTuple):
    """`narrowed`: what a schema adds when only these codes may be in it."""

    content_type: str
    type: Any
    narrowed: Callable[[Collection[Code]], dict[str, Any] | None]


def _codes(codes: Collection[Code]) -> dict[str, Any]:
    return {"properties": {"code": {"enum": [str(code) for code in codes]}}}


PROBLEM = ErrorForm("application/problem+json", Problem, _codes)
OPENAI = ErrorForm("application/json", OpenAiError, lambda codes: {"properties": {"error": _codes(codes)}})
OAUTH = ErrorForm("application/json", OAuthError, lambda codes: None)
