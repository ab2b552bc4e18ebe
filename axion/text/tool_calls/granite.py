from __future__ import annotations

from axion.text.stream_parser import Steps
from axion.text.tool_calls.base import ToolCallParser


class Granite3(ToolCallParser):
    """A token, then a JSON list: `<|tool_call|>[{"name": "f", "arguments": {"x": 1}}]`.

    Granite 3.0 to 3.3 (chat_template.jinja of ibm-granite/granite-3.3-2b-instruct); 3.1 also
    writes the token as `<tool_call>`. Phi-4-mini closes the list with `<|/tool_call|>`.
    Granite 4 writes what Hermes does.
    """

    openings = ("<|tool_call|>", "<tool_call>")
    markers = ("<|tool_call|>", "<|/tool_call|>", "<tool_call>")
    calls_begin = "<|tool_call|>["
    call_begin = '{"name": "'
    arguments_begin = '", "arguments": '
    call_end = "}"
    call_separator = ", "
    calls_end = "]"

    def calls(self, opening: str) -> Steps[None]:
        yield from self.skip_space()
        if (yield from self.peek()) == "[":
            yield from self.json_calls()
        else:
            yield from self.json_call()
        yield from self.optional("<|/tool_call|>")
