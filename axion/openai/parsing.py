"""A body to a request, or the first fault in it as a sentence that names the field."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import JsonValue, ValidationError
from pydantic_core import ErrorDetails, from_json

from axion.errors import InvalidRequestError
from axion.openai.fields import SHOWN_CHARS, RequestModel, shown

RequestT = TypeVar("RequestT", bound=RequestModel)


def parse_request(model: type[RequestT], data: bytes) -> RequestT:
    """The request in a JSON body.

    Raises:
        InvalidRequestError: the body is not JSON, or a field is at fault; `param` names it.
    """
    try:
        body = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidRequestError(f"The request body is not valid JSON: {error}.") from None
    return validate_request(model, body)


def validate_request(model: type[RequestT], body: JsonValue) -> RequestT:
    """The request in a decoded JSON body; raises as `parse_request` does."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise _invalid_request(fault, body) from None


_EXPECTED = {
    "string_type": "a string",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "literal_error": "{expected}",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "string_pattern_mismatch": "text that matches {pattern}",
}


def _invalid_request(fault: ErrorDetails, body: JsonValue) -> InvalidRequestError:
    kind, context = fault["type"], fault.get("ctx", {})
    path = _path_in(body, fault["loc"])
    if kind == "field":
        path.append(context["field"])
        text = context["problem"]
    elif kind == "expected":
        text = f"must be {fault['msg']}, got {shown(fault['input'])}"
    elif kind == "missing":
        path.append(fault["loc"][-1])
        text = "is required"
    elif kind == "problem":
        text = fault["msg"]
    elif kind == "union_tag_not_found":
        path.append(context["discriminator"].strip("'"))
        text = "is required"
    elif kind == "union_tag_invalid":
        name = context["discriminator"].strip("'")
        path.append(name)
        text = f"must be one of {context['expected_tags']}, got {shown(fault['input'][name])}"
    elif kind in {"too_short", "string_too_short"}:
        text = "must not be empty"
    elif kind == "string_too_long":
        limit, length = context["max_length"], len(fault["input"])
        text = f"must be at most {limit} characters long, got {length}"
    elif kind in _EXPECTED:
        expected = _EXPECTED[kind].format_map(
            {
                name: f"{bound:g}" if isinstance(bound, float) else bound
                for name, bound in context.items()
            }
        )
        text = f"must be {expected}, got {shown(fault['input'])}"
    else:
        text = f"is wrong: {fault['msg']}"
    param = _joined(path)
    return InvalidRequestError(f"{param or 'The request body'} {text}.", param=param or None)


def _path_in(body: Any, location: tuple[int | str, ...]) -> list[int | str]:
    """`location` without the names that pydantic adds for the branches of a union."""
    path: list[int | str] = []
    for step in location:
        inside = (
            step in body
            if isinstance(body, dict)
            else isinstance(body, list) and isinstance(step, int) and step < len(body)
        )
        if inside:
            path.append(step)
            body = body[step]
    return path


def _joined(path: list[int | str]) -> str:
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            name = step if step.isidentifier() and len(step) <= SHOWN_CHARS else shown(step)
            text += f".{name}" if text else name
    return text
