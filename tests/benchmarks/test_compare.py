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
