"""SGLang: `sglang serve`, or `python -m sglang.launch_server` of older releases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from axion.backends.base import ModelConfig
from axion.backends.facts import EngineFacts
from axion.backends.installed import find_command
from axion.backends.parsers import Parsers, parsers_of
from axion.backends.spawned import SpawnedBackend

_PARSERS = Parsers(
    tools={
        "Hermes": "qwen25",
        "Qwen3Coder": "qwen3_coder",
        "Mistral": "mistral",
        "MistralArgs": "mistral",
        "Llama3": "llama3",
        "DeepSeekV3": "deepseekv3",
        "DeepSeek": "deepseekv31",
        "Glm45": "glm45",
        "Harmony": "gpt-oss",
    },
    reasoning={
        "<think>": "deepseek-r1",
        "enable_thinking": "qwen3",
        "Glm45": "glm45",
        "Harmony": "gpt-oss",
    },
)


class SglangBackend(SpawnedBackend):
    """Serves by SGLang. Written from its source and documentation; it has not been run."""

    engine = "sglang"
    title = "SGLang"
    command_variable = "AXION_SGLANG_COMMAND"
    default_command = "sglang"
    # Its own answer takes up to 20 s, because it generates a token for it.
    probe_timeout_s = 25.0
    known = EngineFacts(
        engine="sglang",
        devices=frozenset({"cuda"}),
        memory_factor={"cuda": 1.2},
        tensor_parallel=True,
    )

    def arguments(self, model: ModelConfig, path: str, port: int) -> list[str]:
        options: dict[str, Any] = {
            "--model-path": path,
            "--served-model-name": model.name,
            "--host": "127.0.0.1",
            "--port": port,
            "--context-length": model.max_seq_len,
            "--max-running-requests": model.max_num_seqs,
            "--chunked-prefill-size": model.max_num_batched_tokens,
            "--mem-fraction-static": model.memory_fraction,
            "--dtype": model.dtype,
            "--tp-size": model.tensor_parallel_size,
        }
        parsers = parsers_of(Path(path), _PARSERS)
        if parsers.tools is not None:
            options["--tool-call-parser"] = parsers.tools
        if parsers.reasoning is not None:
            options["--reasoning-parser"] = parsers.reasoning
        command = find_command(self.command_variable, self.default_command) or []
        verb = [] if "sglang.launch_server" in command else ["serve"]
        return [
            *verb,
            *(str(word) for pair in options.items() for word in pair),
            "--enable-metrics",
        ]
