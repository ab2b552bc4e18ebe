"""Text Generation Inference: `text-generation-launcher`. Its makers only maintain it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from axion.backends.base import ModelConfig
from axion.backends.facts import EngineFacts
from axion.backends.spawned import SpawnedBackend, free_port


class TgiBackend(SpawnedBackend):
    """Serves by TGI. Written from its source and documentation; it has not been run."""

    engine = "tgi"
    title = "TGI"
    command_variable = "AXION_TGI_COMMAND"
    default_command = "text-generation-launcher"
    known = EngineFacts(
        engine="tgi",
        devices=frozenset({"cuda"}),
        quantizations=frozenset({"awq", "gptq", "fp8", "compressed-tensors", "bitsandbytes"}),
        dtypes={"cuda": frozenset({"float16", "bfloat16"})},
        memory_factor={"cuda": 1.2},
        tensor_parallel=True,
    )

    def arguments(self, model: ModelConfig, path: str, port: int) -> list[str]:
        options: dict[str, Any] = {
            "--model-id": path,
            "--hostname": "127.0.0.1",
            "--port": port,
            # Two of it on one machine would otherwise take each other's.
            "--prometheus-port": free_port(),
            "--master-port": free_port(),
            "--shard-uds-path": Path(tempfile.gettempdir()) / f"axion-tgi-{port}",
            "--max-total-tokens": model.max_seq_len,
            "--max-input-tokens": max(1, model.max_seq_len - 1),
            "--max-batch-prefill-tokens": max(model.max_num_batched_tokens, model.max_seq_len),
            "--cuda-memory-fraction": model.memory_fraction,
            "--num-shard": model.tensor_parallel_size,
            "--usage-stats": "off",
        }
        if model.dtype != "auto":
            options["--dtype"] = model.dtype
        return [str(word) for pair in options.items() for word in pair]

    def upstream_model(self, model: ModelConfig, path: str) -> str:
        # Any other name is that of a LoRA adapter to it.
        return "tgi"
