"""Mamba (arXiv:2312.00752), Mamba-2 (arXiv:2405.21060) and Falcon Mamba (arXiv:2410.05355): nothing
but state space layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from axion.layers.context import ForwardContext
from axion.layers.rotary import Length
from axion.models.base import Decoder
from axion.models.config import Epsilon, Size
from axion.models.hybrid import HybridConfig, MixerForCausalLM, num_layers
from axion.models.mamba2_mixer import Mamba2Config as Mamba2MixerConfig
from axion.models.mamba2_mixer import Mamba2Mixer
from axion.models.mamba_mixer import MambaConfig as MambaMixerConfig
from axion.models.mamba_mixer import MambaMixer


@dataclass(kw_only=True)
class StateSpaceConfig(HybridConfig):
    """The fields that all three have.

    Attributes:
        residual_in_fp32: hidden states between the layers are float32 whatever the weights are.
        max_position_embeddings: they have no such limit.
    """

    renamed_fields = (
        ("layer_norm_epsilon", "rms_norm_eps"),
        ("state_size", "mamba_d_state"),
        ("conv_kernel", "mamba_d_conv"),
        ("expand", "mamba_expand"),
        ("use_conv_bias", "mamba_conv_bias"),
        ("use_bias", "mamba_proj_bias"),
        ("time_step_rank", "mamba_dt_rank"),
        ("num_heads", "mamba_n_heads"),
        ("head_dim", "mamba_d_head"),
        ("n_groups", "mamba_n_groups"),
        ("chunk_size", "mamba_chunk_size"),
    )

    intermediate_size: Size | None = None
    num_attention_heads: Size = 1
    rms_norm_eps: Epsilon = 1e-5
    max_position_embeddings: Length = 2**24
    residual_in_fp32: bool = True

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        derived, sources = super()._derive(config)
        derived["layer_types"] = ["linear_attention"] * num_layers(config)
        return derived, sources


@dataclass(kw_only=True)
class MambaConfig(StateSpaceConfig, MambaMixerConfig):
    """
    Attributes:
        intermediate_size: channels of a mixer, where `expand` does not say it.
    """

    tie_word_embeddings: bool = True

    @property
    def mamba_size(self) -> int:
        return self.intermediate_size or super().mamba_size


class StateSpaceDecoder(Decoder):
    def __init__(self, config: StateSpaceConfig, layers: list[nn.Module]) -> None:
        super().__init__(config, layers)
        self.residual_in_fp32 = config.residual_in_fp32

    def forward(self, input_ids: Tensor, context: ForwardContext) -> Tensor:
        embedded = self.embed(input_ids, context)
        hidden_states = embedded.float() if self.residual_in_fp32 else embedded
        for layer in self.layers:
            hidden_states = layer(hidden_states, context)
        return self.norm(hidden_states.to(embedded.dtype))


class MambaForCausalLM(MixerForCausalLM):
    architectures = ("MambaForCausalLM",)
    config_cls = MambaConfig
    decoder_cls = StateSpaceDecoder
    mixers = (("linear_attention", MambaMixer),)


@dataclass(kw_only=True)
class FalconMambaConfig(MambaConfig):
    mixer_rms_eps: Epsilon = 1e-6


class FalconMambaMixer(MambaMixer):
    """What a token chooses is normalised."""

    def __init__(self, config: FalconMambaConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.eps = config.mixer_rms_eps

    def normalize(self, dt: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self._norm(dt), self._norm(b), self._norm(c)

    def _norm(self, x: Tensor) -> Tensor:
        x32 = x.float()
        x32 = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)
        return x32.to(x.dtype)


class FalconMambaForCausalLM(MambaForCausalLM):
    architectures = ("FalconMambaForCausalLM",)
    config_cls = FalconMambaConfig
    mixers = (("linear_attention", FalconMambaMixer),)


@dataclass(kw_only=True)
class Mamba2Config(StateSpaceConfig, Mamba2MixerConfig):
    mamba_d_head: Size = 64
    mamba_n_groups: Size = 8
    mamba_d_state: Size = 128

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        derived, sources = super()._derive(config)
        return derived, sources | {"mamba_dt_rank"}


class Mamba2ForCausalLM(MixerForCausalLM):
    architectures = ("Mamba2ForCausalLM",)
    config_cls = Mamba2Config
    decoder_cls = StateSpaceDecoder
    mixers = (("linear_attention", Mamba2Mixer),)
