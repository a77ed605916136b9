"""One line of the audit trail: who did what to what, with which result, and from where. Stream AUDIT, `audit.<service>.<writer>`.

Each writer (one process of a service) keeps a chain: `previous` is the SHA-256, hex, of the bytes of its record before.
`audit.auth.checkpoint` is a chain that all auth replicas write together: signed statements on the heads of the others.
Never a prompt, an answer or a secret: of what was written only names of fields, hashes and sizes.
"""

from enum import StrEnum

from libs.common.contracts.codec import Contract, Decoder


class Result(StrEnum):
    ALLOWED = "allowed"
    DENIED = "denied"
    FAILED = "failed"


class AuditRecord(Contract, frozen=True, kw_only=True):
    """`action` as `<noun>.<verb>`: token.issue, token.revoke, client.create, client.disable, key.create, key.revoke,
    signing_key.rotate, model.pull, model.delete, model.policy, node.drain, credential.refuse, job.submit, ….
    `actor` is a client's id, or what it claimed to be if that could not be verified; `address` where it came from."""

    n: int  # 1, 2, 3 … of this writer
    previous: str = ""  # empty for the first
    after: int = 0  # the stream sequence of that record before
    at_ms: int  # by the writer's clock; the stream has the server's, too
    action: str
    actor: str = ""
    credential: str = ""
    address: str = ""
    target: str = ""
    result: Result
    reason: str = ""  # a code, or a sentence's end
    request_id: str = ""
    count: int = 1  # so many equal ones in the minute before, told in one record
    dropped: int = 0  # so many before this one were lost: NATS was away for longer than the writer's memory reaches
    statement: str = ""  # of a checkpoint: a JWS whose payload is a `Statement`


class Head(Contract, frozen=True, kw_only=True):
    """The newest record of a chain."""

    writer: str  # `<service>.<writer>`, the end of its subject
    n: int
    sequence: int
    hash: str  # SHA-256 of its bytes, hex


class Statement(Contract, frozen=True, kw_only=True):
    """What auth signs: the head of every chain that grew in the stream after `since` and up to `upto` (sequences).

    `n` and `previous` are those of the checkpoint's own record, so that a statement cannot be moved to another place.
    """

    n: int
    previous: str = ""
    at_ms: int
    since: int = 0
    upto: int = 0
    heads: tuple[Head, ...] = ()


decode_audit = Decoder(AuditRecord)
decode_statement = Decoder(Statement)
