"""Which model, which words, which request: decisions of the commands that need no server."""

from datetime import UTC, datetime

import pytest

from libs.cli import audit
from libs.cli.chat import read_words
from libs.cli.failures import CommandFailed
from libs.cli.http import refused
from libs.cli.job import describe, request
from libs.cli.model_choice import billions, is_embedding, small_chat_model
from libs.common.contracts.requests import Kind

MODELS = ["qwen3:8b", "llama3.2:3b", "nomic-embed-text:latest", "mistral:latest"]


@pytest.mark.parametrize(
    ("model", "size"),
    [
        ("llama3.2:3b", 3.0),
        ("smollm2:135m", 0.135),
        ("qwen2.5:0.5b-instruct", 0.5),
        ("mixtral:8x7b", 7.0),
        ("mistral", None),
    ],
)
def test_the_size_of_a_model_is_read_from_its_name(model: str, size: float | None):
    assert billions(model) == size


@pytest.mark.parametrize(
    "model", ["nomic-embed-text", "all-minilm:22m", "bge-m3", "mxbai-embed-large", "snowflake/e5-small"]
)
def test_embedding_models_are_known_by_their_names(model: str):
    assert is_embedding(model)


def test_the_smallest_chat_model_is_chosen_by_bytes_where_they_are_known():
    assert small_chat_model(MODELS) == "llama3.2:3b"
    assert small_chat_model(MODELS, {"mistral:latest": 100_000_000}) == "mistral:latest"
    assert small_chat_model(["nomic-embed-text"]) is None


@pytest.mark.parametrize(
    ("words", "read"),
    [
        ([], ("llama3.2:3b", None)),
        (["mistral"], ("mistral", None)),
        (["qwen3:8b"], ("qwen3:8b", None)),
        (["Why is it so?"], ("llama3.2:3b", "Why is it so?")),
        (["qwen3:8b", "Why?"], ("qwen3:8b", "Why?")),
        (["qwen3:8b", "Why", "so?"], ("qwen3:8b", "Why so?")),
    ],
)
def test_the_words_of_chat_are_a_model_and_a_prompt(words: list[str], read: tuple[str, str | None]):
    assert read_words(words, MODELS) == read


def test_one_unknown_word_is_a_mistyped_model():
    with pytest.raises(CommandFailed, match=r"no model 'lama3'; there are: qwen3:8b, llama3.2:3b, mistral:latest"):
        read_words(["lama3"], MODELS)


def test_each_kind_puts_the_text_where_the_gateway_wants_it():
    assert request("m", "hi", Kind.CHAT) == {
        "model": "m",
        "kind": "chat",
        "messages": [{"role": "user", "content": "hi"}],
    }
    assert request("m", "hi", Kind.GENERATE) == {"model": "m", "kind": "generate", "prompt": "hi"}
    assert request("m", "hi", Kind.EMBED) == {"model": "m", "kind": "embed", "input": "hi"}


def test_a_job_is_described_with_what_it_has():
    job = {"id": "job_1", "state": "succeeded", "node": None, "result": {"message": {"content": "Hello."}}}

    assert describe(job).splitlines() == ["id           job_1", "state        succeeded", "", "Hello."]


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        (b'{"code":"job_not_found","detail":"No such job.","title":"t"}', "job_not_found", "No such job."),
        (b'{"error":{"message":"No model x.","code":"model_not_found","type":"t"}}', "model_not_found", "No model x."),
        (b'{"error":"invalid_client","error_description":"Wrong secret."}', "invalid_client", "Wrong secret."),
        (b"<html>", "http_502", "refused with status 502"),
        (b"[]", "http_502", "refused with status 502"),
    ],
)
def test_a_refusal_is_one_sentence_in_every_dialect(body: bytes, code: str, message: str):
    failure = refused(502, body)

    assert (failure.code, str(failure)) == (code, message)


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("30m", "2026-11-23T11:30:00+00:00"),
        ("2h", "2026-11-23T10:00:00+00:00"),
        ("2w", "2026-11-09T12:00:00+00:00"),
        ("2026-11-23T12:00Z", "2026-11-23T12:00:00+00:00"),
        ("2026-11-23T12:00:00+02:00", "2026-11-23T12:00:00+02:00"),
    ],
)
def test_since_when_is_a_span_or_a_time(text: str, at: str):
    assert audit.when(text, datetime(2026, 11, 23, 12, tzinfo=UTC)) == at
    here = datetime(2026, 11, 23).astimezone().isoformat()
    assert audit.when("2026-11-23") == here, "without a zone it is this machine's"


@pytest.mark.parametrize("text", ["", "soon", "5", "-5d", "2026-13-01", "999999999w"])
def test_other_times_are_wrong_usage(text: str):
    with pytest.raises(CommandFailed) as refused:
        audit.when(text)
    assert refused.value.code == "usage"
