"""Small models, engines that echo, and requests that are read by OpenAI's own types."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import openai.types
import openai.types.chat
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from axion.backends.native.backend import NativeBackend
from axion.errors import AxionError, EngineUnavailableError
from axion.openai.chat import ChatCompletionRequest
from axion.openai.chat_answer import collect_chat
from axion.openai.completions import CompletionRequest, collect_completion
from axion.openai.parsing import parse_request
from axion.types import SamplingParams, SequenceOutput
from tests.echo_engine import EchoEngine

# An echo engine answers with the rendered prompt: here, the contents of the messages.
PLAIN_TEMPLATE = (
    "{% for m in messages %}{% if m.role != 'user' %}[{{ m.role }}]{% endif %}"
    "{{ m.content }}{% endfor %}"
)


TOOL_TEMPLATE = (
    "{% if tools %}{# They are called by <tool_call>. #}{% endif %}"
    "{% for m in messages %}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}{{ call.function.arguments.a }}{% endfor %}"
    "{% endfor %}{% if shout %}!{% endif %}"
)


REASONING_TEMPLATE = (
    "{# <think></think> <tool_call> #}{% for m in messages %}"
    "{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}{{ m.content }}"
    "{% endfor %}{% if tools %}{% endif %}"
    "{% if add_generation_prompt and enable_thinking %}<think>{% endif %}"
)


ALWAYS_REASONS_TEMPLATE = "{# <think></think> #}{{ messages[0].content }}"


EFFORT_TEMPLATE = "{{ messages[0].content }} {{ reasoning_effort }}"


JSON_TEMPLATE = "{% if tools %}{% endif %}{{ messages[0].content }}"


TOOLS = [{"type": "function", "function": {"name": "f"}}]


CALL = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'


EOS = 0


def save_model(
    folder: Path,
    chat_template: str | dict[str, str] | None,
    special_tokens: tuple[str, ...] = (),
    **generation: Any,
) -> Path:
    """A model folder without weights: byte tokens, and a few longer ones.

    Args:
        chat_template: one, or several by name.
    """
    folder.mkdir()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=["<|end|>", *special_tokens],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the quick brown fox, the quick brown fox"], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {"eos_token": "<|end|>"}
    if isinstance(chat_template, dict):
        named = [{"name": name, "template": source} for name, source in chat_template.items()]
        config["chat_template"] = named
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text("{}")
    (folder / "generation_config.json").write_text(json.dumps(generation))
    (folder / "model.safetensors").touch()
    if isinstance(chat_template, str):
        (folder / "chat_template.jinja").write_text(chat_template)
    return folder


class RecordingEngine(EchoEngine):
    """An echo engine that keeps what it was asked for."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.prompts: list[list[int]] = []
        self.params: list[SamplingParams] = []
        self.options: list[dict[str, Any]] = []

    async def generate(
        self, request_id: str, prompt_token_ids: list[int], params: SamplingParams, **options: Any
    ) -> AsyncGenerator[SequenceOutput, None]:
        self.prompts.append(prompt_token_ids)
        self.params.append(params)
        self.options.append(options)
        outputs = super().generate(request_id, prompt_token_ids, params, **options)
        async with aclosing(outputs):
            async for output in outputs:
                yield output


class ScriptedEngine(EchoEngine):
    """Answers every prompt with the same outputs."""

    def __init__(self, *outputs: SequenceOutput) -> None:
        super().__init__()
        self.script = outputs

    def _outputs(self, *_: Any) -> Iterator[SequenceOutput]:
        return iter(self.script)


class DyingEngine(EchoEngine):
    """Dies after the first token of each sequence."""

    async def generate(self, *args: Any, **kwargs: Any) -> AsyncGenerator[SequenceOutput, None]:
        outputs = super().generate(*args, **kwargs)
        async with aclosing(outputs):
            yield await anext(outputs)
            raise EngineUnavailableError("The engine stopped.")


Start = Callable[..., Awaitable[NativeBackend]]


def chat_request(content: Any = "Hello, fox.", **fields: Any) -> ChatCompletionRequest:
    messages = content if isinstance(content, list) else [{"role": "user", "content": content}]
    body = {"model": "m", "messages": messages, **fields}
    return parse_request(ChatCompletionRequest, json.dumps(body).encode())


def completion_request(prompt: Any = "Hello, fox.", **fields: Any) -> CompletionRequest:
    return parse_request(
        CompletionRequest, json.dumps({"model": "m", "prompt": prompt, **fields}).encode()
    )


async def chat(
    backend: NativeBackend, content: Any = "Hello, fox.", **fields: Any
) -> openai.types.chat.ChatCompletion:
    """A whole answer, as OpenAI's own client reads it."""
    async with aclosing(backend.chat(chat_request(content, **fields), "r")) as chunks:
        answer = await collect_chat(chunks)
    return openai.types.chat.ChatCompletion.model_validate(json.loads(answer.to_json()))


async def complete(
    backend: NativeBackend, prompt: Any = "Hello, fox.", **fields: Any
) -> openai.types.Completion:
    fields = {"max_tokens": 1000} | fields
    async with aclosing(backend.complete(completion_request(prompt, **fields), "r")) as chunks:
        answer = await collect_completion(chunks)
    return openai.types.Completion.model_validate(json.loads(answer.to_json()))


async def chat_stream(
    backend: NativeBackend, content: Any = "Hello, fox.", **fields: Any
) -> list[openai.types.chat.ChatCompletionChunk]:
    request = chat_request(content, stream=True, **fields)
    async with aclosing(backend.chat(request, "r")) as chunks:
        return [
            openai.types.chat.ChatCompletionChunk.model_validate(json.loads(chunk.to_json()))
            async for chunk in chunks
        ]


def streamed_text(chunks: list[openai.types.chat.ChatCompletionChunk], index: int = 0) -> str:
    choices = [choice for chunk in chunks for choice in chunk.choices]
    return "".join(c.delta.content or "" for c in choices if c.index == index)


async def fault(chunks: AsyncIterator[Any]) -> AxionError:
    """The error that comes instead of a first chunk."""
    with pytest.raises(AxionError) as caught:
        await anext(chunks)
    return caught.value
