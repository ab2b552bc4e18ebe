"""`axion explain`: which engines can serve a model here, and why the others cannot."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from axion.cli.options import LocalModel
from axion.settings import Settings, listed, load_settings, model_folders

if TYPE_CHECKING:
    from axion.router.decide import Decision


def explain(
    model: LocalModel = None,
    backends: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Engines to judge, in order; default: AXION_BACKENDS."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="TEXT", help="auto, cpu, cuda or cuda:N; default: DEVICE.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the decision as JSON.")] = False,
) -> None:
    """Show which engines can serve a model on this machine, and why the others cannot.

    Nothing is loaded, and of a model that is not here, no weights are downloaded. The exit status
    is 1 when no engine can serve it.
    """
    import msgspec

    # Shares of the requests name engines that may not be asked about here.
    settings = load_settings(
        model_name=model, axion_backends=backends, device=device, backend_weights="", shadow=""
    )
    decision, note = asyncio.run(_decide(settings))
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(decision)).decode())
    else:
        _show(decision, note)
    if not decision.engines:
        raise typer.Exit(1)


async def _decide(settings: Settings) -> tuple[Decision, str]:
    """The decision, and a word on what was fetched for it."""
    from axion.backends.facts import ModelFacts, device_facts, model_facts
    from axion.hub.peek import peek
    from axion.router.plan import decide_for, engine_facts, load_engines, weight_formats

    engines = load_engines(listed(settings.axion_backends))
    device, facts = await asyncio.gather(
        device_facts(settings.device), engine_facts(engines, settings)
    )
    name = settings.model_name
    if engines.keys() == {"remote"}:
        return decide_for(ModelFacts(name=name), device, facts, settings), ""
    formats = weight_formats(facts)
    glimpse = await peek(name, formats=formats, folders=model_folders(settings))
    known = model_facts(name, glimpse.path, glimpse.weight_bytes)
    note = "Its weights were not fetched." if glimpse.downloaded else ""
    return decide_for(known, device, facts, settings), note


def _show(decision: Decision, note: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for title in ("engine", "version", "", "why"):
        table.add_column(title, overflow="fold", no_wrap=title in ("engine", "version"))
    for verdict in decision.verdicts:
        mark = Text("✓ yes", "green") if verdict.accepted else Text("✗ no", "red")
        table.add_row(verdict.engine, verdict.version, mark, Text(verdict.reason))
    console = Console()
    console.print(Text(f"{decision.model} on {decision.device}", style="bold"))
    console.print(table)
    console.print(Text(_conclusion(decision)))
    if note:
        console.print(Text(note))


def _conclusion(decision: Decision) -> str:
    if not decision.engines:
        return "No engine can serve it."
    first, last = decision.engines[0], decision.engines[-1]
    if first == last:
        return f"{first} would serve it."
    if not decision.standby_fits:
        return f"{first} would serve it. There is no memory for {last} to stand by."
    return f"{first} would serve it, and {last} stand by."
