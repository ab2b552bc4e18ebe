"""Tool calls in a model's answer: one file for each way in which models write them."""

from __future__ import annotations

from axion.text.tool_calls.base import Functions, ToolCallParser, WrittenCall
from axion.text.tool_calls.deepseek import DeepSeek, DeepSeekV3
from axion.text.tool_calls.gemma import FunctionGemma, Gemma3, Gemma4
from axion.text.tool_calls.glm4 import Glm4, Glm45
from axion.text.tool_calls.granite import Granite3
from axion.text.tool_calls.harmony import Harmony
from axion.text.tool_calls.hermes import Hermes
from axion.text.tool_calls.llama3 import JsonObject, Llama3
from axion.text.tool_calls.mistral import Mistral, MistralArgs
from axion.text.tool_calls.qwen3_coder import Qwen3Coder, SeedOss

__all__ = ["FORMATS", "Functions", "ToolCallParser", "WrittenCall", "tool_call_format"]

# What a chat template says of its model's format; the first that is in it counts.
FORMATS: tuple[tuple[str, type[ToolCallParser]], ...] = (
    ("<|channel|>", Harmony),
    ("tool['type'] + '<｜tool▁sep｜>'", DeepSeekV3),
    ("<｜tool▁calls▁begin｜>", DeepSeek),
    ("[ARGS]", MistralArgs),
    ("[TOOL_CALLS]", Mistral),
    ("<|tool_call|>", Granite3),
    ("<start_function_call>", FunctionGemma),
    ("<|tool_call>", Gemma4),
    ("<arg_key>", Glm45),
    ("<seed:tool_call>", SeedOss),
    ("<parameter=", Qwen3Coder),
    ("<tool_call>", Hermes),
    ("tool_code", Gemma3),
    ('"parameters": ', Llama3),
    ("<|observation|>", Glm4),
    ("", JsonObject),
)


def tool_call_format(template: str) -> type[ToolCallParser]:
    """How the model that a chat template belongs to writes tool calls."""
    return next(format for marker, format in FORMATS if marker in template)
