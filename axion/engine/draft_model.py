"""A small model that guesses what the large one will say."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

import torch
import torch.nn.functional as F

from axion.engine.cuda_graph import CudaGraphRunner
from axion.engine.loader import load_model
from axion.engine.model_runner import Chunk, ModelRunner
from axion.engine.sampler import Sampler
from axion.engine.step import ScheduledSequence
from axion.errors import ModelLoadError
from axion.models.base import CausalLM
from axion.text.tokenizer import Tokenizer, load_tokenizer
from axion.types import EngineConfig


class DraftModel:
    """Proposes what a small model of the same vocabulary says.

    Its layers have a part of every block of the KV cache: one block manager serves both models,
    and what the prefix cache has, it has for both. In each step it computes what the step
    computes, and then, token by token, its guesses. It draws as the sequence will, with the same
    random numbers, so that like distributions give like tokens. What it lacks now and then, the
    keys of a draft that came true before the sequence had to wait, only makes a worse guess.

    Args:
        runner: runs the small model on its part of the blocks.
        vocab_size: columns of the large model's logits.
    """

    def __init__(self, runner: ModelRunner, vocab_size: int) -> None:
        self._runner = runner
        self._vocab_size = vocab_size
        self._sampler = Sampler(runner.device, vocab_size)
        self._num_computed: dict[str, int] = {}  # tokens of each sequence of the last step

    @torch.inference_mode()
    def propose(self, scheduled: list[ScheduledSequence], limits: list[int]) -> list[list[int]]:
        """See `Proposer`."""
        drafts: list[list[int]] = [[] for _ in scheduled]
        chunks = {index: self._first_chunk(entry) for index, entry in enumerate(scheduled)}
        if isinstance(self._runner.graphs, CudaGraphRunner):
            chunks = self._catch_up(chunks)
        num_drafted = 0
        while chunks:
            self._extend(drafts, chunks, limits)
            num_drafted += 1
            chunks = {
                index: self._chunk(entry, entry.end + num_drafted - 1, drafts[index][-1:])
                for index, entry in enumerate(scheduled)
                if len(drafts[index]) == num_drafted < limits[index]
            }
        self._num_computed = {
            entry.sequence.request_id: entry.end + max(0, len(own) - 1)
            for entry, own in zip(scheduled, drafts, strict=True)
        }
        return drafts

    def _first_chunk(self, entry: ScheduledSequence) -> Chunk:
        """What the step computes; before that the last draft, where all of them came true."""
        sequence = entry.sequence
        start = sequence.num_computed_tokens
        start = min(start, self._num_computed.get(sequence.request_id, start))
        return self._chunk(entry, start, sequence.token_ids[start : entry.end])

    def _catch_up(self, chunks: dict[int, Chunk]) -> dict[int, Chunk]:
        """Compute last drafts that came true in a step of their own, where all that is left is then
        a token of each sequence: two steps that are replayed take less time than one that is not.
        """
        behind = {index: chunk for index, chunk in chunks.items() if len(chunk.token_ids) == 2}
        if not behind or any(len(chunk.token_ids) > 2 for chunk in chunks.values()):
            return chunks
        self._runner.forward([c._replace(token_ids=c.token_ids[:1]) for c in behind.values()], [])
        rest = {
            index: chunk._replace(start=chunk.start + 1, token_ids=chunk.token_ids[1:])
            for index, chunk in behind.items()
        }
        return chunks | rest

    def _chunk(self, entry: ScheduledSequence, start: int, token_ids: list[int]) -> Chunk:
        # Embeddings are padded to different sizes; nothing is said with what is beyond.
        last = self._runner.model.config.vocab_size - 1
        return Chunk(entry.sequence, start, [min(token_id, last) for token_id in token_ids])

    def _extend(self, drafts: list[list[int]], chunks: dict[int, Chunk], limits: list[int]) -> None:
        """Compute chunks, and add a draft to those that may have more."""
        ends = accumulate(len(chunk.token_ids) for chunk in chunks.values())
        last_rows = {index: end - 1 for index, end in zip(chunks, ends, strict=True)}
        wanted = [index for index in chunks if len(drafts[index]) < limits[index]]
        hidden_states, rows = self._runner.forward(
            list(chunks.values()), [last_rows[index] for index in wanted]
        )
        if not wanted:
            return
        logits = self._runner.model.compute_logits(hidden_states[rows])
        missing = self._vocab_size - logits.shape[-1]
        sampled = self._sampler(
            F.pad(logits, (0, missing), value=-torch.inf),
            [chunks[index].sequence for index in wanted],
            drafts=[drafts[index] for index in wanted],
        )
        for index, token in zip(wanted, sampled.read(), strict=True):
            if token.error is None:
                drafts[index].append(token.token_id)


def load_draft_model(config: EngineConfig, model: CausalLM, device: torch.device) -> CausalLM:
    """Load the model at `config.draft_model_path`.

    Args:
        model: what it is to draft for.

    Raises:
        ModelLoadError: it cannot be loaded, or does not fit the model.
    """
    path = Path(config.draft_model_path)
    draft = load_model(
        path,
        device=device,
        dtype=model.dtype,
        allow_pickle=config.allow_pickle,
        trust_remote_code=config.trust_remote_code,
    )
    for name, can_rewind in (("model", model.can_rewind), ("draft model", draft.can_rewind)):
        if not can_rewind:
            raise ModelLoadError(
                f"DRAFT_MODEL cannot be used: the {name} cannot take back a token that it has "
                "computed, as wrong drafts ask for. Leave DRAFT_MODEL empty."
            )
    longest, needed = draft.max_length(), min(config.max_model_len, model.max_length())
    if longest < needed:
        raise ModelLoadError(
            f"DRAFT_MODEL takes {longest} tokens, and the model is served with {needed}. Set "
            f"MAX_SEQ_LEN to {longest}, or use another draft model."
        )
    _check_vocabulary(load_tokenizer(path), load_tokenizer(Path(config.model_path)))
    return draft


def _check_vocabulary(own: Tokenizer, models: Tokenizer) -> None:
    for token_id in range(max(own.vocab_size, models.vocab_size)):
        token, expected = own.id_to_token(token_id), models.id_to_token(token_id)
        if token != expected:
            raise ModelLoadError(
                f"DRAFT_MODEL has another vocabulary than the model: its token {token_id} is "
                f"{_quoted(token)}, the model's {_quoted(expected)}. Use a smaller model of the "
                "same family."
            )


def _quoted(token: str | None) -> str:
    return "none" if token is None else repr(token[:80])
