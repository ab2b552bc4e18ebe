"""What the API process and a pooling process say to each other: msgpack over a private socket."""

from __future__ import annotations

import enum

import msgspec

from axion.engine.messages import AbortRequest, Shutdown

# Upper bounds of the histogram of batch sizes, in texts; what is above has a bucket of its own.
BATCH_SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)

# Truncate to as many tokens as the model takes; vLLM's value.
MODEL_LIMIT = -1


class PoolingKind(enum.StrEnum):
    """What a model makes of its input."""

    EMBEDDING = "embedding"
    RERANK = "rerank"


class PoolingConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a pooling process needs to know to serve one model.

    Attributes:
        name: what clients call the model.
        model: id in fastembed's list, or the path of a folder with an ONNX model.
        is_folder: `model` is a path.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        max_batch_size: texts (or pairs of texts) in one batch.
        max_batch_tokens: tokens in one batch, padding included; a longer text goes alone.
        max_wait_s: longest that a request is passed over for texts that batch better, in seconds.
        num_threads: CPU threads; None leaves onnxruntime's choice.
    """

    kind: PoolingKind
    name: str
    model: str
    is_folder: bool = False
    device: str = "auto"
    max_batch_size: int = 8
    max_batch_tokens: int = 2048
    max_wait_s: float = 0.05
    num_threads: int | None = None


class PoolingInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a pooling model is, told once it is ready.

    Attributes:
        dim: numbers in one embedding; 1 for a reranker's score.
        max_length: most tokens of a text, or of a pair together, with the special tokens.
    """

    dim: int
    max_length: int


class PoolingStats(msgspec.Struct, frozen=True, kw_only=True):
    """Gauges and running totals of one pooling process; a pair of texts counts as one text.

    Attributes:
        num_waiting: texts that wait for a batch.
        num_dropped: texts that were not computed, because their caller had left.
        num_padding_tokens: computed beside `num_tokens`, to make the texts of a batch equally long.
        batch_sizes: number of batches for each of `BATCH_SIZE_BUCKETS`, and above the last.
    """

    num_waiting: int = 0
    num_texts: int = 0
    num_dropped: int = 0
    num_tokens: int = 0
    num_padding_tokens: int = 0
    num_batches: int = 0
    batch_sizes: tuple[int, ...] = (0,) * (len(BATCH_SIZE_BUCKETS) + 1)


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
    """

    request_id: str
    queries: list[str]
    documents: list[str]
    truncate_to: int | None = None
    max_document_tokens: int | None = None


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


ToPooling = Load | EmbedRequest | RerankRequest | AbortRequest | Shutdown
FromPooling = PoolingReady | LoadFailed | StepOutputs

encode = msgspec.msgpack.Encoder().encode
decode_to_pooling = msgspec.msgpack.Decoder(ToPooling).decode
decode_from_pooling = msgspec.msgpack.Decoder(FromPooling).decode
