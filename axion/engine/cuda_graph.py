"""Decode steps as CUDA graphs: captured once for each batch size, then replayed.

A step that decodes is hundreds of kernels, each shorter than the host needs to launch it. A graph
launches all of them at once. What it reads and writes has its place for ever: the step's metadata
are copied to where the graph reads them, and the hidden states are read where it writes them.

A step is replayed in the smallest captured batch that it fits in. Rows beyond its sequences write
their keys and values to a scratch block that no sequence ever owns, and nobody reads their hidden
states.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from axion.layers import kernels
from axion.layers.context import ForwardContext, KVCache
from axion.models.base import CausalLM
from axion.quantization.layers import unknown_formats

logger = logging.getLogger("axion.engine")

_PROGRESS_S = 2.0


class Graph(Protocol):
    """A function's work on the device, recorded once and done again as often as wanted."""

    def capture(self, function: Callable[[], None]) -> None: ...

    def replay(self) -> None: ...


class CudaGraph:
    """A graph of one pool, from which all of them take their memory."""

    def __init__(self, pool: tuple[int, int]) -> None:
        self._graph = torch.cuda.CUDAGraph()
        self._pool = pool

    def capture(self, function: Callable[[], None]) -> None:
        stream = torch.cuda.current_stream()
        fault = None
        try:
            with torch.cuda.graph(self._graph, pool=self._pool):
                try:
                    function()
                except Exception as error:
                    fault = error
                    raise
        except Exception as error:
            # A capture that cannot be ended leaves torch on its stream, and hides what went wrong.
            torch.cuda.set_stream(stream)
            raise (fault or error) from None

    def replay(self) -> None:
        self._graph.replay()


def has_graphs(device: torch.device) -> bool:
    """Whether there are graphs, and Triton's attention to be captured."""
    return device.type == "cuda" and kernels.run_on(torch.empty(0, device=device))


def can_capture(model: CausalLM, device: torch.device, max_model_len: int) -> bool:
    """Whether decode steps are to be captured.

    Not where torch computes attention: it would treat every sequence as if it were as long as the
    longest may become. Not where layers keep states: the host says in which slots. And not where
    it has to know which rows each expert has.
    """
    return (
        has_graphs(device)
        and not model.state_specs()
        and model.attends_to_all_of(max_model_len)
        and not unknown_formats(model)
    )


def graph_pool() -> Callable[[], Graph]:
    """Makes graphs that share their memory, for which only one of them may be replayed at a time.

    A pool ends with the last of its graphs.
    """
    return partial(CudaGraph, torch.cuda.graph_pool_handle())


def batch_sizes(max_num_seqs: int) -> list[int]:
    """The batches that are captured: the smallest ones, then multiples of 8, of 32 beyond 256."""
    sizes = [1, 2, 4, *range(8, 256, 8), *range(256, max_num_seqs, 32)]
    return [*(size for size in sizes if size < max_num_seqs), max_num_seqs]


class CudaGraphRunner:
    """Computes decode steps, in which every sequence has one token, by replaying graphs.

    Args:
        kv_caches: one a layer, with a block more than sequences use; the last is the scratch block.
        num_groups: of block tables of a sequence.
        max_num_seqs: sequences of the largest step.
        max_model_len: tokens of the longest sequence.
    """

    def __init__(
        self,
        model: CausalLM,
        kv_caches: list[KVCache],
        *,
        block_size: int,
        num_groups: int,
        max_num_seqs: int,
        max_model_len: int,
        device: torch.device,
    ) -> None:
        self.model = model
        self.kv_caches = kv_caches
        self.block_size = block_size
        self.max_model_len = max_model_len
        self.device = device
        self.batch_sizes = batch_sizes(max_num_seqs)
        self._graphs: dict[int, Graph] = {}
        self._smallest = [
            next(size for size in self.batch_sizes if size >= num_seqs)
            for num_seqs in range(max_num_seqs + 1)
        ]
        scratch_block = len(kv_caches[0].k) - 1
        self._scratch_slot = scratch_block * block_size
        max_blocks = -(-max_model_len // block_size)

        def static(*shape: int, fill: int) -> Tensor:
            return torch.full(shape, fill, dtype=torch.int64, device=device)

        # A batch of nothing but padding.
        self._input_ids = static(max_num_seqs, fill=0)
        self._positions = static(max_num_seqs, fill=0)
        self._rope_lengths = static(max_num_seqs, fill=1)
        self._slot_mapping = static(num_groups, max_num_seqs, fill=self._scratch_slot)
        self._block_tables = static(num_groups, max_num_seqs, max_blocks, fill=scratch_block)
        self._context_lens = static(max_num_seqs, fill=1)
        self._hidden_states: Tensor | None = None

    def capture(self, new_graph: Callable[[], Graph]) -> bool:
        """Capture all batch sizes; False, with a warning in the log, if that cannot be done."""
        name = type(self.model).__name__
        start = last = time.monotonic()
        try:
            for done, size in enumerate(reversed(self.batch_sizes), 1):
                self._compute(size)  # compiles kernels; libraries allocate what they work with
                self._graphs[size] = self._record(size, new_graph)
                if time.monotonic() - last > _PROGRESS_S:
                    last = time.monotonic()
                    logger.info(
                        "capturing CUDA graphs of %s: %d of %d", name, done, len(self.batch_sizes)
                    )
        except Exception as error:  # whatever a kernel, a model or the driver raises
            self._graphs.clear()
            _warn(name, error)
            return False
        seconds = time.monotonic() - start
        logger.info("captured %d CUDA graphs of %s in %.1f s", len(self._graphs), name, seconds)
        return True

    def measure(self) -> int | None:
        """Bytes that the graphs of all batch sizes will take, from those of the largest two; None,
        with a warning in the log, if they cannot be captured.

        What is captured here is of no further use.
        """
        taken = []
        new_graph = graph_pool()
        try:
            for size in self.batch_sizes[:-3:-1]:
                self._compute(size)
                before = _free_bytes(self.device)
                self._graphs[size] = self._record(size, new_graph)
                taken.append(max(0, before - _free_bytes(self.device)))
        except Exception as error:  # as in `capture`
            _warn(type(self.model).__name__, error)
            return None
        finally:
            self._graphs.clear()
        # The largest fills the pool, and the others share it.
        return taken[0] + taken[-1] * (len(self.batch_sizes) - 1)

    def fits(self, context: ForwardContext) -> bool:
        """Whether a step can be replayed: a token of each sequence, and not too many of them."""
        num_seqs = len(context.query_lens)
        return max(context.query_lens) == 1 and num_seqs <= self.batch_sizes[-1]

    @torch.inference_mode()
    def __call__(self, input_ids: Tensor, context: ForwardContext) -> Tensor:
        """What the model computes of a step that fits; valid until the next one.

        Args:
            input_ids: `[num_seqs]`.

        Returns:
            Hidden states after the final norm, `[num_seqs, hidden_size]`.
        """
        assert self._hidden_states is not None
        num_seqs = len(input_ids)
        size = self._smallest[num_seqs]
        self._input_ids[:num_seqs].copy_(input_ids)
        self._positions[:num_seqs].copy_(context.positions)
        self._rope_lengths[:num_seqs].copy_(context.rope_lengths)
        self._context_lens[:num_seqs].copy_(context.context_lens)
        self._slot_mapping[:, :num_seqs].copy_(context.slot_mapping)
        num_blocks = context.block_tables.shape[-1]
        self._block_tables[:, :num_seqs, :num_blocks].copy_(context.block_tables)
        if num_seqs < size:
            # What else is theirs is of an earlier step, and harms nobody.
            self._slot_mapping[:, num_seqs:size].fill_(self._scratch_slot)
            self._positions[num_seqs:size].fill_(0)
            self._context_lens[num_seqs:size].fill_(1)
        self._graphs[size].replay()
        return self._hidden_states[:num_seqs]

    @torch.inference_mode()
    def _compute(self, size: int) -> None:
        context = ForwardContext(
            positions=self._positions[:size],
            rope_lengths=self._rope_lengths[:size],
            slot_mapping=self._slot_mapping[:, :size],
            block_tables=self._block_tables[:, :size],
            context_lens=self._context_lens[:size],
            query_lens=[1] * size,
            context_lens_list=[self.max_model_len] * size,
            kv_caches=self.kv_caches,
            block_size=self.block_size,
        )
        hidden_states = self.model(self._input_ids[:size], context)
        if self._hidden_states is None:  # the largest batch comes first, and is not recorded yet
            self._hidden_states = torch.empty_like(hidden_states)
        self._hidden_states[:size].copy_(hidden_states)

    def _record(self, size: int, new_graph: Callable[[], Graph]) -> Graph:
        graph = new_graph()
        graph.capture(partial(self._compute, size))
        return graph


def _free_bytes(device: torch.device) -> int:
    """As the driver counts, so that graphs and their pool are in it."""
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    free: int = torch.cuda.mem_get_info(device)[0]
    return free


def _warn(name: str, error: Exception) -> None:
    logger.warning(
        "no CUDA graphs: every step is launched kernel by kernel, which is slower where few "
        "sequences decode. %s could not be captured: %s: %s",
        name,
        type(error).__name__,
        error,
    )
