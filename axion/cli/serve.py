"""`axion serve`: one model behind the OpenAI API."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
import uvloop

from axion.cli.loading import model_config, progress, routing_policy
from axion.errors import AxionError, InvalidRequestError
from axion.settings import CONFIG_VARIABLE, DEMO_MODEL, Settings, SettingsError, load_settings

logger = logging.getLogger("axion")


def serve(model: str | None, config: Path | None, **flags: str | None) -> None:
    """Serve a model over HTTP, with the OpenAI API.

    Each setting comes from its flag, else its environment variable, else the TOML file
    (axion.toml here, or --config), else its default.
    """
    if model is not None:
        if flags.get("model_name") is not None:
            raise InvalidRequestError("Name the model once: as MODEL or with --model-name.")
        flags["model_name"] = model
    if config is not None:
        os.environ[CONFIG_VARIABLE] = str(config)
    run_server(load_settings(**flags))


def _signature() -> inspect.Signature:
    """The command's parameters: MODEL, --config, and one flag for each of the settings."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter("model", keyword, default=None, annotation=_model_argument()),
        inspect.Parameter("config", keyword, default=None, annotation=_config_option()),
    ]
    for name, field in Settings.model_fields.items():
        default = "unset" if field.default in (None, "") else field.default
        option = typer.Option(
            f"--{name.replace('_', '-')}",
            metavar=_metavar(field.annotation),
            help=f"{field.description}. Default: {default}. Variable: {name.upper()}.",
            show_default=False,
        )
        parameters.append(
            inspect.Parameter(name, keyword, default=None, annotation=Annotated[str | None, option])
        )
    return inspect.Signature(parameters)


def _model_argument() -> Any:
    return Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="The same as --model-name.", show_default=False),
    ]


def _config_option() -> Any:
    text = (
        f"TOML file with settings. Default: axion.toml, if it is here. Variable: {CONFIG_VARIABLE}."
    )
    return Annotated[Path | None, typer.Option(metavar="FILE", help=text, show_default=False)]


def _metavar(annotation: Any) -> str:
    """What to write after a flag, from the type of its setting."""
    if get_origin(annotation) is Literal:
        return "|".join(get_args(annotation))
    names = {bool: "true|false", int: "INTEGER", float: "NUMBER", Path: "FILE", str: "TEXT"}
    for kind, name in names.items():
        if annotation is kind or kind in _inner_types(annotation):
            return name
    raise TypeError(f"a setting of a type without a flag: {annotation}")


def _inner_types(annotation: Any) -> Iterator[Any]:
    for inner in get_args(annotation):
        yield inner
        yield from _inner_types(inner)


serve.__signature__ = _signature()  # type: ignore[attr-defined]
serve.__annotations__ = {
    name: parameter.annotation for name, parameter in _signature().parameters.items()
}


def run_server(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        SettingsError: a setting cannot be used; nothing has been started.
        AxionError: the model cannot be had; everything has been stopped.
        SystemExit: a second signal cut the drain short.
    """
    from axion.observability.logging import configure_logging
    from axion.server.listener import bind, tls_context

    configure_logging(settings.axion_log, settings.log_format)
    tls = tls_context(settings)
    listener = bind(settings.server_host, settings.server_port)
    url = _url(settings, listener.getsockname()[1])
    model = model_config(settings)
    announce = _log if settings.log_format == "json" else _print
    announce(f"Listening on {url}, loading {model.model_name}")

    # Who calls from here on waits for a moment instead of being refused.
    from axion.hub.resolve import DEMO_HINT
    from axion.router.plan import plan
    from axion.router.registry import ModelRegistry
    from axion.server.app import create_app
    from axion.server.runner import run

    with ExitStack() as until_ready, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        show = until_ready.enter_context(progress())
        registry = ModelRegistry()
        registry.add_planned(
            model, partial(plan, model, settings, show), policy=routing_policy(settings)
        )

        def on_ready() -> None:
            until_ready.close()
            announce(f"Ready: {model.name} at {url}/v1", _example(url, model.name))

        try:
            status = runner.run(run(create_app(settings, registry), listener, tls, on_ready))
        except SettingsError:
            raise
        except AxionError as error:
            if model.model_name == DEMO_MODEL or DEMO_HINT in error.message:
                raise
            end = "" if error.message.endswith(".") else "."
            raise type(error)(f"{error.message}{end} {DEMO_HINT}") from None
    if status:
        sys.exit(status)


def _url(settings: Settings, port: int) -> str:
    host = settings.server_host
    if host in ("0.0.0.0", "::"):
        host = "localhost"
    elif ":" in host:
        host = f"[{host}]"
    return f"{'https' if settings.tls_cert_file else 'http'}://{host}:{port}"


def _print(event: str, example: str = "") -> None:
    print(f"\n{event}\n\n{example}\n" if example else event, flush=True)


def _log(event: str, example: str = "") -> None:
    """For those who read the output by a program: each line is an entry of the log, and this one
    is said whatever AXION_LOG leaves out, as it is in text."""
    logger.handle(logger.makeRecord(logger.name, logging.INFO, __file__, 0, event, (), None))


def _example(url: str, name: str) -> str:
    """A request to copy into a shell."""
    body = {"model": name, "messages": [{"role": "user", "content": "Hello!"}]}
    insecure = " --insecure" if url.startswith("https") else ""
    return (
        f"  curl{insecure} {url}/v1/chat/completions -H 'Content-Type: application/json' \\\n"
        f"    -d {shlex.quote(json.dumps(body))}"
    )
