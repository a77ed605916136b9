"""Names: their shapes, and that keyed ids are the same everywhere and for nothing else."""

import re

from hypothesis import given
from hypothesis import strategies as st

from libs.common.ids import derive, keyed_job_id, new_boot_id, new_job_id, new_op_id

JOB_ID = re.compile(r"job_[a-z2-7]{26}")
SECRET = b"s" * 32
text = st.text(st.characters(blacklist_characters="\0"), max_size=20)


def test_job_ids_are_random_and_have_one_shape() -> None:
    ids = {new_job_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(JOB_ID.fullmatch(job) for job in ids)


def test_every_place_of_a_random_job_id_takes_every_letter() -> None:
    """130 bits: none is lost in the cut to 26 letters."""
    ids = [new_job_id() for _ in range(3000)]
    assert all(len({job[place] for job in ids}) == 32 for place in range(4, 30))


def test_a_keyed_id_is_always_the_same_and_looks_like_any_other() -> None:
    """A change here would make every key that clients have used find another job."""
    assert keyed_job_id(SECRET, "acme", "/jobs", "k") == "job_ofmaf6r55fhxxsx5wzk6ilgoe7"
    assert JOB_ID.fullmatch(keyed_job_id(SECRET, "acme", "/jobs", "k"))


@given(st.tuples(text, text, text), st.tuples(text, text, text))
def test_keyed_ids_differ_with_client_route_or_key(one: tuple[str, str, str], other: tuple[str, str, str]) -> None:
    assert (keyed_job_id(SECRET, *one) == keyed_job_id(SECRET, *other)) == (one == other)


def test_the_parts_of_a_keyed_id_cannot_be_shifted_into_each_other() -> None:
    assert keyed_job_id(SECRET, "ab", "c", "d") != keyed_job_id(SECRET, "a", "bc", "d")
    assert keyed_job_id(SECRET, "a", "b", "cd") != keyed_job_id(SECRET, "a", "bc", "d")


def test_without_the_clusters_secret_a_keyed_id_cannot_be_known() -> None:
    assert keyed_job_id(SECRET, "a", "b", "c") != keyed_job_id(b"t" * 32, "a", "b", "c")


def test_any_text_that_python_can_hold_is_a_key() -> None:
    assert JOB_ID.fullmatch(keyed_job_id(SECRET, "a", "b", "\ud800 ü 漢"))


def test_op_ids_and_boot_ids_can_stand_in_a_subject_and_do_not_repeat() -> None:
    for new in (new_op_id, new_boot_id):
        made = {new() for _ in range(1000)}
        assert len(made) == 1000
        assert all(re.fullmatch(r"[0-9a-f-]+", name) for name in made)
    assert all(re.fullmatch(r"[0-9a-f]{16}", new_op_id()) for _ in range(10))


def test_keys_differ_by_purpose_and_by_secret_and_stay_the_same() -> None:
    purposes = ["idempotency", "api-keys", "signing", "idempotency2", ""]
    keys = {derive(SECRET, purpose) for purpose in purposes} | {derive(b"t" * 32, purpose) for purpose in purposes}
    assert len(keys) == 10
    assert all(len(key) == 32 for key in keys)
    assert derive(SECRET, "idempotency") == derive(SECRET, "idempotency")
    assert SECRET not in derive(SECRET, "idempotency")
