"""What config.json would say of the model in a GGUF file.

A class for each `general.architecture`, with what differs from a Llama. The keys are llama.cpp's:
gguf's `constants.Keys`. What a file does not say, its runtime knows of the architecture, and so
does the class here.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Any, ClassVar

from axion.errors import ModelLoadError
from axion.hub.gguf import GGUF

_MAX_INTEGER = 2**31
_MAX_LAYERS = 2**10
_MAX_FACTORS = 2**12
# Keys that say nothing about how hidden states are computed from token ids.
_HARMLESS = frozenset(
    {
        *("vocab_size", "tensor_data_layout", "rope.scaling.finetuned", "pooling_type"),
        *("nextn_predict_layers", "attention.causal", "rope.dimension_count"),
        *("attention.key_length", "attention.value_length"),
    }
)
_SIGMOID = 2  # of `expert_gating_func`
_DTYPES = {"F32": "float32", "F16": "float16"}


def gguf_config(gguf: GGUF) -> dict[str, Any]:
    """The content of config.json for the model in `gguf`.

    Raises:
        ModelLoadError: the architecture is not supported, a key is missing or has the wrong kind
            of value, or one is there that would not be honoured.
    """
    return _architecture(gguf)(gguf).config()


def gguf_generation_config(gguf: GGUF) -> dict[str, Any]:
    """The content of generation_config.json: sampling defaults, and all ids that end an answer.

    A file has one of each role; llama.cpp knows those of other names by their names, and so do
    its users.
    """
    metadata = gguf.metadata
    tokens, types = (metadata.get(f"tokenizer.ggml.{key}") for key in ("tokens", "token_type"))
    if not isinstance(tokens, list) or not isinstance(types, list):
        tokens = types = []
    ids = {
        token: id
        for id, (token, kind) in enumerate(zip(tokens, types, strict=False))
        if kind in _MARKED and isinstance(token, str) and token in _ENDS
    }
    if {"<|return|>", "<|call|>"} <= ids.keys():
        ids.pop("<|end|>", None)  # of a message, after which the answer goes on
    keys = ("eos_token_id", "eot_token_id", "eom_token_id")
    named = [metadata.get(f"tokenizer.ggml.{key}") for key in keys]
    ends = {*ids.values(), *(id for id in named if type(id) is int)}
    sampling = {
        field: _shortest(value) if isinstance(value, float) else value
        for key, field in _SAMPLING.items()
        if (value := metadata.get(f"general.sampling.{key}")) is not None
    }
    return sampling | {"eos_token_id": sorted(ends)}


_MARKED = (3, 4)  # of `token_type`: control and user-defined
_ENDS = frozenset(
    {
        *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>"),
        *("<|endoftext|>", "<|eom_id|>", "<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>"),
        "<｜end▁of▁sentence｜>",
    }
)
_SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}


def gguf_architecture(gguf: GGUF) -> str:
    """The name that config.json has for the architecture, or the file's own for an unknown one."""
    cls = _ARCHITECTURES.get(gguf.architecture)
    return cls(gguf).name() if cls is not None else gguf.architecture


def _architecture(gguf: GGUF) -> type[_Architecture]:
    cls = _ARCHITECTURES.get(gguf.architecture)
    if cls is None:
        raise ModelLoadError(
            f"GGUF files of the architecture {gguf.architecture[:100]!r} are not supported. "
            f"Supported: {', '.join(sorted(_ARCHITECTURES))}."
        )
    return cls


class _Architecture:
    """Translates the metadata of one file.

    Attributes:
        keys: those of config.json's fields by name, without the architecture's before it.
        constants: fields that the file does not have.
    """

    architecture: ClassVar[str] = ""
    keys: ClassVar[Mapping[str, str]] = {}
    constants: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, gguf: GGUF) -> None:
        self.gguf = gguf
        self._prefix = f"{gguf.architecture}."
        self._read: set[str] = set()

    def name(self) -> str:
        return self.architecture

    def config(self) -> dict[str, Any]:
        if self.get("attention.causal", True) is not True:
            raise ModelLoadError("The model in the GGUF file is an encoder; it writes no text.")
        head_dim = self.head_dim()
        config = {
            "architectures": [self.name()],
            "dtype": self.dtype(),
            "vocab_size": self.shape("token_embd.weight")[0],
            "hidden_size": self.integer("embedding_length"),
            "num_hidden_layers": self.num_layers(),
            "num_attention_heads": self.integer("attention.head_count"),
            "num_key_value_heads": self.integer(
                "attention.head_count_kv", self.integer("attention.head_count")
            ),
            "head_dim": head_dim,
            "intermediate_size": self.integer("feed_forward_length"),
            "max_position_embeddings": self.integer("context_length"),
            "tie_word_embeddings": not self.has("output.weight"),
            "attention_bias": self.has("blk.0.attn_q.bias") or self.has("blk.0.attn_qkv.bias"),
            "mlp_bias": self.has("blk.0.ffn_up.bias"),
            "rope_parameters": self.rope(head_dim),
        }
        config |= {
            field: self.get(key) for key, field in _KEYS.items() if self.get(key) is not None
        }
        config |= {
            field: self.get(key) for key, field in self.keys.items() if self.get(key) is not None
        }
        config |= dict(self.constants) | self.more(config)
        self._check_read()
        return config

    def more(self, config: dict[str, Any]) -> dict[str, Any]:
        """Fields that are not simply a key's value; over those of `config`."""
        return {}

    def get(self, key: str, default: Any = None) -> Any:
        """A value; of one that is given for each layer, the one that all have."""
        self._read.add(key)
        value = self.gguf.metadata.get(self._prefix + key, default)
        if isinstance(value, list):
            if len(set(map(str, value))) != 1:
                raise ModelLoadError(
                    f"The GGUF file's {self._prefix}{key} differs from layer to layer, which is "
                    "not supported."
                )
            value = value[0]
        return _shortest(value) if isinstance(value, float) else value

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.get(key, default)
        if type(value) is not int or not 0 < value < _MAX_INTEGER:
            raise ModelLoadError(
                f"The GGUF file's {self._prefix}{key} must be a positive integer, got "
                f"{str(value)[:80]}."
            )
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.get(key, default)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise ModelLoadError(
                f"The GGUF file's {self._prefix}{key} must be a number, got {str(value)[:80]}."
            )
        return float(value)

    def flags(self, key: str) -> list[bool] | None:
        """One for each layer; None where there is no such list."""
        self._read.add(key)
        values = self.gguf.metadata.get(self._prefix + key)
        return [bool(value) for value in values] if isinstance(values, list) else None

    def has(self, tensor: str) -> bool:
        return tensor in self.gguf.tensors

    def shape(self, tensor: str) -> tuple[int, ...]:
        if tensor not in self.gguf.tensors:
            raise ModelLoadError(f"The GGUF file has no tensor {tensor}.")
        return self.gguf.tensors[tensor].shape

    def factors(self, tensor: str) -> list[float]:
        """The numbers in a short tensor."""
        self.shape(tensor)
        stored = self.gguf.tensors[tensor]
        if stored.type_name != "F32" or stored.num_elements > _MAX_FACTORS:
            raise ModelLoadError(f"{tensor} must hold at most {_MAX_FACTORS} numbers as F32.")
        with stored.file.open("rb") as file:
            file.seek(stored.offset)
            return [number for (number,) in struct.iter_unpack("<f", file.read(stored.nbytes))]

    def dtype(self) -> str:
        """The number format that most of the weights have; bfloat16 if they are quantized."""
        return _DTYPES.get(self.gguf.quantization, "bfloat16")

    def num_layers(self) -> int:
        # Those that guess further tokens are counted, and are the last.
        count = self.integer("block_count") - int(self.number("nextn_predict_layers", 0))
        if not 0 < count <= _MAX_LAYERS:
            raise ModelLoadError(f"The GGUF file describes a model of {count} layers.")
        return count

    def head_dim(self) -> int:
        size = self.integer("embedding_length") // self.integer("attention.head_count")
        head_dim = self.integer("attention.key_length", max(size, 1))
        if self.integer("attention.value_length", head_dim) != head_dim:
            raise ModelLoadError(
                "The GGUF file's keys and values differ in length, which is not supported for "
                f"the architecture {self.gguf.architecture}."
            )
        return head_dim

    def rope(self, head_dim: int) -> dict[str, Any]:
        """`rope_parameters`."""
        rope: dict[str, Any] = {"rope_theta": self.number("rope.freq_base", 10_000.0)}
        rotated = self.integer("rope.dimension_count", head_dim)
        part = rotated / head_dim
        if int(part * head_dim) != rotated:  # as it is read; rounding took it below
            part = math.nextafter(part, 2)
        rope["partial_rotary_factor"] = part
        return rope | self.scaling()

    def scaling(self) -> dict[str, Any]:
        """Of `rope_parameters`, how positions beyond the original ones are reached."""
        scaling = {
            "factor": self.get("rope.scaling.factor"),
            "original_max_position_embeddings": self.get("rope.scaling.original_context_length"),
            "attention_factor": self.get("rope.scaling.yarn_attn_factor"),
            "beta_fast": self.get("rope.scaling.yarn_beta_fast"),
            "beta_slow": self.get("rope.scaling.yarn_beta_slow"),
        }
        kind = self.get("rope.scaling.type", "linear" if scaling["factor"] else "none")
        if self.get("rope.scaling.yarn_ext_factor", 1.0) != 1.0:
            raise ModelLoadError("The GGUF file's rope.scaling.yarn_ext_factor is not supported.")
        if self.has("rope_freqs.weight"):
            # Llama 3's scaling, computed by the converter: a factor for each frequency.
            factors = self.factors("rope_freqs.weight")
            return {
                "rope_type": "longrope",
                "short_factor": factors,
                "long_factor": factors,
                "attention_factor": 1.0,
            }
        if kind == "longrope" or self.has("rope_factors_short.weight"):
            return {
                "rope_type": "longrope",
                "short_factor": self.factors("rope_factors_short.weight"),
                "long_factor": self.factors("rope_factors_long.weight"),
                "attention_factor": self.get("rope.scaling.attn_factor"),
                "original_max_position_embeddings": scaling["original_max_position_embeddings"],
            }
        if kind == "none":
            return {}
        if kind == "linear":
            return {"rope_type": "linear", "factor": scaling["factor"]}
        return {"rope_type": kind} | scaling

    def _check_read(self) -> None:
        """Raises: ModelLoadError: there is a key that nobody has read, and it is not off."""
        for key, value in self.gguf.metadata.items():
            name = key.removeprefix(self._prefix)
            if name != key and name not in self._read | _HARMLESS and value not in (0, "", []):
                raise ModelLoadError(
                    f"The GGUF file has {key[:100]}={str(value)[:80]}, which changes what the "
                    "model computes and is not supported for this architecture."
                )


_KEYS = {
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}


def _shortest(value: float) -> float:
    """The number that was meant: a file holds 1e-06 as 9.999999974752427e-07."""
    short = float(f"{value:.7g}")
    return short if math.isfinite(value) and _float32(short) == _float32(value) else value


def _float32(value: float) -> float:
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return math.inf


class _Llama(_Architecture):
    def name(self) -> str:
        return "MixtralForCausalLM" if self.get("expert_count") else "LlamaForCausalLM"


class _Mistral3(_Architecture):
    def name(self) -> str:
        grows = self.get("attention.temperature_scale")
        return "Ministral3ForCausalLM" if grows else "MistralForCausalLM"

    def more(self, config: dict[str, Any]) -> dict[str, Any]:
        rope = dict(config["rope_parameters"])
        mscale = self.get("rope.scaling.yarn_log_multiplier")
        if mscale is not None:
            rope |= {"mscale": mscale, "mscale_all_dim": mscale}
        if beta := self.get("attention.temperature_scale"):
            rope["llama_4_scaling_beta"] = beta
        return {"rope_parameters": rope, "sliding_window": None}


class _Qwen2(_Architecture):
    architecture = "Qwen2ForCausalLM"


class _Qwen2Moe(_Architecture):
    architecture = "Qwen2MoeForCausalLM"
    keys: ClassVar[Mapping[str, str]] = {
        "expert_shared_feed_forward_length": "shared_expert_intermediate_size"
    }
    constants: ClassVar[Mapping[str, Any]] = {"norm_topk_prob": False}

    def more(self, config: dict[str, Any]) -> dict[str, Any]:
        layers = range(config["num_hidden_layers"])
        dense = [i for i in layers if not self.has(f"blk.{i}.ffn_gate_inp.weight")]
        return {"mlp_only_layers": dense}


class _Qwen3(_Architecture):
    architecture = "Qwen3ForCausalLM"


class _Qwen3Moe(_Qwen2Moe):
    architecture = "Qwen3MoeForCausalLM"
    keys: ClassVar[Mapping[str, str]] = {}
    constants: ClassVar[Mapping[str, Any]] = {"norm_topk_prob": True}


class _Gemma(_Architecture):
    architecture = "GemmaForCausalLM"


class _Gemma2(_Architecture):
    architecture = "Gemma2ForCausalLM"
    keys: ClassVar[Mapping[str, str]] = {
        "attn_logit_softcapping": "attn_logit_softcapping",
        "final_logit_softcapping": "final_logit_softcapping",
        "attention.sliding_window": "sliding_window",
    }
    constants: ClassVar[Mapping[str, Any]] = {
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    }
    num_layers_27b: ClassVar[int] = 46

    def more(self, config: dict[str, Any]) -> dict[str, Any]:
        # The largest one scales by what a head would have if the heads shared the hidden size.
        is_27b = config["num_hidden_layers"] == self.num_layers_27b
        scalar = config["hidden_size"] // config["num_attention_heads"]
        softcaps = {
            name: self.get(name) for name in ("attn_logit_softcapping", "final_logit_softcapping")
        }
        return softcaps | {"query_pre_attn_scalar": scalar if is_27b else config["head_dim"]}


class _Gemma3(_Gemma2):
    architecture = "Gemma3ForCausalLM"
    num_layers_27b = 62

    def more(self, config: dict[str, Any]) -> dict[str, Any]:
        window = self.get("attention.sliding_window")
        local = {"rope_theta": self.number("rope.freq_base_swa", 10_000.0)}
        return super().more(config) | {
            "sliding_window": window,
            "layer_types": _layer_types(self.flags("attention.sliding_window_pattern")),
            "sliding_window_pattern": 6 if window else 1,
            "rope_parameters": {
                "full_attention": config["rope_parameters"],
                "sliding_attention": local,
            },
        }


class _ChatGLM(_Architecture):
    architecture = "GlmForCausalLM"


class _Glm4(_Architecture):
    architecture = "Glm4ForCausalLM"


class _SharedMoE(_Architecture):
    keys: ClassVar[Mapping[str, str]] = {
        "expert_shared_count": "n_shared_experts",
        "expert_weights_norm": "norm_topk_prob",
        "leading_dense_block_count": "first_k_dense_replace",
    }

    def more(self, config: dict[str, Any]) -> dict[str, Any]:
        return {
            "routed_scaling_factor": self.number("expert_weights_scale", 1.0),
            "n_group": self.integer("expert_group_count", 1),
            "topk_group": self.integer("expert_group_used_count", 1),
            "num_nextn_predict_layers": 0,
        }


class _Glm4Moe(_SharedMoE):
    architecture = "Glm4MoeForCausalLM"

    def more(self, config: dict[str, Any]) -> dict[str, Any]:
        if self.get("expert_gating_func", _SIGMOID) != _SIGMOID:
            raise ModelLoadError("The GGUF file's expert_gating_func must be that of GLM-4.5.")
        return super().more(config) | {"use_qk_norm": self.has("blk.0.attn_q_norm.weight")}


class _Deepseek2(_SharedMoE):
    def name(self) -> str:
        is_v3 = self.get("expert_gating_func") == _SIGMOID or any(
            name.endswith(".exp_probs_b.bias") for name in self.gguf.tensors
        )
        return "DeepseekV3ForCausalLM" if is_v3 else "DeepseekV2ForCausalLM"

    def head_dim(self) -> int:
        return self.integer("rope.dimension_count")  # of what is rotated

    def more(self, config: dict[str, Any]) -> dict[str, Any]:
        del config["head_dim"]
        more = super().more(config)
        # Before keys and values were stored as two, the lengths of their heads were these.
        key_length, value_length = (
            self.integer(f"{key}_mla" if self.get(f"{key}_mla") else key)
            for key in ("attention.key_length", "attention.value_length")
        )
        rope_dim = self.integer("rope.dimension_count")
        rope = dict(config["rope_parameters"])
        if log_multiplier := self.number("rope.scaling.yarn_log_multiplier", 0.0):
            mscale = _shortest(log_multiplier / 0.1)
            rope |= {"mscale": mscale, "mscale_all_dim": mscale}
        if self.name() == "DeepseekV2ForCausalLM":
            more["topk_method"] = "group_limited_greedy" if more["n_group"] > 1 else "greedy"
        elif config["num_experts"] == 256 and not self.get("expert_group_count"):
            # Files from before the groups were written: DeepSeek-V3 and R1.
            more |= {"n_group": 8, "topk_group": 4}
        return more | {
            "attention_bias": self.has("blk.0.attn_kv_a_mqa.bias"),
            "num_key_value_heads": config["num_attention_heads"],
            "q_lora_rank": self.get("attention.q_lora_rank"),
            "kv_lora_rank": self.integer("attention.kv_lora_rank"),
            "qk_rope_head_dim": rope_dim,
            "qk_nope_head_dim": key_length - rope_dim,
            "v_head_dim": value_length,
            "rope_parameters": rope,
        }


class _Granite(_Architecture):
    architecture = "GraniteForCausalLM"
    keys: ClassVar[Mapping[str, str]] = {
        "embedding_scale": "embedding_multiplier",
        "residual_scale": "residual_multiplier",
        "logit_scale": "logits_scaling",
    }

    def more(self, config: dict[str, Any]) -> dict[str, Any]:
        scale = self.number("attention.scale", config["head_dim"] ** -0.5)
        return {"attention_multiplier": _shortest(scale)}


class _GraniteMoe(_Granite):
    keys: ClassVar[Mapping[str, str]] = {
        **_Granite.keys,
        "expert_shared_feed_forward_length": "shared_intermediate_size",
    }

    def name(self) -> str:
        shared = self.get("expert_shared_feed_forward_length")
        return "GraniteMoeSharedForCausalLM" if shared else "GraniteMoeForCausalLM"


class _Olmo(_Architecture):
    architecture = "OlmoForCausalLM"
    keys: ClassVar[Mapping[str, str]] = {"attention.clamp_kqv": "clip_qkv"}

    def more(self, config: dict[str, Any]) -> dict[str, Any]:
        if self.number("attention.layer_norm_epsilon", 1e-5) != 1e-5:
            raise ModelLoadError("The GGUF file's layer_norm_epsilon must be OLMo's, 1e-5.")
        return {}


class _Olmo2(_Architecture):
    def name(self) -> str:
        window = self.get("attention.sliding_window")
        return "Olmo3ForCausalLM" if window else "Olmo2ForCausalLM"

    def more(self, config: dict[str, Any]) -> dict[str, Any]:
        window = self.get("attention.sliding_window")
        if not window:
            return {}
        rope = config["rope_parameters"]
        local = {"rope_theta": self.number("rope.freq_base_swa", rope["rope_theta"])}
        return {
            "sliding_window": window,
            "layer_types": _layer_types(self.flags("attention.sliding_window_pattern")),
            "rope_parameters": {"full_attention": rope, "sliding_attention": local},
        }


class _Olmoe(_Architecture):
    architecture = "OlmoeForCausalLM"
    keys: ClassVar[Mapping[str, str]] = {"attention.clamp_kqv": "clip_qkv"}
    constants: ClassVar[Mapping[str, Any]] = {"norm_topk_prob": False}


class _Phi2(_Architecture):
    architecture = "PhiForCausalLM"
    keys: ClassVar[Mapping[str, str]] = {"attention.layer_norm_epsilon": "layer_norm_eps"}


class _Phi3(_Architecture):
    architecture = "Phi3ForCausalLM"

    def more(self, config: dict[str, Any]) -> dict[str, Any]:
        self.get("rope.scaling.attn_factor")
        # With 0 a Phi-4 says that it has none.
        return {"sliding_window": self.get("attention.sliding_window") or None}


class _GptOss(_Architecture):
    architecture = "GptOssForCausalLM"
    keys: ClassVar[Mapping[str, str]] = {"attention.sliding_window": "sliding_window"}

    def more(self, config: dict[str, Any]) -> dict[str, Any]:
        rope = config["rope_parameters"]
        is_yarn = rope.get("rope_type") == "yarn"
        return {"rope_parameters": rope | ({"truncate": False} if is_yarn else {})}


class _SmolLM3(_Architecture):
    architecture = "SmolLM3ForCausalLM"


class _CommandR(_Architecture):
    architecture = "CohereForCausalLM"
    keys: ClassVar[Mapping[str, str]] = {
        "logit_scale": "logit_scale",
        "attention.layer_norm_epsilon": "layer_norm_eps",
    }

    def more(self, config: dict[str, Any]) -> dict[str, Any]:
        return {"use_qk_norm": self.has("blk.0.attn_q_norm.weight")}


class _Cohere2(_CommandR):
    architecture = "Cohere2ForCausalLM"
    keys: ClassVar[Mapping[str, str]] = {
        **_CommandR.keys,
        "attention.sliding_window": "sliding_window",
    }


class _StableLM(_Architecture):
    architecture = "StableLmForCausalLM"
    keys: ClassVar[Mapping[str, str]] = {
        "attention.layer_norm_epsilon": "layer_norm_eps",
        "use_parallel_residual": "use_parallel_residual",
    }

    def more(self, config: dict[str, Any]) -> dict[str, Any]:
        return {
            "use_qkv_bias": config["attention_bias"],
            "qk_layernorm": self.has("blk.0.attn_q_norm.weight"),
            # Which the key of that name is not always right about.
            "use_parallel_residual": not self.has("blk.0.ffn_norm.weight"),
        }


class _Starcoder2(_Architecture):
    architecture = "Starcoder2ForCausalLM"
    keys: ClassVar[Mapping[str, str]] = {"attention.layer_norm_epsilon": "norm_epsilon"}

    def more(self, config: dict[str, Any]) -> dict[str, Any]:
        return {"use_bias": config["mlp_bias"]}


class _Nemotron(_Architecture):
    architecture = "NemotronForCausalLM"
    keys: ClassVar[Mapping[str, str]] = {"attention.layer_norm_epsilon": "norm_eps"}


class _GPT2(_Architecture):
    architecture = "GPT2LMHeadModel"
    keys: ClassVar[Mapping[str, str]] = {"attention.layer_norm_epsilon": "layer_norm_epsilon"}

    def more(self, config: dict[str, Any]) -> dict[str, Any]:
        return {"max_position_embeddings": self.shape("position_embd.weight")[0]}


class _GPTNeoX(_Architecture):
    architecture = "GPTNeoXForCausalLM"
    keys: ClassVar[Mapping[str, str]] = {
        "attention.layer_norm_epsilon": "layer_norm_eps",
        "use_parallel_residual": "use_parallel_residual",
    }


class _Falcon(_Architecture):
    architecture = "FalconForCausalLM"
    keys: ClassVar[Mapping[str, str]] = {"attention.layer_norm_epsilon": "layer_norm_epsilon"}

    def more(self, config: dict[str, Any]) -> dict[str, Any]:
        num_kv_heads = config["num_key_value_heads"]
        is_new = self.has("blk.0.attn_norm_2.weight") or num_kv_heads > 1
        return {
            "bias": config["attention_bias"],
            "multi_query": num_kv_heads == 1,
            "num_kv_heads": num_kv_heads,
            "new_decoder_architecture": is_new,
            "num_ln_in_parallel_attn": 2 if self.has("blk.0.attn_norm_2.weight") else 1,
        }


def _layer_types(is_sliding: list[bool] | None) -> list[str] | None:
    if is_sliding is None:
        return None
    return ["sliding_attention" if sliding else "full_attention" for sliding in is_sliding]


_ARCHITECTURES: dict[str, type[_Architecture]] = {
    "llama": _Llama,
    "mistral3": _Mistral3,
    "qwen2": _Qwen2,
    "qwen2moe": _Qwen2Moe,
    "qwen3": _Qwen3,
    "qwen3moe": _Qwen3Moe,
    "gemma": _Gemma,
    "gemma2": _Gemma2,
    "gemma3": _Gemma3,
    "chatglm": _ChatGLM,
    "glm4": _Glm4,
    "glm4moe": _Glm4Moe,
    "deepseek2": _Deepseek2,
    "granite": _Granite,
    "granitemoe": _GraniteMoe,
    "olmo": _Olmo,
    "olmo2": _Olmo2,
    "olmoe": _Olmoe,
    "phi2": _Phi2,
    "phi3": _Phi3,
    "gpt-oss": _GptOss,
    "smollm3": _SmolLM3,
    "command-r": _CommandR,
    "cohere2": _Cohere2,
    "stablelm": _StableLM,
    "starcoder2": _Starcoder2,
    "nemotron": _Nemotron,
    "gpt2": _GPT2,
    "gptneox": _GPTNeoX,
    "falcon": _Falcon,
}
