"""Requests as Ollama takes them, its embeddings, its numbers, and its error texts."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.common.contracts.codec import Malformed
from libs.common.contracts.requests import Kind, Request, decode_request
from services.worker.translate import (
    MAX_ERROR_TEXT,
    error_text,
    events_of_embedding,
    ollama_request,
    timings_of,
    usage_of,
)
from tests.worker.recorded import ALL, EMBEDDINGS, FAILED

# The fields of Ollama's api/types.go that a client may set, by request.
BELONGING = {
    Kind.CHAT: {"messages", "tools", "format", "think", "options", "truncate", "logprobs", "top_logprobs"},
    Kind.GENERATE: {
        "prompt", "suffix", "system", "template", "raw", "images", "format", "think", "options", "truncate", "logprobs",
        "top_logprobs",
    },
    Kind.EMBED: {"input", "truncate", "dimensions", "options"},
}  # fmt: skip
VALUES: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Hi", "images": ["aGk="]}],
    "prompt": "Hi",
    "input": ["a", "b"],
    "images": ["aGk="],
    "suffix": "}",
    "system": "Be brief.",
    "template": "{{ .Prompt }}",
    "raw": True,
    "options": {"temperature": 0, "num_ctx": 512, "seed": 7},
    "format": {"type": "object", "properties": {"b": {}, "a": {}}},
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"z": 1, "a": 2}}}],
    "think": "high",
    "truncate": False,
    "dimensions": 64,
    "logprobs": True,
    "top_logprobs": 3,
}
PATHS = {Kind.CHAT: "/api/chat", Kind.GENERATE: "/api/generate", Kind.EMBED: "/api/embed"}
KINDS = list(Kind)


def request(**fields: Any) -> Request:
    """As it is read from a job's record."""
    return decode_request(json.dumps({"model": "m", **fields}))


def sent(kind: Kind, asked: Request, **decided: Any) -> dict[str, Any]:
    path, body = ollama_request(kind, asked, **decided)
    assert path == PATHS[kind]
    found: dict[str, Any] = json.loads(body)
    return found


def test_every_field_of_a_request_belongs_to_some_kind() -> None:
    """A field added to the contract and forgotten here would be dropped in silence."""
    fields = {field.name for field in msgspec.structs.fields(Request)} - {"model"}
    assert fields == set(VALUES) == set().union(*BELONGING.values())


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=80, deadline=None)
@given(
    names=st.sets(st.sampled_from(sorted(VALUES))),
    keep_alive=st.one_of(st.none(), st.integers(-1, 3600), st.sampled_from(["5m", "0"])),
    num_ctx=st.one_of(st.none(), st.integers(256, 131072)),
)
def test_a_kind_gets_its_own_fields_as_they_came_and_never_those_of_others(
    kind: Kind, names: set[str], keep_alive: Any, num_ctx: int | None
) -> None:
    """What the router decided wins, generations are always streamed, nothing else is added (DESIGN §3)."""
    given_fields = {name: VALUES[name] for name in names}
    body = sent(kind, request(**given_fields), keep_alive=keep_alive, num_ctx=num_ctx)
    expected = {"model": "m", **{name: value for name, value in given_fields.items() if name in BELONGING[kind]}}
    if kind is not Kind.EMBED:
        expected["stream"] = True
    if num_ctx is not None:
        expected["options"] = {**expected.get("options", {}), "num_ctx": num_ctx}
    if keep_alive is not None:
        expected["keep_alive"] = keep_alive
    assert body == expected


def test_a_prompt_is_not_cut_unless_its_client_said_that_it_may_be() -> None:
    for kind in (Kind.CHAT, Kind.GENERATE):
        assert sent(kind, request(), whole=True)["truncate"] is False
        for said in (True, False):
            assert sent(kind, request(truncate=said), whole=True)["truncate"] is said
    assert "truncate" not in sent(Kind.EMBED, request(), whole=True)


def test_the_order_of_keys_inside_schemas_and_tools_stays() -> None:
    """Models answer in the order of a schema's properties."""
    _, body = ollama_request(Kind.CHAT, request(format=VALUES["format"], tools=VALUES["tools"]))
    assert b'{"b":{},"a":{}}' in body.replace(b" ", b"")
    assert b'{"z":1,"a":2}' in body.replace(b" ", b"")


def test_the_clients_own_options_are_not_changed_for_the_next_attempt() -> None:
    asked = request(options={"num_ctx": 512})
    ollama_request(Kind.CHAT, asked, num_ctx=4096)
    assert asked.options == {"num_ctx": 512}


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_an_embedding_is_one_event_and_the_rest_is_final(name: str) -> None:
    body = ALL[name].reply.body
    answer = json.loads(body)
    events, final = events_of_embedding(body)
    assert len(events) == 1
    assert json.loads(bytes(events[0].data)) == answer.pop("embeddings")
    assert final == answer


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}", b'{"error":"x"}', b'{"embeddings":', b"\xff"])
def test_what_is_no_embedding_is_refused(body: bytes) -> None:
    with pytest.raises(Malformed):
        events_of_embedding(body)


@pytest.mark.parametrize("name", FAILED)
def test_the_text_of_every_recorded_error_is_plain_and_whole(name: str) -> None:
    """The engine's JSON in a string is unpacked; what is left is a sentence that Ollama or its engine wrote."""
    body = ALL[name].reply.body
    text = error_text(body)
    assert text.strip()
    assert not text.startswith("{")
    if body.startswith(b"{"):
        # Unpacked or not, the text stands in the body, once the escapes of all layers are taken away.
        assert text.replace("\\", "").replace("\n", "n") in body.decode().replace("\\", "")


def test_the_engines_error_in_a_string_is_unpacked() -> None:
    text = error_text(ALL["err-context-exceeded-native"].reply.body)
    assert text == "request (370 tokens) exceeds the available context size (256 tokens), try increasing it"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "an empty answer"),
        (b"<html>no</html>", "an answer that is not Ollama's"),
        (b'{"message":"x"}', "an answer that is not Ollama's"),
        (b"[1]", "an answer that is not Ollama's"),
        (b"\xff\xfe", "an answer that is not Ollama's"),
        (b'{"error":{"message":"deep"}}', "deep"),
        (b'{"error":"5"}', "5"),
        (b'{"error":null}', "None"),
        (b'{"error":"say \\"no\\""}', 'say "no"'),
    ],
)
def test_any_error_body_has_a_text(body: bytes, text: str) -> None:
    assert error_text(body) == text


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.text(),
    lambda inner: st.dictionaries(st.sampled_from(["error", "message", "x"]), inner) | st.lists(inner, max_size=2),
)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60) | ANY_JSON.map(lambda value: json.dumps(value).encode()))
def test_no_error_body_is_too_strange(body: bytes) -> None:
    assert isinstance(error_text(body), str)


def test_a_very_long_error_text_is_cut() -> None:
    """It travels in a NATS header: what an engine logged before it died may be 64 kB."""
    text = error_text(json.dumps({"error": "x" * 60_000}).encode())
    assert len(text) < MAX_ERROR_TEXT + 10


def test_nanoseconds_become_seconds_and_missing_counts_zero() -> None:
    """Ollama omits metrics that are zero (ollama-facts.md §1.2)."""
    final = {"load_duration": 2_500_000_000, "eval_duration": 1, "eval_count": 7}
    timings = timings_of(final, wait_s=1.5, first_token_s=None)
    assert (timings.load, timings.prefill, timings.decode, timings.wait, timings.first_token) == (
        2.5,
        None,
        1e-9,
        1.5,
        None,
    )
    assert (usage_of(final).prompt_tokens, usage_of(final).completion_tokens) == (0, 7)
