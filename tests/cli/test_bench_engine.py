from __future__ import annotations

import json
from pathlib import Path

import pytest

from axion.cli.main import main


def bench(*args: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["bench", *args])
    return int(caught.value.code or 0)


def test_the_engine_is_measured_without_a_server(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    output = tmp_path / "report.json"
    lengths = ["--batch-size", "1,2", "--prompt-len", "8", "--output-len", "4", "--rounds", "1"]
    assert bench("engine", "axion/demo", *lengths, "-o", str(output)) == 0
    report = json.loads(output.read_bytes())
    assert [run["output_tokens"] for run in report["runs"]] == [4, 8]
    assert report["limits"]["read"] > 0
    assert "axion/demo" in capfd.readouterr().out
    assert bench("compare", str(output), str(output), "--tolerance", "0.1") == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["engine"], "either MODEL or --shape"),
        (["engine", "axion/demo", "--shape", "qwen3-0.6b"], "either MODEL or --shape"),
        (["engine", "axion/demo", "--batch-size", "0"], "above 0"),
        (["profile", "axion/demo", "--dtype", "int3"], "--dtype must be"),
        (["profile", "axion/demo", "--quantization", "q4"], "--quantization must be"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    args: list[str], message: str, capfd: pytest.CaptureFixture[str]
):
    assert bench(*args) == 2
    assert message in " ".join(capfd.readouterr().err.replace("│", " ").split())


def test_a_shape_that_is_none_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    assert bench("shape", "gpt-5", "-o", str(tmp_path / "x")) == 1
    assert "llama-3.2-1b" in capfd.readouterr().err
