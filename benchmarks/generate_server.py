"""transformers' `generate` behind just enough of the OpenAI API for `axion bench` to ask it.

    python benchmarks/generate_server.py MODEL --port PORT

Requests that come within a few milliseconds are one batch, padded on the left; those that come
while it is computed are the next one.
"""

from __future__ import annotations

import argparse
import json
import queue
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.generation.streamers import BaseStreamer

GATHER_S = 0.02


class Asked(NamedTuple):
    """
    Attributes:
        tokens: to the client: the number of prompt tokens, then each token id; None at the end.
    """

    prompt: str
    max_tokens: int
    tokens: queue.SimpleQueue[int | None]


class Fan(BaseStreamer):
    """Gives each request of a batch its tokens."""

    def __init__(self, batch: list[Asked]) -> None:
        self._batch = batch
        self._num_steps = -1  # the first are the prompts

    def put(self, value: torch.Tensor) -> None:
        self._num_steps += 1
        if self._num_steps:
            for asked, token in zip(self._batch, value.tolist(), strict=True):
                if self._num_steps <= asked.max_tokens:
                    asked.tokens.put(token)

    def end(self) -> None:
        for asked in self._batch:
            asked.tokens.put(None)


def compute(model: Any, tokenizer: Any, waiting: queue.SimpleQueue[Asked]) -> None:
    while True:
        batch = [waiting.get()]
        time.sleep(GATHER_S)
        while not waiting.empty():
            batch.append(waiting.get())
        inputs = tokenizer([asked.prompt for asked in batch], return_tensors="pt", padding=True)
        for asked, mask in zip(batch, inputs.attention_mask, strict=True):
            asked.tokens.put(int(mask.sum()))
        num_tokens = max(asked.max_tokens for asked in batch)
        with torch.inference_mode():
            model.generate(
                **inputs,
                do_sample=False,
                min_new_tokens=num_tokens,
                max_new_tokens=num_tokens,
                streamer=Fan(batch),
            )


def handler(tokenizer: Any, waiting: queue.SimpleQueue[Asked]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            body = b'{"data": [{"id": "bench"}]}'
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            prompt = tokenizer.apply_chat_template(
                body["messages"], tokenize=False, add_generation_prompt=True
            )
            asked = Asked(prompt, body["max_tokens"], queue.SimpleQueue())
            waiting.put(asked)
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("connection", "close")
            self.end_headers()
            num_prompt_tokens = asked.tokens.get()
            num_tokens = 0
            while (token := asked.tokens.get()) is not None:
                num_tokens += 1
                self.send({"choices": [{"delta": {"content": tokenizer.decode([token])}}]})
            usage = {"prompt_tokens": num_prompt_tokens, "completion_tokens": num_tokens}
            self.send({"choices": [], "usage": usage})
            self.wfile.write(b"data: [DONE]\n\n")
            self.close_connection = True

        def send(self, chunk: dict[str, Any]) -> None:
            self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")

    return Handler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.bfloat16).eval()
    waiting: queue.SimpleQueue[Asked] = queue.SimpleQueue()
    threading.Thread(target=compute, args=(model, tokenizer, waiting), daemon=True).start()
    with ThreadingHTTPServer(("127.0.0.1", arguments.port), handler(tokenizer, waiting)) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
