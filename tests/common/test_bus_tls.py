"""TLS to a real nats-server, with an authority made here: who is trusted is let in, and everything else is one clear sentence."""

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from libs.common.bus.connection import Bus
from libs.common.bus.failures import Away
from libs.common.bus.nkeys import new_seed, public_key
from libs.common.bus.tls import BadTls, Tls, context
from tests.support.certificates import Authority
from tests.support.nats_server import NatsServer
from tests.support.waiting import eventually

PATIENT_S = 20.0  # a refusal comes at once; who would try on for 30 s is found out


class Place:
    def __init__(self, folder: Path) -> None:
        self.authority, self.stranger = Authority(folder), Authority(folder, "another-ca")
        self.pem, self.key = self.authority.signed("hub")
        self.client = self.authority.signed("worker")
        self.folder = folder
        self.seed = new_seed()

    def config(self, tls: str = "", *, address: str = "127.0.0.1") -> str:
        pem, key = (
            (self.pem, self.key) if address == "127.0.0.1" else self.authority.signed("elsewhere", address=address)
        )
        return (
            f'tls {{ cert_file: "{pem}", key_file: "{key}", ca_file: "{self.authority.file}", {tls} min_version: "1.3" }}\n'
            f"accounts {{ A {{ jetstream: enabled, users: [ {{ nkey: {public_key(self.seed)} }} ] }} }}\n"
        )

    @contextlib.asynccontextmanager
    async def server(self, config: str) -> AsyncIterator[NatsServer]:
        server = NatsServer(self.folder / "nats", config)
        await server.start()
        try:
            yield server
        finally:
            await server.kill()

    async def ask(self, server: NatsServer, tls: Tls, *, scheme: str = "tls") -> None:
        """Raises Away."""
        bus = Bus("tester")
        began = time.monotonic()
        try:
            await bus.open([f"{scheme}://127.0.0.1:{server.port}"], nkey_seed=self.seed, tls=tls)
            await bus.api("INFO")
        finally:
            await bus.close()
            assert time.monotonic() - began < PATIENT_S

    @property
    def trusting(self) -> Tls:
        return Tls(ca=str(self.authority.file))

    @property
    def known(self) -> Tls:
        return Tls(str(self.authority.file), *map(str, self.client))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


async def test_who_trusts_the_authority_is_let_in_and_a_stranger_to_it_says_why_not(place: Place) -> None:
    async with place.server(place.config()) as server:
        await place.ask(server, place.trusting)
        with pytest.raises(Away, match=r"not trusted by the authorities in .*another-ca\.pem"):
            await place.ask(server, Tls(ca=str(place.stranger.file)))
        with pytest.raises(Away, match="not trusted by this machine's authorities"):
            await place.ask(server, Tls())


async def test_a_certificate_for_another_machine_is_refused(place: Place) -> None:
    async with place.server(place.config(address="127.0.0.9")) as server:
        with pytest.raises(Away, match=r"certificate is for another name: .*127\.0\.0\.1"):
            await place.ask(server, place.trusting)


async def test_where_nats_asks_for_a_client_certificate_it_takes_ours_and_no_strangers(place: Place) -> None:
    async with place.server(place.config("verify: true,")) as server:
        await place.ask(server, place.known)
        with pytest.raises(Away, match=r"asks for a client certificate: set …_NATS_TLS_CERT and …_NATS_TLS_KEY"):
            await place.ask(server, place.trusting)
        foreign = place.stranger.signed("intruder")
        with pytest.raises(Away, match="does not take the client certificate"):
            await place.ask(server, Tls(str(place.authority.file), *map(str, foreign)))


async def test_handshake_first(place: Place) -> None:
    async with place.server(place.config("handshake_first: true,")) as server:
        await place.ask(server, place.trusting._replace(first=True))
        await place.ask(server, place.trusting._replace(first=True))


async def test_a_server_without_tls_is_not_taken_for_one_with_it(place: Place) -> None:
    """nats-py believes the server's word; whoever is in between would then be told everything."""
    async with place.server("") as server:
        with pytest.raises(Away, match="does not speak TLS although it is named with tls://"):
            await place.ask(server, place.trusting)


async def test_after_a_restart_without_tls_a_connected_service_says_nothing_to_it(place: Place) -> None:
    async with place.server(place.config()) as server:
        bus = Bus("tester")
        await bus.open([f"tls://127.0.0.1:{server.port}"], nkey_seed=place.seed, tls=place.trusting)
        try:
            await server.kill()
            server.config = place.config().replace("tls {", "# tls {")
            await server.start()
            await eventually(lambda: "does not speak TLS" in bus.complaint)
            assert not bus.connected
            await server.kill()
            server.config = place.config()
            await server.start()
            await eventually(lambda: bus.connected)
        finally:
            await bus.close()


async def test_files_that_cannot_be_used_are_named(place: Place, tmp_path: Path) -> None:
    with pytest.raises(BadTls, match=r"authorities in /nowhere/ca\.pem cannot be read: No such file"):
        context(Tls(ca="/nowhere/ca.pem"))
    broken = tmp_path / "broken.pem"
    broken.write_text("no certificate")
    with pytest.raises(BadTls, match=r"authorities in .*broken\.pem cannot be read"):
        context(Tls(ca=str(broken)))
    other_key = str(place.stranger.signed("x")[1])
    with pytest.raises(BadTls, match=r"hub\.pem with the key .*x\.key cannot be used"):
        context(Tls(str(place.authority.file), str(place.pem), other_key))


async def test_a_service_signs_in_over_mutual_tls_by_its_settings(place: Place, tmp_path: Path) -> None:
    """The runtime's own way, as a process: it starts, and with a wrong authority it ends with one sentence."""
    seed = tmp_path / "nats-tiny.nk"
    seed.write_text(place.seed + "\n")
    async with place.server(place.config("verify: true,")) as server:
        settings = {
            "NATS_URL": f"tls://127.0.0.1:{server.port}", "NATS_USER": "tiny", "NATS_NKEY_FILE": str(seed),
            "NATS_TLS_CA": str(place.authority.file), "NATS_TLS_CERT": str(place.client[0]),
            "NATS_TLS_KEY": str(place.client[1]), "SECRET": "correct horse battery",
        }  # fmt: skip
        out = tmp_path / "out"
        with out.open("wb") as file:
            process = await _tiny(settings, file.fileno())
        try:
            await eventually(lambda: "service.started" in _events(out), within=30)
        finally:
            process.kill()  # a drain would wait for its streams
            await process.wait()
        with out.open("wb") as file:
            process = await _tiny(settings | {"NATS_TLS_CA": str(place.stranger.file)}, file.fileno())
        assert await asyncio.wait_for(process.wait(), 30) == 1
        (failed,) = [line for line in _lines(out) if line.get("event") == "service.start_failed"]
        assert "not trusted by the authorities in" in failed["error"]
        assert place.seed not in out.read_text()


async def _tiny(settings: dict[str, str], out: int) -> asyncio.subprocess.Process:
    environment = {**os.environ, **{f"ARRIERO_TINY_{name}": value for name, value in settings.items()}}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.common.tiny",
        env=environment,
        stdout=out,
        stderr=out,
        cwd=Path(__file__).parents[2],
    )


def _lines(out: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in out.read_text().splitlines() if line.startswith("{")]


def _events(out: Path) -> list[str]:
    return [line.get("event", "") for line in _lines(out)]
