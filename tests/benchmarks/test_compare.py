"""`benchmarks/compare.py`, between servers that take no time."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

import psutil
import pytest

from axion.bench.limits import NumWeights

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module("compare")
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


def test_each_server_is_measured_in_each_round_and_all_are_ended(
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    mark = f"fake-{os.getpid()}"

    def peer(name: str, *settings: str) -> object:
        words = ["python -m tests.backends.fake_server --port {port}", f'model="{mark}"', *settings]
        return script.Peer(name, "bf16", " --set ".join(words), served_as=mark)

    peers = [
        peer("axion", "token_s=0.001"),
        peer("slow", "token_s=0.02"),
        peer("broken", "exit_at_start=3"),
    ]
    rows = [script.ROWS["start"], script.ROWS["8"]]
    arguments = argparse.Namespace(threads=1, rounds=2, restart=False)
    values = asyncio.run(script.compare(peers, {"safetensors": tmp_path}, rows, arguments))
    assert "broken is left out: it ended with status 3" in capsys.readouterr().out
    assert {name: [len(found) for found in of.values()] for name, of in values.items()} == {
        "axion": [2, 2],
        "slow": [2, 2],
    }
    [header, _, axion, slow] = script.table(
        [("bf16", name, found) for name, found in values.items()], rows
    ).splitlines()
    assert "8 streams: output tokens/s" in header
    assert "(" not in axion
    assert float(slow.split("(")[-1].split(")")[0]) > 2
    running = [process.info["cmdline"] for process in psutil.process_iter(["cmdline"])]
    assert not [words for words in running if mark in str(words)]


def test_a_ratio_is_how_many_times_better_axion_is(script: ModuleType):
    assert script.ratio(script.ROWS["8"], own=20.0, other=10.0) == 2.0
    assert script.ratio(script.ROWS["prompt"], own=1.0, other=2.0) == 2.0


def test_nothing_is_faster_than_reading_the_weights_and_their_products(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(script, "read_rate", lambda device, huge_pages: 1e9)
    monkeypatch.setattr(script, "matrix_rates", lambda device: {"bfloat16": 4e10})
    monkeypatch.setattr(script, "build_model", lambda config: None)
    weights = NumWeights(layers=400_000, read=500_000, unread=0)
    monkeypatch.setattr(script, "num_weights", lambda model: weights)
    rows = [script.ROWS[name] for name in ("1", "prompt", "8", "32")]
    found = script.limits({}, rows, 1)["bf16"]
    one, prompt, eight, many = (found[row.title][0] for row in rows)
    assert one == pytest.approx(1000)
    assert prompt == pytest.approx(1024 * 2e-5)
    # Reading takes 1 ms, the products of 8 rows 0.2 and of 32 rows 0.8.
    assert eight == pytest.approx(8 * 64 / (1024 * 2e-5 + 63e-3))
    assert many == pytest.approx(32 * 64 / (4096 * 2e-5 + 63e-3))
    monkeypatch.setattr(script, "matrix_rates", lambda device: {"bfloat16": 1e10})
    [many] = script.limits({}, rows, 1)["bf16"][rows[-1].title]
    assert many == pytest.approx(32 * 64 / (4096 * 8e-5 + 63 * 32 * 1e-4))
