"""`POST /v1/embeddings`."""

from __future__ import annotations

import asyncio
import base64
import struct

from axion.backends.pooling import PoolingBackend
from axion.openai.embeddings import Embedding, EmbeddingList, EmbeddingRequest, PoolingUsage
from axion.pooling.messages import Pooled
from axion.server.pooling import PoolingEndpoint

_FLOAT_BYTES = 4
# Written in one go, some milliseconds; then others have their turn.
_MAX_FLOATS = 32 * 1024


class Embeddings(PoolingEndpoint[EmbeddingRequest]):
    request_type = EmbeddingRequest

    async def answer(self, backend: PoolingBackend, request: EmbeddingRequest) -> bytes:
        model, pooled = await backend.embed(
            request.model,
            request.inputs,
            truncate_to=request.truncate_prompt_tokens,
            dimensions=request.dimensions,
        )
        usage = PoolingUsage(prompt_tokens=pooled.num_tokens, total_tokens=pooled.num_tokens)
        empty = EmbeddingList(object="list", model=model, usage=usage, data=[]).to_json()
        data = await _data(pooled, as_text=request.encoding_format == "base64")
        return empty.removesuffix(b"]}") + data + b"]}"


async def _data(pooled: Pooled, *, as_text: bool) -> bytes:
    """The embeddings' JSON with commas between them; others run meanwhile."""
    size = pooled.dim * _FLOAT_BYTES
    parts: list[bytes] = []
    for index, start in enumerate(range(0, len(pooled.vectors), size)):
        vector = pooled.vectors[start : start + size]
        embedding = Embedding(
            object="embedding",
            index=index,
            embedding=(
                base64.b64encode(vector).decode()
                if as_text
                else list(struct.unpack(f"<{pooled.dim}f", vector))
            ),
        )
        parts.append(embedding.to_json())
        if (index + 1) * pooled.dim // _MAX_FLOATS > index * pooled.dim // _MAX_FLOATS:
            await asyncio.sleep(0)
    return b",".join(parts)
