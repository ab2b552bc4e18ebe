"""`axion bench`: how fast a server of the OpenAI API is, and whether it stays so."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
import uvloop

from axion.bench.client import BenchError, Target
from axion.bench.load import Load, run
from axion.bench.report import Figures, Report, Sample, changes, figures
from axion.bench.workload import Kind, Range
from axion.cli.bench_engine import engine, profile, shape
from axion.cli.bench_tables import (
    cuts,
    ms,
    new_console,
    new_table,
    parse_numbers,
    progress_bar,
    write_file,
    write_report,
)
from axion.cli.options import ApiKey

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

app = typer.Typer(
    help="Measure a server of the OpenAI API, Axion's or another's, or the engine alone.",
    no_args_is_help=True,
    add_completion=False,
)

for _command in (engine, profile, shape):
    app.command()(_command)

Url = Annotated[str, typer.Argument(metavar="URL", help="Such as http://localhost:3000.")]
Model = Annotated[
    str | None,
    typer.Option("--model", help="Default: the first that the server lists.", show_default=False),
]
Chat = Annotated[bool, typer.Option("--chat/--completions", help="The endpoint that is asked.")]
Mix = Annotated[
    list[str] | None,
    typer.Option(
        metavar="IN:OUT[*WEIGHT]",
        help="Requests of several kinds, such as --mix 128:64*3 --mix 1000-2000:16.",
        show_default=False,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        help="Of prompts and arrivals. Default: another each time, so that no cache knows them.",
        show_default=False,
    ),
]


@app.command()
def serve(
    url: Url,
    model: Model = None,
    prompt_len: Annotated[str, typer.Option(metavar="N[-M]", help="In tokens.")] = "128",
    output_len: Annotated[str, typer.Option(metavar="N[-M]", help="In tokens.")] = "64",
    mix: Mix = None,
    concurrency: Annotated[
        str | None,
        typer.Option(
            metavar="N[,N...]",
            help="Requests at once; several numbers are several runs. Default: 1.",
            show_default=False,
        ),
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(
            metavar="R[,R...]",
            help="Requests a second that come when they may (Poisson), however long others take.",
            show_default=False,
        ),
    ] = None,
    num_requests: Annotated[
        int | None,
        typer.Option(min=1, help="Of each run. Default: 8 times what is at once, or 60 s of rate."),
    ] = None,
    shared_prefix: Annotated[
        float, typer.Option(min=0, max=1, help="Share of each prompt with which all begin.")
    ] = 0.0,
    chat: Chat = True,
    seed: Seed = None,
    api_key: ApiKey = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the figures there, as JSON.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw them there, as SVG.")] = None,
) -> None:
    """Time to first token, time of a token and throughput under load."""
    from axion.bench.plot import svg

    if rate is not None and concurrency is not None:
        raise typer.BadParameter("--rate and --concurrency are two kinds of load: give one.")
    kinds = _kinds(mix, prompt_len, output_len)
    seed = _seed(seed)
    loads = []
    if rate is not None:
        for value in parse_numbers(rate, "--rate", float):
            count = num_requests or max(10, round(60 * value))
            loads.append(Load(kinds=kinds, num_requests=count, concurrency=10_000, rate=value))
    else:
        for value in parse_numbers(concurrency or "1", "--concurrency", int):
            count = num_requests or 8 * value
            loads.append(Load(kinds=kinds, num_requests=count, concurrency=value))
    report = _measure(
        Target(url, model, api_key=api_key, chat=chat),
        loads,
        shared_prefix=shared_prefix,
        seed=seed,
    )
    _show(report)
    if output is not None:
        write_report(report, output)
    if plot is not None:
        write_file(plot, svg(report).encode())
    if not any(run.num_ok for run in report.runs):
        raise BenchError("No request was answered.")


@app.command()
def cache(
    url: Url,
    model: Model = None,
    prompt_len: Annotated[int, typer.Option(min=1, help="In tokens.")] = 1024,
    num_prompts: Annotated[int, typer.Option(min=1, help="Each is sent twice.")] = 8,
    chat: Chat = True,
    seed: Seed = None,
    api_key: ApiKey = None,
) -> None:
    """How much sooner the first token comes when a prompt is known (prefix cache)."""
    length = Range(prompt_len, prompt_len)
    # One at a time, so that nothing but the prompt's own computation is in the time.
    load = Load(kinds=(Kind(length, Range(2, 2)),), num_requests=num_prompts)
    target = Target(url, model, api_key=api_key, chat=chat)
    report = _measure(target, [load, load], shared_prefix=0.0, seed=_seed(seed), same_prompts=True)
    cold, warm = report.runs
    _raise_if_failed(report)
    console = new_console()
    table = new_table("", "first token p50", "p99", "prompt tokens", "of them cached")
    for name, figures_ in (("first time", cold), ("second time", warm)):
        assert figures_.ttft is not None
        table.add_row(
            name,
            ms(figures_.ttft.p50),
            ms(figures_.ttft.p99),
            str(figures_.prompt_tokens),
            str(figures_.cached_tokens),
        )
    console.print(table)
    assert cold.ttft is not None
    assert warm.ttft is not None
    console.print(f"The second time {cold.ttft.p50 / warm.ttft.p50:.1f} x sooner.")


@app.command()
def soak(
    url: Url,
    model: Model = None,
    minutes: Annotated[float, typer.Option(min=0.01, help="How long.")] = 30.0,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at once.")] = 16,
    mix: Mix = None,
    leave: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the clients that hang up midway.")
    ] = 0.2,
    chat: Chat = True,
    seed: Seed = None,
    api_key: ApiKey = None,
) -> None:
    """Mixed load with clients that hang up, for long: does memory grow, do blocks leak?

    Exit status 1 if so, or if a request fails. It reads the server's /metrics.
    """
    from axion.bench.soak import MIN_MEMORY_S, Snapshot, judge, snapshot, warm_up_s

    kinds = _kinds(mix or ["32:32*6", "100-400:16-128*3", "600-1000:8"], "", "")
    load = Load(
        kinds=kinds,
        duration_s=60 * minutes,
        concurrency=concurrency,
        shared_prefix=0.3,
        leave=leave,
        seed=_seed(seed),
    )

    look_at_s = warm_up_s(60 * minutes)
    console = new_console()
    if look_at_s is None:
        console.print(
            f"Memory is judged in soaks of {MIN_MEMORY_S / 60:.0f} minutes or more; here only "
            "failures are, and what is left at its end."
        )

    async def measure() -> tuple[list[Sample], list[str], float | None]:
        early: Snapshot | None = None
        async with Target(url, model, api_key=api_key, chat=chat) as target:
            await snapshot(target)  # whether there is a /metrics
            await target.prepare()
            with progress_bar(round(60 * minutes), "soak, seconds") as advance:
                begun = time.monotonic()
                running = asyncio.create_task(run(target, load))
                while not running.done():
                    await asyncio.wait({running}, timeout=1.0)
                    passed = time.monotonic() - begun
                    advance(round(passed))
                    if early is None and look_at_s is not None and passed > look_at_s:
                        early = await snapshot(target)
            samples = await running
            late = await snapshot(target)
            for _ in range(50):  # the engine learns that clients have left, a step later
                if not late.blocks_used and not late.in_flight:
                    break
                await asyncio.sleep(0.1)
                late = await snapshot(target)
        num_failed = sum(sample.error is not None for sample in samples)
        verdict = judge(early, late, num_failed)
        return samples, verdict.faults, verdict.memory_growth

    samples, faults, growth = uvloop.run(measure())
    figures_ = figures(samples, concurrency=concurrency)
    console.print(_runs_table([figures_]))
    _print_errors(console, figures_)
    if growth is not None:
        console.print(f"Memory of server and engines: {growth:+.1%} since the warm-up.")
    if faults:
        raise BenchError(f"The soak failed: {'; '.join(faults)}.")
    console.print("All blocks are free, nothing is in flight.")


@app.command()
def compare(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="Written by --output.")],
    new: Annotated[Path, typer.Argument(metavar="NEW")],
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Exit status 1 if a median or a rate is worse by more than this share.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Two reports side by side; with --tolerance a check against regressions."""
    before, after = _read(old), _read(new)
    if len(before.runs) != len(after.runs):
        raise BenchError(f"{old} has {len(before.runs)} runs, {new} has {len(after.runs)}.")
    table = new_table("load", "", "old", "new", "times better")
    worse = []
    for one, other in zip(before.runs, after.runs, strict=True):
        if (one.concurrency, one.rate) != (other.concurrency, other.rate):
            raise BenchError("The two reports are of different loads.")
        for change in changes(one, other):
            is_rate = change.name.endswith("/s")
            old_text, new_text = (
                (f"{value:.1f}" if is_rate else ms(value)) for value in (change.old, change.new)
            )
            table.add_row(_load(one), change.name, old_text, new_text, f"{change.gain:.2f}")
            is_judged = is_rate or change.name.endswith("p50")
            if tolerance is not None and is_judged and change.gain < 1 - tolerance:
                worse.append(f"{change.name} at {_load(one)}: {change.gain:.2f}")
    new_console().print(table)
    if worse:
        raise BenchError(f"Worse than {tolerance:.0%} allows: {'; '.join(worse)}.")


def _kinds(mix: list[str] | None, prompt_len: str, output_len: str) -> tuple[Kind, ...]:
    try:
        if mix:
            return tuple(Kind.parse(text) for text in mix)
        return (Kind(Range.parse(prompt_len), Range.parse(output_len)),)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _seed(seed: int | None) -> int:
    return time.time_ns() % 10**9 if seed is None else seed


def _measure(
    target: Target,
    loads: list[Load],
    *,
    shared_prefix: float,
    seed: int,
    same_prompts: bool = False,
) -> Report:
    async def measure() -> list[Figures]:
        found = []
        async with target:
            await target.prepare()
            for index, load in enumerate(loads):
                load = dataclasses.replace(
                    load,
                    shared_prefix=shared_prefix,
                    seed=seed if same_prompts else seed + index,
                )
                name = (
                    f"{_rate(load.rate)} requests/s" if load.rate else f"{load.concurrency} at once"
                )
                with progress_bar(load.num_requests or 0, name) as advance:
                    done = 0

                    def on_done(sample: Sample, advance: Callable[[int], None] = advance) -> None:
                        nonlocal done
                        done += 1
                        advance(done)

                    samples = await run(target, load, on_done)
                found.append(figures(samples, concurrency=load.concurrency, rate=load.rate))
        return found

    runs = uvloop.run(measure())
    return Report(
        url=target.url,
        model=target.model,
        created=int(time.time()),
        kinds=[f"{kind.prompt_len}:{kind.output_len}" for kind in loads[0].kinds],
        shared_prefix=shared_prefix,
        seed=seed,
        keeps_length=target.keeps_length,
        runs=runs,
    )


def _raise_if_failed(report: Report) -> None:
    for run_ in report.runs:
        if run_.num_failed:
            raise BenchError(next(iter(run_.errors)))


class _Runs(msgspec.Struct):
    """What every report has, also the engine's."""

    runs: list[Figures]


def _read(path: Path) -> _Runs:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Runs)
    except OSError as error:
        raise BenchError(f"{path} cannot be read: {error.strerror}.") from None
    except msgspec.MsgspecError as error:
        raise BenchError(f"{path} is not a report of axion bench: {error}.") from None


def _show(report: Report) -> None:
    console = new_console()
    console.print(f"{report.model} at {report.url}, {', '.join(report.kinds)} tokens in:out")
    console.print(_runs_table(report.runs))
    for run_ in report.runs:
        _print_errors(console, run_)
    if not report.keeps_length:
        console.print("The server does not take ignore_eos: answers may be shorter than asked for.")


def _runs_table(runs: list[Figures]) -> Table:
    table = new_table(
        "load",
        "requests",
        "first token\np50 / p95 / p99",
        "a token (TPOT)\np50 / p95 / p99",
        "gap (ITL)\np50 / p95 / p99",
        "output\ntokens/s",
        "requests/s",
    )
    for run_ in runs:
        failed = f", {run_.num_failed} failed" if run_.num_failed else ""
        left = f", {run_.num_left} left" if run_.num_left else ""
        table.add_row(
            _load(run_),
            f"{run_.num_ok}{failed}{left}",
            cuts(run_.ttft),
            cuts(run_.tpot),
            cuts(run_.itl),
            f"{run_.output_tokens_per_s:.1f}",
            f"{run_.requests_per_s:.2f}",
        )
    return table


def _print_errors(console: Console, run_: Figures) -> None:
    for reason, count in run_.errors.items():
        console.print(f"{count} failed: {reason}", style="red", markup=False)


def _load(run_: Figures) -> str:
    return f"{_rate(run_.rate)}/s" if run_.rate is not None else f"{run_.concurrency} at once"


def _rate(rate: float | None) -> str:
    return f"{rate:g}"
