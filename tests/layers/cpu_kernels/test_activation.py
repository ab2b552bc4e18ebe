"""Activations compute what torch does, gated ones in one pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from axion.layers import cpu_kernels
from axion.layers.activation import ACTIVATIONS, apply, apply_gate

if not cpu_kernels.work():
    pytest.skip("kernels do not work on this machine", allow_module_level=True)

ByTorch = Callable[[Callable[[], Tensor]], Tensor]
GATED = ["silu", "gelu_pytorch_tanh"]
UNGATED = {name: ACTIVATIONS[name] for name in (*GATED, "gelu", "relu", "relu2")}
UNGATED["sigmoid"] = torch.sigmoid
LARGE = [80.0, 100.0, 3e38, torch.inf]
EXTREMES = [0.0, -0.0, 1e-30, -1e-30, *LARGE, *(-x for x in LARGE)]


def gate_and_up(num_rows: int, size: int) -> tuple[Tensor, Tensor]:
    """Parts of one projection."""
    gate, up = (4 * torch.randn(num_rows, 2 * size)).bfloat16().split((size, size), dim=-1)
    return gate, up


@pytest.mark.parametrize("name", GATED)
@pytest.mark.parametrize(("num_rows", "size"), [(1, 16), (3, 1040), (40, 1024)])
def test_gates_are_applied(
    name: str, num_rows: int, size: int, num_threads: int, by_torch: ByTorch
) -> None:
    activation = ACTIVATIONS[name]
    gate, up = gate_and_up(num_rows, size)
    for gates in (gate, gate.t().contiguous().t()):
        result = apply_gate(activation, gates, up)
        expected = by_torch(lambda x=gates: apply_gate(activation, x, up))
        # torch's tanh rounds what is left near -1.
        torch.testing.assert_close(result, expected, rtol=2**-7, atol=1e-5)
        differ = (result != expected) & (gates > -2)
        assert differ.float().mean() < 0.001


@pytest.mark.parametrize("name", GATED)
def test_extremes_are_those_of_torch(name: str, by_torch: ByTorch) -> None:
    activation = ACTIVATIONS[name]
    gate = torch.tensor([[*EXTREMES, torch.nan, *range(1, 4)]]).bfloat16()
    up = torch.ones_like(gate)
    result = apply_gate(activation, gate, up)
    expected = by_torch(lambda: apply_gate(activation, gate, up))
    torch.testing.assert_close(result, expected, rtol=2**-7, atol=1e-30, equal_nan=True)


@pytest.mark.parametrize("name", UNGATED)
def test_activations_without_a_gate(name: str, num_threads: int, by_torch: ByTorch) -> None:
    activation = UNGATED[name]
    torch.manual_seed(0)
    of_chance = (4 * torch.randn(9, 2 * 528)).bfloat16()
    # Torch's error function makes NaN and infinity of larger ones.
    extremes = [x for x in EXTREMES if abs(x) <= 100]
    few = torch.tensor([*extremes, torch.nan, *range(7)]).bfloat16()
    for x in (of_chance, of_chance[:, :528], few, of_chance[:0]):
        result, expected = apply(activation, x), by_torch(lambda x=x: apply(activation, x))
        # As above; where torch subtracts from 1, nothing may be left.
        torch.testing.assert_close(result, expected, rtol=2**-7, atol=1e-5, equal_nan=True)
        differ = (result != expected) & (x > -2)
        assert differ.sum() < 0.001 * x.numel() + 1


def test_a_row_is_the_same_among_others() -> None:
    gate, up = gate_and_up(40, 1024)
    together = apply_gate(ACTIVATIONS["silu"], gate, up)
    assert torch.equal(together[7:8], apply_gate(ACTIVATIONS["silu"], gate[7:8], up[7:8]))
