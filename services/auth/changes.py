"""What can be done to a client, as pure functions: its record before and the time in, its record after out."""

from collections.abc import Mapping

import msgspec

from libs.common.contracts.clients import Client, ReplacedSecret, Scope
from libs.common.contracts.faults import Code, failed

MAX_REPLACED = 3  # secrets before the present one that may still count; the oldest goes first

# Clocks of auth's replicas may be this far apart; LEEWAY_S of tokens is more, so a token stamped so far ahead counts.
SKEW_S = 5


def ended_tokens(client: Client, now: float) -> int:
    """`not_before` after which no token issued up to now counts. Tokens carry whole seconds, so it is the next one."""
    return max(client.not_before, int(now) + 1 + SKEW_S)


def disabled(client: Client, now: float) -> Client:
    """Its tokens end for good: enabling it again does not bring them back."""
    if client.disabled:
        return client
    return msgspec.structs.replace(client, disabled=True, not_before=ended_tokens(client, now))


def enabled(client: Client) -> Client:
    return msgspec.structs.replace(client, disabled=False)


def rotated(client: Client, verifier: str, now: float, *, grace_s: int, end_tokens: bool) -> Client:
    """With a new secret. Those before count for `grace_s` at most; an earlier end stays as it is."""
    still = [old for old in client.replaced if now < old.until]
    until = int(now) + grace_s
    # Of two with the same end the newer is kept: it is the one in use.
    replaced = [ReplacedSecret(verifier=old, until=until) for old in client.verifiers]
    replaced += [ReplacedSecret(verifier=old.verifier, until=min(old.until, until)) for old in still]
    kept = tuple(replaced[:MAX_REPLACED]) if grace_s else ()
    not_before = ended_tokens(client, now) if end_tokens else client.not_before
    return msgspec.structs.replace(client, verifiers=(verifier,), replaced=kept, not_before=not_before)


def without_secret(client: Client) -> Client:
    """Raises Failed (INVALID_REQUEST) when it would have nothing left to prove itself with."""
    if not client.jwks:
        raise failed(
            Code.INVALID_REQUEST,
            f"Client {client.id!r} has no public keys, so without a secret it could not prove itself. Set jwks first.",
        )
    return msgspec.structs.replace(client, verifiers=(), replaced=())


def administrates(client: Client) -> bool:
    """It can, and will be able to: a client that expires leaves nobody behind one day."""
    return (
        Scope.ADMIN_CLIENTS in client.scopes
        and not client.disabled
        and client.expires_at is None
        and bool(client.verifiers or client.jwks)
    )


def require_administrator(clients: Mapping[str, Client], name: str, after: Client | None) -> None:
    """Raises Failed (LAST_ADMINISTRATOR) when `name` is the last one who administrates, and would not be one `after`."""
    before = clients.get(name)
    if before is None or not administrates(before) or (after is not None and administrates(after)):
        return
    if not any(administrates(client) for client in clients.values() if client.id != name):
        raise failed(
            Code.LAST_ADMINISTRATOR,
            f"Client {name!r} is the last one with the scope {Scope.ADMIN_CLIENTS} that is enabled and does not expire. "
            "Make another one first.",
        )
