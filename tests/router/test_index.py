"""The index of unfinished jobs, folded from four consumers between which there is no order (DESIGN §3, Router). Pure."""

from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.contracts.jobs import Binding, CancelMark, Parts, PastEpoch, Submission
from libs.common.contracts.subjects import JobKey
from libs.common.states import JobState
from services.router import index as module
from services.router.index import Facts, Index, Job, Leftover
from tests.router.building import a_binding, a_completion, a_key, a_requeue, a_submission

KEYS = [a_key("job_a"), a_key("job_b")]


class Rec(NamedTuple):
    key: JobKey
    name: str
    facts: Facts
    sequence: int


@dataclass
class Folder:
    """One id, through all its lives."""

    submitted: int = 0
    submission: Submission | None = None
    newest: int = 0
    binding: Binding | None = None
    final: bool = False
    keeps_request: bool = False  # ended so that it may be retried
    cancel: str | None = None
    marked: bool = False
    standing: set[str] = field(default_factory=set)  # of `new` and `active`, what was not emptied

    @property
    def kept(self) -> set[str]:
        return {"new"} if self.keeps_request else set()


class History:
    """Writes only what the rules of §3 allow, one deed after the other, and knows what is true at the end."""

    def __init__(self) -> None:
        self.log: list[Rec] = []
        self.folders = {key: Folder() for key in KEYS}
        self._sequence = 0

    def do(self, key: JobKey, deed: str) -> None:
        folder = self.folders[key]
        if folder.submission is None:
            if deed == "new":
                submission = a_submission()
                self._write(key, "new", submission)
                self.folders[key] = Folder(
                    self._sequence, submission, self._sequence, standing={"new"}
                )  # a key that was used again starts from nothing
            return
        match deed:
            case "bind" | "requeue" | "done" | "fail" | "cancel" | "old_mark" if folder.final:
                return
            case "bind" if folder.binding is None or folder.binding.node is None:
                self._activate(key, a_binding(folder.submission, folder.submitted, epoch=folder.newest))
            case "requeue" if folder.binding is not None and folder.binding.node is not None:
                past = (PastEpoch(epoch=folder.binding.epoch),)
                self._activate(key, a_requeue(folder.submission, folder.submitted, epoch=folder.newest, past=past))
            case "done":
                self._write(key, "done", a_completion(folder.submission, folder.submitted))
                folder.final = True
            case "fail":
                self._write(key, "done", a_completion(folder.submission, folder.submitted, state=JobState.FAILED))
                folder.final = folder.keeps_request = True
            case "erase" if folder.final:
                while folder.standing:  # first
                    self._empty(key, folder.standing)
                self._write(key, "done", a_completion(folder.submission, folder.submitted, erased=True))
            case "cancel":
                self._write(key, "cancel", CancelMark(submitted=folder.submitted, reason="no"), moves=False)
                folder.cancel, folder.marked = "no", True
            case "old_mark" if not folder.marked:
                self._write(key, "cancel", CancelMark(submitted=folder.submitted - 1, reason="old"), moves=False)
            case "empty" if folder.final and folder.standing - folder.kept:
                self._empty(key, folder.standing - folder.kept)
            case "expire" if folder.final:
                folder.submission = None

    def _empty(self, key: JobKey, of: set[str]) -> None:
        record = "new" if "new" in of else "active"
        self.folders[key].standing.discard(record)
        self._write(key, record, None)

    def _activate(self, key: JobKey, binding: Binding) -> None:
        self._write(key, "active", binding)
        self.folders[key].binding = binding
        self.folders[key].standing.add("active")

    def _write(self, key: JobKey, name: str, facts: Facts, *, moves: bool = True) -> None:
        self._sequence += 1
        self.log.append(Rec(key, name, facts, self._sequence))
        if moves:
            self.folders[key].newest = self._sequence

    def unfinished(self) -> dict[JobKey, tuple[object, ...]]:
        return {
            key: (folder.submitted, folder.newest, folder.binding, folder.cancel)
            for key, folder in self.folders.items()
            if folder.submission is not None and not folder.final
        }

    def standing(self) -> list[Rec]:
        """What the stream still holds: one record per subject, of folders that have not expired."""
        newest = {(record.key, record.name): record for record in self.log}
        return [
            record
            for record in newest.values()
            if self.folders[record.key].submission is not None and record.sequence >= self.folders[record.key].submitted
        ]

    def left(self) -> dict[JobKey, dict[str, int]]:
        """Of finished jobs, the records that are still to be emptied."""
        found = {}
        for key, folder in self.folders.items():
            if folder.final and folder.submission is not None:
                sequences = {r.name: r.sequence for r in self.log if r.key == key and r.sequence >= folder.submitted}
                found[key] = {name: sequences[name] for name in folder.standing - folder.kept}
        return {key: records for key, records in found.items() if records}


def left(index: Index, history: History) -> dict[JobKey, dict[str, int]]:
    found = {
        key: {name: at for name, at in (("new", leftover.new), ("active", leftover.active)) if at}
        for key, leftover in index.leftovers.items()
        if history.folders[key].submission is not None
    }
    return {key: records for key, records in found.items() if records}


def seen(index: Index) -> dict[JobKey, tuple[object, ...]]:
    return {key: (job.submitted, job.sequence, job.binding, job.cancel) for key, job in index.jobs.items()}


def fold(index: Index, record: Rec) -> Job | None:
    return index.fold(record.key, record.name, record.facts, record.sequence, at_ms=record.sequence)


DEEDS = [
    "new",
    "new",
    "bind",
    "bind",
    "requeue",
    "done",
    "fail",
    "cancel",
    "old_mark",
    "empty",
    "empty",
    "erase",
    "expire",
]


@st.composite
def histories(draw: st.DrawFn) -> History:
    history = History()
    for key, deed in draw(st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from(DEEDS)), max_size=40)):
        history.do(key, deed)
    return history


def deliver(index: Index, history: History, data: st.DataObject) -> None:
    """Each consumer keeps its order; what was overwritten before it was sent is not sent; own writes and leader reads are
    folded before them; all may repeat."""
    last = {(record.key, record.name): record for record in history.log}
    newest = {record.key: record for record in history.log if record.name != "cancel"}
    sources: dict[str, list[Rec]] = {name: [] for name in ("new", "active", "done", "cancel")}
    for record in history.log:
        sources[record.name].append(record)
    before: dict[str, Rec] = {}
    while any(sources.values()):
        name = data.draw(st.sampled_from([name for name, source in sources.items() if source]))
        what = data.draw(st.sampled_from(["next", "next", "next", "skip", "again", "ahead"]))
        if what == "again" and name in before:
            assert fold(index, before[name]) is None  # changes nothing
            continue
        if what == "ahead":  # a leader read shows the newest record of a folder, wherever the consumers are
            record = newest.get(data.draw(st.sampled_from(KEYS)))
            if record is not None and record.facts is not None:
                fold(index, record)
        record = sources[name].pop(0)
        if what == "skip" and last[record.key, record.name] is not record:
            continue
        fold(index, record)
        before[name] = record


@given(histories(), st.data())
def test_any_interleaving_of_the_four_consumers_gives_what_the_log_says(history: History, data: st.DataObject) -> None:
    index = Index()
    deliver(index, history, data)
    assert seen(index) == history.unfinished()
    assert left(index, history) == history.left()
    assert not any(leftover.doubtful for leftover in index.leftovers.values())
    assert not index._marks


@given(histories(), st.data())
def test_a_rebuild_finds_every_unfinished_job_as_it_stands(history: History, data: st.DataObject) -> None:
    """From the log as it is now: one record per subject, no `done`, four consumers. What has ended shows up as well if nothing
    of it was emptied, until its `done` is looked up or a compare-and-set on it fails."""
    index = Index()
    there = [record for record in history.standing() if record.name != "done"]
    for record in data.draw(st.permutations(there)):
        fold(index, record)
    unfinished = history.unfinished()
    assert {key: value for key, value in seen(index).items() if key in unfinished} == unfinished
    emptied = {record.key for record in there if record.name != "cancel" and record.facts is None}
    assert not emptied & set(index.jobs)
    for key in set(index.jobs) - set(unfinished):
        assert history.folders[key].final
        newest = [r for r in history.log if r.key == key and r.name == "done"][-1]
        fold(index, newest)
    assert seen(index) == unfinished


@given(histories(), st.data())
def test_after_a_rebuild_what_is_left_to_tidy_is_what_was_half_emptied(history: History, data: st.DataObject) -> None:
    """Whether the request is kept for a retry is then to be looked up, unless it was the request that was emptied."""
    index = Index()
    for record in data.draw(st.permutations([r for r in history.standing() if r.name in ("new", "active")])):
        fold(index, record)
    half = {}
    for key, folder in history.folders.items():
        filled = {r.name: r.sequence for r in history.standing() if r.key == key and r.name in folder.standing}
        names = {r.name for r in history.standing() if r.key == key and r.name in ("new", "active")}
        if folder.final and filled and names - set(filled):
            half[key] = filled
    assert left(index, history) == half
    for key, leftover in index.leftovers.items():
        if key in half:
            assert leftover.doubtful == ("new" in half[key])


@given(histories())
def test_what_is_left_of_finished_jobs_is_exactly_what_was_not_emptied(history: History) -> None:
    """So that tidying up neither misses a prompt nor repeats itself for ever."""
    index = Index()
    for record in history.log:
        fold(index, record)
    assert left(index, history) == history.left()


def test_a_final_record_wins_over_smaller_sequences_only() -> None:
    """The model: 'final wins whatever the sequence' lets the clean-up empty a live job."""
    index, key, submission = Index(), KEYS[0], a_submission()
    fold(index, Rec(key, "new", submission, 1))
    fold(index, Rec(key, "new", submission, 100))  # the id lives again
    fold(index, Rec(key, "done", a_completion(submission, 1), 3))
    assert index.jobs[key].submitted == 100
    assert not index.leftovers


def test_after_a_rebuild_a_job_that_was_emptied_is_known_to_have_ended_and_its_other_record_is_left_to_tidy() -> None:
    """Its `done` is older than the rebuild and not read; only finished jobs are emptied."""
    index, key, submission = Index(), KEYS[0], a_submission()
    fold(index, Rec(key, "active", a_binding(submission, 1), 2))
    assert key in index.jobs
    fold(index, Rec(key, "new", None, 4))
    assert key not in index.jobs
    assert index.take_leftover() == (key, Leftover(active=2))


def test_an_epoch_is_what_the_next_compare_and_set_names() -> None:
    index, key, submission = Index(), KEYS[0], a_submission()
    fold(index, Rec(key, "new", submission, 1))
    assert index.jobs[key].sequence == 1
    fold(index, Rec(key, "active", a_binding(submission, 1), 5))
    assert index.jobs[key].sequence == 5
    fold(index, Rec(key, "cancel", CancelMark(submitted=1, reason="no"), 6))
    assert index.jobs[key].sequence == 5  # a mark is no record of the folder


def test_what_was_gathered_is_forgotten_when_the_folder_moves_on() -> None:
    index, key, submission = Index(), KEYS[0], a_submission()
    fold(index, Rec(key, "new", submission, 1))
    fold(index, Rec(key, "active", a_requeue(submission, 1), 3))
    assert index.jobs[key].ungathered
    index.jobs[key].gathered = b""
    assert not index.jobs[key].ungathered
    fold(index, Rec(key, "active", a_requeue(submission, 1), 5))
    assert index.jobs[key].ungathered


def test_the_parts_of_a_finished_request_are_left_to_be_purged() -> None:
    index, key, parts = Index(), KEYS[0], Parts(op_id="op", count=3, size=600_000)
    submission = a_submission(parts=parts)
    fold(index, Rec(key, "new", submission, 1))
    fold(index, Rec(key, "done", a_completion(submission, 1), 2))
    assert index.take_leftover() == (key, Leftover(new=1, parts=parts))
    assert index.take_leftover() is None


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.EXPIRED])
@pytest.mark.parametrize("done_first", [False, True])
def test_the_request_of_a_job_that_may_be_retried_is_not_left_to_tidy(state: JobState, done_first: bool) -> None:
    index, key = Index(), KEYS[0]
    submission = a_submission(parts=Parts(op_id="op", count=3, size=600_000))
    log = [Rec(key, "new", submission, 1), Rec(key, "active", a_binding(submission, 1), 2)]
    done = Rec(key, "done", a_completion(submission, 1, state=state), 3)
    for record in [done, *log] if done_first else [*log, done]:
        fold(index, record)
    assert index.take_leftover() == (key, Leftover(active=2))
    assert index.take_leftover() is None


def test_after_a_rebuild_it_is_doubtful_whether_a_request_is_kept() -> None:
    """Only `active` was emptied: either `new` is the next, or it stays. The `done` that says so was not read."""
    index, key, submission = Index(), KEYS[0], a_submission()
    fold(index, Rec(key, "new", submission, 1))
    fold(index, Rec(key, "active", None, 4))
    assert index.take_leftover() == (key, Leftover(new=1, doubtful=True))


def test_a_leftover_that_could_not_be_tidied_comes_back_unless_the_id_lives_again() -> None:
    index, key, submission = Index(), KEYS[0], a_submission()
    left = Leftover(new=1)
    index.put_back(key, left)
    assert index.take_leftover() == (key, left)
    fold(index, Rec(key, "new", submission, 100))
    index.put_back(key, left)
    assert index.take_leftover() is None


def test_of_finished_jobs_only_a_bounded_number_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_FINISHED", 10)
    index, submission = Index(), a_submission()
    for n in range(50):
        fold(index, Rec(a_key(f"j{n}"), "done", a_completion(submission, n), n + 1))
    assert len(index._finished) == 10


@pytest.mark.parametrize("first", ["new", "active"])
def test_a_cancel_mark_that_comes_before_its_job_waits_for_it(first: str) -> None:
    index, key, submission = Index(), KEYS[0], a_submission()
    assert fold(index, Rec(key, "cancel", CancelMark(submitted=1, reason="no"), 3)) is None
    record = Rec(key, "new", submission, 1) if first == "new" else Rec(key, "active", a_binding(submission, 1), 2)
    job = fold(index, record)
    assert job is not None
    assert job.cancel == "no"
    assert not index._marks


def test_a_cancel_mark_waits_for_no_other_life_than_the_one_it_names() -> None:
    index, key = Index(), KEYS[0]
    fold(index, Rec(key, "new", a_submission(), 1))
    fold(index, Rec(key, "cancel", CancelMark(submitted=100, reason="no"), 102))
    assert index.jobs[key].cancel is None
    fold(index, Rec(key, "done", a_completion(a_submission(), 1), 3))
    fold(index, Rec(key, "cancel", CancelMark(submitted=1, reason="old"), 103))
    fold(index, Rec(key, "new", a_submission(), 100))
    assert index.jobs[key].cancel == "no"


def test_of_cancel_marks_without_a_job_only_the_newest_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_MARKS", 10)
    index = Index()
    for n in range(1, 51):
        fold(index, Rec(a_key(f"j{n}"), "cancel", CancelMark(submitted=n, reason="no"), 100 + n))
    assert [mark.submitted for mark in index._marks.values()] == list(range(41, 51))


def test_a_record_that_comes_after_the_other_was_emptied_is_of_a_job_that_has_ended() -> None:
    """After a rebuild no `done` says so: the binding would look like a job that a node holds."""
    index, key, parts = Index(), KEYS[0], Parts(op_id="op", count=3, size=600_000)
    fold(index, Rec(key, "new", None, 5))
    fold(index, Rec(key, "active", a_binding(a_submission(parts=parts), 1), 2))
    assert not index.jobs
    assert index.take_leftover() == (key, Leftover(active=2, parts=parts))
    other = KEYS[1]
    fold(index, Rec(other, "active", None, 14))
    fold(index, Rec(other, "new", a_submission(), 11))
    assert not index.jobs
    assert index.take_leftover() == (other, Leftover(new=11, doubtful=True))


def test_a_done_that_comes_after_what_it_led_to_still_says_whether_the_request_is_kept() -> None:
    index, key, submission = Index(), KEYS[0], a_submission()
    fold(index, Rec(key, "new", submission, 1))
    fold(index, Rec(key, "active", None, 4))
    assert index.leftovers[key].doubtful
    fold(index, Rec(key, "done", a_completion(submission, 1, state=JobState.FAILED), 3))
    assert not index.leftovers
