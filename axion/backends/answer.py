"""One sequence's tokens on their way to a client: text, tool calls, log probabilities."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from axion.errors import EngineUnavailableError, InternalError
from axion.text.detokenizer import IncrementalDetokenizer
from axion.text.stop import StopStrings
from axion.text.tokenizer import Tokenizer
from axion.text.tool_calls import HermesToolCalls, ToolCall
from axion.types import FinishReason, SamplingParams, SequenceOutput, TokenLogprobs


class ShownToken(NamedTuple):
    """A token of the answer and its log probabilities.

    Attributes:
        offset: where its text begins in the answer's text, in characters.
    """

    token_id: int
    logprobs: TokenLogprobs
    offset: int


class Piece(NamedTuple):
    """What a step adds to an answer; `finish_reason` is set on the last one.

    Attributes:
        tokens: those whose text is in this piece, when log probabilities are asked for.
    """

    text: str
    tool_calls: list[ToolCall]
    tokens: list[ShownToken]
    finish_reason: FinishReason | None


class Answer:
    """One sequence's output, step by step.

    The token that ends the sequence has no text. A stop string ends the text, and the tokens
    that lie behind its beginning are dropped with it. It counts only in what comes after
    `min_tokens` tokens.

    Attributes:
        num_tokens: generated so far.
        num_cached_tokens: prompt tokens that the prefix cache supplied.
        prompt_logprobs: of the prompt's tokens from the second on, when asked for; complete
            when the first token is generated.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_token_ids: list[int],
        params: SamplingParams,
        *,
        parse_tool_calls: bool = False,
        skip_special_tokens: bool = True,
    ) -> None:
        self.prompt_token_ids = prompt_token_ids
        self.params = params
        self.num_tokens = 0
        self.num_cached_tokens = 0
        self.prompt_logprobs: list[TokenLogprobs] = []
        self._detokenizer = IncrementalDetokenizer(
            tokenizer,
            skip_special_tokens=skip_special_tokens,
            prompt_token_ids=prompt_token_ids,
        )
        self._stop = StopStrings(params.stop, params.include_stop_str_in_output)
        self._tool_calls = HermesToolCalls() if parse_tool_calls else None
        self._num_chars = 0  # of decoded text
        self._num_shown_chars = 0  # of what is left of it after stop strings
        self._incomplete: list[ShownToken] = []  # tokens of a character that is not whole yet
        self._waiting: deque[tuple[ShownToken, int]] = deque()  # and where their text ends

    def take(self, output: SequenceOutput) -> Piece:
        """Add one step's output.

        Raises:
            InternalError: the engine failed on this sequence.
            EngineUnavailableError: the engine gave the sequence up.
        """
        finish_reason = output.finish_reason
        if finish_reason is FinishReason.ERROR:
            raise InternalError(output.error or "The engine could not compute this request.")
        if finish_reason is FinishReason.ABORT:
            raise EngineUnavailableError("The engine gave this request up. Send it again.")
        text, stopped = self._decode(output)
        if stopped:
            finish_reason = FinishReason.STOP
        self._num_shown_chars += len(text)
        text, tool_calls = self._separate(text, final=finish_reason is not None)
        return Piece(text, tool_calls, self._shown_tokens(finish_reason is not None), finish_reason)

    def _decode(self, output: SequenceOutput) -> tuple[str, bool]:
        """The text that is certain now, and whether a stop string ends it."""
        self.num_cached_tokens = output.num_cached_tokens
        self.prompt_logprobs += output.prompt_logprobs or ()
        text = ""
        for i, token_id in enumerate(output.token_ids):
            self.num_tokens += 1
            if output.stop_token_id is not None and i + 1 == len(output.token_ids):
                break
            new = self._detokenizer.push((token_id,))
            if output.logprobs is not None:
                self._incomplete.append(ShownToken(token_id, output.logprobs[i], self._num_chars))
            if new:
                self._place(new)
            if self.num_tokens < self.params.min_tokens:
                text += new
                continue
            shown, stop = self._stop.push(new)
            text += shown
            if stop is not None:
                return text, True
        if output.finish_reason is None:
            return text, False
        rest = self._detokenizer.flush()
        self._place(rest)
        shown, stop = self._stop.push(rest)
        return text + shown + self._stop.flush(), stop is not None

    def _place(self, new: str) -> None:
        """The tokens that waited for it end with this text."""
        self._num_chars += len(new)
        self._waiting.extend((token, self._num_chars) for token in self._incomplete)
        self._incomplete.clear()

    def _separate(self, text: str, *, final: bool) -> tuple[str, list[ToolCall]]:
        if self._tool_calls is None:
            return text, []
        parts = self._tool_calls.push(text)
        if final:
            parts += self._tool_calls.flush()
        calls = [part for part in parts if isinstance(part, ToolCall)]
        return "".join(part for part in parts if isinstance(part, str)), calls

    def _shown_tokens(self, final: bool) -> list[ShownToken]:
        """The tokens whose text is out; at the end also the one that a stop string cuts."""
        num_out = self._num_shown_chars
        if self._tool_calls is not None:
            num_out -= self._tool_calls.num_held
        tokens = []
        while self._waiting:
            token, end = self._waiting[0]
            if end > num_out and not (final and token.offset < num_out):
                break
            tokens.append(token)
            self._waiting.popleft()
        return tokens
