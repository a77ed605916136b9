"""The id by which one request is found in logs, answers and the audit trail. Pure but for chance.

A caller's own is taken if it is plain and short: shorter than our API keys and tokens, so that none of them gets into a log
this way.
"""

import re
import secrets

_PLAIN = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# W3C Trace Context §3.2: version, trace id, parent id, flags; all zeros are no id
_TRACE = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def new_request_id() -> str:
    return secrets.token_hex(16)


def request_id_of(given: list[bytes], traceparent: list[bytes]) -> str:
    """That of `X-Request-Id`, else the trace id of `traceparent`, else a new one. What is given twice is not taken."""
    if len(given) == 1 and _PLAIN.fullmatch(given[0]):
        return given[0].decode("ascii")
    if len(traceparent) == 1 and (trace := _TRACE.fullmatch(traceparent[0])):
        return trace[1].decode("ascii")
    return new_request_id()
