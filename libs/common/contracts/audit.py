"""One line of the audit trail: who did what to what, with which result, and from where. Stream AUDIT, `audit.<service>.<writer>`.

Each writer (one process of a service) keeps a chain: `previous` is the SHA-256, hex, of the bytes of its record before.
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
    at_ms: int
    action: str
    actor: str = ""
    credential: str = ""
    address: str = ""
    target: str = ""
    result: Result
    reason: str = ""  # a code, or a sentence's end
    request_id: str = ""


decode_audit = Decoder(AuditRecord)
