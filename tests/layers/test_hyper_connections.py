"""Residual streams are read, mixed and written as transformers does it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from transformers.models.deepseek_v4.modeling_deepseek_v4 import (
    DeepseekV4HyperConnection,
    DeepseekV4HyperHead,
)
from transformers.models.glm5_next.modeling_glm5_next import Glm5NextTextHyperConnection

from axion.layers.hyper_connections import HyperConnection, StreamReader

SIZES = SimpleNamespace(
    hc_mult=3, hidden_size=16, hc_eps=1e-3, rms_norm_eps=1e-2, hc_sinkhorn_iters=5
)


def _filled(theirs: nn.Module, ours: nn.Module, prefix: str = "") -> None:
    """Give both the same random weights."""
    values = {name: torch.randn_like(buffer) for name, buffer in ours.named_buffers()}
    ours.load_state_dict(values)
    theirs.load_state_dict({prefix + name: value for name, value in values.items()})


def _streams() -> Tensor:
    return torch.randn(5, SIZES.hc_mult, SIZES.hidden_size)


@pytest.fixture
def connection() -> HyperConnection:
    torch.manual_seed(1)
    return HyperConnection(
        SIZES.hc_mult,
        SIZES.hidden_size,
        norm_eps=SIZES.rms_norm_eps,
        eps=SIZES.hc_eps,
        num_iterations=SIZES.hc_sinkhorn_iters,
    )


@pytest.mark.parametrize("reference", [DeepseekV4HyperConnection, Glm5NextTextHyperConnection])
def test_streams_are_read_and_written_as_in_transformers(
    reference: type[nn.Module], connection: HyperConnection
) -> None:
    theirs = reference(SIZES)
    _filled(theirs, connection)
    streams, out = _streams(), torch.randn(5, SIZES.hidden_size)

    post, comb, collapsed = theirs(streams[None])
    expected = post[0, ..., None] * out[:, None] + comb[0].transpose(1, 2) @ streams
    read, gates = connection(streams)

    torch.testing.assert_close(read, collapsed[0])
    torch.testing.assert_close(connection.write(streams, out, gates), expected)


def test_the_last_reader_is_that_of_transformers() -> None:
    torch.manual_seed(1)
    ours = StreamReader(
        SIZES.hc_mult, SIZES.hidden_size, norm_eps=SIZES.rms_norm_eps, eps=SIZES.hc_eps
    )
    theirs = DeepseekV4HyperHead(SIZES)
    _filled(theirs, ours, "hc_")

    streams = _streams()

    read, gates = ours(streams)

    torch.testing.assert_close(read, theirs(streams[None])[0])
    assert gates == []


def test_streams_keep_their_number_format(connection: HyperConnection) -> None:
    _filled(Glm5NextTextHyperConnection(SIZES), connection)
    streams = _streams().bfloat16()

    read, gates = connection(streams)

    assert read.dtype == connection.write(streams, read, gates).dtype == torch.bfloat16
    assert all(gate.dtype == torch.float32 for gate in gates)
