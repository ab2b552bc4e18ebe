"""What `axion bench` asks of a process that imports torch, and what that tells: JSON lines."""

from __future__ import annotations

import msgspec

from axion.bench.report import EngineFigures, Limits
from axion.types import EngineConfig, EngineInfo


class MakeShape(msgspec.Struct, frozen=True, tag=True):
    """Write a checkpoint with random weights into `folder`, unless it is there."""

    shape: str
    folder: str


class EngineLoad(msgspec.Struct, frozen=True, kw_only=True):
    """
    Attributes:
        batch_sizes: sequences at once; each is a run.
        prompt_len, output_len: of each sequence, in tokens.
        rounds: of each run; the one with the median throughput counts.
    """

    batch_sizes: tuple[int, ...]
    prompt_len: int
    output_len: int
    rounds: int


class MeasureEngine(msgspec.Struct, frozen=True, tag=True):
    """Time an engine under a load."""

    config: EngineConfig
    load: EngineLoad


class ProfileEngine(msgspec.Struct, frozen=True, tag=True):
    """Where the time of a prefill and of decode steps goes, by the profiler of torch.

    Attributes:
        trace: folder for a trace of each (Chrome's format, which browsers open).
        num_rows: operators in each table.
    """

    config: EngineConfig
    load: EngineLoad
    trace: str | None
    num_rows: int


Request = MakeShape | MeasureEngine | ProfileEngine


class Progress(msgspec.Struct, frozen=True, tag=True):
    what: str
    done: int
    total: int


class Made(msgspec.Struct, frozen=True, tag=True):
    """The shape is there."""


class Measured(msgspec.Struct, frozen=True, tag=True):
    info: EngineInfo
    limits: Limits
    runs: list[EngineFigures]


class Profiled(msgspec.Struct, frozen=True, tag=True):
    """
    Attributes:
        tables: of the prefill and of the decode steps, by name.
    """

    info: EngineInfo
    tables: dict[str, str]


class Failed(msgspec.Struct, frozen=True, tag=True):
    message: str


Answer = Made | Measured | Profiled | Failed
Message = Progress | Answer
