"""Requests to the token ids of their prompts."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any, TypeVar

from axion.backends.native.model import LoadedModel
from axion.errors import ContextLengthExceededError, InvalidRequestError
from axion.openai.chat import ChatCompletionRequest
from axion.openai.common import FILL_CONTEXT, GenerationRequest
from axion.text.answer_format import answer_format

# Shorter texts are counted exactly even if they cannot fit: it takes some milliseconds.
_HUGE_TEXT = 100_000
# The variables by which chat templates switch reasoning on and off.
_REASONING_SWITCHES = ("enable_thinking", "thinking")
T = TypeVar("T")


async def in_thread_if_long(model: LoadedModel, length: int, work: Callable[[], T]) -> T:
    """What `work` returns, done in a thread if it takes the tokenizer long.

    Args:
        length: characters or tokens that it is about.
    """
    is_quick = length <= model.tokenizer.max_quick_chars
    return work() if is_quick else await asyncio.to_thread(work)


def chat_prompt(
    model: LoadedModel, request: ChatCompletionRequest, *, add_special_tokens: bool = False
) -> list[int]:
    """The tokens of a conversation, as the model's chat template writes it.

    Raises:
        InvalidRequestError: the template has no place for something in the request.
        ContextLengthExceededError: it is far longer than the context.
    """
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
    return _encode(
        model, rendered, add_special_tokens, num_kept_tokens(model, request), param="messages"
    )


def text_prompt(
    model: LoadedModel,
    prompt: str | list[int],
    *,
    add_special_tokens: bool,
    num_kept: int | None = None,
) -> list[int]:
    """The tokens of a text, or those given.

    Args:
        num_kept: of more tokens these last ones.

    Raises:
        ContextLengthExceededError: it is far longer than the context, and all is to be kept.
    """
    if isinstance(prompt, str):
        return _encode(model, prompt, add_special_tokens, num_kept, param="prompt")
    return prompt if num_kept is None else prompt[-num_kept:]


def _encode(
    model: LoadedModel, text: str, add_special_tokens: bool, num_kept: int | None, *, param: str
) -> list[int]:
    if num_kept is None:
        _check_length(model, text, param)
        return model.tokenizer.encode(text, add_special_tokens=add_special_tokens)
    end = model.tokenizer.end_of(text, num_kept)
    return model.tokenizer.encode(end, add_special_tokens=add_special_tokens)[-num_kept:]


def num_kept_tokens(model: LoadedModel, request: GenerationRequest) -> int | None:
    """How many tokens of a prompt `truncate_prompt_tokens` leaves; None: all."""
    if request.truncate_prompt_tokens != FILL_CONTEXT:
        return request.truncate_prompt_tokens
    num_reserved = 1 if request.token_limit is None else request.token_limit
    return max(1, model.engine.info.max_model_len - num_reserved)


def _check_length(model: LoadedModel, text: str, param: str) -> None:
    """Refuses a huge text that cannot fit before seconds are spent on encoding it."""
    if len(text) < _HUGE_TEXT:
        return
    num_tokens = model.tokenizer.fewest_tokens(text)
    if num_tokens > model.engine.info.max_model_len:
        raise too_long(model, f"at least {num_tokens}", param)


def too_long(model: LoadedModel, num_tokens: str, param: str) -> ContextLengthExceededError:
    return ContextLengthExceededError(
        f"The context of this model has {model.engine.info.max_model_len} tokens. The prompt has "
        f"{num_tokens}, and the answer needs tokens too. Shorten the prompt.",
        param=param,
    )


def _check_template(request: ChatCompletionRequest, source: str, variables: frozenset[str]) -> None:
    """Refuses what the model's chat template would drop, but for names of messages, which clients
    send to any model.

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
