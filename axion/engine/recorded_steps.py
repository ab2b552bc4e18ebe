"""Decode steps on a CPU, recorded when they first come and then replayed.

What a CUDA graph is on a GPU, a recording of kernels is here: one for each number of sequences that
decode together. None is padded, since a row costs more than a recording.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from axion.layers import cpu_kernels
from axion.layers.context import ForwardContext
from axion.models.base import CausalLM

if TYPE_CHECKING:
    from axion.layers.cpu_kernels.recording import Recording

logger = logging.getLogger("axion.engine")


def can_record(model: CausalLM, device: torch.device) -> bool:
    """Whether kernels compute the model at all; whether nothing else does, a recording finds."""
    return cpu_kernels.run_on(torch.empty(0, dtype=model.dtype, device=device))


class RecordedSteps:
    """Computes decode steps, in which every sequence has one token, by replaying recordings."""

    def __init__(self, model: CausalLM) -> None:
        self.model = model
        self._kernels = cpu_kernels.load("recording")
        self._memory = self._kernels.Memory()
        # By the number of sequences, with the token ids that are read.
        self._recordings: dict[int, tuple[Tensor, Recording]] = {}
        self._max_num_seqs = cpu_kernels.MAX_ROWS  # oneDNN multiplies more

    def fits(self, context: ForwardContext) -> bool:
        """Whether a step may be replayed: a token of each sequence, and not too many of them."""
        num_seqs = len(context.query_lens)
        return max(context.query_lens) == 1 and num_seqs <= self._max_num_seqs

    @torch.inference_mode()
    def __call__(self, input_ids: Tensor, context: ForwardContext) -> Tensor:
        """What the model computes of a step that fits; valid until the next one.

        Args:
            input_ids: `[num_seqs]`.

        Returns:
            Hidden states after the final norm, `[num_seqs, hidden_size]`.
        """
        if not cpu_kernels.work():
            return self.model(input_ids, context)
        if (found := self._recordings.get(len(input_ids))) is None:
            return self._record(input_ids, context)
        kept_ids, recording = found
        kept_ids.copy_(input_ids)
        return recording.replay(context)

    def _record(self, input_ids: Tensor, context: ForwardContext) -> Tensor:
        """Record a step while it is computed. If that cannot be done, it is computed once more, and
        steps of as many sequences are not recorded again."""
        num_seqs, kept_ids = len(input_ids), input_ids.clone()
        try:
            recording = self._kernels.Recording(
                partial(self.model, kept_ids), context, self._memory
            )
        except Exception as error:  # whatever a model raises when it misses something
            logger.info(
                "steps of %s in which %d sequences or more decode are not recorded: %s",
                type(self.model).__name__,
                num_seqs,
                error,
            )
            self._max_num_seqs = num_seqs - 1
            return self.model(input_ids, context)
        self._recordings[num_seqs] = kept_ids, recording
        return recording.result
