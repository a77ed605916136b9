"""What `arriero up` prints when all is ready: where things are, and lines to paste. No I/O."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from libs.cli.home import UpFile


def summary(up: UpFile, *, gateways: Sequence[str], model: str | None, nats_env: Path, logs: Path) -> str:
    model = model or "MODEL"
    chat = {"model": model, "stream": True, "messages": [{"role": "user", "content": "Why are llamas good walkers?"}]}
    job = {"model": model, "prompt": "Write a haiku about a mountain pass."}
    find_id = """sed -E 's/.*"id": *"([^"]+)".*/\\1/'"""
    send_json = "-H 'Content-Type: application/json'"
    key = f"-H 'Authorization: Bearer {up.api_key}'"
    return f"""
Arriero is up.

  gateway   {", ".join(gateways)}   (OpenAI's API under /v1)
  auth      {up.auth}
  NATS      {up.nats}   (credentials: {nats_env})
  API key   {up.api_key}
  logs      {logs}

Chat, streamed:
  curl -N {up.gateway}/v1/chat/completions {key} {send_json} -d {shlex.quote(json.dumps(chat))}

A job that outlives this terminal, then its stream:
  ID=$(curl -s {up.gateway}/jobs {key} {send_json} -d {shlex.quote(json.dumps(job))} | {find_id})
  curl -N {up.gateway}/jobs/$ID/stream {key}

Any OpenAI client:
  export OPENAI_BASE_URL={up.gateway}/v1 OPENAI_API_KEY={up.api_key}

Ctrl-C drains and ends everything; jobs and clients stay."""
