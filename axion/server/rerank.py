"""`POST /v1/rerank` (also `/rerank` and `/v2/rerank`) and `POST /v1/score` (also `/score`)."""

from __future__ import annotations

import math
import struct
import time
import uuid

from axion import __version__
from axion.backends.pooling import PoolingBackend
from axion.openai.embeddings import PoolingUsage
from axion.openai.rerank import (
    ApiVersion,
    DocumentText,
    RerankAnswer,
    RerankMeta,
    RerankRequest,
    RerankResult,
    RerankTokens,
    Score,
    ScoreList,
    ScoreRequest,
)
from axion.pooling.messages import MODEL_LIMIT, Pooled
from axion.server.pooling import PoolingEndpoint


class Rerank(PoolingEndpoint[RerankRequest]):
    request_type = RerankRequest

    async def answer(self, backend: PoolingBackend, request: RerankRequest) -> bytes:
        texts = request.texts
        truncate_to = request.truncate_prompt_tokens
        model, pooled = await backend.rerank(
            request.model,
            [request.query],
            texts,
            # Jina and Cohere cut long documents without being asked.
            truncate_to=MODEL_LIMIT if truncate_to is None else truncate_to,
            max_document_tokens=request.max_tokens_per_doc,
        )
        logits = _logits(pooled)
        best = sorted(range(len(texts)), key=lambda index: -logits[index])[: request.top_n]
        results = []
        for index in best:
            result = RerankResult(
                index=index, relevance_score=_score(logits[index], request.use_activation)
            )
            if request.return_documents:
                result.document = DocumentText(text=texts[index])
            results.append(result)
        return RerankAnswer(
            id=f"rerank-{uuid.uuid4().hex}",
            model=model,
            results=results,
            usage=_usage(pooled),
            meta=RerankMeta(
                api_version=ApiVersion(version=__version__),
                tokens=RerankTokens(input_tokens=pooled.num_tokens),
            ),
        ).to_json()


class Scores(PoolingEndpoint[ScoreRequest]):
    request_type = ScoreRequest

    async def answer(self, backend: PoolingBackend, request: ScoreRequest) -> bytes:
        model, pooled = await backend.rerank(
            request.model,
            request.queries,
            request.documents,
            truncate_to=request.truncate_prompt_tokens,
            param="text_2",
        )
        return ScoreList(
            id=f"score-{uuid.uuid4().hex}",
            object="list",
            created=int(time.time()),
            model=model,
            data=[
                Score(object="score", index=index, score=_score(logit, request.use_activation))
                for index, logit in enumerate(_logits(pooled))
            ],
            usage=_usage(pooled),
        ).to_json()


def _logits(pooled: Pooled) -> tuple[float, ...]:
    return struct.unpack(f"<{len(pooled.vectors) // 4}f", pooled.vectors)


def _score(logit: float, use_activation: bool | None) -> float:
    """The logistic function, which is what rerankers with one output are trained with."""
    if use_activation is False:
        return logit
    # The side that does not overflow.
    return 1 / (1 + math.exp(-logit)) if logit >= 0 else 1 - 1 / (1 + math.exp(logit))


def _usage(pooled: Pooled) -> PoolingUsage:
    return PoolingUsage(prompt_tokens=pooled.num_tokens, total_tokens=pooled.num_tokens)
