"""Llama (arXiv:2302.13971, arXiv:2407.21783): the standard decoder itself."""

from __future__ import annotations

from axion.models.base import CausalLM


class LlamaForCausalLM(CausalLM):
    architectures = ("LlamaForCausalLM",)
