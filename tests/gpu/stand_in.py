"""A CUDA device that is not there, so that what runs only on one can be run without.

Its tensors say `cuda` and lie in the host's memory. What a GPU would refuse is refused: operations
that mix its tensors with the host's, products that its libraries do not have, and, while
`torch.cuda.set_sync_debug_mode("error")` holds or a graph is captured, all that makes the host
wait: a tensor's value read, a mask as an index, a copy that is not asynchronous. What is on its way
to the host is not there before it has been waited for.

Devices have numbers here: `cuda:0`, not `cuda`.

Triton's kernels are interpreted where Triton interprets (`TRITON_INTERPRET=1`). Elsewhere they are
not run, and what they would write stays zero.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from tests.engine.recorded_graph import RecordedGraph, Recording

aten = torch.ops.aten

# They tell the host a value, or their result is as large as only the device knows.
_WAITING = {
    aten._local_scalar_dense.default,
    aten._unique2.default,
    aten.bincount.default,
    aten.equal.default,
    aten.masked_select.default,
    aten.nonzero.default,
    # Only Hopper and the GPUs that were first called Blackwell have it for bfloat16: for all others
    # torch asks where the groups end.
    aten._grouped_mm.default,
}
_OF_FLOATS = {aten.mm.default, aten.bmm.default, aten.addmm.default, aten.baddbmm.default}
_INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
_UNFILLED = {aten.empty.memory_format, aten.empty_like.default, aten.new_empty.default}
_ON_ITS_WAY = 90  # what is read of a copy before it has been waited for


class OnDevice(Tensor):
    """A tensor of the device; `host` is what it holds."""

    host: Tensor

    @staticmethod
    def __new__(cls, host: Tensor) -> OnDevice:
        with torch.inference_mode(host.is_inference()):
            tensor = Tensor._make_wrapper_subclass(
                cls,
                host.shape,
                strides=host.stride(),
                storage_offset=host.storage_offset(),
                dtype=host.dtype,
                device=torch.device("cuda", 0),
            )
        tensor.host = host
        return tensor

    def __repr__(self) -> str:
        return f"OnDevice({list(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is Tensor.data_ptr:
            return args[0].host.data_ptr()
        if func is Tensor.untyped_storage:
            return args[0].host.untyped_storage()
        if func is Tensor.set_:  # what wraps a tensor cannot change its shape
            return OnDevice(args[0].host.set_(*args[1:]))
        if func is Tensor.tolist:
            return args[0].cpu().tolist()
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func}: the device of this tensor is not there any more")


class StandIn(TorchDispatchMode):
    """The device.

    Attributes:
        launches: of Triton's kernels, how many of each.
        stream: the current one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.stream: object = "default"
        self._sync_debug_mode = "default"
        self._graph: RecordedGraph | None = None  # that is being captured
        self._pinned: dict[int, torch.UntypedStorage] = {}
        self._num_fetched = 0
        self._on_their_way: list[tuple[int, Tensor, Tensor]] = []

    def wait(self, what: object) -> None:
        """The host waits for all that the device was given to do."""
        if self._graph is not None:
            raise RuntimeError(f"{what}: operation not permitted when stream is capturing")
        if self._sync_debug_mode == "error":
            raise RuntimeError(f"{what}: called a synchronizing CUDA operation")
        self._arrive(self._num_fetched)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in (aten.pin_memory.default, aten._pin_memory.default):
            return self._pin(args[0].clone())
        if func is aten._fused_sdp_choice.default:
            return 0  # by other operations
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self:
                return func.decompose(*args, **kwargs)
        if func is aten.copy_.default:
            return self._copy(*args, **kwargs)
        if func is aten._to_copy.default:
            return self._to_copy(*args, **kwargs)
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        own = {id(x.host): x for x in tensors if isinstance(x, OnDevice)}
        device = kwargs.get("device")
        if own or (device is not None and device.type == "cuda"):
            self._check(func, args, kwargs, tensors)
            if device is not None:
                kwargs["device"] = torch.device("cpu")
            args, kwargs = tree_map_only(OnDevice, lambda x: x.host, (args, kwargs))
            found = func(*args, **kwargs)
            if func in _UNFILLED:
                found.zero_()
            # What is written in place is what it was.
            return tree_map_only(
                Tensor, lambda x: own[id(x)] if id(x) in own else OnDevice(x), found
            )
        is_pinned = kwargs.pop("pin_memory", False)
        found = func(*args, **kwargs)
        return self._pin(found) if is_pinned else found

    def _check(self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> None:
        for x in tensors:
            if x.ndim and not isinstance(x, OnDevice):
                raise RuntimeError(
                    f"{func}: a tensor {list(x.shape)} is on the CPU, others are not"
                )
        if func in _WAITING:
            self.wait(func)
        if func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None:
            self.wait(func)
        is_mask = func in _INDEXING and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        # One number is written to where a mask is without asking where that is.
        if is_mask and (func is aten.index.Tensor or args[2].ndim):
            self.wait(func)
        if func in _OF_FLOATS and not args[-1].is_floating_point():
            raise RuntimeError(f"{func} is not implemented for {args[-1].dtype}")
        if func is aten._int_mm.default:
            (num_rows, size), num_columns = args[0].shape, args[1].shape[1]
            assert num_rows > 16, "cuBLAS has no such product"
            assert not size % 8 | num_columns % 8, "cuBLAS has no such product"
        if func is aten._scaled_mm.default:
            size, num_columns = args[1].shape
            assert not size % 16 | num_columns % 16, "cuBLAS has no such product"
            assert args[0].stride(1) == args[1].stride(0) == 1, "cuBLAS has no such product"

    def _copy(self, place: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        if isinstance(place, OnDevice):
            if not isinstance(source, OnDevice):
                self._send(source, non_blocking)
            place.host.copy_(getattr(source, "host", source))
        elif isinstance(source, OnDevice):
            self._fetch(place, source.host.to(place.dtype), non_blocking)
        else:
            place.copy_(source)
        return place

    def _to_copy(
        self,
        source: Tensor,
        device: torch.device | None = None,
        non_blocking: bool = False,
        pin_memory: bool | None = None,
        **kwargs: Any,
    ) -> Tensor:
        device = device or source.device
        found = aten._to_copy.default(getattr(source, "host", source), **kwargs)
        if device.type == "cuda":
            if not isinstance(source, OnDevice):
                self._send(source, non_blocking)
            return OnDevice(found)
        if not isinstance(source, OnDevice):
            return found
        place = torch.empty_like(found)
        self._fetch(self._pin(place) if non_blocking else place, found, non_blocking)
        return place

    def _send(self, source: Tensor, non_blocking: bool) -> None:
        if self._graph is not None:
            raise RuntimeError("a graph would send what lies there when it is replayed")
        if not (non_blocking and self._is_pinned(source)):
            self.wait("a copy to the device")
        self._arrive(self._num_fetched)  # they come before, in the device's queue

    def _fetch(self, place: Tensor, value: Tensor, non_blocking: bool) -> None:
        if not (non_blocking and self._is_pinned(place)):
            self.wait("a copy to the host")
            place.copy_(value)
            return
        if self._graph is not None:
            raise RuntimeError("a graph would fetch what nobody waits for")
        place.fill_(_ON_ITS_WAY)
        self._num_fetched += 1
        self._on_their_way.append((self._num_fetched, place, value.clone()))

    @torch.inference_mode()
    def _arrive(self, num_fetched: int) -> None:
        """The first of the copies to the host are there."""
        while self._on_their_way and self._on_their_way[0][0] <= num_fetched:
            _, place, value = self._on_their_way.pop(0)
            place.copy_(value)

    def _pin(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self._pinned[storage.data_ptr()] = storage  # kept, so that nothing else comes to lie there
        return tensor

    def _is_pinned(self, tensor: Tensor) -> bool:
        return not tensor.numel() or tensor.untyped_storage().data_ptr() in self._pinned

    def launch(self, kernel: Any, grid: tuple[int, ...], args: Any, options: Any) -> None:
        """Run a Triton kernel."""
        if self._graph is not None:
            self._graph.calls.append((self.launch, (kernel, grid, args, options), {}, None))
        for x in tree_leaves((args, options)):
            if isinstance(x, Tensor) and not isinstance(x, OnDevice):
                raise ValueError("Pointer argument cannot be accessed from Triton (cpu tensor?)")
        self.launches[kernel.fn.__name__] += 1
        if type(kernel).__name__ == "InterpretedFunction":
            args, options = tree_map_only(OnDevice, lambda x: x.host, (args, options))
            with torch.utils._python_dispatch._disable_current_modes():
                kernel.run(*args, grid=grid, warmup=False, **options)

    @contextmanager
    def capture(self, graph: RecordedGraph, **_: Any) -> Iterator[None]:
        """`torch.cuda.graph`."""
        outer, self.stream = self.stream, "of captures"
        self._graph = graph
        try:
            with Recording(graph):
                yield
        except Exception:  # torch does so where it cannot end the capture, and keeps the stream
            raise RuntimeError("operation failed due to a previous error during capture")  # noqa: B904
        finally:
            self._graph = None
        self.stream = outer

    def event(self) -> SimpleNamespace:
        """`torch.cuda.Event`."""
        event = SimpleNamespace(num_fetched=0)
        event.record = lambda: setattr(event, "num_fetched", self._num_fetched)
        event.synchronize = lambda: self._arrive(event.num_fetched)
        return event

    def set_stream(self, stream: object) -> None:
        """`torch.cuda.set_stream`."""
        self.stream = stream

    def set_sync_debug_mode(self, mode: str) -> None:
        """`torch.cuda.set_sync_debug_mode`."""
        self._sync_debug_mode = mode


@contextmanager
def stand_in() -> Iterator[StandIn]:
    """A device, which is there meanwhile."""
    device = StandIn()
    of_cuda = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "set_device": lambda _: None,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "is_bf16_supported": lambda **_: True,
        "get_device_properties": lambda _: SimpleNamespace(multi_processor_count=132),
        "mem_get_info": lambda _: (2**30, 2**31),
        "memory_reserved": lambda _: 0,
        "memory_allocated": lambda _: 0,
        "empty_cache": lambda: None,
        "synchronize": lambda _: None,
        "set_sync_debug_mode": device.set_sync_debug_mode,
        "current_stream": lambda: device.stream,
        "set_stream": device.set_stream,
        "Event": device.event,
        "CUDAGraph": RecordedGraph,
        "graph": device.capture,
        "graph_pool_handle": lambda: (0, 1),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in of_cuda.items():
            patch.setattr(torch.cuda, name, value)
        # Module.to would else put what a tensor holds into a parameter that is none of the device.
        patch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)
        from triton.runtime.jit import KernelInterface

        patch.setattr(
            KernelInterface,
            "__getitem__",
            lambda kernel, grid: lambda *args, **kwargs: device.launch(kernel, grid, args, kwargs),
        )
        _let_torch_know_a_guard()
        only_lift = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor` makes them, and copies
        try:
            with device:
                yield device
        finally:
            torch._C._set_only_lift_cpu_tensors(only_lift)


def _let_torch_know_a_guard() -> None:
    """torch asks for what switches to the tensor's device where one is indexed, which a build
    without CUDA lacks: that of the CPU does nothing."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * 2).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    cpu, cuda = 0, 1
    if guards[cuda] is None:
        guards[cuda] = guards[cpu]
