"""Continuing a cut answer over the wire, on each of the four chat paths and with `raw`."""

from typing import Any

import pytest

from tests.ollama_sim.conftest import Start, Talker, text_of, thinking_of

QUESTION = {"role": "user", "content": "Tell me about the road. [[tokens=12]]"}


def partly(text: str, **fields: Any) -> list[dict[str, Any]]:
    return [QUESTION, {"role": "assistant", "content": text, **fields}]


async def rendered(node: Talker, model: str, messages: list[dict[str, Any]], **fields: Any) -> str:
    reply = await node.chat(model=model, messages=messages, _debug_render_only=True, **fields)
    return str(reply.json["_debug_info"]["rendered_template"])


async def test_the_native_path_repeats_the_beginning_in_front_of_its_first_new_token(node: Talker) -> None:
    whole = await node.chat(messages=[QUESTION])
    tokens = [line["message"]["content"] for line in whole.lines[:-1]]
    begun = "".join(tokens[:5])

    reply = await node.chat(messages=partly(begun))

    assert reply.lines[0]["message"]["content"] == begun + tokens[5]
    assert text_of(reply) == text_of(whole)
    assert reply.lines[-1]["eval_count"] == whole.lines[-1]["eval_count"] - 5
    assert reply.lines[-1]["prompt_eval_count"] == whole.lines[-1]["prompt_eval_count"] + 5


async def test_every_cut_point_continues_on_another_node_with_the_same_seed(start: Start) -> None:
    first, second = await start(seed=3), await start(seed=3)
    whole = text_of(await first.chat(messages=[QUESTION]))

    for cut in range(1, len(whole) + 1):
        assert text_of(await second.chat(messages=partly(whole[:cut]))) == whole


async def test_another_seed_gives_another_answer(start: Start) -> None:
    first, second = await start(seed=3), await start(seed=4)

    assert text_of(await first.chat(messages=[QUESTION])) != text_of(await second.chat(messages=[QUESTION]))


async def test_a_complete_answer_comes_back_in_one_line_with_an_eval_count_of_one(node: Talker) -> None:
    whole = text_of(await node.chat(messages=[QUESTION]))

    reply = await node.chat(messages=partly(whole))

    assert [line["message"]["content"] for line in reply.lines] == [whole, ""]
    assert (reply.lines[-1]["done_reason"], reply.lines[-1]["eval_count"]) == ("stop", 1)


async def test_an_empty_beginning_loses_the_header_and_starts_anew(node: Talker) -> None:
    whole = await node.chat(messages=[QUESTION])

    reply = await node.chat(messages=partly(""))

    assert text_of(reply) == text_of(whole)
    assert reply.lines[-1]["prompt_eval_count"] < whole.lines[-1]["prompt_eval_count"]


async def test_a_template_that_stays_open_sends_only_new_text(node: Talker) -> None:
    whole = text_of(await node.chat(model="open", messages=[QUESTION]))

    for cut in (1, 10, len(whole)):
        assert whole[:cut] + text_of(await node.chat(model="open", messages=partly(whole[:cut]))) == whole


async def test_a_template_that_closes_begins_a_new_answer(node: Talker) -> None:
    whole = text_of(await node.chat(model="closed", messages=[QUESTION]))

    again = text_of(await node.chat(model="closed", messages=partly(whole[:10])))

    assert again
    assert not (whole[:10] + again).startswith(whole[:20])


async def test_the_parser_path_goes_on_inside_the_thought_and_inside_the_answer(node: Talker) -> None:
    whole = await node.chat(model="parser", messages=[QUESTION])
    thought, text = thinking_of(whole), text_of(whole)

    in_thought = await node.chat(model="parser", messages=partly("", thinking=thought[:7]))
    in_text = await node.chat(model="parser", messages=partly(text[:7], thinking=thought))

    assert thought[:7] + thinking_of(in_thought) == thought
    assert text_of(in_thought) == text
    assert thinking_of(in_text) == ""
    assert text[:7] + text_of(in_text) == text


async def test_the_native_path_forgets_the_thought(node: Talker) -> None:
    whole = await node.chat(model="thinker", messages=[QUESTION])
    thought, text = thinking_of(whole), text_of(whole)

    in_thought = await node.chat(model="thinker", messages=partly("", thinking=thought[:7]))
    in_text = await node.chat(model="thinker", messages=partly(text[:7], thinking=thought))

    assert (thinking_of(in_thought), text_of(in_thought)) == (thought, text)
    assert text_of(in_text).startswith(text[:7])
    assert text_of(in_text) != text


@pytest.mark.parametrize("model", ["chat", "thinker", "open", "closed", "parser"])
async def test_raw_with_the_rendered_prompt_continues_everywhere(node: Talker, model: str) -> None:
    prompt = await rendered(node, model, [QUESTION])
    whole = await node.generate(prompt, model=model, raw=True)
    written = text_of(whole)
    chatted = await node.chat(model=model, messages=[QUESTION])

    assert written.endswith(text_of(chatted))
    assert thinking_of(chatted) in written
    for cut in range(1, len(written), 7):
        rest = await node.generate(prompt + written[:cut], model=model, raw=True)
        assert written[:cut] + text_of(rest) == written
        assert "context" not in rest.lines[-1]


async def test_raw_without_thinking_continues_too(node: Talker) -> None:
    prompt = await rendered(node, "thinker", [QUESTION], think=False)
    chatted = await node.chat(model="thinker", messages=[QUESTION], think=False)
    text = text_of(chatted)

    assert thinking_of(chatted) == ""
    rest = await node.generate(prompt + text[:9], model="thinker", raw=True)
    assert text[:9] + text_of(rest) == text


@pytest.mark.parametrize(("model", "is_open"), [("chat", True), ("open", True), ("parser", True), ("closed", False)])
async def test_the_rendered_prompt_shows_whether_the_beginning_stays_open(
    node: Talker, model: str, is_open: bool
) -> None:
    prompt = await rendered(node, model, partly("It begins", thinking="So"))

    assert prompt.endswith("It begins") is is_open


async def test_a_schema_goes_on_on_the_native_path_and_starts_again_elsewhere(node: Talker) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "boolean"}}}
    whole = text_of(await node.chat(messages=[QUESTION], format=schema))

    native = text_of(await node.chat(messages=partly(whole[:6]), format=schema))
    other = text_of(await node.chat(model="open", messages=partly(whole[:6]), format=schema))

    assert native == whole
    assert other.startswith("{")


async def test_num_predict_cuts_and_the_rest_completes(node: Talker) -> None:
    whole = text_of(await node.chat(messages=[QUESTION]))

    cut = await node.chat(messages=[QUESTION], options={"num_predict": 5})
    assert (cut.lines[-1]["done_reason"], cut.lines[-1]["eval_count"]) == ("length", 5)

    assert text_of(await node.chat(messages=partly(text_of(cut)))) == whole


async def test_a_conversation_is_part_of_the_question(node: Talker) -> None:
    first = text_of(await node.chat(messages=[QUESTION]))
    later = await node.chat(messages=[*partly(first), QUESTION])

    assert text_of(later) != first
    assert len(later.lines) == 13
