"""The golden samples decode, mean what they say, and cover everything that travels (tests/golden/contracts/README.md)."""

import importlib
import json
import pkgutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from libs.common import contracts
from libs.common.contracts.clients import Principal
from libs.common.contracts.codec import Contract, Decoder, Malformed, encode
from libs.common.contracts.control import RunStatus, decode_run_answer
from libs.common.contracts.events import Event, decode_event, frame, line, parse_frame, whole_events
from libs.common.contracts.faults import MEANING, Code
from libs.common.contracts.headers import FACTS
from libs.common.contracts.jobs import Binding, Completion, Submission, decode_cancel_mark
from libs.common.contracts.nodes import Phase, decode_heartbeat
from libs.common.contracts.requests import Kind, Priority
from libs.common.contracts.streams import Stream
from libs.common.contracts.subjects import JobKey, parse_record
from libs.common.folder import Facts, facts_of
from libs.common.states import JobState

GOLDEN = Path(__file__).parents[1] / "golden" / "contracts" / "v1"
RECORDS = json.loads((GOLDEN / "records.json").read_text())
REQUIRED = json.loads((GOLDEN / "required.json").read_text())
NOT_SENT = {
    Principal,  # what a gateway makes of a verified credential; stays in the process
    Stream,  # the declaration of a stream, never encoded as such
}


class Samples(msgspec.Struct):
    full: msgspec.Raw
    minimal: msgspec.Raw


def structs() -> dict[str, type[Contract]]:
    found: dict[str, type[Contract]] = {}
    for module in pkgutil.iter_modules(contracts.__path__):
        for name, value in vars(importlib.import_module(f"libs.common.contracts.{module.name}")).items():
            if isinstance(value, type) and issubclass(value, Contract) and value.__module__.endswith(f".{module.name}"):
                found[f"{module.name}.{name}"] = value
    return {name: struct for name, struct in found.items() if struct is not Contract and struct not in NOT_SENT}


STRUCTS = structs()


def samples(name: str) -> dict[str, bytes]:
    read = msgspec.json.decode((GOLDEN / f"{name}.json").read_bytes(), type=Samples)
    return {"full": bytes(read.full), "minimal": bytes(read.minimal)}


def test_every_struct_has_samples_and_every_sample_a_struct():
    named = {path.stem for path in GOLDEN.glob("*.*.json")}

    assert named == set(STRUCTS)


@pytest.mark.parametrize("sample", ["full", "minimal"])
@pytest.mark.parametrize("name", STRUCTS)
def test_a_sample_decodes_to_its_own_values(name: str, sample: str):
    """Encoded again it is the same JSON: each value went to its field, none was dropped, defaults are not sent."""
    wire = samples(name)[sample]

    decoded = Decoder(STRUCTS[name])(wire)

    assert json.loads(encode(decoded)) == json.loads(wire)


@pytest.mark.parametrize("name", STRUCTS)
def test_the_full_sample_sets_every_field_and_the_minimal_one_only_the_required(name: str):
    wire = {sample: set(json.loads(text)) for sample, text in samples(name).items()}

    assert wire["full"] == set(STRUCTS[name].__struct_fields__)
    assert wire["minimal"] == {field.name for field in msgspec.structs.fields(STRUCTS[name]) if field.required}


@pytest.mark.parametrize("name", STRUCTS)
def test_fields_of_a_later_version_are_skipped(name: str):
    for text in samples(name).values():
        later = {"a_field_of_tomorrow": {"deep": [1, None]}, **json.loads(text), "and_one_more": "x"}

        assert json.loads(encode(Decoder(STRUCTS[name])(json.dumps(later)))) == json.loads(text)


def test_no_struct_asks_for_more_than_it_did():
    """A new field has a default, or an old sender's message could not be read. New structs are added to the list."""
    now = {
        name: sorted(field.name for field in msgspec.structs.fields(struct) if field.required)
        for name, struct in STRUCTS.items()
    }

    assert now == REQUIRED


@pytest.mark.parametrize("name", STRUCTS)
def test_a_missing_required_field_is_malformed(name: str):
    complete = json.loads(samples(name)["minimal"])
    for field in REQUIRED[name]:
        with pytest.raises(Malformed, match=field):
            Decoder(STRUCTS[name])(json.dumps({key: value for key, value in complete.items() if key != field}))


# -- records with their headers -----------------------------------------------------------------------------------------


def facts(n: int) -> Facts | None:
    return facts_of(RECORDS[n]["subject"], RECORDS[n]["headers"])


def test_a_new_records_header_holds_the_submission():
    new = facts(0)

    assert isinstance(new, Submission)
    assert (new.kind, new.model, new.priority, new.detached) == (Kind.EMBED, "all-minilm", Priority.NORMAL, False)
    assert new.deadline_s + new.result_ttl_s == float(RECORDS[0]["headers"]["Nats-TTL"])
    assert parse_record(RECORDS[0]["subject"]) == (JobKey("demo", "job_k3v7q2x5mz4h6n8p1r9t0w2y5a"), "new")


def test_an_active_records_header_holds_the_binding_with_all_past_epochs():
    active = facts(1)

    assert isinstance(active, Binding)
    assert (active.epoch, active.node, active.base) == (57, "sim-a", 1024)
    assert [(past.epoch, past.base) for past in active.past] == [(41, 1024), (41, None)]
    assert active.attempts[0].fault.code is Code.INTERNAL
    assert active.job.metadata == {"ticket": "A-17"}
    assert str(active.epoch) == RECORDS[1]["headers"]["Nats-Expected-Last-Subject-Sequence"]


def test_a_done_records_header_holds_the_completion_and_its_body_the_log():
    done = facts(2)

    assert isinstance(done, Completion)
    assert done.state is JobState.FAILED
    assert done.fault is not None
    assert done.fault.meaning == MEANING[Code.NODE_FAILED]
    log = RECORDS[2]["body"].encode()
    assert whole_events(log) == len(log)
    assert [decode_event(event).text for event in log.splitlines()] == ["Hola", " amigo", None]


def test_an_emptied_record_has_no_facts():
    assert facts(3) is None


def test_a_cancel_mark_names_the_new_it_is_meant_for():
    assert parse_record(RECORDS[4]["subject"])[1] == "cancel"
    assert decode_cancel_mark(RECORDS[4]["headers"][FACTS]).submitted == 40


# -- chunks, and a few values by name ----------------------------------------------------------------------------------


def test_chunks_are_an_offset_and_bytes_of_the_log():
    for sample in json.loads((GOLDEN / "chunks.json").read_text()):
        assert parse_frame(sample["payload"].encode()) == (sample["offset"], sample["log"].encode())
        assert frame(sample["offset"], sample["log"].encode()) == sample["payload"].encode()


def test_a_heartbeat_says_what_the_node_holds():
    beat = decode_heartbeat(samples("nodes.Heartbeat")["full"])

    assert (beat.slots, beat.running[0].phase, beat.loaded[0].size_vram) == (4, Phase.DECODING, 3367856128)


def test_an_answer_to_run_says_why_it_was_given_back():
    answer = decode_run_answer(samples("control.RunAnswer")["full"])

    assert (answer.status, answer.fault and answer.fault.code) == (RunStatus.GIVEN_BACK, Code.NODE_FAILED)


def test_an_event_is_one_line_whatever_its_text():
    for text in ("a\nb", "\r\n", "\x85\u2028\u2029", "\x00", "🦙"):
        written = line(Event(text=text))

        assert written.count(b"\n") == 1
        assert written.count(b"\r") == 0
        assert decode_event(written).text == text


def test_every_error_code_has_a_meaning():
    assert set(MEANING) == set(Code)


# -- the codec ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [
        b"", b"{", b"null", b"[]", b'{"text": 5}', b'{"text": "\xff"}', b"\xff\xfe", b'{"end": {"state": "asleep"}}',
        b'{"text": "\\ud800"}', b"[" * 100_000, b'{"text": ' + b"[" * 100_000,
    ],
)  # fmt: skip
def test_what_is_no_message_is_malformed(payload: bytes):
    with pytest.raises(Malformed):
        decode_event(payload)


def test_the_failure_never_quotes_the_content():
    with pytest.raises(Malformed) as failure:
        decode_event(b'{"text": "a secret \xff"}')

    assert "secret" not in str(failure.value)


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb"])
def test_a_lone_surrogate_cannot_be_sent(text: str):
    with pytest.raises(Malformed):
        encode(Event(text=text))


@pytest.mark.parametrize("value", ["\ud800", {"deep": ["\ud800"]}])
def test_a_lone_surrogate_deep_inside_cannot_be_sent(value: Any):
    with pytest.raises(Malformed):
        encode({"details": value})
