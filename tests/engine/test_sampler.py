"""The sampler alone: transforms against a row-by-row reference, draws against probabilities."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
import torch

from axion.engine import sampler
from axion.engine.sampler import NOTHING_ALLOWED, Sampler, uniform
from axion.engine.sequence import Sequence
from axion.engine.structured import TokenMask
from axion.types import SamplingParams

VOCAB = 64
CPU = torch.device("cpu")


def make(params: SamplingParams, *, seed: int = 0, prompt=(1,), output=(), name="s") -> Sequence:
    sequence = Sequence(name, list(prompt), params, seed=seed, eos_token_ids=(2,))
    sequence.token_ids += output
    return sequence


def sample(logits: torch.Tensor, *sequences: Sequence):
    return Sampler(CPU, logits.shape[-1])(logits, list(sequences)).read()


def draw_many(logits: torch.Tensor, params: SamplingParams, n: int = 4000) -> torch.Tensor:
    """Frequency of each token over n independent streams."""
    sequences = [make(params, seed=seed) for seed in range(n)]
    tokens = [t.token_id for t in sample(logits.expand(n, -1), *sequences)]
    return torch.bincount(torch.tensor(tokens), minlength=logits.shape[-1]) / n


def reference_probs(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """One row, written for reading: temperature, top_k, top_p, min_p."""
    probs = (logits / params.temperature).softmax(-1)
    order = probs.argsort(descending=True).tolist()
    if params.top_k:
        order = order[: params.top_k]
        probs = probs / probs[order].sum()
    kept, mass = [], 0.0
    for token in order:
        if mass >= params.top_p and kept:
            break
        kept.append(token)
        mass += float(probs[token])
    best = float(probs.max())
    kept = [token for token in kept if probs[token] >= params.min_p * best]
    result = torch.zeros_like(probs)
    result[kept] = probs[kept]
    return result / result.sum()


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(VOCAB, generator=torch.Generator().manual_seed(0)) * 2


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.5),
        SamplingParams(top_k=5),
        SamplingParams(top_p=0.7),
        SamplingParams(min_p=0.2),
        SamplingParams(temperature=1.5, top_k=20, top_p=0.8, min_p=0.1),
        SamplingParams(top_p=0.0),
    ],
    ids=str,
)
def test_draws_follow_the_distribution(logits: torch.Tensor, params: SamplingParams):
    frequency = draw_many(logits, params)
    expected = reference_probs(logits, params)
    assert (frequency[expected == 0] == 0).all(), "a token that is ruled out is never drawn"
    # Four standard errors of a frequency at p = 0.5 and n = 4000.
    assert (frequency - expected).abs().max() < 4 * math.sqrt(0.25 / 4000)


def test_the_seed_decides_whatever_the_batch(logits: torch.Tensor):
    others = [
        make(SamplingParams(temperature=0), name="greedy"),
        make(SamplingParams(top_k=3), seed=9, name="top_k"),
        make(SamplingParams(top_p=0.5, logprobs=2), seed=8, name="top_p"),
        make(SamplingParams(frequency_penalty=1.0), seed=7, name="penalty"),
    ]
    for seed in range(50):
        alone = sample(logits[None], make(SamplingParams(), seed=seed))[0].token_id
        mine = make(SamplingParams(), seed=seed, name="mine")
        batch = [*others[:2], mine, *others[2:]]
        assert sample(logits.expand(5, -1), *batch)[2].token_id == alone


def test_every_position_has_its_own_draw():
    flat = torch.zeros(1, VOCAB)
    tokens = {
        sample(flat, make(SamplingParams(), seed=3, output=[0] * n))[0].token_id for n in range(40)
    }
    assert len(tokens) > 20


def test_uniform_is_uniform():
    numbers = torch.tensor([uniform(seed, n) for seed in range(200) for n in range(50)])
    counts = torch.histc(numbers, bins=20, min=0, max=1)
    chi2 = ((counts - 500) ** 2 / 500).sum()
    assert chi2 < 43.8  # 99.9 % of a chi-square with 19 degrees of freedom


def test_greedy_takes_the_best(logits: torch.Tensor):
    for temperature in (0.0, 1e-9):
        [token] = sample(logits[None], make(SamplingParams(temperature=temperature)))
        assert token.token_id == int(logits.argmax())


def test_logit_bias_forces_and_bans(logits: torch.Tensor):
    best = int(logits.argmax())
    forced = make(SamplingParams(temperature=0, logit_bias={5: 100}))
    banned = make(SamplingParams(temperature=0, logit_bias={best: -100.0}))
    first, second = sample(logits.expand(2, -1), forced, banned)
    assert first.token_id == 5
    assert second.token_id == int(logits.argsort(descending=True)[1])


def test_the_first_of_the_likeliest_is_taken_whatever_else_is_asked():
    logits = torch.randint(-9, 3, (4, VOCAB), generator=torch.Generator().manual_seed(1)).bfloat16()
    logits[:, 2] = 9.0  # ends a sequence
    logits[1, 40] = 9.0
    logits[2, 5] = torch.nan
    greedy = SamplingParams(temperature=0)
    asked = [greedy, SamplingParams(temperature=0, logprobs=1), SamplingParams(temperature=1)]
    for other in asked:
        sequences = [make(params) for params in (greedy, greedy, greedy, other)]
        tokens = sample(logits, *sequences)
        assert [token.token_id for token in tokens[:2]] == [2, 2]
        assert [token.error is not None for token in tokens] == [False, False, True, False]
    [token] = sample(logits[:1], make(SamplingParams(temperature=0, min_tokens=1)))
    logits[0, 2] = -torch.inf
    assert token.token_id == logits[0].argmax()


def test_penalties_against_their_formulas():
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(1))
    params = SamplingParams(
        temperature=0, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.25
    )
    sequence = make(params, prompt=[3, 3, 4], output=[5, 5, 6])
    expected = logits[0].clone()
    for token in (3, 4, 5, 6):  # repetition: prompt and output
        value = expected[token]
        expected[token] = value / 1.3 if value > 0 else value * 1.3
    for token, count in ((5, 2), (6, 1)):  # presence and frequency: output alone
        expected[token] -= 0.5 + 0.25 * count
    sampler = Sampler(CPU, VOCAB)
    transformed = sampler._transform(logits, sampler._prepare([sequence]), [sequence], [[]])
    torch.testing.assert_close(transformed[0], expected)


def test_min_tokens_rules_out_every_way_to_stop(logits: torch.Tensor):
    logits[2], logits[9] = 50.0, 49.0
    params = SamplingParams(temperature=0, min_tokens=2, stop_token_ids=(9,))
    [early] = sample(logits[None], make(params, output=[4]))
    [late] = sample(logits[None], make(params, output=[4, 4]))
    assert early.token_id not in (2, 9)
    assert late.token_id == 2


def test_nothing_is_taken_but_what_is_allowed(logits: torch.Tensor):
    logits[2], logits[3] = 50.0, 49.0
    greedy = make(SamplingParams(temperature=0, allowed_token_ids=(7, 3, 9)))
    free = make(SamplingParams(temperature=0))
    hot = [make(SamplingParams(allowed_token_ids=(7, 9), logit_bias={2: 100}), seed=s)
           for s in range(50)]  # fmt: skip
    first, second, *others = sample(logits.expand(52, -1), greedy, free, *hot)
    assert (first.token_id, second.token_id) == (3, 2)
    assert {token.token_id for token in others} == {7, 9}


@pytest.mark.parametrize(
    ("output", "draft", "word", "is_forbidden"),
    [
        ((), (), (5,), True),
        ((4,), (), (4, 5), True),
        ((), (), (1, 5), False),  # begins in the prompt
        ((4, 3), (), (4, 5), False),
        ((3, 4), (), (3, 4, 5), True),
        ((4,), (), (3, 4, 5), False),
        ((3,), (4,), (3, 4, 5), True),
        ((8, 3, 4), (6,), (3, 4, 5), False),
        ((3,), (4,), (3, 5), False),
    ],
)
def test_the_last_token_of_a_bad_word_does_not_follow_the_others(
    logits: torch.Tensor, output: tuple, draft: tuple, word: tuple, is_forbidden: bool
):
    logits[5] = 50.0
    sequence = make(
        SamplingParams(temperature=0, bad_words_token_ids=((9, 9), word)), output=output
    )
    plain = make(SamplingParams(temperature=0))
    rows = Sampler(CPU, VOCAB)(logits.expand(2, -1), [plain, sequence], None, [[], [*draft]])
    free, token = rows.read()
    assert (free.token_id, token.token_id != 5) == (5, is_forbidden)


def test_a_row_that_has_no_token_left_says_so(logits: torch.Tensor):
    stuck = SamplingParams(allowed_token_ids=(2, 9), bad_words_token_ids=((9,),), min_tokens=1)
    for temperature in (0.0, 1.0):
        params = [msgspec.structs.replace(stuck, temperature=temperature), SamplingParams()]
        first, second = sample(logits.expand(2, -1), *map(make, params))
        assert first.error == NOTHING_ALLOWED
        assert second.error is None
    bits = np.full((1, VOCAB // 8), 255, np.uint8)
    bits[0, 0] = 0b11111011  # a grammar without token 2
    params = SamplingParams(allowed_token_ids=(2,))
    [token] = Sampler(CPU, VOCAB)(logits[None], [make(params)], TokenMask([0], bits)).read()
    assert token.error == NOTHING_ALLOWED


def test_logprobs_are_the_models_own(logits: torch.Tensor):
    params = SamplingParams(temperature=0, logprobs=3, logit_bias={7: 100.0})
    [token] = sample(logits[None], make(params))
    expected = logits.log_softmax(-1)
    assert token.token_id == 7
    assert token.logprobs.logprob == pytest.approx(float(expected[7]), abs=1e-5)
    top = expected.topk(3)
    assert [t for t, _ in token.logprobs.top] == top.indices.tolist()
    assert [p for _, p in token.logprobs.top] == pytest.approx(top.values.tolist(), abs=1e-5)


def test_each_row_gets_the_logprobs_it_asked_for(logits: torch.Tensor):
    wanted = (None, 0, 1, 20)
    tokens = sample(
        logits.expand(4, -1), *(make(SamplingParams(temperature=0, logprobs=n)) for n in wanted)
    )
    assert [t.logprobs and len(t.logprobs.top) for t in tokens] == [None, 0, 1, 20]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_unusable_logits_fail_their_own_row(logits: torch.Tensor, value: float):
    rows = logits.repeat(3, 1)
    rows[1, 10] = value
    params = SamplingParams(seed=1, top_p=0.9)
    first, second, third = sample(rows, *(make(params, seed=4) for _ in range(3)))
    assert second.error is not None
    assert first.error is None
    assert first.token_id == third.token_id


def test_a_change_of_the_batch_is_noticed(logits: torch.Tensor):
    sampler = Sampler(CPU, VOCAB)
    forced = make(SamplingParams(temperature=0, logit_bias={5: 100.0}), name="same")
    free = make(SamplingParams(temperature=0), name="same")
    assert sampler(logits[None], [forced]).read()[0].token_id == 5
    assert sampler(logits[None], [free]).read()[0].token_id == int(logits.argmax())


def test_nothing_is_read_back_while_a_step_is_sampled(monkeypatch: pytest.MonkeyPatch):
    # Tensors on the meta device have no values: whoever asks for one fails.
    read_back = []
    monkeypatch.setattr("axion.engine.sampler.Readback", lambda *tensors: read_back.append(tensors))
    params = [
        SamplingParams(temperature=0, logprobs=3),
        SamplingParams(top_k=5, top_p=0.9, min_p=0.1, logprobs=0),
        SamplingParams(repetition_penalty=1.2, presence_penalty=0.5, frequency_penalty=0.5),
        SamplingParams(logit_bias={3: 5.0}, min_tokens=4, stop_token_ids=(5,)),
        SamplingParams(allowed_token_ids=(3, 4), bad_words_token_ids=((4,), (5, 3))),
    ]
    device = torch.device("meta")
    logits = torch.empty(len(params), VOCAB, device=device, dtype=torch.bfloat16)
    bits = np.full((2, VOCAB // 8), 255, np.uint8)
    sequences = [make(p, output=(5, 5)) for p in params]
    Sampler(device, VOCAB)(logits, sequences, TokenMask([0, 2], bits))
    assert [len(tensors) for tensors in read_back] == [3, 1], "log probabilities, and tokens"


def test_top_p_is_the_same_whether_a_few_tokens_reach_it_or_many() -> None:
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([[0.0], [0.1], [1.0], [3.0], [10.0]])  # 0: all tokens tie
    probs = (torch.randn(5, 2000, generator=generator) * spread).softmax(-1)
    for top_p in (0.0, 0.3, 0.9, 0.999):
        ordered = probs.sort(-1, descending=True).values
        expected = sampler._floor_of(ordered, torch.full((5, 1), top_p))
        for rows in (slice(None), slice(0, 1), slice(4, 5)):
            floor = sampler._top_p_floor(probs[rows], torch.full((5, 1), top_p)[rows])
            assert torch.equal(floor, expected[rows])
