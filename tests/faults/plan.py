"""What will be asked of the fleet and what will be done to it: pure functions of the seed. Only the timing is not."""

import random
from enum import StrEnum
from typing import NamedTuple

MODELS = ("open:1", "native:1", "parser:1")  # one for each way a chat becomes a prompt, and so for each way to go on
EMBEDDER = "embed:1"


class Mode(StrEnum):
    POLL = "poll"
    STREAM = "stream"  # cut now and then, resumed at the other gateway
    CHAT = "chat"
    DETACHED = "detached chat"  # cut, and resumed as a stream of /jobs
    CANCEL = "cancel"
    DEADLINE = "deadline"
    KEYED = "keyed"
    SLOW = "slow reader"
    EMBED = "embed"


MODE_WEIGHTS = {
    Mode.POLL: 18, Mode.STREAM: 34, Mode.CHAT: 10, Mode.DETACHED: 8, Mode.CANCEL: 12, Mode.DEADLINE: 4, Mode.KEYED: 8,
    Mode.SLOW: 4, Mode.EMBED: 2,
}  # fmt: skip


class Script(NamedTuple):
    """What one client does. `cuts`: after so many events of a connection the client hangs up, and comes back."""

    n: int
    mode: Mode
    model: str
    chat: bool
    tokens: int
    priority: str
    deadline_s: float
    cuts: tuple[int, ...]
    takes_reset: bool
    cancel_after_s: float
    key: str | None
    first: int  # of the gateways
    pause_s: float
    patience_s: float  # without a byte, before the client hangs up

    @property
    def prompt(self) -> str:
        return prompt(self.n, self.tokens)


def prompt(n: int, tokens: int) -> str:
    """Another one for every script, so that no answer can pass for another's."""
    return f"Tell me about pass {n} of the Andes. [[tokens={tokens}]]"


def script(seed: int, n: int, *, deadline_s: float) -> Script:
    draw = random.Random(f"{seed} job {n}")
    mode = draw.choices(list(MODE_WEIGHTS), list(MODE_WEIGHTS.values()))[0]
    tokens = draw.randint(2, 40) if draw.random() < 0.95 else draw.randint(200, 500)
    if mode is Mode.DEADLINE:
        tokens, deadline_s = draw.choice((5, 400)), draw.uniform(0.3, 4.0)
    elif mode is Mode.CANCEL:
        tokens = draw.choice((draw.randint(10, 60), draw.randint(100, 400)))
    return Script(
        n=n,
        mode=mode,
        model=EMBEDDER if mode is Mode.EMBED else draw.choice(MODELS),
        chat=mode in (Mode.CHAT, Mode.DETACHED) or draw.random() < 0.5,
        tokens=tokens,
        priority=draw.choice(("interactive", "normal", "normal", "batch")),
        deadline_s=round(deadline_s, 2),
        cuts=tuple(draw.randint(1, max(2, tokens)) for _ in range(draw.choice((0, 1, 1, 2, 3)))),
        takes_reset=draw.random() < 0.4,
        cancel_after_s=draw.choice((0.0, 0.01, draw.uniform(0, 0.3), draw.uniform(0, 2.5))),
        key=f"key-{seed}-{n}" if mode is Mode.KEYED or draw.random() < 0.1 else None,
        first=draw.randrange(2),
        pause_s=draw.uniform(0.02, 0.2) if mode is Mode.SLOW else 0.0,
        patience_s=draw.choice((3.0, 8.0, 25.0)),
    )


class Deed(StrEnum):
    KILL = "kill -9"
    STOP = "SIGSTOP"
    TERM = "SIGTERM"
    SIM = "node fault"  # POST /sim/faults
    CUT = "cut from NATS"  # its cable passes nothing, and no connection is closed
    DROP = "dropped from NATS"  # its cable ends, and every connection with it


CABLE = frozenset({Deed.CUT, Deed.DROP})  # done to a service's cable, not to its process
LONG_CUT_S = 30.0  # a worker that was away for so long stops its generations (DESIGN §3)


class Strike(NamedTuple):
    """One fault. `target` is a process, or `nats:leader` for whoever leads JOBS then. `seconds`: how long it stays down."""

    id: int
    at_s: float
    role: str
    deed: Deed
    target: str
    seconds: float
    sim: tuple[tuple[str, object], ...] = ()  # the fault that a simulated node is told

    @property
    def kind(self) -> str:
        if self.deed is Deed.CUT and self.seconds > LONG_CUT_S:
            return f"{self.deed} > {LONG_CUT_S:g} s"
        return f"{self.deed} {dict(self.sim)['kind']}" if self.sim else str(self.deed)


_WEIGHTS = {
    ("worker", Deed.KILL): 16, ("worker", Deed.STOP): 12, ("worker", Deed.TERM): 6,
    ("gateway", Deed.KILL): 14, ("gateway", Deed.STOP): 7, ("gateway", Deed.TERM): 6,
    ("router", Deed.KILL): 8, ("router", Deed.STOP): 5, ("router", Deed.TERM): 3,
    ("sim", Deed.KILL): 6, ("sim", Deed.STOP): 3, ("sim", Deed.SIM): 14,
    ("nats", Deed.KILL): 5, ("nats", Deed.STOP): 4, ("nats", Deed.TERM): 2,
    ("worker", Deed.CUT): 12, ("gateway", Deed.CUT): 8, ("router", Deed.CUT): 7,
    ("worker", Deed.DROP): 4, ("gateway", Deed.DROP): 4, ("router", Deed.DROP): 3,
}  # fmt: skip
_SIM_FAULTS = ("crash", "death", "eof", "half-line", "reset", "busy", "empty", "html", "hang", "exit")
_LONG_CUTS = 0.12  # of all cuts
_SHORT_SIM_FAULTS = tuple(kind for kind in _SIM_FAULTS if kind != "hang")


def strikes(
    seed: int,
    count: int,
    *,
    from_s: float,
    until_s: float,
    names: dict[str, list[str]],
    longest_stop_s: float = 12.0,
    hangs: bool = True,
    long_cuts: bool = True,
) -> list[Strike]:
    """`names`: the processes of each role. Times are spread evenly, with chance between."""
    draw = random.Random(f"{seed} faults")
    weights = {(role, deed): weight for (role, deed), weight in _WEIGHTS.items() if role in names}
    span = (until_s - from_s) / max(1, count)
    made = []
    for n in range(count):
        role, deed = draw.choices(list(weights), list(weights.values()))[0]
        target = draw.choice(names[role])
        if role == "nats" and len(names[role]) > 1 and draw.random() < 0.5:
            target = "nats:leader"
        seconds = draw.uniform(0.2, 3.0)
        if deed is Deed.STOP:
            seconds = draw.uniform(1.0, min(longest_stop_s, 5.0 if role == "nats" else longest_stop_s))
        elif deed is Deed.CUT:
            long = draw.random() < _LONG_CUTS
            seconds = (
                draw.uniform(LONG_CUT_S + 1, LONG_CUT_S + 10) if long and long_cuts else seconds * longest_stop_s / 3
            )
            seconds = max(1.0, seconds)
        elif role == "worker" and deed is Deed.KILL and draw.random() < 0.2:
            seconds = draw.uniform(5.0, longest_stop_s)
        sim: tuple[tuple[str, object], ...] = ()
        if deed is Deed.SIM:
            sim = (
                ("kind", draw.choice(_SIM_FAULTS if hangs else _SHORT_SIM_FAULTS)),
                ("count", draw.randint(1, 4)),
                ("after_tokens", draw.choice((0, 1, draw.randint(2, 30)))),
            )
        at_s = from_s + span * (n + draw.random())
        made.append(Strike(n, round(at_s, 3), role, deed, target, round(seconds, 2), sim))
    return made


def must_have(seed: int, names: dict[str, list[str]], *, at_s: float) -> list[Strike]:
    """What even a short run shall not miss: a worker frozen for longer than a node is waited for, another one cut off for so
    long, and a gateway for longer than it takes to notice; each comes back and finds what happened without it."""
    draw = random.Random(f"{seed} must have")
    frozen, cut = draw.sample(names["worker"], 2)
    return [
        Strike(1000, at_s, "worker", Deed.STOP, frozen, 10.5),
        Strike(1001, at_s, "worker", Deed.CUT, cut, 9.5),
        Strike(1002, at_s, "gateway", Deed.CUT, draw.choice(names["gateway"]), 6.0),
    ]
