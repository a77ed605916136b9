"""Reads what clients saw and says what must never have happened (DESIGN §7). Pure: records in, violations out.

It knows the public surface only: SSE, JSON views, status codes. An honest ending (`failed` with `interrupted`, say) is no
violation; it is counted. Told means: a `reset`, an error in the stream, a 409 on resuming, or a connection that visibly broke.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

from tests.faults.plan import Deed
from tests.faults.reading import Frame, Line, answer_text, chat_delta, frames, log_line, place, text_of
from tests.faults.records import Record

FINAL = frozenset({"succeeded", "failed", "cancelled", "expired"})
OVERDUE_S = 45.0  # past its deadline a job may run on so long: the router's own 20 s, and outages of the store
HEALED_S = 40.0  # a process that runs, with nothing done to it or to NATS for so long, must be ready
NOTICE_S = 1.5  # a service sees a closed connection at once; this leaves time for the look itself
CUT_NOTICE_S = 8.0  # nobody closes what a cable carried: four pings of a second, and time for a busy machine
SETTLED_S = 1.0  # with replicas a poll may be stale for a moment
MOUTH_OF_JOB = frozenset({"node_failed", "node_busy", "interrupted", "deadline_exceeded", "result_too_large"})
DOCUMENTED_503 = frozenset({"unavailable", "overloaded", "draining", "submit_unconfirmed"})


class Kind(StrEnum):
    LOST = "lost"  # acked, and not there any more
    UNFINISHED = "unfinished"  # acked, and in no final state after everything has come to rest
    DUPLICATED = "duplicated"  # the same bytes twice in one reading
    REORDERED = "reordered"
    GAP = "gap"
    MIXED = "mixed"  # shown text is not what the final log holds there
    NOT_TOLD = "not told"  # a stream that just stops as if it were whole
    WRONG_TEXT = "wrong text"  # not the answer that an undisturbed node gives
    EARLY_END = "early end"  # an end was shown that was not the end
    CHANGED = "changed"  # a final state was another one later
    CANCELLED = "cancelled but not"  # cancelling was acknowledged as final, and the job ended otherwise
    KEY_TWICE = "two jobs for one key"
    KEY_MISUSED = "key with another body"  # not refused
    EXECUTED_TWICE = "ended twice"  # two processes say that they ended the job
    SLOT = "leaked slot"
    NOT_READY = "not ready"
    UNTRUE = "ready is not true"
    STATUS = "undocumented status"
    OVERDUE = "overdue"
    DIED = "died"  # a service ended by itself after it had been ready
    STUCK = "stuck reader"  # the job ended, and its reader was never shown that


class Violation(NamedTuple):
    kind: Kind
    subject: str  # a job, a key, a process
    text: str
    t: float


class Verdict(NamedTuple):
    violations: list[Violation]
    counts: Counter[str]


def check(records: Sequence[Record], *, replicated: bool = False) -> Verdict:
    checker = _Checker(records, replicated=replicated)
    return Verdict(sorted(checker.violations, key=lambda v: v.t), checker.counts)


class _Stream(NamedTuple):
    opened: Record
    closed: Record | None
    frames: list[Frame]

    @property
    def name(self) -> str:
        return f"stream {self.opened['s']} of client {self.opened['n']} at {self.opened['gateway']}"


class _Checker:
    def __init__(self, records: Sequence[Record], *, replicated: bool) -> None:
        self.violations: list[Violation] = []
        self.counts: Counter[str] = Counter()
        self._replicated = replicated
        self._of: dict[str, list[Record]] = defaultdict(list)
        for record in records:
            self._of[record["what"]].append(record)
        self._calls = self._of["call"]
        self._calls_of: dict[str, list[Record]] = defaultdict(list)
        for call in self._calls:
            self._calls_of[call.get("job") or ""].append(call)
        self._audits = {record["job"]: record for record in self._of["audit"]}
        self._streams = _streams(records)
        self._scripts = {record["n"]: record for record in self._of["script"]}
        self._references = self._read_references()
        self._acked = self._find_acked()
        self._erased = self._find_erased()
        self._check_endings()
        self._check_final_views()
        self._check_readings()
        self._check_expected()
        self._check_cancels()
        self._check_keys()
        self._check_statuses()
        self._check_logs()
        self._check_rest()
        self._check_readiness()
        self._check_processes()
        self._count()

    def _say(self, kind: Kind, subject: str, text: str, t: float = 0.0) -> None:
        self.violations.append(Violation(kind, subject, text, t))

    # -- jobs ----------------------------------------------------------------------------------------------------------

    def _find_acked(self) -> dict[str, Record]:
        """Every job that some client was told of, by the call that told it first."""
        acked: dict[str, Record] = {}
        for call in self._calls:
            if call["op"] in ("submit", "chat") and call["status"] in (200, 202) and call.get("job"):
                acked.setdefault(call["job"], call)
        return acked

    def _find_erased(self) -> set[str]:
        """Jobs that their owner deleted when they had ended, or may have: a DELETE without an answer can have arrived."""
        cancels = [call for call in self._calls if call["op"] == "cancel"]
        erased = {call["job"] for call in cancels if (call.get("view") or {}).get("erased")}
        self.counts["erased by their owner"] = len(erased)
        return erased | {call["job"] for call in cancels if call["status"] in (0, 503)}

    def _check_endings(self) -> None:
        for job, call in self._acked.items():
            audit = self._audits.get(job)
            if audit is None:
                continue
            if audit["status"] == 404 and job in self._erased:
                continue
            if audit["status"] == 404:
                self._say(Kind.LOST, job, f"acked at {call['t']:.2f} s by {call['gateway']}, 404 at the end", call["t"])
            elif audit["status"] != 200 or audit["view"]["state"] not in FINAL:
                state = (audit.get("view") or {}).get("state")
                self._say(Kind.UNFINISHED, job, f"at the end status {audit['status']}, state {state}", call["t"])
        for record in self._of["listed"]:
            if record["job"] not in self._acked and record["state"] not in FINAL:
                text = f"its ack never came, and at the end it is {record['state']}"
                self._say(Kind.UNFINISHED, record["job"], text, record["t"])
        for record in self._of["gave_up"]:
            audit = self._audits.get(record.get("job") or "")
            if audit and audit["status"] == 200 and audit["view"]["state"] in FINAL:
                text = f"client {record['n']} gave up ({record['why']}), though the job ended {audit['view']['state']}"
                self._say(Kind.STUCK, record["job"], text, record["t"])

    def _final(self, job: str) -> dict[str, Any] | None:
        audit = self._audits.get(job)
        if audit and audit["status"] == 200 and audit["view"]["state"] in FINAL:
            return dict(audit["view"])
        return None

    def _check_final_views(self) -> None:
        """Final is final: no view may say another state, epoch or text than one that was final before."""
        for call in self._calls:
            view = call.get("view")
            final = self._final(call.get("job") or "")
            if call["status"] != 200 or not view or not final or view.get("state") not in FINAL or view.get("erased"):
                continue
            for name in ("state", "epoch", "finished_at", "result"):
                if name in view and view[name] != final[name]:
                    seen, stands = _short(view[name]), _short(final[name])
                    text = f"{name} was {seen} when it was final, at the end it is {stands}"
                    self._say(Kind.CHANGED, call["job"], text, call["t"])
                    break
        for job, audit in self._audits.items():
            final = self._final(job)
            if final and (over := self._overdue(job, final)) is not None:
                self._say(Kind.OVERDUE, job, f"ended {over:.1f} s after its deadline, {final['state']}", audit["t"])

    def _overdue(self, job: str, view: dict[str, Any]) -> float | None:
        script = self._scripts.get(self._acked[job]["n"]) if job in self._acked else None
        if script is None or not script.get("deadline_s") or not view.get("finished_at"):
            return None
        took = datetime.fromisoformat(view["finished_at"]) - datetime.fromisoformat(view["created_at"])
        over = took.total_seconds() - float(script["deadline_s"])
        return over if over > OVERDUE_S else None

    # -- readings ------------------------------------------------------------------------------------------------------

    def _read_references(self) -> dict[str, list[Line]]:
        """A job's log as a reading from its beginning showed it after its end."""
        references: dict[str, list[Line]] = {}
        for stream in self._streams:
            opened = stream.opened
            if opened["purpose"] == "replay" and not opened["after"]:
                lines = [log_line(frame) for frame in stream.frames if frame.id]
                if lines and lines[-1].last and lines[0].start == 0:
                    references[opened["job"]] = lines
        return references

    def _check_readings(self) -> None:
        lives: dict[tuple[int, str, int], list[_Stream]] = defaultdict(list)
        for stream in self._streams:
            opened = stream.opened
            if opened["purpose"] == "live":
                lives[opened["n"], opened["job"], opened["life"]].append(stream)
            elif opened["dialect"] == "jobs":
                self._check_life([stream])
        for streams in lives.values():
            self._check_life(streams)

    def _check_life(self, streams: list[_Stream]) -> None:
        """One client's reading of one job, over all its connections, until it was told that it is void."""
        shown: list[Line] = []
        for stream in streams:
            if stream.opened["dialect"] == "chat":
                self._check_chat(stream)
                continue
            job = stream.opened["job"]
            after = stream.opened["after"]
            epoch, offset = place(after) if after else (0, 0)
            ended = told = False
            for frame in stream.frames:
                if ended:
                    self._say(Kind.EARLY_END, job, f"{stream.name}: {frame.event} after the end", stream.opened["t"])
                    break
                if frame.event == "reset":
                    epoch, offset, shown = 0, 0, []
                    self.counts["resets told"] += 1
                    continue
                if frame.event == "error":
                    told = True
                    self.counts["errors told in a stream"] += 1
                    continue
                if not frame.id:
                    continue
                line = log_line(frame)
                self._check_order(stream, line, epoch, offset, shown)
                epoch, offset = line.epoch, line.end
                shown.append(line)
                if line.last:
                    ended = True
                    self._check_end(stream, line)
            if ended or (not told and stream is streams[-1]):
                self._compare(stream, shown, ended=ended)

    def _check_order(self, stream: _Stream, line: Line, epoch: int, offset: int, shown: list[Line]) -> None:
        job, t = stream.opened["job"], stream.opened["t"]
        where = f"{stream.name}: {line.epoch}.{line.end} ({line.event}) after {epoch}.{offset}"
        if line.epoch < epoch:
            self._say(Kind.REORDERED, job, f"{where}: an older attempt", t)
        elif line.start > offset:
            self._say(Kind.GAP, job, f"{where}: {line.start - offset} bytes are missing", t)
        elif line.start < offset:
            again = any((line.end, line.data) == (seen.end, seen.data) for seen in shown)
            kind = Kind.DUPLICATED if again or line.end == offset else Kind.REORDERED
            self._say(kind, job, f"{where}: begins {offset - line.start} bytes before", t)

    def _check_end(self, stream: _Stream, line: Line) -> None:
        job = stream.opened["job"]
        final = self._final(job)
        if final and final["state"] != line.event:
            text = f"{stream.name}: ended {line.event}, and the job ended {final['state']}"
            self._say(Kind.EARLY_END, job, text, stream.opened["t"])
        seen_at = stream.closed["t"] if stream.closed else stream.opened["t"]
        patience = SETTLED_S if self._replicated else 0.0
        for call in self._calls_of[job]:
            if call["op"] != "view" or call["status"] != 200:
                continue
            if call["sent"] >= seen_at + patience and call["view"]["state"] not in FINAL:
                text = f"{stream.name} ended {line.event}; {call['sent'] - seen_at:.2f} s later it was {call['view']['state']}"
                self._say(Kind.EARLY_END, job, text, call["t"])
                return

    def _compare(self, stream: _Stream, shown: list[Line], *, ended: bool) -> None:
        """What this reader still takes for true must be what the final log holds. (It is told, or it ends, or it comes back.)"""
        job = stream.opened["job"]
        reference = self._references.get(job)
        if reference is None or not (ended or self._is_last_reading(stream)):
            return
        final = {line.end: line for line in reference}
        for line in shown:
            stands = final.get(line.end)
            if stands is None or stands.data != line.data:
                told = "its end was shown" if ended else "nothing was said"
                text = f"{stream.name}: at {line.epoch}.{line.end} it shows other text than the final log, and {told}"
                self._say(Kind.MIXED, job, text, stream.opened["t"])
                return

    def _is_last_reading(self, stream: _Stream) -> bool:
        """A reader that was cut comes back, and is told then, and so does one whose gateway drained; only who never did, or read
        to the end, is judged by what it has."""
        if stream.closed is None or stream.closed["how"] != "eof":
            return False
        n, job, t = stream.opened["n"], stream.opened["job"], stream.closed["t"]
        return not any(
            call["op"] == "stream" and call["status"] == 409 and call["n"] == n and call["t"] >= t
            for call in self._calls_of[job]
        )

    def _check_chat(self, stream: _Stream) -> None:
        opened, closed = stream.opened, stream.closed
        job, text, done, error = opened["job"], "", False, None
        offset = -1
        reference = {line.end: line for line in self._references.get(job, [])}
        for frame in stream.frames:
            if frame.event == "error":
                error = "error"
                continue
            if frame.data == "[DONE]":
                done = True
                continue
            if done:
                self._say(Kind.EARLY_END, job, f"{stream.name}: a chunk after [DONE]", opened["t"])
            piece, code = chat_delta(frame.data)
            error = code or error
            text += piece
            if frame.id:
                at = place(frame.id).offset
                if at < offset or (at == offset and piece):
                    self._say(Kind.REORDERED, job, f"{stream.name}: {frame.id} after offset {offset}", opened["t"])
                offset = at
                line = reference.get(at)
                if reference and piece and (line is None or text_of(line.data) != piece):
                    if self._was_kept(stream, done=done):
                        what = f"{stream.name}: the chunk {frame.id} is not in the final log"
                        self._say(Kind.MIXED, job, what, opened["t"])
                    reference = {}
        final = self._final(job)
        if done and final:
            if final["state"] != "succeeded":
                self._say(
                    Kind.EARLY_END, job, f"{stream.name}: [DONE], and the job ended {final['state']}", opened["t"]
                )
            elif answer_text(final) != text:
                self._say(Kind.MIXED, job, f"{stream.name}: the text is not that of the result", opened["t"])
        elif not done and error is None and closed and closed["how"] == "eof":
            self._say(Kind.NOT_TOLD, job, f"{stream.name}: ends without [DONE] and without an error", closed["t"])

    def _was_kept(self, stream: _Stream, *, done: bool) -> bool:
        return done or (stream.closed is not None and stream.closed["how"] == "eof")

    def _check_expected(self) -> None:
        for record in self._of["expected"]:
            final = self._final(record["job"])
            if final and final["state"] == "succeeded":
                found = answer_text(final)
                if found is not None and found != record["text"]:
                    at = next((n for n, (a, b) in enumerate(zip(found, record["text"], strict=False)) if a != b), -1)
                    text = (
                        f"differs from the undisturbed answer at character {at} "
                        f"({len(found)} instead of {len(record['text'])}; attempts {final['attempts']}, epoch {final['epoch']})"
                    )
                    self._say(Kind.WRONG_TEXT, record["job"], text, record["t"])

    # -- promises to callers -------------------------------------------------------------------------------------------

    def _check_cancels(self) -> None:
        for call in self._calls:
            if call["op"] != "cancel" or call["status"] != 200 or not call.get("view"):
                continue
            final, said = self._final(call["job"]), call["view"].get("state")
            if said == "cancelled" and not call["view"].get("erased") and final and final["state"] != "cancelled":
                text = f"the cancel was acknowledged as final, and the job ended {final['state']}"
                self._say(Kind.CANCELLED, call["job"], text, call["t"])

    def _check_keys(self) -> None:
        jobs: dict[str, set[str]] = defaultdict(set)
        made: Counter[str] = Counter()
        for call in self._calls:
            key = call.get("key")
            if not key or call["op"] not in ("submit", "chat"):
                continue
            if call.get("other_body"):
                if call["status"] in (200, 202):
                    self._say(Kind.KEY_MISUSED, key, f"another body got status {call['status']}", call["t"])
                continue
            if call["status"] in (200, 202) and call.get("job"):
                jobs[key].add(call["job"])
                made[key] += call["status"] == 202
        for key, ids in jobs.items():
            if len(ids) > 1:
                self._say(Kind.KEY_TWICE, key, f"jobs {', '.join(sorted(ids))}")
            # A repeat whose first ack got lost hears 202 as well: the router may not have touched the folder yet.
            if made[key] > 1:
                self.counts["keys that heard 202 more than once"] += 1

    def _check_statuses(self) -> None:
        for call in self._calls:
            status, code = call["status"], call.get("code") or ""
            if not status:
                self.counts["calls without an answer"] += 1
            elif status == 503 and code in DOCUMENTED_503:
                self.counts[f"503 {code}"] += 1
                if not call.get("retry_after"):
                    self._say(Kind.STATUS, call["op"], "a 503 without Retry-After", call["t"])
            elif status == 429 and code == "deadline_unmeetable":  # predicted to end too late: nothing was stored
                self.counts["429 deadline_unmeetable"] += 1
                if not call.get("retry_after"):
                    self._say(Kind.STATUS, call["op"], "a 429 without Retry-After", call["t"])
            elif status == 409 and code == "position_lost":
                self.counts["resumes answered by 409 position_lost"] += 1
            elif call.get("other_body") and status == 422:
                self.counts["422 for another body"] += 1
            elif call["op"] == "chat" and (code in MOUTH_OF_JOB or (status, code) == (499, "cancelled")):
                self.counts[f"chat answered {status} {code}"] += 1
            elif status == 404 and not call.get("known", True):
                self.counts["404 for a submit that was not confirmed"] += 1
            elif status == 404 and call.get("job") in self._erased:
                self.counts["404 for an erased job"] += 1
            elif status == 404 and call.get("job") in self._acked:
                self._say(Kind.LOST, call["job"], f"{call['op']} at {call['gateway']} answered 404", call["t"])
            elif status >= 400:
                text = f"{call['op']} at {call['gateway']} answered {status} {code}"
                self._say(Kind.STATUS, call.get("job") or f"client {call['n']}", text, call["t"])

    # -- the fleet -----------------------------------------------------------------------------------------------------

    def _check_logs(self) -> None:
        said: dict[str, list[Record]] = defaultdict(list)
        for record in self._of["logged"]:
            said[record["job"]].append(record)
        for job, records in said.items():
            if len(records) > 1:
                told = "; ".join(f"{r['process']}: {r['state']} in epoch {r['epoch']}" for r in records)
                self._say(Kind.EXECUTED_TWICE, job, told, records[-1]["t"])

    def _check_rest(self) -> None:
        for record in self._of["quiet"]:
            if record["held"]:
                self._say(Kind.SLOT, record["place"], f"still held at rest: {record['held']}", record["t"])

    def _check_readiness(self) -> None:
        samples: dict[str, list[Record]] = defaultdict(list)
        for record in self._of["readyz"]:
            samples[record["name"]].append(record)
        disturbed = _intervals(self._of["fault"])
        nats_down = [] if self._replicated else _down(self._of["process"], "nats")
        cuts = _intervals(record for record in self._of["fault"] if record["kind"].startswith(Deed.CUT))
        for name, seen in samples.items():
            # One question without an answer is a busy machine, not a process that is not ready.
            if all(sample["status"] != 200 for sample in (seen[-2:] if seen[-1]["status"] == 0 else seen[-1:])):
                text = f"status {seen[-1]['status']} at the end: {seen[-1].get('problems')}"
                self._say(Kind.NOT_READY, name, text, seen[-1]["t"])
            gone = [(a + NOTICE_S, b) for a, b in nats_down]
            gone += [(a + CUT_NOTICE_S, b) for a, b, target in cuts if target == name]
            for sample in seen:
                if sample["status"] == 200 and any(a <= sample["sent"] and sample["t"] <= b for a, b in gone):
                    self._say(Kind.UNTRUE, name, "ready while NATS was gone, or out of its reach", sample["t"])
                    break
            self._check_healing(name, seen, disturbed)

    def _check_healing(self, name: str, seen: list[Record], disturbed: list[tuple[float, float, str]]) -> None:
        since: float | None = None
        for sample in seen:
            touched = any(
                a <= sample["t"] <= b for a, b, target in disturbed if target == name or target.startswith("nats")
            )
            if sample["status"] == 200 or touched:
                since = None
                continue
            since = sample["t"] if since is None else since
            if sample["t"] - since > HEALED_S:
                text = f"not ready for {HEALED_S:g} s with nothing wrong around it: {sample.get('problems')}"
                self._say(Kind.NOT_READY, name, text, sample["t"])
                return

    def _check_processes(self) -> None:
        was_ready: set[str] = set()
        for record in self._of["process"]:
            name = record["name"]
            if record["phase"] == "ready":
                was_ready.add(name)
            elif record["phase"] == "exited":
                if not record["wanted"]:
                    self.counts["processes that ended by themselves"] += 1
                    if name in was_ready and not name.startswith("sim-"):  # those are told to
                        self._say(Kind.DIED, name, f"ended by itself with {record['code']}", record["t"])
                was_ready.discard(name)

    # -- counts --------------------------------------------------------------------------------------------------------

    def _count(self) -> None:
        self.counts["jobs acknowledged"] = len(self._acked)
        self.counts["jobs audited"] = len(self._audits)
        for job in self._audits:
            final = self._final(job)
            if final is None:
                continue
            self.counts[f"ended {final['state']}"] += 1
            if code := (final.get("error") or {}).get("code"):
                self.counts[f"ended {final['state']}: {code}"] += 1
            if final["attempts"] > 1:
                self.counts["took more than one attempt"] += 1
        live = [stream for stream in self._streams if stream.opened["purpose"] == "live"]
        self.counts["live streams"] = len(live)
        self.counts["live streams that resumed"] = sum(1 for stream in live if stream.opened["after"])
        self.counts["live streams cut by the client"] = sum(
            1 for stream in live if stream.closed and stream.closed["how"] == "cut"
        )
        self.counts["live streams broken from outside"] = sum(
            1 for stream in live if stream.closed and stream.closed["how"] == "broken"
        )
        self.counts["log events shown live"] = sum(sum(1 for f in stream.frames if f.id) for stream in live)
        crossed = sum(1 for stream in live if len({f.id.partition(".")[0] for f in stream.frames if f.id}) > 1)
        self.counts["live streams that went over to another attempt"] = crossed
        begun = [record for record in self._of["fault"] if record["phase"] == "begun"]
        self.counts["faults"] = len(begun)
        self.counts["faults that cut a service off from NATS"] = sum(
            1 for record in begun if record["kind"].startswith((Deed.CUT, Deed.DROP))
        )
        self.counts["texts compared with an undisturbed node's"] = len(self._of["expected"])


def _streams(records: Iterable[Record]) -> list[_Stream]:
    opened: dict[int, Record] = {}
    closed: dict[int, Record] = {}
    pieces: dict[int, list[str]] = defaultdict(list)
    for record in records:
        match record["what"]:
            case "opened":
                opened[record["s"]] = record
            case "bytes":
                pieces[record["s"]].append(record["data"])
            case "closed":
                closed[record["s"]] = record
    return [_Stream(o, closed.get(s), frames("".join(pieces[s]).encode("latin-1"))) for s, o in opened.items()]


def _intervals(faults: Iterable[Record]) -> list[tuple[float, float, str]]:
    """(begin, end, target) of each fault; one that never was over lasts for ever."""
    begun: dict[int, Record] = {}
    ended: dict[int, float] = {}
    for record in faults:
        if record["phase"] == "begun":
            begun[record["id"]] = record
        else:
            ended[record["id"]] = record["t"]
    return [(record["t"], ended.get(id_, float("inf")), record["target"]) for id_, record in begun.items()]


def _down(processes: Iterable[Record], name: str) -> list[tuple[float, float]]:
    spans, since = [], None
    for record in processes:
        if record["name"] != name:
            continue
        if record["phase"] == "exited":
            since = record["t"]
        elif record["phase"] == "started" and since is not None:
            spans.append((since, record["t"]))
            since = None
    return spans


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{len(text)} characters"
