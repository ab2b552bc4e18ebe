"""The grammar that an answer must match: its text, its calls, or either."""

from __future__ import annotations

import asyncio

from axion.backends.native.model import LoadedModel
from axion.errors import InvalidRequestError
from axion.openai.chat import ChatCompletionRequest
from axion.openai.structured import StructuredRequest
from axion.text.answer_format import answer_format
from axion.text.tool_grammar import Function, arguments_grammar, tool_grammar
from axion.types import MAX_GRAMMAR_CHARS, Grammar


async def constraint_grammar(model: LoadedModel, request: StructuredRequest) -> Grammar | None:
    """What the text of the answer must match.

    Raises:
        InvalidRequestError: it cannot be enforced.
    """
    if request.constraint is None:
        return None
    await _check_grammar(model, *request.constraint)
    return request.constraint.grammar


async def chat_grammar(model: LoadedModel, request: ChatCompletionRequest) -> Grammar | None:
    """What the answer must match: its text, its calls, or either.

    Raises:
        InvalidRequestError: it cannot be enforced.
    """
    answer = await constraint_grammar(model, request)
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


async def _check_grammar(model: LoadedModel, param: str, grammar: Grammar) -> None:
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
