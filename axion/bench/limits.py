"""What this machine's memory and processors reach at their best, measured with torch."""

from __future__ import annotations

import contextlib
import mmap
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from axion.bench.report import Limits
from axion.models.base import CausalLM
from axion.models.config import DecoderConfig
from axion.quantization.layers import num_parameters

_NUM_BYTES = {"cpu": 2**29, "cuda": 2**31}
_SIZE = {"cpu": 2048, "cuda": 8192}
_REPEATS = 15


def measure_limits(device: torch.device) -> Limits:
    """The best of several tries, with as many threads as torch is set to."""
    return Limits(read_rate(device), matrix_rates(device))


def read_rate(device: torch.device, *, huge_pages: bool | None = None) -> float:
    """Bytes a second that are read from memory far larger than any cache; on CUDA, copied: those
    read and those written together.

    Args:
        huge_pages: of the CPU's memory; None leaves it to the system, as for a model's weights.
    """
    num_bytes = _NUM_BYTES[device.type]
    if device.type == "cuda":
        source = torch.ones(num_bytes, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        return 2 * num_bytes / _best(lambda: target.copy_(source), device)
    with mmap.mmap(-1, num_bytes) as memory:
        if huge_pages is not None:
            memory.madvise(mmap.MADV_HUGEPAGE if huge_pages else mmap.MADV_NOHUGEPAGE)
        numbers = torch.frombuffer(memory, dtype=torch.int64).fill_(1)
        seconds = _best(numbers.sum, device)
        del numbers  # what is exported of a mapping keeps it open
    return num_bytes / seconds


def matrix_rates(device: torch.device) -> dict[str, float]:
    """Operations a second of the product of two large square matrices; formats that the device or
    this torch cannot multiply are left out."""
    size = _SIZE[device.type]
    rates = {}
    for dtype in (torch.float32, torch.bfloat16, torch.int8):
        left, right = (
            torch.randint(-9, 9, (size, size), device=device).to(dtype) for _ in range(2)
        )
        product: Callable[[Tensor, Tensor], Tensor] = torch.mm
        if dtype == torch.int8:
            product = torch._int_mm
        with contextlib.suppress(RuntimeError, AttributeError):
            seconds = _best(lambda: product(left, right), device)  # noqa: B023
            rates[str(dtype).removeprefix("torch.")] = 2 * size**3 / seconds
    return rates


def _best(compute: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of several calls."""
    times = []
    for _ in range(1 + _REPEATS):
        began = time.perf_counter()
        compute()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return min(times[1:])


class NumWeights(NamedTuple):
    """What a model has learnt.

    Attributes:
        layers: what every token of a prompt is multiplied by.
        read: what a decode step reads: the layers and the head.
        unread: an embedding that is not the head, of which a step reads single rows.
    """

    layers: int
    read: int
    unread: int


def num_weights(model: CausalLM) -> NumWeights | None:
    """None of a model whose steps do not read all of it (experts), or that is transformers'."""
    config = model.config
    if not isinstance(config, DecoderConfig) or hasattr(config, "num_experts"):
        return None
    head = config.vocab_size * config.hidden_size
    unread = 0 if config.tie_word_embeddings else head
    read = num_parameters(model) - unread
    return NumWeights(read - head, read, unread)
