"""Kernels that all threads of torch's own OpenMP pool compute.

Threads of another pool would wait for cores on which torch's threads spin, so a kernel borrows
those: it is entered through the `GOMP_parallel` of the OpenMP library that torch itself has loaded
(GCC's libgomp, or LLVM's and Intel's, which have that entry, too).
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from struct import Struct
from typing import Any

import llvmlite.binding as llvm
import torch

from axion.layers.cpu_kernels import object_files
from axion.layers.cpu_kernels.object_files import ENTRY, Wanted


class ParallelKernel:
    """A compiled function of the arguments' address, in which each thread computes its share.

    Compiled when it is first called, or read from the cache of an earlier process.
    """

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._pack = Struct(f"{wanted.integers}q{wanted.floats}d").pack
        self._function: Callable[[bytes], None] | None = None
        self._address = 0
        self._engines: list[Any] = []  # own the code: as many as threads have loaded it at once

    def __call__(self, *arguments: float) -> None:
        """Compute on as many threads as torch does.

        Args:
            arguments: integers (some are addresses), then floats.
        """
        function, packed = self._function or self.load(), self._pack(*arguments)
        if _thread.note is not None:
            _thread.note(self._address, packed)
        _openmp().GOMP_parallel(function, packed, torch.get_num_threads(), 0)

    def alone(self, *arguments: float) -> None:
        """Compute on this thread, which has little work done before another has begun."""
        function, packed = self._function or self.load(), self._pack(*arguments)
        if _thread.note is not None:
            _thread.note(self._address, packed)
        function(packed)

    def load(self) -> Callable[[bytes], None]:
        """Compile it, or read it from the cache. Raises what `object_files.get` does, and what a
        linker does."""
        engine = link(object_files.get(self._wanted))
        self._engines.append(engine)
        self._address = engine.get_function_address(ENTRY)
        self._function = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(self._address)
        return self._function


class _Thread(threading.local):
    note: Callable[[int, bytes], None] | None = None


_thread = _Thread()


@contextmanager
def calls_noted(note: Callable[[int, bytes], None]) -> Iterator[None]:
    """Within it, each kernel that this thread calls is told: its address, and its arguments."""
    _thread.note = note
    try:
        yield
    finally:
        _thread.note = None


def parallel(name: str, *, integers: int, floats: int = 0) -> Callable[..., ParallelKernel]:
    """Kernels made by a function of this `module:name`, for what the function is given.

    The function is called in the process that compiles. It returns another, whose `arguments[0]` is
    a tuple of so many integers and floats; this one is compiled. It must not raise, for the threads
    of OpenMP have nobody to tell.
    """
    return cache(lambda *given: ParallelKernel(Wanted(name, given, integers, floats)))


@cache
def _openmp() -> Any:
    """torch's library, in which a look-up finds what it was linked with.

    Raises:
        OSError, AttributeError: torch computes without OpenMP.
    """
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    library = ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    for name in ("omp_get_thread_num", "omp_get_num_threads", "GOMP_barrier"):
        llvm.add_symbol(name, ctypes.cast(getattr(library, name), ctypes.c_void_p).value)
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return library


def link(code: bytes) -> Any:
    """LLVM's owner of the code of an object file, which knows the address of `ENTRY`."""
    _openmp()
    machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return engine
