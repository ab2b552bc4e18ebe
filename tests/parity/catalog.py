"""Which architectures Axion serves, measured: `python -m tests.parity.catalog` (some ten minutes).

Each architecture of transformers that writes text, and each of Axion's own, is made small, saved
with every parameter random, loaded, and compared with transformers. What comes out is written to
`axion/models/catalog.json`, from which the router knows what the fallback serves, and to
`docs/models.md`.
"""

from __future__ import annotations

import ast
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
import typer
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from axion.engine.loader import load_model
from axion.errors import AxionError
from axion.models.base import CausalLM
from axion.models.registry import model_classes
from axion.models.transformers_fallback import fallback_class
from axion.parity import tiny
from axion.parity.harness import Harness, Run, alone, chunked, mixed

ROOT = Path(__file__).parent.parent.parent
CATALOG = ROOT / "axion" / "models" / "catalog.json"
DOCUMENT = ROOT / "docs" / "models.md"

NUM_TOKENS = 32
TOLERANCE = 1e-4
TIMEOUT_S = 300
MEMORY_BYTES = 10 * 2**30

# Over what `tiny.shrink` makes of the default configuration, where that alone does not do.
_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_DECODER = {"is_decoder": True, "type_vocab_size": 2}
_LATENT = {"head_dim": 8, "num_key_value_heads": 4}
_HEADS = {"num_key_value_heads": 4, "head_dim": 16}
_PER_LAYER = {"per_layer_config": {"1": {"head_dim": 32}}, "hidden_size_per_layer_input": 16}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_expand": 2}
_EXPERTS = {"n_routed_experts": 6, "n_shared_experts": 1, "num_experts_per_tok": 2}
_ENCODER_HEADS = {"decoder_attention_heads": 4, "encoder_attention_heads": 4}
CHANGES: dict[str, dict[str, Any]] = {
    "AXK1ForCausalLM": _LATENT,
    "BambaForCausalLM": _MAMBA,
    "BertGenerationDecoder": {"is_decoder": True},
    "BertLMHeadModel": _DECODER,
    "CamembertForCausalLM": _DECODER,
    "CohereCompassForCausalLM": {
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10_000.0}
            for kind in ("full_attention", "sliding_attention")
        },
        "logit_scale": 0.25,
        "head_dim": 16,
    },
    "CwmForCausalLM": _IDS,
    "Data2VecTextForCausalLM": _DECODER,
    "DeepseekV2ForCausalLM": {**_LATENT, "n_group": 1, "topk_group": 1, "topk_method": "greedy"},
    "DeepseekV3ForCausalLM": _LATENT,
    "Dots1ForCausalLM": _EXPERTS,
    "ElectraForCausalLM": _DECODER,
    "Emu3ForCausalLM": _IDS,
    "ErnieForCausalLM": _DECODER,
    "Gemma4ForCausalLM": _PER_LAYER,
    "Gemma4UnifiedForCausalLM": {"per_layer_config": {"1": {"head_dim": 32}}},
    "GraniteMoeHybridForCausalLM": {**_MAMBA, "layer_types": ["full_attention"] * 2},
    "HrmTextForCausalLM": {"num_layers_per_stack": 1, "num_hidden_layers": 8, "head_dim": 16},
    "HunYuanDenseV1ForCausalLM": _HEADS,
    "HunYuanMoEV1ForCausalLM": {**_HEADS, "num_experts": 6, "moe_topk": 2},
    "Lfm2ForCausalLM": {"layer_types": ["conv", "full_attention"]},
    "Lfm2MoeForCausalLM": {"layer_types": ["conv", "full_attention"]},
    "Llama4ForCausalLM": {"attention_chunk_size": 128},
    "LongcatFlashForCausalLM": {
        **_LATENT,
        "ffn_hidden_size": 96,
        "expert_ffn_hidden_size": 32,
        "zero_expert_num": 2,
    },
    "MinistralForCausalLM": {"head_dim": 16},
    "MllamaForCausalLM": _IDS,
    "ModernBertDecoderForCausalLM": _IDS,
    "NemotronForCausalLM": {"num_key_value_heads": 2, "head_dim": 16},
    "PLBartForCausalLM": _ENCODER_HEADS,
    "RoCBertForCausalLM": _DECODER,
    "RobertaForCausalLM": _DECODER,
    "RobertaPreLayerNormForCausalLM": _DECODER,
    "WhisperForCausalLM": _ENCODER_HEADS,
    "XLMRobertaForCausalLM": _DECODER,
    "XLMRobertaXLForCausalLM": _DECODER,
    "XmodForCausalLM": {**_DECODER, "default_language": "en_XX"},
    "YoutuForCausalLM": _LATENT,
}


class Row(NamedTuple):
    """What was measured of an architecture.

    Attributes:
        way: `native`, `fallback`, `refused`, or `untested`: no small model of it could be made.
        reason: why it is refused, untested, or not equal.
        equal: logits and greedy tokens are transformers'.
    """

    way: str
    equal: bool = False
    reason: str = ""


def architectures() -> list[str]:
    return sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values(), *model_classes()})


def measure(architecture: str) -> Row:
    way = "native" if architecture in model_classes() else "fallback"
    try:
        config = tiny.shrink(tiny.base_config(architecture), **CHANGES.get(architecture, {}))
        reference = tiny.build(config)
    except Exception as error:  # whatever transformers says of a configuration
        return _refusal(architecture) or Row("untested", reason=_sentence(error))
    with tempfile.TemporaryDirectory() as folder:
        try:
            reference.save_pretrained(folder)
        except Exception as error:
            return Row("untested", reason=_sentence(error))
        try:
            model = load_model(Path(folder), device=torch.device("cpu"), dtype="float32")
        except AxionError as error:
            return Row("refused", reason=error.message.replace(folder, ""))
        return Row(way, **_compare(model, reference))


def _refusal(architecture: str) -> Row | None:
    """Why the fallback refuses it as its default configuration is, if it does."""
    if (cls := fallback_class(architecture)) is not None and architecture not in model_classes():
        try:
            cls(json.loads(tiny.base_config(architecture).to_json_string(use_diff=False)))
        except AxionError as error:
            return Row("refused", reason=error.message)
    return None


def _compare(model: CausalLM, reference: PreTrainedModel) -> dict[str, Any]:
    longest = model.max_length() - NUM_TOKENS
    prompts = [prompt[:longest] for prompt in tiny.random_prompts()]
    expected: list[torch.Tensor] = []
    for way in (alone, mixed, chunked):
        runs = way(Harness(model), prompts, NUM_TOKENS)
        expected = expected or [next_logits(reference, run) for run in runs]
        for run, logits in zip(runs, expected, strict=True):
            difference = (torch.stack(run.logits) - logits).abs().max().item()
            if not difference <= TOLERANCE * max(1.0, logits.abs().max().item()):
                return {"reason": f"{way.__name__}: logits differ by {difference:.1e}"}
            if run.output != logits.argmax(-1).tolist():
                return {"reason": f"{way.__name__}: tokens differ"}
    return {"equal": True}


@torch.inference_mode()
def next_logits(model: PreTrainedModel, run: Run) -> torch.Tensor:
    """What transformers predicts at each generated token, without a cache.

    Where its best is each time the token that was generated, it generates the same.
    """
    logits = model(input_ids=torch.tensor([run.token_ids[:-1]]), use_cache=False).logits[0]
    return logits[len(run.prompt) - 1 :]


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def measure_apart(architecture: str) -> Row:
    """The same in a process of its own, which may crash, fill its memory or not end."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.parity.catalog"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_in_child, args=(architecture, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(TIMEOUT_S):
            return Row("untested", reason=f"not done in {TIMEOUT_S} s")
        return ours.recv()
    except EOFError:
        process.join()
        return Row("untested", reason=f"its process ended with {process.exitcode}")
    finally:
        process.kill()
        process.join()


def _in_child(architecture: str, connection: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    torch.set_num_threads(1)
    try:
        row = measure(architecture)
    except Exception as error:  # of a forward pass
        row = Row("untested", reason=_sentence(error))
    connection.send(row)


def main(names: list[str]) -> None:
    todo = names or architectures()
    with ThreadPoolExecutor(2) as threads:
        for name, row in zip(todo, threads.map(measure_apart, todo), strict=True):
            print(f"{name:40} {row.way:9} {'equal' if row.equal else row.reason}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
