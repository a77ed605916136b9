"""Which names a client can have: its name is its id, a token of subjects and the owner of its jobs."""

from libs.common.contracts.subjects import BadToken, token

MAX_LENGTH = 40
# The users of our own services at NATS: a client of that name could be mistaken for one of them.
RESERVED = frozenset({"gateway", "router", "auth", "admin", "nats"})
RESERVED_PREFIX = "worker-"


class BadName(ValueError):
    """The text says what to change."""


def client_name(value: str) -> str:
    """`value` itself, or BadName."""
    if len(value) > MAX_LENGTH:
        raise BadName(f"a client's name has at most {MAX_LENGTH} characters")
    try:
        token(value, "client's name")
    except BadToken as error:
        raise BadName(str(error)) from error
    if value.lower() in RESERVED or value.lower().startswith(RESERVED_PREFIX):
        raise BadName(f"{value!r} is a name of Arriero's own services; take another one")
    return value
