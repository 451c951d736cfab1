"""When each cached file was last used, and whether it is still the same: asked once for all that is wanted together.

    recency      a time for each entry, float64: seconds of the wall clock at its last use; 0: no file to evict
    generations  a stamp, then a number for each entry, float64: even while its file may be used, odd while it may
                 not, another after each change. The stamp changes whenever a file may be used no longer. 0: lost

Times are advice, not accounting: they are gathered and written about once a second, and if they are lost, all
files count as equally old. Generations let a process that has seen an entry once use its file again without
asking the database: it pins the file first and looks at the stamp then, and at the generation if the stamp has
changed; who takes files away changes both first and looks at pins then. Nothing is mapped: whoever truncates
these files ends no process, and costs a look into the database for each file.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import struct
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from penstock.node.disk import store_errors
from penstock.store.cache_tables import allocate

FIRST_ENTRIES = 4096
ITEM_BYTES = 8
LEAST_BATCH = 1024
MOST_GATHERED = 1 << 16
CHUNK_ENTRIES = 1 << 13
OLD = 1.0
"""Stands for a file of which is not known when it was used, and for one that should go first."""
_ITEM = struct.Struct("=d")
_UNKNOWN, _LOST = _ITEM.pack(1.0), bytes(ITEM_BYTES)


class Seen(Protocol):
    """An entry as a process saw it."""

    id: int
    generation: float


S = TypeVar("S", bound=Seen)


class Recency:
    """The times and generations of one cache folder. May be used from several threads.

    Args:
        folder: the cache's; the two files are made if they are missing.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "recency"
        self._times = self._generations = -1
        self._entries = 0
        self._queue: list[tuple[int, float]] = []
        self.reset()
        with store_errors(self._path):
            self._times = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            self._generations = os.open(folder / "generations", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._reach(FIRST_ENTRIES - 1)
        self.confirm(())

    def reset(self) -> None:
        """Begin without gathered times, as in a forked child: they are the parent's to write."""
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._gathered: dict[int, float] = {}
        self._sure: tuple[bytes, dict[int, float]] = b"", {}
        """A stamp, and even generations as they are for as long as that is the stamp."""

    def touch(self, ids: Iterable[int], at: float) -> None:
        """Record that files are used."""
        self._gathered.update(dict.fromkeys(ids, at))
        if len(self._gathered) > MOST_GATHERED:
            self.flush()

    def touch_same(self, seen: Iterable[S], at: float) -> list[S]:
        """Record that files are used, of the entries that have not changed since; give the others.

        Cost: half a microsecond, and 0.1 µs for each; where files went meanwhile, 0.7 µs for each.
        """
        if self._times < 0:
            return list(seen)
        (_, sure), gathered = self._sure_now(), self._gathered
        others: list[S] = []
        for entry in seen:
            known = sure.get(entry.id)
            if known is None:
                known = self._read(entry.id, sure)
            if known == entry.generation:
                gathered[entry.id] = at
            else:
                others.append(entry)
        if len(gathered) > MOST_GATHERED:
            self.flush()
        return others

    def unchanged(self, seen: Sequence[S]) -> tuple[bytes | None, list[bool]]:
        """Tell which entries have not changed since they were seen, and the stamp from before that was looked at.

        They have not for as long as that is the stamp; where it is None nothing can be said of later.
        """
        stamp, sure = self._sure_now()
        return stamp or None, [entry.generation == (sure.get(entry.id) or self._read(entry.id, sure)) for entry in seen]

    def stamp(self) -> bytes | None:
        """Give what changes whenever a file may be used no longer; None where that can't be said."""
        stamp = self._read_at(0)
        return None if stamp in (_LOST, _UNKNOWN) else stamp

    def generation(self, entry: int) -> float:
        """Give an entry's generation, as it is or was a moment ago."""
        if self._times < 0:
            return 1.0
        known = self._sure[1].get(entry)
        return self._read(entry, self._sure[1]) if known is None else known

    def _sure_now(self) -> tuple[bytes, dict[int, float]]:
        """Give the stamp, and generations that are known for certain at this moment; what is read is added to these."""
        stamp, sure = self._sure
        if self._read_at(0) != stamp or len(sure) > MOST_GATHERED:
            with self._turn:
                # Another dictionary: what a thread has read before this moment goes to the old one.
                stamp = self._read_at(0)
                # One that was lost may have been another in between.
                self._sure = stamp if stamp not in (_LOST, _UNKNOWN) else b"", {}
        return self._sure

    def _read(self, entry: int, sure: dict[int, float]) -> float:
        generation: float = _ITEM.unpack(self._read_at(ITEM_BYTES * (entry + 1)))[0]
        if not generation:
            # Lost: what was withdrawn since must not look like what was there before.
            return 1.0
        if not generation % 2:
            sure[entry] = generation
        return generation

    def _read_at(self, place: int) -> bytes:
        try:
            return os.pread(self._generations, ITEM_BYTES, place).ljust(ITEM_BYTES, b"\0")
        except OSError:
            # Closed meanwhile: nothing is known.
            return _UNKNOWN

    def renew(self, ids: Iterable[int], at: float) -> None:
        """Say that the files of entries may be used, from now on, and are in line to go."""
        entries = sorted(ids)
        if not entries:
            return
        # One for all: it has to differ from what each of them had before. Asked for before it is written: what is
        # withdrawn right after that leaves this dictionary behind.
        (_, sure), generation = self._sure, 2.0 * secrets.randbits(50) + 2.0
        with store_errors(self._path):
            self._reach(entries[-1])
            for first, count in _runs(entries):
                # Not gathered: what is in no line would be thought of late if this process were killed.
                os.pwrite(self._times, _ITEM.pack(at) * count, ITEM_BYTES * first)
                os.pwrite(self._generations, _ITEM.pack(generation) * count, ITEM_BYTES * (first + 1))
        sure.update(dict.fromkeys(entries, generation))

    def confirm(self, ids: Iterable[int]) -> None:
        """Give those of some entries new generations whose own are lost; they are pinned, and were ready after that."""
        with store_errors(self._path):
            if self._read_at(0) == _LOST:
                os.pwrite(self._generations, secrets.token_bytes(ITEM_BYTES), 0)
            for entry in ids:
                if entry not in self._sure[1] and self._read_at(ITEM_BYTES * (entry + 1)) == _LOST:
                    self._reach(entry)
                    self._put(entry, 2.0 * secrets.randbits(50) + 2.0)

    def withdraw(self, ids: Iterable[int], at: float = 0.0) -> None:
        """Say that the files of entries may be used no longer; they are in line to go if `at` is above 0."""
        if not (entries := list(ids)):
            return
        with store_errors(self._path):
            for entry in entries:
                self._put(entry, 1.0)
                self._gathered.pop(entry, None)
                os.pwrite(self._times, _ITEM.pack(at), ITEM_BYTES * entry)
            os.pwrite(self._generations, secrets.token_bytes(ITEM_BYTES), 0)

    def _put(self, entry: int, generation: float) -> None:
        os.pwrite(self._generations, _ITEM.pack(generation), ITEM_BYTES * (entry + 1))

    def adopt(self, ids: Iterable[int]) -> int:
        """Put those of the files that are in no line to the head of it; give how many they were."""
        lost = [entry for entry in ids if not self._time_of(entry)]
        self.touch(lost, OLD)
        return len(lost)

    def _time_of(self, entry: int) -> float:
        known = self._gathered.get(entry)
        if known is not None:
            return known
        found = os.pread(self._times, ITEM_BYTES, ITEM_BYTES * entry)
        time: float = _ITEM.unpack(found.ljust(ITEM_BYTES, b"\0"))[0]
        return time

    def next_oldest(self, count: int) -> list[int]:
        """Give the next entries in line, those that were not used for the longest time first; none when it ends."""
        found: list[int] = []
        while self._queue and len(found) < count:
            entry, time = self._queue.pop()
            # One that was used since it was put in line has a new place in it.
            if self._time_of(entry) == time:
                found.append(entry)
        return found

    def put_back(self, entries: Sequence[int]) -> None:
        """Put entries that were given, oldest first, and not needed, at the head of the line again."""
        self._queue += [(entry, self._time_of(entry)) for entry in reversed(entries)]

    def line_up(self) -> None:
        """Begin a new line, of the oldest sixteenth of all entries.

        Cost: a pass over all times, 10 ms for a million.
        """
        self.flush()
        with self._lock:
            if self._times < 0:
                # At the end of the interpreter the parts of a cache go in any order.
                self._queue = []
                return
            whole = os.pread(self._times, os.fstat(self._times).st_size, 0)
        times = np.frombuffer(whole, np.float64, len(whole) // ITEM_BYTES)
        entries = np.flatnonzero(times)
        count = min(len(entries), max(LEAST_BATCH, len(entries) // 16))
        if count < len(entries):
            entries = entries[np.argpartition(times[entries], count)[:count]]
        order = entries[np.argsort(times[entries], kind="stable")[::-1]]
        self._queue = list(zip(order.tolist(), times[order].tolist(), strict=True))

    def flush(self) -> None:
        """Write the times that have gathered; what of them can't be written is lost."""
        with self._lock:
            if self._times < 0 or not self._gathered:
                return
            gathered = list(self._gathered.items())
            with suppress(OSError), self._alone():
                self._write(np.array([one[0] for one in gathered]), np.array([one[1] for one in gathered]))
            for entry, at in gathered:
                if self._gathered.get(entry) == at:
                    self._gathered.pop(entry, None)

    def _write(self, ids: np.ndarray, times: np.ndarray) -> None:
        """Write times into the chunks of the file that they belong to."""
        self._reach(int(ids.max()))
        order = np.argsort(ids)
        ids, times = ids[order], times[order]
        cuts = (np.flatnonzero(np.diff(ids // CHUNK_ENTRIES)) + 1).tolist()
        for begin, end in zip([0, *cuts], [*cuts, len(ids)], strict=True):
            first, last = int(ids[begin]), int(ids[end - 1])
            size, at = ITEM_BYTES * (last + 1 - first), ITEM_BYTES * first
            there = np.frombuffer(bytearray(os.pread(self._times, size, at).ljust(size, b"\0")), np.float64)
            there[ids[begin:end] - first] = times[begin:end]
            os.pwrite(self._times, there.data, at)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep the times that others write meanwhile, unless one of them takes too long."""
        held = False
        with suppress(OSError):
            fcntl.flock(self._times, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        try:
            yield
        finally:
            if held:
                fcntl.flock(self._times, fcntl.LOCK_UN)

    def _reach(self, entry: int) -> None:
        """See to it that there is room on the disk for what is noted of an entry."""
        if entry >= self._entries:
            entries = max(FIRST_ENTRIES, 1 << (entry + 1).bit_length())
            with store_errors(self._path):
                allocate(self._times, ITEM_BYTES * entries)
                allocate(self._generations, ITEM_BYTES * (entries + 1))
            self._entries = entries

    def close(self) -> None:
        """Write what has gathered and close the files; from then on no entry may be used."""
        self.flush()
        self._let_go()

    def _let_go(self) -> None:
        with self._lock:
            files = self._times, self._generations
            self._times = self._generations = -1
        for file in files:
            if file >= 0:
                os.close(file)

    def __del__(self) -> None:
        if hasattr(self, "_sure"):
            self._let_go()


def _runs(entries: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Give the first and the number of each run of neighbours among entries that ascend."""
    first = last = entries[0]
    for entry in entries[1:]:
        if entry > last + 1:
            yield first, last + 1 - first
            first = entry
        last = entry
    yield first, last + 1 - first
