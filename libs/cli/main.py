"""The `arriero` command. Commands import what they need when they run, so that `--help` is quick."""

import sys

import typer

from libs.cli.failures import CommandFailed
from libs.cli.output import fail
from libs.cli.up import command as up_command

HELP = """Run a fleet of Ollama nodes behind one durable queue with live tokens.

`arriero up` starts everything on this machine; the other commands talk to it, found through $ARRIERO_HOME (default
./.arriero), or to the Arriero at ARRIERO_URL with ARRIERO_API_KEY.

With --json a command prints JSON on stdout and nothing else. A failure is one sentence on stderr, and with --json also
{"error": {"code", "message"}} on stdout. Exit codes: 0 done, 1 failed, 2 wrong usage.
"""

app = typer.Typer(
    help=HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
app.command(help=up_command.HELP)(up_command.up)


@app.callback()
def _root() -> None:
    pass


def main() -> None:
    """Ends the process with the command's exit code."""
    try:
        app(prog_name="arriero")
    except CommandFailed as failure:
        sys.exit(fail(failure))
    except KeyboardInterrupt:
        sys.exit(130)
