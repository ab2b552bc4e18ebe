"""MAX: `max serve`, from Modular's package `modular`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import msgspec

from axion.backends.base import ModelConfig
from axion.backends.capabilities import Capabilities, Support, shipped_capabilities
from axion.backends.facts import EngineFacts
from axion.backends.installed import AskError, ask_once
from axion.backends.spawned import SpawnedBackend
from axion.text.tokenizer import read_json

_LIST_TIMEOUT_S = 120.0
_QUIET = {"MAX_SERVE_DISABLE_TELEMETRY": "1"}
# On CPU it computes weights from safetensors in this format alone.
_CPU_ENCODING = "float32"
_QWEN_CRASH = "On CPU it ends while it compiles {}, though it lists float32 for it."


class _Architecture(msgspec.Struct):
    supported_encodings: list[str] = []


class _List(msgspec.Struct):
    architectures: dict[str, _Architecture]


class MaxBackend(SpawnedBackend):
    """Serves by `max serve`. It compiles a model for minutes before it first listens."""

    engine = "max"
    title = "MAX"
    command_variable = "AXION_MAX_COMMAND"
    default_command = "max"
    # The last line of its compiler's log may be far from the one before.
    start_silence_s = 1800.0
    known = EngineFacts(
        engine="max",
        devices=frozenset({"cpu", "cuda"}),
        quantizations=frozenset({"gptq", "fp8", "compressed-tensors", "modelopt"}),
        dtypes={"cpu": frozenset({_CPU_ENCODING})},
        faults={
            f"{name}/cpu": _QWEN_CRASH.format(name)
            for name in ("Qwen3ForCausalLM", "Qwen3MoeForCausalLM")
        },
        # Of a model of 1.2 billion parameters, 4.6 GiB in float32, it took 11 to 12 GiB.
        memory_factor={"cpu": 2.5, "cuda": 1.2},
        tensor_parallel=True,
    )
    counts: ClassVar = {"return_token_ids": True}

    @classmethod
    async def asked(cls, facts: EngineFacts, command: list[str]) -> EngineFacts:
        version = await cls.version(command)
        listed = await ask_once(
            cls.engine,
            [*command, "list", "--json"],
            of=command[0],
            timeout_s=_LIST_TIMEOUT_S,
            env=_QUIET,
        )
        # Lines of its log may stand before the answer.
        try:
            found = msgspec.json.decode(listed[listed.index(b"{") :], type=_List)
        except (ValueError, msgspec.DecodeError):
            raise AskError("What `max list --json` wrote cannot be understood.") from None
        faults = {
            f"{name}/cpu": f"On CPU it computes in {_CPU_ENCODING}, and {name} is not among the "
            "architectures that it lists for that."
            for name, architecture in found.architectures.items()
            if _CPU_ENCODING not in architecture.supported_encodings
        }
        return msgspec.structs.replace(
            facts,
            version=version,
            architectures=frozenset(found.architectures),
            faults={**faults, **facts.faults},
        )

    def arguments(self, model: ModelConfig, path: str, port: int) -> list[str]:
        options: dict[str, Any] = {
            "--host": "127.0.0.1",
            "--port": port,
            "--model-path": path,
            "--served-model-name": model.name,
            "--max-batch-size": model.max_num_seqs,
            "--max-length": model.max_seq_len,
            "--max-batch-input-tokens": model.max_num_batched_tokens,
        }
        flags = ["--enable-penalties", "--enable-min-tokens"]
        if model.device == "cpu":
            options |= {"--devices": "cpu", "--quantization-encoding": _CPU_ENCODING}
        else:
            gpus = ",".join(map(str, range(model.tensor_parallel_size)))
            options |= {
                "--devices": f"gpu:{gpus}",
                "--device-memory-utilization": model.memory_fraction,
            }
            flags.append("--enable-structured-output")
            if model.dtype != "auto":
                options["--quantization-encoding"] = model.dtype
        sampling = read_json(Path(path) / "generation_config.json")
        if sampling.get("do_sample") is False:
            # It would take the likeliest token whatever temperature a request asks for.
            options["--temperature"] = sampling.get("temperature") or 1
            options["--top-k"] = sampling.get("top_k") or -1
        return ["serve", *(str(word) for pair in options.items() for word in pair), *flags]

    def capabilities_for(self, model: ModelConfig, path: str) -> Capabilities:
        known = super().capabilities_for(model, path)
        if model.device == "cpu" or known is not shipped_capabilities(self.engine):
            return known
        # By its documentation; what is shipped was measured on CPU, where it has no grammars.
        return known.replaced({"response_format.json_schema": Support.HONOURED})

    def environment(self, model: ModelConfig, path: str, port: int) -> dict[str, str]:
        return _QUIET
