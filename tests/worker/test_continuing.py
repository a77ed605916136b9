"""Going on with an answer that another node began (DESIGN §4; measured in ollama-facts §1.13)."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.contracts.events import Event, line
from libs.common.contracts.requests import Kind, Request
from services.worker.continuing import (
    Cannot,
    Carried,
    Joint,
    Raw,
    Render,
    Spent,
    Trailing,
    first_step,
    plan_raw,
    plan_trailing,
    raw_request,
    read_carried,
    trailing_request,
)
from services.worker.lines import Lines
from tests.ollama_sim.recordings import load

CHAT = Request(model="m", messages=[{"role": "user", "content": "?"}])
SCHEMA = msgspec.Raw(b'{"type":"object"}')
TOOL = msgspec.Raw(b'{"type":"function","function":{"name":"f"}}')

words = st.lists(st.sampled_from(["a", " b", " c", "é", "\n", " <", "/think", ">", "\U0001f999", " the"]), min_size=1)


def carried(text: str = "", thinking: str = "", tokens: int | None = None) -> Carried:
    return Carried(text, thinking, len(text.split()) if tokens is None else tokens, True)


def text_of(events: list[Event]) -> str:
    return "".join(event.text or "" for event in events)


def thought_of(events: list[Event]) -> str:
    return "".join(event.thinking or "" for event in events)


@given(words, st.data())
def test_a_repeat_is_cut_off_at_any_cut_point(tokens: list[str], data: st.DataObject) -> None:
    """The native path says the partial text again, with the first new token, in its first line."""
    cut = data.draw(st.integers(1, len(tokens)))
    shown, rest = "".join(tokens[:cut]), tokens[cut:]
    lines = [Event(text=shown + "".join(rest[:1])), *(Event(text=token) for token in rest[1:])]
    joint = Joint(Trailing(repeats=True), carried(shown, tokens=cut))
    assert shown + text_of(joint.join(lines)) == "".join(tokens)


@given(words, st.data())
def test_without_a_repeat_nothing_is_cut_off(tokens: list[str], data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(tokens)))
    joint = Joint(Trailing(repeats=False), carried("".join(tokens[:cut]), tokens=min(cut, 2)))
    assert text_of(joint.join([Event(text=token) for token in tokens[cut:]])) == "".join(tokens[cut:])


def test_a_repeat_without_its_leading_white_space_is_recognised() -> None:
    """With tools given, leading white space of the partial text can be missing from the repeat."""
    joint = Joint(Trailing(repeats=True), carried("\n\nHello there", tokens=3))
    assert text_of(joint.join([Event(text="Hello there, friend")])) == ", friend"


@given(words, words, st.data())
def test_a_raw_stream_is_read_from_inside_the_thought_however_it_is_cut(
    thought: list[str], answer: list[str], data: st.DataObject
) -> None:
    clean_thought = "".join(thought).replace("</think>", "").strip() or "x"
    clean_answer = "".join(answer).replace("</think>", "").strip() or "y"
    whole = f"{clean_thought}\n</think>\n\n{clean_answer}"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True) if a < b]
    joint = Joint(Raw("prompt", thinking=True), carried(thinking="so far"))
    events = joint.join([Event(text=piece) for piece in pieces])
    held, _ = joint.end({})
    assert thought_of([*events, *held]) == clean_thought
    assert text_of(events) == clean_answer


def test_a_thought_that_never_ends_is_kept_whole() -> None:
    joint = Joint(Raw("prompt", thinking=True), carried(thinking="so far"))
    events = joint.join([Event(text="and on </th")])
    held, _ = joint.end({})
    assert thought_of([*events, *held]) == "and on </th"


def test_counts_are_those_of_the_whole_answer() -> None:
    joint = Joint(Raw("p", thinking=False), carried("a b c", tokens=3))
    _, final = joint.end({"eval_count": 7, "prompt_eval_count": 20, "context": [1], "done_reason": "stop"})
    assert final == {"eval_count": 10, "prompt_eval_count": 17, "done_reason": "stop"}


@pytest.mark.parametrize(
    ("request_", "shown", "expected"),
    [
        (CHAT, carried("Hel"), Render(trailing=True)),
        (CHAT, carried("Hel", "hm"), Render(trailing=False)),
        (CHAT, carried(thinking="hm"), Render(trailing=False)),
        (msgspec.structs.replace(CHAT, options={"num_predict": 3}), carried("a b c"), Spent()),
        (CHAT, Carried("", "", 1, False), Cannot("a tool call or data had been shown")),
    ],
)
def test_the_first_step_of_a_chat(request_: Request, shown: Carried, expected: object) -> None:
    assert first_step(Kind.CHAT, request_, shown) == expected


def test_generate_goes_on_raw_and_embeddings_never() -> None:
    plain, raw = Request(model="m", prompt="Once"), Request(model="m", prompt="Once", raw=True)
    assert first_step(Kind.GENERATE, plain, carried(" upon")) == Render(trailing=False)
    assert first_step(Kind.GENERATE, raw, carried(" upon")) == Raw("Once upon", thinking=False)
    assert isinstance(first_step(Kind.GENERATE, msgspec.structs.replace(plain, suffix="end"), carried("x")), Cannot)
    assert isinstance(first_step(Kind.EMBED, Request(model="m", input="x"), carried("x")), Cannot)


@pytest.mark.parametrize(
    ("request_", "rendered", "native", "expected"),
    [
        (CHAT, "<user>?<assistant>Hel", True, Trailing(repeats=True)),
        (CHAT, "<user>?<assistant>Hel", False, Trailing(repeats=False)),
        (CHAT, "<user>?<assistant>Hel</s>", False, Render(trailing=False)),
        (msgspec.structs.replace(CHAT, format=SCHEMA), "…Hel", True, Trailing(repeats=True)),
        (
            msgspec.structs.replace(CHAT, format=SCHEMA),
            "…Hel",
            False,
            Cannot("the grammar of `format` would begin again"),
        ),
        (msgspec.structs.replace(CHAT, tools=[TOOL]), "…Hel", True, Trailing(repeats=True)),
    ],
)
def test_whether_a_trailing_message_is_continued_shows_in_the_rendered_prompt(
    request_: Request, rendered: str, native: bool, expected: object
) -> None:
    assert plan_trailing(request_, carried("Hel"), rendered, native=native) == expected


@pytest.mark.parametrize(
    ("shown", "rendered", "prompt", "inside"),
    [
        (carried("Hel"), "<a>", "<a>Hel", False),
        (carried("Hel", "hm"), "<a>", "<a><think>\nhm\n</think>\n\nHel", False),
        (carried("Hel", "hm"), "<a><think>\n", "<a><think>\nhm\n</think>\n\nHel", False),
        (carried("", "hm"), "<a>", "<a><think>\nhm", True),
        (carried("", "hm"), "<a><think>", "<a><think>hm", True),
    ],
)
def test_a_raw_prompt_is_written_as_the_model_would_have_it_at_the_cut(
    shown: Carried, rendered: str, prompt: str, inside: bool
) -> None:
    assert plan_raw(CHAT, shown, rendered) == Raw(prompt, thinking=inside)


@pytest.mark.parametrize(
    "request_",
    [
        msgspec.structs.replace(CHAT, tools=[TOOL]),
        msgspec.structs.replace(CHAT, format=SCHEMA),
        Request(model="m", messages=[{"role": "user", "content": "?", "images": ["…"]}]),
    ],
)
def test_what_needs_a_parser_is_never_sent_raw(request_: Request) -> None:
    assert isinstance(plan_raw(request_, carried("Hel"), "<a>"), Cannot)


def test_requests_to_go_on_ask_only_for_what_is_left() -> None:
    request = Request(model="m", messages=[{"role": "user", "content": "?"}], options={"num_predict": 10, "top_k": 3})
    trailing = trailing_request(request, carried("a b c"))
    assert trailing.messages == [*(request.messages or []), {"role": "assistant", "content": "a b c"}]
    assert trailing.options == {"num_predict": 7, "top_k": 3}
    raw = raw_request(request, carried("a b c"), "<a>a b c")
    assert (raw.prompt, raw.raw, raw.messages, raw.options) == ("<a>a b c", True, None, {"num_predict": 7, "top_k": 3})
    assert request.options == {"num_predict": 10, "top_k": 3}, "the job's own request stays what it was"


def test_what_was_shown_is_read_from_the_log() -> None:
    log = b"".join(line(e) for e in (Event(thinking="hm"), Event(text="a"), Event(text="b")))
    assert read_carried(log) == Carried("ab", "hm", 3, True)
    with_call = log + line(Event(tool_call=msgspec.Raw(b'{"function":{}}')))
    assert not read_carried(with_call).plain


@pytest.mark.parametrize(
    ("recording", "repeats"),
    [("chat-prefill-native", True), ("chat-prefill-rendered", False), ("chat-prefill-native-complete", True)],
)
def test_recorded_continuations_of_a_real_ollama_are_joined_without_repeat(recording: str, repeats: bool) -> None:
    """Byte for byte what a real server sent after a trailing assistant message."""
    recorded = load(recording)
    shown = msgspec.json.decode(recorded.request.partition(b"\r\n\r\n")[2])["messages"][-1]["content"]
    lines = Lines()
    events = [*lines.feed(recorded.reply.body), *lines.close()]
    raw = text_of(events)
    assert raw.startswith(shown) is repeats
    joined = text_of(Joint(Trailing(repeats=repeats), carried(shown, tokens=9)).join(events))
    assert shown + joined == (raw if repeats else shown + raw)
