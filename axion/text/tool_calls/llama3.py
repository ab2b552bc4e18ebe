from __future__ import annotations

from typing import ClassVar

from axion.text.stream_parser import Steps
from axion.text.tool_calls.base import ToolCallParser


class Llama3(ToolCallParser):
    """The whole answer is a JSON object: `{"name": "f", "parameters": {"x": 1}}`.

    Llama 3.1, 3.2 and 3.3 (meta-llama/llama-models, prompt_format.md). Several are separated
    by `; `, and `<|python_tag|>` may come first; then it may also stand after text. Without
    that tag only a function of the request is a call: other objects are the answer.
    """

    openings: ClassVar[tuple[str, ...]] = ("<|python_tag|>",)
    markers = ("<|python_tag|>",)
    call_begin = '{"name": "'
    arguments_begin = '", "parameters": '
    call_end = "}"
    call_separator = "; "

    def calls_at_start(self) -> Steps[None]:
        yield from self.skip_space()
        yield from self.calls("")

    def calls(self, opening: str) -> Steps[None]:
        yield from self.skip_space()
        while True:
            yield from self.json_call(known=not opening)
            yield from self.skip_space()
            if (yield from self.peek()) in (";", ","):
                self._at += 1
                yield from self.skip_space()
            if (yield from self.peek()) != "{":
                self._at = 0
                return


class JsonObject(Llama3):
    """A JSON object, perhaps in a code block: what models do that are only asked for it."""

    openings: ClassVar[tuple[str, ...]] = ("<|python_tag|>", "```json", "```tool_call")
    markers = ("<|python_tag|>",)

    def calls(self, opening: str) -> Steps[None]:
        yield from self.skip_space()
        if (yield from self.peek()) == "[":
            yield from self.json_calls()
        else:
            yield from super().calls("")
        if opening.startswith("```"):
            yield from self.optional("```")
