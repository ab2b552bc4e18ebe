"""Requests as one server takes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from axion.backends.capabilities import USAGE_IN_CHUNKS, Capabilities
from axion.errors import InvalidRequestError
from axion.openai.common import GenerationRequest
from axion.openai.features import is_neutral
from axion.openai.structured import StructuredRequest

# Fields that are sent in another way; and those that ask for nothing, which some servers refuse.
_NOT_SENT = frozenset(
    """
    model stream stream_options
    user metadata safety_identifier prompt_cache_key prompt_cache_retention service_tier store
    modalities best_of structured_outputs guided_json guided_regex guided_choice guided_grammar
    """.split()  # noqa: SIM905
)
# Some servers take 0 for none; any other number is as good.
_SEED_FOR_0 = 1_592_653_589
_CONSTRAINTS = ("json", "regex", "choice", "grammar", "json_object")


class Dialect:
    """How one server wants to be asked for its model.

    Args:
        engine, upstream_model, rename, extra_body, counts, capabilities: as `Upstream` takes them.

    Attributes:
        tells_usage: whether each of the server's chunks can have the usage so far, by which another
            engine can go on with the answer exactly.
        counts: whether they are asked for in the server's own words.
    """

    def __init__(
        self,
        *,
        engine: str,
        upstream_model: str,
        capabilities: Capabilities,
        rename: Mapping[str, str] | None = None,
        extra_body: Mapping[str, Any] | None = None,
        counts: Mapping[str, Any] | None = None,
    ) -> None:
        self.engine = engine
        self.upstream_model = upstream_model
        self.capabilities = capabilities
        self.extra_body = dict(extra_body or {})
        self._rename = dict(rename or {})
        self._counts = dict(counts or {})
        self._has_usage_option = not capabilities.missing([USAGE_IN_CHUNKS])
        self.tells_usage = self._has_usage_option or bool(counts)
        self.counts = bool(counts)

    def body(self, request: GenerationRequest) -> dict[str, Any]:
        """A request as the server takes it.

        Raises:
            InvalidRequestError: the server has no field for something in it.
        """
        given = request.model_dump(
            exclude_unset=True, exclude_none=True, by_alias=True, exclude=set(_NOT_SENT)
        )
        if self.cuts(request):
            given.pop("stop", None)
            given.pop("include_stop_str_in_output", None)
        if request.seed == 0 and self.capabilities.missing(["seed.0"]):
            given["seed"] = _SEED_FOR_0
        missing = self.capabilities.missing([*given])
        body = {
            self.name_of(name): value
            for name, value in given.items()
            if not (name in missing and is_neutral(name, value))
        }
        if isinstance(request, StructuredRequest):
            body |= self._constraint(request)
        own: dict[str, Any] = {"model": self.upstream_model}
        if self.streams(request):
            options: dict[str, Any] = {"include_usage": True}
            if self._has_usage_option:
                options["continuous_usage_stats"] = True
            own |= {"stream": True, "stream_options": options, **self._counts}
        return own | body | self.extra_body

    def streams(self, request: GenerationRequest) -> bool:
        """Whether the answer is asked for as a stream, in which vLLM scores no prompts."""
        return request.prompt_logprobs is None

    def cuts(self, request: GenerationRequest) -> bool:
        """Whether stop strings of this request are found here, since the server would not."""
        wanted = ["stop"]
        if request.include_stop_str_in_output:
            wanted.append("include_stop_str_in_output")
        return bool(request.stop and self.capabilities.missing(wanted))

    def name_of(self, field: str) -> str:
        """The server's name of a request's field."""
        return self._rename.get(field, field)

    def _constraint(self, request: StructuredRequest) -> dict[str, Any]:
        constraint = request.constraint
        if constraint is None or constraint.param == "response_format":
            return {}
        if request.structured_outputs is not None:
            given = request.structured_outputs.model_dump(by_alias=True, include=set(_CONSTRAINTS))
            given |= {"json": request.structured_outputs.json_}
        else:
            given = {name: getattr(request, f"guided_{name}", None) for name in _CONSTRAINTS}
        [(name, value)] = [item for item in given.items() if item[1] is not None]
        if not self.capabilities.missing([f"structured_outputs.{name}"]):
            return {"structured_outputs": {name: value}}
        if name == "json":
            schema = msgspec.json.decode(value) if isinstance(value, str) else value
            described = {"name": "answer", "schema": schema, "strict": True}
            return {"response_format": {"type": "json_schema", "json_schema": described}}
        if name == "json_object":
            return {"response_format": {"type": "json_object"}}
        raise InvalidRequestError(
            f"{constraint.param} is not supported by the engine of this model ({self.engine}).",
            param=constraint.param,
        )
