"""`axion conformance`: what a server does with each field of a request."""

from __future__ import annotations

import asyncio
import datetime
import logging
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from axion.cli.options import ApiKey
from axion.errors import InvalidRequestError

if TYPE_CHECKING:
    from rich.console import Console

    from axion.conformance.report import Report
    from axion.conformance.server import Server
    from axion.conformance.targets import SpawnedServer

_MAX_SEQ_LEN = 2048
_COLOURS = {"honoured": "green", "refused": "yellow", "dropped": "red", "cannot tell": "dim"}

Backend = Annotated[
    str | None,
    typer.Argument(
        metavar="BACKEND",
        help="Engine to spawn, such as max, vllm, llama_cpp or native; with --url, what serves "
        "there.",
        show_default=False,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Model to serve, as `axion serve` takes it (default: axion/demo); with --url, its "
        "name there (default: the first one that the server lists).",
        show_default=False,
    ),
]
Url = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Check a running server, such as http://localhost:8000/v1."),
]
Files = Annotated[
    Path | None,
    typer.Option(
        "--tokenizer",
        metavar="FOLDER",
        help="The model's files, for its token ids; default: the server is asked for them.",
    ),
]
Device = Annotated[str, typer.Option(help="Where a spawned engine computes: auto, cpu or cuda.")]
Only = Annotated[
    list[str] | None, typer.Option("--only", metavar="CHECK", help="Only this check; repeatable.")
]
Output = Annotated[Path, typer.Option(metavar="FOLDER", help="Where the report and data go.")]


def conformance(
    backend: Backend = None,
    model: Model = None,
    url: Url = None,
    api_key: ApiKey = None,
    tokenizer: Files = None,
    device: Device = "auto",
    only: Only = None,
    output: Output = Path("conformance"),
    save: Annotated[
        bool, typer.Option("--save", help="The router on this machine uses what is found.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Find out which fields of a request a server honours, refuses or drops.

    It spawns the engine BACKEND, or checks the server at --url. It writes a table and, for the
    router, the same as data.
    """
    from rich.console import Console

    if backend is None and url is None:
        raise InvalidRequestError("Name an engine to spawn, such as native, or a server by --url.")
    console = Console(stderr=as_json, highlight=False)
    run = _Run(console, model, tokenizer, device, only)
    report = asyncio.run(run.remote(backend, url, api_key) if url else run.spawned(str(backend)))
    if only is None:
        for path in report.write(output):
            console.print(f"wrote {path}", style="dim")
        if save:
            console.print(f"saved {save_report(report)}", style="dim")
    if as_json:
        sys.stdout.write(report.to_json().decode() + "\n")


def save_report(report: Report) -> Path:
    """Put what was found where the router looks for it.

    Raises:
        InvalidRequestError: nobody knows of which version it is.
    """
    from axion.backends.capabilities import file_name, measured_folder
    from axion.conformance.report import encode

    if not report.version:
        raise InvalidRequestError(
            "The server does not tell its version, so the router could not tell for which engine "
            "this was found. Nothing was saved."
        )
    path = measured_folder() / file_name(report.engine, report.version)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(report.capabilities))
    return path


class _Run:
    """One run of the checks, shown as it goes."""

    def __init__(
        self,
        console: Console,
        model: str | None,
        files: Path | None,
        device: str,
        only: list[str] | None,
    ) -> None:
        self._console = console
        self._model = model
        self._files = files
        self._device = device
        self._only = only

    async def remote(self, engine: str | None, url: str, api_key: str | None) -> Report:
        """Check a server that somebody else runs."""
        from axion.conformance.identify import first_model, identify
        from axion.conformance.server import Server

        async with AsyncExitStack() as stack:
            server = Server(url, self._model or "", api_key=api_key)
            stack.push_async_callback(server.close)
            if not server.model:
                server.model = await first_model(server)
            found = await identify(server)
            name = engine or found.engine
            return await self._report(name, found.version, server.model, "its device", server)

    async def spawned(self, engine: str) -> Report:
        """Check a server that is spawned for it."""
        from axion import __version__
        from axion.backends.spawned import SpawnedBackend
        from axion.cli.loading import model_config
        from axion.conformance.identify import device_name
        from axion.conformance.targets import AxionServer, SpawnedServer, unattended
        from axion.hub.resolve import resolve
        from axion.settings import DEMO_MODEL, load_settings

        cls = unattended(AxionServer if engine == "native" else _engine_class(engine))
        settings = load_settings(device=self._device, model_name=self._model or DEMO_MODEL)
        config = model_config(settings)
        # No check needs more, and a model may have less than the default.
        config = msgspec.structs.replace(config, max_seq_len=min(config.max_seq_len, _MAX_SEQ_LEN))
        backend: SpawnedBackend = cls()
        spawned = SpawnedServer(backend, config)
        version = __version__ if engine == "native" else (await cls.facts(settings)).version
        where = await device_name(self._device)
        if self._files is None:
            self._files = (await resolve(config.model_name, formats=cls.known.formats)).path
        async with AsyncExitStack() as stack:
            stack.push_async_callback(spawned.stop)
            with self._console.status(f"Starting {engine} with {config.name}"):
                await spawned.start()
            # From here on what it writes is about requests that are meant to be strange.
            logging.getLogger("axion").setLevel(logging.CRITICAL)
            async with spawned.connect() as server:
                return await self._report(
                    engine, version, Path(config.name).name, where, server, spawned
                )

    async def _report(
        self,
        engine: str,
        version: str,
        model: str,
        device: str,
        server: Server,
        spawned: SpawnedServer | None = None,
    ) -> Report:
        from axion.conformance.report import Report
        from axion.conformance.suite import Row, Suite
        from axion.conformance.tokens import Tokens

        self._console.print(f"{engine} {version}, {model}, {device}", style="bold")
        suite = Suite(server, engine, Tokens(server, self._files))
        await suite.begin()
        features: list[Row] = []
        async for row in suite.run(self._only):
            self._show(row)
            if row.name in suite.findings:
                features.append(row)
        behaviour = [*suite.observations]
        if spawned is not None and self._only is None:
            for name, observe in (
                ("time to ready", spawned.ready),
                ("SIGTERM", spawned.sigterm),
                ("SIGTERM in a stream", spawned.sigterm_in_stream),
            ):
                behaviour.append(row := Row(name, *await observe()))
                self._show(row)
        return Report(
            engine=engine,
            version=version,
            model=model,
            device=device,
            date=datetime.date.today(),
            features=features,
            behaviour=behaviour,
            capabilities=suite.capabilities(version),
        )

    def _show(self, row: Any) -> None:
        from rich.text import Text

        line = Text(f"{row.name:<38} ")
        line.append(f"{row.result:<14} ", style=_COLOURS.get(row.result, ""))
        line.append(row.evidence, style="dim")
        self._console.print(line, soft_wrap=True)


def _engine_class(name: str) -> Any:
    """Raises:
    InvalidRequestError: it is not an engine that is spawned.
    """
    from axion.backends.engines import spawned_engines

    classes = {cls.engine: cls for cls in spawned_engines()}
    if name not in classes:
        known = ", ".join(["native", *classes])
        raise InvalidRequestError(f"There is no engine {name!r} to spawn. Expected one of {known}.")
    return classes[name]
