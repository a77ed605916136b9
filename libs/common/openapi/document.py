"""The OpenAPI 3.1 document of a service. Pure: routes in, a dictionary out."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from libs.common.contracts.faults import MEANING, Code
from libs.common.openapi.errors import ErrorForm
from libs.common.openapi.operation import Answer, Header, Operation, Parameter

VERSION = "3.1.0"
_REF = "#/components/schemas/{name}"
_IN_PATH = re.compile(r"\{(\w+)(?::(\w+))?\}")
Schema = dict[str, Any]

ALWAYS = (Header("X-Request-Id", "names this request in logs and in the audit trail", required=True),)
# By status.
OF_STATUS: Mapping[int, tuple[Header, ...]] = {
    401: (Header("WWW-Authenticate", "which credential is wanted (RFC 9110 §11.6.1)", required=True),),
    429: (
        Header("Retry-After", "seconds", int, required=True),
        Header("retry-after-ms", "the same, finer", int),
        Header("x-should-retry", "false: trying again soon does not help"),
    ),
    503: (Header("Retry-After", "seconds", int, required=True),),
}


class Refusals(NamedTuple):
    """Codes in one form."""

    form: ErrorForm
    codes: tuple[Code, ...]


class Described(NamedTuple):
    """A route. `security`: alternatives, each scheme with the scopes it needs; none: open to everyone."""

    method: str
    path: str
    operation: Operation
    security: Sequence[Mapping[str, Sequence[str]]]
    refusals: Sequence[Refusals]
    headers: tuple[Header, ...] = ()  # of its answers, those of errors too


def document(
    *,
    title: str,
    about: str,
    version: str,
    routes: Sequence[Described],
    schemes: Mapping[str, Mapping[str, Any]],
) -> Schema:
    schemas = _Schemas([type_ for route in routes for type_ in _types(route)])
    paths: dict[str, Any] = {}
    for route in routes:
        path, parameters = _path(route, schemas)
        shown: Schema = {
            "operationId": operation_id(route.method, route.path),
            "summary": route.operation.summary,
            **({"description": route.operation.about} if route.operation.about else {}),
            "tags": [path.strip("/").partition("/")[0].partition(".")[0] or "wellknown"],
            "parameters": [*parameters, *(_parameter(p, schemas) for p in _beside_path(route))],
            "responses": _responses(route, schemas),
            "security": [{name: list(scopes) for name, scopes in way.items()} for way in route.security],
        }
        if (body := route.operation.body) is not None:
            schema = schemas.patch_of(body.type) if body.merges else schemas.of(body.type)
            content = {"schema": schema} | ({} if body.example is None else {"example": body.example})
            shown["requestBody"] = {"required": body.required, "content": {body.content_type: content}}
        paths.setdefault(path, {})[route.method.lower()] = shown
    return {
        "openapi": VERSION,
        "info": {"title": title, "version": version, "description": about},
        "paths": paths,
        "components": {
            "schemas": schemas.components,
            "headers": schemas.headers,
            "securitySchemes": {name: dict(scheme) for name, scheme in schemes.items()},
        },
    }


def plain_path(path: str) -> str:
    """`/models/{name:path}` as OpenAPI writes it: `/models/{name}`."""
    return _IN_PATH.sub(lambda found: "{" + found[1] + "}", path)


def operation_id(method: str, path: str) -> str:
    return "_".join([method.lower(), *re.findall(r"\w+", plain_path(path))])


class _Schemas:
    """All schemas at once: msgspec gives two structs of the same name different ones only then."""

    def __init__(self, types: Sequence[Any]) -> None:
        unique = list({str(type_): type_ for type_ in types}.values())
        found, components = msgspec.json.schema_components(unique, ref_template=_REF)
        self._of = {str(type_): _ecma(schema) for type_, schema in zip(unique, found, strict=True)}
        self.components = _ecma(components)
        self.headers: Schema = {}  # those that many answers share

    def of(self, type_: Any) -> Schema:
        return dict(self._of[str(type_)])

    def patch_of(self, type_: Any) -> Schema:
        return self._patch(self.of(type_))

    def _patch(self, schema: Schema) -> Schema:
        if "$ref" in schema:
            schema = self.components[schema["$ref"].rpartition("/")[2]]
        if "properties" not in schema:
            return schema
        parts = {name: {"anyOf": [self._patch(p), {"type": "null"}]} for name, p in schema["properties"].items()}
        return {**schema, "properties": parts, "required": []}


def _ecma(value: Any) -> Any:
    """Python's `\\A` and `\\Z` are no part of ECMA's regular expressions, whose `^` and `$` mean just that already."""
    if isinstance(value, dict):
        return {
            name: part.replace(r"\A", "^").replace(r"\Z", "$")
            if name == "pattern" and isinstance(part, str)
            else _ecma(part)
            for name, part in value.items()
        }
    if isinstance(value, list | tuple):
        return [_ecma(part) for part in value]
    return value


def _types(route: Described) -> list[Any]:
    operation = route.operation
    headers = [*ALWAYS, *route.headers, *(header for group in OF_STATUS.values() for header in group)]
    headers += [header for answer in operation.answers for header in answer.headers]
    return [
        str,
        *(header.type for header in headers),
        *(parameter.type for parameter in operation.parameters),
        *((operation.body.type,) if operation.body else ()),
        *(type_ for answer in operation.answers for type_ in answer.types),
        *(refusals.form.type for refusals in route.refusals),
    ]


def _path(route: Described, schemas: _Schemas) -> tuple[str, list[Schema]]:
    named = {p.name: p for p in route.operation.parameters if p.where == "path"}
    parameters = []
    for name, kind in _IN_PATH.findall(route.path):
        about = "with its slashes, as they are or as %2F" if kind == "path" else ""
        parameter = named.get(name) or Parameter(name, str, about)
        parameters.append(_parameter(parameter._replace(where="path", required=True), schemas))
    return plain_path(route.path), parameters


def _beside_path(route: Described) -> list[Parameter]:
    return [parameter for parameter in route.operation.parameters if parameter.where != "path"]


def _parameter(parameter: Parameter, schemas: _Schemas) -> Schema:
    about = {"description": parameter.about} if parameter.about else {}
    return {
        "name": parameter.name,
        "in": parameter.where,
        "required": parameter.required,
        **about,
        "schema": schemas.of(parameter.type),
    }


def _responses(route: Described, schemas: _Schemas) -> Schema:
    found: dict[int, Schema] = {}
    for answer in route.operation.answers:
        shown = found.setdefault(answer.status, _empty(answer.status, route, schemas))
        _say(shown, answer.about)
        shown["headers"] |= _headers(answer.headers, schemas)
        if answer.content_type is not None:
            shown.setdefault("content", {})[answer.content_type] = {"schema": _one_of(answer, schemas)}
        if answer.links:
            shown["links"] = {
                name: {
                    "operationId": operation_id(*link.operation.split(" ")),
                    "parameters": dict(link.parameters),
                }
                for name, link in answer.links.items()
            }
    for refusals in route.refusals:
        for status, codes in _by_status(refusals.codes).items():
            shown = found.setdefault(status, _empty(status, route, schemas))
            for code in codes:
                _say(shown, f"`{code}`: {MEANING[code].title}")
            schema, narrowed = schemas.of(refusals.form.type), refusals.form.narrowed(codes)
            content = shown.setdefault("content", {})
            content[refusals.form.content_type] = {"schema": {"allOf": [schema, narrowed]} if narrowed else schema}
    return {str(status): found[status] for status in sorted(found)}


def _empty(status: int, route: Described, schemas: _Schemas) -> Schema:
    headers = (*ALWAYS, *OF_STATUS.get(status, ()), *route.headers)
    schemas.headers |= _headers(headers, schemas)
    refs = {header.name: {"$ref": f"#/components/headers/{header.name}"} for header in headers}
    return {"description": "", "headers": refs}


def _say(shown: Schema, text: str) -> None:
    said = shown["description"]
    if text not in said:
        shown["description"] = f"{said}; {text}" if said else text


def _headers(headers: Sequence[Header], schemas: _Schemas) -> Schema:
    return {
        header.name: {
            "description": header.about,
            **({"required": True} if header.required else {}),
            "schema": schemas.of(header.type),
        }
        for header in headers
    }


def _one_of(answer: Answer, schemas: _Schemas) -> Schema:
    if not answer.types:
        return {"type": "string"}
    each = [schemas.of(type_) for type_ in answer.types]
    return each[0] if len(each) == 1 else {"anyOf": each}


def _by_status(codes: Sequence[Code]) -> dict[int, list[Code]]:
    found: dict[int, list[Code]] = {}
    for code in dict.fromkeys(codes):
        found.setdefault(MEANING[code].status, []).append(code)
    return found
