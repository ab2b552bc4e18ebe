"""A small HTTP server that behaves like a real engine, and fails like one when asked to.

    python -m tests.backends.fake_server [--port 0] [--style vllm|max|llama_cpp] [--set NAME=VALUE]

or `with FakeServer(style="max", fault="die", after=3) as fake: fake.url, fake.control(...)`.
It prints `listening on PORT` as soon as it takes requests.

**What it answers.** One text, ` 0 1 2 3 ...`, a token for each number. It begins after as much of
that text as the prompt ends with (a text prompt, or the last message of a chat with
`continue_final_message`), so a continued answer can be compared with an uninterrupted one. It ends
by itself after the token `num_tokens - 1`. Honoured: `max_tokens`, `max_completion_tokens`, `stop`,
`ignore_eos`, `n` (not in style max), `echo`, `logprobs`, `stream`, `stream_options`,
`return_token_ids` (style max), `timings_per_token` (style llama_cpp);
`tool_choice: required` calls the first tool with `{"a": 1}`. A token is a number or a word, in
prompts too.

The styles differ as the engines do (recorded of vLLM 0.32 and MAX 26.7; llama_cpp from its
source). vllm: the role has a chunk of its own. max: the role is in every chunk, what is null is
left out, `logprobs` of completions are empty lists, unknown fields are refused. In both the last
text comes together with `finish_reason`. llama_cpp: it listens at once and answers 503 while it
loads; `content: null` comes with the role, `timings` of one choice with each event where they are
asked for, its usage is that of one choice, and `null` comes before the choices of several prompts.
Health is `/health`, in style
max also `/v1/health` and `/ping`.

**Settings**, by `--set NAME=VALUE` at the start or `POST /control {"NAME": VALUE}` at any time:

- `num_tokens` (20), `token_s` (0: seconds between tokens), `num_reasoning` (0: that many tokens of
  reasoning first), `first_token_s` (0: seconds before the first token)
- `start_s` (0): seconds before it answers; every 0.1 s it logs `Still compiling model`
- `exit_at_start` (unset): log some lines, of which one names the cause, and exit with this status
- `spawn_child` (false): has a child process of its own, whose id is in the stats
- `ignore_sigterm` (false), `healthy` (true: else `/health` and `/v1/models`
  are 503), `model` ("fake-model")
- `drop` ([]): fields of requests that it ignores, and `usage`, which it then never sends
- `after` (0): how many tokens are sent before the fault; `times` (-1, without end): how many
  requests the fault meets
- `fault`: what happens to requests for an answer:
  - `status` (with `status`, 500 by default, and `message`): an error body in the engine's form
  - `hang`: never an answer; `hang_all`: nor to any other request
  - `silent`: nothing follows; `die`: the process ends at once; `close`: the connection does
  - `no_done`: the body ends, whole, without the rest and `[DONE]`; `no_marker`: all but `[DONE]`
  - `error_event`: an error in the stream (`status`, `message`), then `[DONE]`
  - `garbage`: an event that is no JSON; `not_http`: a response that is no HTTP
  - `endless_head`: headers without end; `endless_event`: an event without end

`GET /stats`: `num_requests` for an answer, `num_running`, `num_aborted` (whose client left),
`body` and `headers` of the last one, `child`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx

DEFAULTS: dict[str, Any] = {
    "num_tokens": 20,
    "token_s": 0.0,
    "first_token_s": 0.0,
    "num_reasoning": 0,
    "start_s": 0.0,
    "exit_at_start": None,
    "spawn_child": False,
    "ignore_sigterm": False,
    "healthy": True,
    "model": "fake-model",
    "drop": [],
    "fault": "",
    "after": 0,
    "times": -1,
    "status": 500,
    "message": "Something broke in /usr/lib/engine/core.py, see http://127.0.0.1:1/trace",
}
MAX_FIELDS = set(
    """
    model messages prompt stream stream_options max_tokens max_completion_tokens temperature top_p
    top_k stop seed n logprobs top_logprobs echo ignore_eos tools tool_choice presence_penalty
    frequency_penalty repetition_penalty min_tokens min_p response_format stop_token_ids
    return_token_ids
    """.split()  # noqa: SIM905
)


class FakeServer:
    """The server as a child process, until the block ends."""

    def __init__(self, style: str = "vllm", port: int = 0, **settings: Any) -> None:
        pairs = [f"{name}={json.dumps(value)}" for name, value in settings.items()]
        given = [argument for pair in pairs for argument in ("--set", pair)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__, "--style", style, "--port", str(port), *given],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        assert self.process.stdout is not None
        line = next((line for line in self.process.stdout if line.startswith("listening")), "0")
        self.port = int(line.split()[-1])
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> FakeServer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self.kill()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def control(self, **settings: Any) -> None:
        """Change settings; the counters begin anew."""
        httpx.post(f"{self.url}/control", json=settings, trust_env=False).raise_for_status()

    def stats(self) -> dict[str, Any]:
        stats: dict[str, Any] = httpx.get(f"{self.url}/stats", trust_env=False).json()
        return stats


def text_of(start: int, end: int) -> str:
    """The text of tokens `start` to `end - 1`."""
    return "".join(f" {i}" for i in range(start, end))


def position_after(prompt: str) -> int:
    """How many tokens of the text the prompt ends with."""
    begin = prompt.rfind(" 0 1")
    if begin < 0:
        return 1 if prompt.endswith(" 0") else 0
    tail = prompt[begin:]
    count = tail.count(" ")
    return count if tail == text_of(0, count) else 0


def count_tokens(text: str) -> int:
    return len(re.findall(r"\S+", text))


class Engine:
    def __init__(self, style: str, settings: dict[str, Any]) -> None:
        self.style = style
        self.settings = DEFAULTS | settings
        self.ready_at = 0.0
        self.child: subprocess.Popen[bytes] | None = None
        self.reset()

    def __getattr__(self, name: str) -> Any:
        try:
            return self.settings[name]
        except KeyError:
            raise AttributeError(name) from None

    def reset(self) -> None:
        self.num_requests = 0
        self.num_running = 0
        self.num_aborted = 0
        self.body: dict[str, Any] = {}
        self.headers: dict[str, str] = {}

    async def serve(self, port: int) -> None:
        if self.ignore_sigterm:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if self.spawn_child:
            self.child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
        print("Starting the engine", flush=True)
        if self.exit_at_start is not None:
            print("ValueError: Architecture 'FakeForCausalLM' not found in registry", flush=True)
            print("The engine could not be started. See the lines above.", flush=True)
            sys.exit(self.exit_at_start)
        self.ready_at = time.monotonic() + self.start_s
        if self.style != "llama_cpp":
            await self.load()
        server = await asyncio.start_server(self.connection, "127.0.0.1", port, backlog=1000)
        print(f"listening on {server.sockets[0].getsockname()[1]}", flush=True)
        await self.load()
        await server.serve_forever()

    async def load(self) -> None:
        while time.monotonic() < self.ready_at:
            left = self.ready_at - time.monotonic()
            print(f"Still compiling model ({left:.1f} s left)", flush=True)
            await asyncio.sleep(min(0.1, left))

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                method, path, _ = head[0].split(" ")
                lines = [line.partition(":") for line in head[1:] if line]
                headers = {name.lower(): value.strip() for name, _, value in lines}
                data = await reader.readexactly(int(headers.get("content-length", 0)))
                if path not in ("/control", "/stats") and self.fault == "hang_all":
                    await reader.read()
                    break
                if method == "GET" or path in ("/control", "/tokenize", "/detokenize"):
                    self.simple(writer, path, json.loads(data or b"{}"))
                else:
                    await self.generation(reader, writer, path, headers, json.loads(data))
                await writer.drain()
        writer.close()

    def simple(self, writer: asyncio.StreamWriter, path: str, body: dict[str, Any]) -> None:
        healths = ["/health"] + (["/v1/health", "/ping"] if self.style == "max" else [])
        if path == "/control":
            self.settings |= body
            self.reset()
            reply(writer, 200, {})
        elif path == "/stats":
            names = ("num_requests", "num_running", "num_aborted", "body", "headers")
            stats = {name: getattr(self, name) for name in names}
            reply(writer, 200, stats | {"child": self.child.pid if self.child else None})
        elif path in healths:
            if time.monotonic() < self.ready_at:
                self.error(writer, 503, "Loading model")
            else:
                status = {"status": "ok"} if self.style == "llama_cpp" else ""
                reply(writer, 200 if self.healthy else 503, status)
        elif path == "/v1/models":
            status = 200 if self.healthy else 503
            reply(writer, status, {"object": "list", "data": [{"id": self.model}]})
        elif path == "/tokenize" and self.style == "vllm":
            text = body.get("prompt") or prompt_text(body)
            tokens = [len(word) for word in text.split()]
            strings = text.split() if body.get("return_token_strs") else None
            answer = {"count": len(tokens), "max_model_len": 1000, "tokens": tokens}
            reply(writer, 200, answer | {"token_strs": strings})
        elif path == "/detokenize" and self.style == "vllm":
            reply(writer, 200, {"prompt": "".join(f" {token}" for token in body["tokens"])})
        else:
            reply(writer, 404, {"detail": "Not Found"})

    def error_body(self, status: int, message: str, param: str | None = None) -> dict[str, Any]:
        if self.style == "llama_cpp":
            kind = "invalid_request_error" if status == 400 else "server_error"
            return {"error": {"code": status, "message": message, "type": kind}}
        if self.style == "max":
            kind = "invalid_request_error" if status == 400 else "server_error"
            told = {"code": str(status), "message": message, "param": param or "", "type": kind}
            return {"error": told}
        kind = "BadRequestError" if status == 400 else "InternalServerError"
        return {"error": {"message": message, "type": kind, "param": param, "code": status}}

    def error(
        self, writer: asyncio.StreamWriter, status: int, message: str, param: str | None = None
    ) -> None:
        reply(writer, status, self.error_body(status, message, param))

    def meets_fault(self) -> bool:
        if not self.fault or self.times == 0:
            return False
        self.settings["times"] -= 1
        return True

    async def generation(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        path: str,
        headers: dict[str, str],
        body: dict[str, Any],
    ) -> None:
        self.num_requests += 1
        self.body, self.headers = body, headers
        unknown = next((name for name in body if name not in MAX_FIELDS), None)
        if path not in ("/v1/chat/completions", "/v1/completions"):
            reply(writer, 404, {"detail": "Not Found"})
        elif time.monotonic() < self.ready_at:
            self.error(writer, 503, "Loading model")
        elif self.style == "max" and unknown is not None:
            self.error(writer, 400, f"Extra inputs are not permitted: {unknown}", unknown)
        elif body.get("model") != self.model:
            self.error(writer, 404, f"The model `{body.get('model')}` does not exist.", "model")
        else:
            self.num_running += 1
            answering = asyncio.ensure_future(self.answer(writer, path, body))
            left = asyncio.ensure_future(reader.read(1))
            await asyncio.wait((answering, left), return_when=asyncio.FIRST_COMPLETED)
            self.num_running -= 1
            for task in (answering, left):
                task.cancel()
            (end, _) = await asyncio.gather(answering, left, return_exceptions=True)
            if isinstance(end, BaseException):
                self.num_aborted += 1
                raise ConnectionError

    async def answer(self, writer: asyncio.StreamWriter, path: str, body: dict[str, Any]) -> None:
        fault = self.fault if self.meets_fault() else ""
        after = self.after
        if not after and fault == "status":
            retry = {"retry-after": "7"} if self.status == 429 else {}
            reply(writer, self.status, self.error_body(self.status, self.message), retry)
            return
        if fault == "not_http":
            writer.write(b"\x00\x01garbage\r\n\r\n" * 4)
            return
        if fault == "endless_head":
            writer.write(b"HTTP/1.1 200 OK\r\n")
            while True:
                writer.write(b"x-more: of this\r\n" * 100)
                await writer.drain()
                await asyncio.sleep(0)
        if not after and fault == "hang":
            await asyncio.sleep(1000)
        body = {name: value for name, value in body.items() if name not in self.drop}
        if not body.get("stream"):
            await self.whole(writer, path, body)
            return
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        num_sent = 0
        async for event, num_tokens in self.events(path, body):
            if fault and num_sent >= after and await self.fail(writer, fault):
                return
            num_sent += num_tokens
            self.send(writer, event)
            await writer.drain()
        if fault != "no_marker":
            self.send(writer, "[DONE]")
        writer.write(b"0\r\n\r\n")

    async def fail(self, writer: asyncio.StreamWriter, fault: str) -> bool:
        """Whether the stream is over."""
        await writer.drain()
        match fault:
            case "die":
                # What is written is with the kernel, which delivers it.
                os._exit(1)
            case "close":
                writer.close()
            case "silent" | "hang":
                await asyncio.sleep(1000)
            case "no_done":
                writer.write(b"0\r\n\r\n")
            case "error_event":
                self.send(writer, self.error_body(self.status, self.message))
                self.send(writer, "[DONE]")
                writer.write(b"0\r\n\r\n")
            case "garbage":
                self.send(writer, '{"choices": [{"delta": \x00\xff')
            case "endless_event":
                while True:
                    chunk(writer, b"data: " + b"x" * 2**20)
                    await writer.drain()
            case _:
                return False
        return True

    def send(self, writer: asyncio.StreamWriter, event: Any) -> None:
        text = event if isinstance(event, str) else json.dumps(event)
        chunk(writer, f"data: {text}\n\n".encode())

    async def whole(self, writer: asyncio.StreamWriter, path: str, body: dict[str, Any]) -> None:
        """An answer that is not streamed; enough of it for a probe."""
        num_tokens = body.get("max_tokens") or self.num_tokens
        text = text_of(0, num_tokens)
        choice: dict[str, Any] = {"index": 0, "finish_reason": "length"}
        choice |= {"message": {"role": "assistant", "content": text}, "text": text}
        reply(writer, 200, {"id": "x", "model": self.model, "choices": [choice]})

    async def events(self, path: str, body: dict[str, Any]) -> AsyncIterator[tuple[Any, int]]:
        """The events of a stream, and how many tokens are in each."""
        is_chat = path == "/v1/chat/completions"
        prompts = [prompt_text(body)]
        if not is_chat:
            prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
            if isinstance(prompts[0], int):
                prompts = [" ".join(map(str, prompts))]
        n = 1 if self.style == "max" else body.get("n") or 1
        options = body.get("stream_options") or {}
        num_prompt = sum(map(count_tokens, prompts))
        num_generated, num_told, num_here = 0, 0, 0
        prompt = prompts[0]

        def usage() -> dict[str, Any]:
            counts = {"prompt_tokens": num_prompt, "completion_tokens": num_generated}
            if self.style == "llama_cpp":
                counts = {"prompt_tokens": count_tokens(prompt), "completion_tokens": num_here}
            told = counts | {"total_tokens": sum(counts.values())}
            return told if self.style == "max" else told | {"prompt_tokens_details": None}

        def event(choices: list[Any]) -> dict[str, Any]:
            shared = {"id": "up-1", "created": 1, "model": self.model, "choices": choices}
            shared["object"] = "chat.completion.chunk" if is_chat else "text_completion"
            if self.style == "llama_cpp":
                shared["system_fingerprint"] = "b1-fake"
                if body.get("timings_per_token") and choices:
                    timings = {"cache_n": 1, "prompt_n": count_tokens(prompt) - 1}
                    shared["timings"] = timings | {"predicted_n": num_here, "prompt_ms": 1.5}
            if self.style == "max":
                shared |= {"service_tier": None} | ({} if is_chat else {"usage": None})
            if self.style == "vllm" and options.get("continuous_usage_stats"):
                shared["usage"] = usage()
            return shared

        def choice(index: int, text: str, finish: str | None = None, **delta: Any) -> Any:
            nonlocal num_told
            shared: dict[str, Any] = {"index": index, "logprobs": None, "finish_reason": finish}
            if self.style == "max" and body.get("return_token_ids"):
                shared["token_ids"] = [7] * (num_generated - num_told)
                if num_here == 1:
                    shared["prompt_token_ids"] = [1] * count_tokens(prompt)
                num_told = num_generated
            if self.style == "vllm":
                shared |= {"token_ids": None} | ({"stop_reason": None} if finish else {})
            if body.get("logprobs") not in (None, False) and text and is_chat:
                top = [{"token": text, "logprob": -0.5, "bytes": [*text.encode()]}]
                shared["logprobs"] = {"content": [top[0] | {"id": 7, "top_logprobs": top}]}
            elif body.get("logprobs") is not None and text:
                lists = {"tokens": [text], "token_logprobs": [-0.5], "text_offset": [0]}
                shared["logprobs"] = lists | {"top_logprobs": [{text: -0.5}]}
            if not is_chat:
                if self.style == "max" and not shared["logprobs"]:
                    empty = {"text_offset": None, "tokens": None}
                    shared["logprobs"] = empty | {"token_logprobs": [], "top_logprobs": []}
                return shared | {"text": text}
            if text:
                delta["content"] = text
            if self.style == "max":
                shared = {name: value for name, value in shared.items() if value is not None}
                delta = {"content": text, "role": "assistant", **delta}
            return shared | {"delta": delta}

        await asyncio.sleep(self.first_token_s)
        if self.style == "llama_cpp" and len(prompts) > 1:
            yield "null", 0
        for number in range(len(prompts) * n):
            prompt = prompts[number // n]
            limit = body.get("max_completion_tokens") or body.get("max_tokens")
            if is_chat and self.style != "max":
                content = None if self.style == "llama_cpp" else ""
                yield event([choice(number, "", role="assistant", content=content)]), 0
            if is_chat and body.get("tool_choice") == "required":
                name = body["tools"][0]["function"]["name"]
                call = {"index": 0, "id": "call_1", "type": "function"}
                begin = call | {"function": {"name": name, "arguments": ""}}
                yield event([choice(number, "", tool_calls=[begin])]), 1
                for part in ('{"a"', ": 1}"):
                    num_generated += 1
                    more = {"index": 0, "function": {"arguments": part}}
                    yield event([choice(number, "", tool_calls=[more])]), 1
                yield event([choice(number, "", "tool_calls")]), 0
                continue
            if body.get("echo"):
                yield event([choice(number, prompt)]), 0
            for i in range(self.num_reasoning):
                num_generated += 1
                yield event([choice(number, "", reasoning=f" r{i}")]), 1
                await asyncio.sleep(self.token_s)
            position = position_after(prompt)
            stops = body.get("stop") or []
            stops = [stops] if isinstance(stops, str) else stops
            held, num_here, finish = "", 0, None
            while finish is None:
                if position >= self.num_tokens and not body.get("ignore_eos"):
                    finish = "stop"
                    num_here += 1
                    num_generated += 1
                    text, held = held, ""
                else:
                    held += text_of(position, position + 1)
                    position += 1
                    num_here += 1
                    num_generated += 1
                    cut = min((held.find(stop) for stop in stops if stop in held), default=-1)
                    if cut >= 0:
                        finish, text = "stop", held[:cut]
                    else:
                        keep = max((len(stop) - 1 for stop in stops), default=0)
                        if limit is not None and num_here >= limit:
                            finish, keep = "length", 0
                        text, held = held[: len(held) - keep], held[len(held) - keep :]
                    await asyncio.sleep(self.token_s)
                if finish and self.style != "llama_cpp":
                    yield event([choice(number, text, finish)]), 1
                else:
                    if text:
                        yield event([choice(number, text)]), 1
                    if finish:
                        yield event([choice(number, "", finish)]), 0
        if options.get("include_usage") and "usage" not in self.drop:
            yield event([]) | {"usage": usage()}, 0


def prompt_text(body: dict[str, Any]) -> str:
    """The text that a prompt is made of; an open last message is its end."""
    texts = []
    for message in body.get("messages") or ():
        content = message.get("content") or ""
        is_text = isinstance(content, str)
        texts.append(content if is_text else "".join(part["text"] for part in content))
    return "\n".join(texts) + ("" if body.get("continue_final_message") else "\n")


def reply(
    writer: asyncio.StreamWriter, status: int, body: Any, headers: dict[str, str] | None = None
) -> None:
    data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    lines = {"content-type": "application/json", "content-length": str(len(data))} | (headers or {})
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    writer.write(f"HTTP/1.1 {status} X\r\n{head}\r\n".encode() + data)


def chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n%s\r\n" % (len(data), data))


def _settings(pairs: list[str]) -> Iterator[tuple[str, Any]]:
    for pair in pairs:
        name, _, value = pair.partition("=")
        assert name in DEFAULTS, f"{name} is not a setting"
        try:
            yield name, json.loads(value)
        except json.JSONDecodeError:
            yield name, value


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--style", choices=("vllm", "max", "llama_cpp"), default="vllm")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    arguments = parser.parse_args()
    engine = Engine(arguments.style, dict(_settings(arguments.set)))
    asyncio.run(engine.serve(arguments.port))


if __name__ == "__main__":
    main()
