"""Properties of the answers that the recordings show only once."""

import math

import pytest

from tests.ollama_sim.conftest import Start, Talker, text_of, thinking_of

TOOL = {
    "type": "function",
    "function": {"name": "look", "parameters": {"type": "object", "properties": {"at": {"type": "string"}}}},
}
CALL = 'Look! [[tool=look {"z":1,"at":"<mule>"}]]'


async def test_an_answer_of_an_ordered_length_has_one_line_per_token(node: Talker) -> None:
    reply = await node.chat("[[tokens=500]]")

    assert len(reply.chunks) == 501
    assert reply.lines[-1]["eval_count"] == 501  # the token that ends it counts
    assert reply.lines[-1]["done_reason"] == "stop"


async def test_whole_and_streamed_answers_are_the_same(node: Talker) -> None:
    streamed = await node.chat(model="thinker")
    whole = (await node.chat(model="thinker", stream=False)).json

    assert whole["message"]["content"] == text_of(streamed)
    assert whole["message"]["thinking"] == thinking_of(streamed)
    assert whole["eval_count"] == streamed.lines[-1]["eval_count"]


async def test_thinking_is_on_unless_it_is_switched_off_and_comes_first(node: Talker) -> None:
    reply = await node.chat(model="thinker")
    off = await node.chat(model="thinker", think=False)

    kinds = ["thinking" in line["message"] for line in reply.lines]
    assert kinds == sorted(kinds, reverse=True)
    assert kinds[0]
    assert thinking_of(off) == ""


async def test_a_native_tool_call_stands_in_the_final_line(node: Talker) -> None:
    (line,) = (await node.chat(CALL, tools=[TOOL])).lines

    (call,) = line["message"]["tool_calls"]
    assert line["done"]
    assert len(call["id"]) == 32
    assert list(call["function"]["arguments"].items()) == [("z", 1), ("at", "<mule>")]


async def test_a_parsed_tool_call_stands_in_a_line_of_its_own(node: Talker) -> None:
    reply = await node.chat(CALL + CALL, model="parser", tools=[TOOL], think=False)

    *calls, last = reply.lines
    assert [line["message"]["tool_calls"][0]["function"]["index"] for line in calls] == [0, 1]
    assert not any(line["done"] for line in calls)
    assert calls[0]["message"]["tool_calls"][0]["id"].startswith("call_")
    assert "tool_calls" not in last["message"]


async def test_no_tools_no_call(node: Talker) -> None:
    assert text_of(await node.chat(CALL))


async def test_after_the_result_of_a_tool_comes_an_answer(node: Talker) -> None:
    asked = {"role": "user", "content": CALL}
    called = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look", "arguments": {}}}]}
    reply = await node.chat(messages=[asked, called, {"role": "tool", "content": "seen"}], tools=[TOOL])

    assert text_of(reply)


async def test_markup_characters_are_escaped_and_other_text_is_not(node: Talker) -> None:
    reply = await node.chat("[[say=<é> & 東京\u2028]]")

    assert rb"\u003c" in reply.body
    assert rb"\u0026" in reply.body
    assert rb"\u2028" in reply.body
    assert "東京".encode() in reply.body
    assert text_of(reply) == "<é> & 東京\u2028"


async def test_a_stop_string_ends_the_answer(node: Talker) -> None:
    whole = text_of(await node.chat())
    stop = whole[20:26]

    reply = await node.chat(options={"stop": [stop]})

    assert text_of(reply) == whole.partition(stop)[0]
    assert reply.lines[-1]["done_reason"] == "stop"


async def test_without_shift_the_context_is_the_limit(node: Talker) -> None:
    options = {"num_ctx": 256, "num_predict": 1000}
    last = (await node.chat("[[tokens=5000]]", shift=False, options=options)).lines[-1]

    assert last["prompt_eval_count"] + last["eval_count"] == 256
    assert last["done_reason"] == "length"


async def test_no_prediction_is_no_limit_except_on_the_native_path(node: Talker) -> None:
    options = {"num_ctx": 256, "num_predict": 0}
    order = "[[tokens=3000]]"

    assert (await node.chat(order, options=options)).lines[-1]["eval_count"] == 1
    assert (await node.chat(order, model="open", options=options)).lines[-1]["eval_count"] == 3001
    assert (await node.generate(order, options=options)).lines[-1]["eval_count"] == 3001
    assert (await node.generate(order, options={"num_ctx": 256, "num_predict": -1})).lines[-1]["eval_count"] == 2560


async def test_the_model_is_echoed_as_the_request_spelt_it(node: Talker) -> None:
    reply = await node.chat(model="CHAT:latest")

    assert {line["model"] for line in reply.lines} == {"CHAT:latest"}
    assert await node.loaded() == ["chat:latest"]


async def test_keys_are_read_whatever_their_case(node: Talker) -> None:
    reply = await node.send("POST", "/api/chat", {"Model": "chat", "MESSAGES": [{"Role": "user", "Content": "x"}]})

    assert text_of(reply)


async def test_embeddings_are_unit_vectors_and_stay_the_same(node: Talker) -> None:
    body = {"model": "embed", "input": ["the old road", "the new road", "unrelated"], "dimensions": 16}
    first = (await node.send("POST", "/api/embed", body)).json["embeddings"]
    again = (await node.send("POST", "/api/embed", body)).json["embeddings"]

    assert first == again
    assert [len(vector) for vector in first] == [16] * 3
    assert all(math.isclose(sum(value * value for value in vector), 1, abs_tol=1e-5) for vector in first)
    close, far = (sum(a * b for a, b in zip(first[0], other, strict=True)) for other in first[1:])
    assert close > far


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/metrics", "/api/chat/"])
async def test_routes_that_do_not_exist(node: Talker, path: str) -> None:
    reply = await node.send("POST", path, {})

    assert (reply.status, reply.body) == (404, b"404 page not found")


async def test_a_node_on_all_interfaces_takes_any_host_name(start: Start) -> None:
    everywhere: Talker = await start(host="0.0.0.0")
    async with everywhere.open() as wire:
        await wire.send(b"GET / HTTP/1.1\r\nHost: gpu-7.example.org:80\r\nConnection: close\r\n\r\n")
        assert (await wire.rest()).endswith(b"Ollama is running")


async def test_a_pulled_copied_and_deleted_model(node: Talker) -> None:
    pulled = await node.send("POST", "/api/pull", {"model": "fresh"})
    assert [pulled.lines[0]["status"], pulled.lines[-1]["status"]] == ["pulling manifest", "success"]
    assert text_of(await node.chat(model="fresh"))

    assert (await node.send("POST", "/api/copy", {"source": "fresh", "destination": "twin"})).status == 200
    assert (await node.send("DELETE", "/api/delete", {"model": "fresh"})).status == 200
    names = [each["name"] for each in (await node.send("GET", "/api/tags")).json["models"]]
    assert "twin:latest" in names
    assert "fresh:latest" not in names
    assert (await node.chat(model="fresh")).status == 404


async def test_twins_share_a_runner_which_keeps_the_first_name(node: Talker) -> None:
    await node.send("POST", "/api/copy", {"source": "chat", "destination": "twin"})
    await node.chat()
    await node.chat(model="twin")

    assert await node.loaded() == ["chat:latest"]
    assert node.sim.state.loads == 1


async def test_the_control_route_never_shows_text(node: Talker) -> None:
    await node.chat("a secret", options={"seed": 1, "num_ctx": 4096})

    reply = await node.send("GET", "/sim/state")

    assert b"secret" not in reply.body
    (seen,) = reply.json["last_requests"]
    assert seen["option_keys"] == ["seed", "num_ctx"]
    assert reply.json["served"] == 1
