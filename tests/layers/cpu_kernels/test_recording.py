"""A recording computes of each step what the function would, or there is none."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from axion.layers import cpu_kernels
from axion.layers.context import Addressed, ForwardContext

if not cpu_kernels.work():
    pytest.skip("kernels do not work on this machine", allow_module_level=True)

from axion.layers.cpu_kernels.activation import gated
from axion.layers.cpu_kernels.recording import Memory, NotRecordableError, Recording

SIZE = 48


def step(*positions: int) -> ForwardContext:
    """One token of each sequence."""
    lengths = torch.tensor(positions)
    return ForwardContext(
        positions=lengths,
        rope_lengths=lengths,
        slot_mapping=lengths[None],
        block_tables=lengths[None, :, None],
        context_lens=lengths,
        query_lens=[1] * len(positions),
        context_lens_list=list(positions),
        kv_caches=[],
        block_size=16,
    )


def table(context: ForwardContext) -> tuple[Tensor, Tensor]:
    rows = (context.positions[:, None] + torch.arange(SIZE)).bfloat16() / 64
    return rows, -rows


def compute(context: ForwardContext, *, bias: Tensor) -> Tensor:
    """Results of several sizes, which come and go, of what is the step's."""
    a, b = context.once("table", table)
    out = a
    for _ in range(5):
        out = gated("silu", out, b) + a + bias
        longer = gated("silu", *torch.empty(2, 7, SIZE, dtype=a.dtype))  # nobody reads it
        out = out + gated("silu", a, out).view(out.shape)
        del longer
    return out


@pytest.mark.usefixtures("num_threads")
def test_each_step_is_computed_anew() -> None:
    function = partial(compute, bias=torch.randn(SIZE).bfloat16())
    recording = Recording(function, step(3, 5), Memory())
    assert torch.equal(recording.result, function(step(3, 5)))
    for positions in ((3, 5), (100, 2), (7, 7)):
        result = recording.replay(step(*positions))
        assert result is recording.result
        assert torch.equal(result, function(step(*positions)))


def test_recordings_share_memory_and_keep_their_results() -> None:
    memory = Memory()
    function = partial(compute, bias=torch.ones(SIZE).bfloat16())
    first = Recording(function, step(1, 2), memory)
    num_free = sum(len(free) for free in memory._free.values())
    assert 0 < num_free < 6, "of 20 results few are needed at once"
    second = Recording(function, step(4, 9), memory)
    assert sum(len(free) for free in memory._free.values()) == num_free
    before = first.replay(step(8, 8)).clone()
    second.replay(step(6, 7))
    assert torch.equal(first.result, before)


def test_what_a_kernel_finds_by_addresses_may_change_its_size() -> None:
    given: list[Addressed] = []

    def build(context: ForwardContext) -> Addressed:
        tensor = torch.arange(int(context.positions[0]))
        given.append(Addressed(torch.tensor((tensor.data_ptr(), len(tensor))), (tensor,)))
        return given[-1]

    def function(context: ForwardContext) -> Tensor:
        numbers = context.each_step(build).numbers
        assert numbers[0].data_ptr() == numbers.data_ptr()
        return gated("silu", *torch.empty(2, 1, 16, dtype=torch.bfloat16))

    recording = Recording(function, step(3), Memory())
    recording.replay(step(500))
    kept, new = given
    assert torch.equal(kept.numbers, new.numbers)


X = torch.ones(2, SIZE).bfloat16()
REFUSED: dict[str, Callable[[ForwardContext], object]] = {
    "a product": lambda _: F.linear(X, X),
    "a sum of other numbers": lambda _: X.float() + 1,
    "a sum in place": lambda _: X.add_(X),
    "a copy": lambda _: X.T.contiguous(),
    "a value": lambda _: X[0, 0].item(),
    "values": lambda _: X.tolist(),
    "an array": lambda _: X.float().numpy(),
    "a condition": lambda _: bool(X[0, 0]),
    "zeros": lambda _: torch.zeros(3),
    "a list of each step": lambda context: context.each_step(lambda step: step.context_lens_list),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_a_kernel_s_is_not_recorded(case: str) -> None:
    def function(context: ForwardContext) -> Tensor:
        REFUSED[case](context)
        return gated("silu", X, X)

    with pytest.raises(NotRecordableError):
        Recording(function, step(1, 2), Memory())
    assert torch.equal(X, torch.ones_like(X))


@pytest.mark.parametrize(
    "name", ["positions", "slot_mapping", "block_tables", "context_lens_list", "state_runs"]
)
def test_the_step_itself_is_not_there(name: str) -> None:
    with pytest.raises(AttributeError, match=name):
        Recording(lambda context: getattr(context, name), step(1, 2), Memory())


def test_torch_s_compiler_is_not_imported_for_it() -> None:
    """It would take a model's process 150 MB and a second."""
    program = """
import sys
import torch
from axion.layers.cpu_kernels.recording import Memory, _Recorder
with _Recorder(Memory()):
    torch.empty(16).view(4, 4)
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
