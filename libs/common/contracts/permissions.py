"""Who may say and hear what in NATS, as data: one row per subject, one per stream. Everything that is not here is refused.

`permissions` gives one user's lists, `CROSSINGS` what passes between the two accounts; configurations of nats-server are
rendered from both, and a test asks a real server about every user and subject.

Workers have an account of their own (ADR 0012). In one account a user that may ask the JetStream API, or be asked for
anything, can have an answer sent to a subject on which it may not publish, and so write any record of any stream.
"""

from enum import StrEnum
from typing import NamedTuple

from libs.common.contracts.streams import (
    ATTEMPTS,
    AUDIT,
    CLIENTS,
    HOOKS,
    JOBS,
    LEASES,
    LIMITS,
    MODELS,
    NODES,
    OUT,
    REVOKED,
    SIGNING,
    WEBHOOKS,
)
from libs.common.contracts.subjects import BadToken, token


class Kind(StrEnum):
    """Kinds of users. Workers and clients have one each, all gateways share one, and so do routers and auth services."""

    ADMIN = "admin"
    AUTH = "auth"
    GATEWAY = "gateway"
    ROUTER = "router"
    WORKER = "worker"
    CLIENT = "client"


class Account(StrEnum):
    """Accounts of nats-server. Streams are in the first; a subject of one does not exist in the other unless it crosses."""

    ARRIERO = "ARRIERO"
    WORKERS = "WORKERS"


class Access(StrEnum):
    """What one may ask the JetStream API about a stream."""

    INFO = "info"  # its configuration, and which subjects it has
    FOLLOW = "follow"  # push consumers
    PULL = "pull"  # from a consumer made by FOLLOW
    READ = "read"  # single messages, from the leader
    DIRECT = "direct"  # from any replica, several at once
    PURGE = "purge"
    WORK = "work"  # durable pull consumers, and acks of what they give


ADMIN, AUTH, GATEWAY, ROUTER, WORKER, CLIENT = Kind
INFO, FOLLOW, PULL, READ, DIRECT, PURGE, WORK = Access


class Row(NamedTuple):
    """`subject`: {node} and {client} are the user's own for a worker or client, anybody's for the others."""

    subject: str
    publish: tuple[Kind, ...]
    hear: tuple[Kind, ...] = ()
    answered: bool = False  # by whoever hears it, or by the stream that stores it


SUBJECTS: tuple[Row, ...] = (
    Row("jobs.*.*.new", publish=(GATEWAY, ROUTER), answered=True),  # the router empties it
    Row("jobs.*.*.active", publish=(ROUTER,), answered=True),
    Row("jobs.*.*.done", publish=(ROUTER, WORKER), answered=True),
    Row("cancels.*.*", publish=(GATEWAY, ROUTER), answered=True),
    Row("parts.*.*.*.*", publish=(GATEWAY, ROUTER, WORKER), answered=True),
    Row("out.{node}.*.*.*.c", publish=(WORKER,), hear=(GATEWAY,)),
    Row("out.{node}.*.*.*.s", publish=(WORKER,), answered=True),
    Row("out.*.{client}.>", publish=(), hear=(CLIENT,)),
    Row("evt.*.*", publish=(GATEWAY, ROUTER, WORKER), hear=(GATEWAY,)),
    Row("evt.{client}.>", publish=(), hear=(CLIENT,)),
    Row("prefix.*.*", publish=(ROUTER,), hear=(GATEWAY,), answered=True),
    Row("ctl.{node}.*.run", publish=(ROUTER,), hear=(WORKER,), answered=True),
    Row("ctl.{node}.*.cancel", publish=(ROUTER,), hear=(WORKER,), answered=True),
    Row("ctl.{node}.*.read", publish=(GATEWAY,), hear=(WORKER,), answered=True),
    Row("ctl.{node}.*.model", publish=(GATEWAY, ROUTER), hear=(WORKER,), answered=True),
    Row("ctl.{node}.*.ping", publish=(ROUTER, WORKER), hear=(WORKER,), answered=True),  # a newcomer its older self
    Row("ctl.router.*.ping", publish=(), hear=(ROUTER,), answered=True),  # said as ctl.*.*.ping
    Row("ctl.router.free", publish=(WORKER,), hear=(ROUTER,)),
    Row("ctl.router.place", publish=(GATEWAY,), hear=(ROUTER,), answered=True),
    Row("ctl.router.quote", publish=(GATEWAY,), hear=(ROUTER,), answered=True),
    Row("ctl.router.erase", publish=(GATEWAY,), hear=(ROUTER,), answered=True),
    Row("api.{client}.*", publish=(CLIENT,), hear=(GATEWAY,), answered=True),
    Row("hooks.wait.*.*", publish=(GATEWAY,), answered=True),
    Row("hooks.send.*.*.*", publish=(GATEWAY,), answered=True),
    Row("audit.auth.*", publish=(AUTH,), answered=True),
    Row("audit.gateway.*", publish=(GATEWAY,), answered=True),
    Row("$JS.API.DIRECT.GET.AUDIT.audit.auth.*", publish=(AUTH,), answered=True),  # a writer's own newest record
    Row("$JS.API.DIRECT.GET.AUDIT.audit.gateway.*", publish=(GATEWAY,), answered=True),
    Row("$KV.nodes.{node}", publish=(WORKER,), hear=(ROUTER, WORKER), answered=True),
    Row("$KV.leases.*", publish=(ROUTER,), answered=True),
    Row("$KV.clients.>", publish=(AUTH,), answered=True),
    Row("$KV.signing.>", publish=(AUTH,), answered=True),
    Row("$KV.revoked.>", publish=(AUTH,), answered=True),
    Row("$KV.attempts.>", publish=(AUTH, GATEWAY), answered=True),
    Row("$KV.models.>", publish=(GATEWAY,), answered=True),
    Row("$KV.limits.>", publish=(GATEWAY,), answered=True),
    Row("$KV.webhooks.*", publish=(GATEWAY,), answered=True),
)

# Every declared stream has a row (a test looks); a service compares at its start those about which it may ask.
STREAM_ACCESS: dict[str, dict[Kind, frozenset[Access]]] = {
    JOBS: {
        GATEWAY: frozenset({INFO, FOLLOW, PULL, READ, DIRECT}),
        ROUTER: frozenset({INFO, FOLLOW, READ, DIRECT, PURGE}),
        WORKER: frozenset({INFO, READ}),
    },
    OUT: {
        ROUTER: frozenset({INFO, READ, DIRECT, PURGE}),
        WORKER: frozenset({INFO}),
    },
    AUDIT: {
        AUTH: frozenset({INFO, FOLLOW, READ, DIRECT}),
        GATEWAY: frozenset({INFO}),
    },
    HOOKS: {GATEWAY: frozenset({INFO, WORK, PURGE})},
    f"KV_{NODES}": {
        GATEWAY: frozenset({INFO, FOLLOW}),
        ROUTER: frozenset({INFO, FOLLOW}),
        WORKER: frozenset({INFO, READ}),
    },
    f"KV_{LEASES}": {ROUTER: frozenset({INFO, READ})},
    f"KV_{CLIENTS}": {AUTH: frozenset({INFO, FOLLOW, READ}), GATEWAY: frozenset({INFO, FOLLOW})},
    f"KV_{SIGNING}": {AUTH: frozenset({INFO, FOLLOW, READ})},
    f"KV_{REVOKED}": {AUTH: frozenset({INFO, FOLLOW, READ}), GATEWAY: frozenset({INFO, FOLLOW})},
    f"KV_{ATTEMPTS}": {AUTH: frozenset({INFO, FOLLOW, READ}), GATEWAY: frozenset({INFO, FOLLOW, READ})},
    f"KV_{LIMITS}": {GATEWAY: frozenset({INFO, READ})},
    f"KV_{WEBHOOKS}": {GATEWAY: frozenset({INFO, READ})},
    f"KV_{MODELS}": {
        GATEWAY: frozenset({INFO, FOLLOW, READ}),
        ROUTER: frozenset({INFO, FOLLOW, READ}),
    },
}

# `{s}` is a stream. Acks and flow control have two forms of subjects (ADR-15 of NATS).
_API: dict[Access, tuple[str, ...]] = {
    INFO: ("$JS.API.STREAM.INFO.{s}",),
    FOLLOW: (
        "$JS.API.CONSUMER.CREATE.{s}.>",
        "$JS.API.CONSUMER.DELETE.{s}.*",
        "$JS.FC.{s}.>",
        "$JS.FC.*.*.{s}.>",
    ),
    PULL: ("$JS.API.CONSUMER.MSG.NEXT.{s}.*",),
    READ: ("$JS.API.STREAM.MSG.GET.{s}",),
    DIRECT: ("$JS.API.DIRECT.GET.{s}",),
    PURGE: ("$JS.API.STREAM.PURGE.{s}",),
    WORK: (
        "$JS.API.CONSUMER.CREATE.{s}.>",
        "$JS.API.CONSUMER.MSG.NEXT.{s}.*",
        "$JS.ACK.{s}.>",
        "$JS.ACK.*.*.{s}.>",
    ),
}
_FIRST_QUESTION = "$JS.API.INFO"  # asked by every service when it connects (bus.connection)
WHO_AM_I = "$SYS.REQ.USER.INFO"  # one's own permissions, in any account

# Whose inboxes a kind answers into. The gateways answer clients, whoever they are; nobody else's answers are theirs.
# nats-server's allow_responses is not used: who hears a subject on which it may publish grants itself any other with it.
_ANSWERS: dict[Kind, tuple[str, ...]] = {
    GATEWAY: ("_INBOX.*.>",),
    ROUTER: ("_INBOX.gateway.>", "_INBOX.router.>"),
    WORKER: ("_R_.>", "_INBOX.worker-{node}.>"),  # _R_: what crosses from the other account
}
_NEVER: dict[Kind, tuple[str, ...]] = {GATEWAY: ("_INBOX.admin.>", "_INBOX.auth.>")}


class Permissions(NamedTuple):
    """Lists as nats-server takes them; `deny` goes before `publish`. None: everything is allowed."""

    publish: tuple[str, ...] | None
    subscribe: tuple[str, ...] | None
    deny: tuple[str, ...] = ()


class NatsUser(NamedTuple):
    """`own` is the node of a worker, the id of a client."""

    kind: Kind
    own: str = ""

    @property
    def name(self) -> str:
        """Its inboxes are under `_INBOX.<name>`."""
        match self.kind:
            case Kind.WORKER:
                return f"worker-{self.own}"
            case Kind.CLIENT:
                return self.own
        return str(self.kind)

    @property
    def account(self) -> Account:
        return Account.WORKERS if self.kind is WORKER else Account.ARRIERO


SERVICES: tuple[NatsUser, ...] = tuple(NatsUser(kind=kind) for kind in (ADMIN, AUTH, GATEWAY, ROUTER))


def worker_user(node: str) -> NatsUser:
    """Raises BadToken for a name that would widen its permissions."""
    if token(node, "node's name") == "router":
        raise BadToken("a node cannot be called router: what routers are asked goes by that name")
    return NatsUser(kind=WORKER, own=node)


def client_user(client: str) -> NatsUser:
    """Raises BadToken for a name that would widen its permissions, or is a service's."""
    if token(client, "client's name") in {user.name for user in SERVICES} or client.startswith("worker-"):
        raise BadToken(f"a client with a NATS user cannot be called {client}: that is a service's name there")
    return NatsUser(kind=CLIENT, own=client)


def permissions(user: NatsUser) -> Permissions:
    if user.kind is ADMIN:
        return Permissions(None, None)
    kind = user.kind
    says = [_for(user, row.subject) for row in SUBJECTS if kind in row.publish]
    hears = [_for(user, row.subject) for row in SUBJECTS if kind in row.hear]
    answers = [_for(user, subject) for subject in _ANSWERS.get(kind, ())]
    return Permissions(
        publish=tuple(dict.fromkeys([*questions(kind), *says, *answers])),
        subscribe=(f"_INBOX.{user.name}.>", *hears),
        deny=_NEVER.get(kind, ()),
    )


def user_named(name: str) -> NatsUser | None:
    """The service's or worker's user of that name; None for any other."""
    for user in SERVICES:
        if user.name == name:
            return user
    try:
        return worker_user(name.removeprefix("worker-")) if name.startswith("worker-") else None
    except BadToken:
        return None


def missing(wanted: Permissions, found: Permissions) -> list[str]:
    """What `wanted` allows and `found` does not, as `publish …` and `subscribe …`."""
    lists = (("publish", wanted.publish, found.publish), ("subscribe", wanted.subscribe, found.subscribe))
    return [
        f"{verb} {entry}"
        for verb, entries, allowed in lists
        if allowed is not None
        for entry in (entries if entries is not None else (">",))
        if not any(covers(pattern, entry) for pattern in allowed)
    ]


def covers(pattern: str, subject: str) -> bool:
    """Does `pattern` mean everything that `subject`, perhaps with wildcards, means?"""
    tokens, wanted = subject.split("."), pattern.split(".")
    for at, want in enumerate(wanted):
        if want == ">":
            return len(tokens) > at
        if at >= len(tokens) or tokens[at] == ">" or want not in ("*", tokens[at]):
            return False
    return len(tokens) == len(wanted)


def questions(kind: Kind) -> list[str]:
    """What a kind may ask the JetStream API."""
    asked = [
        subject.replace("{s}", stream)
        for stream, kinds in STREAM_ACCESS.items()
        for access in Access
        if access in kinds.get(kind, frozenset())
        for subject in _API[access]
    ]
    return [] if kind is CLIENT else [WHO_AM_I, _FIRST_QUESTION, *asked]


def compared_by(service: str) -> frozenset[str]:
    """The streams that a service may ask about, and so compares with their declaration; all of them for whoever has no row."""
    kind = next((kind for kind in Kind if kind == service), ADMIN)
    if kind is ADMIN:
        return frozenset(STREAM_ACCESS)
    return frozenset(stream for stream, kinds in STREAM_ACCESS.items() if INFO in kinds.get(kind, frozenset()))


class Crossing(NamedTuple):
    """One subject that `source` offers to the other account. `answered`: as a service; else as a plain stream of messages."""

    source: Account
    subject: str
    answered: bool


def _crossings() -> tuple[Crossing, ...]:
    anyone = NatsUser(kind=WORKER, own="*")
    asked = [*questions(WORKER), *(row.subject for row in SUBJECTS if WORKER in row.publish and row.answered)]
    made = [
        Crossing(source=Account.ARRIERO, subject=_for(anyone, subject), answered=True)
        for subject in asked
        if subject not in (WHO_AM_I, "ctl.{node}.*.ping")  # among workers
    ]
    for row in SUBJECTS:
        told = WORKER in row.publish and not row.answered
        heard = WORKER in row.hear and row.publish != (WORKER,)
        if told or heard:
            made.append(
                Crossing(source=Account.WORKERS, subject=_for(anyone, row.subject), answered=row.answered),
            )
    return tuple(made)


def _for(user: NatsUser, subject: str) -> str:
    node = user.own if user.kind is WORKER else "*"
    client = user.own if user.kind is CLIENT else "*"
    return subject.replace("{node}", node).replace("{client}", client)


CROSSINGS: tuple[Crossing, ...] = _crossings()
