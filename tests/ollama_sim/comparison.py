"""What it means that two answers have the same form: everything but the values named here must be equal."""

import itertools
import re
from typing import Any

from tests.ollama_sim.recordings import Reply

# Values that differ between any two runs, and generated text. Their places, names and types are still compared.
MASKED = frozenset(
    {
        "created_at", "modified_at", "expires_at",
        "total_duration", "load_duration", "prompt_eval_duration", "eval_duration",
        "prompt_eval_count", "eval_count",
        "content", "response", "thinking", "rendered_template", "context", "embeddings", "embedding",
        "token", "logprob", "bytes", "id",
        "digest", "size", "size_vram", "parameter_size", "quantization_level", "version",
        "template", "modelfile", "embedding_length",
    }
)  # fmt: skip
# Objects whose very keys belong to the recorded model.
OPAQUE = frozenset({"arguments", "model_info", "tensors"})
LONGEST_COUNTED = 2048  # bytes; Go's server counts what fits its first buffer
TOKEN_COUNTS = re.compile(rb"(request \()\d+( tokens\))|(n_prompt_tokens\\*\":)\d+")


def shape(value: Any) -> Any:
    """Key order and types; lists by their different members."""
    if isinstance(value, dict):
        return tuple((key, type(each).__name__ if key in OPAQUE else shape(each)) for key, each in value.items())
    if isinstance(value, list):
        return ("list", *[kind for kind, _ in itertools.groupby(shape(each) for each in value)])
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


def constants(value: Any) -> Any:
    """The same value with everything masked taken out."""
    if isinstance(value, dict):
        return {key: constants(each) for key, each in value.items() if key not in MASKED | OPAQUE | {"error"}}
    if isinstance(value, list):
        return [kind for kind, _ in itertools.groupby(constants(each) for each in value)]
    return value


def assert_same_form(actual: Reply, recorded: Reply) -> None:
    """Status line, headers, framing, and the form of every line; runs of token lines may differ in length."""
    assert actual.status_line == recorded.status_line
    assert _steady_headers(actual) == _steady_headers(recorded)
    assert actual.is_complete == recorded.is_complete
    content_type = recorded.headers.get("content-type", "")
    if content_type == "application/x-ndjson":
        _assert_same_lines(actual, recorded)
    elif content_type.startswith("application/json") and recorded.body:
        assert shape(actual.json) == shape(recorded.json)
        assert constants(actual.json) == constants(recorded.json)
        if "error" in recorded.json:
            assert TOKEN_COUNTS.sub(b"", actual.body) == TOKEN_COUNTS.sub(b"", recorded.body)
        assert len(actual.chunks) == len(recorded.chunks)
    else:
        assert actual.body == recorded.body


def _assert_same_lines(actual: Reply, recorded: Reply) -> None:
    for reply in (actual, recorded):
        assert all(chunk.endswith(b"\n") and chunk.count(b"\n") == 1 for chunk in reply.chunks)
    assert _runs(shape, actual) == _runs(shape, recorded)
    assert _runs(constants, actual) == _runs(constants, recorded)
    last = recorded.lines[-1]
    is_token_a_line = last.get("done_reason") == "length" and len(recorded.lines) == last["eval_count"] + 1
    if is_token_a_line:
        assert len(actual.lines) == len(recorded.lines)
        assert actual.lines[-1]["eval_count"] == last["eval_count"]


def _runs(view: Any, reply: Reply) -> list[Any]:
    return [kind for kind, _ in itertools.groupby(view(line) for line in reply.lines)]


def _steady_headers(reply: Reply) -> dict[str, str]:
    """All but the date; a JSON body shows its length as long as that is small, so either framing stands for both."""
    assert "date" in reply.headers
    steady = {name: value for name, value in reply.headers.items() if name != "date"}
    if steady.get("content-type") == "application/json; charset=utf-8":
        assert reply.is_chunked == (len(reply.body) > LONGEST_COUNTED)
        steady.pop("transfer-encoding", None)
        steady.pop("content-length", None)
    elif "content-length" in steady and reply.is_complete and reply.body:
        assert steady.pop("content-length") == str(len(reply.body))
    return steady
