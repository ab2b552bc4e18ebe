"""What goes to the device in one piece arrives as it was."""

from __future__ import annotations

import numpy as np
import torch

from axion.layers.transfer import pack_to_device

CPU = torch.device("cpu")


def test_arrays_of_any_shape_arrive_as_they_were():
    shapes = [(5,), (0,), (2, 17), (1, 3, 16)]
    arrays = [np.random.default_rng(0).integers(0, 9, shape) for shape in shapes]
    tensors = pack_to_device(arrays, CPU)
    assert [tensor.shape for tensor in tensors] == shapes
    for array, tensor in zip(arrays, tensors, strict=True):
        assert tensor.is_contiguous()
        assert np.array_equal(array, tensor.numpy())


def test_every_part_is_aligned():
    first, *parts = pack_to_device([np.arange(3), np.arange(17), np.arange(2)], CPU)
    assert [(part.data_ptr() - first.data_ptr()) % 128 for part in parts] == [0, 0]
