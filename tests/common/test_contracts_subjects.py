"""Subjects: what is built can be parsed, no text adds a level or a wildcard, and each lands in the stream it is meant for."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.contracts import subjects
from libs.common.contracts.streams import JOBS, NODES, OUT, STREAMS, key_subject
from libs.common.contracts.subjects import BadToken, JobKey, OutKey, token

tokens = st.from_regex(subjects.TOKEN, fullmatch=True)
keys = st.builds(JobKey, tokens, tokens)
outs = st.builds(OutKey, tokens, tokens, tokens, st.integers(0, 2**53))
KEY = JobKey("c", "j")
RUN = OutKey("n", "c", "j", 7)


def matches(pattern: str, subject: str) -> bool:
    """NATS's own rule: `*` is one token, `>` one or more at the end."""
    wanted, found = pattern.split("."), subject.split(".")
    if wanted[-1] == ">":
        wanted = wanted[:-1]
        return len(found) > len(wanted) and all(w in ("*", f) for w, f in zip(wanted, found, strict=False))
    return len(found) == len(wanted) and all(w in ("*", f) for w, f in zip(wanted, found, strict=True))


def streams_of(subject: str) -> list[str]:
    return [stream.name for stream in STREAMS if any(matches(pattern, subject) for pattern in stream.subjects)]


@given(keys, st.sampled_from(["new", "active", "done"]))
def test_a_record_is_parsed_as_it_was_built(key: JobKey, name: subjects.Record):
    assert subjects.parse_record(subjects.record(key, name)) == (key, name)
    assert matches(subjects.folder(key), subjects.record(key, name))
    assert matches(subjects.client_records(key.client), subjects.record(key, name))


@given(keys)
def test_a_cancel_mark_is_parsed_as_it_was_built(key: JobKey):
    assert subjects.parse_record(subjects.cancel_mark(key)) == (key, "cancel")
    assert matches(subjects.CANCELS, subjects.cancel_mark(key))


@given(outs)
def test_output_is_parsed_as_it_was_built(out: OutKey):
    key = JobKey(out.client, out.job)
    for subject in (subjects.chunk(out), subjects.segment(out)):
        assert subjects.parse_out(subject) == out
    assert matches(subjects.chunks_of_job(key), subjects.chunk(out))
    assert not matches(subjects.chunks_of_job(key), subjects.segment(out))
    assert matches(subjects.segments_of_job(key), subjects.segment(out))
    assert matches(subjects.segments_of_epoch(key, out.epoch), subjects.segment(out))


@given(tokens, st.sampled_from(["submit", "get", "cancel", "list"]))
def test_an_api_subject_is_parsed_as_it_was_built(client: str, verb: subjects.ApiVerb):
    assert subjects.parse_api(subjects.api(client, verb)) == (client, verb)


@given(keys, keys)
def test_two_jobs_never_share_a_folder(one: JobKey, other: JobKey):
    assert matches(subjects.folder(one), subjects.record(other, "new")) == (one == other)


@given(st.text())
def test_a_token_is_one_level_and_no_wildcard_or_it_is_refused(text: str):
    if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", text):
        assert token(text) == text
    else:
        with pytest.raises(BadToken):
            token(text)


@given(tokens)
def test_a_token_holds_nothing_that_means_something_to_nats(text: str):
    assert token(text) == text
    assert not set(text) & set(".*>$ \t\r\n")


@pytest.mark.parametrize("text", ["", "a.b", "*", ">", "a*", "a b", "a\n", "ä", "x" * 65, "$SYS", "_INBOX.x", "a\x00"])
def test_no_builder_takes_a_text_that_is_no_token(text: str):
    for build in (
        lambda: subjects.record(JobKey(text, "j"), "new"),
        lambda: subjects.record(JobKey("c", text), "new"),
        lambda: subjects.folder(JobKey(text, "j")),
        lambda: subjects.folder(JobKey("c", text)),
        lambda: subjects.client_records(text),
        lambda: subjects.cancel_mark(JobKey(text, "j")),
        lambda: subjects.part(JobKey("c", "j"), text, 0),
        lambda: subjects.parts_of_job(JobKey("c", text)),
        lambda: subjects.chunk(OutKey(text, "c", "j", 1)),
        lambda: subjects.segment(OutKey("n", text, "j", 1)),
        lambda: subjects.chunks_of_job(JobKey("c", text)),
        lambda: subjects.segments_of_epoch(JobKey(text, "j"), 1),
        lambda: subjects.segments_of_job(JobKey(text, "j")),
        lambda: subjects.hint(JobKey("c", text)),
        lambda: subjects.prefix(JobKey(text, "j")),
        lambda: subjects.worker(text, "b", "run"),
        lambda: subjects.worker("n", text, "run"),
        lambda: subjects.api(text, "get"),
    ):
        with pytest.raises(BadToken):
            build()


@pytest.mark.parametrize(
    "text", ["", "jobs.c.j", "jobs.c.j.new.x", "job.c.j.new", "out.n.c.j.7", "out.n.c.j.x.c", "out.n.c.j.7.d", "api.c"]
)
def test_what_is_no_such_subject_is_not_parsed(text: str):
    for parse in (subjects.parse_record, subjects.parse_out, subjects.parse_api):
        with pytest.raises(ValueError, match=r"not a|invalid literal"):
            parse(text)


STORED = {
    subjects.record(KEY, "new"): JOBS,
    subjects.record(KEY, "active"): JOBS,
    subjects.record(KEY, "done"): JOBS,
    subjects.cancel_mark(KEY): JOBS,
    subjects.part(KEY, "op", 0): JOBS,
    subjects.segment(RUN): OUT,
    key_subject(NODES, "n"): f"KV_{NODES}",
}
NOT_STORED = [
    subjects.chunk(RUN), subjects.hint(KEY), subjects.prefix(KEY), subjects.worker("n", "b", "run"),
    subjects.worker("n", "b", "cancel"), subjects.worker("n", "b", "read"), subjects.worker("n", "b", "ping"),
    subjects.router("free"), subjects.router("place"), subjects.router("erase"), subjects.api("c", "submit"),
    "_INBOX.c.x",
]  # fmt: skip


@pytest.mark.parametrize("subject", STORED)
def test_what_must_last_lies_in_one_stream(subject: str):
    assert streams_of(subject) == [STORED[subject]]


@pytest.mark.parametrize("subject", NOT_STORED)
def test_what_is_only_said_lies_in_no_stream(subject: str):
    assert streams_of(subject) == []


def test_every_stream_has_a_limit_of_its_own_or_the_share_of_the_disk():
    assert [stream.name for stream in STREAMS if stream.max_bytes is None] == [JOBS]
    assert len({stream.name for stream in STREAMS}) == len(STREAMS)
