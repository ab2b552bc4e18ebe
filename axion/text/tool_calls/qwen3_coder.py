from __future__ import annotations

from typing import ClassVar

from axion.text.stream_parser import MalformedError, Steps
from axion.text.tool_calls.arguments import TaggedArguments


class Qwen3Coder(TaggedArguments):
    """One tag an argument, the value on lines of its own.

        <tool_call>
        <function=f>
        <parameter=x>
        1
        </parameter>
        </function>
        </tool_call>

    Qwen3-Coder and Qwen3.5 (chat_template.jinja of Qwen/Qwen3-Coder-30B-A3B-Instruct). Their
    smaller models forget the outer tag at times.
    """

    tag: ClassVar[str] = "tool_call"
    openings = ("<tool_call>", "<function=")
    markers = ("<tool_call>", "</tool_call>")
    call_begin = "<tool_call>\n<function="
    arguments_begin = ">\n"
    argument_begin = "<parameter="
    value_begin = ">\n"
    argument_end = "\n</parameter>\n"
    call_end = "</function>\n</tool_call>"
    call_separator = "\n"

    def calls(self, opening: str) -> Steps[None]:
        if opening != "<function=":
            yield from self.skip_space()
            yield from self.expect("<function=")
        name = yield from self.name()
        yield from self.expect(">")
        yield from self.tagged_arguments(name, "</function>")
        yield from self.optional(f"</{self.tag}>")

    def argument_key(self) -> Steps[str]:
        key, end = yield from self.until(">", "\n")
        if end != ">":
            raise MalformedError
        return key

    def argument_value(self, types: frozenset[str]) -> Steps[None]:
        yield from self.accept("\n")
        yield from self.value_until(types, "\n</parameter>", "</parameter>")


class SeedOss(Qwen3Coder):
    """The same in ByteDance's own outer tag (chat_template.jinja of Seed-OSS-36B-Instruct)."""

    tag = "seed:tool_call"
    openings = ("<seed:tool_call>", "<function=")
    markers = ("<seed:tool_call>", "</seed:tool_call>")
    call_begin = "<seed:tool_call>\n<function="
    value_begin = ">"
    argument_end = "</parameter>\n"
    call_end = "</function>\n</seed:tool_call>"
