from __future__ import annotations

from axion.text.stream_parser import Steps
from axion.text.tool_calls.base import ToolCallParser


class Hermes(ToolCallParser):
    """One JSON object a call: `<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>`.

    Hermes 2 and later (NousResearch/Hermes-Function-Calling), Qwen2.5, Qwen3, Granite 4.
    """

    openings = ("<tool_call>",)
    markers = ("<tool_call>", "</tool_call>")
    call_begin = '<tool_call>\n{"name": "'
    arguments_begin = '", "arguments": '
    call_end = "}\n</tool_call>"
    call_separator = "\n"

    def calls(self, opening: str) -> Steps[None]:
        yield from self.skip_space()
        yield from self.json_call()
        yield from self.optional("</tool_call>")
