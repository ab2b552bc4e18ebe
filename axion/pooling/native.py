"""Texts to vectors, by the models of the native engine."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.normalizers import Lowercase, Sequence
from torch import Tensor

from axion.engine import state_cache
from axion.engine.device import take_device, take_threads
from axion.engine.kv_cache import KVCacheGroup, allocate
from axion.engine.loader import load_embedding_model
from axion.errors import ModelLoadError
from axion.hub.config import MAX_CONFIG_BYTES, load_json
from axion.hub.download import download
from axion.hub.resolve import parse_id
from axion.layers import cpu_kernels
from axion.layers.context import ForwardContext, StateRun
from axion.layers.transfer import to_device
from axion.pooling.messages import EmbedRequest
from axion.pooling.model import BatchTokenizer, Tokens, scaled_to_length_1
from axion.pooling.sentence import pooling_mode, transformer_config
from axion.types import PoolingConfig

logger = logging.getLogger("axion.pooling")

_BLOCK_SIZE = 16


class NativeEmbedder:
    """An embedding model from safetensors: an encoder, or a decoder without its head.

    A batch is flat: the tokens of its texts lie one after another, and nothing is padded. Its
    vectors have length 1.

    Raises:
        ModelNotFoundError: there is no such model.
        ModelLoadError: its files cannot be had or used; says why.
    """

    pads = False

    def __init__(self, config: PoolingConfig) -> None:
        take_threads(config.num_threads)
        folder = Path(config.model).expanduser() if config.is_folder else _download(config.model)
        mode = pooling_mode(folder)
        self._device = take_device(config.device)
        self._model = load_embedding_model(folder, device=self._device, dtype=config.dtype)
        self._pooling = mode or self._model.default_pooling
        self.dim = self._model.config.hidden_size
        self._tokenizer = _tokenizer(folder, self._model.max_length())
        self.max_length = self._tokenizer.max_length
        if self._tokenizer.vocab_size > (size := self._model.config.vocab_size):
            raise ModelLoadError(
                f"tokenizer.json has {self._tokenizer.vocab_size} tokens, and the model "
                f"embeddings for {size}."
            )
        compute = partial(self.compute, self._tokenizer.encode(["a"], None, "input"))
        cpu_kernels.prepare(self._model.dtype, self._device, compute)
        compute()

    def tokenize(self, request: EmbedRequest) -> list[Tokens]:
        return self._tokenizer.encode_inputs(request)

    @torch.inference_mode()
    def compute(self, batch: list[Tokens]) -> NDArray[np.float32]:
        # Texts of one length beside each other are one attention call.
        order = sorted(range(len(batch)), key=lambda i: len(batch[i]))
        texts = [batch[i].ids for i in order]
        lengths = np.array([len(text) for text in texts])
        input_ids = self._to_device(np.concatenate(texts))
        hidden_states = self._model(input_ids, self._context(lengths))
        vectors = np.empty((len(batch), self.dim), np.float32)
        vectors[order] = self._pool(hidden_states, lengths).float().cpu().numpy()
        return scaled_to_length_1(vectors)

    def _pool(self, hidden_states: Tensor, lengths: NDArray[np.int64]) -> Tensor:
        """`[num_tokens, hidden_size]` to `[num_texts, hidden_size]`."""
        ends = np.cumsum(lengths)
        if self._pooling == "cls":
            return hidden_states[self._to_device(ends - lengths)]
        if self._pooling == "lasttoken":
            return hidden_states[self._to_device(ends - 1)]
        return torch.segment_reduce(
            hidden_states.float(), "mean", lengths=self._to_device(lengths), axis=0
        )

    def _context(self, lengths: NDArray[np.int64]) -> ForwardContext:
        """Every text whole, in blocks of its own.

        What a layer keeps is read by that layer alone and in this step, so that layers of one
        shape share a cache.
        """
        num_texts = len(lengths)
        rows = np.repeat(np.arange(num_texts), lengths)
        positions = np.arange(len(rows)) - (np.cumsum(lengths) - lengths)[rows]
        num_blocks = -(-lengths // _BLOCK_SIZE)
        first_blocks = np.cumsum(num_blocks) - num_blocks
        columns = np.arange(num_blocks.max())
        block_tables = np.where(columns < num_blocks[:, None], first_blocks[:, None] + columns, 0)
        specs = [
            spec.in_pieces(_BLOCK_SIZE)._replace(window=None)
            for spec in self._model.kv_cache_specs()
        ]
        shapes = list(dict.fromkeys(specs))
        caches = allocate(
            shapes,
            [KVCacheGroup(None, list(range(len(shapes))))],
            int(num_blocks.sum()),
            _BLOCK_SIZE,
            dtype=self._model.dtype,
            device=self._device,
        )
        by_shape = dict(zip(shapes, caches, strict=True))
        return ForwardContext(
            positions=self._to_device(positions),
            rope_lengths=self._to_device(lengths[rows]),
            slot_mapping=self._to_device(first_blocks[rows] * _BLOCK_SIZE + positions)[None],
            block_tables=self._to_device(block_tables)[None],
            context_lens=self._to_device(lengths),
            query_lens=lengths.tolist(),
            context_lens_list=lengths.tolist(),
            kv_caches=[by_shape[spec] for spec in specs],
            block_size=_BLOCK_SIZE,
            # From zeros, and to where nobody reads it.
            states=state_cache.allocate(
                self._model.state_specs(), 2, dtype=self._model.dtype, device=self._device
            ),
            state_runs=[
                StateRun(end - length, length, source=0, target=1, kept=None, order=0)
                for length, end in zip(lengths.tolist(), np.cumsum(lengths).tolist(), strict=True)
            ],
        )

    def _to_device(self, array: NDArray[np.integer]) -> Tensor:
        return to_device(array, self._device)


def _download(model: str) -> Path:
    repo_id, revision, tag = parse_id(model)
    logger.info("looking for %s", model)
    warn = partial(logger.warning, "%s is served from the local cache: %s", repo_id)
    formats = ("safetensors",)
    return download(repo_id, revision, lambda *_: None, warn, tag=tag, formats=formats)[0]


def _tokenizer(folder: Path, max_length: int) -> BatchTokenizer:
    """The model's tokenizer, for texts of as many tokens as the model and its authors allow."""
    if not (folder / "tokenizer.json").is_file():
        raise ModelLoadError("The model has no tokenizer.json.")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    config = transformer_config(folder)
    if config.do_lower_case:
        normalizer = tokenizer.normalizer
        tokenizer.normalizer = Sequence([Lowercase(), *([normalizer] if normalizer else [])])
    limit: object = config.max_seq_length
    if limit is None and (folder / "tokenizer_config.json").is_file():
        settings = load_json(folder / "tokenizer_config.json", MAX_CONFIG_BYTES)
        limit = settings.get("model_max_length")
    if isinstance(limit, int | float):  # 1e30 where nobody has said
        max_length = min(max_length, int(limit))
    return BatchTokenizer(tokenizer, max_length=max_length)
