"""What the API process and a pooling process say to each other: msgpack over a private socket."""

from __future__ import annotations

import msgspec

from axion.engine.messages import AbortRequest, Ping, Shutdown
from axion.types import PoolingConfig, PoolingInfo, PoolingStats

# Truncate to as many tokens as the model takes; vLLM's value.
MODEL_LIMIT = -1


class Load(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Load the model; the first message, answered by `PoolingReady` or `LoadFailed`."""

    config: PoolingConfig


class EmbedRequest(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Embed texts.

    Attributes:
        inputs: texts, or token ids of the model's own vocabulary.
        truncate_to: tokens that a longer text is cut to, or `MODEL_LIMIT`; None refuses it.
        dimensions: leading numbers of each embedding to keep; None keeps all.
    """

    request_id: str
    inputs: list[str | list[int]]
    truncate_to: int | None = None
    dimensions: int | None = None


class RerankRequest(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Score pairs of texts.

    Attributes:
        queries: as many as documents, or one for all of them.
        truncate_to: as in `EmbedRequest`, of a pair together.
        max_document_tokens: tokens that a longer document is cut to before it is paired.
        param: the field that the documents come from.
    """

    request_id: str
    queries: list[str]
    documents: list[str]
    truncate_to: int | None = None
    max_document_tokens: int | None = None
    param: str = "documents"


class PoolingReady(msgspec.Struct, tag=True, array_like=True, frozen=True):
    info: PoolingInfo


class LoadFailed(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """The model cannot be had.

    Attributes:
        message: safe to show to a client.
        not_found: there is no such model.
    """

    message: str
    not_found: bool


class Pooled(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """The result of one request.

    Attributes:
        vectors: little-endian float32 `[num_texts, dim]`, in the request's order.
        num_tokens: of all its texts together.
    """

    request_id: str
    vectors: bytes
    dim: int
    num_tokens: int


class Refused(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """The request is at fault: an `InvalidRequestError`."""

    request_id: str
    message: str
    param: str | None
    code: str | None


class Failed(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """The request could not be computed; the log says why."""

    request_id: str


Output = Pooled | Refused | Failed


class StepOutputs(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """All outputs of one step."""

    outputs: list[Output]
    stats: PoolingStats


ToPooling = Load | EmbedRequest | RerankRequest | AbortRequest | Ping | Shutdown
FromPooling = PoolingReady | LoadFailed | StepOutputs

encode = msgspec.msgpack.Encoder().encode
decode_to_pooling = msgspec.msgpack.Decoder(ToPooling).decode
decode_from_pooling = msgspec.msgpack.Decoder(FromPooling).decode
