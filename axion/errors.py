"""Errors with the HTTP status and the OpenAI error type that a client sees.

Every error that a request can meet is an `AxionError`. Its message is written for the
person who sent the request: what was wrong, what was expected, what to do. It never holds
a path, a socket name or a traceback.
"""

from __future__ import annotations

from typing import Any, ClassVar


class AxionError(Exception):
    """Base of all errors that Axion raises on purpose.

    Args:
        message: one or two sentences for the person who sent the request.
        param: the request field at fault, as OpenAI names it (`messages[0].role`).
        code: OpenAI's machine-readable code where it has one.
        headers: extra response headers (`Retry-After`).
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    default_code: ClassVar[str | None] = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or self.default_code
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """OpenAI's error body: `{"error": {"message", "type", "param", "code"}}`."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


class InvalidRequestError(AxionError):
    """A field of the request is missing, malformed, out of range or not supported."""

    status = 400
    type = "invalid_request_error"


class ContextLengthExceededError(InvalidRequestError):
    """The prompt does not fit the model's context."""

    default_code = "context_length_exceeded"


class NotFoundError(AxionError):
    """No such route."""

    status = 404
    type = "invalid_request_error"


class ModelNotFoundError(NotFoundError):
    """The request names a model that this server does not serve."""

    default_code = "model_not_found"


class MethodNotAllowedError(AxionError):
    """The route exists, but not for this HTTP method."""

    status = 405
    type = "invalid_request_error"


class RequestTooLargeError(AxionError):
    """The request body, or one of its parts, is over its size limit."""

    status = 413
    type = "invalid_request_error"
    default_code = "request_too_large"


class QueueFullError(AxionError):
    """More requests are in flight than the server admits; try again later."""

    status = 429
    type = "rate_limit_error"
    default_code = "queue_full"


class EngineUnavailableError(AxionError):
    """The model's engine is starting, restarting or down."""

    status = 503
    type = "service_unavailable_error"
    default_code = "engine_unavailable"


class CannotContinueError(EngineUnavailableError):
    """An answer broke off, and this engine cannot go on with it."""


class ModelLoadError(AxionError):
    """A model cannot be loaded: its files, its architecture or this machine stand in the way."""

    default_code = "model_load_failed"


class InternalError(AxionError):
    """A fault of Axion's own. The log has the details, the client has the request id."""

    default_code = "internal_error"
