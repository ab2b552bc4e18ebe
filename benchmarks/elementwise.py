"""What lies between the products of a step on a CPU, by kernels and by torch.

    OMP_NUM_THREADS=2 python benchmarks/elementwise.py

The sizes are those of qwen3-0.6b in bfloat16. Before each call a product reads 6 MB of weights, as
in a step, so that neither code nor numbers are in the processor's nearest caches.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from axion.engine.sampler import Sampler
from axion.engine.sequence import Sequence
from axion.layers import cpu_kernels, onednn
from axion.layers.activation import apply_gate
from axion.layers.norm import RMSNorm, add_and_norm
from axion.layers.rotary import apply_rotary
from axion.types import SamplingParams

HEAD_DIM, HIDDEN, INTERMEDIATE, VOCAB = 128, 1024, 3072, 151_936
ROUNDS = 60


def calls(num_tokens: int) -> dict[str, Callable[[], object]]:
    """Each operation of so many tokens; the last is of as many sequences."""

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(*shape).bfloat16()

    norm, head_norm = (RMSNorm(size, 1e-6).bfloat16() for size in (HIDDEN, HEAD_DIM))
    for module in (norm, head_norm):
        module.weight.fill_(1)
    x, residual = numbers(2, num_tokens, HIDDEN)
    heads = numbers(num_tokens, 32 * HEAD_DIM).unflatten(1, (32, HEAD_DIM))
    q, k = heads[:, :16], heads[:, 16:24]
    cos, sin = numbers(2, num_tokens, 1, HEAD_DIM)
    gate, up = numbers(num_tokens, 2 * INTERMEDIATE).split(INTERMEDIATE, dim=-1)
    found: dict[str, Callable[[], object]] = {
        "norm, with the residual": lambda: add_and_norm(x, residual, norm),
        "norm of heads, rotation": lambda: [apply_rotary(y, cos, sin, head_norm) for y in (q, k)],
        "gate": lambda: apply_gate(F.silu, gate, up),
    }
    if num_tokens <= 32:
        logits = numbers(num_tokens, VOCAB)
        sampler = Sampler(torch.device("cpu"), VOCAB)
        greedy = SamplingParams(temperature=0)
        sequences = [
            Sequence(str(i), [1], greedy, seed=0, eos_token_ids=(2,)) for i in range(num_tokens)
        ]
        found["greedy tokens"] = lambda: sampler(logits, sequences).read()
    return found


@torch.inference_mode()
def main() -> None:
    """Print the medians in microseconds."""
    weights = [onednn.pack(torch.randn(3072, 1024).bfloat16()) for _ in range(ROUNDS)]
    row = torch.randn(1, 1024).bfloat16()
    run_on = cpu_kernels.run_on
    for num_tokens in (1, 8, 32, 1024):
        for name, call in calls(num_tokens).items():
            times: tuple[list[float], list[float]] = ([], [])
            for weight in weights:
                for of_way, way in zip(times, (run_on, lambda _: False), strict=True):
                    cpu_kernels.run_on = way
                    onednn.linear(row, weight)
                    begin = time.perf_counter()
                    call()
                    of_way.append(time.perf_counter() - begin)
            kernel, plain = (1e6 * statistics.median(of_way) for of_way in times)
            print(f"{num_tokens:5} {name:24} {kernel:8.0f} {plain:8.0f} us, {plain / kernel:.1f}")
    cpu_kernels.run_on = run_on


if __name__ == "__main__":
    main()
