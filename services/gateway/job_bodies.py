"""What `POST /jobs` takes (and `api.<client>.submit`): checked, with the path of whatever is wrong. Pure.

Unknown fields are refused, because a misspelt option that is ignored is a changed answer.
"""

import re
from typing import Annotated, Any

import msgspec

from libs.common.contracts.clients import Policy
from libs.common.contracts.codec import NO_JSON
from libs.common.contracts.faults import Code, Failed, failed
from libs.common.contracts.requests import Kind, Priority, Request
from services.gateway.options import MAX_NUM_CTX, read_options
from services.gateway.wish import Wish

ROUTE = "/jobs"
DEADLINE_S, RESULT_TTL_S = 3600.0, 24 * 3600.0  # DESIGN §3
MAX_DEADLINE_S, MAX_RESULT_TTL_S = 7 * 86400.0, 30 * 86400.0
THINK_LEVELS = ("low", "medium", "high", "max")

Short = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
ModelName = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]


class ToolCall(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    function: dict[str, Any]
    id: str | None = None
    type: str | None = None


class Message(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    role: Short
    content: str = ""
    thinking: str | None = None
    images: list[str] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class JobBody(msgspec.Struct, forbid_unknown_fields=True):
    model: ModelName
    kind: Kind | None = None
    messages: Annotated[list[Message], msgspec.Meta(min_length=1, max_length=10_000)] | None = None
    prompt: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    input: str | Annotated[list[str], msgspec.Meta(min_length=1, max_length=10_000)] | None = None
    images: list[str] | None = None
    suffix: str | None = None
    system: str | None = None
    template: str | None = None
    raw: bool | None = None
    options: dict[str, Any] | None = None
    format: Any = None
    tools: list[dict[str, Any]] | None = None
    think: bool | str | None = None
    truncate: bool | None = None
    dimensions: Annotated[int, msgspec.Meta(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None
    priority: Priority | None = None
    deadline_s: Annotated[float, msgspec.Meta(gt=0, le=MAX_DEADLINE_S)] | None = None
    result_ttl_s: Annotated[float, msgspec.Meta(ge=60, le=MAX_RESULT_TTL_S)] | None = None
    metadata: (
        Annotated[dict[Short, Annotated[str, msgspec.Meta(max_length=512)]], msgspec.Meta(max_length=16)] | None
    ) = None
    webhook: Annotated[str, msgspec.Meta(pattern="^wh_[0-9a-f]{26}$", max_length=29)] | None = None
    # Programs made for Ollama send it. How long a model stays in memory is the router's business: taken, and not honoured.
    keep_alive: str | int | float | None = None


_decode = msgspec.json.Decoder(JobBody)
_PATH = re.compile(r" - at (?:`key` in )?`\$\.?(.*)`$")
_UNKNOWN = re.compile(r"unknown field `([^`]*)`")


def parse_job(body: bytes, policy: Policy, *, max_num_ctx: int = MAX_NUM_CTX) -> Wish:
    """Raises Failed with INVALID_REQUEST and the path of the field."""
    job = decode_body(_decode, body)
    kind = _kind_of(job)
    options = read_options(job.options, max_num_ctx=max_num_ctx)
    check_think(job.think)
    check_format(job.format)
    messages: list[dict[str, Any]] | None = None if job.messages is None else msgspec.to_builtins(job.messages)
    request = Request(
        model=job.model,
        messages=messages,
        prompt=job.prompt,
        input=job.input,
        images=job.images,
        suffix=job.suffix,
        system=job.system,
        template=job.template,
        raw=job.raw,
        options=options.passed,
        format=NO_JSON if job.format is None else msgspec.Raw(msgspec.json.encode(job.format)),
        tools=None if job.tools is None else [msgspec.Raw(msgspec.json.encode(tool)) for tool in job.tools],
        think=job.think,
        truncate=job.truncate,
        dimensions=job.dimensions,
        logprobs=job.logprobs,
        top_logprobs=job.top_logprobs,
    )
    return Wish(
        kind=kind,
        request=request,
        route=ROUTE,
        priority=job.priority or Priority.NORMAL,
        deadline_s=job.deadline_s or policy.deadline_s or DEADLINE_S,
        result_ttl_s=job.result_ttl_s or policy.result_ttl_s or RESULT_TTL_S,
        detached=True,  # a job of its own right: nobody has to watch it
        num_ctx=options.num_ctx,
        deadline_asked=job.deadline_s is not None,
        metadata=job.metadata,
        webhook=job.webhook or "",
    )


def decode_body(decoder: Any, body: bytes) -> Any:
    """Raises Failed: malformed JSON, a wrong type, a missing or unknown field, each with its place."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from error
    except msgspec.DecodeError as error:
        raise failed(Code.INVALID_REQUEST, f"the body is not valid JSON: {error}") from error
    except UnicodeDecodeError as error:
        raise failed(Code.INVALID_REQUEST, "the body is not valid UTF-8") from error
    except RecursionError as error:
        raise failed(Code.INVALID_REQUEST, "the body is nested too deeply") from error


def _invalid(text: str) -> Failed:
    found = _PATH.search(text)
    path = found[1] if found else ""
    message = _PATH.sub("", text)
    if unknown := _UNKNOWN.search(message):
        path = f"{path}.{unknown[1]}" if path else unknown[1]
    elif missing := re.search(r"missing required field `([^`]*)`", message):
        path = f"{path}.{missing[1]}" if path else missing[1]
    return failed(Code.INVALID_REQUEST, f"{path or 'the body'}: {message}", path=path or None)


def _kind_of(job: JobBody) -> Kind:
    given = {
        kind: field
        for kind, field, value in (
            (Kind.CHAT, "messages", job.messages),
            (Kind.GENERATE, "prompt", job.prompt),
            (Kind.EMBED, "input", job.input),
        )
        if value is not None
    }
    if len(given) != 1:
        message = "give exactly one of messages (chat), prompt (generate) or input (embed)"
        raise failed(Code.INVALID_REQUEST, message, path=list(given.values())[1] if given else None)
    ((kind, field),) = given.items()
    if job.kind is not None and job.kind is not kind:
        raise failed(Code.INVALID_REQUEST, f"kind is {job.kind}, but {field} is for {kind}", path="kind")
    fields = {
        "images": (Kind.GENERATE,), "suffix": (Kind.GENERATE,), "system": (Kind.GENERATE,), "template": (Kind.GENERATE,),
        "raw": (Kind.GENERATE,), "tools": (Kind.CHAT,), "dimensions": (Kind.EMBED,),
        "format": (Kind.CHAT, Kind.GENERATE), "think": (Kind.CHAT, Kind.GENERATE),
        "logprobs": (Kind.CHAT, Kind.GENERATE), "top_logprobs": (Kind.CHAT, Kind.GENERATE),
    }  # fmt: skip
    for name, kinds in fields.items():
        if getattr(job, name) is not None and kind not in kinds:
            raise failed(Code.INVALID_REQUEST, f"{name} has no meaning for {kind}", path=name)
    return kind


def check_think(think: bool | str | None) -> None:
    if isinstance(think, str) and think not in THINK_LEVELS:
        raise failed(
            Code.INVALID_REQUEST, f"think must be true, false or one of {', '.join(THINK_LEVELS)}", path="think"
        )


def check_format(value: Any) -> None:
    """Either "json" or a JSON schema; Ollama answers a 500 to anything else."""
    if value is not None and value != "json" and not isinstance(value, dict):
        raise failed(Code.INVALID_REQUEST, 'format must be "json" or a JSON schema', path="format")
