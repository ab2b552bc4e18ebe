"""Models that also see or hear: what reads and writes text in them is a text model, and that
one's class computes it. Which it is, `text_config` says; images and sounds are refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from axion.errors import ModelLoadError
from axion.models.base import CausalLM
from axion.models.config import DecoderConfig
from axion.models.fallback_config import read_config
from axion.models.transformers_fallback import fallback_class

# Heads of the size that hidden_size gives, all of which is rotated.
_WHOLE_HEADS = {"head_dim": None, "partial_rotary_factor": 1.0}
# Text models that are another's in all but their name, and what that one must be told.
SAME: dict[str, tuple[str, dict[str, Any]]] = {
    "deepseek_ocr2_text": ("DeepseekForCausalLM", {}),
    "mistral4": ("Mistral4ForCausalLM", {}),
    "qwen2_vl_text": ("Qwen2ForCausalLM", {}),
    "qwen2_5_vl_text": ("Qwen2ForCausalLM", {}),
    "qwen2_5_omni_text": ("Qwen2ForCausalLM", {}),
    "qwen3_vl_text": ("Qwen3ForCausalLM", {}),
    "qwen3_vl_moe_text": ("Qwen3MoeForCausalLM", {"norm_topk_prob": True}),
    "qwen3_omni_moe_text": ("Qwen3MoeForCausalLM", {}),
    "granite4_vision_text": ("GraniteForCausalLM", {}),
    "granite_docling_text": ("GraniteForCausalLM", {}),
    "paddleocr_vl_text": ("LlamaForCausalLM", {}),
    "hunyuan_vl_text": ("HunYuanDenseV1ForCausalLM", {}),
    "glm4v_text": ("Glm4ForCausalLM", _WHOLE_HEADS),
    "glm_ocr_text": ("Glm4ForCausalLM", {**_WHOLE_HEADS, "attention_bias": False}),
    "glm4v_moe_text": ("Glm4MoeForCausalLM", {}),
}

# Where checkpoints have the head, and the layers.
_HEAD = r"(model\.|thinker\.)?((language_model|text_model|llm)\.)?lm_head\."
_LAYERS = (
    r"(thinker\.)?(model\.)?"
    r"((language_model|text_model|llm)\.(model\.|backbone\.)*|(?=(embed_tokens|layers|norm)\.))"
)


class SeeingForConditionalGeneration(CausalLM):
    """A name for several classes: see `text_part`."""

    architectures = (
        "DeepseekOcr2ForConditionalGeneration",
        "DeepseekVLForConditionalGeneration",
        "DeepseekVLHybridForConditionalGeneration",
        "Dots3NoteForConditionalGeneration",
        "Exaone4_5_ForConditionalGeneration",
        "FastVlmForConditionalGeneration",
        "FuyuForCausalLM",
        "Gemma3ForConditionalGeneration",
        "Gemma3nForConditionalGeneration",
        "Gemma4ForConditionalGeneration",
        "Glm46VForConditionalGeneration",
        "Glm4vForConditionalGeneration",
        "Glm4vMoeForConditionalGeneration",
        "GlmOcrForConditionalGeneration",
        "GotOcr2ForConditionalGeneration",
        "Granite4VisionForConditionalGeneration",
        "GraniteDoclingForConditionalGeneration",
        "HunYuanVLForConditionalGeneration",
        "HyperCLOVAXVisionV2ForConditionalGeneration",
        "Idefics2ForConditionalGeneration",
        "Idefics3ForConditionalGeneration",
        "InternVLForConditionalGeneration",
        "JanusForConditionalGeneration",
        "Kimi_K25ForConditionalGeneration",
        "Lfm2VlForConditionalGeneration",
        "Lfm3VlForConditionalGeneration",
        "LightOnOcrForConditionalGeneration",
        "Llama4ForConditionalGeneration",
        "LlavaForConditionalGeneration",
        "LlavaNextForConditionalGeneration",
        "LlavaNextVideoForConditionalGeneration",
        "LlavaOnevisionForConditionalGeneration",
        "MiniCPMOcrForConditionalGeneration",
        "MiniCPMV4_6ForConditionalGeneration",
        "MiniCPMV4_7ForConditionalGeneration",
        "Mistral3ForConditionalGeneration",
        "NemotronH_Omni_Reasoning_V3",
        "Ovis2ForConditionalGeneration",
        "PaddleOCRVLForConditionalGeneration",
        "PerceptionLMForConditionalGeneration",
        "QianfanOCRForConditionalGeneration",
        "Qwen2VLForConditionalGeneration",
        "Qwen2_5OmniThinkerForConditionalGeneration",
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen3OmniMoeThinkerForConditionalGeneration",
        "Qwen3VLForConditionalGeneration",
        "Qwen3VLMoeForConditionalGeneration",
        "Qwen3_5ForConditionalGeneration",
        "Qwen3_5MoeForConditionalGeneration",
        "Qwen4ExpForConditionalGeneration",
        "SmolVLMForConditionalGeneration",
        "VideoLlama3ForConditionalGeneration",
        "VideoLlavaForConditionalGeneration",
        "VipLlavaForConditionalGeneration",
    )
    renamed_tensors = (
        (rf"^(?!{_HEAD}|{_LAYERS})", "beside."),
        (rf"^{_HEAD}", "lm_head."),
        (rf"^{_LAYERS}", "model."),
        (r"^model\.(blocks|encoder\.layers)\.", "model.layers."),  # as transformers 5 saves some
    )
    ignored_tensors = (r"beside\..*",)


def text_part(
    architecture: str, config: dict[str, Any], classes: Mapping[str, type[CausalLM]]
) -> type[CausalLM]:
    """The class for what reads and writes text in a model that also sees or hears.

    What config.json leaves out of a model inside another, and what older versions of it say, is
    read by transformers' class for it. A text model that has no class of Axion's own is served by
    transformers' class for the whole.

    Args:
        architecture: one of `SeeingForConditionalGeneration.architectures`.
        config: config.json.
        classes: of the text models, by their architectures.

    Raises:
        ModelLoadError: config.json is not what transformers takes.
    """
    text_type = _text_fields(config)["model_type"]
    name, _ = _served(text_type)
    if name not in classes:
        cls = fallback_class(architecture)
        assert cls is not None
        return cls
    base = classes[name]
    own = {"from_dict": classmethod(lambda _, config: _read(base, config))}
    return type(
        architecture,
        (base,),
        {
            "config_cls": type(base.config_cls.__name__, (base.config_cls,), own),
            **{
                name: (*getattr(SeeingForConditionalGeneration, name), *getattr(base, name))
                for name in ("renamed_tensors", "ignored_tensors")
            },
        },
    )


def _read(cls: type[CausalLM], config: dict[str, Any]) -> DecoderConfig:
    text = _text_fields(config)
    _, more = _served(text["model_type"])
    return cls.config_cls.from_dict(more | text)


def _served(model_type: str) -> tuple[str, dict[str, Any]]:
    """The architecture of the class that computes a text model, and fields that it needs."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return SAME.get(model_type, (MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type, ""), {}))


def _text_fields(config: dict[str, Any]) -> dict[str, Any]:
    """config.json of the text model alone, complete."""
    from transformers import CONFIG_MAPPING

    model_type = str(config.get("model_type"))[:80]
    if model_type not in CONFIG_MAPPING:
        raise ModelLoadError(f"config.json: model_type {model_type!r} is none that is known.")
    whole = read_config(CONFIG_MAPPING[model_type], config)
    fields = whole.get_text_config().to_dict()
    if (is_tied := getattr(whole, "tie_word_embeddings", None)) is not None:
        fields["tie_word_embeddings"] = is_tied
    return fields
