"""Which place in host memory holds what the device had to give up.

A second tier behind the blocks and states that the prefix cache keeps on the device: what is
overwritten there is copied to the host before, found by the same hash, and copied back when a
sequence can go on from it. So a preempted sequence is swapped, and the cache larger than the
device, by one mechanism.

Here copies are only decided. They are made before the device computes anything else
(`HostMemory.move`): first all `saves`, then all `loads`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from typing import NamedTuple


class _Held(NamedTuple):
    place: int
    token_ids: list[int] | None


class HostPool:
    """Places of one size in host memory; the least recently used gives way.

    What a place holds is known by a key. It may be on the device as well, and is then not copied
    again when the device overwrites it.

    Args:
        num_places: how many there are.

    Attributes:
        saves: copies to the host, as yet to be made: the place to the index on the device.
        loads: copies to the device: the index there to the place.
        num_saved, num_loaded: copies that were decided on in all.
    """

    def __init__(self, num_places: int) -> None:
        self.num_places = num_places
        self.saves: dict[int, int] = {}
        self.loads: dict[int, int] = {}
        self.num_saved = 0
        self.num_loaded = 0
        self._held: OrderedDict[Hashable, _Held] = OrderedDict()
        self._free = list(range(num_places))
        # Their content is still to be loaded, so that nothing may be saved there.
        self._promised: set[int] = set()
        self._leaving: list[int] = []  # of these, the ones that hold nothing else

    def __contains__(self, key: Hashable) -> bool:
        return key in self._held

    @property
    def num_used(self) -> int:
        return len(self._held)

    def token_ids(self, key: Hashable) -> list[int] | None:
        """The tokens that were saved with what the key names; None if it is not here."""
        held = self._held.get(key)
        return None if held is None else held.token_ids

    def save(self, key: Hashable, index: int, token_ids: list[int] | None = None) -> None:
        """Keep what the device has at `index`, where it is about to be overwritten.

        It is lost where all places have to wait for a load.

        Args:
            token_ids: those that the key is a hash of, to be compared; None: they are elsewhere.
        """
        if key in self._held:
            self._held.move_to_end(key)
            return
        if self._free:
            place = self._free.pop()
        else:
            oldest = next(iter(self._held.values()), None)
            if oldest is None or oldest.place in self._promised:
                return
            place = oldest.place
            self._held.popitem(last=False)
        self._held[key] = _Held(place, token_ids)
        self.saves[place] = index
        self.num_saved += 1

    def promise(self, keys: Iterable[Hashable]) -> None:
        """Keep what is about to be loaded until it is, whatever is saved before."""
        for key in keys:
            self._held.move_to_end(key)
            self._promised.add(self._held[key].place)

    def load(self, key: Hashable, index: int) -> None:
        """Have the device get back what was promised."""
        self.loads[index] = self._held[key].place
        self.num_loaded += 1

    def discard(self, key: Hashable) -> None:
        """Let nobody find it again."""
        held = self._held.pop(key, None)
        if held is not None:
            (self._leaving if held.place in self._promised else self._free).append(held.place)

    def moved(self) -> None:
        """All copies have been made, or are in the device's queue."""
        self.saves.clear()
        self.loads.clear()
        self._promised.clear()
        self._free += self._leaving
        self._leaving.clear()

    def check_integrity(self) -> None:
        """Assert that every place is free or holds one thing, without looking at each."""
        assert len(self._held) + len(self._free) + len(self._leaving) == self.num_places
        assert self._promised.issuperset(self._leaving)
        assert self._promised.issuperset(self.loads.values())
