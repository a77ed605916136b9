"""Every error code has a status, a body and headers in every dialect, all drawn from one table."""

import pytest

from libs.common.contracts.codec import encode
from libs.common.contracts.faults import MEANING, Code, Fault
from services.gateway.dialects import Dialect, dialect_of, error_body, error_headers, public

STATUSES = {400, 401, 403, 404, 405, 408, 409, 410, 413, 414, 421, 422, 429, 431, 499, 500, 502, 503, 504}


@pytest.mark.parametrize("code", Code)
def test_each_code_is_problem_json_in_ours(code: Code) -> None:
    """RFC 9457: type, title, status, detail; and whether trying again helps."""
    kind, body = error_body(
        Fault(code=code, message="what to do", path="a.b", details={"models": ["m"]}), Dialect.ARRIERO
    )
    meaning = MEANING[code]
    assert kind == "application/problem+json"
    assert meaning.status in STATUSES
    assert body == {
        "type": f"urn:arriero:error:{code}", "title": meaning.title, "status": meaning.status, "detail": "what to do",
        "code": str(code), "retryable": meaning.retryable, "path": "a.b", "models": ["m"],
    }  # fmt: skip
    encode(body)


@pytest.mark.parametrize("code", Code)
def test_each_code_is_an_error_object_in_openais(code: Code) -> None:
    kind, body = error_body(
        Fault(code=code, message="what to do", path="a.b", details={"models": ["m"]}), Dialect.OPENAI
    )
    assert kind == "application/json"
    error = body["error"]
    assert error["message"] == "what to do"
    assert error["param"] == "a.b"
    assert error["code"] == str(code)
    assert error["models"] == ["m"]
    status = MEANING[code].status
    assert (error["type"] == "api_error") == (status >= 500)


@pytest.mark.parametrize("code", Code)
def test_who_is_told_to_come_back_is_told_when(code: Code) -> None:
    headers = dict(error_headers(Fault(code=code, message="x")))
    assert (b"retry-after" in headers) == (MEANING[code].status in (429, 503))
    assert (b"www-authenticate" in headers) == (MEANING[code].status == 401)


@pytest.mark.parametrize(("asked", "said"), [(None, b"2"), (30, b"30"), (0.2, b"1"), (1.6, b"2")])
def test_retry_after_is_whole_seconds_and_never_none_at_all(asked: float | None, said: bytes) -> None:
    """0 would be an invitation to a tight loop."""
    headers = dict(error_headers(Fault(code=Code.UNAVAILABLE, message="x", retry_after_s=asked)))
    assert headers[b"retry-after"] == said


def test_the_path_of_a_request_chooses_the_dialect() -> None:
    assert dialect_of("/v1/chat/completions") is Dialect.OPENAI
    assert dialect_of("/jobs") is Dialect.ARRIERO
    assert dialect_of("/v1") is Dialect.ARRIERO


def test_inside_a_job_a_fault_says_whether_trying_again_helps() -> None:
    assert public(Fault(code=Code.NODE_FAILED, message="x")) == {
        "code": "node_failed", "message": "x", "retryable": True,
    }  # fmt: skip
    assert public(Fault(code=Code.INVALID_REQUEST, message="x", path="p"))["path"] == "p"
