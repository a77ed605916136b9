"""What of a gateway's work goes into the audit trail: each route has an action, or none when it only shows a caller its own.

Jobs are counted (ADR 0011): of equal submits of a client within a minute the first is a record, the others a number. Who is
refused is recorded the same way, so that a flood of refusals cannot fill the stream.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import get_args

from libs.common.audit import Audit, Result
from libs.common.contracts.clients import Principal
from libs.common.contracts.faults import Code, Failed, Fault
from libs.common.contracts.subjects import ApiVerb
from libs.common.credentials.api_keys import ApiKeyText
from services.gateway.credentials.extract import Headers, extract
from services.gateway.http import Exchange
from services.gateway.route import RouteSpec

SUBMIT, DELETE = "job.submit", "job.delete"
FLEET_READ = "fleet.read"
WEBHOOK_TEST = "webhook.test"

# By method and path; empty: nothing that others could want to know.
ACTIONS: Mapping[tuple[str, str], str] = {
    ("POST", "/jobs"): SUBMIT,
    ("GET", "/jobs"): "",
    ("GET", "/jobs/{id}"): "",
    ("GET", "/jobs/{id}/stream"): "",
    ("POST", "/jobs/{id}/retry"): SUBMIT,
    ("DELETE", "/jobs/{id}"): DELETE,  # a cancel, or the erasing of a job that has ended
    ("POST", "/webhooks"): "webhook.create",
    ("GET", "/webhooks"): "",
    ("GET", "/webhooks/{webhook}"): "",
    ("DELETE", "/webhooks/{webhook}"): "webhook.delete",
    ("POST", "/webhooks/{webhook}/test"): WEBHOOK_TEST,
    ("POST", "/v1/chat/completions"): SUBMIT,
    ("GET", "/v1/chat/completions/{id}"): "",
    ("GET", "/v1/models"): "",
    ("GET", "/v1/models/{model:path}"): "",
    ("GET", "/nodes"): FLEET_READ,  # also what runs there, whosever it is
    ("PUT", "/nodes/{node}/policy"): "node.policy",  # the handler says which: drain or resume
    ("POST", "/nodes/{node}/models"): "model.work",  # the handler says which: pull, load, unload, delete
    ("GET", "/models"): FLEET_READ,
    ("PUT", "/models/{name:path}/policy"): "model.policy",
    ("DELETE", "/models/{name:path}/policy"): "model.forget_policy",
    ("GET", "/openapi.json"): "",
}
OVER_NATS: Mapping[str, str] = {"submit": SUBMIT, "cancel": DELETE}
OFTEN = frozenset({SUBMIT, DELETE, FLEET_READ, WEBHOOK_TEST})
DENIED = frozenset({Code.UNAUTHENTICATED, Code.FORBIDDEN, Code.RATE_LIMITED, Code.QUOTA_EXHAUSTED, Code.QUEUE_FULL})


class Witness:
    def __init__(self, audit: Audit) -> None:
        self._audit = audit

    def saw(self, exchange: Exchange, spec: RouteSpec) -> None:
        """Once for each request, when it has been answered; before that, when a handler begins work that may last."""
        fault, who = exchange.fault, exchange.principal
        if who is None:
            if fault is not None and fault.code in (Code.UNAUTHENTICATED, Code.INVALID_REQUEST):
                self._record(exchange, "credential.refuse", Result.DENIED, None, reason=_cause(fault))
            return
        if fault is not None and fault.code is Code.FORBIDDEN and exchange.session is None:
            target = f"{spec.method} {spec.path}"
            self._record(exchange, "scope.refuse", Result.DENIED, who, target=target, reason=f"needs {spec.scope}")
            return
        action = ACTIONS.get((spec.method, spec.path), "") if exchange.deed is None else exchange.deed
        failure = str(fault.code) if fault is not None else exchange.failure
        if not action or (exchange.told and not failure):
            return
        exchange.told = True
        result = Result.ALLOWED
        if failure:
            result = Result.DENIED if fault is not None and fault.code in DENIED else Result.FAILED
        self._record(exchange, action, result, who, target=exchange.target, reason=failure)

    @contextlib.contextmanager
    def call(self, client: str, verb: str) -> Iterator[None]:
        """A call over NATS, which has said itself who asks."""
        action = OVER_NATS.get(verb, "")
        try:
            yield
        except Failed as error:
            code = error.fault.code
            if code in (Code.UNAUTHENTICATED, Code.FORBIDDEN):
                action = "credential.refuse" if code is Code.UNAUTHENTICATED else "scope.refuse"
                target = f"api.*.{verb}" if verb in get_args(ApiVerb) else ""
                self._audit.record(action, Result.DENIED, actor=client, credential="nats", target=target, reason=code)
            elif action:
                result = Result.DENIED if code in DENIED else Result.FAILED
                self._audit.record(action, result, actor=client, credential="nats", reason=code, folded=True)
            raise
        else:
            if action:
                self._audit.record(action, Result.ALLOWED, actor=client, credential="nats", folded=True)

    def _record(
        self,
        exchange: Exchange,
        action: str,
        result: Result,
        who: Principal | None,
        *,
        target: str = "",
        reason: str = "",
    ) -> None:
        self._audit.record(
            action,
            result,
            actor=who.client if who else "",
            credential=who.credential if who else presented(exchange.raw_headers),
            address=exchange.address,
            target=target,
            reason=reason,
            request_id=exchange.request_id,
            folded=action in OFTEN,
        )


def presented(headers: Headers) -> str:
    """The id of an API key that was refused; of anything else nothing: what a stranger sends may be a secret."""
    try:
        found = extract(headers)
    except Failed:
        return ""
    return f"key:{found.id}" if isinstance(found, ApiKeyText) else ""


def _cause(fault: Fault) -> str:
    """The first sentence; the others say what to do."""
    return fault.message.partition(". ")[0].removesuffix(".")
