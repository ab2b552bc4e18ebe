"""`axion compare`: the same prompts on several engines; how fast they are, how far they agree."""

from __future__ import annotations

import asyncio
import json
import math
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import msgspec
import typer
import uvloop

from axion.backends.base import InferenceBackend
from axion.backends.engines import engine_names
from axion.cli.loading import Show, model_config
from axion.cli.options import LocalModel
from axion.cli.session import terminal_safe
from axion.errors import AxionError, InvalidRequestError
from axion.observability.logging import configure_logging
from axion.openai.chat import ChatCompletionRequest
from axion.openai.completions import CompletionRequest
from axion.openai.delivered import Delivered
from axion.openai.features import features
from axion.openai.parsing import validate_request
from axion.router.plan import Plan, plan
from axion.settings import Settings, listed, load_settings
from axion.text.chat_template import has_chat_template
from axion.text.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from rich.progress import Progress

# A line of text, or the body of a request.
Prompt = str | dict[str, Any]
Request = ChatCompletionRequest | CompletionRequest

PROMPTS = (
    "What is 17 + 25?",
    "Name the capital of France.",
    "Write one sentence about the sea.",
    "List three primary colors.",
    "Explain in two sentences why the sky is blue.",
    "Spell the word 'engine' backwards.",
    "Say hello in three languages.",
    "What comes after Tuesday?",
)


class Answer(msgspec.Struct, kw_only=True):
    """What an engine made of one prompt; times in seconds from the request."""

    text: str = ""
    error: str | None = None
    completion_tokens: int = 0
    first_token_s: float | None = None
    total_s: float | None = None


class Spread(msgspec.Struct, frozen=True):
    """Of the prompts that were answered, in seconds."""

    p50: float
    p95: float


class Agreement(msgspec.Struct, frozen=True):
    """With the answers of the first engine, of the prompts that both answered.

    Attributes:
        same_text: share of the prompts whose answers are equal.
        same_start: of an answer, what comes before the first difference; the mean share.
        unit: what `same_start` counts: tokens or characters.
    """

    same_text: float
    same_start: float
    unit: str


class Result(msgspec.Struct, kw_only=True):
    """One engine's.

    Attributes:
        error: why there is no answer at all.
        tokens_per_s: output tokens of all answers by the time that all of them took.
    """

    backend: str
    error: str | None = None
    start_s: float | None = None
    num_failed: int = 0
    first_token_s: Spread | None = None
    total_s: Spread | None = None
    tokens_per_s: float | None = None
    agreement: Agreement | None = None
    answers: list[Answer] = []

    @property
    def is_complete(self) -> bool:
        return self.error is None and not self.num_failed


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    model: str
    num_prompts: int
    concurrency: int
    results: list[Result]


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
    contenders = _contenders(backends or settings.axion_backends, settings)
    read = partial(_request, temperature=temperature, max_tokens=max_tokens)
    given = _read_prompts(prompts)
    with _progress() as progress:
        results = uvloop.run(_compare(contenders, given, read, concurrency, together, progress))
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


class _Contender:
    """One engine of the comparison.

    Attributes:
        settings: with which it is the only engine.
        plan: how it would serve the model; None until that is known, or where it cannot.
    """

    def __init__(self, name: str, settings: Settings) -> None:
        self.settings = settings
        self.plan: Plan | None = None
        self.result = Result(backend=name)

    @property
    def backend(self) -> InferenceBackend:
        assert self.plan is not None
        return self.plan.backends[0][0]


def _contenders(backends: str, settings: Settings) -> list[_Contender]:
    contenders: list[_Contender] = []
    try:
        names = listed(backends)
    except ValueError as error:
        raise InvalidRequestError(f"--backends {error}.") from None
    for name in names:
        changed = {"axion_backends": name}
        label = name
        if name.startswith(("http://", "https://")):
            url, _, model = name.partition("#")
            changed = {"axion_backends": "remote", "remote_url": url}
            changed |= {"remote_model": model} if model else {}
            label = urlsplit(url).netloc.rpartition("@")[2]
        elif name not in engine_names():
            known = ", ".join(engine_names())
            raise InvalidRequestError(f"There is no engine {name!r}. Known: {known}, or a URL.")
        number = names[: len(contenders) + 1].count(name)
        label = f"{label} #{number}" if number > 1 else label
        contenders.append(_Contender(label, settings.model_copy(update=changed)))
    return contenders


def _read_prompts(place: str | None) -> list[Prompt]:
    if place is None:
        return [*PROMPTS]
    try:
        data = sys.stdin.buffer.read() if place == "-" else Path(place).read_bytes()
        lines = data.decode("utf-8-sig").splitlines()
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise InvalidRequestError(f"The prompts {place} cannot be read: {reason}.") from None
    except UnicodeDecodeError:
        raise InvalidRequestError(f"The prompts {place} are not UTF-8 text.") from None
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise InvalidRequestError(f"There is no prompt in {place}.")
    if not numbered[0][1].lstrip().startswith("{"):
        return [line for _, line in numbered]
    return [_body(line, f"Line {number} of {place}") for number, line in numbered]


def _body(line: str, where: str) -> dict[str, Any]:
    try:
        body = json.loads(line)
    except ValueError as error:
        raise InvalidRequestError(f"{where} is not valid JSON: {error}.") from None
    if not isinstance(body, dict) or ("prompt" in body) == ("messages" in body):
        raise InvalidRequestError(f"{where} must be an object with either messages or prompt.")
    try:
        _request(body)
    except InvalidRequestError as error:
        raise InvalidRequestError(f"{where}: {error.message}") from None
    return body


def _request(
    prompt: Prompt, *, as_chat: bool = True, temperature: float = 0.0, max_tokens: int = 1
) -> Request:
    """Args:
    as_chat: whether a plain text is a message to answer; else it is a text to continue.
    temperature, max_tokens: where the prompt says nothing of its own.
    """
    if isinstance(prompt, str):
        message = {"role": "user", "content": prompt}
        prompt = {"messages": [message]} if as_chat else {"prompt": prompt}
    fields = {"model": "-", "temperature": temperature, **prompt}
    fields |= {"stream": True, "stream_options": {"include_usage": True}}
    if not fields.keys() & {"max_tokens", "max_completion_tokens"}:
        fields["max_tokens"] = max_tokens
    if "prompt" in fields:
        return validate_request(CompletionRequest, fields)
    return validate_request(ChatCompletionRequest, fields)


async def _compare(
    contenders: Sequence[_Contender],
    prompts: Sequence[Prompt],
    read: Callable[..., Request],
    concurrency: int,
    together: bool,
    progress: Progress,
) -> list[Result]:
    for contender in contenders:
        await _make_plan(contender, progress)
    runnable = [contender for contender in contenders if contender.plan is not None]
    path = next((path for contender in runnable if (path := _files(contender))), None)
    as_chat = path is None or has_chat_template(path)
    requests = [read(prompt, as_chat=as_chat) for prompt in prompts]
    for group in [runnable] if together else [[contender] for contender in runnable]:
        try:
            await asyncio.gather(*(_start(contender, progress) for contender in group))
            for contender in group:
                if contender.result.error is None:
                    await _run(contender, requests, concurrency, progress)
        finally:
            await asyncio.gather(*(contender.backend.stop(0) for contender in group))
    results = [contender.result for contender in contenders]
    split, unit = _splitter(path)
    for result in results[1:]:
        result.agreement = _agreement(results[0].answers, result.answers, split, unit)
    return results


async def _make_plan(contender: _Contender, progress: Progress) -> None:
    name = contender.result.backend
    task = progress.add_task(f"{name}: looking for it", total=None)
    model = model_config(contender.settings)
    try:
        contender.plan = await plan(model, contender.settings, _shower(progress, task, name))
    except AxionError as error:
        contender.result.error = error.message
    progress.update(task, visible=False)


def _files(contender: _Contender) -> Path | None:
    """The model's, where they are on this machine."""
    assert contender.plan is not None
    _, model = contender.plan.backends[0]
    return None if contender.settings.axion_backends == "remote" else Path(model.model_name)


async def _start(contender: _Contender, progress: Progress) -> None:
    assert contender.plan is not None
    [(backend, model)] = contender.plan.backends
    task = progress.add_task(f"{contender.result.backend}: starting", total=None)
    started = time.perf_counter()
    try:
        await backend.start(model)
        contender.result.start_s = time.perf_counter() - started
    except AxionError as error:
        contender.result.error = error.message
    progress.update(task, visible=False)


async def _run(
    contender: _Contender, requests: Sequence[Request], concurrency: int, progress: Progress
) -> None:
    result = contender.result
    task = progress.add_task(f"{result.backend}: prompts", total=len(requests))
    places = asyncio.Semaphore(concurrency)

    async def ask(request: Request) -> Answer:
        async with places:
            answer = await _ask(contender.backend, request)
        progress.advance(task)
        return answer

    started = time.perf_counter()
    result.answers = await asyncio.gather(*map(ask, requests))
    wall_s = time.perf_counter() - started
    progress.update(task, visible=False)
    whole = [answer for answer in result.answers if answer.error is None]
    result.num_failed = len(requests) - len(whole)
    if whole:
        result.tokens_per_s = sum(answer.completion_tokens for answer in whole) / wall_s
        result.first_token_s = _spread([answer.first_token_s for answer in whole])
        result.total_s = _spread([answer.total_s for answer in whole])


async def _ask(backend: InferenceBackend, request: Request) -> Answer:
    missing = backend.capabilities.missing(features(request))
    if missing:
        return Answer(error=f"{missing[0]} is not supported by {backend.engine}.")
    delivered = Delivered()
    answer = Answer()
    started = time.perf_counter()
    try:
        run: Any = backend.chat if isinstance(request, ChatCompletionRequest) else backend.complete
        async with aclosing(run(request, uuid.uuid4().hex)) as chunks:
            async for chunk in chunks:
                delivered.take(chunk)
                if answer.first_token_s is None and _has_tokens(delivered):
                    answer.first_token_s = time.perf_counter() - started
    except AxionError as error:
        answer.error = error.message
    answer.total_s = time.perf_counter() - started
    answer.text = _text(delivered)
    if delivered.usage is not None:
        answer.completion_tokens = delivered.usage.completion_tokens
    return answer


def _has_tokens(delivered: Delivered) -> bool:
    return any(choice.num_chunks for choice in delivered.choices.values())


def _text(delivered: Delivered) -> str:
    """All that an answer says, in one string."""
    parts: list[str] = []
    for _, choice in sorted(delivered.choices.items()):
        calls = (f"{call.name}({call.arguments})" for call in choice.calls)
        parts += [choice.reasoning, choice.content, *calls]
    return "".join(parts)


def _spread(seconds: Sequence[float | None]) -> Spread | None:
    known = sorted(value for value in seconds if value is not None)
    if not known:
        return None
    p50, p95 = (known[math.ceil(share * len(known)) - 1] for share in (0.5, 0.95))
    return Spread(p50, p95)


Split = Callable[[str], Sequence[Any]]


def _splitter(path: Path | None) -> tuple[Split, str]:
    """What cuts an answer into the units that are compared, and their name."""
    if path is not None:
        tokenizer = load_tokenizer(path)
        return partial(tokenizer.encode, add_special_tokens=False), "tokens"
    return tuple, "characters"


def _agreement(
    expected: Sequence[Answer], given: Sequence[Answer], split: Split, unit: str
) -> Agreement | None:
    pairs = [
        (one.text, other.text)
        for one, other in zip(expected, given, strict=False)
        if one.error is None and other.error is None
    ]
    if not pairs:
        return None
    starts = [_same_start(split(one), split(other)) for one, other in pairs]
    num_same = sum(one == other for one, other in pairs)
    return Agreement(num_same / len(pairs), sum(starts) / len(starts), unit)


def _same_start(one: Sequence[Any], other: Sequence[Any]) -> float:
    longer = max(len(one), len(other))
    if not longer:
        return 1.0
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other))) / longer


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


def _shower(progress: Progress, task: Any, name: str) -> Show:
    def show(stage: str, done: int, total: int) -> None:
        progress.update(task, description=f"{name}: {stage}", completed=done, total=total)

    return show


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
    for result in comparison.results:
        for problem in _problems(result):
            console.print(Text(terminal_safe(f"{result.backend}: {problem}"), style="red"))


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
