"""RoBERTa (arXiv:1907.11692) and XLM-RoBERTa (arXiv:1911.02116): positions begin after the one of
padding."""

from __future__ import annotations

from dataclasses import dataclass

from axion.models.config import Index, Size
from axion.models.encoder import Encoder, EncoderConfig


@dataclass(kw_only=True)
class RobertaConfig(EncoderConfig):
    vocab_size: Size = 50265
    pad_token_id: Index = 1


class RobertaModel(Encoder):
    architectures = (
        *("RobertaModel", "RobertaForMaskedLM"),
        *("XLMRobertaModel", "XLMRobertaForMaskedLM"),
    )
    config_cls = RobertaConfig

    def first_position(self) -> int:
        return self.config.pad_token_id + 1
