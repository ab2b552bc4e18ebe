"""The small kernels against what torch computes in several passes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from axion.layers import kernels
from axion.layers.activation import ACTIVATIONS, apply_gate
from axion.layers.hyper_connections import HyperConnection
from axion.layers.norm import Float32RMSNorm, OffsetRMSNorm, RMSNorm, add_and_norm
from axion.layers.rotary import apply_rotary, apply_rotary_interleaved

pytest.importorskip("triton")
# numpy says so, and the interpreter goes on with infinity, as the hardware does.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp")
DTYPES = [torch.float32, torch.bfloat16]


def compare(
    compute: Callable[[], tuple[Tensor, ...]], monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """The same with kernels and without."""
    results = []
    for has_kernels in (True, False):
        monkeypatch.setattr(kernels, "run_on", lambda _, answer=has_kernels: answer)
        results.append(compute())
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("norm_cls", [RMSNorm, Float32RMSNorm, OffsetRMSNorm])
def test_norms(
    norm_cls: type[RMSNorm],
    dtype: torch.dtype,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    norm = norm_cls(24, 1e-3).to(device, dtype)
    norm.weight.copy_(torch.linspace(-1, 2, 24))
    x, residual = torch.randn(2, 3, 24, device=device).to(dtype)
    # Heads as they lie in the projection that they are a part of.
    heads = torch.randn(3, 60, device=device).to(dtype)[:, 5:53].unflatten(1, (2, 24))

    def compute() -> tuple[Tensor, ...]:
        return norm(x), norm(heads), *add_and_norm(x, residual, norm)

    compare(compute, monkeypatch, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["silu", "gelu_pytorch_tanh", "relu"])
def test_gated_activations(
    name: str, dtype: torch.dtype, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, up = (3 * torch.randn(3, 2600, device=device)).to(dtype).split((1300, 1300), dim=-1)
    compare(lambda: (apply_gate(ACTIVATIONS[name], gate, up),), monkeypatch, dtype)


def heads_and_tables(
    num_heads: int, head_dim: int, num_pairs: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Three tokens' heads as they lie in a projection, and what they are rotated by."""
    x = torch.randn(3, 7 + num_heads * head_dim, device=device).to(dtype)
    x = x[:, 7:].unflatten(1, (num_heads, head_dim))
    angles = torch.randn(3, 1, num_pairs, device=device)
    cos = angles.cos().to(dtype).repeat(1, 1, 2)
    sin = torch.cat((-angles.sin(), angles.sin()), dim=-1).to(dtype)
    return x, cos, sin


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rotate", [apply_rotary, apply_rotary_interleaved])
@pytest.mark.parametrize(("num_heads", "head_dim", "num_pairs"), [(5, 16, 8), (1, 20, 6)])
def test_rotary(
    rotate: Callable[[Tensor, Tensor, Tensor], Tensor],
    num_heads: int,
    head_dim: int,
    num_pairs: int,
    dtype: torch.dtype,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, cos, sin = heads_and_tables(num_heads, head_dim, num_pairs, dtype, device)
    compare(lambda: (rotate(x, cos, sin),), monkeypatch, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rotate", [apply_rotary, apply_rotary_interleaved])
@pytest.mark.parametrize("norm_cls", [RMSNorm, OffsetRMSNorm])
def test_norm_before_rotary(
    rotate: Callable[..., Tensor],
    norm_cls: type[RMSNorm],
    dtype: torch.dtype,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    norm = norm_cls(20, 1e-3).to(device, dtype)
    norm.weight.copy_(torch.linspace(-1, 2, 20))
    x, cos, sin = heads_and_tables(5, 20, 6, dtype, device)
    compare(lambda: (rotate(x, cos, sin, norm),), monkeypatch, dtype)


@pytest.mark.parametrize(("num_streams", "eps"), [(4, 1e-6), (3, 0.0)])
def test_streams_are_mixed(
    num_streams: int, eps: float, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = HyperConnection(num_streams, 8, norm_eps=1e-6, eps=eps, num_iterations=7)
    mix = 3 * torch.randn(5, num_streams, num_streams, device=device)
    compare(lambda: (connection.doubly_stochastic(mix),), monkeypatch, torch.float32)
