"""Names, and the text that declares models."""

import pytest

from libs.ollama_sim.models import BadModelSpec, ChatPath, parse_model, parse_models, parse_size
from libs.ollama_sim.names import parse_name


@pytest.mark.parametrize(
    ("text", "short", "full"),
    [
        ("llama3.2", "llama3.2:latest", "registry.ollama.ai/library/llama3.2:latest"),
        ("llama3.2:3b", "llama3.2:3b", "registry.ollama.ai/library/llama3.2:3b"),
        ("me/mine:v1", "me/mine:v1", "registry.ollama.ai/me/mine:v1"),
        ("host:5000/me/mine", "host:5000/me/mine:latest", "host:5000/me/mine:latest"),
    ],
)
def test_names_get_their_defaults(text: str, short: str, full: str) -> None:
    name = parse_name(text)
    assert name is not None
    assert (name.short, name.full) == (short, full)


@pytest.mark.parametrize("text", ["", "a b", "a:b c", ":tag", "na.me/x", "x" * 81, "a:"])
def test_other_names_are_invalid(text: str) -> None:
    assert parse_name(text) is None


def test_a_declaration_has_a_size_and_attributes() -> None:
    model = parse_model("me/eye:v1=1.5GiB:thinking:tools:vision:parser:ctx=8192:rev=2")

    assert model.name.short == "me/eye:v1"
    assert model.size_bytes == 3 * 2**29
    assert model.can_think
    assert model.can_call_tools
    assert model.can_see
    assert model.path is ChatPath.PARSER
    assert model.context_length == 8192


def test_the_same_declaration_has_the_same_digests_and_another_revision_others() -> None:
    first, same, other = (parse_model(spec) for spec in ("m=1GB", "M:latest=1GB", "m=1GB:rev=2"))

    assert first.blob_id == same.blob_id
    assert first.blob_id != other.blob_id
    assert first.digest != other.digest
    assert len(first.digest) == 64


def test_twins_share_a_blob_but_not_a_digest() -> None:
    one, twin = parse_models("one=1GB,twin=1GB:blob=one")

    assert one.blob_id == twin.blob_id
    assert one.digest != twin.digest


@pytest.mark.parametrize("spec", ["m", "m=", "m=2", "m=2XB", "=2GB", "a b=2GB", "m=2GB:clever", "m=2GB:ctx=big"])
def test_what_cannot_be_read_is_named(spec: str) -> None:
    with pytest.raises(BadModelSpec):
        parse_model(spec)


def test_sizes_are_decimal_unless_they_say_otherwise() -> None:
    assert (parse_size("2.0GB"), parse_size("274MB"), parse_size("1KiB")) == (2_000_000_000, 274_000_000, 1024)
