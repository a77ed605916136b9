"""What the permissions are for, tried on a real nats-server with the streams of Arriero: the attempts of somebody who has a
user's key and reads the manual of NATS."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from libs.cli.up.streams import other_permissions
from libs.common.bus.connection import Bus
from libs.common.bus.failures import Away, BusError, NoResponders, Refused
from libs.common.bus.follower import Follower
from libs.common.bus.link import Message
from libs.common.bus.provision import lacking
from libs.common.bus.tls import Tls
from libs.common.contracts.streams import STREAMS
from tests.support.nats_server import NatsServer, nats_server
from tests.support.nats_users import Users, server_with_users
from tests.support.waiting import eventually

RECORD = "$KV.clients.client.demo"
SOON_S = 0.5  # for what must not come: a refusal says nothing


class Place:
    """`admin` sees everything that is stored."""

    def __init__(self, server: NatsServer, users: Users, admin: Bus) -> None:
        self.server, self.users, self.admin = server, users, admin

    async def stored(self) -> dict[str, int]:
        found = {}
        for stream in STREAMS:
            state = (await self.admin.api(f"STREAM.INFO.{stream.name}"))["state"]
            found[stream.name] = state["last_seq"]
        return found


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    users = Users()
    async with server_with_users(tmp_path, users) as server, users.connected(server, "admin") as admin:
        await admin.append("jobs.billing.job_1.new", b"a prompt", headers={"Arriero": "facts"})
        await admin.append(RECORD, b"the record of auth")
        await admin.append("audit.auth.w", b"{}")
        yield Place(server, users, admin)


@pytest.mark.parametrize(
    "subject",
    [
        "jobs.billing.job_2.new", "jobs.billing.job_1.active", "cancels.billing.job_1", "$KV.nodes.n2", RECORD,
        "$KV.signing.ring",
        "$KV.revoked.token.x", "$KV.leases.router", "$KV.models.m", "audit.gateway.w", "out.n2.billing.job_1.1.s",
    ],
)  # fmt: skip
async def test_a_worker_stores_nothing_that_is_not_its_own(place: Place, subject: str) -> None:
    before = await place.stored()
    async with place.users.connected(place.server, "worker-n1") as worker:
        with pytest.raises(BusError):
            await worker.append(subject, b"x", timeout=SOON_S)
    assert await place.stored() == before


@pytest.mark.parametrize(
    "stream", ["KV_clients", "KV_signing", "KV_revoked", "KV_leases", "KV_attempts", "AUDIT", "OUT"]
)
async def test_a_worker_reads_nothing_of_auth_and_no_output_of_others(place: Place, stream: str) -> None:
    async with place.users.connected(place.server, "worker-n1") as worker:
        for verb in ("STREAM.MSG.GET", "DIRECT.GET", "STREAM.MSG.DELETE", "STREAM.PURGE", "CONSUMER.LIST"):
            with pytest.raises(BusError):
                await worker.api(f"{verb}.{stream}", {"seq": 1}, timeout=SOON_S)


@pytest.mark.parametrize("victim", [RECORD, "jobs.billing.job_9.new", "$KV.signing.ring", "audit.auth.w"])
async def test_no_answer_can_be_aimed_at_what_a_worker_may_not_write(place: Place, victim: str) -> None:
    """In one account the server itself would publish the answer there: a stored message of its own making, an ack, an error."""
    async with place.users.connected(place.server, "worker-n1") as worker:
        await worker.append("parts.billing.job_1.op.0", b"what a worker made up")
        before = await place.stored()
        for subject, body in (
            ("$JS.API.STREAM.MSG.GET.JOBS", b'{"last_by_subj":"parts.billing.job_1.op.0"}'),
            ("$JS.API.STREAM.INFO.JOBS", b""),
            ("$JS.API.INFO", b""),
            ("ctl.n1.b.ping", b""),
        ):
            await worker.publish(subject, body, reply=victim)
        await worker.append("parts.billing.job_1.op.1", b"")  # all of it has been dealt with
        await worker.publish("parts.billing.job_1.op.2", b"", reply=victim)
        await worker.append("parts.billing.job_1.op.3", b"")
    after = await place.stored()
    assert {name for name in after if after[name] != before[name]} == {"JOBS"}
    assert after["JOBS"] == before["JOBS"] + 3, "its own three parts, and nothing else"
    stored = await place.admin.last("KV_clients", RECORD)
    assert stored is not None
    assert stored.data == b"the record of auth"


async def test_who_is_asked_gains_no_right_to_speak_elsewhere(place: Place) -> None:
    """nats-server's allow_responses would give it: a worker asks itself, with any subject as the place for the answer."""
    asked = asyncio.Event()
    async with place.users.connected(place.server, "worker-n1") as worker:

        async def hear(message: Message) -> None:
            asked.set()

        await worker.subscribe("ctl.n1.b.ping", hear)
        await worker.publish("ctl.n1.b.ping", b"", reply="$KV.nodes.n2")
        await asyncio.wait_for(asked.wait(), 20)
        with pytest.raises(BusError):
            await worker.append("$KV.nodes.n2", b"said for another", timeout=SOON_S)
    assert (await place.stored())["KV_nodes"] == 0


async def test_between_the_accounts_all_that_is_needed_passes(place: Place) -> None:
    users, server = place.users, place.server
    async with (
        users.connected(server, "worker-n1") as worker,
        users.connected(server, "router") as router,
        users.connected(server, "gateway") as gateway,
        users.connected(server, "auth") as auth,
    ):
        heard: list[str] = []

        async def pong(message: Message) -> bytes:
            return message.subject.encode()

        for verb in ("run", "cancel", "read", "model", "ping"):
            await worker.serve(f"ctl.n1.b.{verb}", pong)
        await router.subscribe("ctl.router.free", lambda message: heard.append(message.subject))
        await router.subscribe("$KV.nodes.*", lambda message: heard.append(message.subject))
        await gateway.subscribe("out.*.*.*.*.c", lambda message: heard.append(message.subject))
        await gateway.subscribe("evt.*.*", lambda message: heard.append(message.subject))
        for bus in (worker, router, gateway, auth):
            await bus.api("INFO")  # the subscriptions stand once this has come back
        for asker, verbs in (
            (router, ("run", "cancel", "model", "ping")),
            (gateway, ("read", "model")),
            (worker, ("ping",)),
        ):
            for verb in verbs:
                assert await asker.request(f"ctl.n1.b.{verb}") == f"ctl.n1.b.{verb}".encode()
        with pytest.raises(NoResponders):  # at once: that is how a router sees that a process is gone
            await router.request("ctl.n2.b.ping", timeout=20)
        for subject in ("out.n1.billing.job_1.2.c", "evt.billing.job_1", "ctl.router.free"):
            await worker.publish(subject, b"0|")
        await worker.append("$KV.nodes.n1", b"beat")
        await worker.append("out.n1.billing.job_1.2.s", b"0|")
        await worker.append("jobs.billing.job_1.done", b"")
        stored = await worker.at("JOBS", 1)
        assert stored is not None
        assert stored.data == b"a prompt"
        wanted = {"out.n1.billing.job_1.2.c", "evt.billing.job_1", "ctl.router.free", "$KV.nodes.n1"}
        await eventually(lambda: wanted <= set(heard))


async def test_nobody_empties_the_trail_and_only_its_services_write_it(place: Place) -> None:
    with pytest.raises(Refused):
        await place.admin.api("STREAM.PURGE.AUDIT")
    with pytest.raises(Refused):
        await place.admin.api("STREAM.MSG.DELETE.AUDIT", {"seq": 1})
    before = (await place.stored())["AUDIT"]
    for name in ("router", "worker-n1", "gateway"):
        async with place.users.connected(place.server, name) as bus:
            with pytest.raises(BusError):
                await bus.append("audit.auth.w", b"x", timeout=SOON_S)
            with pytest.raises(BusError):
                await bus.api("STREAM.DELETE.AUDIT", timeout=SOON_S)
    assert (await place.stored())["AUDIT"] == before


async def test_a_gateway_follows_clients_and_never_signing_keys(place: Place) -> None:
    async with place.users.connected(place.server, "gateway") as gateway:
        seen: list[str] = []
        clients = Follower(gateway, "KV_clients", ["$KV.clients.>"], lambda stored: seen.append(stored.subject))
        following = asyncio.create_task(clients.run())
        try:
            await eventually(lambda: seen == [RECORD])
        finally:
            following.cancel()
        for subject in ("STREAM.INFO.KV_signing", "CONSUMER.CREATE.KV_signing.x", "STREAM.MSG.GET.KV_signing"):
            with pytest.raises(BusError):
                await gateway.api(subject, {}, timeout=SOON_S)
        for subject in (RECORD, "$KV.signing.ring", "$KV.revoked.token.x"):
            with pytest.raises(BusError):
                await gateway.append(subject, b"x", timeout=SOON_S)


async def _lets_in(users: Users, server: NatsServer) -> bool:
    try:
        async with users.connected(server, "gateway"):
            return True
    except Away:
        return False


async def test_a_service_whose_user_is_of_an_earlier_version_says_what_it_lacks(tmp_path: Path) -> None:
    users = Users()
    old = users.config.replace('"jobs.*.*.new", ', "").replace(', "ctl.n1.*.model"', "")
    async with nats_server(tmp_path, provision=False, config=old) as server:
        for name, lost in (
            ("gateway", "publish jobs.*.*.new"),
            ("worker-n1", "subscribe ctl.n1.*.model"),
            ("auth", ""),
        ):
            async with users.connected(server, name) as bus:
                said = await lacking(bus)
                assert (lost in said[0] and "arriero nats users" in said[0]) if lost else said == []
        seeds = {users.by_name[name]: users.seeds[name] for name in ("gateway", "router")}
        differing = await other_permissions(server.url, Tls(), seeds)
        assert differing == ["user gateway may not publish jobs.*.*.new", "user router may not publish jobs.*.*.new"]
        server.reload(users.config.replace('"ctl.*.*.run", ', '"ctl.*.*.>", '))
        await eventually(lambda: _lets_in(users, server), within=30)  # while it reads its users anew, JetStream is away
        async with users.connected(server, "gateway") as bus:

            async def heals() -> bool:
                return await lacking(bus) == []

            await eventually(heals)
        wider = await other_permissions(server.url, Tls(), seeds)
        assert wider == ["user router may publish ctl.*.*.>, which it need not"]
