"""Faults to inject: what goes wrong, for which request, how often; deciding is pure, suffering is `node`'s part.

| phase   | kinds                                                                                    |
|---------|------------------------------------------------------------------------------------------|
| request | `busy` `option-error` `accept-hang` `html` `empty`                                       |
| load    | `slow-load` `stuck-load` `load-oom`                                                      |
| stream  | `crash` `death` `eof` `half-line` `hang` `trickle` `reset` `exit`                        |
"""

from enum import StrEnum

import msgspec

from libs.ollama_sim.names import parse_name

INFERENCE_ROUTES = frozenset({"/api/chat", "/api/generate", "/api/embed", "/api/embeddings"})


class Phase(StrEnum):
    REQUEST = "request"  # before the request is looked at
    LOAD = "load"  # while the model is loaded; a warm model does not count
    STREAM = "stream"  # `after_tokens` tokens into the answer; 0 = before the first byte


class FaultKind(StrEnum):
    BUSY = "busy"  # 503 "server busy"
    OPTION_ERROR = "option-error"  # 500 that is the client's mistake
    ACCEPT_HANG = "accept-hang"  # the connection is accepted, the request never answered
    HTML = "html"  # 200 text/html, as from a proxy
    EMPTY = "empty"  # 200 without a body
    SLOW_LOAD = "slow-load"  # loading takes `seconds` more
    STUCK_LOAD = "stuck-load"  # loading never ends, and nothing else can load behind it
    LOAD_OOM = "load-oom"  # 500 with the out-of-memory text
    CRASH = "crash"  # the engine dies: 500, or an error line when the answer has begun
    DEATH = "death"  # the node's end: the connection closes inside the chunked body
    EOF = "eof"  # the body ends properly, without a `done` line
    HALF_LINE = "half-line"  # half of a line, then the connection closes
    HANG = "hang"  # silence while the slot stays taken
    TRICKLE = "trickle"  # from here on one token every `seconds`
    RESET = "reset"  # TCP reset
    EXIT = "exit"  # the whole process ends at once, as with kill -9

    @property
    def phase(self) -> Phase:
        return _PHASES[self]


_PHASES = dict.fromkeys(FaultKind, Phase.STREAM) | {
    FaultKind.BUSY: Phase.REQUEST,
    FaultKind.OPTION_ERROR: Phase.REQUEST,
    FaultKind.ACCEPT_HANG: Phase.REQUEST,
    FaultKind.HTML: Phase.REQUEST,
    FaultKind.EMPTY: Phase.REQUEST,
    FaultKind.SLOW_LOAD: Phase.LOAD,
    FaultKind.STUCK_LOAD: Phase.LOAD,
    FaultKind.LOAD_OOM: Phase.LOAD,
}


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One thing that goes wrong; it fires on the `request`-th match and after, `count` times (0 = for ever)."""

    kind: FaultKind
    model: str | None = None  # None = any
    route: str | None = None  # only for kinds of the request phase; None = the inference routes
    request: int = 1
    probability: float = 1.0
    count: int = 1
    after_tokens: int = 0
    seconds: float = 1.0


class Occasion(msgspec.Struct, frozen=True):
    """A moment at which a fault may fire."""

    phase: Phase
    route: str
    model: str = ""


class ArmedFault(msgspec.Struct, frozen=True):
    """A fault and its history since it was set."""

    fault: Fault
    seen: int = 0
    fired: int = 0


class BadFaultSpec(ValueError):
    """The text says which part of a `--faults` specification cannot be read."""


def parse_faults(spec: str) -> tuple[Fault, ...]:
    """Read `kind[:key=value[,key=value…]]` separated by `;`, for example `crash:after_tokens=5,count=2;busy`."""
    return tuple(_parse_fault(part.strip()) for part in spec.split(";") if part.strip())


def fire(
    armed: tuple[ArmedFault, ...], occasion: Occasion, chance: float
) -> tuple[tuple[ArmedFault, ...], Fault | None]:
    """The faults after this occasion and the one that fires, if any; `chance` is drawn from [0, 1).

    The first fault in the list that fires wins, and those behind it do not see the occasion.
    """
    after = list(armed)
    for index, candidate in enumerate(armed):
        if not _matches(candidate.fault, occasion):
            continue
        seen = candidate.seen + 1
        fault = candidate.fault
        is_spent = fault.count > 0 and candidate.fired >= fault.count
        does_fire = not is_spent and seen >= fault.request and chance < fault.probability
        after[index] = ArmedFault(fault, seen, candidate.fired + does_fire)
        if does_fire:
            return tuple(after), fault
    return tuple(after), None


def _matches(fault: Fault, occasion: Occasion) -> bool:
    if fault.kind.phase is not occasion.phase:
        return False
    if fault.model is not None and not _is_same_model(fault.model, occasion.model):
        return False
    return occasion.route == fault.route if fault.route else occasion.route in INFERENCE_ROUTES


def _is_same_model(wanted: str, actual: str) -> bool:
    wanted_name, actual_name = parse_name(wanted), parse_name(actual)
    return wanted_name is not None and actual_name is not None and wanted_name.key == actual_name.key


def _parse_fault(text: str) -> Fault:
    kind, _, settings = text.partition(":")
    fields: dict[str, str] = {"kind": kind.strip()}
    for setting in filter(None, settings.split(",")):
        key, equals, value = setting.partition("=")
        if not equals:
            raise BadFaultSpec(f"{setting!r} in {text!r}: expected key=value")
        fields[key.strip()] = value.strip()
    try:
        return msgspec.convert(fields, Fault, strict=False)
    except msgspec.ValidationError as exc:
        raise BadFaultSpec(f"{text!r}: {exc}") from exc
