"""Pairs of a query and a document to scores, by fastembed's cross-encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from fastembed.common.model_description import ModelSource
from fastembed.rerank.cross_encoder import TextCrossEncoder
from numpy.typing import NDArray

from axion.errors import ModelNotFoundError
from axion.pooling.files import LOCAL, load_options, onnx_file, snapshot
from axion.pooling.messages import RerankRequest
from axion.pooling.model import BatchTokenizer, Tokens
from axion.types import PoolingConfig


class Reranker:
    """A cross-encoder. Its one number for each pair is the raw score (a logit).

    Raises:
        ModelNotFoundError: fastembed has no such model.
        ModelLoadError: its files cannot be had or used; says why.
    """

    dim = 1
    pads = True

    def __init__(self, config: PoolingConfig) -> None:
        if config.is_folder:
            folder, name = Path(config.model).expanduser(), LOCAL
            TextCrossEncoder.add_custom_model(
                LOCAL, sources=ModelSource(url=LOCAL), model_file=onnx_file(folder)
            )
        else:
            known = {model.model: model for model in TextCrossEncoder._list_supported_models()}
            if config.model not in known:
                raise ModelNotFoundError(f"fastembed has no rerank model {config.model}.")
            folder, name = snapshot(known[config.model]), config.model
        self._model: Any = TextCrossEncoder(
            name, specific_model_path=str(folder), **load_options(config)
        )
        self._tokenizer = BatchTokenizer.replace_in(self._model.model)
        self.max_length = self._tokenizer.max_length
        self.compute(self._tokenizer.encode([("a", "a")], None, "documents"))

    def tokenize(self, request: RerankRequest) -> list[Tokens]:
        documents, queries = request.documents, request.queries
        if request.truncate_to is not None:  # a long query is not encoded with each document
            queries = [self._tokenizer.cut(query, self.max_length) for query in queries]
        if (limit := request.max_document_tokens) is not None:
            documents = [self._tokenizer.cut(document, limit) for document in documents]
        if len(queries) == 1:
            queries = queries * len(documents)
        pairs = list(zip(queries, documents, strict=True))
        return self._tokenizer.encode(pairs, request.truncate_to, request.param)

    def compute(self, batch: list[Tokens]) -> NDArray[np.float32]:
        scores = self._model.rerank_pairs(batch, batch_size=len(batch))
        return np.fromiter(scores, np.float32, len(batch)).reshape(-1, 1)
