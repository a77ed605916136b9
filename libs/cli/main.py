"""The `arriero` command. Commands import what they need when they run, so that `--help` is quick."""

import sys

import typer

from libs.cli import audit, chat, clients, job, keys, models, nats, nodes, signing, sim, simulate, status, webhook
from libs.cli.failures import CommandFailed
from libs.cli.output import fail
from libs.cli.up import command as up_command

HELP = """Run a fleet of Ollama nodes behind one durable queue with live tokens.

`arriero up` starts everything on this machine; the other commands talk to it, found through $ARRIERO_HOME (default
./.arriero), or to the Arriero at ARRIERO_URL with ARRIERO_API_KEY.

With --json a command prints JSON on stdout and nothing else. A failure is one sentence on stderr, and with --json also
{"error": {"code", "message"}} on stdout. Exit codes: 0 done, 1 failed, 2 wrong usage.

\b
Examples:
  arriero up                                           start everything, stream a first answer
  arriero chat llama3.2:3b "Why are llamas good walkers?"
  arriero job submit llama3.2:3b "Tell a long story." --watch
  arriero models pin llama3.2:3b gpu-1                 keep a model in a node's memory
  arriero nodes drain gpu-1 --wait                     no new work for a node
  arriero client create ci --json                      a client of its own for another program
  arriero audit tail -f                                who did what to what, as it happens
  arriero status                                       what runs, and what is not ready
"""

app = typer.Typer(
    help=HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(help=up_command.HELP)(up_command.up)
app.command()(chat.chat)
app.add_typer(job.app, name="job")
app.add_typer(nodes.app, name="nodes")
app.add_typer(models.app, name="models")
app.command()(status.status)
app.add_typer(clients.client_app, name="client")
app.add_typer(keys.key_app, name="key")
app.add_typer(webhook.app, name="webhook")
app.add_typer(audit.app, name="audit")
app.add_typer(signing.app, name="auth")
app.add_typer(nats.app, name="nats")
app.command(add_help_option=False, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})(sim.sim)
app.command(add_help_option=False, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})(
    simulate.simulate
)


def main() -> None:
    """Ends the process with the command's exit code."""
    try:
        app(prog_name="arriero")
    except CommandFailed as failure:
        sys.exit(fail(failure))
    except KeyboardInterrupt:
        sys.exit(130)
