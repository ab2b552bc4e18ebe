"""The in-repo engine as a backend: requests to token ids, token ids to chunks."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import msgspec
from cachetools import LRUCache

from axion import __version__
from axion.backends.answer import Answer, Piece, ShownToken
from axion.backends.architectures import (
    fallback_architectures,
    native_architectures,
    native_quantizations,
    refused_architectures,
)
from axion.backends.base import ModelConfig, PreparedChat, Tokenization
from axion.backends.capabilities import Capabilities
from axion.backends.facts import EngineFacts
from axion.backends.inference import LibraryBackend
from axion.backends.worker import spawn_engine
from axion.engine.client import EngineClient
from axion.errors import (
    CannotContinueError,
    ContextLengthExceededError,
    EngineUnavailableError,
    InvalidRequestError,
    ModelLoadError,
)
from axion.hub.gguf import TENSOR_TYPES, is_gguf, read_gguf
from axion.hub.gguf_config import gguf_generation_config
from axion.hub.resolve import resolve
from axion.hub.snapshot import FORMATS, FORMATS_WITH_PICKLE, fingerprint
from axion.openai.chat import (
    ChatCompletionChunk,
    ChatCompletionRequest,
    ChatFinishReason,
    ChoiceLogprobs,
    ChunkChoice,
    Delta,
    DeltaFunction,
    DeltaToolCall,
    TokenLogprob,
    TopLogprob,
)
from axion.openai.common import (
    CompletionTokensDetails,
    GenerationRequest,
    PromptTokensDetails,
    Usage,
    sampling_params,
    stop_reason_field,
)
from axion.openai.completions import (
    DEFAULT_MAX_TOKENS,
    CompletionChunk,
    CompletionChunkChoice,
    CompletionFinishReason,
    CompletionRequest,
    Logprobs,
)
from axion.openai.delivered import Delivered, DeliveredChoice
from axion.openai.structured import StructuredRequest
from axion.settings import Settings
from axion.text.answer_format import AnswerFormat, answer_format
from axion.text.bounded_tokenizer import load_bounded_tokenizer
from axion.text.chat_template import ChatTemplate, load_chat_template
from axion.text.detokenizer import IncrementalDetokenizer
from axion.text.events import ArgumentsDelta, CallStart, Event, ReasoningDelta, TextDelta
from axion.text.grammar import GrammarCompiler
from axion.text.tokenizer import Tokenizer, read_json
from axion.text.tool_calls import WrittenCall
from axion.text.tool_grammar import Function, arguments_grammar, tool_grammar
from axion.types import (
    MAX_GRAMMAR_CHARS,
    MAX_SEED,
    BackendHealth,
    BackendState,
    EngineConfig,
    FinishReason,
    Grammar,
    SamplingParams,
    TokenLogprobs,
)

# Fields of a chat request without an effect on the answer.
_NO_EFFECT = {
    *("stream", "stream_options", "priority", "user", "metadata", "safety_identifier"),
    *("prompt_cache_key", "prompt_cache_retention", "service_tier", "store", "modalities"),
}
# What the cache's key leaves out: those, and what the prompt's tokens and the sampling parameters
# hold already.
_NOT_IN_KEY = _NO_EFFECT | {
    *("model", "messages", "chat_template_kwargs", "add_generation_prompt"),
    *("max_tokens", "max_completion_tokens", "min_tokens"),
    *("temperature", "top_p", "top_k", "min_p", "seed", "logit_bias", "presence_penalty"),
    *("frequency_penalty", "repetition_penalty", "stop", "stop_token_ids", "ignore_eos"),
    *("include_stop_str_in_output", "skip_special_tokens", "logprobs", "top_logprobs", "n"),
    *("response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice"),
    "guided_grammar",
}
# Shorter texts are counted exactly even if they cannot fit: it takes some milliseconds.
_HUGE_TEXT = 100_000
# Enough to hold the tag at the end of a prompt that opens the model's reasoning.
_TAIL_TOKENS = 32
# The variables by which chat templates switch reasoning on and off.
_REASONING_SWITCHES = ("enable_thinking", "thinking")
# Requests whose key is remembered, so that a cached answer needs no template and no tokenizer.
_MAX_KEYS = 4096
# What OpenAI reports for a probability of zero, which JSON's numbers cannot.
_LOWEST_LOGPROB = -9999.0


class Engine(EngineClient, Protocol):
    """An engine that can be asked how it is, and stopped."""

    def health(self) -> BackendHealth: ...

    async def stop(self, drain_s: float) -> None: ...


EngineFactory = Callable[[EngineConfig], Awaitable[Engine]]


class NativeBackend(LibraryBackend):
    """Serves one model by an engine that speaks token ids.

    Args:
        engine_factory: starts an engine; returns when it is ready. Without it, in a process of its
            own.
    """

    engine = "native"
    has_own_queue = True
    # What it does not honour it refuses itself.
    capabilities = Capabilities(engine="native", honours_all=True)

    def __init__(self, engine_factory: EngineFactory = spawn_engine) -> None:
        self._engine_factory = engine_factory
        self._model: _Model | None = None
        self._keys: LRUCache[bytes, tuple[bytes, bool]] = LRUCache(_MAX_KEYS)

    @classmethod
    def from_settings(cls, settings: Settings, on_progress: Callable[[int, int], None]) -> Self:
        """One in a process of its own."""
        return cls(partial(spawn_engine, on_progress=on_progress))

    @classmethod
    async def facts(cls, settings: Settings) -> EngineFacts:
        """What is known of the engine; no architectures where there may be more."""
        architectures = await asyncio.to_thread(native_architectures)
        fallback = await asyncio.to_thread(fallback_architectures)
        return EngineFacts(
            engine="native",
            version=__version__,
            architectures=architectures and architectures | fallback,
            by_fallback=fallback,
            refusals=await asyncio.to_thread(refused_architectures),
            formats=FORMATS_WITH_PICKLE if settings.allow_pickle else FORMATS,
            quantizations=await asyncio.to_thread(native_quantizations)
            | {kind.name for kind in TENSOR_TYPES.values()},
            quantizes=frozenset({"int8", "int4", "fp8"}),
            deterministic=True,
            memory_factor={"cpu": 1.0, "cuda": 1.05},
        )

    async def start(self, model: ModelConfig) -> None:
        """Find the model's files, load what the API process needs of them, start the engine.

        Raises:
            ModelNotFoundError: there is no such model.
            ModelLoadError: it cannot be served; the message says why.
        """
        if model.tensor_parallel_size > 1:
            raise ModelLoadError(
                f"tensor_parallel_size is {model.tensor_parallel_size}; the native engine computes "
                "on one device."
            )
        formats = FORMATS_WITH_PICKLE if model.allow_pickle else FORMATS
        path = (await resolve(model.model_name, formats=formats)).path
        draft_path = ""
        if model.draft_model:
            draft_path = str((await resolve(model.draft_model, formats=formats)).path)
        config = _engine_config(model, path, draft_path)
        starting = asyncio.ensure_future(self._engine_factory(config))
        try:
            text = await asyncio.to_thread(_load_text, path)
            digest = await asyncio.to_thread(fingerprint, path)
            ready = await starting
            info = ready.info
            grammars = GrammarCompiler(lambda: text[0], info.vocab_size, info.eos_token_ids)
            self._model = _Model(model.name, ready, *text, fingerprint=digest, grammars=grammars)
        except BaseException:
            starting.cancel()
            (engine,) = await asyncio.gather(starting, return_exceptions=True)
            if not isinstance(engine, BaseException):
                await engine.stop(0)
            raise

    async def health(self) -> BackendHealth:
        if self._model is None:
            return BackendHealth(state=BackendState.STARTING, detail="The model is loading.")
        return self._model.engine.health()

    async def stop(self, drain_s: float) -> None:
        if self._model is not None:
            await self._model.engine.stop(drain_s)
            if self._model.chat_template is not None:
                self._model.chat_template.close()
            self._model.tokenizer.close()

    async def prepare_chat(self, request: ChatCompletionRequest) -> PreparedChat:
        model = self._loaded()
        # As it came: the order of keys in a tool is part of the prompt.
        digest = hashlib.blake2b(request.model_dump_json(exclude=_NO_EFFECT).encode()).digest()
        known = self._keys.get(digest)
        if known is not None:
            return PreparedChat(*known, partial(_chat, model, request))
        prompt = await _prepare_chat(model, request)
        known = _cache_key(model, request, prompt), prompt.params.is_deterministic
        if not _reads_clock(model, request):
            self._keys[digest] = known
        return PreparedChat(*known, partial(_chat, model, request, prompt=prompt))

    def chat(
        self,
        request: ChatCompletionRequest,
        request_id: str,
        *,
        delivered: Delivered | None = None,
    ) -> AsyncGenerator[ChatCompletionChunk, None]:
        return _chat(self._loaded(), request, request_id, delivered=delivered)

    def complete(
        self,
        request: CompletionRequest,
        request_id: str,
        *,
        delivered: Delivered | None = None,
    ) -> AsyncGenerator[CompletionChunk, None]:
        return _complete(self._loaded(), request, request_id, delivered=delivered)

    async def tokenize(
        self,
        prompt: str | ChatCompletionRequest,
        *,
        add_special_tokens: bool | None = None,
        with_strings: bool = False,
    ) -> Tokenization:
        model = self._loaded()

        def encode() -> list[int]:
            if not isinstance(prompt, str):
                return _chat_prompt(model, prompt, add_special_tokens=bool(add_special_tokens))
            _check_length(model, prompt, "prompt")
            return model.tokenizer.encode(
                prompt, add_special_tokens=add_special_tokens is not False
            )

        is_short = isinstance(prompt, str) and len(prompt) <= model.tokenizer.max_quick_chars
        token_ids = encode() if is_short else await asyncio.to_thread(encode)
        strings = map(model.tokenizer.id_to_token, token_ids) if with_strings else ()
        return Tokenization(
            token_ids=token_ids,
            token_strings=[string or "" for string in strings],
            max_model_len=model.engine.info.max_model_len,
        )

    async def detokenize(self, token_ids: list[int]) -> str:
        model = self._loaded()
        _check_vocabulary("tokens", token_ids, model.engine.info.vocab_size)

        def decode() -> str:
            return model.tokenizer.decode(token_ids, skip_special_tokens=False)

        return (
            await asyncio.to_thread(decode)
            if len(token_ids) > model.tokenizer.max_quick_chars
            else decode()
        )

    def _loaded(self) -> _Model:
        if self._model is None:
            raise EngineUnavailableError("The model is loading.")
        return self._model


class _Model(msgspec.Struct, frozen=True):
    """A model that is ready.

    Attributes:
        defaults: the model's own recommendation for sampling fields that a request leaves open.
        fingerprint: digest of the model's files.
        grammars: compiles what the engine will, so that a wrong grammar is an error at once.
    """

    name: str
    engine: Engine
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    defaults: dict[str, Any]
    fingerprint: str
    grammars: GrammarCompiler


class _Prompt(NamedTuple):
    """What the engine gets of a chat request."""

    token_ids: list[int]
    params: SamplingParams


class _GenerationConfig(msgspec.Struct):
    """The fields of `generation_config.json` that say how to sample."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


def _engine_config(model: ModelConfig, path: Path, draft_path: str) -> EngineConfig:
    return EngineConfig(
        model_path=str(path),
        device=model.device,
        dtype=model.dtype,
        quantization=model.quantization,
        speculative=model.speculative,
        draft_model_path=draft_path,
        max_model_len=model.max_seq_len,
        max_num_seqs=model.max_num_seqs,
        max_num_batched_tokens=model.max_num_batched_tokens,
        target_itl_s=model.target_itl_s,
        kv_cache_bytes=model.kv_cache_bytes,
        kv_cache_dtype=model.kv_cache_dtype,
        memory_fraction=model.memory_fraction,
        num_threads=model.num_threads,
        cuda_graphs=model.cuda_graphs,
        async_scheduling=model.async_scheduling,
        allow_pickle=model.allow_pickle,
        deterministic=model.deterministic,
    )


def _load_text(path: Path) -> tuple[Tokenizer, ChatTemplate | None, dict[str, Any]]:
    tokenizer = load_bounded_tokenizer(path)
    stored = (
        gguf_generation_config(read_gguf(path))
        if is_gguf(path)
        else read_json(path / "generation_config.json")
    )
    try:
        config = msgspec.convert(stored, _GenerationConfig)
        defaults = {k: v for k, v in msgspec.structs.asdict(config).items() if v is not None}
        SamplingParams(**defaults)
    except (msgspec.ValidationError, InvalidRequestError) as error:
        where = "the GGUF file" if is_gguf(path) else "generation_config.json"
        raise ModelLoadError(f"The sampling defaults in {where} are wrong: {error}") from None
    return tokenizer, load_chat_template(path, tokenizer), defaults


async def _prepare_chat(model: _Model, request: ChatCompletionRequest) -> _Prompt:
    token_ids = await asyncio.to_thread(_chat_prompt, model, request)
    params = _params(model, request, token_ids, default=None, param="messages")
    grammar = await _chat_grammar(model, request)
    return _Prompt(token_ids, msgspec.structs.replace(params, grammar=grammar))


def _cache_key(model: _Model, request: ChatCompletionRequest, prompt: _Prompt) -> bytes:
    """Digest of all that decides the answer, and the salt that keeps tenants apart."""
    params = prompt.params
    if params.temperature == 0:  # nothing is drawn
        params = msgspec.structs.replace(params, seed=None, top_k=0, top_p=1.0, min_p=0.0)
    parts = (
        model.fingerprint,
        model.name,
        prompt.token_ids,
        msgspec.structs.asdict(params) | {"logit_bias": sorted(params.logit_bias.items())},
        request.num_choices,
        request.model_dump(exclude_none=True, exclude=_NOT_IN_KEY),
    )
    return hashlib.blake2b(msgspec.json.encode(parts, order="deterministic")).digest()


def _reads_clock(model: _Model, request: ChatCompletionRequest) -> bool:
    """Whether the same messages may be another prompt tomorrow."""
    template = model.chat_template
    return template is None or "strftime_now" in template.source(with_tools=request.uses_tools)


async def _chat(
    model: _Model,
    request: ChatCompletionRequest,
    request_id: str,
    *,
    prompt: _Prompt | None = None,
    delivered: Delivered | None = None,
) -> AsyncGenerator[ChatCompletionChunk, None]:
    before = {} if delivered is None else delivered.choices
    prompt_token_ids, params = prompt or await _prepare_chat(model, request)
    assert model.chat_template is not None
    written = answer_format(model.chat_template.source(with_tools=request.uses_tools))
    opened = _opens_reasoning(model.tokenizer, request, written, prompt_token_ids)
    functions = request.callable_functions
    visible_token_ids = _special_token_ids(model.tokenizer, written.markers(functions))
    answers = [
        Answer(
            model.tokenizer,
            prompt_token_ids,
            _seeded(params, i),
            parser=written.parser(functions, opened=opened),
            single_call=request.max_one_call,
            skip_special_tokens=params.skip_special_tokens,
            visible_token_ids=visible_token_ids,
        )
        for i in range(request.num_choices)
    ]
    for i, choice in before.items():
        calls = [WrittenCall(call.name, call.arguments, call.offset) for call in choice.calls]
        text = written.write(choice.reasoning, choice.content, calls, opened=opened)
        await _take_over(model, answers[i], choice, text)
    shared = _shared(model, request, f"chatcmpl-{request_id}", "chat.completion.chunk")

    def chunk(
        index: int,
        delta: Delta,
        tokens: list[ShownToken],
        finish: ChatFinishReason | None = None,
        stop_reason: int | str | None = None,
    ) -> ChatCompletionChunk:
        logprobs = _chat_logprobs(model.tokenizer, tokens) if tokens else None
        choice = ChunkChoice(
            index=index,
            delta=delta,
            logprobs=logprobs,
            finish_reason=finish,
            **stop_reason_field(stop_reason),
        )
        return ChatCompletionChunk(**shared | _usage_so_far(request, answers), choices=[choice])

    began = set(before)
    called = {i for i, choice in before.items() if choice.calls}
    unfinished = _unfinished(answers, before)
    async with aclosing(_run(model.engine, request, request_id, unfinished)) as pieces:
        async for index, piece in pieces:
            if index not in began:
                began.add(index)
                yield chunk(index, Delta(role="assistant", content=""), [])
            deltas = _deltas(piece.events)
            if not deltas and piece.tokens:
                deltas = [Delta()]
            for i, delta in enumerate(deltas):
                if delta.tool_calls:
                    called.add(index)
                yield chunk(index, delta, [] if i else piece.tokens)
            if piece.finish_reason is not None:
                finish: ChatFinishReason = _finish_reason(piece.finish_reason)
                if finish == "stop" and index in called:
                    finish = "tool_calls"
                yield chunk(index, Delta(), [], finish, piece.stop_reason)
    if request.include_usage:
        usage = _usage(answers, request.num_choices)
        usage.completion_tokens_details = CompletionTokensDetails(
            reasoning_tokens=sum(answer.num_reasoning_tokens for answer in answers)
        )
        yield ChatCompletionChunk(**shared | {"choices": [], "usage": usage})


async def _complete(
    model: _Model,
    request: CompletionRequest,
    request_id: str,
    *,
    delivered: Delivered | None = None,
) -> AsyncGenerator[CompletionChunk, None]:
    before = {} if delivered is None else delivered.choices
    grammar = await _grammar(model, request)
    answers: list[Answer] = []
    echoes = []
    is_short = sum(map(len, request.prompts)) <= model.tokenizer.max_quick_chars
    encoded = (
        _completion_prompts(model, request)
        if is_short
        else await asyncio.to_thread(_completion_prompts, model, request)
    )
    for prompt, prompt_token_ids in zip(request.prompts, encoded, strict=True):
        params = _params(
            model, request, prompt_token_ids, default=DEFAULT_MAX_TOKENS, param="prompt"
        )
        params = msgspec.structs.replace(params, grammar=grammar)
        echo = ""
        if request.echo:
            echo = prompt if isinstance(prompt, str) else model.tokenizer.decode(prompt)
        for i in range(request.num_choices):
            choice = before.get(len(answers))
            own_params = _seeded(params, i)
            if choice is not None:  # it came with the echo
                own_params = msgspec.structs.replace(own_params, prompt_logprobs=None)
            answer = Answer(
                model.tokenizer,
                prompt_token_ids,
                own_params,
                skip_special_tokens=params.skip_special_tokens,
            )
            answers.append(answer)
            echoes.append(echo)
            if choice is not None:
                text = choice.content.removeprefix(echo)
                if len(text) + len(echo) != len(choice.content):
                    raise CannotContinueError("The answer so far does not begin with the prompt.")
                await _take_over(model, answer, dataclasses.replace(choice, content=text), text)
    shared = _shared(model, request, f"cmpl-{request_id}", "text_completion")

    def chunk(
        index: int,
        text: str,
        logprobs: Logprobs | None = None,
        finish: CompletionFinishReason | None = None,
        stop_reason: int | str | None = None,
    ) -> CompletionChunk:
        choice = CompletionChunkChoice(
            index=index,
            text=text,
            logprobs=logprobs,
            finish_reason=finish,
            **stop_reason_field(stop_reason),
        )
        return CompletionChunk(**shared | _usage_so_far(request, answers), choices=[choice])

    to_echo = set(range(len(answers))) - set(before) if request.echo else set()
    unfinished = _unfinished(answers, before)
    async with aclosing(_run(model.engine, request, request_id, unfinished)) as pieces:
        async for index, piece in pieces:
            answer, echo = answers[index], echoes[index]
            if not answer.num_tokens and piece.finish_reason is None:
                continue  # its prompt is being scored
            if index in to_echo:
                to_echo.remove(index)
                scored = request.num_prompt_logprobs is not None
                logprobs = _prompt_logprobs(model.tokenizer, answer, echo) if scored else None
                yield chunk(index, echo, logprobs)
            if piece.text or piece.tokens:
                offset = len(echo) if request.echo else 0
                logprobs = _legacy_logprobs(model.tokenizer, piece.tokens, offset)
                yield chunk(index, piece.text, logprobs if piece.tokens else None)
            if piece.finish_reason is not None:
                finish = _finish_reason(piece.finish_reason)
                yield chunk(index, "", finish=finish, stop_reason=piece.stop_reason)
    if request.include_usage:
        usage = _usage(answers, request.num_choices)
        yield CompletionChunk(**shared | {"choices": [], "usage": usage})


def _shared(model: _Model, request: GenerationRequest, answer_id: str, kind: str) -> dict[str, Any]:
    """The fields that are the same in every chunk of an answer."""
    shared = {
        "id": answer_id,
        "object": kind,
        "created": int(time.time()),
        "model": model.name,
        "system_fingerprint": None,
    }
    return shared | {"usage": None} if request.include_usage and request.stream else shared


def _chat_prompt(
    model: _Model, request: ChatCompletionRequest, *, add_special_tokens: bool = False
) -> list[int]:
    template = model.chat_template
    if template is None:
        raise InvalidRequestError(
            "This model has no chat template; use /v1/completions with a prompt."
        )
    source = template.source(with_tools=request.uses_tools)
    variables = template.variables(with_tools=request.uses_tools)
    _check_template(request, source, variables)
    messages = _with_reasoning(request.template_messages(), source)
    messages = answer_format(source).tool_calls.template_messages(messages)
    if "developer" not in source:
        for message in messages:
            if message["role"] == "developer":
                message["role"] = "system"  # what OpenAI called it before
    rendered = template.render(
        messages,
        tools=request.template_tools(),
        add_generation_prompt=request.add_generation_prompt is not False,
        continue_final_message=bool(request.continue_final_message),
        template_kwargs=_template_kwargs(request, variables, reasons=answer_format(source).reasons),
    )
    _check_length(model, rendered, "messages")
    return model.tokenizer.encode(rendered, add_special_tokens=add_special_tokens)


def _check_template(request: ChatCompletionRequest, source: str, variables: frozenset[str]) -> None:
    """Refuses what the model's chat template would drop.

    Raises:
        InvalidRequestError: it does not read a field of the request.
    """

    def refuse(param: str) -> InvalidRequestError:
        return InvalidRequestError(
            f"{param} is not supported: this model's chat template has no place for it.",
            param=param,
        )

    written = answer_format(source)
    if request.uses_tools and "tools" not in variables:
        raise refuse("tools")
    for name in request.chat_template_kwargs or ():
        if name not in variables:
            raise refuse(f"chat_template_kwargs.{name[:60]}")
    for i, message in enumerate(request.messages):
        # The name in an answer of a tool says again what its tool_call_id says.
        if message.name is not None and message.role != "tool" and not _reads(source, "name"):
            raise refuse(f"messages[{i}].name")
        if message.role != "assistant":
            continue
        if message.tool_calls and not written.tool_calls.reads_calls(source):
            raise refuse(f"messages[{i}].tool_calls")
        # A template of a model that reasons may leave earlier reasoning out: so it was trained.
        if message.reasoning_content is not None and not written.reasons:
            raise refuse(f"messages[{i}].reasoning_content")


def _template_kwargs(
    request: ChatCompletionRequest, variables: frozenset[str], *, reasons: bool
) -> dict[str, Any]:
    """The variables for a chat template that reads `variables`.

    Raises:
        InvalidRequestError: it has none for `reasoning_effort`.
    """
    given = dict(request.chat_template_kwargs or {})
    effort = request.reasoning_effort
    if effort is None:
        return given
    wanted: dict[str, Any] = {"reasoning_effort": effort}
    if effort == "none":  # also what a template does that can only switch reasoning off
        wanted |= dict.fromkeys(_REASONING_SWITCHES, False)
    for name, value in wanted.items():
        if name in variables:
            if given.setdefault(name, value) != value:
                raise InvalidRequestError(
                    f"reasoning_effort and chat_template_kwargs.{name} contradict each other.",
                    param="reasoning_effort",
                )
            return given
    if effort == "none":
        if not reasons:
            return given  # there is nothing to switch off
        # Without the value, for which Anthropic's API has another word.
        raise InvalidRequestError(
            "reasoning_effort asks for no reasoning, which this model cannot do: its chat template "
            "has no switch for it.",
            param="reasoning_effort",
        )
    switch = next((name for name in _REASONING_SWITCHES if name in variables), None)
    hint = f" It can only switch it: use chat_template_kwargs.{switch}." if switch else ""
    raise InvalidRequestError(
        f"reasoning_effort {effort!r} is not supported: this model's chat template has no levels "
        f"of reasoning.{hint}",
        param="reasoning_effort",
    )


def _with_reasoning(messages: list[dict[str, Any]], source: str) -> list[dict[str, Any]]:
    """The reasoning of earlier answers under the name by which the template reads it."""
    names = ("reasoning_content", "reasoning", "thinking")
    name = next((name for name in names if _reads(source, name)), None)
    for message in messages:
        reasoning = message.pop("reasoning_content", None)
        if reasoning and name:
            message[name] = reasoning
    return messages


def _reads(source: str, field: str) -> bool:
    """Whether a chat template reads a field of messages, and not only of what is in them."""
    loop_variables = "|".join(set(re.findall(r"for\s+(\w+)\s+in\s+\w*messages", source)))
    key = rf"(\.{field}\b|\[['\"]{field}['\"]\]|\.get\(['\"]{field}['\"])"
    return bool(loop_variables and re.search(rf"\b({loop_variables}){key}", source))


def _completion_prompts(model: _Model, request: CompletionRequest) -> list[list[int]]:
    def encode(prompt: str | list[int]) -> list[int]:
        if isinstance(prompt, list):
            return prompt
        _check_length(model, prompt, "prompt")
        return model.tokenizer.encode(
            prompt, add_special_tokens=request.add_special_tokens is not False
        )

    return [encode(prompt) for prompt in request.prompts]


def _check_length(model: _Model, text: str, param: str) -> None:
    """Refuses a huge text that cannot fit before seconds are spent on encoding it."""
    if len(text) < _HUGE_TEXT:
        return
    num_tokens = model.tokenizer.fewest_tokens(text)
    if num_tokens > model.engine.info.max_model_len:
        raise _too_long(model, f"at least {num_tokens}", param)


def _too_long(model: _Model, num_tokens: str, param: str) -> ContextLengthExceededError:
    return ContextLengthExceededError(
        f"The context of this model has {model.engine.info.max_model_len} tokens. The prompt has "
        f"{num_tokens}, and the answer needs tokens too. Shorten the prompt.",
        param=param,
    )


def _params(
    model: _Model,
    request: GenerationRequest,
    prompt_token_ids: list[int],
    *,
    default: int | None,
    param: str,
) -> SamplingParams:
    """How to sample, with a token limit that fits the context.

    Args:
        default: the limit if the request has none; None takes all that is left.
        param: the field that the prompt comes from.

    Raises:
        ContextLengthExceededError: prompt and answer do not fit.
        InvalidRequestError: a token id is outside the vocabulary, or the prompt has no tokens.
    """
    info = model.engine.info
    num_tokens, limit = len(prompt_token_ids), request.token_limit
    if not num_tokens:
        raise InvalidRequestError(f"{param} must not be empty: it has no tokens.", param=param)
    left = info.max_model_len - num_tokens
    if left < (limit != 0):
        raise _too_long(model, str(num_tokens), param)
    if limit is not None and limit > left:
        raise ContextLengthExceededError(
            f"The context of this model has {info.max_model_len} tokens. The request asks for "
            f"{num_tokens + limit}: {num_tokens} in the prompt and {limit} for the answer. "
            f"Shorten the prompt, or ask for at most {left}.",
            param="max_tokens" if request.max_tokens else "max_completion_tokens",
        )
    if limit is None:
        limit = left if default is None else min(default, left)
    params = sampling_params(request, max_tokens=limit, defaults=model.defaults)
    for name, token_ids in (
        (param, prompt_token_ids),
        ("logit_bias", params.logit_bias),
        ("stop_token_ids", params.stop_token_ids),
    ):
        _check_vocabulary(name, token_ids, info.vocab_size)
    return params


def _check_vocabulary(param: str, token_ids: Iterable[int], vocab_size: int) -> None:
    highest = max(token_ids, default=0)
    if highest >= vocab_size:
        raise InvalidRequestError(
            f"{param} has the token id {highest}, and the vocabulary of this model ends at "
            f"{vocab_size - 1}.",
            param=param,
        )


async def _grammar(model: _Model, request: StructuredRequest) -> Grammar | None:
    """What the text of the answer must match.

    Raises:
        InvalidRequestError: it cannot be enforced.
    """
    if request.constraint is None:
        return None
    await _check_grammar(model, *request.constraint)
    return request.constraint.grammar


async def _chat_grammar(model: _Model, request: ChatCompletionRequest) -> Grammar | None:
    """What the answer must match: its text, its calls, or either.

    Raises:
        InvalidRequestError: it cannot be enforced.
    """
    answer = await _grammar(model, request)
    functions = {
        i: Function(tool.function.name, tool.function.parameters, bool(tool.function.strict))
        for i, tool in request.callable_tools.items()
    }
    required = request.requires_call
    restricted = len(functions) < len(request.tools or ())
    is_strict = any(function.strict for function in functions.values())
    if not functions or not (required or restricted or is_strict or request.max_one_call or answer):
        return answer
    assert model.chat_template is not None
    written = answer_format(model.chat_template.source(with_tools=True)).tool_calls
    try:
        grammar = tool_grammar(
            written,
            list(functions.values()),
            model.tokenizer,
            required=required,
            parallel=not request.max_one_call,
            answer=answer,
        )
        await _check_grammar(model, "tools", grammar)
    except InvalidRequestError:
        for i, function in functions.items():  # one of them is at fault, or all together
            param = f"tools[{i}].function.parameters"
            try:
                alone = arguments_grammar(written, function, model.tokenizer, required=required)
            except InvalidRequestError as error:
                raise _unenforceable(param, error) from None
            await _check_grammar(model, param, alone)
        raise
    return grammar


async def _check_grammar(model: _Model, param: str, grammar: Grammar) -> None:
    if len(grammar.text) > MAX_GRAMMAR_CHARS:
        raise InvalidRequestError(
            f"{param} cannot be enforced: at most {MAX_GRAMMAR_CHARS} characters of schemas can.",
            param=param,
        )
    try:
        await asyncio.wrap_future(model.grammars.submit(grammar))
    except InvalidRequestError as error:
        raise _unenforceable(param, error) from None


def _unenforceable(param: str, error: InvalidRequestError) -> InvalidRequestError:
    return InvalidRequestError(f"{param} cannot be enforced: {error.message}", param=param)


def _seeded(params: SamplingParams, index: int) -> SamplingParams:
    """A stream of its own for each choice, the same in every run."""
    if params.seed is None or index == 0:
        return params
    seed = (params.seed + index + MAX_SEED + 1) % (2 * (MAX_SEED + 1)) - MAX_SEED - 1
    return msgspec.structs.replace(params, seed=seed)


async def _take_over(model: _Model, answer: Answer, choice: DeliveredChoice, text: str) -> None:
    """Let an answer go on where another engine's has broken off.

    Args:
        text: what `choice` is as this model writes it.

    Raises:
        CannotContinueError: it cannot.
    """
    if choice.finished:  # only its length counts, in the usage
        token_ids = await asyncio.to_thread(model.tokenizer.encode_continuation, text)
        answer.num_tokens = len(token_ids or ())
        return
    await asyncio.to_thread(answer.take_over, choice, text)
    if answer.params.grammar is not None:
        matcher = await asyncio.wrap_future(model.grammars.submit(answer.params.grammar))
        if not matcher.consume_tokens(answer.generated_before):
            raise CannotContinueError("The answer so far does not match what was asked for.")


def _unfinished(
    answers: list[Answer], before: Mapping[int, DeliveredChoice]
) -> list[tuple[int, Answer]]:
    return [(i, a) for i, a in enumerate(answers) if i not in before or not before[i].finished]


async def _run(
    engine: Engine, request: GenerationRequest, request_id: str, answers: list[tuple[int, Answer]]
) -> AsyncGenerator[tuple[int, Piece], None]:
    """The pieces of all answers as they come, each with its answer's index.

    Closing this aborts what is still running.
    """
    streams = [(i, _pieces(engine, request, f"{request_id}-{i}", answer)) for i, answer in answers]
    if len(streams) == 1:
        [(index, stream)] = streams
        async with aclosing(stream):
            async for piece in stream:
                yield index, piece
        return
    arrived: asyncio.Queue[tuple[int, Piece] | Exception] = asyncio.Queue()

    async def forward(index: int, stream: AsyncGenerator[Piece, None]) -> None:
        try:
            async with aclosing(stream):
                async for piece in stream:
                    arrived.put_nowait((index, piece))
        except Exception as error:
            arrived.put_nowait(error)

    tasks = [asyncio.create_task(forward(i, stream)) for i, stream in streams]
    num_open = len(tasks)
    try:
        while num_open:
            item = await arrived.get()
            if isinstance(item, Exception):
                raise item
            num_open -= item[1].finish_reason is not None
            yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pieces(
    engine: Engine, request: GenerationRequest, request_id: str, answer: Answer
) -> AsyncGenerator[Piece, None]:
    if answer.first is not None:
        yield answer.first
        if answer.first.finish_reason is not None:
            return
    outputs = engine.generate(
        request_id,
        answer.prompt_token_ids + answer.generated_before,
        answer.params,
        cache_salt=request.cache_salt or "",
        priority=request.priority or 0,
        num_generated=len(answer.generated_before),
    )
    async with aclosing(outputs):
        async for output in outputs:
            piece = answer.take(output)
            if piece.finish_reason is not None:
                break  # the sequence is aborted before anybody takes its last piece
            yield piece
        else:
            raise EngineUnavailableError("The engine stopped before the answer was complete.")
    yield piece


def _usage(answers: list[Answer], num_choices: int) -> Usage:
    """What the request took; a prompt counts once, however many answers it has."""
    prompts = answers[::num_choices]
    num_prompt_tokens = sum(len(answer.prompt_token_ids) for answer in prompts)
    num_completion_tokens = sum(answer.num_tokens for answer in answers)
    return Usage(
        prompt_tokens=num_prompt_tokens,
        completion_tokens=num_completion_tokens,
        total_tokens=num_prompt_tokens + num_completion_tokens,
        prompt_tokens_details=PromptTokensDetails(
            cached_tokens=sum(answer.num_cached_tokens for answer in prompts)
        ),
    )


def _usage_so_far(request: GenerationRequest, answers: list[Answer]) -> dict[str, Any]:
    """The field of a chunk that a request with `continuous_usage_stats` wants."""
    if not request.usage_in_every_chunk:
        return {}
    return {"usage": _usage(answers, request.num_choices)}


def _finish_reason(reason: FinishReason) -> CompletionFinishReason:
    return "length" if reason is FinishReason.LENGTH else "stop"


def _deltas(events: list[Event]) -> list[Delta]:
    """One for each event; a call begins with its name, and its arguments follow."""
    deltas: list[Delta] = []
    for event in events:
        match event:
            case TextDelta(text):
                deltas.append(Delta(content=text))
            case ReasoningDelta(text):
                deltas.append(Delta(reasoning_content=text))
            case CallStart(index, id, name):
                function = DeltaFunction(name=name, arguments="")
                call = DeltaToolCall(index=index, id=id, type="function", function=function)
                deltas.append(Delta(tool_calls=[call]))
            case ArgumentsDelta(index, text):
                call = DeltaToolCall(index=index, function=DeltaFunction(arguments=text))
                deltas.append(Delta(tool_calls=[call]))
    return deltas


def _opens_reasoning(
    tokenizer: Tokenizer,
    request: ChatCompletionRequest,
    written: AnswerFormat,
    prompt_token_ids: list[int],
) -> bool:
    """Whether the answer goes on with reasoning that the prompt has begun."""
    if written.reasoning is None:
        return False
    if request.continue_final_message:
        return written.reasoning.left_open_in(request.final_text)
    tail = prompt_token_ids[-_TAIL_TOKENS:]
    return written.reasoning.opened_by(tokenizer.decode(tail, skip_special_tokens=False))


def _special_token_ids(tokenizer: Tokenizer, tokens: Collection[str]) -> frozenset[int]:
    ids = map(tokenizer.token_to_id, tokens)
    return frozenset(id for id in ids if id in tokenizer.special_token_ids and id is not None)


def _chat_logprobs(tokenizer: Tokenizer, tokens: list[ShownToken]) -> ChoiceLogprobs:
    return ChoiceLogprobs(
        content=[
            TokenLogprob(
                **_entry(tokenizer, token.token_id, token.logprobs.logprob),
                top_logprobs=[
                    TopLogprob(**_entry(tokenizer, token_id, logprob))
                    for token_id, logprob in token.logprobs.top
                ],
            )
            for token in tokens
        ],
        refusal=None,
    )


def _entry(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    data = tokenizer.id_to_token_bytes(token_id)
    return {
        # A part of a character is written as \xe2\x80, as OpenAI does.
        "token": data.decode(errors="backslashreplace"),
        "logprob": max(_LOWEST_LOGPROB, logprob),
        "bytes": list(data),
    }


def _prompt_logprobs(tokenizer: Tokenizer, answer: Answer, text: str) -> Logprobs:
    """Of a prompt whose text is `text`; nothing comes before its first token."""
    token_ids = answer.prompt_token_ids
    detokenizer = IncrementalDetokenizer(tokenizer)
    offsets = [0]
    for token_id in token_ids:
        offsets.append(min(offsets[-1] + len(detokenizer.push((token_id,))), len(text)))
    shown = map(ShownToken, token_ids[1:], answer.prompt_logprobs, offsets[1:])
    logprobs = _legacy_logprobs(tokenizer, list(shown))
    return Logprobs(
        tokens=[_legacy_text(tokenizer, token_ids[0]), *logprobs.tokens],
        token_logprobs=[None, *logprobs.token_logprobs],
        top_logprobs=[None, *logprobs.top_logprobs],
        text_offset=[0, *logprobs.text_offset],
    )


def _legacy_logprobs(tokenizer: Tokenizer, tokens: list[ShownToken], offset: int = 0) -> Logprobs:
    """Log probabilities of tokens of a text that begins at `offset`."""
    return Logprobs(
        tokens=[_legacy_text(tokenizer, token.token_id) for token in tokens],
        token_logprobs=[max(_LOWEST_LOGPROB, token.logprobs.logprob) for token in tokens],
        top_logprobs=[_legacy_top(tokenizer, token.token_id, token.logprobs) for token in tokens],
        text_offset=[offset + token.offset for token in tokens],
    )


def _legacy_top(tokenizer: Tokenizer, token_id: int, logprobs: TokenLogprobs) -> dict[str, float]:
    """The likeliest tokens and the chosen one; of two with the same text, the likelier."""
    top: dict[str, float] = {}
    for other_id, logprob in (*logprobs.top, (token_id, logprobs.logprob)):
        top.setdefault(_legacy_text(tokenizer, other_id), max(_LOWEST_LOGPROB, logprob))
    return top


def _legacy_text(tokenizer: Tokenizer, token_id: int) -> str:
    data = tokenizer.id_to_token_bytes(token_id)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + data.decode(errors="backslashreplace")
