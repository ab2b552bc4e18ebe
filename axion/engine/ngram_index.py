"""Where a sequence's last tokens stood in it before."""

from __future__ import annotations

# Of the places where the last two tokens stood before, so many are looked at, the latest first.
_MAX_CANDIDATES = 8
_MAX_MATCH = 16


class NgramIndex:
    """Where each pair of neighbouring tokens of a growing sequence stood, the latest place first.

    A chain of earlier places for each pair, as compressors keep it (RFC 1951, section 4).
    """

    __slots__ = ("_earlier", "_latest")

    def __init__(self) -> None:
        self._latest: dict[tuple[int, int], int] = {}
        self._earlier = [-1]  # of the pair that ends at each position

    def extend(self, token_ids: list[int], end: int) -> None:
        """Take in the pairs that end before position `end`."""
        latest, earlier = self._latest, self._earlier
        for position in range(len(earlier), end):
            pair = token_ids[position - 1], token_ids[position]
            earlier.append(latest.get(pair, -1))
            latest[pair] = position

    def find(self, token_ids: list[int], limit: int) -> list[int]:
        """What followed where most of the last tokens stood before; empty if they never did."""
        last = len(token_ids) - 1
        if last < 1:
            return []
        self.extend(token_ids, last)
        position = self._latest.get((token_ids[last - 1], token_ids[last]), -1)
        best, longest = -1, 0
        for _ in range(_MAX_CANDIDATES):
            if position < 0:
                break
            length = 2
            while (
                length < min(_MAX_MATCH, position + 1)
                and token_ids[position - length] == token_ids[last - length]
            ):
                length += 1
            if length > longest:
                best, longest = position, length
            position = self._earlier[position]
        if best < 0:
            return []
        drafts = token_ids[best + 1 : best + 1 + limit]
        # What repeats with a short period goes on into the drafts themselves.
        for i in range(limit - len(drafts)):
            drafts.append(drafts[i])
        return drafts
