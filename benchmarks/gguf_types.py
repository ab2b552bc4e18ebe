"""How long a product with a weight of each GGUF type takes on a processor, beside a plain one.

    python benchmarks/gguf_types.py [--compact]

Weights are 4,096 x 4,096 in bfloat16. Each round times every type once, and the best of all rounds
counts, so that what else the machine does falls on all of them.
"""

from __future__ import annotations

import time

import torch
import typer

from axion.quantization.gguf import BLOCK_TYPES, BlockFormat
from axion.quantization.kernel import DenseKernel, Kernel

SIZE = 4096


def kernels(*, is_compact: bool) -> dict[str, Kernel]:
    generator = torch.Generator().manual_seed(0)
    found: dict[str, Kernel] = {"plain": DenseKernel(torch.randn(SIZE, SIZE).bfloat16())}
    for name, kind in BLOCK_TYPES.items():
        shape = (SIZE, SIZE // kind.block_size * kind.num_bytes)
        blocks = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        found[name] = BlockFormat(kind, 4 if is_compact else 8).kernel(
            {"weight": blocks}, torch.bfloat16
        )
    return found


def main(rounds: int = 8, compact: bool = False) -> None:
    """Print milliseconds, and their ratio to the plain product's.

    Args:
        compact: as where there is not plenty of memory.
    """
    chosen = kernels(is_compact=compact)
    for num_rows in (1, 8, 256):
        x = torch.randn(num_rows, SIZE).bfloat16()
        best = dict.fromkeys(chosen, float("inf"))
        with torch.inference_mode():
            for _ in range(rounds):
                for name, kernel in chosen.items():
                    kernel(x)
                    start = time.perf_counter()
                    kernel(x)
                    best[name] = min(best[name], time.perf_counter() - start)
        print(f"\n{num_rows} rows  bits       ms   ratio")
        for name, seconds in best.items():
            stored = sum(parameter.nbytes for parameter in chosen[name].parameters())
            bits = 8 * stored / SIZE**2
            print(f"{name:8} {bits:5.2f} {1e3 * seconds:8.2f} {seconds / best['plain']:7.2f}")


if __name__ == "__main__":
    typer.run(main)
