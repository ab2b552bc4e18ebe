"""`axion parity`: the native engine beside transformers, module by module."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import msgspec
import typer

from axion.cli.errors import show_error
from axion.errors import AxionError, ModelLoadError
from axion.parity.messages import (
    Answer,
    CompareRequest,
    Difference,
    Dtype,
    Failed,
    Module,
    Report,
    Request,
)

if TYPE_CHECKING:
    from rich.text import Text

EXIT_DIFFERENT = 1
EXIT_NOT_COMPARED = 2


def parity(
    model: Annotated[
        str,
        typer.Argument(
            help="Hugging Face id, folder or axion/demo; with --tiny also an architecture or a "
            "model type of transformers, such as Qwen3ForCausalLM or qwen3."
        ),
    ],
    tiny: Annotated[
        bool,
        typer.Option(
            "--tiny",
            help="A small model with random parameters, from the configuration alone; no weights.",
        ),
    ] = False,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help="May be given several times.")
    ] = None,
    dtype: Annotated[
        str, typer.Option(metavar="TEXT", help="float32, bfloat16 or float16.")
    ] = "float32",
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="On differences, relative to a module's largest number or to 1; 1e-4 in float32.",
        ),
    ] = None,
    max_prompt_tokens: Annotated[
        int,
        typer.Option(min=1, help="A prompt longer than every window is made up to this length."),
    ] = 1024,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Compare the native engine with transformers, and name the first module that differs.

    Both compute the same prompts on the CPU; inputs and outputs of all modules are compared, and
    then 32 greedy tokens: alone, in a mixed batch, in chunks, over cached blocks and after a
    preemption. The exit status is 0 if they are equal, 1 if they differ, 2 if they cannot be
    compared.
    """
    try:
        if dtype not in get_args(Dtype):
            raise ModelLoadError(f"--dtype must be {' or '.join(get_args(Dtype))}, got {dtype!r}.")
        path = _folder(model, tiny)
        request = CompareRequest(
            model=model,
            path=None if path is None else str(path),
            tiny=tiny,
            dtype=dtype,  # type: ignore[arg-type]
            prompts=tuple(prompt or ()),
            max_prompt_tokens=max_prompt_tokens,
            tolerance=tolerance,
        )
        report = ask(request, f"Comparing {model} with transformers")
    except AxionError as error:
        show_error(error.message)
        raise typer.Exit(EXIT_NOT_COMPARED) from None
    assert isinstance(report, Report)
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(_Printed(report, report.equal))).decode())
    else:
        _show(report)
    if not report.equal:
        raise typer.Exit(EXIT_DIFFERENT)


class _Printed(msgspec.Struct):
    report: Report
    equal: bool


def _folder(model: str, tiny: bool) -> Path | None:
    """With the model's files, or of a tiny one its config.json; None: it is known by name."""
    from axion.cli.loading import progress
    from axion.hub.peek import peek
    from axion.hub.resolve import resolve
    from axion.settings import is_folder

    if not tiny:
        with progress() as show:
            return asyncio.run(resolve(model, on_progress=partial(show, "Downloading"))).path
    if is_folder(model):
        return Path(model).expanduser()
    return asyncio.run(peek(model)).path if "/" in model else None


def ask(request: Request, what: str) -> Answer:
    """The answer of a process of its own, since it imports torch.

    Raises:
        AxionError: the request cannot be answered; says why.
    """
    command = [sys.executable, "-m", "axion.parity.process"]
    with _status(what):
        done = subprocess.run(command, input=msgspec.json.encode(request), capture_output=True)
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip().splitlines()
        raise ModelLoadError(
            f"The comparison ended with status {done.returncode}: {words[-1] if words else ''}"
        )
    answer: Answer = msgspec.json.decode(done.stdout, type=Answer)
    if isinstance(answer, Failed):
        raise ModelLoadError(answer.message)
    return answer


@contextmanager
def _status(what: str) -> Iterator[None]:
    """On a terminal, what is being done; nothing elsewhere."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(what):
        yield


def _show(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    title = f"{report.model}: {report.architecture}, beside transformers' {report.reference}"
    console.print(Text(title, style="bold"))
    if report.modules:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("module", overflow="fold")
        for name in ("max abs", "max rel"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("")
        for module in _shown(report):
            found = module.difference
            table.add_row(
                Text(module.name or "logits"),
                *(
                    ("-", "-")
                    if found is None
                    else (f"{found.max_abs:.1e}", f"{found.max_rel:.1e}")
                ),
                _verdict(report, module),
            )
        console.print(table)
    for generation in report.generations:
        mark = Text("✓ ", "green") if generation.equal else Text("✗ ", "red")
        reason = f": {generation.reason}" if generation.reason else ""
        console.print(mark + Text(f"greedy tokens {generation.way}{reason}"))
    for note in report.notes:
        console.print(Text(note))
    console.print(Text(_conclusion(report), style="green" if report.equal else "red"))


def _verdict(report: Report, module: Module) -> Text:
    from rich.text import Text

    if module.difference is None:
        return Text("in another form", "dim")
    if module.equal:
        return Text("✓", "green")
    # What is around it gets the right numbers all the same.
    return Text("made good later", "dim") if report.fault is None else Text("✗ differs", "red")


def _shown(report: Report) -> list[Module]:
    """The way from token ids to logits, and what lies beside the fault."""
    fault = report.fault.module if report.fault else None
    near = {fault, (fault or "").rpartition(".")[0]}
    return [
        module
        for module in report.modules
        if module.name.count(".") <= 1
        or module.name.rpartition(".")[2].isdigit()
        or (fault and (module.name in near or module.name.rpartition(".")[0] in near))
    ]


def _conclusion(report: Report) -> str:
    fault = report.fault
    if fault is None:
        if report.equal:
            return f"Equal, in {report.dtype} to {report.tolerance:g}."
        return (
            "The modules are equal, and the tokens are not: look at what differs from step to step."
        )
    words = f"The first that differs is {fault.module}: {fault.reason}."
    return words if fault.difference is None else f"{words}\n{_place(report, fault.difference)}"


def _place(report: Report, found: Difference) -> str:
    length = report.prompt_lengths[found.prompt]
    index = "".join(f"[{i}]" for i in found.index)
    return (
        f"Prompt of {length} tokens, position {found.position}, {index or 'value'}: "
        f"Axion {found.axion:.6g}, transformers {found.transformers:.6g} "
        f"(max abs {found.max_abs:.2g}, max rel {found.max_rel:.2g})."
    )
