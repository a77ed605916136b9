"""What every user must be able to say, hear and ask, and nothing else: written by hand, subject by subject, apart from the table
in `contracts.permissions`. `probes` makes of it what a real server is asked.

A token that begins with ~ may be anything. `…` at the end: any further tokens. Who is not named is refused; `admin` may do
everything. n1 and n2 are workers, billing and rival are clients.
"""

from collections.abc import Iterator
from typing import NamedTuple

from libs.common.contracts.streams import STREAMS

USERS = ("auth", "gateway", "router", "worker-n1", "worker-n2", "billing", "rival")
WORKERS = "worker-n1 worker-n2"

SAY = {
    "jobs.~billing.~job_1.new": "gateway router",
    "jobs.~billing.~job_1.active": "router",
    "jobs.~billing.~job_1.done": f"router {WORKERS}",
    "cancels.~billing.~job_1": "gateway router",
    "parts.~billing.~job_1.~op.~0": f"gateway router {WORKERS}",
    "out.n1.~billing.~job_1.~7.c": "worker-n1",
    "out.n2.~billing.~job_1.~7.c": "worker-n2",
    "out.n1.~billing.~job_1.~7.s": "worker-n1",
    "out.n2.~billing.~job_1.~7.s": "worker-n2",
    "evt.~billing.~job_1": f"gateway router {WORKERS}",
    "prefix.~billing.~job_1": "router",
    "ctl.~n1.~boot.run": "router",
    "ctl.~n1.~boot.cancel": "router",
    "ctl.~n1.~boot.read": "gateway",
    "ctl.~n1.~boot.model": "gateway router",
    "ctl.~n3.~boot.ping": "router",
    "ctl.n1.~boot.ping": "router worker-n1",
    "ctl.n2.~boot.ping": "router worker-n2",
    "ctl.router.~boot.ping": "router",
    "ctl.router.free": WORKERS,
    "ctl.router.place": "gateway",
    "ctl.router.quote": "gateway",
    "ctl.router.erase": "gateway",
    "api.billing.~submit": "billing",
    "api.rival.~submit": "rival",
    "audit.auth.~writer": "auth",
    "audit.gateway.~writer": "gateway",
    "audit.router.~writer": "",
    "$JS.API.DIRECT.GET.AUDIT.audit.auth.~writer": "auth",
    "$JS.API.DIRECT.GET.AUDIT.audit.gateway.~writer": "gateway",
    "$JS.API.DIRECT.GET.AUDIT.audit.router.~writer": "",
    "$KV.nodes.n1": "worker-n1",
    "$KV.nodes.n2": "worker-n2",
    "$KV.leases.~router": "router",
    "$KV.clients.~client.…": "auth",
    "$KV.signing.~ring.…": "auth",
    "$KV.revoked.~token.…": "auth",
    "$KV.attempts.~used.…": "auth gateway",
    "$KV.models.~model.…": "gateway",
    "$KV.limits.~account.…": "gateway",
    "$KV.webhooks.~billing": "gateway",
    "hooks.wait.~billing.~job_1": "gateway",
    "hooks.send.~billing.~job_1.~7": "gateway",
    "_INBOX.~someone.~x.…": "gateway",
    "_INBOX.admin.~x.…": "",
    "_INBOX.auth.~x.…": "",
    "_INBOX.gateway.~x.…": "gateway router",
    "_INBOX.router.~x.…": "gateway router",
    "_INBOX.worker-n1.~x.…": "gateway worker-n1",  # in the gateway's account nobody listens there
    "_INBOX.worker-n2.~x.…": "gateway worker-n2",
    "_INBOX.billing.~x.…": "gateway",
    "_INBOX.rival.~x.…": "gateway",
    "_R_.~x.…": WORKERS,
    "$JS.ACK.JOBS.c.1.1.1.1.0": "",
    "$SYS.REQ.SERVER.PING": "",
    "$SYS.REQ.ACCOUNT.ARRIERO.JSZ": "",
    "$SYS.REQ.USER.INFO": "auth gateway router worker-n1 worker-n2",
    "$JS.API.INFO": "auth gateway router worker-n1 worker-n2",
    "$JS.API.STREAM.NAMES": "",
    "$JS.API.STREAM.LIST": "",
    "$JS.API.ACCOUNT.PURGE.ARRIERO": "",
    "$JS.API.SERVER.REMOVE": "",
    "$JS.API.META.LEADER.STEPDOWN": "",
    "anything": "",
}

HEAR = {
    ">": "",
    "*": "",
    "*.>": "",
    "jobs.>": "",
    "jobs.*.*.*": "",
    "jobs.billing.*.*": "",
    "jobs.billing.job_1.new": "",
    "jobs.billing.job_1.done": "",
    "cancels.>": "",
    "parts.>": "",
    "out.>": "",
    "out.*.*.*.*.c": "gateway",
    "out.*.*.*.*.s": "",
    "out.*.*.*.*.*": "",
    "out.n1.billing.job_1.7.c": "gateway billing",
    "out.*.billing.*.*.c": "gateway billing",
    "out.*.billing.>": "billing",
    "out.*.rival.>": "rival",
    "out.*.rival.job_1.*.c": "gateway rival",
    "evt.>": "",
    "evt.*.*": "gateway",
    "evt.billing.>": "billing",
    "evt.billing.*": "gateway billing",
    "evt.rival.>": "rival",
    "prefix.>": "",
    "prefix.*.*": "gateway",
    "prefix.billing.job_1": "gateway",
    "ctl.>": "",
    "ctl.*.*.run": "",
    "ctl.*.*.ping": "",
    "ctl.*.*.read": "",
    "ctl.*.*.model": "",
    "ctl.*.*.cancel": "",
    "ctl.n1.>": "",
    "ctl.n1.*.run": "worker-n1",
    "ctl.n1.*.cancel": "worker-n1",
    "ctl.n1.*.read": "worker-n1",
    "ctl.n1.*.model": "worker-n1",
    "ctl.n1.*.ping": "worker-n1",
    "ctl.n1.*.*": "",
    "ctl.n2.>": "",
    "ctl.n2.*.*": "",
    "ctl.n2.*.run": "worker-n2",
    "ctl.n2.*.cancel": "worker-n2",
    "ctl.n2.*.read": "worker-n2",
    "ctl.n2.*.model": "worker-n2",
    "ctl.n2.boot.ping": "worker-n2",
    "ctl.router.>": "",
    "ctl.router.*": "",
    "ctl.router.free": "router",
    "ctl.router.place": "router",
    "ctl.router.quote": "router",
    "ctl.router.erase": "router",
    "ctl.router.zzz": "",
    "ctl.router.*.ping": "router",
    "ctl.router.*.run": "",
    "api.>": "",
    "api.*.*": "gateway",
    "api.billing.submit": "gateway",
    "audit.>": "",
    "audit.*.*": "",
    "audit.auth.w": "",
    "$KV.>": "",
    "$KV.*.>": "",
    "$KV.nodes.*": "router",
    "$KV.nodes.n1": "router worker-n1",
    "$KV.nodes.n2": "router worker-n2",
    "$KV.leases.*": "",
    "$KV.clients.>": "",
    "$KV.signing.>": "",
    "$KV.revoked.>": "",
    "$KV.attempts.>": "",
    "$KV.limits.>": "",
    "$KV.webhooks.>": "",
    "hooks.>": "",
    "hooks.*.>": "",
    "hooks.wait.*.*": "",
    "$KV.models.>": "",
    "_INBOX.>": "",
    "_INBOX.*": "",
    "_INBOX.*.>": "",
    "_INBOX.admin.>": "",
    "_INBOX.auth.>": "auth",
    "_INBOX.gateway.>": "gateway",
    "_INBOX.router.>": "router",
    "_INBOX.worker-n1.>": "worker-n1",
    "_INBOX.worker-n2.>": "worker-n2",
    "_INBOX.billing.>": "billing",
    "_INBOX.rival.>": "rival",
    "_R_.>": "",
    "_R_.*.*": "",
    "$JS.>": "",
    "$JS.API.>": "",
    "$JS.ACK.>": "",
    "$JS.EVENT.>": "",
    "$JS.EVENT.ADVISORY.>": "",
    "$SYS.>": "",
}

# nats-server takes a wildcard that is asked for as a token like others: who may hear a.* may ask for a.>, too.
ALSO = {
    "evt.billing.>": "gateway billing",
    "evt.rival.>": "gateway rival",
    "api.billing.>": "gateway",
    "$KV.nodes.>": "router",
    "prefix.billing.>": "gateway",
}

# Of the JetStream API: who may ask what about which stream. `+` is a consumer, `…` as above. `auth` reads AUDIT for those
# with the scope audit:read.
ASK = {
    "STREAM.INFO": {
        "JOBS": f"gateway router {WORKERS}", "KV_attempts": "auth gateway", "KV_limits": "gateway",
        "OUT": f"router {WORKERS}", "AUDIT": "auth gateway",
        "KV_nodes": f"gateway router {WORKERS}", "KV_leases": "router", "KV_clients": "auth gateway",
        "KV_signing": "auth", "KV_revoked": "auth gateway", "KV_models": "gateway router",
        "HOOKS": "gateway", "KV_webhooks": "gateway",
    },
    "STREAM.MSG.GET": {
        "JOBS": f"gateway router {WORKERS}", "KV_attempts": "auth gateway", "KV_limits": "gateway",
        "OUT": "router", "AUDIT": "auth", "KV_nodes": WORKERS, "KV_leases": "router",
        "KV_clients": "auth", "KV_signing": "auth", "KV_revoked": "auth", "KV_models": "gateway router",
        "KV_webhooks": "gateway",
    },
    "DIRECT.GET": {"JOBS": "gateway router", "OUT": "router", "AUDIT": "auth"},
    "STREAM.PURGE": {"JOBS": "router", "OUT": "router", "HOOKS": "gateway"},
    "CONSUMER.CREATE.+…": {
        "JOBS": "gateway router", "AUDIT": "auth", "KV_nodes": "gateway router", "KV_clients": "auth gateway",
        "KV_signing": "auth", "KV_revoked": "auth gateway", "KV_models": "gateway router", "KV_attempts": "auth gateway",
        "HOOKS": "gateway",
    },
    "CONSUMER.MSG.NEXT.+": {"JOBS": "gateway", "HOOKS": "gateway"},
    **{
        verb: {}
        for verb in (
            "STREAM.CREATE", "STREAM.UPDATE", "STREAM.DELETE", "STREAM.MSG.DELETE", "STREAM.SNAPSHOT", "STREAM.RESTORE",
            "STREAM.LEADER.STEPDOWN", "STREAM.PEER.REMOVE", "CONSUMER.CREATE", "CONSUMER.DURABLE.CREATE.+",
            "CONSUMER.INFO.+", "CONSUMER.LIST", "CONSUMER.NAMES", "CONSUMER.PAUSE.+", "CONSUMER.LEADER.STEPDOWN.+",
            "CONSUMER.UNPIN.+", "CONSUMER.RESET.+", "DIRECT.GET.+",
        )
    },
}  # fmt: skip
FLOWS = {stream: names for stream, names in ASK["CONSUMER.CREATE.+…"].items() if stream != "HOOKS"}
ASK["CONSUMER.DELETE.+"] = FLOWS  # it takes its own away again; those of HOOKS stay
ACKS = {"HOOKS": "gateway"}


NAMES = {"billing", "rival", "n1", "n2", "job_1", "boot", "*", ">", "consumer", "worker-n1", "worker-n2"}


class Probe(NamedTuple):
    """May these, and nobody else, publish on (or subscribe to) that subject?"""

    verb: str
    subject: str
    allowed: frozenset[str]


def probes() -> list[Probe]:
    lines = SAY | dict(_asked())
    told = {subject: names for line, names in lines.items() for subject in _said(line)}
    # One token of what may be said is another, or one more, or one less: nobody may say that, unless another line does.
    for line in lines:
        for subject in _near(line):
            if subject not in told:
                told[subject] = _meant(lines, subject)
    heard = dict(HEAR)
    for line in HEAR:
        for subject in _near(line):
            heard.setdefault(subject, " ".join(names for wider, names in HEAR.items() if _covers(wider, subject)))
    heard |= ALSO
    return [
        *(Probe("PUB", subject, frozenset(names.split())) for subject, names in told.items()),
        *(Probe("SUB", subject, frozenset(names.split())) for subject, names in heard.items()),
    ]


def _said(line: str) -> list[str]:
    """The subject, and it with other names."""
    tokens = line.removesuffix(".…").split(".")
    plain = ".".join(token.removeprefix("~") for token in tokens)
    other = ".".join("other" if token.startswith("~") else token for token in tokens)
    return [plain, other, *([f"{plain}.deeper", f"{plain}.deep.est"] if line.endswith("…") else [])]


def _meant(lines: dict[str, str], subject: str) -> str:
    tokens = subject.split(".")
    for line, names in lines.items():
        wanted = line.removesuffix(".…").split(".")
        longer = line.endswith("…") and len(tokens) > len(wanted)
        fits = all(want.startswith("~") or want == token for want, token in zip(wanted, tokens, strict=False))
        if fits and (longer or len(tokens) == len(wanted)):
            return names
    return ""


def _covers(wider: str, subject: str) -> bool:
    tokens, wanted = subject.split("."), wider.split(".")
    if wanted[-1] == ">" and len(tokens) >= len(wanted):
        tokens, wanted = tokens[: len(wanted) - 1], wanted[:-1]
    return len(tokens) == len(wanted) and all(want in ("*", token) for want, token in zip(wanted, tokens, strict=True))


def _near(line: str) -> Iterator[str]:
    tokens = line.removesuffix(".…").split(".")
    plain = [token.removeprefix("~") for token in tokens]
    for at, token in enumerate(tokens):
        if not token.startswith("~") and token not in NAMES:
            yield ".".join([*plain[:at], "zzz", *plain[at + 1 :]])
    if len(plain) > 1:
        yield ".".join(plain[:-1])
    if not line.endswith(("…", ">")):
        yield ".".join([*plain, "zzz"])


def _asked() -> Iterator[tuple[str, str]]:
    """Lines as in SAY."""
    for stream in [*(stream.name for stream in STREAMS), "OTHER"]:
        for verb, streams in ASK.items():
            api, plus, rest = verb.partition(".+")
            consumer = f".~consumer{'.…' if rest else ''}" if plus else ""
            yield f"$JS.API.{api}.{stream}{consumer}", streams.get(stream, "")
        yield f"$JS.FC.{stream}.~consumer.…", FLOWS.get(stream, "")
        yield f"$JS.FC.~domain.~account.{stream}.~consumer.…", FLOWS.get(stream, "")
        yield f"$JS.ACK.{stream}.~consumer.…", ACKS.get(stream, "")
        yield f"$JS.ACK.~domain.~account.{stream}.~consumer.…", ACKS.get(stream, "")
