"""Products with packed weights are those of torch, with the same bits for a row in any company."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from axion.layers import cpu_kernels, onednn

if not cpu_kernels.work():
    pytest.skip("kernels do not work on this machine", allow_module_level=True)

from axion.layers.cpu_kernels import MAX_ROWS, linear

EPS = torch.finfo(torch.bfloat16).eps
# in_features, out_features: whole blocks and pieces; more than a piece; parts of a block.
SHAPES = [(256, 256), (384, 192), (992, 331)]


def packed(out_features: int, in_features: int) -> tuple[Tensor, Tensor, int]:
    """A weight, what keeps it, and its address."""
    weight = torch.randn(out_features, in_features).bfloat16()
    kept = onednn.pack(weight)
    view = onednn.rows_view(kept, weight)
    if view is None:
        pytest.skip("oneDNN lays weights out in another way on this CPU")
    return weight, kept, view.data_ptr()


@pytest.fixture(params=[1, 2])
def num_threads(request: pytest.FixtureRequest):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("num_threads")
@pytest.mark.parametrize(("in_features", "out_features"), SHAPES)
def test_the_product_is_that_of_torch(in_features: int, out_features: int) -> None:
    torch.manual_seed(0)
    weight, _kept, address = packed(out_features, in_features)
    for num_rows in (0, *range(1, 20), MAX_ROWS + 3):
        x = torch.randn(num_rows, in_features).bfloat16()
        out = linear.linear(x, address, out_features)
        expected = F.linear(x.float(), weight.float())
        assert out.shape == expected.shape
        assert (out.float() - expected).norm() <= EPS / 2 * expected.norm()


def test_a_row_has_the_same_bits_in_any_company() -> None:
    _weight, _kept, address = packed(320, 480)
    x = torch.randn(2 * MAX_ROWS, 480).bfloat16()
    out = linear.linear(x, address, 320)
    for start, end in ((0, 1), (5, 7), (1, 12), (3, 100), (190, 194)):
        assert torch.equal(linear.linear(x[start:end], address, 320), out[start:end])


def test_a_row_of_nan_stays_alone() -> None:
    _weight, _kept, address = packed(256, 256)
    x = torch.randn(9, 256).bfloat16()
    x[4, 3] = torch.nan
    out = linear.linear(x, address, 256)
    assert out.isnan().any(1).tolist() == [row == 4 for row in range(9)]
    assert out[4].isnan().all()


def test_inputs_may_have_more_dimensions_and_lie_apart() -> None:
    weight, _kept, address = packed(256, 256)
    x = torch.randn(3, 256, 2).bfloat16().transpose(1, 2)
    out = linear.linear(x, address, 256)
    assert out.shape == (3, 2, 256)
    torch.testing.assert_close(out.float(), x.float() @ weight.float().T, rtol=EPS, atol=0.1)
