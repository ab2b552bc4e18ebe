"""Kernels that are called again and again, recorded once and then called without Python.

A step that decodes is hundreds of kernels, and Python between two of them takes as long as some
of them do. What it does is the same in each step of as many tokens: it finds memory for results,
and packs addresses and sizes. So the arguments are kept, and a replay is a single call: the threads
come together once, go through all kernels, and wait for each other after each.

What is replayed must not depend on anything else, and that is seen to while it is recorded. A
context without the step's own tensors and lengths is passed down: what depends on these can only be
asked of `ForwardContext.each_step`, which a replay computes anew. And torch may compute nothing but
views and memory for results, other than there; sums and products are left to a kernel.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from axion.layers.context import Addressed, ForwardContext
from axion.layers.cpu_kernels.elementwise import can_compute, elementwise
from axion.layers.cpu_kernels.parallel import calls_noted, parallel

T = TypeVar("T")

_run = parallel(".compiled.recording:run", integers=2)

aten = torch.ops.aten
_ALLOCATIONS = (aten.empty.memory_format, aten.empty_like.default, aten.new_empty.default)
_ELEMENTWISE = {aten.add.Tensor: "add", aten.mul.Tensor: "multiply"}
# What they return are views, but they come before values are read.
_READS = (aten.resolve_conj.default, aten.resolve_neg.default)


class NotRecordableError(Exception):
    """What was to be recorded is more than kernels; says what."""


class Memory:
    """Memory of recorded results. What is no longer needed in one place is used in another, and in
    other recordings, of which one at a time is replayed."""

    def __init__(self) -> None:
        self._free: dict[int, list[Tensor]] = {}

    def empty_like(self, x: Tensor) -> Tensor:
        size = 1 << (x.nbytes - 1).bit_length()
        free = self._free.setdefault(size, [])
        buffer = free.pop() if free else torch.empty(size, dtype=torch.uint8)
        # Views have the array, too, and with the last of them it goes.
        array = buffer.numpy()
        weakref.finalize(array, free.append, buffer).atexit = False
        return torch.from_numpy(array)[: x.nbytes].view(x.dtype).view(x.shape)


class Recording:
    """What a model computes in steps of as many tokens as one has.

    Args:
        compute: the model, of all that it reads besides the context.
        context: of a step in which every sequence has one token.

    Attributes:
        result: what `compute` returned; a replay writes it anew.

    Raises:
        NotRecordableError: it cannot be replayed.
        Exception: whatever `compute` raises when it misses what a step has.
    """

    def __init__(
        self, compute: Callable[[ForwardContext], Tensor], context: ForwardContext, memory: Memory
    ) -> None:
        recorder = _Recorder(memory)
        # Otherwise torch does not tell that it reads values.
        with torch.inference_mode(), calls_noted(recorder.note), recorder:
            self.result = compute(_ContextOfAny(context, recorder))
        self._memory = memory  # also holds what is free, and is written by a replay
        self._inputs = recorder.inputs
        packed = b"".join(arguments for _, arguments in recorder.calls)
        self._arguments = torch.frombuffer(bytearray(packed), dtype=torch.int64).clone()
        calls, address = [], self._arguments.data_ptr()
        for kernel, arguments in recorder.calls:
            calls.append((kernel, address))
            address += len(arguments)
        self._calls = torch.tensor(calls)

    @torch.inference_mode()
    def replay(self, context: ForwardContext) -> Tensor:
        """The result for another step of as many sequences, valid until the next."""
        inputs = [build(context) for build, _ in self._inputs]
        for (_, recorded), new in zip(self._inputs, inputs, strict=True):
            _replace(recorded, new)
        _run()(self._calls.data_ptr(), len(self._calls))
        return self.result


class _Recorder(TorchDispatchMode):
    """Notes kernels, and what they need of each step; does not let torch compute."""

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self.calls: list[tuple[int, bytes]] = []
        self.inputs: list[tuple[Callable[[ForwardContext], Any], Any]] = []
        self._memory = memory
        self._is_paused = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Else torch imports its compiler, of 150 MB and a second, to say that it is not to be used.
        return False

    def note(self, kernel: int, arguments: bytes) -> None:
        if not self._is_paused:
            self.calls.append((kernel, arguments))

    def input(
        self, build: Callable[[ForwardContext], T], context: ForwardContext, step: ForwardContext
    ) -> T:
        """What kernels compute of what `context` has. Else what was computed of this step, to be
        computed anew of each."""
        num_calls = len(self.calls)
        try:
            return build(context)
        except (AttributeError, NotRecordableError):
            del self.calls[num_calls:]
        self._is_paused = True
        try:
            built = build(step)
        finally:
            self._is_paused = False
        _check(built)
        self.inputs.append((build, built))
        return built

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None):
        kwargs = kwargs or {}
        if self._is_paused:
            return operator(*args, **kwargs)
        if (name := _ELEMENTWISE.get(operator)) and not kwargs and can_compute(name, *args):
            with self:
                return elementwise(name, *args)
        if operator._schema.is_mutable or operator in _READS:
            raise NotRecordableError(f"torch computes {operator}")
        result = operator(*args, **kwargs)
        if operator in _ALLOCATIONS and result.is_contiguous():
            return self._memory.empty_like(result)
        memory = {_memory_of(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for x in tree_leaves(result):
            if not isinstance(x, Tensor) or _memory_of(x) not in memory:
                raise NotRecordableError(f"torch computes {operator}")
        return result


class _ContextOfAny(ForwardContext):
    """What a step has in common with all others. Whoever asks for more gets an AttributeError."""

    def __init__(self, step: ForwardContext, recorder: _Recorder) -> None:
        self.query_lens = step.query_lens
        self.kv_caches = step.kv_caches
        self.block_size = step.block_size
        self.batch_invariant = step.batch_invariant
        self._derived = {}
        self._step, self._recorder = step, recorder

    def each_step(self, build: Callable[[ForwardContext], T]) -> T:
        return self._recorder.input(build, self, self._step)


def _memory_of(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def _check(built: object) -> None:
    if isinstance(built, Addressed | Tensor):
        return
    if not isinstance(built, tuple):
        raise NotRecordableError(f"a step's {type(built).__name__} cannot be replaced")
    for part in built:
        _check(part)


def _replace(recorded: Any, new: Any) -> None:
    """Make kernels that were given the one read the other, which is to be kept meanwhile."""
    if isinstance(recorded, Addressed):
        recorded, new = recorded.numbers, new.numbers
    if isinstance(recorded, Tensor):
        assert recorded.shape == new.shape
        recorded.copy_(new)
        return
    for old_part, new_part in zip(recorded, new, strict=True):
        _replace(old_part, new_part)
