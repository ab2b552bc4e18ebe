"""`axion compare`: the same prompts on several engines; how fast they are, how far they agree."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
import uvloop

from axion.cli.comparison import Comparison, Result, Spread, compare_engines, contenders
from axion.cli.options import LocalModel
from axion.cli.prompts import make_request, read_prompts
from axion.cli.session import terminal_safe
from axion.observability.logging import configure_logging
from axion.settings import load_settings

if TYPE_CHECKING:
    from rich.progress import Progress


def compare(
    model: LocalModel = None,
    backends: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Engines, and URLs of OpenAI-compatible servers such as http://host:8000/v1 "
            "(http://host:8000/v1#NAME where the model has another name there; key: "
            "REMOTE_API_KEY), with commas between. The others are compared with the first. "
            "Default: AXION_BACKENDS.",
        ),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="One prompt a line, or JSON lines with messages or prompt and any other field of "
            "the API; - reads stdin. Default: a few questions.",
        ),
    ] = None,
    temperature: Annotated[
        float, typer.Option(min=0, max=2, help="Where a prompt names none.")
    ] = 0.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Where a prompt names none.")] = 128,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests sent at once.")] = 1,
    together: Annotated[
        bool,
        typer.Option(
            "--together",
            help="Start all engines first. Else each has the machine's memory to itself.",
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the figures and all answers as JSON.")
    ] = False,
) -> None:
    """Ask several engines the same, and show how fast they answer and how far they agree.

    Greedy unless --temperature says otherwise. The exit status is 1 when an engine could not be
    started or a prompt was not answered.
    """
    settings = load_settings(model_name=model)
    # What an engine writes while it starts would tear the display; why it failed is in its row.
    is_named = "axion_log" in settings.model_fields_set
    configure_logging(settings.axion_log if is_named else "off", settings.log_format)
    wanted = max(concurrency, settings.concurrent_requests)
    settings = settings.model_copy(update={"concurrent_requests": wanted})
    engines = contenders(backends or settings.axion_backends, settings)
    read = partial(make_request, temperature=temperature, max_tokens=max_tokens)
    given = read_prompts(prompts)
    with _progress() as progress:
        results = uvloop.run(compare_engines(engines, given, read, concurrency, together, progress))
    comparison = Comparison(
        model=settings.model_name,
        num_prompts=len(given),
        concurrency=concurrency,
        results=results,
    )
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(comparison)).decode())
    else:
        _show(comparison)
    if not all(result.is_complete for result in results):
        raise typer.Exit(1)


@contextmanager
def _progress() -> Iterator[Progress]:
    """On a terminal, what is being done; nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    text = TextColumn("{task.description}", markup=False)
    columns = (SpinnerColumn(), text, BarColumn(), TimeElapsedColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        yield progress


def _show(comparison: Comparison) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("engine", no_wrap=True)
    for title in ("start", "first token\np50 / p95", "answer\np50 / p95", "tokens/s"):
        table.add_column(title, justify="right", no_wrap=True)
    for title in ("same\ntext", "same\nstart"):
        table.add_column(title, justify="right", no_wrap=True)
    for result in comparison.results:
        agreement = result.agreement
        table.add_row(
            Text(result.backend, style="" if result.is_complete else "red"),
            _seconds(result.start_s),
            _both(result.first_token_s),
            _both(result.total_s),
            "-" if result.tokens_per_s is None else f"{result.tokens_per_s:.1f}",
            "-" if agreement is None else f"{agreement.same_text:.0%}",
            "-" if agreement is None else f"{agreement.same_start:.0%}",
        )
    console = Console()
    first = comparison.results[0].backend
    console.print(Text(f"{comparison.model}, {comparison.num_prompts} prompts", style="bold"))
    console.print(table)
    unit = next((r.agreement.unit for r in comparison.results if r.agreement), None)
    if unit is not None:
        console.print(
            Text(f"Same: as {first}; start: {unit} before the first difference, of the longer one.")
        )
    problems: dict[str, list[str]] = {}  # what is wrong with the model is wrong with it everywhere
    for result in comparison.results:
        for problem in _problems(result):
            problems.setdefault(problem, []).append(result.backend)
    for problem, backends in problems.items():
        console.print(Text(terminal_safe(f"{', '.join(backends)}: {problem}"), style="red"))


def _problems(result: Result) -> Iterator[str]:
    if result.error is not None:
        yield result.error
    reasons = [answer.error for answer in result.answers if answer.error is not None]
    for reason in dict.fromkeys(reasons):
        yield f"{reasons.count(reason)} of {len(result.answers)} prompts failed: {reason}"


def _both(spread: Spread | None) -> str:
    return "-" if spread is None else f"{_seconds(spread.p50)} / {_seconds(spread.p95)}"


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:.1f} s" if seconds >= 10 else f"{1e3 * seconds:.0f} ms"
