"""TensorRT-LLM: `trtllm-serve`, with its PyTorch backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from axion.backends.base import ModelConfig
from axion.backends.facts import EngineFacts
from axion.backends.spawned import SpawnedBackend


class TensorRTLLMBackend(SpawnedBackend):
    """Serves by TensorRT-LLM. Written from its source and documentation; it has not been run."""

    engine = "tensorrt_llm"
    title = "TensorRT-LLM"
    command_variable = "AXION_TENSORRT_LLM_COMMAND"
    default_command = "trtllm-serve"
    known = EngineFacts(
        engine="tensorrt_llm",
        devices=frozenset({"cuda"}),
        dtypes={"cuda": frozenset({"float16", "bfloat16"})},
        memory_factor={"cuda": 1.2},
        tensor_parallel=True,
    )

    def arguments(self, model: ModelConfig, path: str, port: int) -> list[str]:
        options: dict[str, Any] = {
            "--host": "127.0.0.1",
            "--port": port,
            "--backend": "pytorch",
            "--max_seq_len": model.max_seq_len,
            "--max_batch_size": model.max_num_seqs,
            "--max_num_tokens": max(model.max_num_batched_tokens, model.max_num_seqs),
            "--kv_cache_free_gpu_memory_fraction": model.memory_fraction,
            "--tp_size": model.tensor_parallel_size,
        }
        return [path, *(str(word) for pair in options.items() for word in pair)]

    def upstream_model(self, model: ModelConfig, path: str) -> str:
        # It has no option for a name of its own.
        return Path(path).name
