"""What stands between a socket and our applications: limits on connections, the check of each request's head, plain answers.

`protocol` is the connection (time, size, number), `front` the request (Host, Origin, ids, addresses, headers). The rules are
pure: `limits`, `hosts`, `origins`, `addresses`, `request_ids`.
"""

from typing import NamedTuple

from libs.common.edge.front import Rules
from libs.common.edge.limits import HttpLimits


class Edge(NamedTuple):
    """How one port treats who comes."""

    limits: HttpLimits = HttpLimits()
    rules: Rules = Rules()


__all__ = ["Edge", "HttpLimits", "Rules"]
