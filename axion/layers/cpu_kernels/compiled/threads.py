"""The threads that compute a kernel."""

from __future__ import annotations

import numba
from numba import types

_thread = types.ExternalFunction("omp_get_thread_num", types.int32())
_num_threads = types.ExternalFunction("omp_get_num_threads", types.int32())
_barrier = types.ExternalFunction("GOMP_barrier", types.void())


@numba.njit(error_model="numpy")
def share(count: int) -> tuple[int, int]:
    """This thread's part of `range(count)`: its start and its end."""
    thread, num_threads = _thread(), _num_threads()
    return count * thread // num_threads, count * (thread + 1) // num_threads


@numba.njit
def thread() -> int:
    """This thread's number."""
    return _thread()


@numba.njit
def num_threads() -> int:
    """How many compute the kernel."""
    return _num_threads()


@numba.njit
def barrier() -> None:
    """Wait for all threads to come here."""
    _barrier()
