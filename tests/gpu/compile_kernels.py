"""Compile the kernels for GPUs that are not there: `python -m tests.gpu.compile_kernels 80 90`.

Triton's compiler needs no device. Kernels are launched as ever, on tensors of the CPU, by a driver
that says which GPU it stands for; launches end when the machine code is there. Prints a line for
each kernel: its name, for which GPU, and the shared memory that a program takes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from axion.layers.kernels import attention, grouped
from axion.layers.kernels.activation import gated
from axion.layers.kernels.grouped import grouped_product, low_bit_product
from axion.layers.kernels.low_bit import unpack
from axion.layers.kernels.norm import rms_norm
from axion.layers.kernels.rotary import rotate
from axion.layers.kernels.sinkhorn import doubly_stochastic
from axion.layers.kernels.weights import LowBitWeight, low_bit_experts
from axion.layers.norm import RMSNorm
from tests.gpu.batches import make_batch


class AbsentGPU:
    """What the compiler asks of a driver."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch  # by which Triton keeps what it has compiled

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_instead(kernel: JITFunction, grid: Any) -> Callable[..., None]:
    def launch(*args: Any, **options: Any) -> None:
        compiled = kernel.run(*args, grid=grid, warmup=True, **options)
        assert compiled.asm["cubin"]
        print(compiled.metadata.name, compiled.metadata.target.arch, compiled.metadata.shared)

    return launch


def compile_all(capability: int) -> None:
    driver.set_active(AbsentGPU(capability))
    JITFunction.__getitem__ = compile_instead
    options: dict[str, Any] = {
        "device": torch.device("cpu"),
        "dtype": torch.bfloat16,
        "block_size": 16,
    }
    attention._num_splits = lambda *_: 8
    grouped._num_splits = lambda *_: 2
    batch = make_batch([(1, 50), (70, 3)], num_heads=32, num_kv_heads=8, head_dim=128, **options)
    of_heads = {"sinks": torch.zeros(32), "alibi_slopes": torch.zeros(32)}
    batch.run(attention.paged_attention, window=20, softcap=3.0, chunk=30, **of_heads)
    latent = {"head_dim": 576, "v_head_dim": 512, "values_in_keys": True}
    batch = make_batch([(1, 50)], num_heads=128, num_kv_heads=1, **latent, **options)
    batch.run(attention.paged_attention)
    x = torch.zeros(4, 4096, dtype=torch.bfloat16)
    rms_norm(x, x, x[0], 1e-5, offset=0.0, rounds_first=True)
    rms_norm(x, None, x[0], 1e-5, offset=1.0, rounds_first=False)
    gated("silu", x, x)
    gated("gelu_tanh", x, x)
    cos = torch.zeros(4, 1, 64, dtype=torch.bfloat16)
    rotate(x.view(4, 64, 64), cos, cos, interleaved=False)
    rotate(x.view(4, 32, 128), cos, cos, interleaved=True)
    norm = RMSNorm(128, 1e-5).bfloat16()
    rotate(x.view(4, 32, 128), cos, cos, norm, interleaved=False)
    doubly_stochastic(torch.zeros(4, 4, 4), 1e-6, 20)
    experts, ends = (
        torch.zeros(2, 64, 4096, dtype=torch.bfloat16),
        torch.zeros(2, dtype=torch.int32),
    )
    bytes_ = torch.zeros(64, 4096, dtype=torch.uint8)
    words, of_groups = bytes_.view(torch.int32), bytes_[:, :128].contiguous()
    halves, factors = words[:, ::2].contiguous(), torch.zeros(64)
    of_blocks = bytes_[:, :256].contiguous().view(torch.float8_e4m3fn)
    numbers = {"scales": torch.zeros(64, 64), "numbers": torch.zeros(16)}
    uint4 = LowBitWeight("uint4", halves, (1, 32), of_groups.bfloat16(), of_groups)
    mxfp4 = LowBitWeight("e2m1", halves, (1, 32), of_groups.view(torch.float8_e8m0fnu))
    nvfp4 = LowBitWeight("e2m1", halves, (1, 16), of_blocks, factors=factors)
    nf4 = LowBitWeight("table", halves, (1, 64), **numbers)
    e4m3 = LowBitWeight("e4m3", words, (128, 128), torch.zeros(1, 32))
    int8 = LowBitWeight("int8", words, (1, 4096), factors=factors)
    for num_rows in (4, 256):
        grouped_product(x.repeat(num_rows // 4, 1), experts, ends)
    for low_bit in (mxfp4, nvfp4, e4m3):
        grouped_product(x, low_bit_experts([low_bit] * 2), ends)
    for num_rows, low_bit in ((4, uint4), (4, nf4), (32, e4m3), (64, int8), (64, nf4)):
        low_bit_product(x.repeat(num_rows // 4, 1), low_bit)
    for low_bit in (uint4, nf4, int8):
        low_bit_product(x[:1], low_bit)
        low_bit_product(x.repeat(50, 1), low_bit)
        unpack(low_bit, 4096, torch.bfloat16)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        compile_all(int(argument))
