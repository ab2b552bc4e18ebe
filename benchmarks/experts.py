"""A layer's experts on a CPU: all of them in a few calls, beside one after the other.

    python benchmarks/experts.py [--format bf16|int8|int4|Q4_0] [--size 2048x768x128x8]
        [--tokens 1 2 4 8 16 32 128 512]

The router is counted, too. In the other way torch computes what is around the products of the
experts, and each product is a call of its own, by the same kernels. Tokens choose at random, so
that weights come from memory, and the two ways take turns. Prints medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import gguf
import torch
from torch import Tensor

from axion.layers import cpu_kernels, kernels
from axion.layers.activation import ACTIVATIONS
from axion.layers.moe import Experts, Router
from axion.quantization.gguf import BLOCK_TYPES
from axion.quantization.gguf_packed import PackedBlockKernel
from axion.quantization.kernel import DenseKernel, Kernel
from axion.quantization.layers import quantized_experts
from axion.quantization.on_load import Int4OnLoad, Int8OnLoad


def of_gguf(weight: Tensor) -> Kernel:
    blocks = gguf.quants.quantize(weight.float().numpy(), gguf.GGMLQuantizationType.Q4_0)
    return PackedBlockKernel(torch.from_numpy(blocks), BLOCK_TYPES["Q4_0"])


_FORMATS: dict[str, tuple[Callable[[Tensor], Kernel], float]] = {
    "bf16": (DenseKernel, 16),
    "int8": (lambda weight: Int8OnLoad().kernel(weight, torch.bfloat16), 8),
    "int4": (lambda weight: Int4OnLoad().kernel(weight, torch.bfloat16), 5),
    "Q4_0": (of_gguf, 4.5),
}
_SECONDS = 2.0  # for each number of tokens
_MIN_ROUNDS, _MAX_ROUNDS = 5, 60


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    size = "hidden size x width of an expert x experts x experts of a token"
    parser.add_argument("--size", default="2048x768x128x8", help=size)
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32, 128, 512])
    parser.add_argument("--format", choices=_FORMATS, default="bf16", help="of weights")
    arguments = parser.parse_args()
    if not cpu_kernels.work():
        raise SystemExit("the kernels do not work here")
    measure(arguments.format, *map(int, arguments.size.split("x")), arguments.tokens)


@torch.inference_mode()
def measure(
    format: str, hidden_size: int, width: int, num_experts: int, top_k: int, counts: list[int]
) -> None:
    of_weight, bits = _FORMATS[format]
    with torch.device("meta"):
        experts = Experts(num_experts, hidden_size, width, ACTIVATIONS["silu"])
    for name in ("gate_up_proj", "down_proj"):
        linear = getattr(experts, name)
        weight = torch.randn(linear.out_features, linear.in_features).bfloat16() / 64
        packed = quantized_experts(linear, (of_weight(weight) for _ in range(num_experts)))
        setattr(experts, name, packed)
    router = Router(hidden_size, num_experts, top_k).bfloat16()
    router.weight.normal_()
    expert_bytes = 3 * hidden_size * width * bits / 8
    for num_tokens in counts:
        batches = torch.randn(16, num_tokens, hidden_size).bfloat16()
        num_used = statistics.mean(len(router(x)[1].unique()) for x in batches)

        def compute(x: Tensor) -> float:
            began = time.perf_counter()
            experts(x, *router(x))
            return time.perf_counter() - began

        own, other = [compute(batches[0])], []
        with one_by_one():
            compute(batches[0])
            rounds = int(_SECONDS / 2 / compute(batches[1]))
        for i in range(min(max(rounds, _MIN_ROUNDS), _MAX_ROUNDS)):
            own.append(compute(batches[2 * i % 16]))
            with one_by_one():
                other.append(compute(batches[(2 * i + 1) % 16]))
        ours, theirs = statistics.median(own), statistics.median(other)
        print(
            f"{num_tokens:>5} tokens{num_used:6.1f} experts{ours * 1e3:9.2f} ms"
            f"{num_used * expert_bytes / ours / 1e9:7.1f} GB/s{theirs / ours:6.2f} times as fast",
            flush=True,
        )


@contextmanager
def one_by_one() -> Iterator[None]:
    of = kernels.of

    def others(name: str, x: Tensor, size: int | None = None) -> object:
        return None if name in ("experts", "grouped") else of(name, x, size)

    with patch.object(kernels, "of", others):
        yield


if __name__ == "__main__":
    main()
