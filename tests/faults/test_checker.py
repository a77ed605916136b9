"""The checker itself: for every way of failing a hand-made record of it is named, and a good one is not."""

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest

from tests.faults.checker import HEALED_S, OVERDUE_S, Kind, check
from tests.faults.figures import heals, table
from tests.faults.records import Record

JOB = "job_a"
TOKENS = ("No", " gentle", " river")


class Run:
    """A run in which one client streams one job to its end; a test spoils it."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.final = {
            "id": JOB, "kind": "generate", "state": "succeeded", "epoch": 7, "attempts": 1, "error": None,
            "created_at": "2026-01-01T00:00:00+00:00", "finished_at": "2026-01-01T00:00:02+00:00",
            "result": {"response": "".join(TOKENS)},
        }  # fmt: skip
        self._streams = 0
        self.note("script", n=1, deadline_s=10.0)
        self.call("submit", 202, job=JOB, view={"id": JOB, "state": "queued"})

    def note(self, what: str, **facts: object) -> Record:
        record: Record = {"what": what, "t": float(len(self.records)), **facts}
        self.records.append(record)
        return record

    def call(self, op: str, status: int, **facts: object) -> Record:
        retry_after = "1" if status == 503 else None
        given = {"n": 1, "op": op, "gateway": "gateway-1", "sent": float(len(self.records)), "status": status}
        return self.note("call", **(given | {"retry_after": retry_after} | facts))

    def fault(self, target: str, *, begun: float, over: float) -> None:
        """A cut of its cable."""
        for t, phase in ((begun, "begun"), (over, "over")):
            kind = "cut from NATS > 30 s" if over - begun > 30 else "cut from NATS"
            self.note("fault", id=1, role=target.partition("-")[0], kind=kind, target=target, phase=phase)["t"] = t

    def stream(
        self,
        frames: str,
        *,
        after: str = "",
        purpose: str = "live",
        dialect: str = "jobs",
        how: str = "eof",
        life: int = 0,
    ) -> None:
        self._streams += 1
        s = self._streams
        self.note(
            "opened", s=s, n=1, job=JOB, gateway="gateway-1", dialect=dialect, purpose=purpose, after=after, life=life
        )
        self.note("bytes", s=s, data=frames)
        self.note("closed", s=s, how=how, error="")

    def end(self, frames: str | None = None) -> None:
        """The replay and the audit."""
        self.stream(whole() if frames is None else frames, purpose="replay")
        self.note("audit", job=JOB, status=200, view=self.final)

    def kinds(self, *, replicated: bool = False) -> set[Kind]:
        return {violation.kind for violation in check(self.records, replicated=replicated).violations}


def token(end: int, text: str, epoch: int = 7) -> str:
    return f'id: {epoch}.{end}\nevent: token\ndata: {{"text":"{text}"}}\n\n'


def size(text: str) -> int:
    return len(f'{{"text":"{text}"}}') + 1


def log(*texts: str, epoch: int = 7, offset: int = 0) -> str:
    made = ""
    for text in texts:
        offset += size(text)
        made += token(offset, text, epoch)
    return made


def ending(offset: int, state: str = "succeeded", epoch: int = 7) -> str:
    data = f'{{"state":"{state}"}}'
    return f"id: {epoch}.{offset + len(data) + 9}\nevent: {state}\ndata: {data}\n\n"


ALL = sum(size(text) for text in TOKENS)


def whole(epoch: int = 7) -> str:
    return log(*TOKENS, epoch=epoch) + ending(ALL, epoch=epoch)


def test_a_clean_run_has_no_violation() -> None:
    run = Run()
    run.stream("event: queued\ndata: {}\n\n: ping\n\n" + log(*TOKENS[:1]) + token(40, "cut in")[:-1], how="cut")
    run.stream(log(*TOKENS[1:], offset=size(TOKENS[0])) + ending(ALL), after=f"7.{size(TOKENS[0])}")
    run.call("view", 200, job=JOB, view=run.final)
    run.end()
    run.note("expected", job=JOB, text="".join(TOKENS))
    assert check(run.records).violations == []


def test_a_continued_answer_and_an_honest_ending_are_no_violations() -> None:
    run = Run()
    run.final |= {"state": "failed", "error": {"code": "interrupted"}, "result": None, "epoch": 9}
    run.stream(
        log(TOKENS[0])
        + log(TOKENS[1], epoch=9, offset=size(TOKENS[0]))
        + ending(size(TOKENS[0]) + size(TOKENS[1]), "failed", 9)
    )
    run.end(log(*TOKENS[:2], epoch=9) + ending(size(TOKENS[0]) + size(TOKENS[1]), "failed", 9))
    verdict = check(run.records)
    assert verdict.violations == []
    assert verdict.counts["ended failed: interrupted"] == 1
    assert verdict.counts["live streams that went over to another attempt"] == 1


@pytest.mark.parametrize("how", ["reset", "409"])
def test_text_that_is_void_is_fine_once_the_reader_was_told(how: str) -> None:
    run = Run()
    lost = log("Other", " words")
    if how == "reset":
        run.stream(lost + "event: reset\ndata: {}\n\n" + whole())
    else:
        run.stream(lost, how="cut")
        run.call("stream", 409, job=JOB, code="position_lost")
        run.stream(whole(), life=1)
    run.end()
    assert run.kinds() == set()


@pytest.mark.parametrize("how", ["reset", "409", "nothing"])
def test_who_was_sent_away_by_a_gateway_that_drains_is_told_when_it_comes_back(how: str) -> None:
    run = Run()
    shown = log("Other", " words")
    run.stream(shown + ": this gateway shuts down; resume with Last-Event-ID\n\n", how="eof")
    place = f"7.{size('Other') + size(' words')}"
    if how == "reset":
        run.stream("event: reset\ndata: {}\n\n" + whole(epoch=9), after=place)
    elif how == "409":
        run.call("stream", 409, job=JOB, code="position_lost")
        run.stream(whole(epoch=9), life=1)
    else:
        run.stream(ending(size("Other") + size(" words"), epoch=9), after=place)
    run.end(whole(epoch=9))
    assert run.kinds() == ({Kind.MIXED} if how == "nothing" else set())


def test_what_its_owner_erased_is_not_lost() -> None:
    run = Run()
    run.call("cancel", 200, job=JOB, view={"id": JOB, "state": "succeeded", "erased": True})
    run.call("view", 404, job=JOB, code="job_not_found")
    run.note("audit", job=JOB, status=404, view={"code": "job_not_found"})
    assert run.kinds() == set()


def _lost(run: Run) -> None:
    run.note("audit", job=JOB, status=404, view={"code": "job_not_found"})


def _lost_meanwhile(run: Run) -> None:
    run.call("view", 404, job=JOB, code="job_not_found")
    run.end()


def _unfinished(run: Run) -> None:
    run.final |= {"state": "running"}
    run.note("audit", job=JOB, status=200, view=run.final)


def _orphan(run: Run) -> None:
    run.end()
    run.note("listed", job="job_b", state="queued")


def _duplicated(run: Run) -> None:
    run.stream(log(*TOKENS[:2]) + token(size(TOKENS[0]) + size(TOKENS[1]), TOKENS[1]))
    run.end()


def _repeated_by_the_next_attempt(run: Run) -> None:
    run.stream(log(TOKENS[0]) + whole(epoch=9))
    run.end(whole(epoch=9))


def _older_attempt(run: Run) -> None:
    run.stream(log(TOKENS[0]) + log(TOKENS[1], epoch=5, offset=size(TOKENS[0])))
    run.end()


def _gap(run: Run) -> None:
    run.stream(log(TOKENS[0]) + token(ALL, TOKENS[2]))
    run.end()


def _gap_between_connections(run: Run) -> None:
    run.stream(log(TOKENS[0]), how="cut")
    run.stream(token(ALL, TOKENS[2]) + ending(ALL), after=f"7.{size(TOKENS[0])}")
    run.end()


def _mixed(run: Run) -> None:
    run.stream(log("XX") + log(*TOKENS[1:], epoch=9, offset=size("XX")) + ending(ALL, epoch=9))
    run.end(whole(epoch=9))


def _longer_than_the_log(run: Run) -> None:
    run.final |= {"state": "failed"}
    run.stream(log(*TOKENS), how="eof")
    run.end(log(TOKENS[0]) + ending(size(TOKENS[0]), "failed"))


def _chat(content: str, id_: str = "") -> str:
    head = f"id: {id_}\n" if id_ else ""
    return f'{head}data: {{"choices":[{{"delta":{{"content":"{content}"}}}}]}}\n\n'


def _chat_mixed(run: Run) -> None:
    run.stream(_chat("No") + _chat(" other") + "data: [DONE]\n\n", dialect="chat")
    run.end()


def _chat_not_told(run: Run) -> None:
    run.stream(_chat("No"), dialect="chat")
    run.end()


def _wrong_text(run: Run) -> None:
    run.end()
    run.note("expected", job=JOB, text="No gentle lake")


def _end_that_was_none(run: Run) -> None:
    run.final |= {"state": "failed"}
    run.stream(whole())
    run.end(log(*TOKENS) + ending(ALL, "failed"))


def _end_before_it_is_stored(run: Run) -> None:
    run.stream(whole())
    run.call("view", 200, job=JOB, view=run.final | {"state": "running"})
    run.end()


def _token_after_the_end(run: Run) -> None:
    run.stream(whole() + token(ALL + 60, "more"))
    run.end()


def _final_state_that_changed(run: Run) -> None:
    run.call("view", 200, job=JOB, view=run.final | {"state": "failed"})
    run.end()


def _final_epoch_that_changed(run: Run) -> None:
    run.call("view", 200, job=JOB, view=run.final | {"epoch": 5})
    run.end()


def _cancelled_but_succeeded(run: Run) -> None:
    run.call("cancel", 200, job=JOB, view={"id": JOB, "state": "cancelled"})
    run.end()


def _two_jobs_for_a_key(run: Run) -> None:
    run.call("submit", 202, job=JOB, key="k")
    run.call("submit", 202, job="job_b", key="k")
    run.end()


def _other_body_taken(run: Run) -> None:
    run.call("submit", 200, job=JOB, key="k", other_body=True)
    run.end()


def _ended_twice(run: Run) -> None:
    run.end()
    run.note("logged", process="worker-n1", job=JOB, epoch=7, state="succeeded")
    run.note("logged", process="worker-n2", job=JOB, epoch=9, state="succeeded")


def _leaked_slot(run: Run) -> None:
    run.end()
    run.note("quiet", place="heartbeat of n1", held=[{"job": JOB}])


def _not_ready_at_the_end(run: Run) -> None:
    run.end()
    run.note("readyz", name="router-1", sent=1.0, status=503, problems="lease")


def _never_healed(run: Run) -> None:
    run.end()
    for t in (50.0, 60.0, 51.0 + HEALED_S):
        run.note("readyz", name="router-1", sent=t, status=503, problems="lease")["t"] = t
    run.note("readyz", name="router-1", sent=500.0, status=200, problems="")


def _untrue(run: Run) -> None:
    run.end()
    for t, phase in ((50.0, "exited"), (55.0, "started")):
        run.note("process", name="nats", phase=phase, code=-9, wanted=True)["t"] = t
    run.note("readyz", name="gateway-1", sent=53.0, status=200, problems="")["t"] = 53.01


def _untrue_behind_a_cut_cable(run: Run) -> None:
    run.end()
    run.fault("gateway-1", begun=50.0, over=62.0)
    run.note("readyz", name="gateway-1", sent=59.0, status=200, problems="")["t"] = 59.01


def _server_error(run: Run) -> None:
    run.call("view", 500, job=JOB, code="internal")
    run.end()


def _bare_503(run: Run) -> None:
    run.call("submit", 503, code="unavailable", retry_after=None)
    run.end()


def _overdue(run: Run) -> None:
    ended = datetime.fromisoformat(str(run.final["created_at"])) + timedelta(seconds=10 + OVERDUE_S + 1)
    run.final |= {"finished_at": ended.isoformat()}
    run.end()


def _died(run: Run) -> None:
    run.end()
    run.note("process", name="worker-n1", phase="ready")
    run.note("process", name="worker-n1", phase="exited", code=1, wanted=False)


def _stuck(run: Run) -> None:
    run.note("gave_up", n=1, job=JOB, why="no end within 60 s")
    run.end()


CASES: list[tuple[Callable[[Run], None], Kind]] = [
    (_lost, Kind.LOST),
    (_lost_meanwhile, Kind.LOST),
    (_unfinished, Kind.UNFINISHED),
    (_orphan, Kind.UNFINISHED),
    (_duplicated, Kind.DUPLICATED),
    (_repeated_by_the_next_attempt, Kind.DUPLICATED),
    (_older_attempt, Kind.REORDERED),
    (_gap, Kind.GAP),
    (_gap_between_connections, Kind.GAP),
    (_mixed, Kind.MIXED),
    (_longer_than_the_log, Kind.MIXED),
    (_chat_mixed, Kind.MIXED),
    (_chat_not_told, Kind.NOT_TOLD),
    (_wrong_text, Kind.WRONG_TEXT),
    (_end_that_was_none, Kind.EARLY_END),
    (_end_before_it_is_stored, Kind.EARLY_END),
    (_token_after_the_end, Kind.EARLY_END),
    (_final_state_that_changed, Kind.CHANGED),
    (_final_epoch_that_changed, Kind.CHANGED),
    (_cancelled_but_succeeded, Kind.CANCELLED),
    (_two_jobs_for_a_key, Kind.KEY_TWICE),
    (_other_body_taken, Kind.KEY_MISUSED),
    (_ended_twice, Kind.EXECUTED_TWICE),
    (_leaked_slot, Kind.SLOT),
    (_not_ready_at_the_end, Kind.NOT_READY),
    (_never_healed, Kind.NOT_READY),
    (_untrue, Kind.UNTRUE),
    (_untrue_behind_a_cut_cable, Kind.UNTRUE),
    (_server_error, Kind.STATUS),
    (_bare_503, Kind.STATUS),
    (_overdue, Kind.OVERDUE),
    (_died, Kind.DIED),
    (_stuck, Kind.STUCK),
]


@pytest.mark.parametrize(("spoil", "kind"), CASES, ids=[spoil.__name__.strip("_") for spoil, _ in CASES])
def test_every_way_of_failing_is_named(spoil: Callable[[Run], None], kind: Kind) -> None:
    run = Run()
    spoil(run)
    assert kind in run.kinds()


def test_there_is_a_case_for_every_kind() -> None:
    assert {kind for _, kind in CASES} == set(Kind)


def test_a_stale_poll_right_after_the_end_is_allowed_with_replicas_only() -> None:
    run = Run()
    run.stream(whole())
    run.call("view", 200, job=JOB, view=run.final | {"state": "running"}, sent=float(len(run.records)) - 0.9)
    run.end()
    assert run.kinds(replicated=True) == set()
    assert run.kinds() == {Kind.EARLY_END}


def test_who_is_cut_off_has_time_to_notice_and_may_be_unready_as_long_as_it_lasts() -> None:
    run = Run()
    run.end()
    run.fault("gateway-1", begun=50.0, over=90.0)
    for t, status in ((53.0, 200), (60.0, 503), (89.0, 503), (101.0, 503), (102.0, 200)):
        run.note("readyz", name="gateway-1", sent=t, status=status, problems="")["t"] = t
    assert run.kinds() == set()
    assert check(run.records).counts["faults that cut a service off from NATS"] == 1


def test_heal_times_count_from_the_fault_to_the_first_job_submitted_after_it() -> None:
    records: list[Record] = [
        {"what": "call", "t": 1.0, "op": "submit", "gateway": "gateway-1", "sent": 0.9, "status": 202, "job": "before"},
        {
            "what": "fault",
            "t": 2.0,
            "id": 1,
            "role": "gateway",
            "kind": "kill -9",
            "target": "gateway-1",
            "phase": "begun",
        },
        {"what": "ended", "t": 3.0, "job": "before", "state": "succeeded"},
        {"what": "call", "t": 4.5, "op": "submit", "gateway": "gateway-1", "sent": 4.0, "status": 202, "job": "after"},
        {"what": "ended", "t": 7.0, "job": "after", "state": "succeeded"},
    ]
    (row,) = table(heals(records))
    assert (row.count, row.fleet_p50, row.part_p50) == (1, 5.0, 2.5)
