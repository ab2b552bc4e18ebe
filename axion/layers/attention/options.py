"""What a layer asks of attention besides its queries, keys and values."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from axion.layers.context import KVCache


class Compressed(NamedTuple):
    """Entries that stand for several tokens each, which tokens attend to beside a window.

    A token sees those whose last token is not behind it.

    Attributes:
        cache: of as many heads of the same sizes as the tokens'; what is to be in it is.
        chosen: `[num_tokens, num_chosen]` int64, the entries that a token attends to, and to no
            others (see `choose_tokens`); those that it does not see, and negative ones, are left
            out. None: to all that it sees.
    """

    cache: KVCache
    chosen: Tensor | None = None


class AttentionOptions(NamedTuple):
    """How a layer attends, as `axion.layers.attention.paged_attention` describes it."""

    scale: float
    window: int | None = None
    chunk: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    alibi_slopes: Tensor | None = None
    chosen: Tensor | None = None
    compressed: Compressed | None = None

    @property
    def chooses(self) -> bool:
        """Whether each token has tokens or entries of its own."""
        of_entries = self.compressed is not None and self.compressed.chosen is not None
        return self.chosen is not None or of_entries

    @property
    def is_plain(self) -> bool:
        """Whether torch's own attention computes what becomes of queries' and keys' products."""
        return self.softcap is None and self.sinks is None and self.alibi_slopes is None
