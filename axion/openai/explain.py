"""`POST /v1/route/explain`, Axion's own: which engines a model has, and who would answer."""

from __future__ import annotations

from pydantic import Field

from axion.errors import InvalidRequestError
from axion.openai.chat import ChatCompletionRequest
from axion.openai.common import GenerationRequest, ModelRequest
from axion.openai.completions import CompletionRequest
from axion.openai.fields import Object, ResponseModel
from axion.openai.parsing import validate_request


class ExplainRequest(ModelRequest):
    """A model, and a request to it if one is to be explained too."""

    request: Object | None = Field(
        None, description="the body of a chat completion or of a text completion; it is not run"
    )

    def generation_request(self, model: str) -> GenerationRequest | None:
        """The request to explain.

        Raises:
            InvalidRequestError: it is none, or a field of it is at fault.
        """
        if self.request is None:
            return None
        body = {"model": model, **self.request}
        if ("messages" in body) == ("prompt" in body):
            raise InvalidRequestError(
                "request must be the body of a chat completion, with messages, or of a text "
                "completion, with prompt.",
                param="request",
            )
        try:
            if "messages" in body:
                return validate_request(ChatCompletionRequest, body)
            return validate_request(CompletionRequest, body)
        except InvalidRequestError as error:
            error.param = f"request.{error.param}" if error.param else "request"
            raise


class ExplainedEngine(ResponseModel):
    """One engine.

    Attributes:
        accepted: it can serve the model.
        code, reason: why, or why not, for machines and for people.
        state: of its process; None where it was refused, so that there is none.
        missing: what the request asks for and it would refuse or drop.
    """

    engine: str
    version: str
    accepted: bool
    code: str
    reason: str
    state: str | None
    detail: str
    missing: list[str]


class Explanation(ResponseModel):
    """Why a model is served by what serves it.

    Attributes:
        device: `cpu` or `cuda`; None where nobody had to decide.
        features: what the request asks an engine for.
        engines: the one that is wanted most first.
        answered_by: who would answer the request now; None if nobody would.
        error: what the client would then be told.
    """

    model: str
    device: str | None
    features: list[str]
    engines: list[ExplainedEngine]
    answered_by: str | None
    error: str | None
