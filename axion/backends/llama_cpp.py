"""llama.cpp: `llama-server`, for GGUF files."""

from __future__ import annotations

from typing import Any, ClassVar

from axion.backends.base import ModelConfig
from axion.backends.facts import EngineFacts
from axion.backends.spawned import SpawnedBackend

# Its cache holds as many tokens as it is told; a sequence of full length for each of its slots
# would be more memory than most models take.
_MAX_FULL_SEQUENCES = 4


class LlamaCppBackend(SpawnedBackend):
    """Serves a GGUF file by `llama-server`."""

    engine = "llama_cpp"
    title = "llama.cpp"
    command_variable = "AXION_LLAMA_CPP_COMMAND"
    default_command = "llama-server"
    known = EngineFacts(
        engine="llama_cpp",
        formats=frozenset({"gguf"}),
        memory_factor={"cpu": 1.1, "cuda": 1.1},
    )
    rename: ClassVar = {"repetition_penalty": "repeat_penalty"}
    counts: ClassVar = {"timings_per_token": True}

    def arguments(self, model: ModelConfig, path: str, port: int) -> list[str]:
        options: dict[str, Any] = {
            "--model": path,
            "--alias": model.name,
            "--host": "127.0.0.1",
            "--port": port,
            "--parallel": model.max_num_seqs,
            "--ctx-size": model.max_seq_len * min(model.max_num_seqs, _MAX_FULL_SEQUENCES),
            "--gpu-layers": 0 if model.device == "cpu" else 999,
        }
        if model.num_threads is not None:
            options["--threads"] = model.num_threads
        flags = ["--kv-unified", "--jinja", "--metrics", "--no-webui"]
        return [*(str(word) for pair in options.items() for word in pair), *flags]
