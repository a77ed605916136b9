"""Which port is whose, from one base.

+0 gateway   +1 auth   +2 NATS   +3 NATS monitor   +10 … +29 ops   +30 … +49 simulated nodes   +50 … further gateways
"""

import errno
import socket
from collections.abc import Iterable, Sequence

import msgspec

from libs.cli.failures import CommandFailed

HOST = "127.0.0.1"
DEFAULT_BASE = 8700
SPAN = 70
_OPS, _SIMS, _MORE_GATEWAYS = range(10, 30), range(30, 50), range(50, 70)


class Ports(msgspec.Struct, frozen=True, kw_only=True):
    gateways: tuple[int, ...]
    auth: int
    nats: int
    monitor: int
    ops: dict[str, int]  # by process name
    sims: dict[str, int]  # by node name

    def needed(self) -> list[tuple[int, str]]:
        """Every port with what it is for."""
        return [
            *((port, "the gateway" if n == 0 else f"gateway {n + 1}") for n, port in enumerate(self.gateways)),
            (self.auth, "auth"),
            (self.nats, "NATS"),
            (self.monitor, "the NATS monitor"),
            *((port, f"the ops endpoints of {name}") for name, port in self.ops.items()),
            *((port, f"the simulated node {name}") for name, port in self.sims.items()),
        ]


def plan_ports(base: int, *, gateways: int, services: Sequence[str], sims: Sequence[str]) -> Ports:
    """`services`: names of the processes with an ops port, in order. Raises CommandFailed when they do not fit."""
    if not 1 <= base <= 65536 - SPAN:
        raise CommandFailed(f"--port-base has to be from 1 to {65536 - SPAN}, not {base}", code="usage")
    for count, room, what in (
        (len(services), _OPS, "service processes"),
        (len(sims), _SIMS, "simulated nodes"),
        (gateways - 1, _MORE_GATEWAYS, "further gateways"),
    ):
        if count > len(room):
            raise CommandFailed(f"`arriero up` has room for {len(room)} {what}, not {count}", code="usage")
    return Ports(
        gateways=(base, *(base + offset for offset in _MORE_GATEWAYS[: gateways - 1])),
        auth=base + 1,
        nats=base + 2,
        monitor=base + 3,
        ops={name: base + offset for name, offset in zip(services, _OPS, strict=False)},
        sims={name: base + offset for name, offset in zip(sims, _SIMS, strict=False)},
    )


def check_free(needed: Iterable[tuple[int, str]], *, host: str = HOST) -> None:
    """Raises CommandFailed naming the first port that cannot be had."""
    for port, purpose in needed:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # a closed connection's TIME_WAIT is no hindrance
            try:
                probe.bind((host, port))
            except OSError as error:
                why = (
                    "is taken by another process"
                    if error.errno == errno.EADDRINUSE
                    else f"cannot be used: {error.strerror}"
                )
                raise CommandFailed(
                    f"port {port}, needed for {purpose}, {why}: end that process, or choose other ports with --port-base",
                    code="port_taken",
                ) from error
