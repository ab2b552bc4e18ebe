"""What this machine's memory and processors reach, and the tokens a second that would be.

    python benchmarks/roofline.py [--shape llama-3.2-1b qwen3-0.6b] [--device cpu] [--json]

Reading is measured from memory in small and in huge pages (on CUDA: copying, those read and those
written), matrix products of large square matrices in each number format. Nothing can decode one
stream faster than the weights are read for each token, nor compute a prompt faster than the layers'
products.
"""

from __future__ import annotations

import argparse
import json

import torch

from axion.bench.limits import matrix_rates, num_weights, read_rate
from axion.bench.shapes import shape_config, shapes
from axion.engine.loader import build_model, resolve_device

# Four bits in groups of 32 with a scale of 16.
BYTES = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "int4": 4.5 / 8}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = ["llama-3.2-1b", "qwen3-0.6b"]
    parser.add_argument("--shape", nargs="+", choices=shapes(), default=default)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true")
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
    fastest = max(read.values())
    decode: dict[str, dict[str, float]] = {}
    prefill: dict[str, dict[str, float]] = {}
    for name in arguments.shape:
        weights = num_weights(build_model(shape_config(name)))
        assert weights is not None
        decode[name] = {kind: fastest / (size * weights.read) for kind, size in BYTES.items()}
        prefill[name] = {kind: rate / (2 * weights.layers) for kind, rate in matrix.items()}
    if arguments.json:
        print(json.dumps({"read": read, "matrix": matrix, "decode": decode, "prefill": prefill}))
        return
    print(f"{device}, {torch.get_num_threads()} threads")
    for name, rate in read.items():
        print(f"{name:14} {rate / 1e9:10.1f} GB/s")
    for kind, rate in matrix.items():
        print(f"{kind:14} {rate / 1e12:10.2f} tera-operations/s")
    for title, table in (("one stream", decode), ("a prompt", prefill)):
        for name, rates in table.items():
            text = ", ".join(f"{kind} {rate:,.1f}" for kind, rate in rates.items())
            print(f"{name}, {title}, at most tokens/s: {text}")


if __name__ == "__main__":
    main()
