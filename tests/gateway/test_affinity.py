"""The hash chain of a prompt: the same as far as two prompts are, silent about what they say."""

import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.contracts.clients import Policy, Principal
from libs.common.contracts.codec import encode
from libs.common.contracts.requests import Kind, Request
from services.gateway.affinity import CUTS, MAX_ENTRIES, TIPS, Reading, read_prompt
from services.gateway.job_bodies import parse_job
from services.gateway.openai_request import parse_chat
from services.gateway.prompt import IMAGE_TOKENS
from services.gateway.submission import submission_of

KEY = b"k" * 32
LONG = "The pass is high and the llamas know the way. " * 40
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


def said(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def chat(*messages: dict[str, Any], tools: list[dict[str, Any]] | None = None, **more: Any) -> Request:
    raw = None if tools is None else [msgspec.Raw(json.dumps(tool).encode()) for tool in tools]
    return Request(model="m", messages=list(messages), tools=raw, **more)


def read(request: Request, *, client: str = "alice", kind: Kind = Kind.CHAT, key: bytes = KEY) -> Reading:
    return read_prompt(key, client, kind, request)


def hashes(reading: Reading) -> list[str]:
    return [entry.partition(":")[0] for entry in reading.chain]


def counts(reading: Reading) -> list[int]:
    return [int(entry.partition(":")[2]) for entry in reading.chain]


def shared(a: Reading, b: Reading) -> int:
    """Tokens up to the last entry of b that a has, too: how a router looks for the longest known prefix."""
    known = set(hashes(a))
    return max((tokens for name, tokens in zip(hashes(b), counts(b), strict=True) if name in known), default=0)


TEXT = st.text(max_size=30) | st.text(alphabet='ab \n"\\{}[],', min_size=200, max_size=3000)
IMAGES = st.none() | st.lists(st.sampled_from(["aGk=", "aGo="]), max_size=2)
MESSAGE = st.builds(
    lambda role, text, images, name: {
        key: value
        for key, value in {"role": role, "content": text, "images": images, "tool_name": name}.items()
        if value
    },
    st.sampled_from(["system", "user", "assistant", "tool"]),
    TEXT,
    IMAGES,
    st.sampled_from([None, "f"]),
)
TALK = st.lists(MESSAGE, min_size=1, max_size=12)


# -- what two prompts have in common -------------------------------------------------------------------------------------


@given(TALK, st.lists(MESSAGE, max_size=TIPS - 1))
def test_the_next_turn_of_a_conversation_has_the_whole_of_the_turn_before(turn: list[Any], added: list[Any]) -> None:
    before, after = read(chat(*turn)), read(chat(*turn, *added))
    assert before.tokens <= after.tokens
    if before.chain:
        assert before.chain[-1] in after.chain
        assert shared(before, after) == counts(before)[-1] == before.tokens


@given(TALK, st.lists(MESSAGE, min_size=1, max_size=40))
def test_of_however_long_a_continuation_most_of_the_turn_before_is_found(turn: list[Any], added: list[Any]) -> None:
    before, after = read(chat(*turn)), read(chat(*turn, *added))
    text = before.tokens - IMAGE_TOKENS * sum(len(message.get("images", ())) for message in turn)
    if text > CUTS[0] // 4:
        assert shared(before, after) * 2 > text


@given(TALK, TALK, TALK)
def test_an_entry_is_shared_only_by_prompts_that_are_alike_up_to_there(
    begin: list[Any], one: list[Any], other: list[Any]
) -> None:
    """An edit anywhere voids every entry behind it."""
    a, b = read(chat(*begin, said("user", "A"), *one)), read(chat(*begin, said("user", "B"), *other))
    common = read(chat(*begin))
    assert shared(a, b) <= common.tokens + math.ceil(len('["user","') / 4)  # both are rounded


@given(TALK)
def test_chains_are_short_and_grow_towards_the_whole_prompt(turn: list[Any]) -> None:
    reading = read(chat(*turn))
    assert len(reading.chain) <= MAX_ENTRIES
    assert counts(reading) == sorted(counts(reading))
    assert all(len(name) == 16 and int(name, 16) >= 0 for name in hashes(reading))
    assert len(set(hashes(reading))) == len(reading.chain)
    if reading.chain:
        assert counts(reading)[-1] == reading.tokens, "the last entry is the whole prompt"


def test_the_longest_prompt_has_no_more_than_the_most_entries() -> None:
    turn = [said("system", LONG), *(said("user", LONG * 5) for _ in range(400))]
    reading = read(chat(*turn, tools=[TOOL]))
    assert reading.tokens > 500_000
    assert len(reading.chain) == MAX_ENTRIES


def test_conversations_under_one_system_prompt_share_all_of_it() -> None:
    one, other = (read(chat(said("system", LONG), said("user", text), tools=[TOOL])) for text in ("Hi", "Ho, again"))
    system = read(chat(said("system", LONG), tools=[TOOL]))
    assert shared(one, other) == system.tokens
    assert shared(one, other) > 400


def test_the_same_tools_under_another_system_prompt_are_shared_and_no_more() -> None:
    many = [TOOL | {"n": n} for n in range(20)]
    one, other = (read(chat(said("system", text), said("user", LONG), tools=many)) for text in ("A" * 99, "B" * 99))
    only = len(b"".join(json.dumps(tool).encode() for tool in many)) // 4
    assert only - 1 <= shared(one, other) <= only + 3
    assert shared(one, read(chat(said("system", "A" * 99), said("user", LONG), tools=many[::-1]))) < only


def test_a_prompt_that_goes_on_shares_most_of_what_was_there() -> None:
    """A program that completes text sends it again, with more at its end."""
    one, more = (Request(model="m", prompt=text, raw=True) for text in (LONG, LONG + "And so on."))
    found = shared(read(one, kind=Kind.GENERATE), read(more, kind=Kind.GENERATE))
    assert found > read(one, kind=Kind.GENERATE).tokens * 0.6


@pytest.mark.parametrize(
    "change",
    [{"model": "n"}, {"template": "x"}, {"raw": True}, {"think": "high"}, {"system": "x"}, {"images": ["aGk="]}],
)
def test_what_comes_before_the_first_token_is_part_of_every_entry(change: dict[str, Any]) -> None:
    request = Request(model="m", prompt=LONG)
    a = read(request, kind=Kind.GENERATE)
    assert a.chain
    assert shared(a, read(msgspec.structs.replace(request, **change), kind=Kind.GENERATE)) == 0


def test_names_of_one_model_are_one_model_and_sampling_changes_no_prompt() -> None:
    request = Request(model="M:latest", prompt=LONG, options={"seed": 4})
    plain = Request(model="m", prompt=LONG)
    assert read(request, kind=Kind.GENERATE) == read(plain, kind=Kind.GENERATE)


def test_thinking_that_a_client_sends_back_or_not_makes_no_other_conversation() -> None:
    answer = said("assistant", "yes")
    turns = [chat(said("user", LONG), a, said("user", "go on")) for a in (answer, answer | {"thinking": "hm"})]
    assert read(turns[0]) == read(turns[1])


def test_the_dialects_make_the_same_chain_of_the_same_conversation() -> None:
    messages = [
        said("system", LONG),
        said("user", "x"),
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}, "id": "c"}]},
        {"role": "tool", "content": "7", "tool_call_id": "c", "tool_name": "f"},
    ]
    ours = {"model": "m", "messages": messages, "tools": [TOOL]}
    theirs = json.loads(json.dumps(ours))
    theirs["messages"][2]["tool_calls"][0]["function"]["arguments"] = '{"a": 1}'
    del theirs["messages"][3]["tool_name"]
    a = parse_job(json.dumps(ours).encode(), Policy()).request
    b = parse_chat(json.dumps(theirs).encode(), Policy(), detached=False).wish.request
    assert read(a).chain
    assert read(a) == read(b)


# -- Claude Code ---------------------------------------------------------------------------------------------------------

BILLING = [
    "x-anthropic-billing-header: cc_version=2.1.197.495; cc_entrypoint=sdk-cli;\n",
    "x-anthropic-billing-header: cc_version=2.1.197.495; cc_entrypoint=sdk-cli; cch=a1b2c;\n\n",
    "x-anthropic-billing-header: cc_version=2.1.198.1; cc_entrypoint=cli; cch=00000;",
]


@pytest.mark.parametrize("line", BILLING)
def test_the_line_that_claude_code_changes_with_each_request_makes_no_other_prompt(line: str) -> None:
    plain = read(chat(said("system", LONG), said("user", "x")))
    marked = chat(said("system", line + LONG), said("user", "x"))
    assert read(marked) == plain
    assert marked.messages is not None
    assert marked.messages[0]["content"] == line + LONG, "of the request itself nothing is changed"
    assert read(Request(model="m", system=line + LONG, prompt="x"), kind=Kind.GENERATE) == read(
        Request(model="m", system=LONG, prompt="x"), kind=Kind.GENERATE
    )


def test_only_at_the_front_of_a_system_prompt_is_it_that_line() -> None:
    plain = read(chat(said("system", LONG), said("user", LONG)))
    assert read(chat(said("system", LONG + BILLING[0]), said("user", LONG))) != plain
    assert read(chat(said("system", LONG), said("user", BILLING[0] + LONG))) != plain


# -- what a chain tells --------------------------------------------------------------------------------------------------


def test_no_two_clients_and_no_two_clusters_have_an_entry_in_common() -> None:
    """Else the answer time, or an explained decision, would tell one client what another one sends."""
    request = chat(said("system", LONG), said("user", "hi"))
    alice = read(request)
    assert alice.chain
    assert not set(hashes(alice)) & set(hashes(read(request, client="bob")))
    assert not set(hashes(alice)) & set(hashes(read(request, key=b"x" * 32)))
    assert read(request) == alice, "at every gateway, and after every restart"


def test_what_is_short_or_embedded_has_no_chain() -> None:
    assert read(chat(said("user", "hi"))).chain == ()
    assert read(Request(model="m", input=[LONG] * 9), kind=Kind.EMBED).chain == ()


# -- how many tokens -----------------------------------------------------------------------------------------------------


def test_everything_that_is_sent_counts_and_an_image_counts_the_same_whatever_its_bytes() -> None:
    plain = read(chat(said("user", LONG))).tokens
    assert abs(plain - len(LONG) / 4) < 10
    assert read(chat(said("user", LONG), tools=[TOOL] * 40)).tokens > plain + 700
    for image in ("aGk=", "aGk=" * 250_000):
        seen = read(chat(said("user", LONG, images=[image] * 2))).tokens
        assert abs(seen - plain - 2 * IMAGE_TOKENS) < 40
    texts = read(Request(model="m", input=[LONG] * 9), kind=Kind.EMBED).tokens
    assert abs(texts - 9 * len(LONG) / 4) < 10
    assert read(Request(model="m"), kind=Kind.EMBED).tokens == 1


def test_another_image_is_another_prompt_from_its_place_on() -> None:
    head = [said("system", LONG), said("user", LONG)]
    one, other = (read(chat(*head, said("user", LONG, images=[image]))) for image in ("aGk=", "aGo="))
    assert shared(one, other) == read(chat(*head)).tokens


def test_what_a_submission_says_of_its_prompt_and_its_client() -> None:
    policy = Policy(weight=2.5, max_running=3)
    body = {"model": "m", "prompt": LONG, "options": {"num_ctx": 8192, "num_predict": 50}}
    wish = parse_job(json.dumps(body).encode(), policy)
    principal = Principal(client="alice", scopes=frozenset(), policy=policy)
    made = submission_of(KEY, principal, wish, encode(wish.request))
    reading = read(wish.request, kind=Kind.GENERATE)
    assert (made.affinity, made.prompt_tokens) == (reading.chain, reading.tokens)
    assert (made.num_ctx, made.output_tokens, made.weight, made.max_running) == (8192, 50, 2.5, 3)
    other = parse_job(json.dumps(body | {"options": {"num_ctx": 4096, "num_predict": 50}}).encode(), policy)
    assert submission_of(KEY, principal, other, encode(other.request)).digest != made.digest
