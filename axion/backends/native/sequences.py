"""A request's sequences in the engine, and what they give as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from axion.backends.native.answer import Answer, Piece
from axion.backends.native.model import Engine, LoadedModel
from axion.errors import CannotContinueError, EngineUnavailableError
from axion.openai.common import GenerationRequest
from axion.openai.delivered import DeliveredChoice


async def take_over(model: LoadedModel, answer: Answer, choice: DeliveredChoice, text: str) -> None:
    """Let an answer go on where another engine's has broken off.

    Args:
        text: what `choice` is as this model writes it.

    Raises:
        CannotContinueError: it cannot.
    """
    if choice.finished:  # only its length counts, in the usage
        token_ids = await asyncio.to_thread(model.tokenizer.encode_continuation, text)
        answer.num_tokens = len(token_ids or ())
        return
    await asyncio.to_thread(answer.take_over, choice, text)
    if answer.params.grammar is not None:
        matcher = await asyncio.wrap_future(model.grammars.submit(answer.params.grammar))
        if not matcher.consume_tokens(answer.generated_before):
            raise CannotContinueError("The answer so far does not match what was asked for.")


async def run_sequences(
    engine: Engine,
    request: GenerationRequest,
    request_id: str,
    answers: list[Answer],
    before: Mapping[int, DeliveredChoice],
) -> AsyncGenerator[tuple[int, Piece], None]:
    """The pieces of all answers as they come, each with its answer's index.

    Closing this aborts what is still running.

    Args:
        before: what another engine gave of the answers, by index; one that it finished is left out.

    Raises:
        AxionError: as `Answer.take`, and as the engine.
    """
    streams = [
        (i, _pieces(engine, request, f"{request_id}-{i}", answer))
        for i, answer in enumerate(answers)
        if i not in before or not before[i].finished
    ]
    if len(streams) == 1:
        [(index, stream)] = streams
        async with aclosing(stream):
            async for piece in stream:
                yield index, piece
        return
    arrived: asyncio.Queue[tuple[int, Piece] | Exception] = asyncio.Queue()

    async def forward(index: int, stream: AsyncGenerator[Piece, None]) -> None:
        try:
            async with aclosing(stream):
                async for piece in stream:
                    arrived.put_nowait((index, piece))
        except Exception as error:
            arrived.put_nowait(error)

    tasks = [asyncio.create_task(forward(i, stream)) for i, stream in streams]
    num_open = len(tasks)
    try:
        while num_open:
            item = await arrived.get()
            if isinstance(item, Exception):
                raise item
            num_open -= item[1].finish_reason is not None
            yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pieces(
    engine: Engine, request: GenerationRequest, request_id: str, answer: Answer
) -> AsyncGenerator[Piece, None]:
    if answer.first is not None:
        yield answer.first
        if answer.first.finish_reason is not None:
            return
    outputs = engine.generate(
        request_id,
        answer.prompt_token_ids + answer.generated_before,
        answer.params,
        cache_salt=request.cache_salt or "",
        priority=request.priority or 0,
        num_generated=len(answer.generated_before),
    )
    async with aclosing(outputs):
        async for output in outputs:
            piece = answer.take(output)
            if piece.finish_reason is not None:
                break  # the sequence is aborted before anybody takes its last piece
            yield piece
        else:
            raise EngineUnavailableError("The engine stopped before the answer was complete.")
    yield piece
