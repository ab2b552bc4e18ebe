"""What every command that loads a model shares: the model, its engine, and the progress."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from axion.backends.base import InferenceBackend, ModelConfig
from axion.settings import Settings, load_settings, shares

if TYPE_CHECKING:
    from rich.progress import TaskID

    from axion.router.served import RoutingPolicy

logger = logging.getLogger("axion")

LOG_INTERVAL_S = 5.0

# Stage, bytes done, bytes in all.
Show = Callable[[str, int, int], None]


def model_config(settings: Settings) -> ModelConfig:
    """The one model that the settings name."""
    kv_cache_gib, target_itl_ms = settings.kv_cache_gib, settings.target_itl_ms
    return ModelConfig(
        model_name=settings.model_name,
        served_name=settings.served_model_name,
        max_seq_len=settings.max_seq_len,
        max_num_seqs=settings.concurrent_requests,
        max_num_batched_tokens=settings.max_batched_tokens,
        target_itl_s=None if target_itl_ms is None else target_itl_ms / 1000,
        device=settings.device,
        dtype=settings.dtype,
        quantization=settings.quantization,
        speculative=settings.speculative,
        draft_model=settings.draft_model if settings.speculative == "auto" else "",
        kv_cache_bytes=None if kv_cache_gib is None else int(kv_cache_gib * 2**30),
        kv_cache_dtype=settings.kv_cache_dtype,
        kv_offload_bytes=int(settings.kv_offload_gib * 2**30),
        memory_fraction=settings.memory_fraction,
        num_threads=settings.cpu_threads,
        cuda_graphs=settings.cuda_graphs == "auto",
        async_scheduling=None if settings.async_scheduling == "auto" else False,
        tensor_parallel_size=settings.tensor_parallel_size,
        allow_pickle=settings.allow_pickle,
        trust_remote_code=settings.trust_remote_code,
        deterministic=settings.deterministic,
    )


def routing_policy(settings: Settings) -> RoutingPolicy:
    """How requests are shared among the model's engines."""
    from axion.router.served import RoutingPolicy

    shadow = shares(settings.shadow)
    max_queue = settings.max_queue
    return RoutingPolicy(
        standby=settings.standby,
        weights=shares(settings.backend_weights),
        shadow=next(iter(shadow.items()), None),
        max_queue=settings.max_connections if max_queue is None else max_queue,
        max_upstream_requests=settings.max_upstream_requests or settings.max_connections,
    )


def create_backend(show: Show) -> InferenceBackend:
    """The native engine, reporting how far its model is loaded."""
    from axion.backends.native.backend import NativeBackend

    return NativeBackend.from_settings(load_settings(), partial(show, "Loading weights"))


@contextmanager
def progress() -> Iterator[Show]:
    """Progress in bytes: a bar on a terminal, else a line in the log now and then."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _LogProgress().show
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TransferSpeedColumn,
    )

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as display:
        # Seconds pass before the first byte of either stage.
        starting = display.add_task("Starting", total=None)
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = display.add_task(stage)
                display.update(starting, visible=False)
            display.update(tasks[stage], completed=done, total=total, visible=done < total)

        yield show


class _LogProgress:
    def __init__(self) -> None:
        self._last = time.monotonic()

    def show(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done >= total or now - self._last >= LOG_INTERVAL_S:
            self._last = now
            logger.info("%s: %d of %d MB", stage, done // 10**6, total // 10**6)
