"""transformers' `generate` behind just enough of the OpenAI API for `axion bench` to ask it.

    python benchmarks/generate_server.py MODEL --port PORT

Requests that come within a few milliseconds are one batch, padded on the left; those that come
while it is computed are the next one.
"""

from __future__ import annotations

import argparse
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from library_server import Usage, serve
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.bfloat16).eval()
    waiting: queue.SimpleQueue[Asked] = queue.SimpleQueue()
    threading.Thread(target=compute, args=(model, tokenizer, waiting), daemon=True).start()

    def chat(messages: list[dict[str, str]], max_tokens: int) -> Iterator[str | Usage]:
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        asked = Asked(prompt, max_tokens, queue.SimpleQueue())
        waiting.put(asked)
        num_prompt_tokens = asked.tokens.get() or 0
        num_tokens = 0
        while (token := asked.tokens.get()) is not None:
            num_tokens += 1
            yield tokenizer.decode([token])
        yield Usage(num_prompt_tokens, num_tokens)

    serve(chat, arguments.port)


if __name__ == "__main__":
    main()
