"""What stands between a socket and our applications: limits on connections, the check of each request's head, plain answers.

`protocol` is the connection (time, size, number), `front` the request (Host, Origin, ids, addresses, headers). The rules are
pure: `limits`, `hosts`, `origins`, `addresses`, `request_ids`.
"""

from typing import NamedTuple

from libs.common.contracts.faults import Code
from libs.common.edge.front import Rules
from libs.common.edge.limits import HttpLimits


class Edge(NamedTuple):
    """How one port treats who comes."""

    limits: HttpLimits = HttpLimits()
    rules: Rules = Rules()


# What a port may answer by itself, whatever was asked for.
CODES = (
    Code.INVALID_REQUEST,
    Code.FORBIDDEN,
    Code.REQUEST_TIMEOUT,
    Code.URI_TOO_LONG,
    Code.MISDIRECTED,
    Code.HEADERS_TOO_LARGE,
    Code.RATE_LIMITED,
    Code.OVERLOADED,
    Code.INTERNAL,
)

__all__ = ["CODES", "Edge", "HttpLimits", "Rules"]
