from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from axion.cli.main import main
from axion.errors import ModelLoadError
from axion.openai.completions import CompletionRequest

from .conftest import USAGE, Server, WordsBackend, chunk, wait_for_output


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["generate", *args])
    return int(caught.value.code or 0)


def test_answer_is_all_that_stdout_gets(
    backend: WordsBackend, model: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(model, "-p", "one two three") == 0
    assert capfd.readouterr() == ("one two three\n", "")
    assert backend.stopped


def test_options_reach_the_request(backend: WordsBackend, model: str) -> None:
    options = ["--temperature", "0.5", "--top-p", "0.9", "--max-tokens", "7", "--seed", "3"]
    assert run(model, "-p", "hi", "--system", "Be brief.", *options) == 0
    (request,) = backend.requests
    assert request.model == model
    assert request.stream
    assert request.include_usage
    assert [message.role for message in request.messages] == ["system", "user"]
    sampling = (request.temperature, request.top_p, request.token_limit, request.seed)
    assert sampling == (0.5, 0.9, 7, 3)


def test_settings_reach_the_engine(
    backend: WordsBackend, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAX_SEQ_LEN", "77")
    monkeypatch.setenv("DTYPE", "float32")
    monkeypatch.setenv("QUANTIZATION", "int4")
    monkeypatch.setenv("MODEL_NAME", model)
    assert run("-p", "hi") == 0
    assert backend.started_with is not None
    assert backend.started_with.name == model
    assert (backend.started_with.max_seq_len, backend.started_with.dtype) == (77, "float32")
    assert backend.started_with.quantization == "int4"


@pytest.mark.parametrize("args", [["-p", "-"], []])
def test_prompt_may_come_from_stdin(
    backend: WordsBackend,
    model: str,
    args: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("from a\npipe\n"))
    assert run(model, *args) == 0
    assert capfd.readouterr().out == "from a pipe\n"


@pytest.mark.parametrize("raw", [True, False])
def test_prompt_is_continued_without_a_template(
    backend: WordsBackend, model: str, raw: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    if not raw:
        (Path(model) / "chat_template.jinja").unlink()
    assert run(model, "-p", "once upon", *["--raw"] * raw) == 0
    assert capfd.readouterr().out == "once upon\n"
    (request,) = backend.requests
    assert isinstance(request, CompletionRequest)
    assert request.max_tokens == 256


def test_template_in_the_tokenizer_config_counts(backend: WordsBackend, model: str) -> None:
    (Path(model) / "chat_template.jinja").unlink()
    (Path(model) / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    assert run(model, "-p", "hi") == 0
    assert not isinstance(backend.requests[0], CompletionRequest)


def test_json_tells_text_reason_usage_and_timing(
    backend: WordsBackend, model: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(model, "-p", "one two three", "--json") == 0
    answer = json.loads(capfd.readouterr().out)
    timing = answer.pop("timing")
    assert answer == {"text": "one two three", "finish_reason": "stop", "usage": USAGE}
    assert 0 < timing["first_token_s"] <= timing["total_s"]
    assert timing["load_s"] > 0
    assert timing["tokens_per_s"] > 0


def test_text_is_printed_as_it_comes(
    backend: WordsBackend, model: str, capfd: pytest.CaptureFixture[str]
) -> None:
    # The second word is held back until the first is on stdout.
    backend.on_chunk = lambda: wait_for_output(capfd, "one")
    assert run(model, "-p", "one two") == 0
    assert capfd.readouterr().out == " two\n"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["no-such-model", "-p", "x"], "is not a model's name"),
        (["/no/such/folder", "-p", "x"], "does not exist"),
    ],
)
def test_model_that_cannot_be_had_is_one_sentence_with_a_way_out(
    args: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(*args) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert said in err
    assert "axion/demo" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["-p", " "], "prompt is empty"),
        (["-p", "x", "--raw", "--system", "y"], "--system needs a chat template"),
    ],
)
def test_request_that_makes_no_sense_is_refused(
    backend: WordsBackend, model: str, args: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(model, *args) == 1
    assert said in capfd.readouterr().err


def test_error_in_the_engine_stops_it_and_is_told(
    backend: WordsBackend, model: str, capfd: pytest.CaptureFixture[str]
) -> None:
    backend.max_words = 1
    assert run(model, "-p", "one two") == 1
    assert capfd.readouterr() == ("", "The prompt is too long.\n")
    assert backend.stopped


def test_model_that_does_not_load_is_stopped(
    backend: WordsBackend, model: str, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise ModelLoadError("It does not fit.")

    backend.on_start = fail
    assert run(model, "-p", "x") == 1
    assert capfd.readouterr().err == "It does not fit.\n"
    assert backend.stopped


def test_interrupt_ends_the_answer_and_the_engine(backend: WordsBackend, model: str) -> None:
    backend.hang = True
    backend.on_chunk = lambda: os.kill(os.getpid(), signal.SIGINT)
    assert run(model, "-p", "one two") == 130
    assert backend.cancelled.is_set()
    assert backend.stopped


def test_interrupt_while_loading_stops_the_engine(backend: WordsBackend, model: str) -> None:
    backend.on_start = lambda: os.kill(os.getpid(), signal.SIGINT)
    assert run(model, "-p", "one two") == 130
    assert backend.stopped
    assert not backend.requests


def test_server_at_a_url_answers_instead(server: Server, capfd: pytest.CaptureFixture[str]) -> None:
    server.answers = [[chunk("Hel"), chunk("lo"), chunk(None, finish_reason="stop")]]
    assert run("--url", server.url, "-p", "hi", "--api-key", "secret") == 0
    assert capfd.readouterr() == ("Hello\n", "")
    assert server.bodies[0]["model"] == "first"
    assert server.bodies[0]["messages"] == [{"role": "user", "content": "hi"}]
    assert server.keys == ["Bearer secret"]


def test_url_needs_no_v1_and_a_model_may_be_named(server: Server) -> None:
    server.answers = [[chunk("x", finish_reason="stop")]]
    assert run("second", "--url", server.url.removesuffix("/v1"), "-p", "hi") == 0
    assert server.bodies[0]["model"] == "second"
    assert server.keys == [None]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ((400, b'{"error": {"message": "seed must be an integer."}}'), "seed must be an integer."),
        ((502, b"<html>"), "The server answered 502 Bad Gateway."),
        ((404, b'{"detail": "x"}'), "The server answered 404 Not Found."),
    ],
)
def test_error_of_the_server_is_passed_on(
    server: Server, error: tuple[int, bytes], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    server.error = error
    assert run("m", "--url", server.url, "-p", "hi") == 1
    assert capfd.readouterr() == ("", f"{said}\n")


def test_error_in_the_stream_is_told(server: Server, capfd: pytest.CaptureFixture[str]) -> None:
    server.answers = [[chunk("Hel"), {"error": {"message": "The engine died."}}]]
    assert run("m", "--url", server.url, "-p", "hi") == 1
    assert capfd.readouterr() == ("Hel", "The engine died.\n")


def test_stream_that_breaks_off_is_no_answer(
    server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    server.answers = [[chunk("Hel")]]
    server.complete = False
    assert run("m", "--url", server.url, "-p", "hi") == 1
    assert "before it was complete" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://127.0.0.1:1/v1", "There is no server at http://127.0.0.1:1/v1/"),
        ("localhost:3000", "is not a server's URL"),
        ("ftp://x/", "is not a server's URL"),
    ],
)
def test_url_without_a_server_is_told(
    url: str, said: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert run("--url", url, "-p", "hi") == 1
    assert said in capfd.readouterr().err


def test_server_without_models_is_told(server: Server, capfd: pytest.CaptureFixture[str]) -> None:
    server.models = []
    assert run("--url", server.url, "-p", "hi") == 1
    assert "lists no model" in capfd.readouterr().err


def test_reader_that_leaves_ends_the_command_quietly(server: Server) -> None:
    server.answers = [[*[chunk("x" * 10_000)] * 100, chunk(None, finish_reason="stop")]]
    command = [sys.executable, "-m", "axion", "generate", "--url", server.url, "-p", "hi"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1) == b"x"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_native_engine_answers_the_same_twice_at_temperature_zero(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KV_CACHE_GIB", "0.05")
    options = ["-p", "hi", "--max-tokens", "5", "--temperature", "0", "--json"]
    command = [sys.executable, "-m", "axion", "generate", str(tiny_model), *options]
    first, second = (subprocess.run(command, capture_output=True, text=True) for _ in range(2))
    assert (first.returncode, first.stderr) == (0, "")
    answer = json.loads(first.stdout)
    assert answer["usage"]["completion_tokens"] == 5
    assert answer["finish_reason"] == "length"
    assert answer["text"]
    assert answer["text"] == json.loads(second.stdout)["text"]
