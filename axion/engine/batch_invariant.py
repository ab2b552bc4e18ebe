"""The same bits for a request in whatever batch (`DETERMINISTIC`).

Libraries multiply, say, 3 rows by another kernel than 300, and sum in another order. So a step's
tokens are padded to one of a few sizes, of which it was found when the model was loaded that a
sequence's hidden states and logits have the same bits in each, wherever in the batch it lies and
however it is cut into chunks. Of sizes that differ those that agree are kept; one always does.
Attention, which depends on more than the number of rows, has a form of its own for this
(`axion.layers.attention.batch_invariant`).
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from axion.errors import ModelLoadError
from axion.layers.context import ForwardContext, KVCache
from axion.layers.moe import ExpertLinear, Groups
from axion.models.base import CausalLM
from axion.models.config import DecoderConfig
from axion.quantization.kernel import DenseKernel
from axion.quantization.layers import QuantizedExpertLinear

_Experts = Callable[[Tensor, Groups], Tensor]

logger = logging.getLogger("axion.engine")

# Rows of one step. Smaller ones would cost as much, and more than the largest gain nothing.
_SIZES = (16, 32, 64, 128, 256, 512)
# Tokens of the sequence by which sizes are compared.
_PROBE_LENGTH = 20


class BatchInvariantModel:
    """Runs a model in steps of fixed sizes.

    Attributes:
        sizes: the numbers of rows that a step may have, ascending.
    """

    def __init__(self, model: CausalLM, sizes: tuple[int, ...]) -> None:
        self.model = model
        self.sizes = sizes

    @property
    def config(self) -> DecoderConfig:
        return self.model.config

    def __call__(self, input_ids: Tensor, context: ForwardContext) -> Tensor:
        """As `CausalLM.forward`, of at most `sizes[-1]` tokens."""
        num_tokens = len(input_ids)
        # The last token once more: what it writes to the cache is there already, bit by bit.
        padding = self._size(num_tokens) - num_tokens
        padded = replace(
            context,
            positions=_repeat_last(context.positions, padding),
            rope_lengths=_repeat_last(context.rope_lengths, padding),
            slot_mapping=_repeat_last(context.slot_mapping, padding),
            batch_invariant=True,
        )
        return self.model(_repeat_last(input_ids, padding), padded)[:num_tokens]

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        """As `CausalLM.compute_logits`, of any number of rows."""
        pieces = []
        for rows in hidden_states.split(self.sizes[-1]):
            padding = self._size(len(rows)) - len(rows)
            pieces.append(self.model.compute_logits(F.pad(rows, (0, 0, 0, padding)))[: len(rows)])
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _size(self, num_rows: int) -> int:
        return self.sizes[bisect_left(self.sizes, num_rows)]


def make_batch_invariant(
    model: CausalLM, kv_caches: list[KVCache], *, block_size: int, max_num_seqs: int
) -> BatchInvariantModel:
    """Find the sizes of steps in which the model's results have the same bits.

    Args:
        kv_caches: which nobody uses yet.
        max_num_seqs: so many rows must fit.

    Raises:
        ModelLoadError: there is no such size, or the cache is too small to find out, or the model
            cannot have one.
    """
    if model.batch_dependence:
        raise ModelLoadError(
            f"DETERMINISTIC cannot be kept for {type(model).__name__}: {model.batch_dependence}. "
            "Unset it."
        )
    for module in model.modules():
        if isinstance(module, ExpertLinear | QuantizedExpertLinear):
            module.forward = partial(_by_whole_tiles, module.forward)  # type: ignore[method-assign]
        elif isinstance(module, DenseKernel):
            module.make_batch_invariant()
    probe = _Probe(model, kv_caches, block_size)
    largest = bisect_left(_SIZES, max_num_seqs)
    if largest == len(_SIZES):
        raise ModelLoadError(
            f"With DETERMINISTIC, CONCURRENT_REQUESTS is at most {_SIZES[-1]}; it is "
            f"{max_num_seqs}."
        )
    if _SIZES[largest] > probe.max_tokens:
        raise ModelLoadError(
            f"DETERMINISTIC needs a KV cache of {_SIZES[largest] - probe.max_tokens} tokens more, "
            "to find out at the start whether it can be kept. Give it more with KV_CACHE_GIB or "
            "MEMORY_FRACTION."
        )
    results: dict[int, bytes] = {}
    for size in (size for size in _SIZES if size <= probe.max_tokens):
        if (result := probe.run(size)) is not None:
            results[size] = result
    votes = Counter(results.values())
    # The group with the largest size, of those with equally many members.
    agreed = max(reversed(results.values()), key=lambda bits: votes[bits], default=None)
    found = tuple(size for size, bits in results.items() if bits == agreed)
    if not found or found[-1] < max_num_seqs:
        raise ModelLoadError(
            f"DETERMINISTIC cannot be kept for {type(model).__name__} on this machine: the same "
            "tokens give other bits in another place of the batch. Unset it."
        )
    logger.info("deterministic: steps of %s tokens", ", ".join(map(str, found)))
    return BatchInvariantModel(model, found)


def _by_whole_tiles(forward: _Experts, x: Tensor, groups: Groups) -> Tensor:
    """What `forward` makes of `[num_rows, in_features]`, with each expert's rows made up to a
    multiple of the smallest size: how many an expert gets depends on the batch."""
    counts = groups.ends.diff(prepend=groups.ends.new_zeros(1))
    padded = (counts + _SIZES[0] - 1) // _SIZES[0] * _SIZES[0]
    ends = padded.cumsum(0, dtype=groups.ends.dtype)
    rows = torch.arange(len(x), device=x.device)
    rows += ((ends - padded) - (groups.ends - counts))[groups.experts]
    # As many as there can be, for only the device knows how many there are.
    num_rows = len(x) + min(len(x), len(ends)) * (_SIZES[0] - 1)
    wide = x.new_zeros(num_rows, x.shape[1])
    wide[rows] = x
    experts = torch.searchsorted(ends, torch.arange(num_rows, device=x.device), right=True)
    return forward(wide, Groups(experts.clamp_(max=len(ends) - 1), ends))[rows]


class _Probe:
    """A random sequence, computed beside random neighbours."""

    def __init__(self, model: CausalLM, kv_caches: list[KVCache], block_size: int) -> None:
        self._model = model
        self._kv_caches = kv_caches
        self._block_size = block_size
        self._num_groups = 1 + max(cache.group for cache in kv_caches)
        num_blocks = min(len(cache.k) for cache in kv_caches) // self._num_groups
        self.max_tokens = (num_blocks - 2) * block_size
        self._generator = torch.Generator().manual_seed(0)
        self._token_ids = self._random(min(_PROBE_LENGTH, model.max_length()))

    @torch.inference_mode()
    def run(self, size: int) -> bytes | None:
        """The bits of the sequence's hidden states and logits, in steps of so many rows; None:
        they depend on how it is cut and on where it lies."""
        model = BatchInvariantModel(self._model, (size,))
        results = set()
        for chunk_size, num_before in ((size, 0), (size - 3, size), (size // 2 + 1, 5)):
            hidden = torch.cat(
                [
                    self._step(model, start, chunk, min(num_before, size - len(chunk)))
                    for start, chunk in self._chunks(chunk_size)
                ]
            )
            logits = torch.cat([model.compute_logits(rows) for rows in hidden.split(size)])
            results.add(b"".join(_bits(x) for x in (hidden, logits)))
        return results.pop() if len(results) == 1 else None

    def _chunks(self, size: int) -> list[tuple[int, Tensor]]:
        chunks = self._token_ids.split(size)
        return list(zip(accumulate(map(len, chunks), initial=0), chunks, strict=False))

    def _step(
        self, model: BatchInvariantModel, start: int, chunk: Tensor, num_before: int
    ) -> Tensor:
        """Hidden states of the sequence's tokens from `start` on, behind those of a neighbour."""
        device = self._kv_caches[0].k.device
        spans = [(start, start + len(chunk))]
        token_ids = chunk
        if num_before:
            spans.insert(0, (0, num_before))
            token_ids = torch.cat([self._random(num_before), chunk])
        # A neighbour has the last blocks of each group, the sequence the first.
        longest = -(-max(end for _, end in spans) // self._block_size)
        blocks = torch.arange(longest)[None]
        own = blocks * self._num_groups + torch.arange(self._num_groups)[:, None]
        last = min(len(cache.k) for cache in self._kv_caches) - 1
        tables = torch.stack([last - own, own][-len(spans) :], 1)
        positions = [torch.arange(*span) for span in spans]
        slots = torch.cat(
            [
                tables[:, row, p // self._block_size] * self._block_size + p % self._block_size
                for row, p in enumerate(positions)
            ],
            1,
        )
        flat = torch.cat(positions)
        ends = [end for _, end in spans]
        context = ForwardContext(
            positions=flat.to(device),
            rope_lengths=torch.clamp(flat + 1, min=len(self._token_ids)).to(device),
            slot_mapping=slots.to(device),
            block_tables=tables.to(device),
            context_lens=torch.tensor(ends, device=device),
            query_lens=[end - start for start, end in spans],
            context_lens_list=ends,
            kv_caches=self._kv_caches,
            block_size=self._block_size,
        )
        return model(token_ids.to(device), context)[num_before:]

    def _random(self, num_tokens: int) -> Tensor:
        return torch.randint(
            self._model.config.vocab_size, (num_tokens,), generator=self._generator
        )


def _repeat_last(x: Tensor, count: int) -> Tensor:
    """`[..., n]` to `[..., n + count]`."""
    return torch.cat([x, x[..., -1:].expand(*x.shape[:-1], count)], -1) if count else x


def _bits(x: Tensor) -> bytes:
    return bytes(x.cpu().contiguous().view(torch.uint8).numpy())
