"""What a request asks of an engine, so that it goes to one that honours it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from axion.openai.chat import AllowedToolChoice, AssistantMessage, ChatCompletionRequest, ChosenTool
from axion.openai.common import GenerationRequest
from axion.openai.completions import CompletionRequest
from axion.openai.structured import StructuredRequest

# Fields that ask an engine for nothing: the server does what they say, or nothing does.
WITHOUT_FEATURE = frozenset(
    """
    model messages prompt stream stream_options user metadata safety_identifier prompt_cache_key
    prompt_cache_retention service_tier store modalities audio functions function_call moderation
    prediction prompt_cache_options verbosity web_search_options suffix best_of
    """.split()  # noqa: SIM905
)
# What a field asks for that is not simply set.
_SPECIAL = frozenset(
    """
    tool_choice tools response_format structured_outputs guided_json guided_regex guided_choice
    guided_grammar seed max_completion_tokens
    """.split()  # noqa: SIM905
)
# Every name that `features` can give.
FEATURES = (
    frozenset({*ChatCompletionRequest.model_fields, *CompletionRequest.model_fields})
    - WITHOUT_FEATURE
    - _SPECIAL
) | frozenset(
    """
    seed seed.0 best_of echo.logprobs prompt.token_ids prompt.list
    stream_options.continuous_usage_stats messages.name messages.reasoning_content
    tools tools.strict tool_choice.none tool_choice.required tool_choice.named
    tool_choice.allowed_tools
    response_format.json_object response_format.json_schema response_format.completions
    structured_outputs.json structured_outputs.json_object structured_outputs.regex
    structured_outputs.choice structured_outputs.grammar
    """.split()  # noqa: SIM905
)
# A value that asks for what is done anyway.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "temperature": (1,),
    "top_p": (1,),
    "top_k": (0, -1),
    "min_p": (0,),
    "n": (1,),
    "stop": ([],),
    "stop_token_ids": ([],),
    "bad_words": ([],),
    "return_token_ids": (False,),
    "min_tokens": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "ignore_eos": (False,),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "priority": (0,),
    "echo": (False,),
    "add_special_tokens": (True,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "chat_template_kwargs": ({},),
    "parallel_tool_calls": (True,),
}


def is_neutral(name: str, value: Any) -> bool:
    """Whether a field that is set to `value` asks for what is done anyway."""
    return value in _NEUTRAL.get(name, ())


def features(request: GenerationRequest) -> frozenset[str]:
    """What a request asks for, each by the name of its field.

    A field that is set to what holds anyway (`n: 1`) asks for nothing. Where an engine may honour
    one value of a field and not another, the name says which: `tool_choice.required`.
    """
    return frozenset(_features(request))


def _features(request: GenerationRequest) -> Iterator[str]:
    for name in request.model_fields_set:
        if name in WITHOUT_FEATURE or name in _SPECIAL:
            continue
        value = getattr(request, name)
        # 0 is not False here: `logprobs: 0` asks for the chosen tokens' log probabilities.
        if value is None or (name == "logprobs" and value is False):
            continue
        if not is_neutral(name, value):
            yield name
    if request.seed is not None:
        yield "seed" if request.seed else "seed.0"
    if request.usage_in_every_chunk:
        yield "stream_options.continuous_usage_stats"
    if isinstance(request, StructuredRequest) and request.constraint is not None:
        param = request.constraint.param
        if param == "response_format":
            assert request.response_format is not None
            yield f"response_format.{request.response_format.type}"
        else:
            yield param.replace("guided_", "structured_outputs.")
    if isinstance(request, ChatCompletionRequest):
        yield from _of_chat(request)
    if isinstance(request, CompletionRequest):
        yield from _of_completion(request)


def _of_chat(request: ChatCompletionRequest) -> Iterator[str]:
    if request.token_limit is not None:
        yield "max_tokens"
    if request.tools:
        yield "tools"
        if any(tool.function.strict for tool in request.tools):
            yield "tools.strict"
    match request.tool_choice:
        case "none" | "required" as word:
            yield f"tool_choice.{word}"
        case ChosenTool():
            yield "tool_choice.named"
        case AllowedToolChoice():
            yield "tool_choice.allowed_tools"
    for message in request.messages:
        if message.name is not None and message.role != "tool":
            yield "messages.name"
        if isinstance(message, AssistantMessage) and message.reasoning_content is not None:
            yield "messages.reasoning_content"


def _of_completion(request: CompletionRequest) -> Iterator[str]:
    if not isinstance(request.prompts[0], str):
        yield "prompt.token_ids"
    if len(request.prompts) > 1:
        yield "prompt.list"
    if request.best_of is not None and request.best_of > request.num_choices:
        yield "best_of"
    if request.echo and request.logprobs is not None:
        yield "echo.logprobs"
    # Where an engine has no other field for JSON, it is asked for by this one, which some have for
    # chats alone.
    if request.constraint is not None and request.constraint.grammar.kind == "json_schema":
        yield "response_format.completions"
