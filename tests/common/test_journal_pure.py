"""What a refused or unconfirmed write means, and how long a record stays (DESIGN §3). Pure."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from libs.common.contracts.jobs import Binding, Completion, Submission
from libs.common.contracts.requests import Kind
from libs.common.folder import DONE_EXTRA_TTL_S, Entry, Facts, Verdict, judge, ttl_s
from libs.common.states import JobState


def submission(op_id: str = "s", deadline_s: float = 60.0, result_ttl_s: float = 60.0) -> Submission:
    return Submission(
        op_id=op_id, kind=Kind.CHAT, model="m:1", route="/jobs", deadline_s=deadline_s, result_ttl_s=result_ttl_s,
        size=1, digest="d",
    )  # fmt: skip


def facts_for(record: str, op_id: str, submitted: Submission, at: int) -> Facts | None:
    match record:
        case "new":
            return submitted
        case "active":
            return Binding(op_id=op_id, job=submitted, submitted=at, created_ms=0, epoch=0, node="n", boot="b")
        case "done":
            return Completion(
                op_id=op_id, job=submitted, submitted=at, created_ms=0, state=JobState.SUCCEEDED, epoch=0, finished_ms=0
            )
    return None


class Reference:
    """A folder that keeps everything it has ever stored, which the real one does not."""

    def __init__(self) -> None:
        self.stored: list[tuple[int, str, str, Facts | None]] = []  # sequence, record, op_id, facts
        self.life: Submission | None = None
        self.life_at = 0

    @property
    def newest(self) -> int:
        return self.stored[-1][0] if self.stored else 0

    def publish(self, sequence: int, record: str, op_id: str, expected: int) -> bool:
        if expected != self.newest:
            return False
        if record == "new":
            self.life, self.life_at = submission(op_id), sequence
        assert self.life
        self.stored.append((sequence, record, op_id, facts_for(record, op_id, self.life, self.life_at)))
        return True

    def read(self) -> Entry | None:
        """As Journal.newest does: of an emptied folder its `done`, if there is one."""
        if not self.stored:
            return None
        sequence, _, _, facts = self.stored[-1]
        if facts is None:
            for at, record, _, done in reversed(self.stored):
                if record == "done" and at > self.life_at:
                    return Entry(at, 0, done, b"")
        return Entry(sequence, 0, facts, b"")


writes = st.lists(
    st.tuples(st.sampled_from(["new", "active", "active", "done", "empty"]), st.integers(0, 3)), max_size=8
)


@given(writes, st.sampled_from(["new", "active", "done"]), st.integers(0, 3), writes)
def test_a_write_of_unknown_fate_is_judged_as_the_folder_that_forgets_nothing_would(before, mine, slip, after) -> None:  # type: ignore[no-untyped-def]
    """Others write before and after mine; `slip` makes the sequence that I name older than the folder. `landed` is only
    said of what was stored, `again` only while storing it can still be right, and what can be proved is said."""
    folder, sequence, names = Reference(), itertools.count(1), itertools.count()

    def play(steps) -> None:  # type: ignore[no-untyped-def]
        for record, _ in steps:
            final = bool(folder.stored) and any(r == "done" for at, r, _, _ in folder.stored if at > folder.life_at)
            if record == "new" and folder.stored and folder.stored[-1][3] is not None:
                continue  # an id lives again only in an emptied folder
            if record == "new" and final:
                continue
            if record in ("active", "done") and (folder.life is None or final or folder.stored[-1][3] is None):
                continue
            if record == "empty" and not final:
                continue
            folder.publish(next(sequence), record, f"other{next(names)}", folder.newest)

    play(before)
    sequences = [at for at, *_ in folder.stored]
    expected = sequences[-1 - slip] if slip < len(sequences) else 0
    # Who keeps the rules submits into a free folder, and moves on one that is neither final nor emptied.
    live = bool(folder.stored) and folder.stored[-1][1] in ("new", "active") and folder.stored[-1][3] is not None
    allowed = (mine == "new") != live and (mine == "new" or folder.life is not None)
    if mine == "new" and folder.stored and any(r == "done" for at, r, *_ in folder.stored if at > folder.life_at):
        allowed = False
    at = next(sequence)
    landed = allowed and folder.publish(at, mine, "mine", expected)
    play(after)
    verdict, where = judge(folder.read(), op_id="mine", expected=expected)
    if verdict is Verdict.LANDED:
        assert landed
        assert where == at
    elif verdict is Verdict.AGAIN:
        assert not landed
        newest = folder.read()
        assert newest is None or newest.sequence <= expected  # nothing has come on top of what I built on
    else:
        assert folder.read() is not None
    if landed and mine == "new" and folder.life and folder.life.op_id == "mine":
        entry = folder.read()
        if entry and entry.facts is not None:
            assert verdict is Verdict.LANDED  # a submit is recognised also when somebody has built on it
    if landed and folder.newest == at:
        assert verdict is Verdict.LANDED


def test_an_empty_folder_takes_a_submit_and_nothing_else() -> None:
    assert judge(None, op_id="mine", expected=0) == (Verdict.AGAIN, 0)
    assert judge(None, op_id="mine", expected=5) == (Verdict.LOST, 0)


def test_an_older_folder_than_mine_is_a_deposed_leader_speaking() -> None:
    """Still bound to my epoch, or older than my binding → try again; newer → I am fenced."""
    mine = facts_for("active", "bound", submission(), 1)
    for sequence, verdict in ((1, Verdict.AGAIN), (5, Verdict.AGAIN), (6, Verdict.LOST)):
        assert judge(Entry(sequence, 0, mine, b""), op_id="finish", expected=5) == (verdict, 0)


def test_an_emptied_folder_is_free_only_for_who_names_its_sequence() -> None:
    emptied = Entry(9, 0, None, b"")
    assert judge(emptied, op_id="mine", expected=9) == (Verdict.AGAIN, 0)
    assert judge(emptied, op_id="mine", expected=0) == (Verdict.LOST, 0)


@given(
    st.floats(0.1, 86_400),
    st.floats(60, 86_400),
    st.integers(0, 10**12),
    st.lists(st.integers(0, 86_400_000), max_size=5),
)
def test_all_records_end_at_deadline_plus_result_ttl_and_done_last(
    deadline_s: float, result_ttl_s: float, created_ms: int, later_ms: list[int]
) -> None:
    """So nothing outlives its job, and nothing can run again behind a `done` that has expired."""
    job = submission(deadline_s=deadline_s, result_ttl_s=result_ttl_s)
    end_ms = created_ms + (deadline_s + result_ttl_s) * 1000
    for later in later_ms:
        now_ms = created_ms + later
        other, done = (
            now_ms + 1000 * ttl_s(job, created_ms=created_ms, now_ms=now_ms, done=final) for final in (False, True)
        )
        assert ttl_s(job, created_ms=created_ms, now_ms=now_ms) >= 1
        if now_ms < end_ms:
            assert abs(other - end_ms) <= 1000
        assert done - other == DONE_EXTRA_TTL_S * 1000
        # rounding never lets an `active` of an earlier moment outlive a `done` of a later one
        first = created_ms + 1000 * ttl_s(job, created_ms=created_ms, now_ms=created_ms)
        if now_ms < end_ms:
            assert done > first
