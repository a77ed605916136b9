"""OpenAI's chat completion request in Ollama's terms. Pure.

400 only for known parameters that would change the answer and cannot be honoured; whatever else is there is accepted
(DESIGN §5). Sources: OpenAI's API reference; Ollama `openai/openai.go` for how it maps them itself (ollama-facts.md §1.11).
"""

import re
from typing import Annotated, Any

import msgspec

from libs.common.contracts.clients import Policy
from libs.common.contracts.codec import NO_JSON
from libs.common.contracts.faults import Code, Failed, failed
from libs.common.contracts.requests import Kind, Priority, Request
from services.gateway.job_bodies import ModelName, decode_body
from services.gateway.options import MAX_INTEGER
from services.gateway.wish import Wish

ROUTE = "/v1/chat/completions"
DEADLINE_S, RESULT_TTL_S = 1800.0, 3600.0  # DESIGN §3

_DATA_URI = re.compile(r"data:[\w.+-]+/[\w.+-]+;base64,")
MAX_NAME = 256  # characters of a function's; each of its results repeats it. OpenAI takes 64
_ROLES = ("system", "developer", "user", "assistant", "tool")
_EFFORTS: dict[str, bool | str] = {
    "none": False, "minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "max", "max": "max",
}  # fmt: skip


class ToolFunction(msgspec.Struct):
    name: str
    arguments: str = "{}"


class ToolCall(msgspec.Struct):
    function: ToolFunction
    id: str | None = None


class ImageUrl(msgspec.Struct):
    url: str


class Part(msgspec.Struct):
    type: str
    text: str = ""
    image_url: ImageUrl | None = None


class Message(msgspec.Struct):
    role: str
    content: str | list[Part] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning: str | None = None


class JsonSchema(msgspec.Struct):
    schema: dict[str, Any]


class ResponseFormat(msgspec.Struct):
    type: str
    json_schema: JsonSchema | None = None


class StreamOptions(msgspec.Struct):
    include_usage: bool = False


class ChatBody(msgspec.Struct):
    model: ModelName
    messages: Annotated[list[Message], msgspec.Meta(min_length=1, max_length=10_000)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, msgspec.Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, msgspec.Meta(ge=-2, le=2)] | None = None
    seed: Annotated[int, msgspec.Meta(ge=-MAX_INTEGER, le=MAX_INTEGER)] | None = None
    stop: str | list[str] | None = None
    response_format: ResponseFormat | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None
    n: int | None = None
    logit_bias: dict[str, float] | None = None
    functions: list[Any] | None = None
    modalities: list[str] | None = None
    web_search_options: dict[str, Any] | None = None


class ChatWish(msgspec.Struct, frozen=True):
    wish: Wish
    stream: bool


_decode = msgspec.json.Decoder(ChatBody)


def parse_chat(body: bytes, policy: Policy, *, detached: bool) -> ChatWish:
    """Raises Failed: INVALID_REQUEST or UNSUPPORTED_PARAMETER, with the path of the field."""
    chat: ChatBody = decode_body(_decode, body)
    _refuse_what_cannot_be(chat)
    request = Request(
        model=chat.model,
        messages=_messages(chat.messages),
        options=_options(chat) or None,
        format=_format(chat.response_format),
        tools=_tools(chat),
        think=_think(chat.reasoning_effort),
        logprobs=chat.logprobs,
        top_logprobs=chat.top_logprobs,
    )
    wish = Wish(
        kind=Kind.CHAT,
        request=request,
        route=ROUTE,
        priority=Priority.INTERACTIVE,
        deadline_s=policy.deadline_s or DEADLINE_S,
        result_ttl_s=policy.result_ttl_s or RESULT_TTL_S,
        detached=detached,
        include_usage=chat.stream_options is not None and chat.stream_options.include_usage,
    )
    return ChatWish(wish, stream=bool(chat.stream))


def _refuse_what_cannot_be(chat: ChatBody) -> None:
    if chat.n not in (None, 1):
        raise _cannot("n", "only one answer for each request; send the request n times")
    if chat.logit_bias:
        raise _cannot("logit_bias", "Ollama has no logit bias")
    if chat.functions:
        raise _cannot("functions", "give tools instead of functions")
    if chat.modalities and chat.modalities != ["text"]:
        raise _cannot("modalities", "only text")
    if chat.web_search_options is not None:
        raise _cannot("web_search_options", "there is no web search here")
    if chat.tools and (isinstance(chat.tool_choice, dict) or chat.tool_choice == "required"):
        raise _cannot("tool_choice", 'Ollama cannot be made to call a tool; use "auto" or "none"')
    if chat.tools and chat.parallel_tool_calls is False:
        raise _cannot("parallel_tool_calls", "Ollama cannot be held to one call at a time")
    if isinstance(chat.tool_choice, str) and chat.tool_choice not in ("auto", "none", "required"):
        raise failed(Code.INVALID_REQUEST, 'tool_choice must be "auto", "none" or "required"', path="tool_choice")


def _messages(messages: list[Message]) -> list[dict[str, Any]]:
    names: dict[str, str] = {}  # of tools, by call id: OpenAI's answers name the call, Ollama's the tool
    return [_message(message, f"messages[{n}]", names) for n, message in enumerate(messages)]


def _message(message: Message, path: str, names: dict[str, str]) -> dict[str, Any]:
    if message.role not in _ROLES:
        raise failed(Code.INVALID_REQUEST, f"role must be one of {', '.join(_ROLES)}", path=f"{path}.role")
    text, images = _content(message.content, f"{path}.content")
    made: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role, "content": text}
    if images:
        made["images"] = images
    if message.reasoning:
        made["thinking"] = message.reasoning
    if message.tool_calls:
        made["tool_calls"] = [
            _tool_call(call, f"{path}.tool_calls[{n}]", names) for n, call in enumerate(message.tool_calls)
        ]
    if message.role == "tool" and message.tool_call_id is not None:
        made["tool_call_id"] = message.tool_call_id
        if message.tool_call_id in names:
            made["tool_name"] = names[message.tool_call_id]
    return made


def _tool_call(call: ToolCall, path: str, names: dict[str, str]) -> dict[str, Any]:
    try:
        arguments = msgspec.json.decode(call.function.arguments or "{}", type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise failed(
            Code.INVALID_REQUEST, "arguments must be a JSON object in a string", path=f"{path}.function.arguments"
        ) from error
    if len(call.function.name) > MAX_NAME:
        refusal = f"the name of a function has at most {MAX_NAME} characters"
        raise failed(Code.INVALID_REQUEST, refusal, path=f"{path}.function.name")
    made: dict[str, Any] = {"function": {"name": call.function.name, "arguments": arguments}}
    if call.id is not None:
        made["id"] = call.id
        names[call.id] = call.function.name
    return made


def _content(content: str | list[Part] | None, path: str) -> tuple[str, list[str]]:
    if content is None or isinstance(content, str):
        return content or "", []
    texts, images = [], []
    for n, part in enumerate(content):
        if part.type == "text":
            texts.append(part.text)
        elif part.type == "image_url" and part.image_url is not None:
            found = _DATA_URI.match(part.image_url.url)
            if found is None:
                message = "an image must be a data URI with base64; Arriero fetches nothing from the web"
                raise failed(Code.INVALID_REQUEST, message, path=f"{path}[{n}].image_url.url")
            images.append(part.image_url.url[found.end() :])
        else:
            raise _cannot(f"{path}[{n}].type", f"content of type {part.type!r} is not taken; text and image_url are")
    return "\n".join(texts), images


def _options(chat: ChatBody) -> dict[str, Any]:
    stop = [chat.stop] if isinstance(chat.stop, str) else chat.stop
    limit = chat.max_completion_tokens if chat.max_completion_tokens is not None else chat.max_tokens
    options = {
        "temperature": chat.temperature,
        "top_p": chat.top_p,
        "presence_penalty": chat.presence_penalty,
        "frequency_penalty": chat.frequency_penalty,
        "seed": chat.seed,
        "stop": stop,
        # Ollama's own layer ignores max_completion_tokens, the one that current SDKs send: an answer without end.
        "num_predict": limit,
    }
    return {name: value for name, value in options.items() if value is not None}


def _format(wanted: ResponseFormat | None) -> msgspec.Raw:
    match wanted:
        case None | ResponseFormat(type="text"):
            return NO_JSON
        case ResponseFormat(type="json_object"):
            return msgspec.Raw(b'"json"')
        case ResponseFormat(type="json_schema", json_schema=JsonSchema(schema)):
            return msgspec.Raw(msgspec.json.encode(schema))
    message = "response_format must be of type text, json_object, or json_schema with its schema"
    raise failed(Code.INVALID_REQUEST, message, path="response_format")


def _tools(chat: ChatBody) -> list[msgspec.Raw] | None:
    if not chat.tools or chat.tool_choice == "none":
        return None
    for n, tool in enumerate(chat.tools):
        function = tool.get("function")
        if (
            tool.get("type") != "function"
            or not isinstance(function, dict)
            or not isinstance(function.get("name"), str)
        ):
            message = 'a tool is {"type": "function", "function": {"name": …, "parameters": …}}'
            raise failed(Code.INVALID_REQUEST, message, path=f"tools[{n}]")
    return [msgspec.Raw(msgspec.json.encode(tool)) for tool in chat.tools]


def _think(effort: str | None) -> bool | str | None:
    if effort is None:
        return None
    if effort not in _EFFORTS:
        message = f"reasoning_effort must be one of {', '.join(_EFFORTS)}"
        raise failed(Code.INVALID_REQUEST, message, path="reasoning_effort")
    return _EFFORTS[effort]


def _cannot(path: str, message: str) -> Failed:
    return failed(Code.UNSUPPORTED_PARAMETER, f"{path}: {message}", path=path)
