"""How many states there is room for, and where those of a step go."""

from __future__ import annotations

import pytest
import torch

from axion.engine.sequence import SequenceState
from axion.engine.state_cache import allocate, bytes_per_slot, num_slots_that_fit, runs
from axion.errors import ModelLoadError
from axion.layers.context import StateRun, StateTensor

SPECS = [{"conv": StateTensor((8, 3)), "ssm": StateTensor((2, 4), torch.float32)}, {}]


def test_a_slot_takes_what_all_layers_keep() -> None:
    assert bytes_per_slot(SPECS, torch.bfloat16) == 8 * 3 * 2 + 2 * 4 * 4
    [state, nothing] = allocate(SPECS, 5, dtype=torch.bfloat16, device=torch.device("cpu"))
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()} == {
        "conv": ((5, 8, 3), torch.bfloat16),
        "ssm": ((5, 2, 4), torch.float32),
    }
    assert not any(tensor.any() for tensor in state.values())
    assert nothing == {}


@pytest.mark.parametrize(
    ("num_bytes", "expected"),
    [
        (10_000, 1 + 4 + 8),  # enough
        (1_000, 5),  # half of it
        (500, 2),  # what a sequence of full length leaves
    ],
)
def test_states_take_at_most_half_of_the_memory(num_bytes: int, expected: int) -> None:
    found = num_slots_that_fit(
        100, max_num_seqs=4, num_kept=8, num_kv_bytes=300, num_bytes=num_bytes
    )
    assert found == expected


def test_no_room_for_one_sequence_says_what_it_takes() -> None:
    with pytest.raises(
        ModelLoadError, match=r"need 3\.00 GiB, and 2\.00 GiB may be used.*KV_CACHE"
    ):
        num_slots_that_fit(
            2**30, max_num_seqs=4, num_kept=0, num_kv_bytes=2**30, num_bytes=2 * 2**30
        )


def test_a_step_is_cut_where_a_state_is_kept() -> None:
    state = SequenceState(slot=3, source=7, checkpoints={8: 4, 12: 5, 20: 6})
    assert list(runs(state, 10, 5, 12)) == [
        StateRun(10, 3, 7, 3, 4, 0),
        StateRun(13, 4, 3, 3, 5, 1),
    ]
    assert list(runs(state, 0, 12, 13)) == [StateRun(0, 1, 7, 3, None, 0)]
