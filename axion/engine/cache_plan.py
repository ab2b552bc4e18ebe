"""What the memory beside the weights is for: blocks for keys and values, slots for states."""

from __future__ import annotations

import logging
from functools import partial

import torch

from axion.engine import kv_cache, state_cache
from axion.engine.host_pool import HostPool
from axion.layers.context import KVCache, State
from axion.layers.kv_format import KV_FORMATS
from axion.models.base import CausalLM
from axion.types import EngineConfig

logger = logging.getLogger("axion.engine")


class CachePlan:
    """How many blocks and slots there is room for, and their tensors.

    Args:
        draft_model: has its part of every block; None: there is none.
        max_model_len: tokens of the longest sequence.
        max_chunk: tokens of one sequence that are computed at most and not booked.

    Attributes:
        layout: how layers share blocks.
        num_blocks, num_slots: none before `fill`. Slots are for states, the first for nobody's;
            0 for a model without.
    """

    def __init__(
        self,
        config: EngineConfig,
        model: CausalLM,
        draft_model: CausalLM | None,
        device: torch.device,
        *,
        max_model_len: int,
        max_chunk: int,
    ) -> None:
        self.num_blocks = self.num_slots = 0
        self._config = config
        self._device = device
        self._max_model_len = max_model_len
        self._dtype = self._stored_dtype = model.dtype
        self._state_specs = model.state_specs()
        self._bytes_per_slot = state_cache.bytes_per_slot(self._state_specs, self._dtype)
        self._specs = model.kv_cache_specs()
        self._num_own = len(self._specs)
        if draft_model is not None:
            self._specs += draft_model.kv_cache_specs()
        self._specs = [spec.in_pieces(config.block_size) for spec in self._specs]
        self.format = None
        if config.kv_cache_dtype != "auto":
            self.format = KV_FORMATS[config.kv_cache_dtype](self._dtype)
            self._specs = [kv_cache.stored_spec(spec, self.format) for spec in self._specs]
            self._stored_dtype = torch.uint8
        self._lay_out = partial(
            kv_cache.lay_out,
            self._specs,
            block_size=config.block_size,
            max_chunk=max_chunk,
            dtype=self._stored_dtype,
        )
        self.layout = self._lay_out(max_model_len)

    @property
    def num_bytes(self) -> int:
        """What all blocks and slots take."""
        return self.num_blocks * self.layout.bytes_per_block + self.num_slots * self._bytes_per_slot

    def fill(self, num_bytes: int) -> None:
        """Divide memory among blocks and slots.

        Raises:
            ModelLoadError: not even one sequence of full length fits.
        """
        config, layout = self._config, self.layout
        if self._state_specs:
            self.num_slots = state_cache.num_slots_that_fit(
                self._bytes_per_slot,
                max_num_seqs=config.max_num_seqs,
                num_kept=2 * config.max_num_seqs if config.enable_prefix_caching else 0,
                num_kv_bytes=layout.num_blocks_per_sequence * layout.bytes_per_block,
                num_bytes=num_bytes,
            )
            logger.info(
                "recurrent states: %d of %.1f MiB each",
                self.num_slots - 1,
                self._bytes_per_slot / 2**20,
            )
        num_bytes -= self.num_slots * self._bytes_per_slot
        self.num_blocks = kv_cache.num_blocks_that_fit(
            self._lay_out,
            max_model_len=self._max_model_len,
            max_num_seqs=config.max_num_seqs,
            num_bytes=num_bytes,
        )

    def host_pools(self, num_bytes: int) -> tuple[HostPool, HostPool]:
        """For blocks and for states: host memory divided as the device's is."""
        state_bytes = num_bytes * self.num_slots * self._bytes_per_slot // max(1, self.num_bytes)
        return (
            HostPool((num_bytes - state_bytes) // max(1, self.layout.bytes_per_block)),
            HostPool(state_bytes // max(1, self._bytes_per_slot)),
        )

    def allocate_blocks(self, num_blocks: int) -> tuple[list[KVCache], list[KVCache]]:
        """The layers' caches of so many blocks: the model's, and the draft model's."""
        caches = [
            cache._replace(format=self.format)
            for cache in kv_cache.allocate(
                self._specs,
                self.layout.groups,
                num_blocks,
                self._config.block_size,
                dtype=self._stored_dtype,
                device=self._device,
            )
        ]
        return caches[: self._num_own], caches[self._num_own :]

    def allocate_slots(self) -> list[State]:
        """The layers' states."""
        return state_cache.allocate(
            self._state_specs, self.num_slots, dtype=self._dtype, device=self._device
        )
