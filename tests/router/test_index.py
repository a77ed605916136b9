"""The index of unfinished jobs, folded from two consumers between which there is no order (DESIGN §3, Router). Pure."""

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
                self._write(key, "done", a_completion(folder.submission, folder.submitted, erased=True))
            case "cancel":
                self._write(key, "cancel", CancelMark(submitted=folder.submitted, reason="no"), moves=False)
                folder.cancel, folder.marked = "no", True
            case "old_mark" if not folder.marked:
                self._write(key, "cancel", CancelMark(submitted=folder.submitted - 1, reason="old"), moves=False)
            case "empty" if folder.final and folder.standing:
                record = "new" if "new" in folder.standing else "active"
                folder.standing.discard(record)
                self._write(key, record, None)
            case "expire" if folder.final:
                folder.submission = None

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


@given(histories(), st.data())
def test_any_interleaving_of_the_two_consumers_gives_what_the_log_says(history: History, data: st.DataObject) -> None:
    """Deliveries of one consumer keep their order; own writes and leader reads are folded before them; all may repeat."""
    index = Index()
    jobs = [record for record in history.log if record.name != "done"]
    done = [record for record in history.log if record.name == "done"]
    delivered: list[Rec] = []
    while jobs or done:
        choice = data.draw(st.sampled_from(["jobs", "done", "again", "ahead"]))
        if choice == "again" and delivered:
            last_of_kind = [r for r in delivered if (r.name == "done") == (delivered[-1].name == "done")][-1]
            assert fold(index, last_of_kind) is None  # changes nothing
            continue
        if choice == "ahead":
            # A leader read shows the newest record of a folder, wherever the consumers are.
            newest = {r.key: r for r in history.log if r.name != "cancel"}
            key = data.draw(st.sampled_from(KEYS))
            if key in newest and newest[key].facts is not None and len(delivered) % 3 == 0:
                fold(index, newest[key])
            choice = "jobs"
        source = jobs if (choice == "jobs" and jobs) or not done else done
        record = source.pop(0)
        fold(index, record)
        delivered.append(record)
    assert seen(index) == history.unfinished()


@given(histories())
def test_a_rebuild_finds_every_unfinished_job_as_it_stands(history: History) -> None:
    """From the log as it is now: one record per subject, no `done`. What has ended and was not emptied shows up as well,
    until a compare-and-set on it fails."""
    index = Index()
    standing = {(r.key, r.name): r for r in history.log if r.name != "done"}
    gone = {key for key, folder in history.folders.items() if folder.submission is None}
    for record in sorted(standing.values(), key=lambda r: r.sequence):
        if record.key not in gone and record.sequence >= history.folders[record.key].submitted:
            fold(index, record)
    unfinished = history.unfinished()
    assert {key: value for key, value in seen(index).items() if key in unfinished} == unfinished
    for key in set(index.jobs) - set(unfinished):
        assert history.folders[key].final
        newest = [r for r in history.log if r.key == key and r.name == "done"][-1]
        fold(index, newest)
    assert seen(index) == unfinished


@given(histories())
def test_what_is_left_of_finished_jobs_is_exactly_what_was_not_emptied(history: History) -> None:
    """So that tidying up neither misses a prompt nor repeats itself for ever."""
    index = Index()
    for record in history.log:
        fold(index, record)
    wanted = {}
    for key, folder in history.folders.items():
        if folder.final and folder.standing and folder.submission is not None:
            sequences = {r.name: r.sequence for r in history.log if r.key == key and r.sequence >= folder.submitted}
            kept = {"new"} if folder.keeps_request else set()
            wanted[key] = {name: sequences[name] for name in folder.standing - kept}
    found = {
        key: {name: at for name, at in (("new", left.new), ("active", left.active)) if at}
        for key, left in index.leftovers.items()
        if history.folders[key].submission is not None
    }
    assert found == {key: records for key, records in wanted.items() if records}


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
