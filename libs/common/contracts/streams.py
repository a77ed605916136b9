"""Streams and buckets as data: `arriero nats init` creates them, services only compare.

A bucket is a stream `KV_<bucket>` on `$KV.<bucket>.>` with the settings of NATS's own key-value layer (ADR-8).
"""

from typing import Any, Literal

from libs.common.contracts.codec import Contract

NANOSECOND = 1_000_000_000
GIB = 1024**3
MIB = 1024**2

JOBS = "JOBS"
OUT = "OUT"
AUDIT = "AUDIT"
HOOKS = "HOOKS"


class Stream(Contract, frozen=True, kw_only=True):
    """`max_bytes` None: the smaller of 50 GiB and a quarter of the server's free storage, set when it is created."""

    name: str
    subjects: tuple[str, ...]
    purpose: str
    discard: Literal["new", "old"] = "new"
    max_msgs_per_subject: int = 1
    max_age_s: int = 0
    max_bytes: int | None = None
    replicated: bool = True
    rollup: bool = False
    work_queue: bool = False  # a message is gone once it is acked
    append_only: bool = False  # nobody may delete a message or purge, not even a user that may do everything

    def config(self, *, replicas: int, max_bytes: int) -> dict[str, Any]:
        """As the JetStream API takes it; every field stands here, so that a comparison sees all of them."""
        return {
            "name": self.name,
            "description": self.purpose,
            "subjects": list(self.subjects),
            "retention": "workqueue" if self.work_queue else "limits",
            "storage": "file",
            "discard": self.discard,
            "num_replicas": replicas if self.replicated else 1,
            "max_msgs_per_subject": self.max_msgs_per_subject,
            "max_age": self.max_age_s * NANOSECOND,
            "max_bytes": self.max_bytes or max_bytes,
            "max_msg_size": 1 * MIB,
            "duplicate_window": 120 * NANOSECOND,
            "allow_msg_ttl": True,
            "allow_direct": True,
            "allow_rollup_hdrs": self.rollup,
            "deny_delete": self.append_only,
            "deny_purge": self.append_only,
        }


def bucket(name: str, purpose: str, *, max_bytes: int = 64 * MIB) -> Stream:
    # No marker TTL: nats-py and CAS both stumble over server markers in lock buckets (nats-jetstream.md P4).
    return Stream(name=f"KV_{name}", subjects=(f"$KV.{name}.>",), purpose=purpose, max_bytes=max_bytes, rollup=True)


NODES, LEASES, CLIENTS, SIGNING, REVOKED, MODELS = "nodes", "leases", "clients", "signing", "revoked", "models"
LIMITS = "limits"
WEBHOOKS = "webhooks"
ATTEMPTS = "attempts"

STREAMS: tuple[Stream, ...] = (
    Stream(
        name=JOBS,
        subjects=("jobs.*.*.*", "cancels.*.*", "parts.*.*.*.*"),
        purpose="Arriero: every job's folder, the only source of truth",
    ),
    Stream(
        name=OUT,
        subjects=("out.*.*.*.*.s",),
        purpose="Arriero: acked segments of running answers",
        discard="old",
        max_msgs_per_subject=-1,
        max_age_s=75 * 60,  # one run is at most 60 minutes; the rest is time to gather it
        max_bytes=4 * GIB,
    ),
    Stream(
        name=AUDIT,
        subjects=("audit.*.*",),
        purpose="Arriero: who did what to what, each writer's records a hash chain",
        discard="old",
        max_msgs_per_subject=-1,
        max_age_s=400 * 24 * 3600,  # a year, and what a yearly review takes
        max_bytes=2 * GIB,
        append_only=True,
    ),
    Stream(
        name=HOOKS,
        subjects=("hooks.wait.*.*", "hooks.send.*.*.*"),
        purpose="Arriero: jobs whose end a webhook is to hear of, and events on their way",
        max_bytes=1 * GIB,
        work_queue=True,
    ),
    bucket(NODES, "Arriero: heartbeats of the nodes"),
    bucket(LEASES, "Arriero: leases, such as the active router's"),
    bucket(CLIENTS, "Arriero: clients and API keys, secrets as keyed HMAC", max_bytes=256 * MIB),
    bucket(SIGNING, "Arriero: token signing keys, private parts encrypted"),
    bucket(REVOKED, "Arriero: revoked tokens", max_bytes=256 * MIB),
    bucket(ATTEMPTS, "Arriero: used client assertions, and who failed to authenticate how often; all gone in minutes"),
    bucket(MODELS, "Arriero: aliases, pins and policies of models"),
    bucket(WEBHOOKS, "Arriero: webhooks of clients, secrets encrypted"),
    bucket(LIMITS, "Arriero: what clients and keys with limits have used", max_bytes=256 * MIB),
)


def key_subject(bucket_name: str, key: str) -> str:
    return f"$KV.{bucket_name}.{key}"


def differences(wanted: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What differs between a declared configuration and a server's, as sentences. Of max_bytes only that it is set."""
    said = []
    for field, value in wanted.items():
        other = found.get(field)
        if field == "max_bytes":
            if not isinstance(other, int) or other <= 0:
                said.append("max_bytes is not set")
        elif field == "subjects":
            if sorted(value) != sorted(other or []):
                said.append(f"subjects are {other}, should be {value}")
        elif field in ("description", "num_replicas"):
            continue  # prose, and the operator's choice
        elif (other or 0) != (value or 0):
            said.append(f"{field} is {other!r}, should be {value!r}")
    return said
