"""What the simulated model says, and that any beginning of it is continued exactly."""

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.ollama_sim.answers import Beginning, Continuation, Identity, Style, answer, close_json, continuation
from libs.ollama_sim.directives import Directives, ToolOrder, read_directives
from libs.ollama_sim.draws import Draws
from libs.ollama_sim.formats import json_writer
from libs.ollama_sim.models import ChatPath
from libs.ollama_sim.options import Sampling, sampling
from libs.ollama_sim.schema import BadSchema, instance
from libs.ollama_sim.stops import StopFilter

ME = Identity(seed=1, blob_id="blob", option_seed=None)
PROMPT = "[user]Tell me about the road.\n[assistant]"
styles = st.sampled_from(
    [
        Style(),
        Style(directives=Directives(tokens=3)),
        Style(beginning=Beginning.THINK_MARK),
        Style(beginning=Beginning.THOUGHT, directives=Directives(think_tokens=4)),
        Style(json_text=json_writer("json", ChatPath.NATIVE, is_chat=True)),
        Style(calls=(ToolOrder("look", '{"at":"mule"}'),)),
        Style(directives=Directives(say="Señor, 東京 — <b>&</b>\n\nyes.")),
    ]
)


def text_of(found: Continuation) -> str:
    return "".join(piece.text for piece in found.pieces)


@given(styles, st.data())
def test_a_beginning_and_its_continuation_are_the_whole_answer_at_any_character(
    style: Style, data: st.DataObject
) -> None:
    whole = text_of(continuation(ME, PROMPT, len(PROMPT), style))
    cut = data.draw(st.integers(0, len(whole)))

    rest = text_of(continuation(ME, PROMPT + whole[:cut], len(PROMPT), style))

    assert whole[:cut] + rest == whole


@given(st.text(max_size=40), st.data())
@settings(deadline=None)
def test_a_prompt_without_markup_is_continued_too(prompt: str, data: st.DataObject) -> None:
    whole = text_of(continuation(ME, prompt, 0, Style(), is_marked=False))
    cut = data.draw(st.integers(0, len(whole)))

    rest = text_of(continuation(ME, prompt + whole[:cut], 0, Style(), is_marked=False))

    assert whole[:cut] + rest == whole


@given(st.text(max_size=30), st.data())
@settings(deadline=None)
def test_what_somebody_else_began_is_carried_on_consistently(foreign: str, data: st.DataObject) -> None:
    """A prefill that is no beginning of the answer gets a continuation of its own, which can be cut again."""
    start = len(PROMPT)
    carried_on = text_of(continuation(ME, PROMPT + foreign, start, Style()))
    cut = data.draw(st.integers(0, len(carried_on)))

    rest = text_of(continuation(ME, PROMPT + foreign + carried_on[:cut], start, Style()))

    assert carried_on[:cut] + rest == carried_on


def test_the_tokens_already_written_are_counted() -> None:
    pieces = [piece.text for piece in continuation(ME, PROMPT, len(PROMPT), Style()).pieces]

    for done in range(len(pieces)):
        found = continuation(ME, PROMPT + "".join(pieces[:done]), len(PROMPT), Style())
        assert found.tokens_done == done
        assert [piece.text for piece in found.pieces] == pieces[done:]


@given(st.integers(0, 2**64 - 1), st.integers(1, 400))
def test_the_length_can_be_ordered(key: int, tokens: int) -> None:
    pieces = list(answer(key, Style(directives=Directives(tokens=tokens))))

    assert len(pieces) == tokens
    assert tokens == 1 or pieces[-1].text[-1] in ".🦙"


def test_answers_differ_by_seed_model_prompt_and_seed_option() -> None:
    identities = [ME, Identity(2, "blob", None), Identity(1, "other", None), Identity(1, "blob", 5)]
    texts = {text_of(continuation(each, PROMPT, len(PROMPT), Style())) for each in identities}

    assert len(texts) == len(identities)


def test_the_prose_is_readable_and_not_only_ascii() -> None:
    text = "".join(piece.text for piece in itertools.islice(answer(7, Style(directives=Directives(tokens=400))), 400))

    assert text[0].isupper()
    assert not text.isascii()
    assert ". " in text
    assert "  " not in text


@given(
    st.recursive(
        st.booleans() | st.integers() | st.text(max_size=3),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner),
    ),
    st.data(),
)
def test_any_cut_json_object_can_be_closed(value: object, data: st.DataObject) -> None:
    text = json.dumps({"a": value, "b": [value]})
    cut = data.draw(st.integers(0, len(text)))
    before = text[:cut].rstrip()
    if not before or before[-1] not in '{[}],:"':
        return  # inside a number, a word or an escape there is more than one way
    if before.endswith(("\\", '\\"')) or "\\" in before[-6:]:
        return

    assert isinstance(json.loads(before + close_json(before)), dict)


@pytest.mark.parametrize(
    ("text", "directives"),
    [
        ("plain", Directives()),
        ("[[tokens=5]] and [[think=2]]", Directives(tokens=5, think_tokens=2)),
        ("[[tokens=many]]", Directives()),
        ('[[tool=look {"a":[1]}]]', Directives(tools=(ToolOrder("look", '{"a":[1]}'),))),
        ("[[tool=look]]", Directives(tools=(ToolOrder("look", "{}"),))),
        ("[[tool=look nonsense]]", Directives()),
        ("[[say=Hi.]]", Directives(say="Hi.")),
    ],
)
def test_directives(text: str, directives: Directives) -> None:
    assert read_directives(text) == directives


@given(st.integers(0, 2**64 - 1))
def test_an_instance_follows_its_schema(key: int) -> None:
    schema = {
        "type": "object",
        "properties": {
            "word": {"enum": ["yes", "no"]},
            "count": {"type": "integer", "minimum": 3, "maximum": 5},
            "list": {"type": "array", "items": {"$ref": "#/$defs/leaf"}, "minItems": 3},
            "maybe": {"anyOf": [{"type": "null"}, {"type": "string"}]},
        },
        "$defs": {"leaf": {"type": "string", "maxLength": 4}},
    }
    value = instance(schema, Draws(key))

    assert list(value) == ["word", "count", "list", "maybe"]
    assert value["word"] in {"yes", "no"}
    assert 3 <= value["count"] <= 5
    assert len(value["list"]) == 3
    assert all(isinstance(each, str) and len(each) <= 4 for each in value["list"])
    assert value["maybe"] is None


@pytest.mark.parametrize("schema", [{"type": "nonsense"}, {"$ref": "#/nope"}])
def test_a_schema_that_is_none_is_refused(schema: dict[str, str]) -> None:
    with pytest.raises(BadSchema):
        instance(schema, Draws(0))


@given(st.integers(0, 2**64 - 1), st.sampled_from(["the", " road", "e s", ".", "mule"]))
def test_a_stop_string_ends_the_text_right_before_it(key: int, stop: str) -> None:
    pieces = list(answer(key, Style()))
    whole = "".join(piece.text for piece in pieces)
    stops = StopFilter((stop,))

    shown = []
    for piece in pieces:
        shown += stops.feed(piece)
        if stops.has_stopped:
            break
    else:
        shown += stops.flush()

    assert "".join(piece.text for piece in shown) == whole.partition(stop)[0]
    assert stops.has_stopped == (stop in whole)


def test_sampling_options_have_ollamas_defaults() -> None:
    assert sampling({}) == Sampling(num_predict=-1, num_keep=4, seed=None, stop=())
    assert sampling({"seed": -1, "num_predict": 5.0, "stop": ["a", ""]}) == Sampling(5, 4, None, ("a",))
