"""The forms for many tokens give what one token after another does; states are carried right."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from axion.layers.context import ForwardContext, StateRun
from axion.layers.conv import CausalConv1d
from axion.layers.gated_delta import gated_delta_rule, normalized
from axion.layers.linear_attention import fading_attention
from axion.layers.selective_scan import selective_scan
from axion.layers.state import Cell, scan

BATCH, HEADS, K, V = 2, 4, 6, 5


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def gated_delta(length: int) -> tuple[Cell, Tensor, list[Tensor]]:
    q, k = (normalized(random(BATCH, length, HEADS, K) + i) for i in range(2))
    decay, beta = -random(BATCH, length, HEADS).abs(), random(BATCH, length, HEADS).sigmoid()
    inputs = [q, k, random(BATCH, length, HEADS, V), decay, beta]
    return gated_delta_rule, random(BATCH, HEADS, K, V), inputs


def delta_by_channel(length: int) -> tuple[Cell, Tensor, list[Tensor]]:
    cell, state, (q, k, v, _, beta) = gated_delta(length)
    decay = -4 * random(BATCH, length, HEADS, K).abs()
    return cell, state, [q, k, v, decay, beta]


def fading(length: int) -> tuple[Cell, Tensor, list[Tensor]]:
    q, k = random(BATCH, length, 2, K), random(BATCH, length, 2, K) + 1
    decay = -random(BATCH, length, HEADS).abs()
    inputs = [q, k, random(BATCH, length, HEADS, V), decay]
    return fading_attention, random(BATCH, HEADS, K, V), inputs


def selective(length: int) -> tuple[Cell, Tensor, list[Tensor]]:
    x, steps = random(BATCH, length, K), random(BATCH, length, K).abs()
    b, c = random(BATCH, length, V), random(BATCH, length, V) + 1
    return partial(selective_scan, a=-random(K, V).abs()), random(BATCH, K, V), [x, steps, b, c]


CELLS = {
    "gated delta": gated_delta,
    "delta by channel": delta_by_channel,
    "fading": fading,
    "selective": selective,
}


@pytest.mark.parametrize("length", [2, 31, 64, 65, 150])
@pytest.mark.parametrize("name", CELLS)
def test_many_tokens_at_once_are_one_after_another(name: str, length: int) -> None:
    cell, state, inputs = CELLS[name](length)
    out, last = cell(state, *inputs)
    rows = []
    for i in range(length):
        row, state = cell(state, *(x[:, i : i + 1] for x in inputs))
        rows.append(row)
    torch.testing.assert_close(out, torch.cat(rows, dim=1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(last, state, atol=1e-4, rtol=1e-4)


def context(runs: list[StateRun]) -> ForwardContext:
    num_rows = sum(run.num_rows for run in runs)
    nothing = torch.zeros(0)
    return ForwardContext(
        positions=torch.zeros(num_rows, dtype=torch.int64),
        rope_lengths=nothing,
        slot_mapping=nothing,
        block_tables=nothing,
        context_lens=nothing,
        query_lens=[],
        context_lens_list=[],
        kv_caches=[],
        block_size=4,
        state_runs=runs,
    )


def test_a_convolution_goes_on_from_where_each_sequence_was() -> None:
    conv = CausalConv1d(3, 4, torch.tanh, bias=True)
    for parameter in conv.parameters():
        parameter.copy_(random(*parameter.shape))
    texts = [random(9, 3), random(7, 3) + 1]
    whole = torch.nn.functional.conv1d(
        torch.nn.functional.pad(torch.stack([texts[0]]).mT, (3, 0)),
        conv.weight,
        conv.bias,
        groups=3,
    )
    state = torch.full((6, 3, 3), torch.nan)
    state[0] = 0
    # The first goes on twice in one step, and its state is kept in between.
    steps = [
        [(0, slice(0, 4)), (1, slice(0, 4))],
        [(0, slice(4, 9)), (1, slice(4, 5))],
    ]
    outs: list[list[Tensor]] = [[], []]
    for step, parts in enumerate(steps):
        runs, first = [], 0
        for text, rows in parts:
            source = text + 1 if step else 0
            length = rows.stop - rows.start
            if text == 0 and step:
                runs.append(StateRun(first, 2, source, 1, 5, 0))
                runs.append(StateRun(first + 2, length - 2, 1, 1, None, 1))
            else:
                runs.append(StateRun(first, length, source, text + 1, None, 0))
            first += length
        x = torch.cat([texts[text][rows] for text, rows in parts])
        out = conv(x, state, context(runs))
        for (text, _), part in zip(
            parts, out.split([rows.stop - rows.start for _, rows in parts]), strict=True
        ):
            outs[text].append(part)
    torch.testing.assert_close(torch.cat(outs[0]), whole[0].mT.tanh())
    assert not torch.cat(outs[1]).isnan().any()
    torch.testing.assert_close(state[5], texts[0][3:6].mT)
    torch.testing.assert_close(state[1], texts[0][6:9].mT)
    assert not state[0].any()


def test_sequences_that_decode_are_one_call() -> None:
    calls = []

    def cell(state: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(x.shape)
        return x + state[:, None], state + x.sum(1)

    state = torch.arange(4.0)[:, None]
    runs = [
        StateRun(0, 1, 2, 2, None, 0),
        StateRun(1, 2, 0, 1, None, 0),
        StateRun(3, 1, 3, 3, None, 0),
    ]
    out = scan(cell, state, (torch.ones(4, 1),), context(runs))
    assert calls == [(2, 1, 1), (1, 2, 1)]
    assert out.flatten().tolist() == [3, 1, 1, 4]
    assert state.flatten().tolist() == [0, 2, 3, 4]
