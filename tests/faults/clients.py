"""Clients that live through it: each plays one script, retries as a good client does, and writes down all it sees."""

import asyncio
import contextlib
import json
import random
from typing import Any

import aiohttp

from tests.faults.plan import EMBEDDER, Mode, Script
from tests.faults.reading import frames
from tests.faults.records import Book, Record

FINAL = frozenset({"succeeded", "failed", "cancelled", "expired"})
CALL_S = 15.0
RETRY_S = 0.25
NAMES = ("gateway-1", "gateway-2")


class GaveUp(Exception):
    pass


class Client:
    """`patience_s` bounds the whole life of a script; it ends with the job's end or with a `gave_up`."""

    def __init__(
        self,
        script: Script,
        gateways: list[str],
        api_key: str,
        http: aiohttp.ClientSession,
        book: Book,
        *,
        patience_s: float,
    ) -> None:
        self.script = script
        self._gateways, self._http, self._book, self._patience_s = gateways, http, book, patience_s
        self._headers = {"Authorization": f"Bearer {api_key}"}
        self._turn = script.first
        self._draw = random.Random(f"client {script.n} {script.prompt}")
        self._life = 0
        self._job: str | None = None
        self._more_time_s = 0.0  # beyond the script's deadline, when that was refused as too short
        self._ended = False

    async def play(self) -> None:
        s = self.script
        self._book.note(
            "script",
            n=s.n,
            mode=str(s.mode),
            model=s.model,
            chat=s.chat,
            tokens=s.tokens,
            deadline_s=s.deadline_s,
            key=s.key,
        )
        try:
            async with asyncio.timeout(self._patience_s):
                match s.mode:
                    case Mode.CHAT | Mode.DETACHED:
                        await self._play_chat()
                    case Mode.CANCEL:
                        await self._play_cancel()
                    case Mode.KEYED:
                        await self._play_keyed()
                    case Mode.STREAM | Mode.SLOW:
                        await self._follow(await self._submit())
                    case _:
                        await self._poll(await self._submit())
        except TimeoutError:
            self._book.note("gave_up", n=s.n, job=self._job, why=f"no end within {self._patience_s:g} s")
        except GaveUp as error:
            self._book.note("gave_up", n=s.n, job=self._job, why=str(error))

    # -- scripts -------------------------------------------------------------------------------------------------------

    async def _play_cancel(self) -> None:
        job = await self._submit()
        cancelling = asyncio.create_task(self._cancel_later(job))
        try:
            await (self._follow(job) if self.script.n % 2 else self._poll(job))
        finally:
            cancelling.cancel()
            await asyncio.gather(cancelling, return_exceptions=True)

    async def _cancel_later(self, job: str) -> None:
        await asyncio.sleep(self.script.cancel_after_s)
        while not self._ended:
            call = await self._call("cancel", "DELETE", f"/jobs/{job}", job=job)
            if call["status"] in (200, 202, 404):
                return
            await asyncio.sleep(RETRY_S)

    async def _play_keyed(self) -> None:
        """The same key at both gateways at once, again after the end, and once with another body."""
        both = await asyncio.gather(self._submit(), self._submit())
        await self._follow(both[0])
        await self._submit()
        body = self._body() | {"options": {"seed": 5}}
        await self._call("submit", "POST", "/jobs", body=body, key=self.script.key, other_body=True)

    async def _play_chat(self) -> None:
        s = self.script
        detached = s.mode is Mode.DETACHED
        body = {"model": s.model, "messages": [{"role": "user", "content": s.prompt}], "stream": True}
        headers = self._headers | ({"Arriero-Detach": "true"} if detached else {})
        headers |= {"Idempotency-Key": s.key} if s.key else {}
        cut = s.cuts[0] if s.cuts else None
        while True:
            gateway = self._next()
            sent = self._book.now
            url = f"{self._gateways[gateway]}/v1/chat/completions"
            try:
                async with self._http.post(url, json=body, headers=headers, timeout=self._stream_timeout()) as answer:
                    job = answer.headers.get("Arriero-Job-Id")
                    facts = {"job": job} | ({} if answer.status == 200 else await _refusal(answer))
                    self._note_call("chat", gateway, sent, answer, key=s.key, **facts)
                    if answer.status == 200:
                        assert job
                        self._job = job
                        last, done = await self._read(answer, gateway, job, "chat", after="", cut=cut)
                        break
                    if answer.status not in (502, 503, 504):
                        raise GaveUp(f"chat answered {answer.status}")
                    if facts.get("code") == "deadline_exceeded":
                        return
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                self._note_call("chat", gateway, sent, None, error=type(error).__name__, key=s.key)
                if not s.key:
                    return  # who sends it again asks for another answer
            await asyncio.sleep(RETRY_S)
        if done:
            await self._view(job)
            await self._replay(job)
        elif detached or s.key:
            await self._follow(job, after=last.partition("-")[0])

    # -- submit and poll -----------------------------------------------------------------------------------------------

    def _body(self) -> dict[str, Any]:
        s = self.script
        if s.model == EMBEDDER:
            asked: dict[str, Any] = {"input": [s.prompt, "and again"]}
        elif s.chat:
            asked = {"messages": [{"role": "user", "content": s.prompt}]}
        else:
            asked = {"prompt": s.prompt}
        return {"model": s.model, "priority": s.priority, "deadline_s": s.deadline_s + self._more_time_s, **asked}

    async def _submit(self) -> str:
        """The id of an acked job, whatever it takes."""
        while True:
            call = await self._call("submit", "POST", "/jobs", body=self._body(), key=self.script.key)
            if call["status"] in (200, 202):
                self._job = str(call["job"])
                return self._job
            if call["status"] == 503 and call.get("code") == "submit_unconfirmed" and call.get("job"):
                found = await self._call("view", "GET", f"/jobs/{call['job']}", job=call["job"], known=False)
                if found["status"] == 200:
                    self._job = str(call["job"])
                    return self._job
            elif call.get("code") == "deadline_unmeetable":
                self._more_time_s += 2.0
            elif call["status"] not in (0, 503):
                raise GaveUp(f"submit answered {call['status']} {call.get('code')}")
            await asyncio.sleep(RETRY_S)

    async def _poll(self, job: str) -> None:
        while True:
            wait = self._draw.choice((0, 0.5, 2, 5))
            call = await self._call("view", "GET", f"/jobs/{job}", job=job, params={"wait": str(wait)})
            if call["status"] == 200 and call["view"]["state"] in FINAL:
                self._note_end(job, call["view"]["state"])
                if self.script.mode in (Mode.CANCEL, Mode.DEADLINE):
                    await self._replay(job)
                return
            if call["status"] == 404:
                raise GaveUp("the job is not found")
            await asyncio.sleep(RETRY_S if call["status"] != 200 else 0.05)

    async def _view(self, job: str) -> None:
        """Until it says what the stream has said; the checker judges how long that took."""
        while True:
            call = await self._call("view", "GET", f"/jobs/{job}", job=job)
            if call["status"] == 404 or (call["status"] == 200 and call["view"]["state"] in FINAL):
                return
            await asyncio.sleep(RETRY_S)

    # -- streams -------------------------------------------------------------------------------------------------------

    async def _follow(self, job: str, *, after: str = "") -> None:
        """Read until the end, over as many connections as it takes, each at another gateway."""
        cuts = list(self.script.cuts)
        while True:
            outcome = await self._open(job, after=after, cut=cuts.pop() if cuts else None)
            if outcome is None:  # told that the place is lost
                self._life += 1
                after = ""
                continue
            after, done = outcome
            if done:
                break
            await asyncio.sleep(self._draw.uniform(0, RETRY_S))
        await self._view(job)
        await self._replay(job)

    async def _open(self, job: str, *, after: str, cut: int | None) -> tuple[str, bool] | None:
        """(last id, ended), or None for 409."""
        gateway = self._next()
        sent = self._book.now
        params = {"reset": "1"} if self.script.takes_reset else {}
        headers = self._headers | ({"Last-Event-ID": after} if after else {})
        url = f"{self._gateways[gateway]}/jobs/{job}/stream"
        try:
            async with self._http.get(url, params=params, headers=headers, timeout=self._stream_timeout()) as answer:
                facts = {} if answer.status == 200 else await _refusal(answer)
                self._note_call("stream", gateway, sent, answer, job=job, **facts)
                if answer.status == 200:
                    return await self._read(answer, gateway, job, "jobs", after=after, cut=cut)
                if answer.status == 409:
                    return None
                if answer.status != 503:  # also 404, when it was this client that erased the job
                    raise GaveUp(f"the stream answered {answer.status}")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._note_call("stream", gateway, sent, None, job=job, error=type(error).__name__)
        await asyncio.sleep(RETRY_S)
        return after, False

    async def _read(
        self,
        answer: aiohttp.ClientResponse,
        gateway: int,
        job: str,
        dialect: str,
        *,
        after: str,
        cut: int | None,
        purpose: str = "live",
    ) -> tuple[str, bool]:
        """(id of the last whole event, ended)."""
        s = self._book.new_stream()
        life = self._life
        self._book.note(
            "opened", s=s, n=self.script.n, job=job, gateway=NAMES[gateway], dialect=dialect, purpose=purpose, after=after,
            life=life,
        )  # fmt: skip
        raw, seen, last, done = b"", 0, after, False
        how, why = "eof", ""
        try:
            async for piece in answer.content.iter_any():
                self._book.note("bytes", s=s, data=piece.decode("latin-1"))
                raw += piece
                whole = raw.rfind(b"\n\n") + 2
                if whole < 2:
                    continue
                for frame in frames(raw[:whole]):
                    last = frame.id or last
                    seen += 1
                    done = done or (frame.data == "[DONE]" if dialect == "chat" else frame.event in FINAL)
                    if done and not self._ended and purpose == "live":
                        self._note_end(job, frame.event if dialect == "jobs" else "succeeded")
                raw = raw[whole:]
                if cut is not None and seen >= cut and not done:
                    how = "cut"
                    break
                if self.script.pause_s and purpose == "live":
                    await asyncio.sleep(self.script.pause_s)
        except asyncio.CancelledError:
            self._book.note("closed", s=s, how="cut", error="gave up")
            raise
        except TimeoutError:
            how, why = "cut", "no byte for long"
        except (aiohttp.ClientError, OSError) as error:
            how, why = "broken", type(error).__name__
        if how == "cut":
            answer.close()
        self._book.note("closed", s=s, how=how, error=why)
        return last, done

    async def _replay(self, job: str) -> None:
        """The whole log after the end, from the beginning."""
        while True:
            gateway = self._next()
            url = f"{self._gateways[gateway]}/jobs/{job}/stream"
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
                async with self._http.get(url, headers=self._headers, timeout=self._stream_timeout()) as answer:
                    if answer.status == 200:
                        _, done = await self._read(answer, gateway, job, "jobs", after="", cut=None, purpose="replay")
                        if done:
                            return
                    elif answer.status != 503:
                        self._note_call("stream", gateway, self._book.now, answer, job=job, **await _refusal(answer))
                        return
            await asyncio.sleep(RETRY_S)

    # -- support -------------------------------------------------------------------------------------------------------

    async def _call(
        self,
        op: str,
        method: str,
        path: str,
        *,
        body: Any = None,
        params: dict[str, str] | None = None,
        key: str | None = None,
        **facts: Any,
    ) -> Record:
        gateway = self._next()
        sent = self._book.now
        headers = self._headers | ({"Idempotency-Key": key} if key else {})
        timeout = aiohttp.ClientTimeout(total=CALL_S, connect=3)
        try:
            async with self._http.request(
                method, self._gateways[gateway] + path, json=body, params=params, headers=headers, timeout=timeout
            ) as answer:
                if answer.status >= 400:
                    return self._note_call(op, gateway, sent, answer, key=key, **(await _refusal(answer) | facts))
                view = await answer.json()
                facts.setdefault("job", view.get("id"))
                return self._note_call(op, gateway, sent, answer, key=key, view=view, **facts)
        except asyncio.CancelledError:  # it may have done its work all the same
            self._note_call(op, gateway, sent, None, error="given up", key=key, **facts)
            raise
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return self._note_call(op, gateway, sent, None, error=type(error).__name__, key=key, **facts)

    def _note_call(
        self, op: str, gateway: int, sent: float, answer: aiohttp.ClientResponse | None, **facts: Any
    ) -> Record:
        retry_after = answer.headers.get("Retry-After") if answer is not None else None
        status = answer.status if answer is not None else 0
        return self._book.note(
            "call",
            n=self.script.n,
            op=op,
            gateway=NAMES[gateway],
            sent=sent,
            status=status,
            retry_after=retry_after,
            **facts,
        )

    def _note_end(self, job: str, state: str) -> None:
        if not self._ended:
            self._ended = True
            self._book.note("ended", n=self.script.n, job=job, state=state)

    def _next(self) -> int:
        self._turn += 1
        return self._turn % len(self._gateways)

    def _stream_timeout(self) -> aiohttp.ClientTimeout:
        return aiohttp.ClientTimeout(total=None, connect=3, sock_read=self.script.patience_s)


async def _refusal(answer: aiohttp.ClientResponse) -> dict[str, Any]:
    """Code and job of a problem, in either dialect."""
    try:
        body = json.loads(await answer.text())
    except ValueError:
        return {"code": ""}
    body = body.get("error", body) if isinstance(body, dict) else {}
    found = {"code": str(body.get("code", ""))}
    return found | ({"job": body["id"]} if "id" in body else {})
