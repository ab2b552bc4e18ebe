"""Products of few rows with packed weights: the CPU's own kernel beside oneDNN.

    python benchmarks/products.py [--size 4096x1024 1024x3072] [--rows 1 8 16 32 128 192]

Weights of several layers take turns, so that they come from memory, and so do the two products.
Prints what the kernel reads (GB/s) and computes (tera-operations/s), and oneDNN's time divided by
its own, of medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from axion.layers import cpu_kernels, onednn

_NUM_BYTES = 2e8  # of the weights that take turns: far more than caches keep
_ROUNDS = 7


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = ["4096x1024", "1024x3072", "16384x2048", "151936x1024"]
    parser.add_argument("--size", nargs="+", default=sizes, help="out_features x in_features")
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 16, 32, 128, 192])
    arguments = parser.parse_args()
    if not cpu_kernels.work():
        raise SystemExit("the kernels do not work here")
    for size in arguments.size:
        out_features, in_features = map(int, size.split("x"))
        measure(out_features, in_features, arguments.rows)


@torch.inference_mode()
def measure(out_features: int, in_features: int, row_counts: list[int]) -> None:
    from axion.layers.cpu_kernels.linear import linear

    num_bytes = 2 * out_features * in_features
    packed, addresses = [], []
    for _ in range(max(2, int(_NUM_BYTES / num_bytes))):
        weight = torch.randn(out_features, in_features).bfloat16()
        packed.append(onednn.pack(weight))
        if (view := onednn.rows_view(packed[-1], weight)) is None:
            raise SystemExit("oneDNN lays weights out in another way on this CPU")
        addresses.append(view.data_ptr())
    for num_rows in row_counts:
        x = torch.randn(num_rows, in_features).bfloat16()
        ours, theirs = [], []
        for _ in range(_ROUNDS):
            ours.append(seconds(partial(linear, x, out_features=out_features), addresses))
            theirs.append(seconds(partial(onednn.linear, x), packed))
        own = statistics.median(ours)
        print(
            f"{out_features:>7} x {in_features:<6}{num_rows:4} rows"
            f"{num_bytes / own / 1e9:7.1f} GB/s"
            f"{num_rows * num_bytes / own / 1e12:6.2f} tera-operations/s"
            f"{statistics.median(theirs) / own:6.2f} times as fast",
            flush=True,
        )


def seconds(product: Callable[..., object], weights: list[object]) -> float:
    """Of one product, on average."""
    began = time.perf_counter()
    for weight in weights:
        product(weight)
    return (time.perf_counter() - began) / len(weights)


if __name__ == "__main__":
    main()
