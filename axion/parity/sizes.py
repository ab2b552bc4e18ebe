"""Sizes of small models."""

from __future__ import annotations

from typing import Any

ORIGINAL_LENGTH = 64
"""Scaled ropes start from this context, so that prompts on both sides of it are short."""
WINDOW = 16
"""Prompts are shorter and longer than this window."""

TINY: dict[str, Any] = {
    "vocab_size": 199,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}

LIMITS: dict[str, int] = {
    **{"original_max_position_embeddings": ORIGINAL_LENGTH, "vocab_size_per_layer_input": 199},
    **{"sliding_window": WINDOW, "attention_chunk_size": WINDOW},
    **{"num_experts": 6, "num_local_experts": 6, "n_routed_experts": 6, "moe_num_experts": 6},
    **{"num_experts_per_tok": 2, "num_experts_per_token": 2, "moe_k": 2, "moe_topk": 2},
    **{"top_k_experts": 2, "n_group": 3, "topk_group": 2, "num_shared_experts": 2},
    **{"moe_intermediate_size": 32, "expert_intermediate_size": 32, "intermediate_size_mlp": 96},
    **{"shared_expert_intermediate_size": 48, "shared_intermediate_size": 48},
    **{"q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8},
    **{"v_head_dim": 20, "qk_head_dim": 20, "hidden_size_per_layer_input": 16, "laurel_rank": 8},
    **{"o_groups": 2, "o_lora_rank": 8, "hc_sinkhorn_iters": 2},
    **{"first_k_dense_replace": 1, "num_kv_shared_layers": 1, "global_head_dim": 32},
    **{"num_global_key_value_heads": 1, "image_size": 16, "patch_size": 4, "depth": 1},
    **{"mm_tokens_per_image": 4, "num_nextn_predict_layers": 0},
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 4},
    **{"linear_key_head_dim": 32, "linear_value_head_dim": 16},
    **{"linear_num_heads": 3, "linear_head_dim": 32},
    **{"index_topk": 12, "index_kpool": 4, "index_n_heads": 16, "index_head_dim": 24},
    **{"index_block_size": 4, "index_topk_blocks": 3, "dense_intermediate_size": 80},
    **{"indexer_n_heads": 16, "indexer_head_dim": 32, "indexer_budget": 12, "hc_lowrank": 20},
    **{"indexer_compress_ratio": 4, "ple_embed_dim": 64, "ngram_vocab_size_base": 100},
    **{"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 2, "mamba_d_state": 16},
    **{"mamba_num_heads": 8, "mamba_head_dim": 16, "n_groups": 2, "ssm_state_size": 16},
    **{"mamba_d_ssm": 128, "state_size": 16, "moe_shared_expert_intermediate_size": 48},
}
"""At most so much, where a configuration has the field."""

_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_DECODER = {"is_decoder": True, "type_vocab_size": 2, "pad_token_id": 1}
_LATENT = {"head_dim": 8, "num_key_value_heads": 4}
_HEADS = {"num_key_value_heads": 4, "head_dim": 16}
_TWO_SIZES = {"per_layer_config": {"1": {"head_dim": 32}}}
_PER_LAYER = {**_TWO_SIZES, "hidden_size_per_layer_input": 16}
_EXPERTS = {"n_routed_experts": 6, "n_shared_experts": 1, "num_experts_per_tok": 2}
_ENCODER_HEADS = {"decoder_attention_heads": 4, "encoder_attention_heads": 4}
_CONVOLVED = {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2}
_LFM3 = {"layer_types": ["conv", "sliding_attention", "full_attention"], "num_hidden_layers": 3}
_COMPASS = {
    "rope_parameters": {
        kind: {"rope_type": "default", "rope_theta": 10_000.0}
        for kind in ("full_attention", "sliding_attention")
    },
    "logit_scale": 0.25,
    "head_dim": 16,
}
_DOTS3 = {
    "per_layer_config": {
        "2": {
            **{"num_attention_heads": 2, "num_key_value_heads": 2},
            **{"kv_lora_rank": 24, "qk_nope_head_dim": 16},
        }
    }
}
_QWEN4_EXP = {
    **{"layer_types": ["linear_attention", "indexed_attention"], "num_hidden_layers": 2},
    **{"indexer_n_heads": 16, "indexer_kv_heads": 1, "indexer_head_dim": 32},
    **{"indexer_budget": 12, "indexer_compress_ratio": 4},
    **{"ple_layer_ids": [1], "eos_token_id": 90},
}
_SPARSE = {"layer_types": ["full_attention", "minimax_m3_sparse"], "num_hidden_layers": 2}


def _sections(*sections: int) -> dict[str, Any]:
    """Of a rope with positions in time, height and width."""
    return {"text_config": {"rope_parameters": {"mrope_section": list(sections)}}}


CHANGES: dict[str, dict[str, Any]] = {
    "AXK1ForCausalLM": _LATENT,
    "BailingHybridForCausalLM": {
        **{"layer_types": ["linear_attention", "full_attention"], "num_hidden_layers": 2},
        **{"mlp_layer_types": ["dense", "sparse"], "num_key_value_heads": 4, "head_dim": 32},
        **{"num_mtp_layers": 0, "num_expert_group": 3, "topk_group": 2, "num_local_experts": 6},
        **{"linear_num_heads": 4, "linear_head_dim": 32},
    },
    "BertGenerationDecoder": {"is_decoder": True},
    "BertLMHeadModel": _DECODER,
    "CamembertForCausalLM": _DECODER,
    "ChameleonForConditionalGeneration": {"vocabulary_map": {"<image>": 5}},
    "CodeGenForCausalLM": {"rotary_dim": 8},
    "CohereCompassForCausalLM": _COMPASS,
    "CohereCompassForConditionalGeneration": {"text_config": _COMPASS},
    "Cosmos3EdgeForConditionalGeneration": _sections(4, 2, 2),
    "CwmForCausalLM": _IDS,
    "Data2VecTextForCausalLM": _DECODER,
    "DbrxForCausalLM": {
        "attn_config": {"rope_theta": 10_000.0, "kv_n_heads": 2, "clip_qkv": 0.5},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 6, "moe_top_k": 2},
    },
    "DeepseekOcr2ForConditionalGeneration": {
        "text_config": {**_EXPERTS, "mlp_layer_types": ["dense", "sparse"]}
    },
    "DeepseekV2ForCausalLM": {**_LATENT, **_EXPERTS, "topk_method": "greedy"},
    "DeepseekV3ForCausalLM": _LATENT,
    "Dots1ForCausalLM": _EXPERTS,
    "Dots3NoteForCausalLM": _DOTS3,
    "Dots3NoteForConditionalGeneration": {
        "text_config": _DOTS3,
        "vision_config": {"adapter_in_dim": 64, "adapter_out_dim": 64},
        "audio_config": {"adapter_input_size": 64, "adapter_out_dim": 64},
    },
    "ElectraForCausalLM": _DECODER,
    "Emu3ForCausalLM": _IDS,
    "ErnieForCausalLM": _DECODER,
    "Gemma4ForCausalLM": _PER_LAYER,
    "Emu3ForConditionalGeneration": {
        "text_config": _IDS,
        "vocabulary_map": {"<image>": 5},
    },
    "Gemma4ForConditionalGeneration": {
        "text_config": {**_PER_LAYER, "pad_token_id": 0},
        # Elsewhere than in text: it reads something else in their places.
        **{f"{kind}_token_id": 10_000 for kind in ("image", "video", "audio")},
    },
    "Gemma4UnifiedForCausalLM": _TWO_SIZES,
    "Gemma4UnifiedForConditionalGeneration": {"text_config": {**_TWO_SIZES, "pad_token_id": 0}},
    "GraniteMoeHybridForCausalLM": {"layer_types": ["linear_attention", "full_attention"]},
    "Glm46VForConditionalGeneration": _sections(2, 3, 3),
    "Glm4vForConditionalGeneration": _sections(2, 3, 3),
    "Glm4vMoeForConditionalGeneration": _sections(2, 1, 1),
    "GlmOcrForConditionalGeneration": _sections(2, 3, 3),
    "Inkling2ForConditionalGeneration": {"vision_config": {"text_hidden_size": 64}},
    "JambaForCausalLM": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "Mamba2ForCausalLM": {"num_heads": 8, "head_dim": 16},
    "Molmo2ForConditionalGeneration": {"adapter_config": {"vision_feature_layer": [1, 0]}},
    "MuseSparkForConditionalGeneration": {
        **{kind: {"out_hidden_size": 64} for kind in ("vision_config", "audio_config")}
    },
    "Ovis2ForConditionalGeneration": {"visual_indicator_token_ids": [190, 191, 192, 193, 194]},
    "Step3p7ForConditionalGeneration": {"text_config": {**_IDS, "sliding_window": 16}},
    "GPTJForCausalLM": {"rotary_dim": 8},
    "GPTNeoForCausalLM": {"attention_types": [[["global", "local"], 1]], "window_size": 16},
    "Granite4VisionForConditionalGeneration": {
        "deepstack_layer_map": [[-1, 0]],
        "downsample_rate": "1/2",
    },
    "GraniteDoclingForConditionalGeneration": {"vision_config": {"out_hidden_size": 64}},
    "HrmTextForCausalLM": {
        "num_layers_per_stack": 1,
        "num_hidden_layers": 8,
        "head_dim": 16,
    },
    "HunYuanDenseV1ForCausalLM": _HEADS,
    "HunYuanVLForConditionalGeneration": {
        "text_config": {
            **_HEADS,
            "rope_parameters": {
                **{"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]}
            },
        }
    },
    "HunYuanMoEV1ForCausalLM": {**_HEADS, "num_experts": 6, "moe_topk": 2},
    "Lfm2ForCausalLM": _CONVOLVED,
    "Lfm2MoeForCausalLM": _CONVOLVED,
    "Lfm2VlForConditionalGeneration": {"text_config": _CONVOLVED},
    "Lfm3ForCausalLM": _LFM3,
    "Lfm3VlForConditionalGeneration": {"text_config": _LFM3},
    "Kimi_K25ForConditionalGeneration": {"text_config": _LATENT},
    "LongcatFlashForCausalLM": {
        **_LATENT,
        **{name: value for name, value in TINY.items() if "num_" not in name},
        "num_layers": 2,
        "num_attention_heads": 4,
        "n_routed_experts": 6,
        "moe_topk": 2,
        "q_lora_rank": 24,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 12,
        "qk_rope_head_dim": 8,
        "qk_head_dim": 20,
        "v_head_dim": 20,
        "ffn_hidden_size": 96,
        "expert_ffn_hidden_size": 32,
        "zero_expert_num": 2,
    },
    "MiniMaxM3SparseForConditionalGeneration": {"text_config": _SPARSE},
    "MiniMaxM3VLForCausalLM": _SPARSE,
    "MinistralForCausalLM": {"head_dim": 16},
    "Mistral4ForCausalLM": {"head_dim": 20, "rope_parameters": {"partial_rotary_factor": 0.4}},
    "MllamaForCausalLM": _IDS,
    "MllamaForConditionalGeneration": {"text_config": _IDS},
    "ModernBertDecoderForCausalLM": _IDS,
    "NemotronForCausalLM": {"num_key_value_heads": 2, "head_dim": 16},
    "PLBartForCausalLM": _ENCODER_HEADS,
    "PaddleOCRVLForConditionalGeneration": _sections(4, 4, 4),
    "Qwen2VLForConditionalGeneration": _sections(2, 3, 3),
    "Qwen2_5OmniThinkerForConditionalGeneration": _sections(2, 3, 3),
    "Qwen2_5_VLForConditionalGeneration": _sections(2, 3, 3),
    "Qwen4ExpForCausalLM": _QWEN4_EXP,
    "Qwen4ExpForConditionalGeneration": {"text_config": _QWEN4_EXP},
    "RecurrentGemmaForCausalLM": {"num_hidden_layers": 3, "attention_window_size": WINDOW},
    "RoCBertForCausalLM": _DECODER,
    "RobertaForCausalLM": _DECODER,
    "RobertaPreLayerNormForCausalLM": _DECODER,
    "WhisperForCausalLM": _ENCODER_HEADS,
    "XLMRobertaForCausalLM": _DECODER,
    "XLMRobertaXLForCausalLM": _DECODER,
    "XmodForCausalLM": {**_DECODER, "default_language": "en_XX"},
    "YoutuForCausalLM": _LATENT,
    "Zamba2ForCausalLM": {
        **{"layers_block_type": ["linear_attention", *["hybrid"] * 3], "num_hidden_layers": 4},
        **{"hybrid_layer_ids": [1, 2, 3], "num_mem_blocks": 2, "use_mem_rope": True},
        **{"adapter_rank": 8, "use_shared_attention_adapter": True, "mamba_d_state": 16},
        **{"hidden_size": 32, "attention_hidden_size": 64, "attention_head_dim": 16},
        **{"num_key_value_heads": 4, "n_mamba_heads": 4, "mamba_headdim": 16},
    },
}
"""By architecture: what the default configuration lacks, or has in sizes of its own."""
