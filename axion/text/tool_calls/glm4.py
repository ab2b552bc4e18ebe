from __future__ import annotations

from typing import Any

from axion.text.stream_parser import MalformedError, Steps
from axion.text.tool_calls.arguments import TaggedArguments
from axion.text.tool_calls.base import ToolCallParser


class Glm4(ToolCallParser):
    """A function's name on a line, its arguments as JSON on the next; nothing else marks it.

    GLM-4 and GLM-4-0414 (THUDM/GLM-4, `README` on function calls). `<|assistant|>` begins
    another call, or one after a text. Only a function of the request is called like that.
    """

    openings = markers = ("<|assistant|>",)
    arguments_begin = "\n"
    call_separator = "<|assistant|>"

    @classmethod
    def reads_calls(cls, template: str) -> bool:
        return True

    @classmethod
    def template_messages(cls, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """With calls as messages whose `metadata` is the name, and results as observations."""
        written: list[dict[str, Any]] = []
        for message in messages:
            calls = message.pop("tool_calls", ())
            if message["role"] == "tool":
                message["role"] = "observation"
            if not calls or message.get("content"):
                written.append(message)
            written += (
                {
                    "role": "assistant",
                    "metadata": call["function"]["name"],
                    "content": call["function"]["arguments"],
                }
                for call in calls
            )
        return written

    def calls_at_start(self) -> Steps[None]:
        yield from self.calls("")

    def calls(self, opening: str) -> Steps[None]:
        yield from self.skip_space()
        name = yield from self.name()
        if name not in self._functions:
            raise MalformedError
        yield from self.accept(" ")
        yield from self.expect("\n")
        yield from self.skip_space()
        yield from self.json_arguments_of(name)
        self.end_call()


class Glm45(TaggedArguments):
    """Tags for the key and for the value of each argument.

        <tool_call>f
        <arg_key>x</arg_key>
        <arg_value>1</arg_value>
        </tool_call>

    GLM-4.5, 4.6 and 4.7, the last one without line feeds (chat_template.jinja of zai-org/GLM-4.6).
    """

    openings = ("<tool_call>",)
    markers = (
        "<tool_call>",
        "</tool_call>",
        "<arg_key>",
        "</arg_key>",
        "<arg_value>",
        "</arg_value>",
    )
    call_begin = "<tool_call>"
    arguments_begin = "\n"
    argument_begin = "<arg_key>"
    value_begin = "</arg_key>\n<arg_value>"
    argument_end = "</arg_value>\n"
    call_end = "</tool_call>"
    call_separator = "\n"

    def calls(self, opening: str) -> Steps[None]:
        yield from self.skip_space()
        name = yield from self.name()
        yield from self.tagged_arguments(name, "</tool_call>")

    def argument_key(self) -> Steps[str]:
        key, _ = yield from self.until("</arg_key>")
        yield from self.skip_space()
        yield from self.expect("<arg_value>")
        return key

    def argument_value(self, types: frozenset[str]) -> Steps[None]:
        yield from self.value_until(types, "</arg_value>")
