"""`POST /v1/embeddings`: the request and the answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from axion.openai.completions import TokenIds, prompt_kind
from axion.openai.fields import (
    FAIL_FAST,
    NonEmptyText,
    RequestModel,
    ResponseModel,
    TokenCount,
    TruncatePromptTokens,
    at_most,
)

MAX_INPUTS = 2048  # OpenAI's limit

EmbeddingInput = Annotated[
    Annotated[NonEmptyText, Tag("text")]
    | Annotated[
        list[NonEmptyText], Field(min_length=1), FAIL_FAST, at_most(MAX_INPUTS), Tag("texts")
    ]
    | Annotated[TokenIds, Tag("token ids")]
    | Annotated[list[TokenIds], FAIL_FAST, at_most(MAX_INPUTS), Tag("lists of token ids")],
    Discriminator(
        prompt_kind,
        custom_error_type="expected",
        custom_error_message="a string, a list of strings, a list of token ids, or a list of those",
    ),
]

TRUNCATE_HELP = "cut what is longer to so many tokens; -1: to what the model takes, in tokens"


class EmbeddingRequest(RequestModel):
    input: EmbeddingInput
    model: NonEmptyText | None = Field(
        None, description="one of EMBEDDING_MODEL, or an id of fastembed's; unset: the first"
    )
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="base64 is of little-endian float32; unset: float"
    )
    dimensions: TokenCount | None = Field(
        None, description="numbers of each embedding to keep, scaled to length 1 again"
    )
    user: str | None = Field(None, description="accepted; has no effect on the answer")

    # An extension, with the name and meaning that vLLM gave it.
    truncate_prompt_tokens: TruncatePromptTokens | None = Field(None, description=TRUNCATE_HELP)

    @property
    def inputs(self) -> Sequence[str | list[int]]:
        """The inputs, each a text or its token ids."""
        if isinstance(self.input, str):
            return [self.input]
        if isinstance(self.input[0], int):
            return [self.input]
        return self.input


class Embedding(ResponseModel):
    """One embedding, of length 1: numbers, or their float32 bytes in base64."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class PoolingUsage(ResponseModel):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(ResponseModel):
    object: Literal["list"]
    model: str
    usage: PoolingUsage
    data: list[Embedding]
