from __future__ import annotations

from pathlib import Path

import pytest

from axion.bench.engine import measure, profile_engine
from axion.bench.messages import EngineLoad, MeasureEngine, ProfileEngine, Progress
from axion.bench.report import STEP_PARTS, Limits
from axion.demo import MODEL_DIR
from axion.types import EngineConfig

CONFIG = EngineConfig(
    model_path=str(MODEL_DIR), device="cpu", kv_cache_bytes=2**24, enable_prefix_caching=False
)
LIMITS = Limits(read=10e9, matrix={"float32": 1e11, "bfloat16": 1e12})


def test_every_token_of_every_sequence_is_timed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("axion.bench.engine.measure_limits", lambda device: LIMITS)
    said: list[Progress] = []
    load = EngineLoad(batch_sizes=(1, 3), prompt_len=20, output_len=6, rounds=2)
    measured = measure(MeasureEngine(CONFIG, load), said.append)
    assert measured.limits == LIMITS
    for batch_size, run in zip(load.batch_sizes, measured.runs, strict=True):
        assert (run.concurrency, run.num_ok) == (batch_size, batch_size)
        assert (run.prompt_tokens, run.output_tokens) == (20 * batch_size, 6 * batch_size)
        assert run.ttft is not None
        assert run.prefill_tokens_per_s == pytest.approx(20 * batch_size / run.ttft.max)
        decode_s = run.duration_s - run.ttft.max
        assert run.decode_tokens_per_s == pytest.approx(5 * batch_size / decode_s)
        assert set(run.step) == {*STEP_PARTS}
        # Reading the weights so often in this time is a share of the machine's bandwidth.
        read = measured.info.weight_bytes * 5 / decode_s
        assert run.decode_share == pytest.approx(read / LIMITS.read)
        assert run.prefill_share is not None
    assert Progress("3 at once", 1, 2) in said


def test_prefill_and_decode_are_profiled_apart(tmp_path: Path):
    load = EngineLoad(batch_sizes=(2,), prompt_len=20, output_len=1, rounds=1)
    request = ProfileEngine(CONFIG, load, str(tmp_path), 5)
    profiled = profile_engine(request, lambda progress: None)
    assert {*profiled.tables} == {"prefill", "decode"}
    assert all("aten::" in table for table in profiled.tables.values())
    assert {path.name for path in tmp_path.iterdir()} == {"prefill.json", "decode.json"}
