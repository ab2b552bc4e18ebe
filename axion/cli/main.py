"""`axion`: the commands, each imported only when it is called."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from axion.cli.errors import reported_errors

COMMANDS = {
    "serve": "Serve a model over HTTP, with the OpenAI API.",
    "chat": "Talk to a model in the terminal.",
    "generate": "Answer one prompt, on stdout.",
    "download": "Download a model into the local cache, and print where it is.",
    "explain": "Show which engines can serve a model here, and why the others cannot.",
    "conformance": "Find out which fields of a request a server honours, refuses or drops.",
    "bench": "Measure a server under load, for seconds or hours, or the engine alone.",
    "compare": "Ask several engines the same: how fast they are, and whether they agree.",
    "parity": "Compare the native engine with transformers, module by module.",
    "new-model": "Write the starting file of an architecture, in a checkout.",
    "doctor": "Show what this machine has: devices, memory, engines, cache.",
}


class LazyGroup(TyperGroup):
    """Runs `NAME` from the function of that name in `axion.cli.NAME`, or from its `app`, which has
    commands of its own; `-` is `_` there."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, _, rest = super().resolve_command(ctx, args)
        attribute = str(name).replace("-", "_")
        module = importlib.import_module(f"axion.cli.{attribute}")
        if hasattr(module, "app"):
            return name, get_command(module.app), rest
        command = typer.Typer(add_completion=False)
        function = getattr(module, attribute)
        command.command(name, help=function.__doc__ or COMMANDS[str(name)])(function)
        return name, get_command(command), rest


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"axion {version('axion')}")
        raise typer.Exit


@app.callback(help="One OpenAI-compatible server in front of every model a team runs.")
def _options(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass


for _name, _help in COMMANDS.items():
    app.command(_name, help=_help)(lambda: None)


def main(args: Sequence[str] | None = None) -> None:
    """Run one command and exit with its status."""
    with reported_errors():
        app(list(sys.argv[1:] if args is None else args), prog_name="axion")
