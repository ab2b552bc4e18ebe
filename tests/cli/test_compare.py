from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from axion.cli.compare import _show
from axion.cli.comparison import Comparison, Result
from axion.cli.main import main
from tests.backends.fake_server import DEFAULTS, FakeServer


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[FakeServer, FakeServer]]:
    with FakeServer() as one, FakeServer() as other:
        yield one, other


@pytest.fixture
def fakes(servers: tuple[FakeServer, FakeServer]) -> tuple[FakeServer, FakeServer]:
    for fake in servers:
        fake.control(**DEFAULTS)
    return servers


@pytest.fixture
def backends(fakes: tuple[FakeServer, FakeServer]) -> str:
    return ",".join(f"{fake.url}/v1" for fake in fakes)


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["compare", *args])
    return int(caught.value.code or 0)


def results(capfd: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(capfd.readouterr().out)["results"]
    return found


def test_an_engine_agrees_with_itself_and_not_with_another(
    fakes: tuple[FakeServer, FakeServer], capfd: pytest.CaptureFixture[str]
) -> None:
    names = f"native,native,{fakes[0].url}/v1#fake-model"
    args = ["axion/demo", "--backends", names, "--max-tokens", "12", "--together"]
    assert run(*args, "--concurrency", "4", "--json") == 0
    first, again, other = results(capfd)
    assert [first["backend"], again["backend"]] == ["native", "native #2"]
    assert first["agreement"] is None
    assert again["agreement"] == {"same_text": 1.0, "same_start": 1.0, "unit": "tokens"}
    assert other["agreement"]["same_text"] == 0.0
    assert other["agreement"]["same_start"] < 1.0
    answers = [*first["answers"], *again["answers"], *other["answers"]]
    assert len(answers) == 3 * 8
    for answer in answers:
        assert 0 < answer["first_token_s"] <= answer["total_s"]
        assert 0 < answer["completion_tokens"] <= 12
    assert first["first_token_s"]["p50"] <= first["first_token_s"]["p95"]


def test_the_share_of_equal_starts(
    fakes: tuple[FakeServer, FakeServer], backends: str, capfd: pytest.CaptureFixture[str]
) -> None:
    fakes[0].control(num_tokens=8)
    fakes[1].control(num_tokens=4)
    assert run("fake-model", "--backends", backends, "--json") == 0
    agreement = results(capfd)[1]["agreement"]
    assert agreement == {"same_text": 0.0, "same_start": 0.5, "unit": "characters"}


def test_the_table_has_both_engines(backends: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("fake-model", "--backends", backends) == 0
    out = capfd.readouterr().out
    for url in backends.split(","):
        assert url.removeprefix("http://").removesuffix("/v1") in out
    assert "100%" in out


def test_json_lines_are_requests(
    fakes: tuple[FakeServer, FakeServer],
    backends: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    message = {"role": "user", "content": "Hi"}
    bodies = [{"prompt": "Count 0 1", "max_tokens": 3}, {"messages": [message], "seed": 3}]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n\n".join(map(json.dumps, bodies)))
    assert run("fake-model", "--backends", backends, "--prompts", str(file), "--json") == 0
    first, _ = results(capfd)
    assert first["answers"][0]["text"] == " 2 3 4"
    sent = fakes[0].stats()["body"]
    assert (sent["seed"], sent["temperature"], sent["max_tokens"]) == (3, 0.0, 128)


def test_a_line_of_text_is_a_message(
    fakes: tuple[FakeServer, FakeServer],
    backends: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("One?\n\nTwo?\n")
    args = ["--prompts", str(file), "--temperature", "0.5", "--max-tokens", "3", "--json"]
    assert run("fake-model", "--backends", backends, *args) == 0
    assert len(results(capfd)[0]["answers"]) == 2
    sent = fakes[1].stats()["body"]
    assert sent["messages"] == [{"role": "user", "content": "Two?"}]
    assert (sent["temperature"], sent["max_tokens"]) == (0.5, 3)


def test_an_engine_that_cannot_start_is_a_row(
    fakes: tuple[FakeServer, FakeServer],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AXION_VLLM_COMMAND", "/nowhere/vllm")
    names = f"{fakes[0].url}/v1#fake-model,{fakes[1].url}/v1#absent,vllm"
    assert run("axion/demo", "--backends", names, "--json") == 1
    first, absent, vllm = results(capfd)
    assert (first["error"], first["num_failed"], len(first["answers"])) == (None, 0, 8)
    assert "absent" in absent["error"]
    assert "AXION_VLLM_COMMAND" in vllm["error"]
    assert absent["answers"] == vllm["answers"] == []
    assert absent["agreement"] is vllm["agreement"] is None


def test_a_prompt_that_fails_is_counted(
    fakes: tuple[FakeServer, FakeServer], backends: str, capfd: pytest.CaptureFixture[str]
) -> None:
    fakes[1].control(fault="no_done", after=5, times=3)
    assert run("fake-model", "--backends", backends) == 1
    assert "3 of 8 prompts failed" in " ".join(capfd.readouterr().out.split())


def test_what_an_engine_does_not_honour_is_not_asked_of_it(
    fakes: tuple[FakeServer, FakeServer],
    backends: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"prompt": "a", "logit_bias": {"1": 5}, "guided_regex": "a+"}))
    assert run("fake-model", "--backends", backends, "--prompts", str(file), "--json") == 1
    first, _ = results(capfd)
    assert "is not supported by remote" in first["answers"][0]["error"]
    assert fakes[0].stats()["num_requests"] == 0


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"\n  \n", "There is no prompt"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b'{"prompt": "a"}\nplain', "Line 2 of .* is not valid JSON"),
        (b'{"prompt": "a", "messages": []}', "Line 1 of .* either messages or prompt"),
        (b'{"text": "a"}', "Line 1 of .* either messages or prompt"),
        (b'{"prompt": "a", "temperature": 9}', "Line 1 of .*temperature"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_bad_file_is_named_before_anything_starts(
    content: bytes | None, problem: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts"
    if content is not None:
        file.write_bytes(content)
    assert run("axion/demo", "--backends", "native", "--prompts", str(file)) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert re.search(problem, err)


@pytest.mark.parametrize("names", ["nope", "native,,max"])
def test_a_wrong_name_is_an_error(names: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("axion/demo", "--backends", names) == 1
    assert capfd.readouterr().err


def test_what_is_wrong_with_the_model_is_said_once(capfd: pytest.CaptureFixture[str]) -> None:
    results = [Result(backend=name, error="There is no model.") for name in ("native", "max")]
    other = Result(backend="vllm", error="It is not installed.")
    _show(Comparison(model="m", num_prompts=1, concurrency=1, results=[*results, other]))
    problems = capfd.readouterr().out.splitlines()[-2:]
    assert problems == ["native, max: There is no model.", "vllm: It is not installed."]
