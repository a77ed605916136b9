"""Whether a client or an API key counts at all: pure functions of its record and the time, the same for auth and gateways."""

from libs.common.contracts.clients import ApiKey, Client


def client_problem(client: Client | None, now: float) -> str | None:
    """A sentence's end: "The client …"; None when it counts. `now` in seconds since the epoch."""
    if client is None:
        return "does not exist"
    if client.disabled:
        return "is disabled"
    if client.expires_at is not None and now >= client.expires_at:
        return "has expired"
    return None


def key_problem(key: ApiKey | None, now: float) -> str | None:
    """The same of an API key; its client is another question."""
    if key is None:
        return "does not exist"
    if key.disabled:
        return "is disabled"
    if key.expires_at is not None and now >= key.expires_at:
        return "has expired"
    return None


def key_scopes(key: ApiKey, client: Client) -> tuple[str, ...]:
    """What it may do, in its client's order: never more than its client may now."""
    return tuple(scope for scope in client.scopes if key.scopes is None or scope in key.scopes)


def secrets_of(client: Client, now: float) -> tuple[str, ...]:
    """Verifiers of the secrets that count: the present ones, and those being replaced until their end."""
    return (*client.verifiers, *(old.verifier for old in client.replaced if now < old.until))
