"""The same requests, sent to several engines: how fast they are, and how far they agree."""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from axion.backends.base import InferenceBackend
from axion.backends.engines import engine_names
from axion.cli.loading import Show, model_config
from axion.cli.prompts import Prompt, Request
from axion.errors import AxionError, InvalidRequestError
from axion.openai.chat import ChatCompletionRequest
from axion.openai.delivered import Delivered
from axion.openai.features import features
from axion.router.plan import Plan, plan
from axion.settings import Settings, listed
from axion.text.chat_template import has_chat_template
from axion.text.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from rich.progress import Progress


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


class Contender:
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


def contenders(backends: str, settings: Settings) -> list[Contender]:
    """The engines that `backends` lists, by name or by a server's URL.

    Raises:
        InvalidRequestError: there is no engine of that name.
    """
    contenders: list[Contender] = []
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
        contenders.append(Contender(label, settings.model_copy(update=changed)))
    return contenders


async def compare_engines(
    contenders: Sequence[Contender],
    prompts: Sequence[Prompt],
    read: Callable[..., Request],
    concurrency: int,
    together: bool,
    progress: Progress,
) -> list[Result]:
    """Ask each engine each prompt; the others are compared with the first.

    Args:
        read: makes a request of a prompt.
        together: all engines are started first; else each is alone.
    """
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


async def _make_plan(contender: Contender, progress: Progress) -> None:
    name = contender.result.backend
    task = progress.add_task(f"{name}: looking for it", total=None)
    model = model_config(contender.settings)
    try:
        contender.plan = await plan(model, contender.settings, _shower(progress, task, name))
    except AxionError as error:
        contender.result.error = error.message
    progress.update(task, visible=False)


def _files(contender: Contender) -> Path | None:
    """The model's, where they are on this machine."""
    assert contender.plan is not None
    _, model = contender.plan.backends[0]
    return None if contender.settings.axion_backends == "remote" else Path(model.model_name)


async def _start(contender: Contender, progress: Progress) -> None:
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
    contender: Contender, requests: Sequence[Request], concurrency: int, progress: Progress
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


def _shower(progress: Progress, task: Any, name: str) -> Show:
    def show(stage: str, done: int, total: int) -> None:
        progress.update(task, description=f"{name}: {stage}", completed=done, total=total)

    return show
