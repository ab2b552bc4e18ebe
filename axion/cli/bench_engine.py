"""`axion bench engine`, `profile` and `shape`: the native engine without a server.

What imports torch runs in a process of its own, `axion.bench.process`.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Annotated, get_args

import msgspec
import typer

from axion.backends.worker import tuning
from axion.bench.messages import (
    Answer,
    EngineLoad,
    Failed,
    MakeShape,
    Measured,
    MeasureEngine,
    Message,
    Profiled,
    ProfileEngine,
    Progress,
    Request,
)
from axion.bench.report import STEP_PARTS, EngineReport
from axion.bench.shapes import shape_config, shape_folder, shapes
from axion.cli.bench_tables import (
    cuts,
    ms,
    new_console,
    new_table,
    parse_numbers,
    stages,
    write_report,
)
from axion.errors import ModelLoadError
from axion.hub.resolve import resolve
from axion.settings import Settings
from axion.types import EngineConfig

Model = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="Hugging Face id, folder or axion/demo; or give --shape.",
        show_default=False,
    ),
]
Shape = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help=f"Random weights in the shape of a real model: {', '.join(shapes())}.",
        show_default=False,
    ),
]
PromptLen = Annotated[int, typer.Option(min=1, help="In tokens.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Quantization = Annotated[str, typer.Option(help="none, int8, int4 or fp8.")]
CudaGraphs = Annotated[
    bool, typer.Option("--cuda-graphs/--no-cuda-graphs", help="Replay decode steps, on CUDA.")
]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Of the CPU. Default: torch's.", show_default=False)
]


def engine(
    model: Model = None,
    shape: Shape = None,
    batch_size: Annotated[
        str, typer.Option(metavar="N[,N...]", help="Sequences at once; each is a run.")
    ] = "1,8",
    prompt_len: PromptLen = 128,
    output_len: Annotated[int, typer.Option(min=1, help="In tokens.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="The median one counts.")] = 3,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantization: Quantization = "none",
    cuda_graphs: CudaGraphs = True,
    threads: Threads = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the figures there, as JSON.")
    ] = None,
) -> None:
    """The native engine without a server: tokens a second, and what takes the time.

    What the machine's memory and processors reach at their best is measured in the same run.
    """
    batch_sizes = tuple(parse_numbers(batch_size, "--batch-size", int))
    load = EngineLoad(
        batch_sizes=batch_sizes, prompt_len=prompt_len, output_len=output_len, rounds=rounds
    )
    name, path = _find(model, shape)
    config = _config(path, load, device, dtype, quantization, threads, cuda_graphs=cuda_graphs)
    measured = _ask(MeasureEngine(config, load))
    assert isinstance(measured, Measured)
    report = EngineReport(
        model=name,
        created=int(time.time()),
        kinds=[f"{prompt_len}:{output_len}"],
        quantization=quantization,
        info=measured.info,
        limits=measured.limits,
        runs=measured.runs,
    )
    _show(report)
    if output is not None:
        write_report(report, output)


def profile(
    model: Model = None,
    shape: Shape = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences at once.")] = 1,
    prompt_len: PromptLen = 128,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantization: Quantization = "none",
    cuda_graphs: CudaGraphs = True,
    threads: Threads = None,
    num_rows: Annotated[int, typer.Option(min=1, help="Operators in each table.")] = 20,
    trace: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Write traces there, for chrome://tracing or Perfetto.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Which operators take the native engine's time, in a prefill and in decode steps."""
    load = EngineLoad(batch_sizes=(batch_size,), prompt_len=prompt_len, output_len=64, rounds=1)
    name, path = _find(model, shape)
    config = _config(path, load, device, dtype, quantization, threads, cuda_graphs=cuda_graphs)
    if trace is not None:
        trace.mkdir(parents=True, exist_ok=True)
    request = ProfileEngine(config, load, None if trace is None else str(trace), num_rows)
    profiled = _ask(request)
    assert isinstance(profiled, Profiled)
    for part, table in profiled.tables.items():
        print(f"{name}, {part}, {batch_size} at once\n{table}")


def shape(
    name: Annotated[str, typer.Argument(metavar="NAME", help=", ".join(shapes()))],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder. Default: in Axion's cache.", show_default=False
        ),
    ] = None,
) -> None:
    """Write a model with random weights in the shape of a real one, and print its folder."""
    print(_make(name, output or shape_folder(name)))


def _make(name: str, folder: Path) -> Path:
    shape_config(name)
    _ask(MakeShape(name, str(folder)))
    return folder


def _find(model: str | None, shape: str | None) -> tuple[str, Path]:
    """The model's name and folder."""
    if (model is None) == (shape is None):
        raise typer.BadParameter("Give either MODEL or --shape.")
    if shape is not None:
        return shape, _make(shape, shape_folder(shape))
    assert model is not None
    with stages() as show:
        return model, asyncio.run(resolve(model, on_progress=partial(show, "Downloading"))).path


def _config(
    path: Path,
    load: EngineLoad,
    device: str,
    dtype: str,
    quantization: str,
    threads: int | None,
    *,
    cuda_graphs: bool,
) -> EngineConfig:
    for option, value, known in (
        ("--dtype", dtype, Settings.model_fields["dtype"]),
        ("--quantization", quantization, Settings.model_fields["quantization"]),
    ):
        choices = get_args(known.annotation)
        if value not in choices:
            raise typer.BadParameter(f"{option} must be {' or '.join(choices)}, got {value!r}.")
    return EngineConfig(
        model_path=str(path),
        device=device,
        dtype=dtype,
        quantization=quantization,
        max_num_seqs=max(load.batch_sizes),
        max_model_len=load.prompt_len + load.output_len + 1,
        # Each round has the same lengths, and is to compute them.
        enable_prefix_caching=False,
        cuda_graphs=cuda_graphs,
        num_threads=threads,
    )


def _ask(request: Request) -> Answer:
    """The answer of a process of its own, which is ended if this one is interrupted.

    Raises:
        AxionError: the request cannot be answered; says why.
    """
    command = [sys.executable, "-m", "axion.bench.process"]
    with (
        stages() as show,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | tuning(os.environ),
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(msgspec.json.encode(request))
            process.stdin.close()
            for line in process.stdout:
                message: Message = msgspec.json.decode(line, type=Message)
                match message:
                    case Progress(what, done, total):
                        show(what, done, total)
                    case Failed(reason):
                        raise ModelLoadError(reason)
                    case _:
                        return message
        finally:
            process.kill()
    raise ModelLoadError(f"The measurement ended with status {process.returncode}.")


def _show(report: EngineReport) -> None:
    console = new_console()
    info, limits = report.info, report.limits
    weights = info.dtype if report.quantization == "none" else report.quantization
    console.print(
        f"{report.model}, {info.num_parameters / 1e6:,.0f} M parameters, {weights} on "
        f"{info.device}, {report.kinds[0]} tokens in:out"
    )
    rates = ", ".join(f"{name} {rate / 1e12:.2f}" for name, rate in limits.matrix.items())
    console.print(
        f"The machine at its best: {limits.read / 1e9:.1f} GB/s from memory; matrix products, "
        f"tera-operations/s: {rates}"
    )
    table = new_table(
        "at once",
        "output\ntokens/s",
        "prefill\ntokens/s",
        "of the\nlimit",
        "decode\ntokens/s",
        "of the\nlimit",
        "first token\np50 / p95 / p99",
        "gap (ITL)\np50 / p95 / p99",
        "a decode step, p50:\n" + " + ".join(STEP_PARTS),
    )
    for run in report.runs:
        table.add_row(
            str(run.concurrency),
            f"{run.output_tokens_per_s:.1f}",
            f"{run.prefill_tokens_per_s:.1f}",
            _share(run.prefill_share),
            f"{run.decode_tokens_per_s:.1f}",
            _share(run.decode_share),
            cuts(run.ttft),
            cuts(run.itl),
            " + ".join(ms(run.step[part].p50) for part in STEP_PARTS if part in run.step),
        )
    console.print(table)


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"
