from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from axion.cli.main import main
from tests.backends.fake_server import DEFAULTS, FakeServer


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with FakeServer() as fake:
        yield fake


@pytest.fixture
def fake(server: FakeServer) -> FakeServer:
    server.control(**DEFAULTS)
    return server


def bench(*args: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["bench", *args])
    return int(caught.value.code or 0)


def test_several_loads_are_several_runs(
    fake: FakeServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    output, plot = tmp_path / "report.json", tmp_path / "report.svg"
    args = ["--concurrency", "1,3", "--num-requests", "6", "--output-len", "4"]
    assert bench("serve", fake.url, *args, "-o", str(output), "--plot", str(plot)) == 0
    report = json.loads(output.read_bytes())
    assert [run["concurrency"] for run in report["runs"]] == [1, 3]
    assert [run["num_ok"] for run in report["runs"]] == [6, 6]
    assert [run["output_tokens"] for run in report["runs"]] == [24, 24]
    assert plot.read_text().startswith("<svg")
    out = capfd.readouterr().out
    assert "1 at once" in out
    assert "3 at once" in out


def test_prompts_are_others_in_each_run_unless_the_seed_is_given(fake: FakeServer):
    def last_prompt(*args: str) -> str:
        assert bench("serve", fake.url, "--num-requests", "1", *args) == 0
        return str(fake.stats()["body"]["messages"][0]["content"])

    assert last_prompt() != last_prompt()
    assert last_prompt("--seed", "5") == last_prompt("--seed", "5")


def test_a_regression_is_an_exit_status(
    fake: FakeServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    fast, slow = str(tmp_path / "fast.json"), str(tmp_path / "slow.json")
    args = [fake.url, "--num-requests", "4", "--output-len", "8"]
    fake.control(token_s=0.002)
    assert bench("serve", *args, "-o", fast) == 0
    fake.control(token_s=0.05)
    assert bench("serve", *args, "-o", slow) == 0
    assert bench("compare", slow, fast, "--tolerance", "0.1") == 0
    assert bench("compare", fast, slow) == 0
    assert bench("compare", fast, slow, "--tolerance", "0.1") == 1
    assert "tpot p50" in capfd.readouterr().err


def test_the_cache_is_asked_with_the_same_prompts_twice(
    fake: FakeServer, capfd: pytest.CaptureFixture[str]
):
    assert bench("cache", fake.url, "--prompt-len", "40", "--num-prompts", "2") == 0
    assert "second time" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--prompt-len", "x"], "tokens"),
        (["--mix", "1"], "IN:OUT"),
        (["--concurrency", "0"], "above 0"),
        (["--rate", "1,b"], "above 0"),
        (["--rate", "1", "--concurrency", "1"], "two kinds"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    fake: FakeServer, args: list[str], message: str, capfd: pytest.CaptureFixture[str]
):
    assert bench("serve", fake.url, *args) == 2
    assert message in capfd.readouterr().err


def test_a_report_that_is_none_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    path = tmp_path / "x.json"
    path.write_text("{}")
    assert bench("compare", str(path), str(path)) == 1
    assert "not a report" in capfd.readouterr().err


def test_a_soak_needs_metrics(fake: FakeServer, capfd: pytest.CaptureFixture[str]):
    assert bench("soak", fake.url, "--minutes", "0.01", "--concurrency", "2") == 1
    assert "/metrics" in capfd.readouterr().err
