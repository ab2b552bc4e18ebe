"""BERT (arXiv:1810.04805): the standard encoder itself; bge, e5, gte and MiniLM are BERTs."""

from __future__ import annotations

from axion.models.encoder import Encoder


class BertModel(Encoder):
    architectures = ("BertModel", "BertForMaskedLM")
