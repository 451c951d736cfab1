"""The files in which a cache's holders show what they have in use: bits and a few numbers, read and written.

    head, limit, reserved, leaving, beat · a word a ticket · a bit a spot · tail

Nothing is mapped, so whoever truncates or overwrites such a file ends no process: what of it can't be read counts
as in use, until its holder writes it anew.
"""

from __future__ import annotations

import os
import secrets
import struct
from collections import deque
from collections.abc import Iterable
from pathlib import Path

SPOTS = 1 << 15
TICKETS = 1 << 12
TICKETS_AT = 64
BITS_AT = TICKETS_AT + 4 * TICKETS
TAIL_AT = BITS_AT + SPOTS // 8
TABLE_BYTES = TAIL_AT + 8
NO_LIMIT = -1
FEW = 2
_HEADER = struct.Struct("=8s4q24x")
_TICKET = struct.Struct("=I")
_HEAD, _TAIL = b"pinsfrom", b"pin2"
"""Whatever is lost of a table, the second of these is, with the four bytes behind it, other ones each time."""
_GIVEN = 0xFFFF_FFFF


class Table:
    """One holder's file: its limit, the bytes it is about to write or to remove, what it has in use."""

    __slots__ = ("file",)

    def __init__(self, path: Path) -> None:
        self.file = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def close(self) -> None:
        """Close the file; only who has the table to himself may."""
        if self.file >= 0:
            os.close(self.file)
        self.file = -1

    def __del__(self) -> None:
        if hasattr(self, "file"):
            self.close()

    def header(self) -> tuple[int, int, int]:
        """Give limit, bytes to be written and bytes to be removed, as far as they can be known."""
        found = os.pread(self.file, _HEADER.size, 0)
        if len(found) == _HEADER.size:
            head, limit, reserved, leaving, _ = _HEADER.unpack(found)
            if head == _HEAD:
                return limit, reserved, leaving
        return NO_LIMIT, 0, 0

    def beat(self) -> int:
        """Give how often its holder has shown that it gets on."""
        found = os.pread(self.file, _HEADER.size, 0)
        return int(_HEADER.unpack(found)[4]) if len(found) == _HEADER.size else -1

    def is_pinned(self, spot: int) -> bool:
        """Whether its holder has, or may have, a file at a spot in use."""
        before = _tail_of(self.file)
        bits = os.pread(self.file, 1, BITS_AT + (spot >> 3))
        # A table that lost its bits and was given them again meanwhile has another tail.
        return not bits or bool(bits[0] >> (spot & 7) & 1) or before is None or before != _tail_of(self.file)

    def ticket(self, number: int) -> int:
        """Give the word of a ticket; 0 where there is none."""
        found = os.pread(self.file, _TICKET.size, TICKETS_AT + _TICKET.size * number)
        return int(_TICKET.unpack(found)[0]) if len(found) == _TICKET.size else 0

    def tickets(self) -> memoryview[int]:
        """Give the words of all tickets."""
        found = os.pread(self.file, _TICKET.size * TICKETS, TICKETS_AT)
        return memoryview(found.ljust(_TICKET.size * TICKETS, b"\0")).cast("I")

    def put_ticket(self, number: int, word: int) -> None:
        """Write the word of a ticket."""
        os.pwrite(self.file, _TICKET.pack(word), TICKETS_AT + _TICKET.size * number)


class OwnTable:
    """What this holder has in use and is about to do: kept in memory, and written for others to see."""

    def __init__(self, limit: int) -> None:
        self.limit, self.reserved, self.leaving, self.beat = limit, 0, 0, 0
        self.counts = [0] * SPOTS
        self.added = 0
        self.bits = bytearray(SPOTS // 8)
        self._changed: list[int] = []
        """Bytes of `bits` that nobody has seen yet."""

    def whole(self) -> bytes:
        """Give all that stands in the file."""
        return self._header() + bytes(4 * TICKETS) + self.bits + _new_tail()

    def _header(self) -> bytes:
        return _HEADER.pack(_HEAD, self.limit, self.reserved, self.leaving, self.beat)

    def add(self, spots: Iterable[int]) -> None:
        """Count pins; `added` says how many of them have been, wherever Ctrl-C comes."""
        counts, bits, changed = self.counts, self.bits, self._changed
        self.added = 0
        for spot in spots:
            # Without a call, so that it comes before all of this or after it.
            count = counts[spot]
            if not count:
                place = spot >> 3
                changed += (place,)
                bits[place] |= 1 << (spot & 7)
            counts[spot] = count + 1
            self.added += 1

    def remove(self, spots: Iterable[int]) -> None:
        """Count pins that are no more."""
        self.settle(deque(spots))

    def settle(self, released: deque[int]) -> None:
        """Count pins that are no more, and take them out of where they were noted.

        Nothing below 0: an error here would end whoever happens to count.
        """
        counts, bits, changed = self.counts, self.bits, self._changed
        while released:
            # Without a call, so that Ctrl-C comes before all of this or after it.
            spot = released[0]
            count = counts[spot]
            if count:
                counts[spot] = count - 1
                if count == 1:
                    place = spot >> 3
                    bits[place] ^= 1 << (spot & 7)
                    changed += (place,)
            del released[0]

    def show(self, file: int) -> None:
        """Write what has changed: a byte or two, or all, which costs twice as much."""
        changed = self._changed
        if len(changed) > FEW:
            os.pwrite(file, self.bits, BITS_AT)
        else:
            for place in changed:
                os.pwrite(file, self.bits[place : place + 1], BITS_AT + place)
        changed.clear()

    def show_header(self, file: int) -> None:
        """Write what is promised and planned."""
        os.pwrite(file, self._header(), 0)

    def mend(self, file: int) -> None:
        """Write all anew, if the file has been truncated."""
        if _tail_of(file) is None:
            allocate(file, TABLE_BYTES)
            # In one write: bits truncated before their tail stands would count as bits that nobody set. And before the
            # header, so that whatever is lost from now on is missed.
            os.pwrite(file, self.bits + _new_tail(), BITS_AT)
            self.show_header(file)


def _tail_of(file: int) -> bytes | None:
    """Give the end of a table; None if it is lost, and with it what else may be."""
    found = os.pread(file, 8, TAIL_AT)
    return found if found[:4] == _TAIL and len(found) == 8 else None


def _new_tail() -> bytes:
    return _TAIL + secrets.token_bytes(4)


def was_given(word: int) -> int:
    """Give the word that says that a ticket with this word has been given back."""
    return word ^ _GIVEN


def allocate(descriptor: int, size: int) -> None:
    """Give a file real blocks up to a size: what is written there later needs no room on the disk."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    missing = size - os.fstat(descriptor).st_size
    os.pwrite(descriptor, bytes(missing), size - missing)
