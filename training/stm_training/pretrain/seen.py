"""A set of 64-bit keys that is small enough for every text of a large corpus."""

from __future__ import annotations

from array import array

_FIRST_SLOTS = 1 << 10
_MOST_FULL = 0.6


class SeenKeys:
    """Keys that were added before: open addressing in one array, 13 to 27 bytes per key."""

    def __init__(self) -> None:
        self._slots = array("Q", bytes(8 * _FIRST_SLOTS))
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, key: int) -> bool:
        """Remember a key of 64 evenly spread bits; whether it is new."""
        key = key or 1  # 0 marks a free slot
        place = self._place(key)
        if self._slots[place]:
            return False
        self._slots[place] = key
        self._count += 1
        if self._count > _MOST_FULL * len(self._slots):
            self._grow()
        return True

    def _place(self, key: int) -> int:
        """Slot of the key, or the free one where it belongs."""
        slots, mask = self._slots, len(self._slots) - 1
        place = key & mask
        while slots[place] and slots[place] != key:
            place = (place + 1) & mask
        return place

    def _grow(self) -> None:
        old = self._slots
        self._slots = array("Q", bytes(16 * len(old)))
        for key in old:
            if key:
                self._slots[self._place(key)] = key
