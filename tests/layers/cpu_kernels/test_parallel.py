"""Kernels are computed by torch's threads, each its part."""

from __future__ import annotations

import pytest
import torch

from axion.layers import cpu_kernels

if not cpu_kernels.work():
    pytest.skip("kernels do not work on this machine", allow_module_level=True)

from axion.layers.cpu_kernels.parallel import parallel

MAKERS = "tests.layers.cpu_kernels.makers"
fill = parallel(f"{MAKERS}:fill", integers=2, floats=1)
count_threads = parallel(f"{MAKERS}:count_threads", integers=1)


@pytest.fixture(params=[1, 2, 3])
def num_threads(request: pytest.FixtureRequest):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_each_thread_computes_its_share_and_none_is_left_out(num_threads: int) -> None:
    for count in (0, 1, 2, 7):
        out = torch.full((count + 1, 16), -1.0)
        fill(3)(out.data_ptr(), count, 0.5)
        expected = [1.5 * i for i in range(count)] + [-1.0]
        assert out.tolist() == [[number] * 16 for number in expected]


def test_threads_are_those_of_torch(num_threads: int) -> None:
    out = torch.zeros(4, 16)
    count_threads()(out.data_ptr())
    assert out[:, 0].tolist() == [num_threads] * num_threads + [0] * (4 - num_threads)


def test_what_one_thread_computes_stays_when_another_loads_it_too() -> None:
    kernel = fill(3)
    first, _ = kernel.load(), kernel.load()
    out = torch.zeros(2, 16)
    first(kernel._pack(out.data_ptr(), 2, 0.5))
    assert out[:, 0].tolist() == [0, 1.5]
