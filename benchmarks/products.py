"""Products of few rows with packed weights: the CPU's own kernels beside oneDNN's, or ATen's.

    python benchmarks/products.py [--format bf16|int8|int4] [--size 4096x1024 1024x3072]
        [--rows 1 8 16 32 128 192]

Weights of several layers take turns, so that they come from memory, and so do the two products.
Prints what the kernel reads (GB/s) and computes (tera-operations/s), and the other's time divided
by its own, of medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from axion.layers import cpu_kernels, onednn
from axion.quantization.int8 import Int8Kernel
from axion.quantization.integers import AtenInt4Kernel

Product = Callable[[Tensor], Tensor]

_NUM_BYTES = 2e8  # of the weights that take turns: far more than caches keep
_ROUNDS = 7


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = ["4096x1024", "1024x3072", "16384x2048", "151936x1024"]
    parser.add_argument("--size", nargs="+", default=sizes, help="out_features x in_features")
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 16, 32, 128, 192])
    parser.add_argument("--format", choices=_FORMATS, default="bf16", help="of weights")
    arguments = parser.parse_args()
    if not cpu_kernels.work():
        raise SystemExit("the kernels do not work here")
    for size in arguments.size:
        out_features, in_features = map(int, size.split("x"))
        measure(arguments.format, out_features, in_features, arguments.rows)


@torch.inference_mode()
def measure(format: str, out_features: int, in_features: int, row_counts: list[int]) -> None:
    of_weight, bits = _FORMATS[format]
    num_bytes = bits * out_features * in_features / 8
    count = max(2, int(_NUM_BYTES / num_bytes))
    products = [of_weight(out_features, in_features) for _ in range(count)]
    for num_rows in row_counts:
        x = torch.randn(num_rows, in_features).bfloat16()
        times: list[list[float]] = [[], []]
        for _ in range(_ROUNDS):
            for of_kind, kind in zip(times, zip(*products, strict=True), strict=True):
                of_kind.append(seconds(x, kind))
        own, other = map(statistics.median, times)
        print(
            f"{out_features:>7} x {in_features:<6}{num_rows:4} rows"
            f"{num_bytes / own / 1e9:7.1f} GB/s"
            f"{2 * num_rows * out_features * in_features / own / 1e12:6.2f} tera-operations/s"
            f"{other / own:6.2f} times as fast",
            flush=True,
        )


def bf16(out_features: int, in_features: int) -> tuple[Product, Product]:
    """Our product with a weight, and the other."""
    from axion.layers.cpu_kernels.linear import linear

    weight = torch.randn(out_features, in_features).bfloat16()
    packed = onednn.pack(weight)
    if (view := onednn.rows_view(packed, weight)) is None:
        raise SystemExit("oneDNN lays weights out in another way on this CPU")
    ours = partial(linear, weight=view.data_ptr(), out_features=out_features)
    return ours, partial(onednn.linear, packed=packed)


def int8(out_features: int, in_features: int) -> tuple[Product, Product]:
    codes = torch.randint(-127, 128, (out_features, in_features), dtype=torch.int8)
    kernel = Int8Kernel(codes, torch.rand(out_features), rounds_input=True)
    return kernel, lambda x: kernel._integer_product(x).bfloat16()


def int4(out_features: int, in_features: int) -> tuple[Product, Product]:
    codes = torch.randint(256, (out_features, in_features // 2), dtype=torch.uint8)
    pairs = torch.rand(in_features // 32, out_features, 2).bfloat16()
    product = torch.ops.aten._weight_int4pack_mm_for_cpu
    return AtenInt4Kernel(codes, pairs), lambda x: product(x, codes, 32, pairs)


_FORMATS = {"bf16": (bf16, 16), "int8": (int8, 8), "int4": (int4, 5)}


def seconds(x: Tensor, products: Sequence[Product]) -> float:
    """Of one product, on average."""
    began = time.perf_counter()
    for product in products:
        product(x)
    return (time.perf_counter() - began) / len(products)


if __name__ == "__main__":
    main()
