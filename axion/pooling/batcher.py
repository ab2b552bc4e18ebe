"""Which of the waiting texts are computed together."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# A batch takes about as long as this many tokens more than it has (`benchmarks/embeddings.py`
# measures it). A text joins a batch only where the padding that this takes costs less than that.
BATCH_COST_TOKENS = 32

Item = tuple[str, int]


@dataclass
class _Request:
    """The texts of one request that wait.

    Attributes:
        since: when one of its texts was last taken into a batch, or when it came, in seconds.
        lengths: number of tokens by index of the text.
    """

    since: float
    lengths: dict[int, int]


class Batcher:
    """Waiting texts of all requests, and the next batch of them.

    A batch holds texts of similar length, so that little of it is padding. The shortest texts go
    first, which keeps the mean wait low, unless a request has been passed over for `max_wait_s`:
    then the batch forms around that request's next text, least recently served request first. So
    a request of a thousand texts neither holds the others up nor waits behind them.

    Args:
        max_batch_size: texts in a batch.
        max_batch_tokens: tokens in a batch, padding included. A text that is longer goes alone.
        max_wait_s: in seconds; 0 serves the requests in turn.
    """

    def __init__(self, max_batch_size: int, max_batch_tokens: int, max_wait_s: float) -> None:
        self._max_batch_size = max_batch_size
        self._max_batch_tokens = max_batch_tokens
        self._max_wait_s = max_wait_s
        self.num_waiting = 0
        # Least recently served first.
        self._requests: dict[str, _Request] = {}
        # First come, first served within a length.
        self._by_length: dict[int, dict[Item, None]] = {}
        self._lengths: list[int] = []

    def add(self, request_id: str, lengths: Sequence[int], now: float) -> None:
        """Have the texts of a request wait.

        Args:
            lengths: number of tokens of each text.
            now: in seconds, of a clock that never goes back.
        """
        assert request_id not in self._requests
        if not lengths:
            return
        self._requests[request_id] = _Request(now, dict(enumerate(lengths)))
        self.num_waiting += len(lengths)
        for index, length in enumerate(lengths):
            if length not in self._by_length:
                self._by_length[length] = {}
                insort(self._lengths, length)
            self._by_length[length][request_id, index] = None

    def drop(self, request_id: str) -> int:
        """Forget what waits of a request; returns the number of its texts."""
        request = self._requests.pop(request_id, None)
        if request is None:
            return 0
        for index, length in request.lengths.items():
            self._remove((request_id, index), length)
        return len(request.lengths)

    def next_batch(self, now: float) -> list[Item]:
        """Take the next batch: `(request_id, index)` of each text. Empty if none waits."""
        if not self._requests:
            return []
        item, length = self._first(now)
        batch = self._fill(item, length)
        for request_id, index in batch:
            request = self._requests.pop(request_id)
            self._remove((request_id, index), request.lengths.pop(index))
            if request.lengths:
                request.since = now
                self._requests[request_id] = request
        return batch

    def _first(self, now: float) -> tuple[Item, int]:
        """The text that the batch forms around, and its length."""
        request_id, request = next(iter(self._requests.items()))
        if now - request.since >= self._max_wait_s:
            index, length = next(iter(request.lengths.items()))
            return (request_id, index), length
        length = self._lengths[0]
        return next(iter(self._by_length[length])), length

    def _fill(self, first: Item, longest: int) -> list[Item]:
        batch = [first]
        for length in self._nearest(longest):
            longer = max(longest, length)
            for item in self._by_length[length]:
                if item == first:
                    continue
                size = len(batch) + 1
                if size > self._max_batch_size:
                    return batch
                padding = size * longer - (size - 1) * longest - length
                if padding > BATCH_COST_TOKENS or size * longer > self._max_batch_tokens:
                    break
                batch.append(item)
                longest = longer
        return batch

    def _nearest(self, length: int) -> Iterator[int]:
        """The lengths of waiting texts by their distance from a length."""
        high = bisect_left(self._lengths, length)
        low = high - 1
        while low >= 0 or high < len(self._lengths):
            take_high = low < 0 or (
                high < len(self._lengths)
                and self._lengths[high] - length <= length - self._lengths[low]
            )
            yield self._lengths[high if take_high else low]
            high, low = (high + 1, low) if take_high else (high, low - 1)

    def _remove(self, item: Item, length: int) -> None:
        self.num_waiting -= 1
        items = self._by_length[length]
        del items[item]
        if not items:
            del self._by_length[length]
            del self._lengths[bisect_left(self._lengths, length)]
