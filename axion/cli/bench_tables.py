"""How `axion bench` shows figures and how far it is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec
import typer

from axion.bench.client import BenchError
from axion.bench.report import Spread

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn
    from rich.table import Table

Number = TypeVar("Number", int, float)
# What is being done, how much of it is, and of how much; 0: not known.
Show = Callable[[str, int, int], None]


def parse_numbers(text: str, option: str, kind: Callable[[str], Number]) -> list[Number]:
    try:
        found = [kind(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 < value < float("inf") for value in found):
        raise typer.BadParameter(f"{option} must be numbers above 0, with commas between.")
    return found


def cuts(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    return " / ".join(ms(value) for value in (spread.p50, spread.p95, spread.p99))


def ms(seconds: float) -> str:
    if seconds >= 10:
        return f"{seconds:.1f} s"
    return f"{1e3 * seconds:.0f} ms" if seconds >= 0.1 else f"{1e3 * seconds:.2f} ms"


def new_table(*titles: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, title in enumerate(titles):
        table.add_column(title, justify="right" if index else "left", no_wrap=True)
    return table


def new_console() -> Console:
    from rich.console import Console

    # Wide enough for a table, whatever reads the output.
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


@contextmanager
def progress_bar(total: int, name: str) -> Iterator[Callable[[int], None]]:
    """On a terminal, how far a run is; nothing elsewhere."""
    from rich.progress import MofNCompleteColumn

    with _progress(MofNCompleteColumn()) as progress:
        task = progress.add_task(name, total=total or None)
        yield lambda done: progress.update(task, completed=done)


@contextmanager
def stages() -> Iterator[Show]:
    """On a terminal, what is being done and which share of it is; nothing elsewhere."""
    from rich.progress import TaskProgressColumn

    with _progress(TaskProgressColumn()) as progress:
        task = progress.add_task("Starting", total=None)
        yield lambda what, done, total: progress.update(
            task, description=what, completed=done, total=total or None
        )


def _progress(count: ProgressColumn) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        count,
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def write_report(report: msgspec.Struct, file: Path) -> None:
    """As JSON.

    Raises:
        BenchError: it cannot be written.
    """
    write_file(file, msgspec.json.format(msgspec.json.encode(report)) + b"\n")


def write_file(file: Path, content: bytes) -> None:
    """Raises:
    BenchError: it cannot be written.
    """
    try:
        file.write_bytes(content)
    except OSError as error:
        raise BenchError(f"{file} cannot be written: {error.strerror}.") from None
