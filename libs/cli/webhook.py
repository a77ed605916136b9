"""`arriero webhook …`: who is told when jobs end (docs/webhooks.md)."""

import asyncio
from typing import Annotated, Any
from urllib.parse import quote

import typer

from libs.cli.failures import CommandFailed
from libs.cli.job import call
from libs.cli.output import Json, show, table
from libs.common.contracts.webhooks import EventType

app = typer.Typer(help="Webhooks: who is told when jobs end.", no_args_is_help=True, rich_markup_mode=None)

Id = Annotated[str, typer.Argument(metavar="ID", help="The webhook's id, as `webhook list` shows it.")]


@app.command()
def create(
    url: Annotated[str, typer.Argument(help="Where to send it; https://.")],
    event: Annotated[list[EventType] | None, typer.Option(help="Only this; several times for several.")] = None,
    include_result: Annotated[bool, typer.Option(help="With the job's result, if all fits 64 kB.")] = False,
    as_json: Json = False,
) -> None:
    """Register a receiver. Its secret is shown this once; with it the receiver knows that a request comes from here.

    \b
    Examples:
      ID=$(arriero webhook create https://hooks.example.org/arriero --json | jq -r .id)
      arriero webhook test $ID
      arriero job submit llama3.2:3b "Tell a long story." --webhook $ID
    """
    body: dict[str, Any] = {"url": url, "include_result": include_result}
    if event:
        body["events"] = [str(one) for one in event]
    made = asyncio.run(call("POST", "/webhooks", body))
    show(made, f"webhook  {made['id']}\nsecret   {made['secret']}\n\nThe secret cannot be shown again.")


@app.command("list")
def list_webhooks(as_json: Json = False) -> None:
    """Your webhooks, without their secrets."""
    found = asyncio.run(call("GET", "/webhooks"))["webhooks"]
    rows = [
        (
            webhook["id"],
            webhook["url"],
            "all" if len(webhook["events"]) == len(EventType) else " ".join(webhook["events"]),
            "with" if webhook["include_result"] else "without",
            _state(webhook),
        )
        for webhook in found
    ]
    show({"webhooks": found}, table(rows, ("WEBHOOK", "URL", "EVENTS", "RESULT", "STATE")))


@app.command()
def delete(webhook_id: Id, as_json: Json = False) -> None:
    """Nothing more is sent there, not even what is on its way."""
    answer = asyncio.run(call("DELETE", f"/webhooks/{quote(webhook_id, safe='')}"))
    show(answer, f"Webhook {webhook_id} is deleted.")


@app.command("test")
def try_out(webhook_id: Id, as_json: Json = False) -> None:
    """Send an event `webhook.test` now. A success enables a webhook that was disabled; a failure ends with 1."""
    answer = asyncio.run(call("POST", f"/webhooks/{quote(webhook_id, safe='')}/test"))
    if not answer["delivered"]:
        raise CommandFailed(f"the test was not delivered: {answer['reason']}", code="not_delivered")
    show(answer, f"Delivered: the receiver answered {answer['status']}.")


def _state(webhook: dict[str, Any]) -> str:
    if webhook["disabled_at"]:
        return f"disabled: {webhook['reason']}"
    if webhook["failing_since"]:
        return f"failing since {webhook['failing_since']}: {webhook['reason']}"
    return "well"
