"""Any frames of many sound files, mono and at one rate, through files that stay open.

A read costs the frames it is for: a seek, and in a compressed file what its codec needs before them (see
`transforms.audio_soundfile`). Resampling reads a little on either side, from a place where both rates have a frame at
the same time: parts joined are the file resampled whole, within 1e-6 of full scale (soxr computes in float32).
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from penstock.datasets.audio_files import SoundFiles
from penstock.errors import BadMedia, ObjectChanged
from penstock.transforms.audio_resample import num_resampled, resample, span
from penstock.transforms.audio_source import AudioSource, mean_of_channels, open_audio

MAX_OPEN = 64
"""Files that stay open while nobody reads them."""


class SoundReader:
    """Reads frames of sound files, from any number of threads.

    Args:
        files: the files.
        target_sr: frames a second of what is read. None: each file's own.

    Attributes:
        num_frames: int64 [files], frames of each file as it is read.
    """

    def __init__(self, files: SoundFiles, target_sr: int | None) -> None:
        self.files = files
        self.target_sr = target_sr
        self.num_frames = files.num_frames
        if target_sr is not None:
            counts = zip(files.num_frames.tolist(), files.sample_rates.tolist(), strict=True)
            self.num_frames = np.array([num_resampled(frames, rate, target_sr) for frames, rate in counts], np.int64)
        self._open = OpenSounds(files)

    def read_into(self, file: int, start: int, out: np.ndarray) -> None:
        """Read frames [start, start + len(out)) of a file into float32 [n].

        Raises:
            BadMedia: they can't be decoded, or are not there.
            ObjectChanged: the file is another one than when its header was read.
            ObjectMissing, StoreError: it can't be opened any more.
        """
        rate = int(self.files.sample_rates[file])
        new_rate = self.target_sr or rate
        stop = start + len(out)
        first, last, skip = span(start, stop, rate, new_rate)
        last = min(last, int(self.files.num_frames[file]))
        with self._open.borrow(file) as source:
            data = source.read(first, last)
        data = resample(mean_of_channels(data), rate, new_rate)[skip : skip + len(out)]
        if len(data) < len(out):
            path = self.files.path(file)
            raise BadMedia(f"{path} ends before frame {stop:,} at {new_rate} Hz", path=path, reason="truncated")
        out[:] = data

    def close(self) -> None:
        """Close the files that are open; reading opens them again."""
        self._open.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return SoundReader, (self.files, self.target_sr)


class OpenSounds:
    """Open sounds, each lent to one reader at a time; the ones last used stay open.

    Args:
        files: the files.
    """

    def __init__(self, files: SoundFiles) -> None:
        self._files = files
        self._idle: OrderedDict[AudioSource, int] = OrderedDict()
        self._of_file: dict[int, list[AudioSource]] = {}
        self._lock = threading.Lock()
        self._process = os.getpid()
        weakref.finalize(self, _close_all, self._idle)

    @contextmanager
    def borrow(self, file: int) -> Iterator[AudioSource]:
        """Lend an open sound; one whose reading fails is closed."""
        source = self._take(file)
        try:
            yield source
        except BaseException:
            source.close()
            raise
        self._give_back(file, source)

    def close(self) -> None:
        """Close those that nobody reads."""
        with self._lock:
            self._of_file.clear()
            _close_all(self._idle)

    def _take(self, file: int) -> AudioSource:
        if self._process != os.getpid():
            self._leave_to_parent()
        with self._lock:
            if sources := self._of_file.get(file):
                source = sources.pop()
                del self._idle[source]
                return source
        return self._opened(file)

    def _give_back(self, file: int, source: AudioSource) -> None:
        with self._lock:
            self._idle[source] = file
            self._of_file.setdefault(file, []).append(source)
            if len(self._idle) <= MAX_OPEN:
                return
            oldest, its_file = self._idle.popitem(last=False)
            self._of_file[its_file].remove(oldest)
        oldest.close()

    def _opened(self, file: int) -> AudioSource:
        path = self._files.path(file)
        source = open_audio(path)
        found = (source.sample_rate, source.num_frames)
        known = (int(self._files.sample_rates[file]), int(self._files.num_frames[file]))
        if found != known:
            source.close()
            raise ObjectChanged(
                f"{path} has {found[1]:,} frames at {found[0]} Hz; when this dataset was made it had {known[1]:,} at "
                f"{known[0]} Hz: make the dataset anew"
            )
        return source

    def _leave_to_parent(self) -> None:
        """Let go of what a fork copied: its files share their positions with the parent's."""
        self._lock = threading.Lock()
        self._of_file.clear()
        _close_all(self._idle)
        self._process = os.getpid()


def _close_all(sources: OrderedDict[AudioSource, int]) -> None:
    while sources:
        sources.popitem()[0].close()
