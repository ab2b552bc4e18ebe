"""Tiny GGUF files of every architecture, as llama.cpp's converter would write them.

Their metadata is the converter's own, recorded in gguf_metadata.json; their tensors are written
here, as it does. `python -m tests.gguf_files SOURCES`, SOURCES being a folder with llama.cpp's
sources, records the metadata again and compares every tensor with what the converter writes.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel

from axion.demo import MODEL_DIR
from tests.parity.checkpoints import ORIGINAL_LENGTH, build_tiny

METADATA = Path(__file__).parent / "gguf_metadata.json"
_SLIDING = ["sliding_attention"] * 5 + ["full_attention"]
_FACTORS = [1.0, 1.1, 1.3, 1.6, 2.0, 2.5, 3.1, 3.8]
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": _FACTORS,
    "long_factor": [2 * factor + 1 for factor in _FACTORS],
    "original_max_position_embeddings": ORIGINAL_LENGTH,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "original_max_position_embeddings": ORIGINAL_LENGTH,
    "mscale": 0.7,
    "mscale_all_dim": 0.7,
}
# A row of the parity table and what is changed of it: a file has no place for some fields, which
# are then the architecture's own.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-bias": ("llama-attention-bias", {"mlp_bias": True}),
    "llama-head-dim": ("llama-head-dim", {"tie_word_embeddings": True}),
    "llama-rope-llama3": ("llama-rope-llama3", {}),
    "llama-rope-linear": ("llama-rope-linear", {}),
    "llama-rope-yarn": ("llama-rope-yarn-attention-factor", {}),
    "llama4": (
        "llama4",
        {
            **{"num_hidden_layers": 4, "no_rope_layers": None, "attention_chunk_size": 8192},
            **{"floor_scale": 8192, "rms_norm_eps": 1e-5},
        },
    ),
    "mixtral": ("mixtral", {}),
    "ministral3": ("ministral3", {}),
    "qwen2": ("qwen2", {}),
    "qwen2-moe": ("qwen2-moe", {"norm_topk_prob": False}),
    "qwen3": ("qwen3", {}),
    "qwen3-tied": ("qwen3-tied", {}),
    "qwen3-moe": ("qwen3-moe", {"norm_topk_prob": True}),
    "qwen3-next": ("qwen3-next", {"mlp_only_layers": [], "norm_topk_prob": True}),
    "qwen3-5": ("qwen3-5", {}),
    "qwen3-5-moe": ("qwen3-5-moe", {}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {"query_pre_attn_scalar": 24}),
    "gemma3": (
        "gemma3",
        {"num_hidden_layers": 6, "layer_types": _SLIDING, "query_pre_attn_scalar": 24},
    ),
    "gemma3n": (
        "gemma3n",
        {"vocab_size_per_layer_input": 199, "activation_sparsity_pattern": [0.5, 0.0, 0.9, 0.0]},
    ),
    "gemma4": ("gemma4-shared", {}),
    "gemma4-keys-are-values": (
        "gemma4-keys-are-values",
        {"num_hidden_layers": 3, "layer_types": _SLIDING[3:], "hidden_size_per_layer_input": 0},
    ),
    "gemma4-experts": (
        "gemma4-experts",
        {
            **{"num_hidden_layers": 2, "layer_types": _SLIDING[4:]},
            "final_logit_softcapping": 3.0,
        },
    ),
    "glm": ("glm", {"rms_norm_eps": 1e-5}),
    "glm4": ("glm4", {}),
    "glm4-moe": ("glm4-moe-groups", {"use_qk_norm": True, "routed_scaling_factor": 2.5}),
    "granite": ("granite", {"embedding_multiplier": 12.0, "residual_multiplier": 0.22}),
    "granite-moe": ("granite-moe", {"logits_scaling": 8.0}),
    "granite-moe-shared": ("granite-moe-shared", {}),
    "granite-hybrid": ("granite-hybrid", {}),
    "granite-hybrid-dense": (
        "granite-hybrid-dense",
        {"position_embedding_type": None, "shared_intermediate_size": 48},
    ),
    "olmo": ("olmo-clip-qkv", {}),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo3-yarn", {}),
    "olmoe": ("olmoe", {"norm_topk_prob": False}),
    "phi": ("phi", {"intermediate_size": 256}),
    "phi3": ("phi3", {}),
    "phi3-longrope": ("phi3", {"rope_parameters": _LONGROPE}),
    "phimoe": (
        "phimoe",
        {
            "rope_parameters": _LONGROPE
            | {
                "original_max_position_embeddings": 256,
                # What the converter writes is computed from the lengths.
                **{"short_mscale": 1.125**0.5, "long_mscale": 1.125**0.5},
            }
        },
    ),
    "deepseek-v2": ("deepseek-v2-groups", {"attention_bias": False}),
    "deepseek-v3": ("deepseek-v3", {"rope_parameters": _YARN, "scoring_func": "sigmoid"}),
    "glm-moe-dsa": (
        "glm-moe-dsa",
        {
            **{"indexer_types": ["full", "shared", "full"], "routed_scaling_factor": 2.5},
            **{"norm_topk_prob": True, "rms_norm_eps": 1e-5, "scoring_func": "sigmoid"},
        },
    ),
    "mistral4": (
        "mistral4",
        {"rope_parameters": _YARN | {"llama_4_scaling_beta": 0.0}},
    ),
    "gpt-oss": ("gpt-oss", {}),
    "smollm3": ("smollm3", {"num_hidden_layers": 4, "no_rope_layer_interval": 4}),
    "cohere": ("cohere", {"use_qk_norm": True}),
    "cohere2": ("cohere2", {"num_hidden_layers": 4, "layer_types": [*_SLIDING[2:]]}),
    "stablelm": ("stablelm-qkv-bias", {}),
    "stablelm-parallel": ("stablelm-parallel-residual", {}),
    "starcoder2": ("starcoder2", {}),
    "nemotron": ("nemotron", {"head_dim": 16}),
    "gpt2": ("gpt2", {}),
    "gpt-neox": ("gpt-neox", {}),
    "falcon": ("falcon", {}),
    "falcon-new": ("falcon-new", {}),
}

_PAIRED = {"llama", "mistral3", "granite", "granitemoe", "granitehybrid", "smollm3", "olmo"}
_SHIFTED = {"gemma", "gemma2", "gemma3", "nemotron", "qwen3next", "qwen35", "qwen35moe"}
# Architectures whose gates and ups stay one.
_STACKED = {"gemma4", "mistral4"}


def build(case: str) -> PreTrainedModel:
    """The model of a case, random and the same every time."""
    row, changes = CASES[case]
    return build_tiny(row, **changes)


def write_tiny_gguf(
    case: str,
    model: PreTrainedModel,
    path: Path,
    kind: Type = Type.F32,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write `model`, that of `case`, as a GGUF file.

    Args:
        kind: of the tensors that are quantized: matrices but for routers and learned positions.
        metadata: entries beside the recorded ones.
    """
    recorded = json.loads(METADATA.read_text())[case]
    return write_gguf(path, recorded | (metadata or {}), dict(tensors(recorded, model)), kind)


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    kind: Type | Callable[[str], Type] = Type.F32,
) -> Path:
    writer = gguf.GGUFWriter(path, metadata["general.architecture"])
    for key, value in metadata.items():
        if key != "general.architecture":
            _ADD[type(value)](writer, key, value)
    for name, tensor in tensors.items():
        wanted = kind(name) if callable(kind) else kind
        if tensor.dtype == torch.uint8:  # blocks already
            writer.add_tensor(name, tensor.numpy(), raw_dtype=wanted)
            continue
        data = tensor.detach().float().contiguous().numpy()
        is_plain = data.ndim < 2 or not re.search(
            r"^(?!.*(gate_inp|norm|rope|position)).*weight", name
        )
        actual = Type.F32 if is_plain else wanted
        block_size, _ = gguf.GGML_QUANT_SIZES[actual]
        if data.shape[-1] % block_size:
            actual = Type.F32
        writer.add_tensor(name, gguf.quants.quantize(data, actual), raw_dtype=actual)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


_ADD: dict[type, Callable[[gguf.GGUFWriter, str, Any], None]] = {
    int: gguf.GGUFWriter.add_uint32,
    float: gguf.GGUFWriter.add_float32,
    bool: gguf.GGUFWriter.add_bool,
    str: gguf.GGUFWriter.add_string,
    list: gguf.GGUFWriter.add_array,
}


def tensors(metadata: Mapping[str, Any], model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """The model's tensors as the converter renames and changes them."""
    arch = metadata["general.architecture"]
    [number] = [key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == arch]
    names = gguf.get_tensor_name_map(number, metadata[f"{arch}.block_count"])
    state = model.state_dict()
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    for stack in ("model.altup_projections", "model.altup_unembed_projections"):
        if rows := [name for name in state if name.startswith(f"{stack}.")]:
            state[f"{stack}.weight"] = torch.stack([state.pop(name) for name in rows])
    yield from _rope_tensors(model)
    for name, tensor in state.items():
        for part, value in _parts(arch, model.config, name, tensor):
            mapped = names.get_name(part, try_suffixes=(".weight", ".bias", ".scale"))
            assert mapped is not None, part
            yield mapped, value


def _rope_tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    rope = model.config.rope_parameters if hasattr(model.config, "rope_parameters") else {}
    if rope.get("rope_type") == "llama3":
        embedding = model.get_decoder().rotary_emb
        size = 2 * len(embedding.inv_freq)
        plain = rope["rope_theta"] ** -(torch.arange(0, size, 2) / size)
        yield "rope_freqs.weight", plain / embedding.inv_freq
    if model.config.model_type == "gemma4_text":
        full = rope["full_attention"]
        size = model.get_decoder().layers[-1].self_attn.head_dim
        turning = torch.arange(size // 2) < int(size * full["partial_rotary_factor"] / 2)
        yield "rope_freqs.weight", torch.where(turning, 1.0, 1e30)
    if rope.get("rope_type") == "longrope":
        yield "rope_factors_long.weight", torch.tensor(rope["long_factor"])
        yield "rope_factors_short.weight", torch.tensor(rope["short_factor"])


def _parts(arch: str, config: Any, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    num_heads = config.num_attention_heads
    if arch in _PAIRED and (match := re.search(r"([qk])_proj\.(weight|bias)$", name)):
        num_groups = getattr(config, "num_key_value_heads", None) or num_heads
        heads = num_heads if match[1] == "q" else num_groups
        tensor = tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
    elif ".linear_attn." in name:
        yield from _delta_net_parts(arch, config, name, tensor)
        return
    elif ".mamba." in name:
        yield _mamba_part(config, name, tensor)
        return
    elif name.endswith(("layer_scalar", "correct_output_scale")):
        name += ".weight"
    elif name.endswith("router.scale"):
        name = name.replace("scale", "proj.scale")
    elif name.endswith("router.per_expert_scale"):
        name = name.replace("router.per_expert_scale", "experts.down_proj.scale")
    elif arch in _STACKED and ".experts." in name:
        name += ".weight"
    elif arch in _SHIFTED and name.endswith("norm.weight"):
        tensor = tensor + 1
    elif name.endswith("e_score_correction_bias"):
        name = name.replace("_bias", ".bias")
    elif name.endswith("mlp.router.weight") and arch == "phimoe":
        name = name.replace("mlp.router", "block_sparse_moe.gate")
    elif name.endswith("sinks"):
        name += ".weight"
    elif match := re.fullmatch(r"(.*\.(?:experts|shared_mlp|block_sparse_moe)\.)(.*)", name):
        parent = match[1]
        if arch == "granitehybrid" and not config.num_local_experts:
            parent = parent.replace("shared_mlp.", "mlp.")
        yield from _expert_parts(arch, parent, match[2], tensor)
        return
    elif name.endswith("kv_b_proj.weight"):
        size = config.qk_nope_head_dim + config.v_head_dim
        halves = tensor.view(num_heads, size, -1).split(
            (config.qk_nope_head_dim, config.v_head_dim), dim=1
        )
        yield name.replace("kv_b", "k_b"), halves[0].transpose(1, 2)
        yield name.replace("kv_b", "v_b"), halves[1]
        return
    elif arch == "gpt2" and re.search(r"c_(attn|proj|fc)\.weight$", name):
        tensor = tensor.T
    elif arch == "gptneox" and ".query_key_value." in name:
        tensor = tensor.unflatten(0, (num_heads, 3, -1)).transpose(0, 1).flatten(0, 2)
    elif arch == "falcon" and ".query_key_value." in name:
        is_new = config.new_decoder_architecture
        groups = config.num_kv_heads if is_new else 1 if config.multi_query else num_heads
        qkv = tensor.unflatten(0, (groups, num_heads // groups + 2, -1))
        tensor = torch.cat(
            [part.flatten(0, 2) for part in (qkv[:, :-2], qkv[:, -2:-1], qkv[:, -1:])]
        )
    yield name, tensor


def _mamba_part(config: Any, name: str, tensor: Tensor) -> tuple[str, Tensor]:
    """As `Mamba2Model` of the converter."""
    part = name.rpartition(".mamba.")[2]
    if part == "A_log":
        return name, -tensor.exp()[:, None]
    if part == "D":
        return name, tensor[:, None]
    if part == "dt_bias":
        return name.replace("dt_bias", "dt_proj.bias"), tensor
    if part == "conv1d.weight":
        return name, tensor.squeeze(1)
    if part == "norm.weight":
        return name, tensor.unflatten(0, (config.mamba_n_groups, -1))
    return name, tensor


def _delta_net_parts(
    arch: str, config: Any, name: str, tensor: Tensor
) -> Iterator[tuple[str, Tensor]]:
    """As `Qwen3NextModel` and `_LinearAttentionVReorderBase` of the converter."""
    num_keys, num_values = config.linear_num_key_heads, config.linear_num_value_heads
    k_dim, v_dim, ratio = (
        config.linear_key_head_dim,
        config.linear_value_head_dim,
        num_values // num_keys,
    )
    key_rows = 2 * num_keys * k_dim

    def tiled(x: Tensor) -> Tensor:
        if arch == "qwen3next":
            return x
        return x.unflatten(0, (num_keys, ratio, -1)).transpose(0, 1).flatten(0, 2)

    part = name.partition(".linear_attn.")[2]
    if part == "in_proj_qkvz.weight":
        sizes = (k_dim, k_dim, ratio * v_dim, ratio * v_dim)
        heads = tensor.unflatten(0, (num_keys, -1)).split(sizes, dim=1)
        *qkv, z = (x.flatten(0, 1) for x in heads)
        yield name.replace("qkvz", "qkv"), torch.cat(qkv)
        yield name.replace("qkvz", "z"), z
        return
    if part == "A_log":
        tensor = tiled(-tensor.exp())
    elif part == "dt_bias":
        name, tensor = name.replace("dt_bias", "dt_proj.bias"), tiled(tensor)
    elif part in ("conv1d.weight", "in_proj_qkv.weight"):
        x = tensor.squeeze(1)
        tensor = torch.cat((x[:key_rows], tiled(x[key_rows:])))
    elif part in ("in_proj_z.weight", "in_proj_a.weight", "in_proj_b.weight"):
        tensor = tiled(tensor)
    elif part == "out_proj.weight":
        tensor = tiled(tensor.T).T
    yield name, tensor


def _expert_parts(
    arch: str, parent: str, name: str, tensor: Tensor
) -> Iterator[tuple[str, Tensor]]:
    """Gate and up apart, all experts together."""
    if arch == "llama4":
        tensor = tensor.transpose(1, 2)
    if arch == "gpt-oss":
        suffix = "bias" if name.endswith("_bias") else "weight"
        if suffix == "weight":
            tensor = tensor.transpose(1, 2)
        if name.startswith("down"):
            yield f"{parent}down_proj.{suffix}", tensor
        else:
            yield f"{parent}gate_proj.{suffix}", tensor[:, ::2]
            yield f"{parent}up_proj.{suffix}", tensor[:, 1::2]
    elif name.startswith(("gate_up_proj", "input_linear")):
        gate, up = tensor.chunk(2, dim=-2)
        plain = _plain(parent)
        yield f"{plain}gate_proj.weight", gate
        yield f"{plain}up_proj.weight", up
    elif name.startswith(("down_proj", "output_linear")):
        yield f"{_plain(parent)}down_proj.weight", tensor
    else:
        yield parent + name.replace("router.weight", "router.layer.weight"), tensor


def _plain(parent: str) -> str:
    """Where most architectures have experts, and those that every token passes."""
    parent = re.sub(r"block_sparse_moe\.(experts\.)?", "mlp.experts.", parent)
    return parent.replace("shared_mlp.", "mlp.shared_experts.")


def tokenizer_metadata(folder: Path, pre: str) -> dict[str, Any]:
    """What llama.cpp's converter writes of a `tokenizer.json`."""
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = dict(content["model"]["vocab"])
    added = {token["content"]: token for token in content["added_tokens"]}
    ids = vocabulary | {token["content"]: token["id"] for token in added.values()}
    tokens = sorted(ids, key=ids.__getitem__)
    merges = [
        merge if isinstance(merge, str) else " ".join(merge) for merge in content["model"]["merges"]
    ]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [
            1 if token not in added else 3 if added[token]["special"] else 4 for token in tokens
        ],
        "tokenizer.ggml.merges": merges,
    }


def write_demo_gguf(path: Path, kind: Type) -> Path:
    """The bundled model as a GGUF file; every row of it has 256 numbers or more."""
    model = LlamaForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    config = model.config
    metadata = {
        "general.architecture": "llama",
        "llama.block_count": config.num_hidden_layers,
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "llama.rope.dimension_count": config.head_dim,
        "llama.rope.freq_base": 10_000.0,
        **tokenizer_metadata(MODEL_DIR, "smollm"),
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": (MODEL_DIR / "chat_template.jinja").read_text(),
        "general.sampling.temp": 0.0,
    }
    # An array without elements has no type that its writer could know.
    del metadata["tokenizer.ggml.merges"]
    return write_gguf(path, metadata, dict(tensors(metadata, model)), kind)


def record(sources: Path) -> None:
    """Convert every case by llama.cpp's converter; keep the metadata, compare the tensors."""
    # It brings a gguf of its own, newer than the one that is installed.
    for name in [name for name in sys.modules if name.partition(".")[0] == "gguf"]:
        del sys.modules[name]
    sys.path[:0] = [str(sources), str(sources / "gguf-py")]
    conversion = importlib.import_module("conversion")
    base = importlib.import_module("conversion.base")
    recorded = {}
    for case in CASES:
        model = build(case)
        with tempfile.TemporaryDirectory() as folder:
            converted = _convert(conversion, base, model, Path(folder))
            fields = gguf.GGUFReader(converted)
            arch = fields.get_field("general.architecture").contents()
            recorded[case] = {
                key: field.contents()
                for key, field in fields.fields.items()
                if key == "general.architecture" or key.startswith(f"{arch}.")
            }
            theirs = {tensor.name: tensor.data for tensor in fields.tensors}
            ours = {name: x.detach().numpy() for name, x in tensors(recorded[case], model)}
            assert ours.keys() == theirs.keys(), (case, ours.keys() ^ theirs.keys())
            for name, data in theirs.items():
                np.testing.assert_allclose(ours[name], data, rtol=1e-5, err_msg=f"{case} {name}")
        print(case)
    METADATA.write_text(json.dumps(recorded, indent=1) + "\n")


# Names that architectures had when these were published, or that the converter has them under.
_PUBLISHED = {
    "PhimoeForCausalLM": "PhiMoEForCausalLM",
    "Mistral4ForCausalLM": "Mistral3ForConditionalGeneration",
}


def _convert(conversion: Any, base: Any, model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    # Fields that configurations had when these were published.
    rope = config.get("rope_parameters") or {}
    config.setdefault("rotary_pct", rope.get("partial_rotary_factor", 1.0))
    config.setdefault("n_ctx", config.get("n_positions"))
    if config.get("multi_query") and not config.get("new_decoder_architecture"):
        config["num_kv_heads"] = 1
    [architecture] = config["architectures"]
    config["architectures"] = [_PUBLISHED.get(architecture, architecture)]
    if architecture == "GraniteMoeHybridForCausalLM":
        names = {"linear_attention": "mamba", "full_attention": "attention"}
        config["layer_types"] = [names[kind] for kind in config["layer_types"]]
    (folder / "config.json").write_text(json.dumps(config))
    vocabulary = {str(id): id for id in range(config["vocab_size"])}
    tokenizer = {"model": {"vocab": vocabulary}, "added_tokens": []}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    found = base.ModelBase.load_hparams(folder, False)
    cls = conversion.get_model_class(base.get_model_architecture(found, base.ModelType.TEXT))
    # There are no layers that guess further tokens, which it expects of these.
    cls.no_mtp = hasattr(cls, "opt_num_mtp_layers")
    converter = cls(folder, base.gguf.LlamaFileType.ALL_F32, folder / "model.gguf")
    for part in (converter, getattr(converter, "impl", converter)):
        part.hparams["rotary_pct"] = config["rotary_pct"]
        type(part).set_vocab = lambda self: None
    with torch.inference_mode():
        converter.write()
    return folder / "model.gguf"


if __name__ == "__main__":
    record(Path(sys.argv[1]))
