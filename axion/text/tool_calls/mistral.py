from __future__ import annotations

import secrets
import string

from axion.text.stream_parser import MalformedError, Steps
from axion.text.tool_calls.base import ToolCallParser

_ID_CHARACTERS = string.ascii_letters + string.digits


class Mistral(ToolCallParser):
    """A special token, then a list: `[TOOL_CALLS][{"name": "f", "arguments": {"x": 1}}]`.

    Mistral 7B v0.3 to Mistral Small 3.1 (mistral-common, tokenizers v3 to v7). Newer models
    write `[TOOL_CALLS]f[ARGS]{"x": 1}` for each call, some with `[CALL_ID]` and an id between
    the two (v11 to v13). Both are read for both. Ids are nine letters or digits: the models'
    templates take no others.
    """

    openings = ("[TOOL_CALLS]",)
    markers = ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]")
    calls_begin = "[TOOL_CALLS]["
    call_begin = '{"name": "'
    arguments_begin = '", "arguments": '
    call_end = "}"
    call_separator = ", "
    calls_end = "]"

    def calls(self, opening: str) -> Steps[None]:
        yield from self.skip_space()
        match (yield from self.peek()):
            case "[":
                yield from self.json_calls()
            case "{":
                yield from self.json_call()
            case _:
                yield from self._call_by_name()

    def _call_by_name(self) -> Steps[None]:
        name = yield from self.name()
        call_id = None
        if (yield from self.accept("[CALL_ID]")):
            call_id = yield from self.name()
        if not (yield from self.accept("[ARGS]")) and (yield from self.peek()) != "{":
            raise MalformedError
        yield from self.skip_space()
        yield from self.json_arguments_of(name, call_id)
        self.end_call()

    def new_call_id(self) -> str:
        return "".join(secrets.choice(_ID_CHARACTERS) for _ in range(9))


class MistralArgs(Mistral):
    """Mistral where the template writes the newer form (Devstral, Magistral, Ministral 3)."""

    calls_begin = ""
    call_begin = "[TOOL_CALLS]"
    arguments_begin = "[ARGS]"
    call_end = ""
    call_separator = ""
    calls_end = ""
