"""The native engine in this process, without a server: how fast it is, and what takes the time."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch.profiler import ProfilerActivity, profile

from axion.bench.limits import measure_limits, num_weights
from axion.bench.messages import (
    EngineLoad,
    Measured,
    MeasureEngine,
    Profiled,
    ProfileEngine,
    Progress,
)
from axion.bench.report import EngineFigures, Figures, Limits, Sample, Spread, figures
from axion.engine.assembly import load_engine
from axion.engine.child import freeze_heap
from axion.engine.core import EngineCore
from axion.engine.messages import AddRequest
from axion.errors import EngineUnavailableError
from axion.types import EngineConfig, SamplingParams

Report = Callable[[Progress], None]

# Enough for a median; more would only take longer.
_NUM_CLOCKED = 16
_NUM_PROFILED = 8


def measure(request: MeasureEngine, report: Report) -> Measured:
    """Raises:
    AxionError: the model cannot be loaded or computed.
    """
    core = _load(request.config, report)
    load = request.load
    report(Progress("Measuring the machine", 0, 0))
    limits = measure_limits(core.runner.device)
    runs = []
    for batch_size in load.batch_sizes:
        _Batch(core, batch_size, load.prompt_len, 4).finish()  # warm
        rounds = []
        for number in range(load.rounds):
            report(Progress(f"{batch_size} at once", number, load.rounds))
            batch = _Batch(core, batch_size, load.prompt_len, load.output_len, seed=number)
            batch.finish()
            rounds.append(batch)
        rounds.sort(key=lambda batch: batch.duration)
        median = rounds[(len(rounds) - 1) // 2]
        clocked = _Batch(core, batch_size, load.prompt_len, min(load.output_len, _NUM_CLOCKED))
        steps = _step_times(core, clocked)
        runs.append(_figures(core, request.config, load, median, steps, limits))
    return Measured(core.info, limits, runs)


def profile_engine(request: ProfileEngine, report: Report) -> Profiled:
    """Raises:
    AxionError: the model cannot be loaded or computed.
    """
    core = _load(request.config, report)
    load = request.load
    (batch_size,) = load.batch_sizes
    report(Progress("Profiling", 0, 0))
    _Batch(core, batch_size, load.prompt_len, 4).finish()  # warm
    batch = _Batch(core, batch_size, load.prompt_len, _NUM_PROFILED, seed=1)
    parts: dict[str, Callable[[], bool]] = {
        "prefill": lambda: not batch.is_prefilled,
        "decode": lambda: core.has_unfinished,
    }
    activities = [ProfilerActivity.CPU]
    if core.runner.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    tables = {}
    for name, goes_on in parts.items():
        with profile(activities=activities) as found:
            while goes_on():
                batch.step()
        tables[name] = found.key_averages().table(
            sort_by=f"self_{core.runner.device.type}_time_total",
            row_limit=request.num_rows,
            max_name_column_width=60,
        )
        if request.trace is not None:
            found.export_chrome_trace(str(Path(request.trace) / f"{name}.json"))
    return Profiled(core.info, tables)


def _load(config: EngineConfig, report: Report) -> EngineCore:
    core = load_engine(config, lambda done, total: report(Progress("Loading", done, total)))
    freeze_heap()
    return core


class _Batch:
    """Sequences that are added at the same moment, with prompts of random tokens.

    Attributes:
        samples: one for each sequence; the chunks are its tokens.
        duration: seconds until the last token that has come.
    """

    def __init__(
        self, core: EngineCore, batch_size: int, prompt_len: int, output_len: int, *, seed: int = 0
    ) -> None:
        self._core = core
        self.samples = [
            Sample(kind=0, start=0.0, prompt_tokens=prompt_len) for _ in range(batch_size)
        ]
        self.duration = 0.0
        params = SamplingParams(temperature=0, max_tokens=output_len, ignore_eos=True)
        draw = random.Random(f"{batch_size} {seed}")
        self._begin = time.perf_counter()
        for index in range(batch_size):
            prompt = draw.choices(range(core.info.vocab_size), k=prompt_len)
            refusal = core.add(AddRequest(str(index), prompt, params))
            if refusal is not None:
                raise EngineUnavailableError(refusal.error or "The engine refused a prompt.")

    @property
    def is_prefilled(self) -> bool:
        """Whether every sequence has its first token."""
        return all(sample.ttft is not None for sample in self.samples)

    def step(self) -> None:
        outputs = self._core.step()
        self.duration = now = time.perf_counter() - self._begin
        for output in outputs:
            if output.error is not None:
                raise EngineUnavailableError(output.error)
            sample = self.samples[int(output.request_id)]
            sample.output_tokens += len(output.token_ids)
            sample.chunks += [now] * len(output.token_ids)
            sample.latency = now
            if sample.ttft is None and sample.chunks:
                sample.ttft = now

    def finish(self) -> None:
        while self._core.has_unfinished:
            self.step()


def _figures(
    core: EngineCore,
    config: EngineConfig,
    load: EngineLoad,
    batch: _Batch,
    steps: dict[str, Spread],
    limits: Limits,
) -> EngineFigures:
    figures_: Figures = figures(batch.samples, concurrency=len(batch.samples))
    prefill_s = max(sample.ttft or 0.0 for sample in batch.samples)
    decode_s = batch.duration - prefill_s
    num_decoded = sum(time > prefill_s for sample in batch.samples for time in sample.chunks)
    prefill = len(batch.samples) * load.prompt_len / prefill_s
    decode = num_decoded / decode_s if decode_s else 0.0
    prefill_share = decode_share = None
    if (weights := num_weights(core.model)) is not None:
        format_ = "int8" if config.quantization == "int8" else core.info.dtype
        if (matrix := limits.matrix.get(format_)) is not None:
            prefill_share = 2 * weights.layers * prefill / matrix
        num_bytes = core.info.weight_bytes - weights.unread * core.model.dtype.itemsize
        decode_share = num_bytes * decode / len(batch.samples) / limits.read
    return EngineFigures(
        **msgspec.structs.asdict(figures_),
        prefill_tokens_per_s=prefill,
        decode_tokens_per_s=decode,
        step=steps,
        prefill_share=prefill_share,
        decode_share=decode_share,
    )


def _step_times(core: EngineCore, batch: _Batch) -> dict[str, Spread]:
    """Where the time of decode steps goes; `forward` is what is left of the model runner's."""
    spent: dict[str, float] = defaultdict(float)
    runner, scheduler = core.runner, core.scheduler

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            _synchronize(core.runner.device)
            began = time.perf_counter()
            result = function(*args, **kwargs)
            _synchronize(core.runner.device)
            spent[part] += time.perf_counter() - began
            return result

        return call

    places = [
        (scheduler, "schedule", "schedule"),
        (scheduler, "update", "schedule"),
        (runner, "_prepare", "prepare"),
        (runner, "sampler", "sample"),
        (runner, "launch", "launch"),
    ]
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
    for owner, name, part in places:
        setattr(owner, name, timed(part, getattr(owner, name)))
    steps: dict[str, list[float]] = defaultdict(list)
    try:
        while core.has_unfinished:
            is_decode = batch.is_prefilled
            spent.clear()
            batch.step()
            if is_decode:
                inside = spent["prepare"] + spent["sample"]
                steps["schedule"].append(spent["schedule"])
                steps["prepare"].append(spent["prepare"])
                steps["forward"].append(spent["launch"] - inside)
                steps["sample"].append(spent["sample"])
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)
    return {name: spread for name, times in steps.items() if (spread := Spread.of(times))}


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
