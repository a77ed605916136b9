"""The command line: `arriero simulate`, or `python -m services.router.simulate`."""

import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import msgspec
import typer

from services.router.simulate import policies, workload
from services.router.simulate.chart import check_path, write_chart
from services.router.simulate.failures import BadInput
from services.router.simulate.fleet import Fleet, check_models_fit, parse_node, read_fleet
from services.router.simulate.policy import Factory
from services.router.simulate.report import Report, report
from services.router.simulate.simulation import simulate
from services.router.simulate.table import clients_table, comparison_table, policies_table
from services.router.simulate.trace import TraceJob, read_trace, write_trace

EXAMPLE = "deploy/simulate/fleet.toml"
HELP = f"""Play jobs against a described fleet in virtual time, and compare ways to choose nodes.

Nothing has to run, no GPU is used; thousands of jobs take about a second. The fleet is a TOML file:

\b
  [[node]]
  name = "gpu1"
  vram_gb = 24
  slots = 2             # answers at once
  decode_tps = 60       # tokens/s of one answer, of a model of 4.5 GB
  prefill_tps = 1500    # prompt tokens/s, of a model of 4.5 GB
  load_gbps = 2.0       # GB/s from disk into memory
  [[model]]
  name = "llama3.1:8b"
  size_gb = 4.9         # in memory

The jobs are a trace, JSON lines (client, priority, conversation may be left out), or a workload made up by a seed:

\b
  {{"t": 0.25, "model": "llama3.1:8b", "prompt_tokens": 900, "output_tokens": 210,
   "client": "ann", "priority": "normal", "conversation": "c7"}}

\b
Workloads (--load 0.9: work arrives at 90 % of what the fleet could do with every model loaded everywhere):
{workload.describe()}

\b
Policies (--policy a,b; default all): {", ".join(policies.POLICIES)}.
oracle is no policy but a bound: every model loaded everywhere, one queue, first come first served.

\b
Examples:
  arriero simulate --fleet {EXAMPLE} --workload steady --load 0.9 --jobs 2000
  arriero simulate --fleet {EXAMPLE} --trace deploy/simulate/trace.jsonl --chart ttft.svg
  arriero simulate --fleet {EXAMPLE} --workload bursts --add-node name=new,vram_gb=24     what would it bring?
  arriero simulate --export mine.jsonl                               the jobs of a running Arriero, as a trace
"""

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command(help=HELP)
def run(
    fleet_file: Annotated[
        Path, typer.Option("--fleet", metavar="F.toml", help="Nodes and models.", show_default=False)
    ],
    trace: Annotated[Path | None, typer.Option(metavar="T.jsonl", help="The jobs, as JSON lines.")] = None,
    workload_name: Annotated[str, typer.Option("--workload", metavar="NAME", help="Made-up jobs instead.")] = "",
    load: Annotated[float | None, typer.Option(metavar="RHO", help="Of a workload: its load [default: 0.9].")] = None,
    rate: Annotated[float | None, typer.Option(metavar="R", help="Of a workload: jobs per second, not a load.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, max=1_000_000, help="Of a workload: how many [2000].")] = None,
    policy: Annotated[str, typer.Option(metavar="P[,P…]", help="Which policies [default: all].")] = "",
    seed: Annotated[int, typer.Option(help="The same seed gives the same figures.")] = 1,
    add_node: Annotated[
        list[str] | None,
        typer.Option(
            metavar="name=x,vram_gb=24,…",
            help="Compare with a fleet that has this node, too; keys left out are those of the node nearest in VRAM.",
        ),
    ] = None,
    chart: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Draw times to first token.")] = None,
    write: Annotated[
        Path | None, typer.Option("--write-trace", metavar="FILE", help="Keep the jobs as a trace.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text.")] = False,
) -> None:
    try:
        chosen = policies.choose(policy)
        if chart is not None:
            check_path(chart)
        fleet = read_fleet(fleet_file)
        more = fleet.with_nodes(parse_node(text, fleet) for text in add_node) if add_node else None
        made, title = _jobs(fleet, trace, workload_name, load, rate, jobs, seed)
        if write is not None:
            write_trace(write, made)
        without = _compare(fleet, made, chosen, seed)
        with_more = _compare(more, made, chosen, seed) if more else None
        if chart is not None:
            write_chart(chart, f"{title}, {len(fleet.nodes)} nodes", without)
    except BadInput as error:
        _fail(str(error), as_json)
    if as_json:
        value: dict[str, Any] = {"policies": without}
        if more and with_more:
            value["with_nodes"] = {"added": more.nodes[len(fleet.nodes) :], "policies": with_more}
        print(msgspec.json.encode(value).decode())
        return
    print(f"{title} on {len(fleet.nodes)} nodes, seed {seed}\n\n{policies_table(without)}")
    if clients := clients_table(without):
        print(f"\n{clients}")
    if more and with_more:
        added = more.nodes[len(fleet.nodes) :]
        print(f"\nWith {', '.join(_described(node) for node in added)}:\n\n{comparison_table(without, with_more)}")
    if chart is not None:
        print(f"\nChart: {chart}")


def _jobs(
    fleet: Fleet, trace: Path | None, name: str, load: float | None, rate: float | None, jobs: int | None, seed: int
) -> tuple[list[TraceJob], str]:
    """The jobs, and what they are called. Raises BadInput."""
    if trace is not None:
        if name or load is not None or rate is not None or jobs is not None:
            raise BadInput("--workload, --load, --rate and --jobs make up jobs, --trace brings them: choose one")
        made = read_trace(trace)
        check_models_fit(fleet, (job.model for job in made), str(trace))
        return made, f"{trace.name}: {len(made)} jobs"
    if not name:
        raise BadInput(f"say which jobs: --trace FILE, or --workload with one of {', '.join(workload.names())}")
    if load is not None and rate is not None:
        raise BadInput("give --load or --rate, not both")
    for option, value in (("--load", load), ("--rate", rate)):
        if value is not None and not 0 < value < 1e6:
            raise BadInput(f"{option} must be greater than 0, and finite")
    load = 0.9 if load is None else load
    check_models_fit(fleet, fleet.models, f"the workload {name}")
    made = workload.make_workload(name, fleet, jobs=jobs or 2000, seed=seed, load=load, rate=rate)
    return made, f"{name}, {f'load {load:g}' if rate is None else f'{rate:g} jobs/s'}: {len(made)} jobs"


def _compare(fleet: Fleet, jobs: list[TraceJob], chosen: dict[str, Factory], seed: int) -> dict[str, Report]:
    return {name: report(simulate(fleet, jobs, make, seed=seed)) for name, make in chosen.items()}


def _described(node: Any) -> str:
    return (
        f"{node.name} ({node.vram_gb:g} GB, {node.slots} slots, {node.decode_tps:g} tokens/s, "
        f"prefill {node.prefill_tps:g} tokens/s, load {node.load_gbps:g} GB/s)"
    )


def _fail(message: str, as_json: bool) -> NoReturn:
    if as_json:
        print(msgspec.json.encode({"error": {"code": "usage", "message": message}}).decode())
    print(f"arriero: {message}", file=sys.stderr)
    raise typer.Exit(2)


def main() -> None:
    app(prog_name="arriero simulate")
