"""What cannot be seen from outside, and is known of an engine from its source."""

from __future__ import annotations

# By engine and feature: why a field that was accepted is honoured.
KNOWN: dict[str, dict[str, str]] = {
    "native": {
        "priority": "it is the order of Axion's scheduler",
        "cache_salt": "it is part of the block hashes of Axion's prefix cache",
        "messages.name": "Axion gives it to the chat template",
        "messages.reasoning_content": "Axion gives it to the chat template",
        "reasoning_effort": "Axion refuses what the chat template does not read",
        "chat_template_kwargs": "Axion gives them to the chat template",
        "add_special_tokens": "Axion's tokenizer has the switch",
        "parallel_tool_calls": "Axion ends the answer with the first call",
        "tools.strict": "Axion holds such calls to their schema by a grammar",
        "tool_choice.none": "Axion leaves the tools out of the prompt",
    },
    "vllm": {
        "add_special_tokens": "it is an argument of its tokenizer",
        "chat_template_kwargs": "they are given to the template (vllm/renderers)",
        "messages.name": "it is given to the template (vllm/renderers/chat_utils.py)",
        "messages.reasoning_content": "it is given to the template (vllm/renderers/chat_utils.py)",
        "parallel_tool_calls": "false keeps the first call (serve/utils/tool_calls_utils.py)",
        "priority": "it is the order of its scheduler, with --scheduling-policy priority",
        "reasoning_effort": "it is given to the template (chat_completion/protocol.py)",
    },
    "max": {
        "reasoning_effort": "it is given to the template (max/serve/schemas/openai.py)",
    },
    "llama_cpp": {
        "chat_template_kwargs": "they are given to the template (tools/server/server-common.cpp)",
    },
}
