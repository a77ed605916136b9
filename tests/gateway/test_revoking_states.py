"""Revocations as a state machine: two gateways that hear of auth's records each in its own time, and requests open at both.

Whatever is written and however late it arrives: at each gateway a request is open, and a credential lets in, exactly as long as
the records that have arrived there say so. What was ended stays ended, also when its credential counts again.
"""

import asyncio
import contextlib
from typing import Any, NamedTuple

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from libs.common.bus.stored import Stored
from libs.common.contracts.clients import ApiKey, Client, Principal
from libs.common.contracts.codec import encode
from libs.common.contracts.faults import Code, Failed
from libs.common.contracts.revocations import Revocation, signing_key_record, token_record
from libs.common.credentials import api_keys
from libs.common.credentials.api_keys import ApiKeyText
from libs.common.credentials.tokens import Claims
from libs.common.credentials.verifiers import Verifiers
from services.gateway.credentials import Credentials
from services.gateway.sessions import Session, Sessions

SECRET = b"cluster-secret-of-the-tests-0123456789"
NOW = 2_000_000_000
NAMES = st.sampled_from(["ann", "ben"])


class NoBus:
    """Records come from the test."""

    def on_reconnect(self, callback: object) -> None:
        pass


class Token(NamedTuple):
    client: str
    jti: str
    iat: int
    kid: str

    @property
    def credential(self) -> str:
        return f"token:{self.jti}"


class Key(NamedTuple):
    client: str
    text: ApiKeyText

    @property
    def credential(self) -> str:
        return f"key:{self.text.id}"


class World(NamedTuple):
    """What the records up to some point say."""

    clients: dict[str, Client]
    keys: dict[str, ApiKey]
    revoked: set[str]  # jti and kid

    def counts(self, held: Token | Key) -> bool:
        client = self.clients.get(held.client)
        if client is None or client.disabled:
            return False
        if isinstance(held, Key):
            key = self.keys.get(held.text.id)
            return key is not None and not key.disabled
        return not self.revoked & {held.jti, held.kid} and held.iat >= client.not_before


class Open(NamedTuple):
    held: Token | Key
    session: Session
    task: "asyncio.Task[None]"


class Gateway:
    def __init__(self) -> None:
        self.credentials = Credentials(NoBus(), issuer="http://x", cluster_secret=SECRET, clock=lambda: NOW)  # type: ignore[arg-type]
        for follower in (self.credentials._directory._follower, self.credentials._revocations._follower):
            follower.caught_up.set()
            follower._heard_at = float("inf")
        self.credentials.changes.take()
        self.sessions = Sessions()
        self.world = World({}, {}, set())
        self.heard = 0
        self.open: list[Open] = []

    def hear(self, stored: Stored) -> None:
        directory = stored.subject.startswith("$KV.clients.")
        (self.credentials._directory if directory else self.credentials._revocations)._record(stored)
        self.heard += 1

        def lapsed(session: Session) -> str | None:
            who = session.principal
            return self.credentials.lapsed(who.client, who.credential, who.issued_at, kid=who.kid)

        self.sessions.end_lapsed(self.credentials.changes.take(), lapsed)

    def admit(self, held: Token | Key) -> Principal | None:
        try:
            if isinstance(held, Key):
                return self.credentials._by_key(held.text)
            claims = Claims(held.client, frozenset(), held.jti, held.iat, NOW + 300, held.kid)
            return self.credentials._by_token(claims)
        except Failed as error:
            assert error.fault.code is Code.UNAUTHENTICATED  # noqa: PT017  # not a test of this alone
            return None


class Revocations(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.runner.get_loop()
        self.gateways = self.runner.run(self._gateways())
        self.log: list[tuple[Stored, Any]] = []
        self.newest = World({}, {}, set())
        self.held: list[Token | Key] = []

    async def _gateways(self) -> list[Gateway]:
        return [Gateway(), Gateway()]

    def teardown(self) -> None:
        for gateway in self.gateways:
            for one in gateway.open:
                one.task.cancel()
        self.runner.close()

    @initialize()
    def everybody_is_at_work(self) -> None:
        """Rules alone would seldom come so far that there is something to end."""
        for name in ("ann", "ben"):
            self.make_client(name)
            self.make_key(name)
            for later, kid in ((0, "k1"), (2, "k2")):
                self.make_token(name, later, kid)
        for which, gateway in enumerate(self.gateways):
            self.deliver(which, len(self.log))
            for held in self.held:
                self.open(gateway, held)

    # -- what auth writes ----------------------------------------------------------------------------------------------

    def write(self, subject: str, value: bytes | None) -> None:
        headers = {"KV-Operation": "DEL"} if value is None else {}
        stored = Stored(subject, len(self.log) + 1, NOW * 1000, headers, value or b"")
        world = World(dict(self.newest.clients), dict(self.newest.keys), set(self.newest.revoked))
        self.log.append((stored, world))
        self.newest = world

    def put_client(self, client: Client) -> None:
        self.write(f"$KV.clients.client.{client.id}", encode(client))
        self.newest.clients[client.id] = client

    @rule(name=NAMES)
    def make_client(self, name: str) -> None:
        if name not in self.newest.clients:
            self.put_client(Client(id=name, name=name))

    @rule(name=NAMES, on=st.booleans())
    def switch_client(self, name: str, on: bool) -> None:
        if (client := self.newest.clients.get(name)) is not None:
            self.put_client(msgspec.structs.replace(client, disabled=not on))

    @rule(name=NAMES, later=st.integers(0, 3))
    def end_tokens(self, name: str, later: int) -> None:
        if (client := self.newest.clients.get(name)) is not None:
            self.put_client(msgspec.structs.replace(client, not_before=max(client.not_before, NOW + later)))

    @rule(name=NAMES)
    def delete_client(self, name: str) -> None:
        if name in self.newest.clients:
            self.write(f"$KV.clients.client.{name}", None)
            del self.newest.clients[name]

    @rule(name=NAMES)
    def make_key(self, name: str) -> None:
        text = api_keys.new()
        key = ApiKey(id=text.id, client=name, verifier=Verifiers(SECRET).of(text.secret))
        self.write(f"$KV.clients.key.{text.id}", encode(key))
        self.newest.keys[text.id] = key
        self.held.append(Key(name, text))

    @rule(name=NAMES, later=st.integers(0, 3), kid=st.sampled_from(["k1", "k2"]))
    def make_token(self, name: str, later: int, kid: str) -> None:
        self.held.append(Token(name, f"j{len(self.held)}", NOW + later, kid))

    @precondition(lambda self: self.held)
    @rule(data=st.data(), erase=st.booleans())
    def revoke(self, data: st.DataObject, erase: bool) -> None:
        held = data.draw(st.sampled_from(self.held))
        if isinstance(held, Token):
            self.write(f"$KV.revoked.{token_record(held.jti)}", encode(Revocation(client=held.client, at=NOW)))
            self.newest.revoked.add(held.jti)
        elif (key := self.newest.keys.get(held.text.id)) is not None:
            if erase:
                self.write(f"$KV.clients.key.{key.id}", None)
                del self.newest.keys[key.id]
            else:
                self.write(f"$KV.clients.key.{key.id}", encode(msgspec.structs.replace(key, disabled=True)))
                self.newest.keys[key.id] = msgspec.structs.replace(key, disabled=True)

    @rule(kid=st.sampled_from(["k1", "k2"]))
    def withdraw(self, kid: str) -> None:
        self.write(f"$KV.revoked.{signing_key_record(kid)}", encode(Revocation(at=NOW)))
        self.newest.revoked.add(kid)

    # -- what gateways hear and do -------------------------------------------------------------------------------------

    @rule(which=st.integers(0, 1), count=st.integers(1, 6))
    def deliver(self, which: int, count: int) -> None:
        gateway = self.gateways[which]
        for stored, world in self.log[gateway.heard : gateway.heard + count]:
            self.runner.run(self._hear(gateway, stored))
            gateway.world = world
            for one in list(gateway.open):
                if one.session.lapsed is not None:
                    assert not world.counts(one.held), "an innocent request was ended"
                    gateway.open.remove(one)
                else:
                    assert world.counts(one.held), "a request goes on with a credential that does not count"

    async def _hear(self, gateway: Gateway, stored: Stored) -> None:
        gateway.hear(stored)
        for _ in range(3):
            await asyncio.sleep(0)
        assert all(one.task.done() == (one.session.lapsed is not None) for one in gateway.open)

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 1), data=st.data())
    def ask(self, which: int, data: st.DataObject) -> None:
        self.open(self.gateways[which], data.draw(st.sampled_from(self.held)))

    def open(self, gateway: Gateway, held: Token | Key) -> None:
        principal = gateway.admit(held)
        assert (principal is not None) == gateway.world.counts(held)
        if principal is not None:
            assert (principal.client, principal.credential) == (held.client, held.credential)
            gateway.open.append(self.runner.run(self._open(gateway, held, principal)))

    async def _open(self, gateway: Gateway, held: Token | Key, principal: Principal) -> Open:
        entered: asyncio.Future[Session] = asyncio.get_running_loop().create_future()

        async def request() -> None:
            with gateway.sessions.one(principal, None) as session:
                entered.set_result(session)
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.Event().wait()

        task = asyncio.create_task(request())
        return Open(held, await entered, task)

    @invariant()
    def nothing_of_ended_requests_is_kept(self) -> None:
        for gateway in self.gateways:
            assert sum(len(of) for of in gateway.sessions._of.values()) == len(gateway.open)


TestRevocations = Revocations.TestCase
TestRevocations.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
