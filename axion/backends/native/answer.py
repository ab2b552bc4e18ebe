"""One sequence's tokens on their way to a client: text, reasoning, calls, log probabilities."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from typing import NamedTuple

from axion.backends.native.taken_over import Debt
from axion.errors import CannotContinueError, EngineUnavailableError, InternalError
from axion.openai.delivered import DeliveredChoice
from axion.text.detokenizer import IncrementalDetokenizer
from axion.text.events import CallEnd, Event, TextDelta, append
from axion.text.stop import StopStrings
from axion.text.stream_parser import AnswerParser
from axion.text.tokenizer import Tokenizer
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
        stop_reason: the stop string, or the requested stop token, that ended the answer.
    """

    events: list[Event]
    tokens: list[ShownToken]
    finish_reason: FinishReason | None
    stop_reason: int | str | None = None

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, TextDelta))


class Answer:
    """One sequence's output, step by step.

    The token that ends the sequence has no text. A stop string ends the text, and the tokens
    that lie behind its beginning are dropped with it. It counts only in what comes after
    `min_tokens` tokens.

    Args:
        parser: finds reasoning and tool calls; without one all is text.
        single_call: the first tool call ends the answer.
        visible_token_ids: special tokens that the parser needs.

    Attributes:
        num_tokens: generated so far.
        num_reasoning_tokens: those of them that are reasoning.
        num_cached_tokens: prompt tokens that the prefix cache supplied.
        generated_before: tokens of what was taken over.
        first: what comes before anything that the engine gives, if the answer was taken over.
        prompt_logprobs: of the prompt's tokens from the second on, when asked for; complete
            when the first token is generated.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_token_ids: list[int],
        params: SamplingParams,
        *,
        parser: AnswerParser | None = None,
        single_call: bool = False,
        skip_special_tokens: bool = True,
        visible_token_ids: Collection[int] = (),
    ) -> None:
        self.prompt_token_ids = prompt_token_ids
        self.params = params
        self.num_tokens = 0
        self.num_reasoning_tokens = 0
        self.num_cached_tokens = 0
        self.prompt_logprobs: list[TokenLogprobs] = []
        self._untold_token_ids: list[int] = []
        self._tokenizer = tokenizer
        self._detokenizer = IncrementalDetokenizer(
            tokenizer,
            skip_special_tokens=skip_special_tokens,
            visible_token_ids=visible_token_ids,
            prompt_token_ids=prompt_token_ids,
        )
        self._stop = StopStrings(params.stop, params.include_stop_str_in_output)
        self._parser = parser
        self._single_call = single_call
        self.generated_before: list[int] = []
        self.first: Piece | None = None
        self._debt: Debt | None = None
        self._num_chars_before = 0  # that other engines wrote
        self._num_chars = 0  # of decoded text
        self._num_shown_chars = 0  # of what is left of it after stop strings
        self._incomplete: list[ShownToken] = []  # tokens of a character that is not whole yet
        self._waiting: deque[tuple[ShownToken, int]] = deque()  # and where their text ends

    def take_over(self, choice: DeliveredChoice, text: str) -> None:
        """Go on with an answer that another engine began; the first thing, if done at all.

        Args:
            choice: what the client has of it.
            text: what the model would have written for that, in its own format.

        Raises:
            CannotContinueError: what is read in `text` is not what the client has.
        """
        # White space at the end is left to the model: most have it in one token with what follows.
        token_ids = self._tokenizer.encode_continuation(text.rstrip())
        if token_ids is None:
            raise CannotContinueError("This model has no tokens for the text of the answer so far.")
        events, tokens, finish_reason, stop_reason = self.take(SequenceOutput("", token_ids))
        try:
            self._debt = Debt(choice, events, self._num_chars - self._num_out)
        except ValueError:
            raise CannotContinueError(
                "This model would have written the answer so far in another way."
            ) from None
        self.generated_before = token_ids
        self._num_chars_before = len(text)
        self.first = Piece(self._debt.first, tokens, finish_reason, stop_reason)
        if finish_reason is None and 0 < (self.params.max_tokens or 0) <= self.num_tokens:
            last = self.take(SequenceOutput("", [], finish_reason=FinishReason.LENGTH))
            self.first = last._replace(events=self._debt.first + last.events)

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
        stop_reason: int | str | None = None
        if output.stop_token_id in self.params.stop_token_ids:
            stop_reason = output.stop_token_id
        events: list[Event] = []
        ended, stop = self._decode(output, events)
        if stop is not None:
            stop_reason = stop
        if ended or stop is not None:
            finish_reason = FinishReason.STOP
        tokens = self._shown_tokens(finish_reason is not None)
        if self._debt is not None:
            events = self._debt.settle(events)
        return Piece(events, tokens, finish_reason, stop_reason)

    def take_token_ids(self) -> list[int]:
        """The tokens that were generated since this was asked last."""
        token_ids, self._untold_token_ids = self._untold_token_ids, []
        return token_ids

    def _decode(self, output: SequenceOutput, events: list[Event]) -> tuple[bool, str | None]:
        """Add what is certain now.

        Returns:
            Whether it ends the answer, and the stop string that does, if one does.
        """
        self.num_cached_tokens = output.num_cached_tokens
        self.prompt_logprobs += output.prompt_logprobs or ()
        for i, token_id in enumerate(output.token_ids):
            self.num_tokens += 1
            self._untold_token_ids.append(token_id)
            if output.stop_token_id is not None and i + 1 == len(output.token_ids):
                break
            new = self._detokenizer.push((token_id,))
            if output.logprobs is not None:
                self._incomplete.append(ShownToken(token_id, output.logprobs[i], self._num_chars))
            if new:
                self._place(new)
            shown, stop = (
                (new, None) if self.num_tokens < self.params.min_tokens else self._stop.push(new)
            )
            reasoning = self._reasoning
            ended = self._parse(shown, events, final=stop is not None)
            self.num_reasoning_tokens += reasoning or self._reasoning
            if ended or stop is not None:
                return ended, stop
        if output.finish_reason is None:
            return False, None
        rest = self._detokenizer.flush()
        self._place(rest)
        shown, stop = self._stop.push(rest)
        return self._parse(shown + self._stop.flush(), events, final=True), stop

    def _place(self, new: str) -> None:
        """The tokens that waited for it end with this text."""
        self._num_chars += len(new)
        if self._num_chars > self._num_chars_before:
            self._waiting.extend((token, self._num_chars) for token in self._incomplete)
        self._incomplete.clear()

    @property
    def _reasoning(self) -> bool:
        return self._parser is not None and self._parser.reasoning

    @property
    def _num_out(self) -> int:
        """Characters that have been read for good."""
        return self._num_shown_chars - (self._parser.num_held if self._parser is not None else 0)

    def _parse(self, text: str, events: list[Event], *, final: bool) -> bool:
        """Add what the text says; returns whether that is the one call that is wanted."""
        self._num_shown_chars += len(text)
        if self._parser is None:
            if text:
                append(events, TextDelta(text))
            return False
        for event in self._parser.push(text):
            append(events, event)
            if self._single_call and isinstance(event, CallEnd):
                return True
        for event in self._parser.flush() if final else ():
            append(events, event)
            if self._single_call and isinstance(event, CallEnd):
                break
        return False

    def _shown_tokens(self, final: bool) -> list[ShownToken]:
        """The tokens whose text is out; at the end also the one that a stop string cuts."""
        num_out = self._num_out
        tokens = []
        while self._waiting:
            token, end = self._waiting[0]
            if end > num_out and not (final and token.offset < num_out):
                break
            tokens.append(token)
            self._waiting.popleft()
        return tokens
