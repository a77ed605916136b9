"""What a route says about itself beside method, path and scope. Types are those that msgspec makes schemas of."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from libs.common.contracts.faults import Code

JSON, FORM = "application/json", "application/x-www-form-urlencoded"
SSE, LINES = "text/event-stream", "application/x-ndjson"


class Parameter(NamedTuple):
    """Of the query or a header. Path parameters come from the path; one named here says more of it."""

    name: str
    type: Any
    about: str
    where: str = "query"
    required: bool = False


class Header(NamedTuple):
    """Of an answer. `required`: it is always there."""

    name: str
    about: str
    type: Any = str
    required: bool = False


class Body(NamedTuple):
    """`type`: the struct that decodes it. Not `required`: nothing at all is fine, too. `merges`: a JSON merge patch (RFC 7396) of
    it, in which everything may be left out, or null."""

    type: Any
    content_type: str = JSON
    required: bool = True
    example: Any = None
    merges: bool = False


class Link(NamedTuple):
    """What an answer leads to: `parameters` of another operation, as runtime expressions on the answer."""

    operation: str  # its method and path, as in the route
    parameters: Mapping[str, str]


class Answer(NamedTuple):
    """One that is no error. `types`: one of these is what its JSON holds; of a stream, what each event or line is.

    `content_type` None: no body.
    """

    about: str
    types: tuple[Any, ...] = ()
    status: int = 200
    content_type: str | None = JSON
    headers: tuple[Header, ...] = ()
    links: Mapping[str, Link] = {}


class Operation(NamedTuple):
    """`codes`: what this route can refuse, beyond what each route of its service can."""

    summary: str
    answers: tuple[Answer, ...]
    body: Body | None = None
    parameters: tuple[Parameter, ...] = ()
    codes: tuple[Code, ...] = ()
    about: str = ""
