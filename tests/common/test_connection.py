"""The connection to NATS against a real server, and each of nats-py's pitfalls that could reach us (ADR 3)."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from libs.common.bus import link
from libs.common.bus.connection import Bus
from libs.common.bus.failures import (
    Away,
    BusError,
    Conflict,
    Full,
    NoResponders,
    Refused,
    Unconfirmed,
    refusal,
)
from libs.common.bus.link import Message
from libs.common.contracts.headers import EXPECTED_SEQUENCE, EXPECTED_SUBJECT
from tests.support.nats_server import NatsServer, connected, nats_server
from tests.support.waiting import eventually

AT_ONCE_S = 10.0  # far above what a busy machine needs for an answer,
LONG_S = 60.0  # and far below what is waited where "at once" is asserted
NEW = "jobs.acme.job_1.new"


@pytest.fixture
async def other(nats: NatsServer) -> AsyncIterator[Bus]:
    async with connected(nats) as connected_bus:
        yield connected_bus


async def echo(message: Message) -> bytes:
    return message.data


async def away(bus: Bus, nats: NatsServer) -> None:
    await nats.kill()
    await eventually(lambda: not bus.connected)


async def back(bus: Bus, nats: NatsServer) -> None:
    before = bus.connections
    await nats.start()
    await eventually(lambda: bus.connected and bus.connections > before)


async def stored_in(bus: Bus, stream: str = "JOBS") -> int:
    count: int = (await bus.api(f"STREAM.INFO.{stream}"))["state"]["messages"]
    return count


async def small_stream(bus: Bus, **limits: Any) -> None:
    config = {"name": "SMALL", "subjects": ["small.>"], "storage": "file", "discard": "new", **limits}
    await bus.api("STREAM.CREATE.SMALL", config)


def events(logs: list[Any], name: str) -> list[Any]:
    return [entry for entry in logs if entry["event"] == name]


# -- healing -------------------------------------------------------------------------------------------------------------


async def test_a_reader_killed_by_a_cancelled_flush_is_noticed_and_the_connection_made_anew(bus: Bus) -> None:
    """Pitfall P1: nats-py itself says "connected" and hears nothing for minutes."""
    heard: list[bytes] = []
    await bus.subscribe("news", lambda message: heard.append(message.data))
    reader = bus._client._reading_task
    flushing = asyncio.create_task(bus._client.flush())
    await asyncio.sleep(0)  # its ping is on its way
    flushing.cancel()
    await eventually(reader.done)
    assert bus.connected
    with capture_logs() as logs:
        await eventually(lambda: bus.connections == 2)
    assert events(logs, "bus.reader_dead")
    await bus.publish("news", b"after")
    await eventually(lambda: heard == [b"after"])
    assert (await bus.append(NEW)).sequence == 1


async def test_a_dead_flusher_is_noticed_too(bus: Bus) -> None:
    bus._client._flusher_task.cancel()
    await eventually(lambda: bus.connections == 2)
    assert (await bus.append(NEW)).sequence == 1


async def test_a_connection_that_nobody_tries_to_renew_any_more_is_lost(
    bus: Bus, nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that nats-py does not expect ends its reconnecting in silence."""

    async def broken() -> None:
        raise ValueError("not foreseen")

    monkeypatch.setattr(bus._client, "_process_connect_init", broken)
    await nats.kill()
    await nats.start()
    with capture_logs() as logs:
        await asyncio.wait_for(bus.lost.wait(), 30)
    assert events(logs, "bus.reconnecting_dead")
    with pytest.raises(ValueError, match="not foreseen"):  # its exception is taken, or Python warns of it
        await bus._client._reconnection_task


async def test_after_a_restart_of_the_server_subscriptions_requests_and_writes_work_again(
    bus: Bus, nats: NatsServer
) -> None:
    told: list[int] = []
    bus.on_reconnect(lambda: told.append(bus.connections))
    await bus.serve("echo", echo)
    await bus.append(NEW, b"before")
    connected_at = bus.connected_at
    await away(bus, nats)
    await back(bus, nats)
    assert told == [2]
    assert bus.connected_at > connected_at
    assert await bus.request("echo", b"x") == b"x"
    stored = await bus.last("JOBS", NEW)
    assert stored is not None
    assert stored.data == b"before"
    assert not bus.lost.is_set()


async def test_a_callback_that_raises_keeps_nobody_else_from_hearing_of_the_reconnect(
    bus: Bus, nats: NatsServer
) -> None:
    told = []

    def broken() -> None:
        raise RuntimeError("mine")

    bus.on_reconnect(broken)
    bus.on_reconnect(lambda: told.append(1))
    with capture_logs() as logs:
        await away(bus, nats)
        await back(bus, nats)
        await eventually(lambda: told)
    assert events(logs, "bus.callback_failed")


async def test_an_error_that_comes_with_every_attempt_is_logged_once(bus: Bus) -> None:
    with capture_logs() as logs:
        for _ in range(3):
            await bus._on_error(OSError("refused"))
        await bus._on_error(OSError("reset"))
        await bus._on_error(TimeoutError())
    assert [entry["error"] for entry in events(logs, "bus.error")] == ["refused", "reset", "TimeoutError"]


# -- the end of a connection ---------------------------------------------------------------------------------------------

REVOCABLE = 'accounts { A { jetstream: enabled, users: [{user: "keeper", password: "k"}%s] } }\n'
SERVICE_USER = ', {user: "service", password: "s"}'


async def test_a_user_revoked_by_a_reload_of_the_server_makes_the_connection_lost(tmp_path: Path) -> None:
    """Pitfall P8, the other way round: nats-py would try for ever, four times a second."""
    config = REVOCABLE % SERVICE_USER
    async with (
        nats_server(tmp_path / "nats", provision=False, config=config) as server,
        connected(server, "service", "s") as bus,
    ):
        assert not bus.lost.is_set()
        server.reload(REVOCABLE % "")
        await asyncio.wait_for(bus.lost.wait(), 30)
        assert not bus.connected


async def test_an_error_that_makes_nats_py_close_for_good_makes_the_connection_lost(bus: Bus) -> None:
    """Pitfall P8: most errors of a server do, endless reconnects or not."""
    await bus._client._process_err("'maximum connections exceeded'")
    await asyncio.wait_for(bus.lost.wait(), 30)
    assert not bus.connected


async def test_a_server_that_accepts_but_says_nothing_costs_no_sockets(bus: Bus, nats: NatsServer) -> None:
    """nats-py leaves the socket of a failed attempt open; a server frozen for an hour would use up all descriptors."""
    came, left = 0, 0

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal came, left
        came += 1
        await reader.read()
        left += 1
        writer.close()

    await away(bus, nats)
    bus._client.options["connect_timeout"] = 0.05
    server = await asyncio.start_server(mute, "127.0.0.1", nats.port)
    await eventually(lambda: came >= 3 and left >= came - 1)
    server.close()
    await eventually(lambda: came == left)
    await server.wait_closed()
    bus._client.options["connect_timeout"] = 2
    await back(bus, nats)


async def test_on_a_closed_connection_everything_fails_at_once_and_as_our_own_failure(bus: Bus) -> None:
    subscription = await bus.subscribe("news", lambda _: None)
    await bus._client.close()
    assert bus.lost.is_set()
    attempts: list[Callable[[], Any]] = [
        lambda: bus.request("x", timeout=LONG_S),
        lambda: bus.append(NEW, timeout=LONG_S),
        lambda: bus.api("INFO", timeout=LONG_S),
        lambda: bus.last("JOBS", NEW),
        lambda: bus.last_of_each("JOBS", [NEW], timeout=LONG_S),
        lambda: bus.from_sequence("JOBS", NEW, timeout=LONG_S),
        lambda: bus.ask_all("x", b"", within=LONG_S),
        lambda: bus.subscribe("x", lambda _: None),
        lambda: bus.serve("x", echo),
    ]
    async with asyncio.timeout(AT_ONCE_S):
        for attempt in attempts:
            with pytest.raises(Away):
                await attempt()
        await bus.publish("x")
        await subscription.stop()
        await subscription.stop()


async def test_closing_while_requests_wait_and_handlers_run_neither_hangs_nor_warns(nats: NatsServer) -> None:
    bus, began = Bus(""), asyncio.Event()
    await bus.open([nats.url])

    async def silent(_: Message) -> None:
        began.set()
        await asyncio.Event().wait()

    await bus.serve("silent", silent)
    waiting = [asyncio.create_task(bus.request("silent", timeout=1)) for _ in range(20)]
    waiting.append(asyncio.create_task(bus.ask_all("silent", b"", within=1)))  # type: ignore[arg-type]
    await began.wait()
    async with asyncio.timeout(AT_ONCE_S):
        await bus.close()
    async with asyncio.timeout(AT_ONCE_S):
        ends = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(end, Away) or end == [] for end in ends)
    assert not bus._handlers
    await bus.close()


async def test_closing_while_the_server_is_away_ends_soon(nats: NatsServer) -> None:
    bus = Bus("")
    await bus.open([nats.url])
    await away(bus, nats)
    async with asyncio.timeout(AT_ONCE_S):
        await bus.close()
    assert bus.lost.is_set()


async def test_a_first_connect_gives_up_with_one_sentence_that_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pitfall P8: with endless reconnects nats-py would never return."""
    monkeypatch.setattr(link, "FIRST_CONNECT_S", 0.4)
    bus = Bus("worker-a")
    async with asyncio.timeout(AT_ONCE_S):
        with pytest.raises(Away) as refused:
            await bus.open(["nats://me:hunter2@127.0.0.1:1"], password="hunter2")
    said = str(refused.value)
    assert "cannot reach NATS at nats://127.0.0.1:1 as user worker-a: " in said
    assert "127.0.0.1" in said.rpartition("worker-a: ")[2]  # connect call failed
    assert "hunter2" not in said


async def test_a_wrong_password_is_named_as_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = REVOCABLE % SERVICE_USER
    async with nats_server(tmp_path / "nats", provision=False, config=config) as server:
        monkeypatch.setattr(link, "FIRST_CONNECT_S", 3.0)  # all of it is waited, and one attempt must fit in
        with pytest.raises(Away, match=r"as user service: .*Authorization Violation"):
            await Bus("service").open([server.url], password="wrong")


# -- while NATS is away, and when it does not answer ------------------------------------------------------------------------


async def test_a_write_while_disconnected_fails_at_once_and_is_not_stored_later(bus: Bus, nats: NatsServer) -> None:
    """Pitfall P7: nats-py buffers it and delivers it after the caller has given up."""
    await away(bus, nats)
    async with asyncio.timeout(AT_ONCE_S):
        with pytest.raises(Away) as failure:
            await bus.append(NEW, b"late", timeout=LONG_S)
    assert not isinstance(failure.value, Unconfirmed)
    await back(bus, nats)
    await bus.append("jobs.acme.job_2.new")
    assert await stored_in(bus) == 1


async def test_questions_while_disconnected_fail_at_once_and_are_not_asked_later(bus: Bus, nats: NatsServer) -> None:
    heard: list[str] = []
    await bus.subscribe("ask.>", lambda message: heard.append(message.subject))
    await away(bus, nats)
    async with asyncio.timeout(AT_ONCE_S):
        for attempt in (
            bus.request("ask.one", timeout=LONG_S),
            bus.ask_all("ask.all", b"", within=LONG_S),
            bus.api("INFO", timeout=LONG_S),
            bus.at("JOBS", 1),
            bus.last_of_each("JOBS", [NEW], timeout=LONG_S),
            bus.from_sequence("JOBS", NEW, timeout=LONG_S),
        ):
            with pytest.raises(Away):
                await attempt
    await back(bus, nats)
    await bus.publish("ask.after")
    await eventually(lambda: "ask.after" in heard)
    assert heard == ["ask.after"]


async def test_a_write_whose_ack_does_not_come_is_unconfirmed_and_may_have_been_stored(
    bus: Bus, nats: NatsServer
) -> None:
    nats.freeze()
    try:
        with pytest.raises(Unconfirmed, match=NEW):
            await bus.append(NEW, b"perhaps", timeout=0.2)
    finally:
        nats.thaw()
    await eventually(lambda: stored_in(bus))
    stored = await bus.last("JOBS", NEW)
    assert stored is not None
    assert stored.data == b"perhaps"


async def test_a_question_that_nobody_answers_in_time_is_away(bus: Bus, nats: NatsServer) -> None:
    async def silent(_: Message) -> None:
        return None

    await bus.serve("silent", silent)
    with pytest.raises(Away, match="silent"):
        await bus.request("silent", timeout=0.1)
    nats.freeze()
    try:
        with pytest.raises(Away, match="direct get on JOBS"):
            await bus.last_of_each("JOBS", [NEW], timeout=0.1)
    finally:
        nats.thaw()


async def test_where_nobody_listens_the_failure_comes_at_once(bus: Bus) -> None:
    async with asyncio.timeout(AT_ONCE_S):
        with pytest.raises(NoResponders, match="nobody"):
            await bus.request("nobody", timeout=LONG_S)
        with pytest.raises(NoResponders, match=r"nobody\.stores"):
            await bus.append("nobody.stores.this", timeout=LONG_S)
        with pytest.raises(NoResponders, match="NOPE"):
            await bus.last_of_each("NOPE", ["a"], timeout=LONG_S)
        assert await bus.ask_all("nobody", b"", within=LONG_S) == []


async def test_a_cancelled_request_ends_also_when_its_answer_has_just_come(bus: Bus) -> None:
    """asyncio.wait_for, before Python 3.12, returns the answer and forgets the cancellation."""
    asker: asyncio.Task[bytes] | None = None
    original = bus._client._request_sub_callback

    async def answer_and_cancel(msg: Any) -> None:
        await original(msg)
        assert asker
        asker.cancel()

    [inbox] = [s for s in bus._client._subs.values() if s._cb == original]
    inbox._cb = answer_and_cancel
    await bus.serve("echo", echo)
    asker = asyncio.create_task(bus.request("echo"))
    with pytest.raises(asyncio.CancelledError):
        await asker
    inbox._cb = original


# -- what the server refuses ---------------------------------------------------------------------------------------------


async def test_a_compare_and_set_that_lost_is_a_conflict(bus: Bus) -> None:
    """10071, on the subject itself and on a filter over a whole folder."""
    first = await bus.append(NEW, headers={EXPECTED_SEQUENCE: "0"})
    assert first.stream == "JOBS"
    folder = {EXPECTED_SUBJECT: "jobs.acme.job_1.*"}
    for headers in ({EXPECTED_SEQUENCE: "0"}, {EXPECTED_SEQUENCE: "7"}, {EXPECTED_SEQUENCE: "0", **folder}):
        with pytest.raises(Conflict):
            await bus.append(NEW, headers=headers)
    active = await bus.append("jobs.acme.job_1.active", headers={EXPECTED_SEQUENCE: str(first.sequence), **folder})
    assert active.sequence == 2


@pytest.mark.parametrize("limits", [{"max_msgs": 2}, {"max_bytes": 2500}], ids=["messages", "bytes"])
async def test_a_stream_at_its_limit_is_full(bus: Bus, limits: dict[str, int]) -> None:
    await small_stream(bus, **limits)
    await bus.append("small.1", b"x" * 1000)
    await bus.append("small.2", b"x" * 1000)
    with pytest.raises(Full):
        await bus.append("small.3", b"x" * 1000)


async def test_a_server_whose_storage_is_used_up_is_full_too(tmp_path: Path) -> None:
    config = "jetstream { max_file_store: 1MB }\n"
    async with (
        nats_server(tmp_path / "nats", provision=False, config=config) as server,
        connected(server) as bus,
    ):
        await small_stream(bus)
        with pytest.raises(Full):
            for n in range(50):
                await bus.append(f"small.{n}", b"x" * 60_000)


async def test_what_the_server_refuses_otherwise_carries_its_code(bus: Bus) -> None:
    with pytest.raises(Refused, match="stream not found") as missing:
        await bus.api("STREAM.INFO.NOPE")
    assert missing.value.code == 10059
    with pytest.raises(Refused) as expected:
        await bus.append(NEW, headers={"Nats-Expected-Stream": "OUT"})
    assert expected.value.code == 10060
    with pytest.raises(Refused) as absent:
        await bus.last("NOPE", "x")
    assert absent.value.code == 10059


def test_both_codes_for_a_wrong_last_sequence_are_conflicts() -> None:
    assert {type(refusal(code, "")) for code in (10071, 10164)} == {Conflict}
    assert type(refusal(10077, "")) is Full
    assert type(refusal(1, "")) is Refused
    assert issubclass(Unconfirmed, Away)
    assert not issubclass(Conflict, Away | Refused)


async def test_a_message_over_the_servers_limit_is_refused_here_because_it_would_close_the_connection(bus: Bus) -> None:
    """Pitfall P8: "maximum payload violation" closes nats-py for good, and it counts the payload without the headers."""
    limit = bus._client.max_payload
    headers = {"A": "ä" * 50}
    around = len(b"NATS/1.0\r\nA: \r\n\r\n") + 100
    for attempt in (
        lambda: bus.append(NEW, b"x" * (limit + 1), timeout=LONG_S),
        lambda: bus.append(NEW, b"x" * (limit - around + 1), headers=headers, timeout=LONG_S),
        lambda: bus.request("echo", b"x" * (limit + 1), timeout=LONG_S),
        lambda: bus.publish("echo", b"x" * (limit + 1)),
        lambda: bus.ask_all("echo", b"x" * (limit + 1), within=LONG_S),
    ):
        async with asyncio.timeout(AT_ONCE_S):
            with pytest.raises(Refused, match=f"over the server's limit of {limit}"):
                await attempt()  # type: ignore[no-untyped-call]
    await bus.publish("small", b"x" * limit)
    await bus.subscribe("large.>", lambda _: None)
    with pytest.raises(Away):  # not closed by the server: it is exactly as large as allowed
        await bus.append("large.1", b"x" * (limit - around), headers=headers, timeout=0.3)
    assert bus.connected
    assert not bus.lost.is_set()
    assert (await bus.append(NEW)).sequence == 1


async def test_a_subject_or_header_that_cannot_be_sent_is_refused_not_unknown(bus: Bus) -> None:
    for attempt in (bus.append("jobs.a b.c.new"), bus.request(""), bus.append(NEW, headers={"a b": "c"})):
        with pytest.raises(Refused):
            await attempt


# -- permissions ---------------------------------------------------------------------------------------------------------

LIMITED = """accounts { A { jetstream: enabled, users: [{user: "narrow", password: "n", permissions: {
    publish: ["$JS.API.INFO", "echo.>", "_INBOX.narrow.>"], subscribe: ["_INBOX.narrow.>", "echo.>"] }}] } }
"""


async def test_a_violation_of_permissions_is_logged_with_its_subject_and_hangs_nobody(tmp_path: Path) -> None:
    """Pitfall P9: nats-py tells it elsewhere and later; the asker only times out."""
    async with (
        nats_server(tmp_path / "nats", provision=False, config=LIMITED) as server,
        connected(server, "narrow", "n") as bus,
    ):
        with capture_logs() as logs:
            with pytest.raises(Away):
                await bus.request("Denied.One", timeout=0.3)
            with pytest.raises(Unconfirmed):
                await bus.append("denied.two", timeout=0.3)
            await bus.subscribe("denied.three", lambda _: None)
            await eventually(lambda: len(events(logs, "bus.error")) == 3)
        said = " ".join(entry["error"] for entry in events(logs, "bus.error")).lower()
        assert all(f'"denied.{name}"' in said for name in ("one", "two", "three"))
        assert all(entry["log_level"] == "warning" for entry in events(logs, "bus.error"))
        await bus.serve("echo.x", echo)
        assert await bus.request("echo.x", b"still here") == b"still here"
        assert not bus.lost.is_set()


async def test_inboxes_are_under_the_users_own_prefix(nats: NatsServer) -> None:
    async with connected(nats, "worker-a") as bus:
        replies: list[str] = []
        await bus.subscribe("who", lambda message: replies.append(message.reply))
        with pytest.raises(Away):
            await bus.request("who", timeout=0.2)
        await eventually(lambda: replies)
        assert replies[0].startswith("_INBOX.worker-a.")
        assert bus.new_inbox().startswith("_INBOX.worker-a.")


# -- headers, replies, inboxes -------------------------------------------------------------------------------------------


async def test_headers_of_the_caller_stay_as_they_are(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pitfall P12: nats-py may write into the mapping that it is given."""
    original = bus._client.request

    async def writing(*args: Any, headers: dict[str, str] | None = None, **named: Any) -> Any:
        assert headers is not None
        msg = await original(*args, headers=headers, **named)
        headers["Nats-Other"] = "written"
        return msg

    monkeypatch.setattr(bus._client, "request", writing)
    headers = {"Arriero-Facts": "{}", EXPECTED_SEQUENCE: "0"}
    await bus.append(NEW, headers=headers)
    assert headers == {"Arriero-Facts": "{}", EXPECTED_SEQUENCE: "0"}


async def test_an_answer_does_not_echo_the_headers_of_its_request(bus: Bus, other: Bus) -> None:
    seen: list[Message] = []

    async def answer(message: Message) -> bytes:
        seen.append(message)
        return b"fine"

    await other.serve("q", answer)
    await eventually(lambda: answered(bus, "q"))
    msg = await bus._client.request("q", headers={"Nats-Msg-Id": "1"}, timeout=2)
    assert seen[-1].headers == {"Nats-Msg-Id": "1"}
    assert (msg.data, msg.headers) == (b"fine", None)


async def answered(bus: Bus, subject: str) -> bool:
    try:
        await bus.request(subject, timeout=0.5)
    except BusError:
        return False
    return True


async def test_two_first_requests_at_once_share_one_inbox_and_both_are_answered(nats: NatsServer, bus: Bus) -> None:
    await bus.serve("echo", echo)
    assert await bus.request("echo") == b""
    async with connected(nats) as fresh:
        assert await asyncio.gather(*(fresh.request("echo", str(n).encode()) for n in range(20))) == [
            str(n).encode() for n in range(20)
        ]
        assert len(fresh._client._subs) == 1


async def test_stored_headers_and_bytes_come_back_as_they_were(bus: Bus) -> None:
    data, headers = bytes(range(256)), {"Arriero-Facts": '{"a": "x: y, ü"}', "Empty": ""}
    ack = await bus.append(NEW, data, headers=headers)
    for stored in (
        await bus.last("JOBS", "jobs.acme.job_1.*"),
        await bus.at("JOBS", ack.sequence),
        (await bus.last_of_each("JOBS", [NEW]))[0],
        (await bus.from_sequence("JOBS", NEW))[0],
    ):
        assert stored is not None
        assert (stored.subject, stored.sequence, stored.data) == (NEW, ack.sequence, data)
        assert headers.items() <= stored.headers.items()
        assert abs(stored.at_ms - (await bus.last("JOBS", NEW)).at_ms) <= 1  # type: ignore[union-attr]
    assert await bus.at("JOBS", 99) is None
    assert await bus.last("JOBS", "jobs.acme.nobody.*") is None


# -- serving -------------------------------------------------------------------------------------------------------------


async def test_a_slow_handler_holds_nobody_else_up(bus: Bus) -> None:
    release = asyncio.Event()

    async def answer(message: Message) -> bytes:
        if message.data == b"slow":
            await release.wait()
        return message.data

    await bus.serve("work", answer)
    slow = asyncio.create_task(bus.request("work", b"slow", timeout=LONG_S))
    quick = await asyncio.gather(*(bus.request("work", str(n).encode(), timeout=LONG_S) for n in range(200)))
    assert quick == [str(n).encode() for n in range(200)]
    assert not slow.done()
    release.set()
    assert await slow == b"slow"


async def test_a_handler_that_raises_is_logged_and_answers_nothing(bus: Bus) -> None:
    async def broken(message: Message) -> bytes:
        if message.data == b"away":
            raise Away("the log")
        raise RuntimeError("a bug")

    await bus.serve("broken", broken)
    with capture_logs() as logs:
        for data in (b"bug", b"away"):
            with pytest.raises(Away):
                await bus.request("broken", data, timeout=0.2)
        await eventually(lambda: events(logs, "bus.handler_failed") and events(logs, "bus.request_unanswered"))
    [failed], [unanswered] = events(logs, "bus.handler_failed"), events(logs, "bus.request_unanswered")
    assert (failed["subject"], failed["log_level"], failed["exc_info"]) == ("broken", "error", True)
    assert (unanswered["error"], unanswered["log_level"]) == ("the log", "warning")
    assert not bus._handlers


async def test_a_receiver_that_raises_goes_on_with_the_next_message(bus: Bus) -> None:
    heard: list[bytes] = []

    def receive(message: Message) -> None:
        if message.data == b"bad":
            raise RuntimeError("a bug")
        heard.append(message.data)

    await bus.subscribe("news", receive)
    with capture_logs() as logs:
        for data in (b"1", b"bad", b"2"):
            await bus.publish("news", data)
        await eventually(lambda: len(heard) == 2)
    assert heard == [b"1", b"2"]
    assert "a bug" in events(logs, "bus.error")[0]["error"]


async def test_requests_beyond_the_limit_are_dropped_not_queued_and_hold_no_other_subject_up(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "MAX_HANDLERS", 3)
    release, begun = asyncio.Event(), []

    async def hold(message: Message) -> bytes:
        begun.append(message.data)
        await release.wait()
        return b"held"

    await bus.serve("work", hold)
    await bus.serve("ping", echo)
    held = [asyncio.create_task(bus.request("work", timeout=LONG_S)) for _ in range(3)]
    await eventually(lambda: len(begun) == 3)
    with capture_logs() as logs:
        with pytest.raises(Away):
            await bus.request("work", b"too many", timeout=0.2)
        assert await bus.request("ping", b"here") == b"here"
    assert events(logs, "bus.request_dropped")[0]["subject"] == "work"
    release.set()
    assert await asyncio.gather(*held) == [b"held"] * 3
    assert await bus.request("work") == b"held"
    assert b"too many" not in begun


async def test_of_a_queue_group_one_member_answers(bus: Bus, other: Bus) -> None:
    calls: list[str] = []
    for name, member in (("a", bus), ("b", other)):

        async def answer(message: Message, name: str = name) -> bytes:
            calls.append(name)
            return message.data

        await member.serve("group", answer, queue="all")
    await eventually(lambda: answered(bus, "group"))
    calls.clear()
    await asyncio.gather(*(bus.request("group") for _ in range(30)))
    assert len(calls) == 30


# -- asking everybody ----------------------------------------------------------------------------------------------------


async def answering(bus: Bus, *names: bytes) -> None:
    for name in names:

        async def answer(_: Message, name: bytes = name) -> bytes:
            return name

        await bus.serve("all", answer)


async def test_every_answer_within_the_time_is_collected(bus: Bus) -> None:
    await answering(bus, b"a", b"b", b"c")
    subscriptions = len(bus._client._subs)
    assert sorted(await bus.ask_all("all", b"", within=2)) == [b"a", b"b", b"c"]
    assert len(bus._client._subs) == subscriptions


async def test_asking_everybody_ends_at_once_when_enough_have_answered(bus: Bus) -> None:
    await answering(bus, b"a", b"b", b"c")
    async with asyncio.timeout(AT_ONCE_S):
        assert len(await bus.ask_all("all", b"", within=LONG_S, limit=2)) == 2


# -- direct gets ---------------------------------------------------------------------------------------------------------


async def test_a_direct_get_of_absent_subjects_finds_nothing_and_of_some_finds_those(bus: Bus) -> None:
    await bus.append(NEW, b"1")
    await bus.append("jobs.acme.job_2.new", b"2")
    assert await bus.last_of_each("JOBS", []) == []
    assert await bus.last_of_each("JOBS", ["jobs.acme.none.new"]) == []
    found = await bus.last_of_each("JOBS", [NEW, "jobs.acme.none.new", "jobs.acme.job_2.new"])
    assert [stored.data for stored in found] == [b"1", b"2"]


async def test_a_direct_get_from_a_sequence_returns_what_follows_in_order_up_to_the_batch(bus: Bus) -> None:
    subject = "out.node.acme.job_1.7.s"
    for n in range(10):
        await bus.append(subject, str(n).encode())
    assert [s.data for s in await bus.from_sequence("OUT", subject)] == [str(n).encode() for n in range(10)]
    assert [s.data for s in await bus.from_sequence("OUT", subject, 4, batch=3)] == [b"3", b"4", b"5"]
    assert await bus.from_sequence("OUT", subject, 11) == []
    assert await bus.from_sequence("OUT", "out.node.acme.job_2.7.s") == []
    assert await bus.from_sequence("JOBS", NEW) == []


async def test_a_transport_that_has_just_closed_is_away_and_not_an_unknown_error(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by a fault run: uvloop says RuntimeError, and a poll became a 500 (seed 11)."""

    async def closed(*_: object, **__: object) -> None:
        raise RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")

    for call in ("subscribe", "request", "publish"):
        monkeypatch.setattr(bus._client, call, closed)
    with pytest.raises(Away):
        await bus.subscribe("a", lambda message: None)
    with pytest.raises(Away):
        await bus.request("a")
    with pytest.raises(Unconfirmed):
        await bus.append("a")
    await bus.publish("a")
