"""The permissions of NATS users, in both directions: a real server lets each do what it must, and refuses everything else."""

import asyncio
import base64
import json
from collections.abc import Iterator
from pathlib import Path

import nkeys
import pytest

from libs.common.contracts.permissions import (
    STREAM_ACCESS,
    SUBJECTS,
    Permissions,
    client_user,
    permissions,
    worker_user,
)
from libs.common.contracts.streams import STREAMS
from libs.common.contracts.subjects import BadToken
from tests.common.expected_permissions import ASK, USERS, Probe, probes
from tests.support.nats_server import NatsServer
from tests.support.nats_users import Users, server_with_users

PROBES = probes()


def test_every_declared_stream_says_who_may_ask_about_it_and_who_writes_it() -> None:
    assert {stream.name for stream in STREAMS} == set(STREAM_ACCESS)
    for stream in STREAMS:
        for subject in stream.subjects:
            writers = [row for row in SUBJECTS if _within(_open(row.subject), subject)]
            assert writers, f"no row for {subject} of {stream.name}"
            assert all(row.answered for row in writers), f"what {stream.name} stores is acked"


def test_the_table_is_what_was_written_down_by_hand() -> None:
    users = Users().by_name
    for name in USERS:
        lists = permissions(users[name])
        for probe in PROBES:
            assert may(lists, probe) == (name in probe.allowed), (name, probe)


@pytest.mark.parametrize("name", USERS)
def test_any_permission_that_is_wider_or_missing_would_be_noticed(name: str) -> None:
    """Each list with one entry widened in one way, or left out, gives another answer to some probe."""
    whole = permissions(Users().by_name[name])
    for verb, entries in (("PUB", whole.publish or ()), ("SUB", whole.subscribe or ())):
        asked = [probe for probe in PROBES if probe.verb == verb]
        refused = [probe.subject for probe in asked if name not in probe.allowed and probe.subject not in whole.deny]
        for entry in entries:
            for wider in (*_wider(entry), ">"):
                assert any(_within(subject, wider) for subject in refused), (
                    f"nothing notices {verb} {wider} for {entry}"
                )
            others = Permissions(publish=_without(whole.publish, entry), subscribe=_without(whole.subscribe, entry))
            needed = any(name in probe.allowed and not may(others, probe) for probe in asked)
            assert needed, f"nothing notices that {verb} {entry} is gone, or it is part of another"
    for entry in whole.deny:
        assert any(_within(probe.subject, entry) and name not in probe.allowed for probe in PROBES)


async def test_a_real_server_holds_every_user_to_the_table(tmp_path: Path) -> None:
    users = Users()
    async with server_with_users(tmp_path, users, provision=False) as server:
        for name in USERS:
            refused = await _refused(server, users.seeds[name])
            for probe in PROBES:
                assert ((probe.verb, probe.subject) not in refused) == (name in probe.allowed), (name, probe)
        assert await _refused(server, users.seeds["admin"], PROBES[::7]) == set(), "the admin may do everything"


@pytest.mark.parametrize("name", ["a.b", "a b", "", "*", ">", "router", "x" * 65])
def test_a_node_whose_name_would_widen_its_permissions_is_refused(name: str) -> None:
    with pytest.raises(BadToken):
        worker_user(name)


@pytest.mark.parametrize("name", ["a.b", "*", "", "admin", "auth", "gateway", "router", "worker-n1"])
def test_a_client_whose_name_would_widen_its_permissions_is_refused(name: str) -> None:
    with pytest.raises(BadToken):
        client_user(name)


# -- the server's word -------------------------------------------------------------------------------------------------


async def _refused(server: NatsServer, seed: str, asked: list[Probe] = PROBES) -> set[tuple[str, str]]:
    """What the server refuses; by its own protocol, where each word is followed by its refusal or by a pong."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        info = json.loads((await reader.readline()).removeprefix(b"INFO "))
        pair = nkeys.from_seed(bytearray(seed.encode()))
        signature = base64.urlsafe_b64encode(pair.sign(info["nonce"].encode())).rstrip(b"=").decode()
        hello = {"nkey": pair.public_key.decode(), "sig": signature, "verbose": False, "protocol": 1, "headers": True}
        writer.write(b"CONNECT " + json.dumps(hello).encode() + b"\r\n")
        refused = set()
        for n, probe in enumerate(asked):
            word = f"PUB {probe.subject} 0\r\n" if probe.verb == "PUB" else f"SUB {probe.subject} {n}\r\nUNSUB {n}"
            writer.write(f"{word}\r\nPING\r\n".encode())
            while (line := await asyncio.wait_for(reader.readline(), 20)) != b"PONG\r\n":
                if line.startswith(b"-ERR 'Permissions Violation"):
                    refused.add((probe.verb, probe.subject))
                elif line.startswith(b"MSG"):
                    await reader.readline()
                else:
                    assert line.startswith((b"INFO", b"PING")), line
        return refused
    finally:
        writer.close()


# -- the same without a server -----------------------------------------------------------------------------------------


def may(lists: Permissions, probe: Probe) -> bool:
    if probe.verb == "SUB":
        return any(_within(probe.subject, allowed) for allowed in lists.subscribe or ())
    return any(_within(probe.subject, allowed) for allowed in lists.publish or ()) and not any(
        _within(probe.subject, denied) for denied in lists.deny
    )


def _within(subject: str, pattern: str) -> bool:
    """As nats-server sees it: a wildcard that is asked for is a token like others, so `a.>` passes where `a.*` is allowed."""
    tokens, allowed = subject.split("."), pattern.split(".")
    if allowed[-1] == ">":
        allowed = allowed[:-1]
        if len(tokens) <= len(allowed):
            return False
        tokens = tokens[: len(allowed)]
    return len(tokens) == len(allowed) and all(
        want in ("*", token) for want, token in zip(allowed, tokens, strict=True)
    )


def _open(template: str) -> str:
    return template.replace("{node}", "*").replace("{client}", "*")


def _without(entries: tuple[str, ...] | None, entry: str) -> tuple[str, ...]:
    return tuple(other for other in entries or () if other != entry)


def _wider(entry: str) -> Iterator[str]:
    tokens = entry.split(".")
    for at, token in enumerate(tokens):
        if token not in ("*", ">"):
            yield ".".join([*tokens[:at], "*", *tokens[at + 1 :]])
        if at < len(tokens) - 1 or token != ">":
            yield ".".join([*tokens[:at], ">"])


def test_all_verbs_of_the_table_are_probed() -> None:
    said = {probe.subject for probe in PROBES if probe.verb == "PUB"}
    assert len(PROBES) > 500
    assert all(f"$JS.API.{verb}.{stream.name}" in said for verb in ASK if "+" not in verb for stream in STREAMS)
