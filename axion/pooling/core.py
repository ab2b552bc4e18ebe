"""Requests in, batches computed, results out: what a pooling process does, without the process."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from axion.errors import InvalidRequestError
from axion.pooling.batcher import Batcher
from axion.pooling.messages import EmbedRequest, Failed, Output, Pooled, Refused, RerankRequest
from axion.pooling.model import PoolingModel, Tokens, scaled_to_length_1
from axion.types import BATCH_SIZE_BUCKETS, PoolingStats

logger = logging.getLogger("axion.pooling")


@dataclass
class _Job:
    """A request that is being computed.

    Attributes:
        vectors: `[num_texts, dim]`, filled text by text.
        num_left: texts that are not in it yet.
        dimensions: leading numbers to keep.
    """

    tokens: list[Tokens]
    vectors: NDArray[np.float32]
    num_left: int
    dimensions: int | None


class PoolingCore:
    """Computes requests, one batch a step, the texts of all requests together.

    Args:
        clock: the time in seconds; never goes back.
    """

    def __init__(self, model: PoolingModel, batcher: Batcher, clock: Callable[[], float]) -> None:
        self._model = model
        self._batcher = batcher
        self._clock = clock
        self._jobs: dict[str, _Job] = {}
        self._totals = PoolingStats()
        self._batch_sizes = [0] * (len(BATCH_SIZE_BUCKETS) + 1)

    @property
    def has_waiting(self) -> bool:
        return self._batcher.num_waiting > 0

    @property
    def stats(self) -> PoolingStats:
        return msgspec.structs.replace(
            self._totals,
            num_waiting=self._batcher.num_waiting,
            batch_sizes=tuple(self._batch_sizes),
        )

    def add(self, request: EmbedRequest | RerankRequest) -> Refused | Failed | None:
        """Take a request in; what is returned, if anything, is its answer already."""
        request_id = request.request_id
        try:
            tokens = self._model.tokenize(request)
            dimensions = self._dimensions(request)
        except InvalidRequestError as error:
            return Refused(request_id, error.message, error.param, error.code)
        except Exception:
            logger.exception("a request could not be tokenised")
            return Failed(request_id)
        vectors = np.empty((len(tokens), self._model.dim), np.float32)
        self._jobs[request_id] = _Job(tokens, vectors, len(tokens), dimensions)
        self._batcher.add(request_id, [len(text) for text in tokens], self._clock())
        return None

    def abort(self, request_ids: Iterable[str]) -> None:
        """Forget requests; what is not computed of them never is."""
        for request_id in request_ids:
            self._forget(request_id)

    def step(self) -> list[Output]:
        """Compute the next batch; the answers of the requests that it completes."""
        batch = self._batcher.next_batch(self._clock())
        if not batch:
            return []
        tokens = [self._jobs[request_id].tokens[index] for request_id, index in batch]
        self._count(tokens)
        try:
            vectors = self._model.compute(tokens)
        except Exception:
            logger.exception("a batch of %d texts could not be computed", len(batch))
            vectors = np.full((len(batch), self._model.dim), np.nan, np.float32)
        outputs: list[Output] = []
        for (request_id, index), vector in zip(batch, vectors, strict=True):
            job = self._jobs.get(request_id)
            if job is None:  # another of its texts has failed
                continue
            if not np.isfinite(vector).all():
                logger.error("a text's vector is not all numbers; its request fails")
                self._forget(request_id)
                outputs.append(Failed(request_id))
                continue
            job.vectors[index] = vector
            job.num_left -= 1
            if not job.num_left:
                outputs.append(_result(request_id, self._jobs.pop(request_id)))
        return outputs

    def _dimensions(self, request: EmbedRequest | RerankRequest) -> int | None:
        dimensions = request.dimensions if isinstance(request, EmbedRequest) else None
        if dimensions is not None and dimensions > self._model.dim:
            raise InvalidRequestError(
                f"dimensions must be at most {self._model.dim}, which this model's embeddings "
                f"have, got {dimensions}.",
                param="dimensions",
            )
        return dimensions

    def _forget(self, request_id: str) -> None:
        self._jobs.pop(request_id, None)
        self._totals = msgspec.structs.replace(
            self._totals,
            num_dropped=self._totals.num_dropped + self._batcher.drop(request_id),
        )

    def _count(self, batch: list[Tokens]) -> None:
        lengths = [len(tokens) for tokens in batch]
        num_padding_tokens = max(lengths) * len(batch) - sum(lengths) if self._model.pads else 0
        totals = self._totals
        self._totals = msgspec.structs.replace(
            totals,
            num_texts=totals.num_texts + len(batch),
            num_tokens=totals.num_tokens + sum(lengths),
            num_padding_tokens=totals.num_padding_tokens + num_padding_tokens,
            num_batches=totals.num_batches + 1,
        )
        self._batch_sizes[bisect_left(BATCH_SIZE_BUCKETS, len(batch))] += 1


def _result(request_id: str, job: _Job) -> Pooled:
    vectors = job.vectors
    if job.dimensions is not None:
        vectors = scaled_to_length_1(vectors[:, : job.dimensions])
    return Pooled(
        request_id,
        np.ascontiguousarray(vectors, "<f4").tobytes(),
        vectors.shape[1],
        sum(len(tokens) for tokens in job.tokens),
    )
