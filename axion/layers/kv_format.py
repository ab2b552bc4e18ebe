"""How keys and values are stored in the KV cache where not as the numbers that they are."""

from __future__ import annotations

from typing import ClassVar, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class KVFormat(Protocol):
    """A way to store the key or value of a token's head as bytes.

    Args:
        dtype: of the numbers that come back.

    Attributes:
        name: what `KV_CACHE_DTYPE` calls it.
    """

    name: ClassVar[str]
    dtype: torch.dtype

    def __init__(self, dtype: torch.dtype) -> None: ...

    def width(self, head_dim: int) -> int:
        """Bytes of one entry; the first `width(n)` of a longer one are its first n numbers."""
        ...

    def store(self, x: Tensor) -> Tensor:
        """`[..., head_dim]` to uint8 `[..., width(head_dim)]`."""
        ...

    def load(self, stored: Tensor) -> Tensor:
        """What `store` gave, as numbers again."""
        ...


class Fp8Format:
    """E4M3, a byte a number, without a scale (arXiv:2209.05433); beyond ±448 they are cut."""

    name = "fp8"

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def width(self, head_dim: int) -> int:
        return head_dim

    def store(self, x: Tensor) -> Tensor:
        limit = torch.finfo(torch.float8_e4m3fn).max
        return x.clamp(-limit, limit).to(torch.float8_e4m3fn).view(torch.uint8)

    def load(self, stored: Tensor) -> Tensor:
        return stored.view(torch.float8_e4m3fn).to(self.dtype)


class Int8Format:
    """A byte a number, with a scale in bfloat16 before those of a head: its largest is 127."""

    name = "int8"
    _NUM_SCALE_BYTES = 2

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def width(self, head_dim: int) -> int:
        return self._NUM_SCALE_BYTES + head_dim

    def store(self, x: Tensor) -> Tensor:
        x = x.float()
        scale = (x.abs().amax(-1, keepdim=True) / 127).clamp(min=1e-30).to(torch.bfloat16)
        numbers = (x / scale).round().clamp(-127, 127).to(torch.int8)
        return torch.cat((scale.view(torch.uint8), numbers.view(torch.uint8)), dim=-1)

    def load(self, stored: Tensor) -> Tensor:
        scale = stored[..., : self._NUM_SCALE_BYTES].contiguous().view(torch.bfloat16)
        numbers = stored[..., self._NUM_SCALE_BYTES :].view(torch.int8)
        return (numbers * scale.float()).to(self.dtype)


class SlotRun(NamedTuple):
    """Slots of one sequence whose blocks follow one another: what lies there is read in place.

    Attributes:
        shape: `[length]`, or `[1, length]`.
    """

    start: int
    shape: torch.Size


class KVEntries(NamedTuple):
    """Keys or values in the KV cache, by slot.

    Attributes:
        stored: `[num_slots, num_kv_heads, head_dim]`, or bytes of the format's width; of an entry
            in pieces a slot has one.
        num_pieces: slots that an entry is cut into, of which the first is a multiple of this.
    """

    stored: Tensor
    format: KVFormat | None
    num_pieces: int = 1

    @property
    def num_heads(self) -> int:
        return self.stored.shape[1]

    @property
    def head_dim(self) -> int:
        width = self.stored.shape[2] - (0 if self.format is None else self.format.width(0))
        return self.num_pieces * width

    def store(self, slots: Tensor, x: Tensor) -> None:
        """Keep `[num_tokens, num_kv_heads, head_dim]` in these slots."""
        if self.num_pieces > 1:
            slots = self._slots_of_pieces(slots).flatten()
            x = x.unflatten(-1, (self.num_pieces, -1)).transpose(1, 2).flatten(0, 1)
        self.stored.index_copy_(0, slots, x if self.format is None else self.format.store(x))

    def gather(self, slots: Tensor | SlotRun) -> Tensor:
        """`[*slots.shape, num_kv_heads, head_dim]` at `slots`, of any shape."""
        if isinstance(slots, SlotRun):
            entries = self.stored[slots.start : slots.start + slots.shape[-1]]
            entries = entries.view(*slots.shape, *self.stored.shape[1:])
        else:
            if self.num_pieces > 1:
                slots = self._slots_of_pieces(slots)
            # As an embedding: a whole entry is copied at once, many times faster than by indexing.
            rows = F.embedding(slots, self.stored.flatten(1))
            entries = rows.unflatten(-1, self.stored.shape[1:])
        if self.format is not None:
            entries = self.format.load(entries)
        return entries if self.num_pieces == 1 else entries.transpose(-3, -2).flatten(-2)

    def gather_by_head(self, slots: Tensor) -> Tensor:
        """`[batch, length, num_kv_heads, head_dim]`, each head at slots of its own; not of entries
        in pieces.

        Args:
            slots: `[batch, num_kv_heads, length]`.
        """
        heads = torch.arange(self.num_heads, device=slots.device)[:, None]
        entries = self.stored[slots, heads].transpose(1, 2)
        return entries if self.format is None else self.format.load(entries)

    def gather_heads(self, slots: Tensor, head_slots: Tensor) -> Tensor:
        """What `gather` gives, head by head: `[batch * num_kv_heads, length, head_dim]`.

        Args:
            slots: `[batch, length]`.
            head_slots: `[batch * num_kv_heads, length]`, `slot * num_kv_heads + head`.
        """
        if self.num_pieces > 1 or not self.stored.is_contiguous():
            return self.gather(slots).transpose(1, 2).flatten(0, 1)
        entries = F.embedding(head_slots, self.stored.flatten(0, 1))
        return entries if self.format is None else self.format.load(entries)

    def _slots_of_pieces(self, slots: Tensor) -> Tensor:
        """`[..., num_pieces]`, each in the same block as its entry."""
        first = slots // self.num_pieces * self.num_pieces
        return first[..., None] + torch.arange(self.num_pieces, device=slots.device)


KV_FORMATS: dict[str, type[KVFormat]] = {x.name: x for x in (Fp8Format, Int8Format)}
