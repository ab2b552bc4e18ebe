"""`POST /v1/completions`: the request, the answer and its chunks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator
from pydantic.json_schema import SkipJsonSchema

from axion.errors import InvalidRequestError
from axion.openai.answer import Answer, Chunk, Part, PromptLogprobs, collect, joined
from axion.openai.common import MAX_CHOICES
from axion.openai.fields import (
    FAIL_FAST,
    MAX_TOKEN_ID,
    NonEmptyText,
    Refused,
    ResponseModel,
    TokenId,
    at_most,
)
from axion.openai.structured import StructuredRequest
from axion.types import MAX_LOGPROBS

DEFAULT_MAX_TOKENS = 16


def prompt_kind(value: Any) -> str | None:
    """Which of the four forms of a prompt this is, by its first entry."""
    if isinstance(value, str):
        return "text"
    if not isinstance(value, list):
        return None
    first = value[0] if value else 0
    if isinstance(first, str):
        return "texts"
    return "lists of token ids" if isinstance(first, list) else "token ids"


TokenIds = Annotated[list[TokenId], Field(min_length=1), FAIL_FAST]
Prompt = Annotated[
    Annotated[NonEmptyText, Tag("text")]
    | Annotated[list[NonEmptyText], FAIL_FAST, at_most(MAX_CHOICES), Tag("texts")]
    | Annotated[TokenIds, Tag("token ids")]
    | Annotated[list[TokenIds], FAIL_FAST, at_most(MAX_CHOICES), Tag("lists of token ids")],
    Discriminator(
        prompt_kind,
        custom_error_type="expected",
        custom_error_message="a string, a list of strings, a list of token ids, or a list of those",
    ),
]


class CompletionRequest(StructuredRequest):
    prompt: Prompt
    max_tokens: Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)] | None = Field(
        None, description="most tokens to generate; with 0 and echo a prompt is scored, in tokens"
    )
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = Field(
        None, description="likeliest alternatives to report with each token"
    )
    echo: bool | None = Field(None, description="begin the answer with the prompt")
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = Field(
        None, description="only the value of n"
    )
    suffix: Annotated[None, Refused("this model does not fill in between texts")] = None

    # Extensions, with the names and meanings that vLLM gave them.
    add_special_tokens: bool | None = Field(
        None, description="begin the prompt with the model's beginning-of-sequence token"
    )

    @model_validator(mode="after")
    def _fields_agree(self) -> CompletionRequest:
        if self.best_of not in {None, self.num_choices}:
            raise InvalidRequestError(
                f"best_of must be equal to n ({self.num_choices}): "
                f"every answer is returned, got {self.best_of}.",
                param="best_of",
            )
        if len(self.prompts) * self.num_choices > MAX_CHOICES:
            raise InvalidRequestError(
                f"n times the number of prompts must be at most {MAX_CHOICES}, "
                f"got {self.num_choices} times {len(self.prompts)}.",
                param="n",
            )
        return self

    @property
    def prompts(self) -> Sequence[str | list[int]]:
        """The prompts, each a text or its token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def num_prompt_logprobs(self) -> int | None:
        """The most that any of the fields asks for."""
        echoed = self.logprobs if self.echo else None
        return max((n for n in (self.prompt_logprobs, echoed) if n is not None), default=None)


class Logprobs(ResponseModel):
    """OpenAI's legacy shape: lists with one entry a token; null for a prompt's first one.

    Attributes:
        text_offset: where the token's text begins in the choice's text, in characters.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


CompletionFinishReason = Literal["stop", "length"]


class CompletionChunkChoice(Part):
    """Attributes:
    prompt_token_ids: in the first chunk of a choice, with `return_token_ids`.
    prompt_logprobs: in the last one of a choice that is not streamed to the client.
    """

    text: str
    logprobs: Logprobs | None
    finish_reason: CompletionFinishReason | None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: SkipJsonSchema[PromptLogprobs | None] = None


class CompletionChunk(Chunk[CompletionChunkChoice]):
    object: Literal["text_completion"]


class CompletionChoice(ResponseModel):
    index: int
    text: str
    logprobs: Logprobs | None
    finish_reason: CompletionFinishReason
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: PromptLogprobs | None = None


class Completion(Answer[CompletionChoice]):
    object: Literal["text_completion"]


async def collect_completion(
    chunks: AsyncIterator[CompletionChunk], *, with_logprobs: bool = False
) -> Completion:
    """One whole answer from the chunks of a request that does not stream.

    Args:
        with_logprobs: the request asks for them: an answer without tokens has empty lists.

    Raises:
        InternalError: the chunks ended before the answer did.
    """
    fields, choices = await collect(chunks)
    return Completion(
        object="text_completion",
        choices=[_collect_choice(parts, with_logprobs) for parts in choices],
        **fields,
    )


def _collect_choice(parts: list[CompletionChunkChoice], with_logprobs: bool) -> CompletionChoice:
    logprobs = [part.logprobs for part in parts if part.logprobs is not None]
    of_prompt: dict[str, Any] = {}
    if parts[0].prompt_token_ids is not None:
        of_prompt["prompt_token_ids"] = parts[0].prompt_token_ids
    if parts[-1].prompt_logprobs is not None:
        of_prompt["prompt_logprobs"] = parts[-1].prompt_logprobs
    return CompletionChoice(
        text="".join(part.text for part in parts),
        logprobs=Logprobs(
            tokens=[token for part in logprobs for token in part.tokens],
            token_logprobs=[value for part in logprobs for value in part.token_logprobs],
            top_logprobs=[top for part in logprobs for top in part.top_logprobs],
            text_offset=[offset for part in logprobs for offset in part.text_offset],
        )
        if logprobs or with_logprobs
        else None,
        **joined(parts),
        **of_prompt,
    )
