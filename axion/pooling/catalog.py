"""Ids of the models that fastembed has, by kind: `python -m axion.pooling.catalog` writes JSON."""

from __future__ import annotations

import sys

import msgspec
from fastembed import TextEmbedding
from fastembed.rerank.cross_encoder import TextCrossEncoder

from axion.types import PoolingKind


def main() -> None:
    ids = {
        PoolingKind.EMBEDDING: [model.model for model in TextEmbedding._list_supported_models()],
        PoolingKind.RERANK: [model.model for model in TextCrossEncoder._list_supported_models()],
    }
    sys.stdout.buffer.write(msgspec.json.encode(ids))


if __name__ == "__main__":
    main()
