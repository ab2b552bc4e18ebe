"""The API process's side of the process that renders chat templates."""

from __future__ import annotations

import json
import sys
from typing import Any

from axion.errors import AxionError, EngineUnavailableError, InvalidRequestError, ModelLoadError
from axion.text import template_worker
from axion.text.bounded_process import BoundedProcess, StoppedError

DEFAULT_TIMEOUT_S = 2.0
_MAX_MESSAGE_CHARS = 1000


class TemplateProcess(BoundedProcess):
    """Renders templates, one at a time; safe from several threads.

    Args:
        timeout_s: most time for one template, in seconds.
    """

    def __init__(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        # -P: no module is taken from the script's folder or the working folder.
        command = [sys.executable, "-P", template_worker.__file__]
        super().__init__(command, "renders chat templates", timeout_s)

    def describe(self, template: str) -> dict[str, Any]:
        """What a template reads: what `template_worker.describe` says.

        Raises:
            ModelLoadError: it has a syntax error, or cannot be compiled within the limits.
        """
        try:
            result: dict[str, Any] = self._ask(template, None)
        except (InvalidRequestError, EngineUnavailableError) as error:
            raise ModelLoadError(error.message) from None
        return result

    def render(self, template: str, arguments: dict[str, Any]) -> str:
        """The text that a template makes of its arguments, which are JSON.

        Raises:
            InvalidRequestError: the template raised an error, did what the sandbox forbids, or
                went over a limit.
        """
        result: str = self._ask(template, arguments)
        return result

    def _ask(self, template: str, arguments: dict[str, Any] | None) -> Any:
        try:
            request = json.dumps({"template": template, "arguments": arguments}).encode()
        except (ValueError, RecursionError):
            raise _failed("it is nested too deeply, or holds a number that is too long") from None
        try:
            reply = json.loads(self.call(request))
        except StoppedError as error:
            raise InvalidRequestError(
                f"The model's chat template was stopped: {error}.", param="messages"
            ) from None
        if "error" in reply:
            raise _ERRORS[reply["error"]](reply["message"][:_MAX_MESSAGE_CHARS])
        return reply["result"]


def _failed(message: str) -> AxionError:
    return InvalidRequestError(
        f"The model's chat template does not take this conversation: {message}", param="messages"
    )


def _refused(message: str) -> AxionError:
    return InvalidRequestError(
        f"The model's chat template was refused, it does what the sandbox forbids: {message}",
        param="messages",
    )


def _syntax(message: str) -> AxionError:
    return ModelLoadError(f"The model's chat template has a syntax error in {message}")


_ERRORS = {"failed": _failed, "refused": _refused, "syntax": _syntax}
