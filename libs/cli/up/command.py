"""`arriero up`: options and help."""

import asyncio
import time
from typing import Annotated

import typer

from libs.cli.output import Json

HELP = """Start Arriero on this machine: NATS, auth, gateway, router, and a worker for every Ollama node.

Uses the Ollama at OLLAMA_HOST (or 127.0.0.1:11434) when one answers and has a model, otherwise starts two simulated nodes.
State is kept in $ARRIERO_HOME (default ./.arriero): clients, keys and jobs are there again at the next start. What dies is
started again. Ctrl-C drains and ends everything; a second one hands over what runs instead of waiting for it; a third insists.

\b
Examples:
  arriero up                                   what is on this machine
  arriero up --sim 3                           three simulated nodes, no GPU needed
  arriero up --nodes gpu1,gpu2:11500           Ollamas elsewhere
  arriero up --gateways 2 --routers 2          with a second gateway and a standby router
  arriero up --port-base 9700                  ports 9700, 9701, … instead of 8700, 8701, …
  ARRIERO_HOME=/tmp/try arriero up --json      one JSON object a line, for programs

\b
Ports from the base: +0 gateway, +1 auth, +2 NATS, +3 NATS monitor, +10 … ops, +30 … simulated nodes, +50 … further gateways.
"""


def up(
    nodes: Annotated[
        str, typer.Option(metavar="URL,…", help="Ollamas to use: host, host:port or URL, as in OLLAMA_HOST.")
    ] = "",
    sim: Annotated[
        int | None, typer.Option(metavar="N", help="Start N simulated nodes (besides those of --nodes).")
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option(min=1, max=256, help="Answers at once per node [default: OLLAMA_NUM_PARALLEL or 1; simulated 4]."),
    ] = None,
    gateways: Annotated[int, typer.Option(min=1, help="How many gateways.")] = 1,
    routers: Annotated[int, typer.Option(min=1, help="How many routers; one is active, the others stand by.")] = 1,
    port_base: Annotated[int, typer.Option(help="The first of the ports.")] = 8700,
    demo: Annotated[bool, typer.Option("--demo/--no-demo", help="Stream a first answer when all is ready.")] = True,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the summary, and what goes wrong.")] = False,
    drain_grace: Annotated[
        float, typer.Option(min=0, help="Seconds that running answers may still take after Ctrl-C.")
    ] = 5.0,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error; for the services' logs.")] = "info",
    as_json: Json = False,
) -> None:
    began = time.monotonic()
    from libs.cli.up import narrator, stack

    options = stack.Options(
        nodes=tuple(text.strip() for text in nodes.split(",") if text.strip()),
        sim=sim,
        slots=slots,
        gateways=gateways,
        routers=routers,
        port_base=port_base,
        demo=demo and not quiet,
        drain_grace=drain_grace,
        log_level=log_level,
    )
    voice = narrator.JsonLines() if as_json else narrator.Terminal(quiet=quiet)
    asyncio.run(stack.run(options, voice, began))
