"""Functions that numba compiles, computed by all threads of torch's own OpenMP pool.

Threads of another pool would wait for cores on which torch's threads spin, so a kernel borrows
those: it is entered through the `GOMP_parallel` of the OpenMP library that torch itself has loaded
(GCC's libgomp, or LLVM's and Intel's, which have that entry, too).
"""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numba
import torch
from numba import types

_thread = types.ExternalFunction("omp_get_thread_num", types.int32())
_num_threads = types.ExternalFunction("omp_get_num_threads", types.int32())
barrier = types.ExternalFunction("GOMP_barrier", types.void())
"""Waits for the other threads of the kernel."""


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
    # A folder for each state of this package: numba itself looks only at the file that a kernel is
    # in, and not at those that it calls.
    sources = b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py")))
    root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    folder = root / "axion" / "kernels" / hashlib.sha256(sources).hexdigest()[:16]
    numba.config.CACHE_DIR = str(folder)
    return library


class ParallelKernel:
    """A function of the arguments' address, in which each thread computes its share.

    It is compiled when it is first called, or found in the cache of an earlier process. It must not
    raise: the threads of OpenMP have nobody to tell.
    """

    def __init__(self, function: Callable[[Any], None], integers: int, floats: int) -> None:
        self._function = function
        self._types = types.Tuple([types.int64] * integers + [types.float64] * floats)
        kinds = [ctypes.c_int64] * integers + [ctypes.c_double] * floats
        fields = [(f"_{i}", kind) for i, kind in enumerate(kinds)]
        self._arguments = type("Arguments", (ctypes.Structure,), {"_fields_": fields})
        self._address: ctypes.c_void_p | None = None

    def __call__(self, *arguments: float) -> None:
        """Compute on as many threads as torch does.

        Args:
            arguments: integers (some are addresses), then floats.
        """
        address = self._address or self.compile()
        _openmp().GOMP_parallel(
            address, ctypes.byref(self._arguments(*arguments)), torch.get_num_threads(), 0
        )

    def compile(self) -> ctypes.c_void_p:
        """Its address. Raises whatever numba, LLVM or the loader of libraries does."""
        _openmp()
        signature = types.void(types.CPointer(self._types))
        # Kept, because it owns the code.
        self._compiled = numba.cfunc(signature, cache=True)(self._function)
        self._address = ctypes.c_void_p(self._compiled.address)
        return self._address


def parallel(*, integers: int, floats: int = 0) -> Callable[[Callable[[Any], None]], ParallelKernel]:
    """Make a kernel of a function whose `arguments[0]` is a tuple of so many numbers."""
    return lambda function: ParallelKernel(function, integers, floats)


@numba.njit
def share(count: int) -> tuple[int, int]:
    """This thread's part of `range(count)`: its start and its end."""
    thread, num_threads = _thread(), _num_threads()
    return count * thread // num_threads, count * (thread + 1) // num_threads
