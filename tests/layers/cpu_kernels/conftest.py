"""What the tests of kernels share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from axion.layers import cpu_kernels


@pytest.fixture(params=[1, 3], ids=lambda number: f"{number}-threads")
def num_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def by_torch(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Tensor]], Tensor]:
    """What a function computes without kernels."""

    def compute(function: Callable[[], Tensor]) -> Tensor:
        with monkeypatch.context() as patch:
            patch.setattr(cpu_kernels, "run_on", lambda _: False)
            return function()

    return compute
