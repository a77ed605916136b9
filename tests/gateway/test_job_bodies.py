"""What `POST /jobs` takes: everything is kept as it came, or refused with the path of what is wrong. Never a 500."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.contracts.clients import Policy, Principal
from libs.common.contracts.codec import encode
from libs.common.contracts.faults import Code, Failed, Fault
from libs.common.contracts.requests import Kind, Priority, decode_request
from services.gateway.job_bodies import DEADLINE_S, RESULT_TTL_S, JobBody, parse_job
from services.gateway.submission import submission_of
from services.gateway.wish import Wish
from tests.gateway.bodies import objects

POLICY = Policy()
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
GENERATE = {"model": "m", "prompt": "hi"}
EMBED = {"model": "m", "input": ["a", "b"]}


def parse(body: Any, policy: Policy = POLICY) -> Wish:
    return parse_job(body if isinstance(body, bytes) else json.dumps(body).encode(), policy)


def refusal(body: Any) -> Fault:
    with pytest.raises(Failed) as caught:
        parse(body)
    return caught.value.fault


def stored(wish: Wish) -> dict[str, Any]:
    """The request as the worker will read it."""
    return dict(json.loads(encode(decode_request(encode(wish.request)))))


# -- what is taken ---------------------------------------------------------------------------------------------------------

WHOLE: dict[Kind, dict[str, Any]] = {
    Kind.CHAT: {
        "model": "m",
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "hi", "images": ["aGk="]},
            {
                "role": "assistant", "thinking": "hm",
                "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}, "id": "c1", "type": "function"}],
            },
            {"role": "tool", "content": "7", "tool_name": "f", "tool_call_id": "c1"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "options": {"num_predict": 5, "temperature": 0.5, "seed": -1, "stop": ["x"], "num_keep": 8},
        "format": {"type": "object", "properties": {"a": {"type": "string"}}},
        "think": "high", "truncate": True, "logprobs": True, "top_logprobs": 3,
    },
    Kind.GENERATE: {
        "model": "m", "prompt": "hi", "images": ["aGk="], "suffix": "s", "system": "y", "template": "t", "raw": True,
        "format": "json", "think": False, "options": {"num_predict": -1}, "truncate": False,
    },
    Kind.EMBED: {"model": "m", "input": ["a", "b"], "dimensions": 8, "truncate": True, "options": {"seed": 3}},
}  # fmt: skip


@pytest.mark.parametrize("kind", WHOLE)
def test_every_field_of_ollamas_reaches_the_stored_request_as_it_came(kind: Kind) -> None:
    wish = parse(WHOLE[kind])
    assert stored(wish) == WHOLE[kind]
    assert wish.kind is kind


@pytest.mark.parametrize("body", [CHAT, GENERATE, EMBED])
def test_without_more_a_job_is_normal_and_has_the_times_of_its_route(body: dict[str, Any]) -> None:
    wish = parse(body)
    assert (wish.priority, wish.deadline_s, wish.result_ttl_s) == (Priority.NORMAL, DEADLINE_S, RESULT_TTL_S)
    assert wish.detached, "nobody has to watch a job of /jobs"
    assert wish.metadata is None


def test_what_the_request_says_comes_before_the_clients_policy_and_that_before_the_routes_defaults() -> None:
    policy = Policy(deadline_s=100, result_ttl_s=200)
    assert parse(GENERATE, policy)[4:6] == (100, 200)
    more = {"deadline_s": 7, "result_ttl_s": 70, "priority": "batch", "metadata": {"run": "4"}}
    wish = parse(GENERATE | more, policy)
    assert (wish.deadline_s, wish.result_ttl_s, wish.priority, wish.metadata) == (7, 70, Priority.BATCH, {"run": "4"})


def test_the_context_that_a_request_needs_is_told_to_the_router_and_not_to_the_node() -> None:
    wish = parse(GENERATE | {"options": {"num_ctx": 8192, "seed": 1}})
    assert (wish.num_ctx, wish.request.options) == (8192, {"seed": 1})
    alone = parse(GENERATE | {"options": {"num_ctx": 131_072}})
    assert (alone.num_ctx, alone.request.options) == (131_072, None)
    assert parse(GENERATE).num_ctx == 0
    with pytest.raises(Failed, match="at most 4096"):
        parse_job(json.dumps(GENERATE | {"options": {"num_ctx": 4097}}).encode(), POLICY, max_num_ctx=4096)


def test_what_would_make_a_node_load_its_model_anew_is_left_to_the_node() -> None:
    """None of it changes a word of the answer (ollama-facts.md §3.5)."""
    reloading = {
        "num_batch": 64, "num_gpu": 0, "main_gpu": 1, "use_mmap": False, "num_thread": 4, "draft_num_predict": 3,
    }  # fmt: skip
    assert parse(GENERATE | {"options": reloading | {"top_k": 3}}).request.options == {"top_k": 3}
    assert parse(GENERATE | {"options": reloading}).request == parse(GENERATE).request


@pytest.mark.parametrize("keep_alive", ["5m", -1, 0, 2.5])
def test_keep_alive_is_taken_and_not_honoured(keep_alive: object) -> None:
    assert parse(GENERATE | {"keep_alive": keep_alive}).request == parse(GENERATE).request


def test_it_is_known_whether_the_client_itself_set_the_deadline() -> None:
    assert parse(GENERATE | {"deadline_s": 5}).deadline_asked
    assert not parse(GENERATE, Policy(deadline_s=5)).deadline_asked


def test_null_means_that_a_field_is_not_there() -> None:
    nothing = dict.fromkeys(set(JobBody.__struct_fields__) - {"model", "prompt"})
    assert parse(GENERATE | nothing).request == parse(GENERATE).request


@pytest.mark.parametrize("kind", ["chat", "generate", "embed"])
def test_kind_may_be_said_when_it_fits(kind: str) -> None:
    body = {"chat": CHAT, "generate": GENERATE, "embed": EMBED}[kind]
    assert parse(body | {"kind": kind}).kind == kind


# -- what is refused -------------------------------------------------------------------------------------------------------

WRONG: list[tuple[dict[str, Any], str | None]] = [
    ({}, "model"),
    ({"model": 1, "prompt": "x"}, "model"),
    ({"model": "", "prompt": "x"}, "model"),
    ({"model": "m"}, None),
    (CHAT | GENERATE, "prompt"),
    (CHAT | {"input": "x"}, "input"),
    (CHAT | {"kind": "embed"}, "kind"),
    (CHAT | {"kind": "poem"}, "kind"),
    (CHAT | {"kind": 1}, "kind"),
    (GENERATE | {"prompt": ""}, "prompt"),
    (GENERATE | {"prompt": ["x"]}, "prompt"),
    (EMBED | {"input": [1]}, "input[0]"),
    (EMBED | {"input": []}, "input"),
    ({"model": "m", "messages": []}, "messages"),
    ({"model": "m", "messages": {}}, "messages"),
    ({"model": "m", "messages": ["x"]}, "messages[0]"),
    ({"model": "m", "messages": [{"content": "x"}]}, "messages[0].role"),
    ({"model": "m", "messages": [{"role": 1}]}, "messages[0].role"),
    ({"model": "m", "messages": [{"role": "user"}, {"role": "user", "content": 7}]}, "messages[1].content"),
    ({"model": "m", "messages": [{"role": "user", "name": "x"}]}, "messages[0].name"),
    ({"model": "m", "messages": [{"role": "user", "images": "x"}]}, "messages[0].images"),
    ({"model": "m", "messages": [{"role": "user", "images": [1]}]}, "messages[0].images[0]"),
    ({"model": "m", "messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls[0].function"),
    (
        {"model": "m", "messages": [{"role": "assistant", "tool_calls": [{"function": {}, "index": 0}]}]},
        "messages[0].tool_calls[0].index",
    ),
    (GENERATE | {"keep_alive": [5]}, "keep_alive"),
    (GENERATE | {"stream": True}, "stream"),
    (GENERATE | {"temprature": 1}, "temprature"),
    (GENERATE | {"images": "x"}, "images"),
    (GENERATE | {"raw": "yes"}, "raw"),
    (GENERATE | {"options": []}, "options"),
    (GENERATE | {"format": "yaml"}, "format"),
    (GENERATE | {"format": 7}, "format"),
    (GENERATE | {"think": "deeply"}, "think"),
    (GENERATE | {"think": 1}, "think"),
    (GENERATE | {"tools": []}, "tools"),
    (CHAT | {"tools": [1]}, "tools[0]"),
    (CHAT | {"suffix": "x"}, "suffix"),
    (CHAT | {"dimensions": 3}, "dimensions"),
    (EMBED | {"format": "json"}, "format"),
    (EMBED | {"think": True}, "think"),
    (EMBED | {"dimensions": 0}, "dimensions"),
    (EMBED | {"dimensions": 1.5}, "dimensions"),
    (GENERATE | {"top_logprobs": 21}, "top_logprobs"),
    (GENERATE | {"logprobs": "x"}, "logprobs"),
    (GENERATE | {"priority": "urgent"}, "priority"),
    (GENERATE | {"deadline_s": 0}, "deadline_s"),
    (GENERATE | {"deadline_s": 1e9}, "deadline_s"),
    (GENERATE | {"deadline_s": "5"}, "deadline_s"),
    (GENERATE | {"result_ttl_s": 59}, "result_ttl_s"),
    (GENERATE | {"metadata": {"a": 1}}, "metadata[...]"),
    (GENERATE | {"metadata": {"": "x"}}, "metadata"),
    (GENERATE | {"metadata": {"x" * 65: "x"}}, "metadata"),
    (GENERATE | {"metadata": {"x": "y" * 513}}, "metadata[...]"),
    (GENERATE | {"metadata": {str(n): "" for n in range(17)}}, "metadata"),
    (GENERATE | {"metadata": "x"}, "metadata"),
    (GENERATE | {"options": {"seed": "x"}}, "options.seed"),
    (GENERATE | {"options": {"seed": True}}, "options.seed"),
    (GENERATE | {"options": {"seed": 1.5}}, "options.seed"),
    (GENERATE | {"options": {"seed": 2**63}}, "options.seed"),
    (GENERATE | {"options": {"num_predict": 0}}, "options.num_predict"),
    (GENERATE | {"options": {"temperature": "hot"}}, "options.temperature"),
    (GENERATE | {"options": {"temperature": None}}, "options.temperature"),
    (GENERATE | {"options": {"num_ctx": 0}}, "options.num_ctx"),
    (GENERATE | {"options": {"num_ctx": -1}}, "options.num_ctx"),
    (GENERATE | {"options": {"num_ctx": "8k"}}, "options.num_ctx"),
    (GENERATE | {"options": {"num_ctx": None}}, "options.num_ctx"),
    (GENERATE | {"options": {"num_ctx": 131_073}}, "options.num_ctx"),
    (GENERATE | {"options": {"num_gpu": "all"}}, "options.num_gpu"),
    (GENERATE | {"options": {"use_mmap": 1}}, "options.use_mmap"),
    (GENERATE | {"options": {"stop": "x"}}, "options.stop"),
    (GENERATE | {"options": {"stop": [1]}}, "options.stop"),
]


@pytest.mark.parametrize(("body", "path"), WRONG, ids=[f"{n}-{path}" for n, (_, path) in enumerate(WRONG)])
def test_what_is_wrong_is_refused_with_its_path(body: dict[str, Any], path: str | None) -> None:
    fault = refusal(body)
    assert fault.code is Code.INVALID_REQUEST
    assert fault.path == path


@pytest.mark.parametrize("webhook", ["https://example.org", "", "wh_1", "wh_" + "g" * 26, "wh_" + "0" * 26 + "\n", 7])
def test_a_webhook_is_one_that_was_registered_never_a_url(webhook: object) -> None:
    fault = refusal(GENERATE | {"webhook": webhook})
    assert (fault.code, fault.path) == (Code.INVALID_REQUEST, "webhook")


@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"[]", b'"x"', b"7", b"{", b'{"model": "m", "prompt": "x"', b'{"model": "m", "prompt": "x"} {}',
        b"\xef\xbb\xbf{}", b"\xff\xfe{\x00}\x00", b'{"model":"m","prompt":"\xff"}', b'{"model":"m\xc3","prompt":"x"}',
        b'{"model":"m","prompt":"x","format":"\xff"}', b'{"model":"m","prompt":"x","format":{"a":"\xff"}}',
        b'{"model":"m","prompt":"x","options":{"\xff":1}}', b'{"model":"m","prompt":"\\ud800"}',
        b'{"model":"m","prompt":"x","options":{"temperature":NaN}}', b'{"model":"m","prompt":"x","deadline_s":Infinity}',
        b'{"model":"m","prompt":"x","options":{"x":1e999}}', b'{"model":"m","prompt":"x","format":{"a":1e999}}',
        b'{"model":"m","prompt":"x\n"}', b"{'model':'m'}",
        *(b'{"model":"m","prompt":"x","%b":%b' % (name, b"[" * 100_000) for name in (b"format", b"webhook", b"options")),
        b'{"model":"m","prompt":"x","options":%b1%b}' % (b'{"a":' * 5000, b"}" * 5000),
        b'{"model":"m","messages":[{"role":"user","tool_calls":[{"function":%b1%b}]}]}' % (b'{"a":' * 5000, b"}" * 5000),
    ],
)  # fmt: skip
def test_what_is_no_json_at_all_is_the_callers_fault(body: bytes) -> None:
    assert refusal(body).code is Code.INVALID_REQUEST


@given(st.binary(max_size=60) | st.text(alphabet='{}[]",:\\ud8modelpt0e.-', max_size=60).map(str.encode))
def test_no_bytes_whatever_give_anything_but_a_refusal_or_a_job(body: bytes) -> None:
    _parse_or_refuse(body)


@given(
    st.sampled_from([CHAT, GENERATE, EMBED]).flatmap(lambda base: objects([*JobBody.__struct_fields__], base))
    | st.builds(
        lambda m: CHAT | {"messages": [m]}, objects(["role", "content", "images", "tool_calls"], {"role": "user"})
    )
    | st.builds(lambda o: GENERATE | {"options": o}, objects(["seed", "stop", "num_predict", "temperature", "x"], {}))
)
def test_no_json_whatever_gives_anything_but_a_refusal_or_a_job_that_can_be_stored(body: dict[str, Any]) -> None:
    _parse_or_refuse(json.dumps(body).encode())


def _parse_or_refuse(body: bytes) -> None:
    try:
        wish = parse_job(body, POLICY)
    except Failed as failure:
        refused = failure.fault
    else:
        _can_be_stored(wish)
        return
    assert refused.meaning.status == 400
    encode(refused)


def _can_be_stored(wish: Wish) -> None:

    principal = Principal(client="alice", scopes=frozenset())
    submission_of(b"key", principal, wish, encode(wish.request))
    assert decode_request(encode(wish.request)) == wish.request
