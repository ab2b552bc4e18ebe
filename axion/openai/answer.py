"""What the answers of chat and of text completions share, and how a whole one is collected."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Generic, TypeVar

from pydantic import Field, SkipValidation
from pydantic.json_schema import SkipJsonSchema

from axion.errors import InternalError
from axion.openai.common import Usage, UsageSoFar, stop_reason_field
from axion.openai.fields import ResponseModel


class PromptLogprob(ResponseModel):
    """A token that may stand at a place of the prompt, in vLLM's shape.

    Attributes:
        rank: how many tokens are as likely as it or likelier, or its place among the alternatives.
    """

    logprob: float
    rank: int | None
    decoded_token: str | None


# For each token of the prompt what may stand there, by token id as text, the prompt's own token
# first; null for the first one.
PromptLogprobs = list[dict[str, PromptLogprob] | None]


class Part(ResponseModel):
    """What a chunk has of a choice.

    Attributes:
        stop_reason: the stop string, or the one of `stop_token_ids`, that ended the answer;
            vLLM's extension, there only where one did.
        token_ids: what was generated since the part before it, with `return_token_ids`.
    """

    index: int
    finish_reason: str | None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None


PartT = TypeVar("PartT", bound=Part)
ChoiceT = TypeVar("ChoiceT", bound=ResponseModel)


class Chunk(ResponseModel, Generic[PartT]):
    """Attributes:
    usage_so_far: where the engine tells it; not sent to clients.
    """

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str | None
    choices: list[PartT]
    usage: Usage | None = None
    usage_so_far: SkipJsonSchema[SkipValidation[UsageSoFar | None]] = Field(None, exclude=True)


class Answer(ResponseModel, Generic[ChoiceT]):
    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str | None
    choices: list[ChoiceT]
    usage: Usage


# Fields of a chunk that are not the whole answer's.
_OF_CHUNK = {"object", "choices", "usage_so_far"}


async def collect(chunks: AsyncIterator[Chunk[PartT]]) -> tuple[dict[str, Any], list[list[PartT]]]:
    """The chunks of a request that does not stream.

    Returns:
        The fields of the whole answer besides `object` and `choices`, and of each choice its parts.

    Raises:
        InternalError: the chunks ended before the answer did.
    """
    fields: dict[str, Any] = {}
    parts: dict[int, list[PartT]] = {}
    async for chunk in chunks:
        for part in chunk.choices:
            parts.setdefault(part.index, []).append(part)
        fields |= {name: getattr(chunk, name) for name in chunk.model_fields_set - _OF_CHUNK}
    if fields.get("usage") is None or not all(own[-1].finish_reason for own in parts.values()):
        raise InternalError("The answer ended early.")
    return fields, [parts[index] for index in sorted(parts)]


def joined(parts: Sequence[Part]) -> dict[str, Any]:
    """The fields of a whole choice that are the same for chat and for text."""
    last = parts[-1]
    fields: dict[str, Any] = {"index": last.index, "finish_reason": last.finish_reason}
    if last.token_ids is not None:
        fields["token_ids"] = [id for part in parts for id in part.token_ids or ()]
    return fields | stop_reason_field(last.stop_reason)
