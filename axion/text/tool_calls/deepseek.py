from __future__ import annotations

from axion.text.stream_parser import Steps
from axion.text.tool_calls.base import ToolCallParser

_CALLS_BEGIN = "<｜tool▁calls▁begin｜>"
_CALLS_END = "<｜tool▁calls▁end｜>"
_CALL_BEGIN = "<｜tool▁call▁begin｜>"
_CALL_END = "<｜tool▁call▁end｜>"
_SEPARATOR = "<｜tool▁sep｜>"


class DeepSeek(ToolCallParser):
    """Special tokens around name and JSON: `…call▁begin…f…sep…{"x": 1}…call▁end…`.

    DeepSeek-V3.1 (its tokenizer_config.json). V3 and R1 write `function`, the separator, the
    name on the same line, and the JSON in a code block; that is read as well.
    """

    openings = (_CALLS_BEGIN, _CALL_BEGIN)
    markers = (_CALLS_BEGIN, _CALLS_END, _CALL_BEGIN, _CALL_END, _SEPARATOR)
    calls_begin = _CALLS_BEGIN
    call_begin = _CALL_BEGIN
    arguments_begin = _SEPARATOR
    call_end = _CALL_END
    calls_end = _CALLS_END

    def calls(self, opening: str) -> Steps[None]:
        if opening == _CALLS_BEGIN:
            yield from self.skip_space()
            yield from self.expect(_CALL_BEGIN)
        while True:
            yield from self._call()
            yield from self.skip_space()
            if not (yield from self.accept(_CALL_BEGIN)):
                break
        self._at = 0
        yield from self.optional(_CALLS_END)

    def _call(self) -> Steps[None]:
        yield from self.skip_space()
        name = yield from self.name()
        yield from self.expect(_SEPARATOR)
        in_block = name == "function" and (yield from self.peek()) != "{"
        if in_block:
            name = yield from self.name()
            yield from self.skip_space()
            yield from self.expect("```json")
        yield from self.skip_space()
        yield from self.json_arguments_of(name)
        self.end_call()
        if in_block:
            yield from self.optional("```")
        yield from self.optional(_CALL_END)


class DeepSeekV3(DeepSeek):
    """DeepSeek where the template writes the older form (V3, R1 and their distillations)."""

    call_begin = f"{_CALL_BEGIN}function{_SEPARATOR}"
    arguments_begin = "\n```json\n"
    call_end = f"\n```{_CALL_END}"
    call_separator = "\n"
