"""What differs between the GGUF files of each `general.architecture`.

What a file does not say, its runtime knows of the architecture, and so does the class here.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist
from typing import Any, ClassVar

from axion.errors import ModelLoadError
from axion.hub.gguf_metadata import Architecture, rotary_factor, shortest

_SIGMOID = 2  # of `expert_gating_func`
_NUM_EXPERTS_OF_MAVERICK = 128  # the Llama 4 without norms of queries and keys


class _Llama(Architecture):
    def name(self) -> str:
        return "MixtralForCausalLM" if self.get("expert_count") else "LlamaForCausalLM"


class _Llama4(Architecture):
    architecture = "Llama4ForCausalLM"
    keys: ClassVar[Mapping[str, str]] = {
        "interleave_moe_layer_step": "interleave_moe_layer_step",
        "expert_feed_forward_length": "intermediate_size",
    }
    constants: ClassVar[Mapping[str, Any]] = {
        **{"attention_chunk_size": 8192, "floor_scale": 8192, "attn_scale": 0.1},
        "no_rope_layer_interval": 4,
    }

    def more(self, config: dict[str, Any]) -> dict[str, Any]:
        if not self.get("attention.sliding_window", 8192):
            raise ModelLoadError("The GGUF file's model is no Llama 4: its layers are all alike.")
        return {
            "intermediate_size_mlp": self.intermediate_size(),
            "use_qk_norm": self.get("expert_count") != _NUM_EXPERTS_OF_MAVERICK,
        }


class _Mistral3(Architecture):
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


class _Qwen2(Architecture):
    architecture = "Qwen2ForCausalLM"


class _Qwen2Moe(Architecture):
    architecture = "Qwen2MoeForCausalLM"
    keys: ClassVar[Mapping[str, str]] = {
        "expert_shared_feed_forward_length": "shared_expert_intermediate_size"
    }
    constants: ClassVar[Mapping[str, Any]] = {"norm_topk_prob": False}

    def more(self, config: dict[str, Any]) -> dict[str, Any]:
        layers = range(config["num_hidden_layers"])
        dense = [i for i in layers if not self.has(f"blk.{i}.ffn_gate_inp.weight")]
        return {"mlp_only_layers": dense}


class _Qwen3(Architecture):
    architecture = "Qwen3ForCausalLM"


class _Qwen3Moe(_Qwen2Moe):
    architecture = "Qwen3MoeForCausalLM"
    keys: ClassVar[Mapping[str, str]] = {}
    constants: ClassVar[Mapping[str, Any]] = {"norm_topk_prob": True}


class _Qwen35(Architecture):
    architecture = "Qwen3_5ForCausalLM"
    keys: ClassVar[Mapping[str, str]] = {
        "ssm.conv_kernel": "linear_conv_kernel_dim",
        "ssm.state_size": "linear_key_head_dim",
        "ssm.group_count": "linear_num_key_heads",
        "ssm.time_step_rank": "linear_num_value_heads",
    }
    tiled: ClassVar[bool] = True

    def more(self, config: dict[str, Any]) -> dict[str, Any]:
        interval = self.integer("full_attention_interval", 4)
        num_layers = config["num_hidden_layers"]
        recurrent = self.flags("attention.recurrent_layers") or [
            bool((i + 1) % interval) for i in range(num_layers)
        ]
        return {
            "linear_value_head_dim": self.integer("ssm.inner_size")
            // self.integer("ssm.time_step_rank"),
            "linear_value_heads_tiled": self.tiled,
            "layer_types": [
                "linear_attention" if flag else "full_attention" for flag in recurrent[:num_layers]
            ],
        }


class _Qwen35Moe(_Qwen35):
    architecture = "Qwen3_5MoeForCausalLM"
    keys: ClassVar[Mapping[str, str]] = {**_Qwen35.keys, **_Qwen2Moe.keys}

    def intermediate_size(self) -> int:
        return self.integer("feed_forward_length", 1)  # of no layer


class _Qwen3Next(_Qwen35Moe):
    # Which it is when what belongs to a key head lies no longer together.
    tiled = False


class _Gemma(Architecture):
    architecture = "GemmaForCausalLM"


class _Gemma2(Architecture):
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


class _Gemma4(Architecture):
    architecture = "Gemma4ForCausalLM"
    keys: ClassVar[Mapping[str, str]] = {
        "attention.sliding_window": "sliding_window",
        "embedding_length_per_layer_input": "hidden_size_per_layer_input",
        "attention.shared_kv_layers": "num_kv_shared_layers",
    }

    def head_dim(self) -> int:
        return self.integer("attention.key_length_swa", super().head_dim())

    def num_key_value_heads(self) -> int:
        return self._of_kind("attention.head_count_kv", is_sliding=True)

    def intermediate_size(self) -> int:
        return self.counts("feed_forward_length")[0]

    def _is_sliding(self) -> list[bool]:
        return self.flags("attention.sliding_window_pattern") or [False] * self.num_layers()

    def _of_kind(self, key: str, *, is_sliding: bool) -> int:
        """What the layers of a kind have of a count that differs between the two kinds."""
        counts = self.counts(key)
        kinds = zip(counts, self._is_sliding(), strict=False)
        return next((count for count, kind in kinds if kind == is_sliding), counts[0])

    def rope(self, head_dim: int) -> dict[str, Any]:
        rotated = self.integer("rope.dimension_count_swa", head_dim)
        # What frequencies are divided by: so much that those behind the first stand still.
        factors = self.factors("rope_freqs.weight")
        num_turning = factors.count(1.0)
        if not num_turning or any(factor < 1e29 for factor in factors[num_turning:]):
            raise ModelLoadError("The GGUF file's rope_freqs.weight is not that of a Gemma 4.")
        return {
            "full_attention": {
                "rope_type": "proportional",
                "rope_theta": self.number("rope.freq_base", 10_000.0),
                "partial_rotary_factor": rotary_factor(num_turning, len(factors)),
            },
            "sliding_attention": {
                "rope_theta": self.number("rope.freq_base_swa", 10_000.0),
                "partial_rotary_factor": rotary_factor(rotated, head_dim),
            },
        }

    def more(self, config: dict[str, Any]) -> dict[str, Any]:
        head_dim = config["head_dim"]
        if self.integer("attention.value_length_swa", head_dim) != head_dim:
            raise ModelLoadError("The GGUF file's keys and values must be equally long.")
        is_sliding = self._is_sliding()
        shared = self.get("attention.shared_kv_layers", 0)
        with_keys = is_sliding[: len(is_sliding) - shared] if type(shared) is int else []
        sizes = self.counts("feed_forward_length")
        more: dict[str, Any] = {
            "global_head_dim": super().head_dim(),
            "num_global_key_value_heads": self._of_kind(
                "attention.head_count_kv", is_sliding=False
            ),
            "layer_types": _layer_types(is_sliding),
            "attention_k_eq_v": any(
                not self.has(f"blk.{i}.attn_v.weight")
                for i, sliding in enumerate(with_keys)
                if not sliding
            ),
            "final_logit_softcapping": self.get("final_logit_softcapping"),
            "use_double_wide_mlp": sizes[-1] != sizes[0],
            "enable_moe_block": bool(self.get("expert_count")),
        }
        if self.has("per_layer_token_embd.weight"):
            more["vocab_size_per_layer_input"] = self.shape("per_layer_token_embd.weight")[0]
        return more


class _Gemma3n(_Gemma4):
    architecture = "Gemma3nForCausalLM"
    keys: ClassVar[Mapping[str, str]] = {
        **_Gemma4.keys,
        "altup.active_idx": "altup_active_idx",
        "altup.num_inputs": "altup_num_inputs",
    }

    def rope(self, head_dim: int) -> dict[str, Any]:
        return {
            "full_attention": {"rope_theta": self.number("rope.freq_base", 10_000.0)},
            "sliding_attention": {"rope_theta": self.number("rope.freq_base_swa", 10_000.0)},
        }

    def more(self, config: dict[str, Any]) -> dict[str, Any]:
        scales = self.numbers("activation_sparsity_scale")
        return {
            "intermediate_size": self.counts("feed_forward_length"),
            "layer_types": _layer_types(self.flags("attention.sliding_window_pattern")),
            "vocab_size_per_layer_input": self.shape("per_layer_token_embd.weight")[0],
            "final_logit_softcapping": self.get("final_logit_softcapping"),
            "laurel_rank": self.shape("blk.0.laurel_l.weight")[0],
            "activation_sparsity_pattern": scales
            and [shortest(NormalDist().cdf(scale)) for scale in scales],
        }


class _ChatGLM(Architecture):
    architecture = "GlmForCausalLM"


class _Glm4(Architecture):
    architecture = "Glm4ForCausalLM"


class _SharedMoE(Architecture):
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
            mscale = shortest(log_multiplier / 0.1)
            rope |= {"mscale": mscale, "mscale_all_dim": mscale}
        if self.name() == "DeepseekV2ForCausalLM":
            more["topk_method"] = "group_limited_greedy" if more["n_group"] > 1 else "greedy"
        elif self.gguf.architecture == "deepseek2" and (
            config["num_experts"] == 256 and not self.get("expert_group_count")
        ):
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


class _GlmDsa(_Deepseek2):
    keys: ClassVar[Mapping[str, str]] = {
        **_Deepseek2.keys,
        "attention.indexer.head_count": "index_n_heads",
        "attention.indexer.key_length": "index_head_dim",
        "attention.indexer.top_k": "index_topk",
    }

    def name(self) -> str:
        return "GlmMoeDsaForCausalLM"

    def more(self, config: dict[str, Any]) -> dict[str, Any]:
        if self.get("expert_gating_func", _SIGMOID) != _SIGMOID:
            raise ModelLoadError("The GGUF file's expert_gating_func must be that of GLM-5.")
        layers = range(config["num_hidden_layers"])
        chooses = self.flags("attention.indexer.types")
        if chooses is None:
            # Files from before this was written: of GLM-5.2, and of those before it, where all do.
            is_new = config["max_position_embeddings"] >= 2**20
            chooses = [not is_new or i < 2 or i % 4 == 2 for i in layers]
        return super().more(config) | {
            "indexer_types": ["full" if chooses[i] else "shared" for i in layers[: len(chooses)]]
        }


class _Mistral4(_Deepseek2):
    def name(self) -> str:
        return "Mistral4ForCausalLM"

    def more(self, config: dict[str, Any]) -> dict[str, Any]:
        more = super().more(config)
        beta = self.number("attention.temperature_scale", 0.0)
        return more | {"rope_parameters": more["rope_parameters"] | {"llama_4_scaling_beta": beta}}


class _Granite(Architecture):
    architecture = "GraniteForCausalLM"
    keys: ClassVar[Mapping[str, str]] = {
        "embedding_scale": "embedding_multiplier",
        "residual_scale": "residual_multiplier",
        "logit_scale": "logits_scaling",
    }

    def more(self, config: dict[str, Any]) -> dict[str, Any]:
        scale = self.number("attention.scale", config["head_dim"] ** -0.5)
        return {"attention_multiplier": shortest(scale)}


class _GraniteMoe(_Granite):
    keys: ClassVar[Mapping[str, str]] = {
        **_Granite.keys,
        "expert_shared_feed_forward_length": "shared_intermediate_size",
    }

    def name(self) -> str:
        shared = self.get("expert_shared_feed_forward_length")
        return "GraniteMoeSharedForCausalLM" if shared else "GraniteMoeForCausalLM"


class _GraniteHybrid(_GraniteMoe):
    architecture = "GraniteMoeHybridForCausalLM"
    keys: ClassVar[Mapping[str, str]] = {
        **_GraniteMoe.keys,
        "ssm.conv_kernel": "mamba_d_conv",
        "ssm.state_size": "mamba_d_state",
        "ssm.group_count": "mamba_n_groups",
        "ssm.time_step_rank": "mamba_n_heads",
    }

    def name(self) -> str:
        return self.architecture

    def num_key_value_heads(self) -> int:
        return max(self.counts("attention.head_count_kv"))

    def more(self, config: dict[str, Any]) -> dict[str, Any]:
        # A recurrent layer has no heads.
        heads = self.counts("attention.head_count_kv")
        attention = next((i for i, count in enumerate(heads) if count), 0)
        mamba = next((i for i, count in enumerate(heads) if not count), 0)
        has_experts = bool(self.get("expert_count"))
        return super().more(config) | {
            "num_experts": config["num_experts"] if has_experts else 0,
            "num_experts_per_tok": self.get("expert_used_count") if has_experts else 0,
            "layer_types": ["attention" if count else "mamba" for count in heads],
            "attention_bias": self.has(f"blk.{attention}.attn_q.bias"),
            "mamba_d_head": self.integer("ssm.inner_size") // self.integer("ssm.time_step_rank"),
            "mamba_conv_bias": self.has(f"blk.{mamba}.ssm_conv1d.bias"),
            "mamba_proj_bias": self.has(f"blk.{mamba}.ssm_in.bias"),
            "position_embedding_type": "rope"
            if self.get("rope.scaling.finetuned", True)
            else "nope",
        }


class _Olmo(Architecture):
    architecture = "OlmoForCausalLM"
    keys: ClassVar[Mapping[str, str]] = {"attention.clamp_kqv": "clip_qkv"}

    def more(self, config: dict[str, Any]) -> dict[str, Any]:
        if self.number("attention.layer_norm_epsilon", 1e-5) != 1e-5:
            raise ModelLoadError("The GGUF file's layer_norm_epsilon must be OLMo's, 1e-5.")
        return {}


class _Olmo2(Architecture):
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


class _Olmoe(Architecture):
    architecture = "OlmoeForCausalLM"
    keys: ClassVar[Mapping[str, str]] = {"attention.clamp_kqv": "clip_qkv"}
    constants: ClassVar[Mapping[str, Any]] = {"norm_topk_prob": False}


class _Phi2(Architecture):
    architecture = "PhiForCausalLM"
    keys: ClassVar[Mapping[str, str]] = {"attention.layer_norm_epsilon": "layer_norm_eps"}


class _Phi3(Architecture):
    architecture = "Phi3ForCausalLM"

    def more(self, config: dict[str, Any]) -> dict[str, Any]:
        self.get("rope.scaling.attn_factor")
        # With 0 a Phi-4 says that it has none.
        return {"sliding_window": self.get("attention.sliding_window") or None}


class _PhiMoe(_Phi3):
    architecture = "PhimoeForCausalLM"

    def more(self, config: dict[str, Any]) -> dict[str, Any]:
        return super().more(config) | {"lm_head_bias": self.has("output.bias")}


class _GptOss(Architecture):
    architecture = "GptOssForCausalLM"
    keys: ClassVar[Mapping[str, str]] = {"attention.sliding_window": "sliding_window"}

    def more(self, config: dict[str, Any]) -> dict[str, Any]:
        rope = config["rope_parameters"]
        is_yarn = rope.get("rope_type") == "yarn"
        return {"rope_parameters": rope | ({"truncate": False} if is_yarn else {})}


class _SmolLM3(Architecture):
    architecture = "SmolLM3ForCausalLM"


class _CommandR(Architecture):
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


class _StableLM(Architecture):
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


class _Starcoder2(Architecture):
    architecture = "Starcoder2ForCausalLM"
    keys: ClassVar[Mapping[str, str]] = {"attention.layer_norm_epsilon": "norm_epsilon"}

    def more(self, config: dict[str, Any]) -> dict[str, Any]:
        return {"use_bias": config["mlp_bias"]}


class _Nemotron(Architecture):
    architecture = "NemotronForCausalLM"
    keys: ClassVar[Mapping[str, str]] = {"attention.layer_norm_epsilon": "norm_eps"}


class _GPT2(Architecture):
    architecture = "GPT2LMHeadModel"
    keys: ClassVar[Mapping[str, str]] = {"attention.layer_norm_epsilon": "layer_norm_epsilon"}

    def more(self, config: dict[str, Any]) -> dict[str, Any]:
        return {"max_position_embeddings": self.shape("position_embd.weight")[0]}


class _GPTNeoX(Architecture):
    architecture = "GPTNeoXForCausalLM"
    keys: ClassVar[Mapping[str, str]] = {
        "attention.layer_norm_epsilon": "layer_norm_eps",
        "use_parallel_residual": "use_parallel_residual",
    }


class _Falcon(Architecture):
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


ARCHITECTURES: dict[str, type[Architecture]] = {
    "llama": _Llama,
    "llama4": _Llama4,
    "mistral3": _Mistral3,
    "qwen2": _Qwen2,
    "qwen2moe": _Qwen2Moe,
    "qwen3": _Qwen3,
    "qwen3moe": _Qwen3Moe,
    "qwen35": _Qwen35,
    "qwen35moe": _Qwen35Moe,
    "qwen3next": _Qwen3Next,
    "gemma": _Gemma,
    "gemma2": _Gemma2,
    "gemma3": _Gemma3,
    "gemma3n": _Gemma3n,
    "gemma4": _Gemma4,
    "chatglm": _ChatGLM,
    "glm4": _Glm4,
    "glm4moe": _Glm4Moe,
    "deepseek2": _Deepseek2,
    "glm-dsa": _GlmDsa,
    "mistral4": _Mistral4,
    "granite": _Granite,
    "granitemoe": _GraniteMoe,
    "granitehybrid": _GraniteHybrid,
    "olmo": _Olmo,
    "olmo2": _Olmo2,
    "olmoe": _Olmoe,
    "phi2": _Phi2,
    "phi3": _Phi3,
    "phimoe": _PhiMoe,
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
