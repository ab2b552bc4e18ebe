"""How long a product with a weight of each GGUF type takes on a processor, beside a plain one.

    python benchmarks/gguf_types.py [NAMES]

Weights are 4,096 x 4,096 in bfloat16, and of each there are as many as no cache holds, as in a
model. Each round times every type once, and the best of all rounds counts, so that what else the
machine does falls on all of them.
"""

from __future__ import annotations

import time
from copy import deepcopy
from typing import Annotated

import torch
import typer

from axion.quantization.gguf import BLOCK_TYPES, BlockFormat
from axion.quantization.kernel import DenseKernel, Kernel

SIZE = 4096
_BYTES = 2**27


def kernels(names: list[str]) -> dict[str, list[Kernel]]:
    """Those of the same weight that take turns."""
    generator = torch.Generator().manual_seed(0)
    found: dict[str, list[Kernel]] = {}
    found["plain"] = [DenseKernel(torch.randn(SIZE, SIZE).bfloat16()) for _ in range(4)]
    for name in names:
        kind = BLOCK_TYPES[name]
        shape = (SIZE, SIZE // kind.block_size * kind.num_bytes)
        blocks = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        kernel = BlockFormat(kind).kernel({"weight": blocks}, torch.bfloat16)
        copies = (deepcopy(kernel) for _ in range(_BYTES // num_bytes(kernel)))
        found[name] = [kernel, *copies]
    return found


def num_bytes(kernel: Kernel) -> int:
    return sum(parameter.nbytes for parameter in kernel.parameters())


def main(names: Annotated[list[str] | None, typer.Argument()] = None, rounds: int = 7) -> None:
    """Print milliseconds, and their ratio to the plain product's.

    Args:
        names: of types; all without.
    """
    chosen = kernels(names or [*BLOCK_TYPES])
    for num_rows in (1, 8, 256):
        x = torch.randn(num_rows, SIZE).bfloat16()
        best = dict.fromkeys(chosen, float("inf"))
        with torch.inference_mode():
            for _ in range(rounds):
                for name, same in chosen.items():
                    few = same if num_rows <= 8 else same[:2]
                    start = time.perf_counter()
                    for kernel in few:
                        kernel(x)
                    best[name] = min(best[name], (time.perf_counter() - start) / len(few))
        print(f"\n{num_rows} rows  bits       ms   ratio")
        for name, seconds in best.items():
            bits = 8 * num_bytes(chosen[name][0]) / SIZE**2
            print(f"{name:8} {bits:5.2f} {1e3 * seconds:8.2f} {seconds / best['plain']:7.2f}")


if __name__ == "__main__":
    typer.run(main)
