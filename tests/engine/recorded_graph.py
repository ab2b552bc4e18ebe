"""What a CUDA graph is, on any device: the tensor operations of a function, and nothing else of it.

As with CUDA's own, what Python decided while the function ran is decided for ever, tensors keep
their places, and asking for a tensor's value while it is recorded is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

aten = torch.ops.aten


class RecordedGraph:
    """A `Graph` of recorded operations."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def capture(self, function: Callable[[], None]) -> None:
        with Recording(self):
            function()

    def replay(self) -> None:
        current: dict[int, Tensor] = {}

        def now(tensor: Tensor) -> Tensor:
            return current.get(id(tensor), tensor)

        for operation, args, kwargs, recorded in self.calls:
            args, kwargs = tree_map_only(Tensor, now, (args, kwargs))
            result = operation(*args, **kwargs)
            for old, new in zip(tree_iter(recorded), tree_iter(result), strict=True):
                if isinstance(old, Tensor):
                    current[id(old)] = new


class Recording(TorchDispatchMode):
    def __init__(self, graph: RecordedGraph) -> None:
        super().__init__()
        self._calls = graph.calls

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        is_mask = operation is aten.index.Tensor and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if is_mask or operation in (aten.nonzero.default, aten._local_scalar_dense.default):
            raise RuntimeError(f"{operation} reads a value on the host while a graph is captured")
        result = operation(*args, **(kwargs or {}))
        self._calls.append((operation, args, kwargs or {}, result))
        return result
