"""The fields of a request that say what its answer must match."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import from_json

from axion.errors import InvalidRequestError
from axion.openai.common import GenerationRequest
from axion.openai.fields import (
    FAIL_FAST,
    NonEmptyText,
    Object,
    Refused,
    RequestModel,
    at_most,
    field_error,
    problem,
)
from axion.types import MAX_GRAMMAR_CHARS, Grammar

MAX_CHOICE_STRINGS = 10_000
_NO_BACKENDS = "there is one implementation, and it has no options"


class Constraint(NamedTuple):
    """A grammar, and the field of the request that it comes from."""

    param: str
    grammar: Grammar


def _schema_kind(value: Any) -> str | None:
    if isinstance(value, str):
        return "text"
    return "object" if isinstance(value, dict) else None


def _is_schema(text: str) -> str:
    try:
        schema = from_json(text, allow_inf_nan=False)
    except ValueError:
        schema = None
    if not isinstance(schema, dict):
        raise problem("must be a JSON schema: an object, or the text of one")
    return text


GrammarText = Annotated[str, Field(min_length=1, max_length=MAX_GRAMMAR_CHARS)]
Schema = Annotated[
    Annotated[GrammarText, AfterValidator(_is_schema), Tag("text")]
    | Annotated[Object, Tag("object")],
    Discriminator(
        _schema_kind,
        custom_error_type="expected",
        custom_error_message="a JSON schema: an object, or the text of one",
    ),
]
Choice = Annotated[list[NonEmptyText], Field(min_length=1), FAIL_FAST, at_most(MAX_CHOICE_STRINGS)]


class JsonSchema(RequestModel):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: Object | None = Field(None, alias="schema")
    strict: bool | None = Field(None, description="the schema is enforced with any value")


class ResponseFormat(RequestModel):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = Field(None, description="only with type json_schema")
    value: Object | None = Field(
        None,
        description="only with type json_object: the schema, as Hugging Face's client sends it",
    )

    @model_validator(mode="after")
    def _has_what_its_type_needs(self) -> ResponseFormat:
        if self.type == "json_schema" and self.json_schema is None:
            raise field_error("json_schema", "is required with type json_schema")
        if self.type != "json_schema" and self.json_schema is not None:
            raise field_error("json_schema", "is only for type json_schema")
        if self.type != "json_object" and self.value is not None:
            raise field_error("value", "is only for type json_object")
        return self

    @property
    def constraint(self) -> Constraint | None:
        if self.type == "text":
            return None
        schema = self.json_schema.schema_ if self.json_schema is not None else self.value
        return Constraint("response_format", _json_grammar("response_format", schema))


class StructuredOutputs(RequestModel):
    """vLLM's field: exactly one of these says what the answer matches."""

    json_: Schema | None = Field(None, alias="json", description="a JSON schema")
    regex: GrammarText | None = None
    choice: Choice | None = None
    grammar: GrammarText | None = Field(None, description="in the syntax of Lark or GBNF")
    json_object: Literal[True] | None = Field(None, description="any JSON object")

    structural_tag: Annotated[None, Refused("use grammar")] = None
    disable_fallback: Annotated[bool, Refused(_NO_BACKENDS, (False,))] | None = None
    disable_any_whitespace: Annotated[bool, Refused(_NO_BACKENDS, (False,))] | None = None
    disable_additional_properties: (
        Annotated[bool, Refused("say additionalProperties: false in the schema", (False,))] | None
    ) = None
    whitespace_pattern: Annotated[None, Refused(_NO_BACKENDS)] = None

    @model_validator(mode="after")
    def _has_exactly_one(self) -> StructuredOutputs:
        if sum(value is not None for value in self._values.values()) != 1:
            raise problem(f"must have exactly one of {', '.join(self._values)}")
        return self

    @property
    def constraint(self) -> Constraint:
        [(name, value)] = [item for item in self._values.items() if item[1] is not None]
        return _constraint(f"structured_outputs.{name}", name, value)

    @property
    def _values(self) -> dict[str, Any]:
        return {
            "json": self.json_,
            "regex": self.regex,
            "choice": self.choice,
            "grammar": self.grammar,
            "json_object": self.json_object,
        }


class StructuredRequest(GenerationRequest):
    """A request that may say what its answer must match.

    All but `response_format` are vLLM's, with its names and meanings.
    """

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | None = Field(None, description="older name of structured_outputs.json")
    guided_regex: GrammarText | None = Field(None, description="of structured_outputs.regex")
    guided_choice: Choice | None = Field(None, description="of structured_outputs.choice")
    guided_grammar: GrammarText | None = Field(None, description="of structured_outputs.grammar")

    @model_validator(mode="after")
    def _has_at_most_one_constraint(self) -> StructuredRequest:
        constraints = self._constraints()
        if len(constraints) > 1:
            first, second = (constraint.param for constraint in constraints[:2])
            raise InvalidRequestError(
                f"{first} and {second} exclude each other: both say what the answer must match.",
                param=second,
            )
        return self

    @property
    def constraint(self) -> Constraint | None:
        """What the text of the answer must match, if anything."""
        return next(iter(self._constraints()), None)

    def _constraints(self) -> list[Constraint]:
        constraints = []
        if self.response_format is not None and (own := self.response_format.constraint):
            constraints.append(own)
        constraints += [
            _constraint(f"guided_{name}", name, value)
            for name in ("json", "regex", "choice", "grammar")
            if (value := getattr(self, f"guided_{name}")) is not None
        ]
        if self.structured_outputs is not None:
            constraints.append(self.structured_outputs.constraint)
        return constraints


def _constraint(param: str, name: str, value: Any) -> Constraint:
    if name == "json":
        grammar = _json_grammar(param, value)
    elif name == "json_object":
        grammar = _json_grammar(param, None)
    elif name == "choice":
        grammar = Grammar("choice", json.dumps(value))
    elif name == "regex":
        grammar = Grammar("regex", value)
    else:
        grammar = Grammar("grammar", value)
    _check_size(param, grammar)
    return Constraint(param, grammar)


def _json_grammar(param: str, schema: dict[str, Any] | str | None) -> Grammar:
    if schema is None:
        schema = {"type": "object"}
    text = schema if isinstance(schema, str) else json.dumps(schema)
    grammar = Grammar("json_schema", text)
    _check_size(param, grammar)
    return grammar


def _check_size(param: str, grammar: Grammar) -> None:
    if len(grammar.text) > MAX_GRAMMAR_CHARS:
        raise InvalidRequestError(
            f"{param} must be at most {MAX_GRAMMAR_CHARS} characters long, "
            f"got {len(grammar.text)}.",
            param=param,
        )
