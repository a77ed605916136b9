"""OpenAPI 3.1 documents out of what the services already have as data: routes, structs that decode bodies, the table of faults.

`operation`: what a route adds about itself; `errors`: how faults look in each dialect; `document`: all of it put together.
"""

from libs.common.openapi.document import Described, Refusals, document
from libs.common.openapi.errors import OAUTH, OPENAI, PROBLEM, ErrorForm
from libs.common.openapi.operation import FORM, JSON, LINES, SSE, Answer, Body, Header, Link, Operation, Parameter

__all__ = [
    "FORM",
    "JSON",
    "LINES",
    "OAUTH",
    "OPENAI",
    "PROBLEM",
    "SSE",
    "Answer",
    "Body",
    "Described",
    "ErrorForm",
    "Header",
    "Link",
    "Operation",
    "Parameter",
    "Refusals",
    "document",
]
