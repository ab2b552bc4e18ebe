"""The product as a user meets it: `python -m axion` with the bundled model, and OpenAI's client."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from tests.tiny_model import save_tiny_model

MODEL = "axion/demo"


class Server:
    """A server process, and the official client to it."""

    def __init__(self, process: subprocess.Popen[bytes], url: str) -> None:
        self.process = process
        self.url = url
        self.openai = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

    def stop(self) -> int:
        self.openai.close()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def engine(self) -> psutil.Process:
        [engine] = [
            child
            for child in psutil.Process(self.process.pid).children()
            if "axion.engine.process" in child.cmdline()
        ]
        return engine

    def metric(self, name: str) -> float:
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + "{"))


def until(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


def start(folder: Path, **environment: str) -> Server:
    log = folder / "server.log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "axion"],
            cwd=folder,
            env={
                **os.environ,
                "MODEL_NAME": MODEL,
                "SERVER_HOST": "127.0.0.1",
                "SERVER_PORT": "0",
                **environment,
            },
            stdout=stderr,
            stderr=stderr,
        )

    def ports() -> set[int]:
        if process.poll() is not None:
            raise AssertionError(f"the server ended:\n{log.read_text()}")
        connections = psutil.Process(process.pid).net_connections("tcp")
        return {c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN}

    try:
        until(lambda: bool(ports()))
        server = Server(process, f"http://127.0.0.1:{ports().pop()}")
        until(lambda: httpx.get(f"{server.url}/health", timeout=60).status_code == 200)
    except BaseException:
        process.kill()
        process.wait()
        raise
    return server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    broken = save_tiny_model(folder / "broken")
    truncate(broken / "model.safetensors")
    server = start(folder, MAX_CONNECTIONS="300", EMBEDDING_MODEL=f"broken={broken}")
    yield server
    assert server.stop() == 0


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def ask(server: Server, text: str, **options):
    return server.openai.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": text}], temperature=0, **options
    )


def test_the_demo_answers(server: Server):
    answer = ask(server, "What is 12 + 30?")
    assert "42" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_a_streamed_conversation(server: Server):
    messages = [{"role": "system", "content": "You are a helpful assistant."}]
    for question, expected in (("Hello!", ""), ("What is 20 + 13?", "33"), ("Thanks!", "")):
        messages.append({"role": "user", "content": question})
        stream = server.openai.chat.completions.create(
            model=MODEL,
            messages=messages,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
        deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
        text = "".join(delta.content or "" for delta in deltas)
        assert expected in text
        assert text.strip()
        assert [delta.role for delta in deltas if delta.role] == ["assistant"]
        assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
        assert chunks[-1].usage.completion_tokens > 0
        messages.append({"role": "assistant", "content": text})


def test_streamed_and_whole_answers_are_the_same(server: Server):
    whole = ask(server, "Spell the word garden.").choices[0].message.content
    stream = ask(server, "Spell the word garden.", stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == whole


def test_a_second_equal_prompt_comes_from_the_prefix_cache(server: Server):
    text = "What is 31 + 11? " * 10
    uncached = {
        "Cache-Control": "no-store"
    }  # or the second would be the first, from the other cache
    first, second = (ask(server, text, extra_headers=uncached) for _ in range(2))
    assert second.usage.prompt_tokens_details.cached_tokens >= 16
    assert first.choices[0].message.content == second.choices[0].message.content


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Name of the city."}},
            "required": ["city"],
        },
    },
}


def test_a_tool_is_called_and_its_result_used(server: Server):
    messages = [{"role": "user", "content": "What is the weather in Paris?"}]
    create = server.openai.chat.completions.create
    first = create(model=MODEL, messages=messages, tools=[WEATHER], temperature=0).choices[0]
    assert first.finish_reason == "tool_calls"
    [call] = first.message.tool_calls
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments)["city"] == "Paris"
    result = json.dumps({"city": "Paris", "temperature": 18, "condition": "sunny"})
    messages += [
        first.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": result},
    ]
    second = create(model=MODEL, messages=messages, tools=[WEATHER], temperature=0).choices[0]
    assert second.finish_reason == "stop"
    assert "18" in second.message.content


def test_a_call_is_streamed_as_the_official_client_expects(server: Server):
    messages = [{"role": "user", "content": "What is the weather in Paris?"}]
    with server.openai.chat.completions.stream(
        model=MODEL, messages=messages, tools=[WEATHER], temperature=0, parallel_tool_calls=False
    ) as stream:
        pieces = [
            event.arguments_delta
            for event in stream
            if event.type == "tool_calls.function.arguments.delta"
        ]
        choice = stream.get_final_completion().choices[0]
    assert len(pieces) > 2
    [call] = choice.message.tool_calls
    assert call.function.arguments == "".join(pieces)
    assert json.loads(call.function.arguments).keys() == {"city"}
    assert choice.finish_reason == "tool_calls"


def test_completions_with_several_prompts_and_choices(server: Server):
    answer = server.openai.completions.create(
        model=MODEL, prompt=["Hello", "One two"], n=2, max_tokens=5, seed=1, logprobs=2
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert all(len(choice.logprobs.tokens) <= 5 for choice in answer.choices)


def test_a_prompt_that_is_too_long_is_told_both_numbers(server: Server):
    with pytest.raises(openai.BadRequestError) as error:
        ask(server, "word " * 10_000)
    assert error.value.code == "context_length_exceeded"


def test_many_streams_while_a_third_of_the_clients_leave(server: Server):
    num_streams = 200
    finished: list[int] = []
    failures: list[Exception] = []

    def stream(index: int) -> None:
        try:
            chunks = ask(server, f"Count from {index % 9} to {index % 9 + 9}.", stream=True)
            for position, chunk in enumerate(chunks):
                if index % 3 == 0 and position == index % 7:
                    chunks.close()
                    return
                if chunk.choices[0].finish_reason:
                    finished.append(index)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=stream, args=(i,)) for i in range(num_streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    assert not failures
    stayed = [index for index in range(num_streams) if index % 3]
    assert sorted(set(finished) - {i for i in finished if i % 3 == 0}) == stayed
    until(lambda: server.metric("axion_engine_running_sequences") == 0)
    until(lambda: server.metric("axion_engine_blocks_used") == 0)


def test_a_killed_engine_comes_back_and_its_streams_go_on(server: Server):
    stream = ask(server, "Hello!", stream=True, max_tokens=1500, extra_body={"ignore_eos": True})
    next(stream)
    server.engine().kill()
    until(lambda: httpx.get(f"{server.url}/health").status_code == 503)
    assert ask(server, "Hello!").choices[0].message.content  # it waits for the new engine
    assert list(stream)[-1].choices[0].finish_reason == "length"
    assert httpx.get(f"{server.url}/health").status_code == 200
    assert ask(server, "Hello!").choices[0].message.content


def test_sigterm_lets_running_streams_finish_and_leaves_nothing(tmp_path: Path):
    server = start(tmp_path)
    engine = server.engine()
    stream = ask(server, "Hello!", stream=True, max_tokens=300, extra_body={"ignore_eos": True})
    next(stream)
    server.process.send_signal(signal.SIGTERM)
    chunks = list(stream)
    assert chunks[-1].choices[0].finish_reason == "length"
    server.openai.close()
    assert server.process.wait(30) == 0
    assert not engine.is_running()
    log = (tmp_path / "server.log").read_text()
    assert "Traceback" not in log


def test_a_model_that_cannot_be_loaded_leaves_the_others_served(server: Server):
    with pytest.raises(openai.APIStatusError) as caught:
        server.openai.with_options(max_retries=0).embeddings.create(model="broken", input="Hello")
    assert caught.value.status_code == 503
    assert "broken" in caught.value.message
    assert "/" not in caught.value.message
    assert ask(server, "What is 20 + 22?").choices[0].message.content == "20 + 22 = 42"


def test_a_damaged_model_ends_the_start_with_a_sentence(tmp_path: Path):
    folder = save_tiny_model(tmp_path / "model")
    truncate(folder / "model.safetensors")
    result = subprocess.run(
        [sys.executable, "-m", "axion"],
        cwd=tmp_path,
        env={**os.environ, "MODEL_NAME": str(folder), "SERVER_PORT": "0"}
        | {"AXION_BACKENDS": "native"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert re.match(r"model\.safetensors is damaged \(.*\)\. Download the model again\.", last)
    assert last.endswith("MODEL_NAME=axion/demo.")
    assert "Traceback" not in result.stderr


def test_no_model_says_why_and_names_the_demo(tmp_path: Path):
    environment = {k: v for k, v in os.environ.items() if k not in ("HF_TOKEN", "MODEL_NAME")}
    result = subprocess.run(
        [sys.executable, "-m", "axion"],
        cwd=tmp_path,
        env={**environment, "SERVER_PORT": "0", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 1
    assert "meta-llama/Llama-3.2-3B-Instruct" in result.stderr
    assert "MODEL_NAME=axion/demo" in result.stderr
    assert "Traceback" not in result.stderr
