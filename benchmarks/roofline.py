"""What this machine's memory and processors reach, and the tokens a second that would be.

    python benchmarks/roofline.py [--shape llama-3.2-1b qwen3-0.6b] [--device auto]

Reading is measured from memory in small and in huge pages (on CUDA: copying, those read and those
written), matrix products of large square matrices in each number format. Nothing can decode one
stream faster than the weights are read for each token, nor compute a prompt faster than the layers'
products.
"""

from __future__ import annotations

import argparse

import torch

from axion.bench.limits import matrix_rates, num_weights, read_rate
from axion.bench.shapes import shape_config, shapes
from axion.engine.device import resolve_device
from axion.engine.loader import build_model

# Formats of weights: what their products are computed in, and the bytes of each. Four bits come in
# groups of 32 with a scale of 16.
FORMATS = {
    "fp32": ("float32", 4.0),
    "bf16": ("bfloat16", 2.0),
    "int8": ("int8", 1.0),
    "int4": ("int8", 4.5 / 8),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = ["llama-3.2-1b", "qwen3-0.6b"]
    parser.add_argument("--shape", nargs="+", choices=shapes(), default=default)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    if device.type == "cuda":
        read = {"memory": read_rate(device)}
    else:
        read = {
            "small pages": read_rate(device, huge_pages=False),
            "huge pages": read_rate(device, huge_pages=True),
        }
    matrix = matrix_rates(device)
    print(f"{device}, {torch.get_num_threads()} threads")
    for name, rate in read.items():
        print(f"{name:14} {rate / 1e9:10.1f} GB/s")
    for kind, rate in matrix.items():
        print(f"{kind:14} {rate / 1e12:10.2f} tera-operations/s")
    for shape in arguments.shape:
        weights = num_weights(build_model(shape_config(shape)))
        assert weights is not None
        for name, (kind, num_bytes) in FORMATS.items():
            decode = max(read.values()) / (num_bytes * weights.read)
            text = f"{shape}, {name}: at most {decode:,.1f} tokens/s of one stream"
            if kind in matrix:
                text += f", {matrix[kind] / (2 * weights.layers):,.0f} of a prompt"
            print(text)


if __name__ == "__main__":
    main()
