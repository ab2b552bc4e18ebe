"""Texts to vectors, by fastembed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType
from fastembed.text.static_embedding import StaticTextEmbedding
from numpy.typing import NDArray

from axion.errors import ModelNotFoundError
from axion.pooling.files import LOCAL, load_options, onnx_file, snapshot
from axion.pooling.messages import EmbedRequest
from axion.pooling.model import BatchTokenizer, Tokens, scaled_to_length_1
from axion.pooling.sentence import pooling_mode
from axion.types import PoolingConfig

_POOLING = {
    None: PoolingType.MEAN,
    "cls": PoolingType.CLS,
    "mean": PoolingType.MEAN,
    "lasttoken": PoolingType.LAST_TOKEN,
}


def is_listed(model: str) -> bool:
    """Whether fastembed has an embedding model of this id."""
    return any(known.model == model for known in TextEmbedding._list_supported_models())


class Embedder:
    """An embedding model. Its vectors have length 1, as OpenAI's have.

    Raises:
        ModelNotFoundError: fastembed has no such model.
        ModelLoadError: its files cannot be had or used; says why.
    """

    pads = True

    def __init__(self, config: PoolingConfig) -> None:
        if config.is_folder:
            folder = Path(config.model).expanduser()
            _register(folder)
            name = LOCAL
        else:
            known = {model.model: model for model in TextEmbedding._list_supported_models()}
            if config.model not in known:
                raise ModelNotFoundError(f"fastembed has no embedding model {config.model}.")
            folder, name = snapshot(known[config.model]), config.model
        self._model: Any = TextEmbedding(
            name, specific_model_path=str(folder), **load_options(config)
        )
        is_static = isinstance(self._model.model, StaticTextEmbedding)
        self._tokenizer = BatchTokenizer.replace_in(
            self._model.model, add_special_tokens=not is_static
        )
        self.max_length = self._tokenizer.max_length
        self.dim = self.compute(self._tokenizer.encode(["a"], None, "input")).shape[1]

    def tokenize(self, request: EmbedRequest) -> list[Tokens]:
        return self._tokenizer.encode_inputs(request)

    def compute(self, batch: list[Tokens]) -> NDArray[np.float32]:
        vectors = np.stack(list(self._model.embed(batch, batch_size=len(batch))))
        # Some of fastembed's models do not do it.
        return scaled_to_length_1(vectors.astype(np.float32, copy=False))


def _register(folder: Path) -> None:
    """Tell fastembed of a local model.

    What its first output is decides: the vectors of tokens are pooled, those of texts are not.
    """
    file = onnx_file(folder)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        str(folder / file), options, providers=["CPUExecutionProvider"]
    )
    pools_itself = len(session.get_outputs()[0].shape) == 2
    TextEmbedding.add_custom_model(
        LOCAL,
        pooling=PoolingType.DISABLED if pools_itself else _POOLING[pooling_mode(folder)],
        normalization=True,
        sources=ModelSource(url=LOCAL),
        dim=0,
        model_file=file,
    )
