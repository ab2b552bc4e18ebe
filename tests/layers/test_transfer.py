"""What goes to the device in one piece arrives as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from axion.layers.transfer import _pack, pack_to_device

CPU = torch.device("cpu")


@pytest.mark.parametrize("pack", [pack_to_device, _pack])
def test_arrays_of_any_shape_arrive_as_they_were(pack):
    shapes = [(5,), (0,), (2, 17), (1, 3, 16)]
    arrays = [np.random.default_rng(0).integers(0, 9, shape) for shape in shapes]
    tensors = pack(arrays, CPU)
    assert [tensor.shape for tensor in tensors] == shapes
    for array, tensor in zip(arrays, tensors, strict=True):
        assert tensor.is_contiguous()
        assert np.array_equal(array, tensor.numpy())


def test_every_part_is_aligned():
    first, *parts = _pack([np.arange(3), np.arange(17), np.arange(2)], CPU)
    assert [(part.data_ptr() - first.data_ptr()) % 128 for part in parts] == [0, 0]
