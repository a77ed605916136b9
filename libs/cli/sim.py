"""`arriero sim …`: the simulated Ollama node, as a process in our place."""

import os
import sys

import typer


def sim(context: typer.Context) -> None:
    """Run a simulated Ollama node: the API, the scheduler and the failures of a real one, without a GPU.

    All options are the simulator's own; `arriero sim --help` shows them.
    """
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    os.execve(sys.executable, [sys.executable, "-m", "libs.ollama_sim", *context.args], environment)
