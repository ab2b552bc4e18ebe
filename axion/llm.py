"""The offline face: generate for a list of prompts in this process, without a server."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from axion.engine.assembly import load_engine
from axion.engine.messages import AddRequest
from axion.errors import InternalError, InvalidRequestError
from axion.hub.resolve import resolve
from axion.hub.snapshot import native_formats
from axion.text.chat_template import load_chat_template
from axion.text.detokenizer import IncrementalDetokenizer
from axion.text.stop import StopStrings
from axion.text.tokenizer import load_tokenizer
from axion.types import (
    EngineConfig,
    FinishReason,
    SamplingParams,
    SequenceOutput,
    TokenLogprobs,
)

Prompt = str | list[int]


class Generation(msgspec.Struct, kw_only=True):
    """What one prompt led to.

    Attributes:
        token_ids: the generated tokens, with the one that ended the sequence.
        logprobs: one entry a token, when asked for.
        prompt_logprobs: one entry for each token of the prompt but the first, when asked for.
        num_cached_tokens: prompt tokens that came from the prefix cache.
    """

    prompt_token_ids: list[int]
    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None
    num_cached_tokens: int = 0


class LLM:
    """A model to generate with, in this process.

    >>> llm = LLM("axion/demo")
    >>> llm.chat([{"role": "user", "content": "What is 20 + 22?"}]).text
    '20 + 22 = 42'

    Args:
        model: Hugging Face id, local folder, or `axion/demo`.
        options: fields of `EngineConfig` (`device`, `dtype`, `max_model_len`, ...).

    Raises:
        ModelLoadError: the model cannot be had or served; the message says why.
    """

    def __init__(self, model: str, **options: Any) -> None:
        formats = native_formats(
            allow_pickle=options.get("allow_pickle", False),
            trust_remote_code=options.get("trust_remote_code", False),
        )
        # In a thread, because a notebook's own thread has an event loop that runs already.
        with ThreadPoolExecutor(1) as thread:
            path = thread.submit(asyncio.run, resolve(model, formats=formats)).result().path
        self.tokenizer = load_tokenizer(path)
        self.chat_template = load_chat_template(path, self.tokenizer)
        self.engine = load_engine(EngineConfig(model_path=str(path), **options))
        self._num_requests = 0

    def generate(
        self,
        prompts: Prompt | list[Prompt],
        params: SamplingParams | list[SamplingParams] | None = None,
    ) -> list[Generation]:
        """Continue each prompt; all run together, batched as the engine sees fit.

        Args:
            prompts: strings, or lists of token ids; a single one may stand alone.
            params: one for all prompts, or one for each.

        Returns:
            One generation a prompt, in order.

        Raises:
            InvalidRequestError: a prompt is empty, too long or outside the vocabulary.
        """
        many: list[Prompt] = [prompts] if _is_single(prompts) else prompts
        if not isinstance(params, list):
            params = [params or SamplingParams()] * len(many)
        runs: dict[str, _Run] = {}
        try:
            for prompt, own_params in zip(many, params, strict=True):
                run = self._add(prompt, own_params)
                runs[run.request_id] = run
            while self.engine.has_unfinished:
                for output in self.engine.step():
                    run = runs[output.request_id]
                    run.take(output)
                    if run.stopped and output.finish_reason is None:
                        self.engine.abort([run.request_id])
        finally:
            self.engine.abort(list(runs))  # of an interrupted call nothing stays behind
        return [run.generation for run in runs.values()]

    def chat(
        self, messages: list[dict[str, Any]], params: SamplingParams | None = None, **kwargs: Any
    ) -> Generation:
        """Answer a conversation, rendered by the model's own chat template.

        Args:
            kwargs: passed to the template (`tools`, `add_generation_prompt`, ...).
        """
        if self.chat_template is None:
            raise InvalidRequestError("This model has no chat template; use generate().")
        prompt = self.tokenizer.encode_chat(self.chat_template.render(messages, **kwargs))
        return self.generate(prompt, params)[0]

    def _add(self, prompt: Prompt, params: SamplingParams) -> _Run:
        token_ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        self._num_requests += 1
        if params.grammar is not None:
            self.engine.grammars.compile(params.grammar)  # raises what the engine would answer
        run = _Run(self, f"llm-{self._num_requests}", token_ids, params)
        refusal = self.engine.add(AddRequest(run.request_id, token_ids, params))
        if refusal is not None:
            raise InvalidRequestError(refusal.error or "The engine refused the prompt.")
        return run


def _is_single(prompts: Prompt | list[Prompt]) -> bool:
    return isinstance(prompts, str) or (bool(prompts) and isinstance(prompts[0], int))


class _Run:
    """One prompt on its way, and the text it has become so far."""

    def __init__(
        self, llm: LLM, request_id: str, prompt_token_ids: list[int], params: SamplingParams
    ) -> None:
        self.request_id = request_id
        self.stopped = False
        self._params = params
        self._detokenizer = IncrementalDetokenizer(
            llm.tokenizer,
            skip_special_tokens=params.skip_special_tokens,
            prompt_token_ids=prompt_token_ids,
        )
        self._stop = StopStrings(params.stop, params.include_stop_str_in_output)
        self.generation = Generation(
            prompt_token_ids=prompt_token_ids,
            text="",
            token_ids=[],
            finish_reason=FinishReason.STOP,
            logprobs=None if params.logprobs is None else [],
            prompt_logprobs=None if params.prompt_logprobs is None else [],
        )

    def take(self, output: SequenceOutput) -> None:
        if output.finish_reason is FinishReason.ERROR:
            raise InternalError(output.error or "The engine could not go on.")
        generation = self.generation
        generation.num_cached_tokens = output.num_cached_tokens
        if generation.prompt_logprobs is not None:
            generation.prompt_logprobs += output.prompt_logprobs or []
        for index, token_id in enumerate(output.token_ids):
            generation.token_ids.append(token_id)
            if generation.logprobs is not None and output.logprobs is not None:
                generation.logprobs.append(output.logprobs[index])
            if token_id != output.stop_token_id:
                self._push(self._detokenizer.push([token_id]))
            if self.stopped:
                return
        if output.finish_reason is not None:
            generation.finish_reason = output.finish_reason
            self._push(self._detokenizer.flush())
            if not self.stopped:
                generation.text += self._stop.flush()

    def _push(self, text: str) -> None:
        """Show text up to a stop string, which counts once there are `min_tokens`."""
        generation = self.generation
        if len(generation.token_ids) < self._params.min_tokens:
            generation.text += text
            return
        text, matched = self._stop.push(text)
        generation.text += text
        if matched is not None:
            self.stopped = True
            generation.finish_reason = FinishReason.STOP
