"""From logits to tokens, for all sequences of a step at once.

Every sequence has its own counter-based random stream: the draw for its n-th output token is a
function of (seed, n) alone, so the same seed gives the same tokens in whatever batch it runs.
A token is drawn by inverting the cumulative distribution in vocabulary order, which needs one
uniform number a token and makes the draw independent of how the candidates were found.

Nothing here waits for the device: what was sampled is on its way to the host when the call returns,
and `Samples.read` waits for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from axion.engine.sequence import Sequence
from axion.engine.step import SampledToken
from axion.engine.structured import TokenMask
from axion.layers import kernels
from axion.layers.transfer import Readback, to_device
from axion.types import SamplingParams, TokenLogprobs

# Below this, dividing by the temperature could overflow, and the result is greedy anyway.
_MIN_TEMPERATURE = 1e-5
UNUSABLE_LOGITS = "The model computed logits that are not numbers for this request."
NOTHING_ALLOWED = (
    "No token may follow: allowed_token_ids, bad_words, min_tokens and the format of the answer "
    "leave none."
)
# In place of a token id.
_UNUSABLE = -1
_NOTHING = -2
_ERRORS = {_UNUSABLE: UNUSABLE_LOGITS, _NOTHING: NOTHING_ALLOWED}
_MASK64 = 2**64 - 1
# Tokens among which those of top_p are looked for first.
_NUM_LIKELIEST = 256
_DRAWN_ROWS = 8


def uniform(seed: int, counter: int) -> float:
    """The `counter`-th number of the stream `seed`, in [0, 1): SplitMix64 of the pair.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    # 32 bits: float64 can scale any of them by the total mass without reaching it.
    return (_mix64(_mix64(seed & _MASK64) + counter) >> 32) / 2**32


def _mix64(z: int) -> int:
    z = (z + 0x9E3779B97F4A7C15) & _MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
    return z ^ (z >> 31)


@dataclass(slots=True)
class _Batch:
    """What stays the same for as long as the same sequences are sampled together."""

    temperature: Tensor  # [n, 1] float32; 1 where greedy
    is_greedy: Tensor  # [n] bool
    all_greedy: bool
    takes_largest: bool  # of the model's own logits, and nothing else is asked
    top_k_rows: Tensor | None  # [r] int64
    max_top_k: int
    top_k_index: Tensor  # [r, 1] int64: of the last value that is kept, best first
    top_p_rows: Tensor | None
    top_p: Tensor  # [r, 1]
    min_p_rows: Tensor | None
    min_p: Tensor  # [r, 1]
    bias: tuple[Tensor, Tensor, Tensor] | None  # rows, token ids, values
    penalised: list[int]
    allowed: tuple[Tensor, Tensor] | None  # rows [r], and what is forbidden there [r, vocab_size]
    forbids: bool  # whether a row's tokens may run out
    num_logprobs: dict[int, int]  # of the rows that want them
    logprob_rows: Tensor | None  # [r] int64


class LogprobTensors:
    """Log probabilities of one token and the `num_top` likeliest of each row, on their way.

    Args:
        logits: [n, vocab_size] float32.
        token_ids: [n] int64.
        ranked: also tell how many tokens are as likely as each of them, or likelier.
    """

    def __init__(
        self, logits: Tensor, token_ids: Tensor, num_top: int, *, ranked: bool = False
    ) -> None:
        logprobs = logits.log_softmax(-1)
        chosen = logprobs.gather(-1, token_ids.unsqueeze(-1))
        # topk of 0 is valid, and gives empty lists for those who want the chosen token alone.
        values, ids = logprobs.topk(min(num_top, logprobs.shape[-1]), dim=-1)
        ranks = [(logprobs >= chosen).sum(-1)] if ranked else []
        self._readback = Readback(chosen.squeeze(-1), ids, values, *ranks)

    def read(self) -> list[TokenLogprobs]:
        """One entry a row."""
        chosen, ids, values, *ranks = (tensor.tolist() for tensor in self._readback.wait())
        return [
            TokenLogprobs(logprob, list(zip(top_ids, top_values, strict=True)), *rank)
            for logprob, top_ids, top_values, *rank in zip(chosen, ids, values, *ranks, strict=True)
        ]


class Samples:
    """The tokens of a step, which the device may still be computing.

    Args:
        token_ids: [n] int64, each in the vocabulary.
        is_usable: [n] bool, whether the row's logits were numbers.
        has_choice: [n] bool, whether a token was left to take; None: always.
        logprobs: of the rows that want them.
        num_logprobs: of each of these rows, how many alternatives.

    Attributes:
        token_ids: on the device.
    """

    def __init__(
        self,
        token_ids: Tensor,
        is_usable: Tensor,
        has_choice: Tensor | None,
        logprobs: LogprobTensors | None,
        num_logprobs: dict[int, int],
    ) -> None:
        self.token_ids = token_ids
        told = token_ids if has_choice is None else token_ids.masked_fill(~has_choice, _NOTHING)
        self._readback = Readback(told.masked_fill(~is_usable, _UNUSABLE))
        self._logprobs = logprobs
        self._num_logprobs = num_logprobs

    def read(self) -> list[SampledToken]:
        """One entry a row; a row whose logits are not usable carries an error."""
        [chosen] = self._readback.wait()
        found = iter([] if self._logprobs is None else self._logprobs.read())
        tokens = []
        for row, token_id in enumerate(chosen.tolist()):
            logprobs = None
            if (num_top := self._num_logprobs.get(row)) is not None:
                entry = next(found)
                logprobs = TokenLogprobs(entry.logprob, entry.top[:num_top])
            if (error := _ERRORS.get(token_id)) is not None:
                tokens.append(SampledToken(0, error=error))
            else:
                tokens.append(SampledToken(token_id, logprobs))
        return tokens


class Sampler:
    """Samples one token for every row of logits.

    Args:
        device: where the logits are.
        vocab_size: columns of the logits.
    """

    def __init__(self, device: torch.device, vocab_size: int) -> None:
        self.device = device
        self.vocab_size = vocab_size
        bits = torch.arange(256).unsqueeze(-1) >> torch.arange(8) & 1
        self._is_unset = (bits == 0).to(device)  # [256, 8]: the bits of every byte
        self._sequences: list[Sequence] = []
        self._batch: _Batch | None = None

    @torch.inference_mode()
    def __call__(
        self,
        logits: Tensor,
        sequences: list[Sequence],
        mask: TokenMask | None = None,
        drafts: list[list[int]] | None = None,
    ) -> Samples:
        """Sample one token a row.

        Args:
            logits: [len(sequences), vocab_size], any float type; not modified.
            sequences: whose next token each row predicts.
            mask: the tokens that grammars allow.
            drafts: of each row, the tokens that it takes to follow its sequence's own.
        """
        batch = self._prepare(sequences)
        drafts = drafts or [[] for _ in sequences]
        if batch.takes_largest and mask is None and (kernel := kernels.of("argmax", logits)):
            return Samples(*kernel.argmax(logits), None, None, {})
        raw = logits.float()
        is_usable = torch.isfinite(raw.amax(-1))
        logits = self._transform(raw, batch, sequences, drafts)
        if mask is not None:
            logits = self._mask(logits, mask)
        has_choice = logits.amax(-1) > -torch.inf if batch.forbids else None
        token_ids = logits.argmax(-1)
        if not batch.all_greedy:
            drawn = self._draw(logits, batch, sequences, drafts)
            token_ids = torch.where(batch.is_greedy, token_ids, drawn)
        logprobs = None
        if (rows := batch.logprob_rows) is not None:
            num_top = max(batch.num_logprobs.values())
            logprobs = LogprobTensors(raw[rows], token_ids[rows], num_top)
        return Samples(token_ids, is_usable, has_choice, logprobs, batch.num_logprobs)

    def _prepare(self, sequences: list[Sequence]) -> _Batch:
        if self._batch is None or sequences != self._sequences:  # compares identities
            self._sequences = sequences
            self._batch = self._build(sequences)
        return self._batch

    def _build(self, sequences: list[Sequence]) -> _Batch:
        params = [sequence.params for sequence in sequences]

        def rows(indices: list[int]) -> Tensor | None:
            return self._tensor(indices) if indices else None

        is_greedy = [p.temperature < _MIN_TEMPERATURE for p in params]
        sampled = [row for row, greedy in enumerate(is_greedy) if not greedy]
        top_k = [row for row in sampled if 0 < params[row].top_k < self.vocab_size]
        top_p = [row for row in sampled if params[row].top_p < 1]
        min_p = [row for row in sampled if params[row].min_p > 0]
        bias = [
            (row, token_id, value)
            for row, p in enumerate(params)
            for token_id, value in p.logit_bias.items()
        ]
        wanted = {row: p.logprobs for row, p in enumerate(params) if p.logprobs is not None}
        return _Batch(
            temperature=self._column(
                [
                    1.0 if greedy else p.temperature
                    for p, greedy in zip(params, is_greedy, strict=True)
                ]
            ),
            is_greedy=self._tensor(is_greedy),
            all_greedy=not sampled,
            takes_largest=not (sampled or wanted or any(map(_changes_logits, params))),
            top_k_rows=rows(top_k),
            max_top_k=max((params[row].top_k for row in top_k), default=0),
            top_k_index=self._tensor([params[row].top_k - 1 for row in top_k], np.int64).unsqueeze(
                -1
            ),
            top_p_rows=rows(top_p),
            top_p=self._column([params[row].top_p for row in top_p]),
            min_p_rows=rows(min_p),
            min_p=self._column([params[row].min_p for row in min_p]),
            bias=None
            if not bias
            else (
                self._tensor([row for row, _, _ in bias]),
                self._tensor([token_id for _, token_id, _ in bias]),
                self._column([value for _, _, value in bias]).squeeze(-1),
            ),
            penalised=[row for row, p in enumerate(params) if p.has_penalty],
            allowed=self._allowed(params),
            forbids=any(p.forbids_tokens for p in params),
            num_logprobs=wanted,
            logprob_rows=rows(list(wanted)),
        )

    def _allowed(self, params: list[SamplingParams]) -> tuple[Tensor, Tensor] | None:
        rows = [row for row, p in enumerate(params) if p.allowed_token_ids]
        if not rows:
            return None
        forbidden = np.ones((len(rows), self.vocab_size), np.bool_)
        for i, row in enumerate(rows):
            forbidden[i, list(params[row].allowed_token_ids)] = False
        return self._tensor(rows), to_device(forbidden, self.device)

    def _tensor(self, values: list[Any], dtype: type | None = None) -> Tensor:
        return to_device(np.array(values, dtype), self.device)

    def _column(self, values: list[float]) -> Tensor:
        """[len(values), 1] float32."""
        return self._tensor(values, np.float32).unsqueeze(-1)

    def _transform(
        self, raw: Tensor, batch: _Batch, sequences: list[Sequence], drafts: list[list[int]]
    ) -> Tensor:
        forbidden = [
            (row, token_id)
            for row, sequence in enumerate(sequences)
            if sequence.num_output_tokens + len(drafts[row]) < sequence.params.min_tokens
            for token_id in sequence.stop_token_ids
            if token_id < self.vocab_size
        ]
        if batch.forbids:
            forbidden += [
                (row, token_id)
                for row, sequence in enumerate(sequences)
                for token_id in _ends_of_bad_words(sequence, drafts[row])
            ]
        if batch.bias is batch.allowed is None and not batch.penalised and not forbidden:
            return raw
        logits = raw.clone()
        if batch.bias is not None:
            rows, token_ids, values = batch.bias
            logits.index_put_((rows, token_ids), values, accumulate=True)
        if batch.penalised:
            self._penalise(logits, [(row, sequences[row], drafts[row]) for row in batch.penalised])
        if batch.allowed is not None:
            rows, is_forbidden = batch.allowed
            logits[rows] = logits[rows].masked_fill(is_forbidden, -torch.inf)
        if forbidden:
            rows, token_ids = self._tensor(forbidden).T
            logits[rows, token_ids] = -torch.inf
        return logits

    def _mask(self, logits: Tensor, mask: TokenMask) -> Tensor:
        octets = to_device(mask.bits, self.device)
        forbidden = self._is_unset.index_select(0, octets.flatten().int())
        forbidden = forbidden.view(len(octets), -1)[:, : self.vocab_size]
        if len(octets) == len(logits):
            return logits.masked_fill(forbidden, -torch.inf)
        rows = self._tensor(mask.rows)
        return logits.index_copy(0, rows, logits[rows].masked_fill(forbidden, -torch.inf))

    def _penalise(self, logits: Tensor, penalised: list[tuple[int, Sequence, list[int]]]) -> None:
        rows = self._tensor([row for row, _, _ in penalised])
        params = [sequence.params for _, sequence, _ in penalised]
        selected = logits[rows]
        seen = self._count([sequence.token_ids + ahead for _, sequence, ahead in penalised]) > 0
        repetition = self._column([p.repetition_penalty for p in params])
        scaled = torch.where(selected > 0, selected / repetition, selected * repetition)
        selected = torch.where(seen, scaled, selected)
        counts = self._count([s.output_token_ids + ahead for _, s, ahead in penalised])
        selected -= counts * self._column([p.frequency_penalty for p in params])
        selected -= (counts > 0) * self._column([p.presence_penalty for p in params])
        logits[rows] = selected

    def _count(self, token_ids: list[list[int]]) -> Tensor:
        """How often each token occurs: [len(token_ids), vocab_size]."""
        rows = np.repeat(np.arange(len(token_ids)), [len(ids) for ids in token_ids])
        flat = np.fromiter(chain.from_iterable(token_ids), np.int64, len(rows))
        index = to_device(rows * self.vocab_size + flat, self.device)
        counts = torch.zeros(len(token_ids) * self.vocab_size, device=self.device)
        counts.index_add_(0, index, torch.ones(len(rows), device=self.device))
        return counts.view(len(token_ids), self.vocab_size)

    def _draw(
        self, logits: Tensor, batch: _Batch, sequences: list[Sequence], drafts: list[list[int]]
    ) -> Tensor:
        logits = logits / batch.temperature
        if batch.top_k_rows is not None:
            selected = logits[batch.top_k_rows]
            best = selected.topk(batch.max_top_k, dim=-1).values
            # Tokens that tie with the k-th are kept: which of them to drop would be arbitrary.
            logits[batch.top_k_rows] = selected.masked_fill(
                selected < best.gather(-1, batch.top_k_index), -torch.inf
            )
        probs = logits.softmax(-1)
        if batch.top_p_rows is not None:
            selected = probs[batch.top_p_rows]
            selected = selected * (selected >= _top_p_floor(selected, batch.top_p))
            probs[batch.top_p_rows] = selected
        if batch.min_p_rows is not None:
            selected = probs[batch.min_p_rows]
            floor = selected.amax(-1, keepdim=True) * batch.min_p
            probs[batch.min_p_rows] = selected * (selected >= floor)
        draws = [
            uniform(sequence.seed, sequence.num_output_tokens + len(ahead))
            for sequence, ahead in zip(sequences, drafts, strict=True)
        ]
        # On a CPU a few rows at a time, whose sums in float64 stay in its caches.
        num_rows = _DRAWN_ROWS if self.device.type == "cpu" else len(probs)
        pieces = zip(
            probs.split(num_rows), self._tensor(draws)[:, None].split(num_rows), strict=True
        )
        index = torch.cat([_invert(*piece) for piece in pieces])
        return index.squeeze(-1).clamp(max=self.vocab_size - 1)


def _ends_of_bad_words(sequence: Sequence, draft: list[int]) -> Iterator[int]:
    """The tokens that would complete a bad word behind a sequence's output and a draft."""
    words = sequence.params.bad_words_token_ids
    if not words:
        return
    begin = max(sequence.num_prompt_tokens, sequence.num_tokens - max(map(len, words)))
    tail = (*sequence.token_ids[begin:], *draft)
    for *before, last in words:
        if len(before) <= len(tail) and tail[len(tail) - len(before) :] == tuple(before):
            yield last


def _changes_logits(params: SamplingParams) -> bool:
    return bool(
        params.logit_bias or params.has_penalty or params.forbids_tokens or params.min_tokens
    )


def _invert(probs: Tensor, draws: Tensor) -> Tensor:
    """The tokens `[n, 1]` at which the sum of `probs`, `[n, vocab_size]`, passes the share `draws`
    of the whole, `[n, 1]` float64."""
    cumulative = probs.cumsum(-1, dtype=torch.float64)
    return torch.searchsorted(cumulative, draws * cumulative[:, -1:], right=True)


def _top_p_floor(probs: Tensor, top_p: Tensor) -> Tensor:
    """The smallest probability of those that are needed to reach `top_p`, `[n, 1]`.

    Args:
        probs: `[n, vocab_size]`.
        top_p: `[n, 1]`.
    """
    if probs.device.type != "cpu" or probs.shape[1] <= _NUM_LIKELIEST:
        return _floor_of(probs.sort(-1, descending=True).values, top_p)
    # Mostly a few tokens reach it, and a CPU takes a hundred times as long to sort them all.
    likeliest = probs.topk(_NUM_LIKELIEST).values
    floor = _floor_of(likeliest, top_p)
    if len(rows := (likeliest.sum(-1) < top_p[:, 0]).nonzero()[:, 0]):
        floor[rows] = _floor_of(probs[rows].sort(-1, descending=True).values, top_p[rows])
    return floor


def _floor_of(ordered: Tensor, top_p: Tensor) -> Tensor:
    before = ordered.cumsum(-1) - ordered
    # The most likely token is always needed.
    needed = (before < top_p).sum(-1, keepdim=True).clamp(min=1)
    return ordered.gather(-1, needed - 1)
