"""What can go wrong on the bus, by what the caller can do about it.

BusError
├ Away            NATS did not answer in time, or nobody is connected: nothing is known, try later
│ └ Unconfirmed   a write was sent and no ack came: it may have been stored; read back before trying again
├ NoResponders    nobody listens on that subject (NATS says so at once)
├ Conflict        the compare-and-set named another sequence than the stream has
├ Full            the stream is at its limit, or the server's storage
└ Refused         JetStream said no, with its code; or the server would (too large, not a subject): nothing was sent
"""


class BusError(Exception):
    pass


class Away(BusError):
    pass


class Unconfirmed(Away):
    pass


class NoResponders(BusError):
    pass


class Conflict(BusError):
    pass


class Full(BusError):
    pass


class Refused(BusError):
    def __init__(self, code: int, description: str) -> None:
        super().__init__(f"{description} ({code})")
        self.code = code


# nats-server's error codes (server/errors.json): both mean "wrong last sequence".
WRONG_SEQUENCE = frozenset({10071, 10164})
# The stream's own limit; insufficient resources, the account's limit, insufficient storage: there may be room later.
FULL = frozenset({10077, 10023, 10002, 10047})
NO_MESSAGE = 10037
STREAM_NOT_FOUND = 10059
TOO_LARGE = 10054


def refusal(code: int, description: str) -> BusError:
    if code in WRONG_SEQUENCE:
        return Conflict(description)
    if code in FULL:
        return Full(description)
    return Refused(code, description)
