"""The sounds of a folder: which files they are, in which order, and what their headers say.

    folder ──list──▶ sound files ──natural order──▶ [range of ratios] ──headers──▶ SoundFiles

Files are found in the folder and the folders below it. What is hidden (a name that begins with a dot) and what has not
the extension of a sound is passed over. Links to files are followed, links to folders are not.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from penstock.errors import BadMedia, ConfigError, ObjectMissing, PenstockError, StoreError
from penstock.transforms.audio_source import open_audio

EXTENSIONS = frozenset(
    ["wav", "wave", "flac", "ogg", "oga", "opus", "mp3", "aif", "aiff", "aifc", "au", "caf", "w64", "rf64"]
)
"""Of the files that libsndfile reads."""

_THREADS = 8
_FILES_A_TURN = 32
_DIGITS = re.compile("([0-9]+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class SoundFiles:
    """Sound files of one folder, in order, with what their headers say."""

    folder: Path
    names: tuple[str, ...]
    """Paths below the folder, with slashes."""
    sample_rates: np.ndarray
    """int64 [files]."""
    num_frames: np.ndarray
    """int64 [files], each at its own rate."""

    def path(self, file: int) -> str:
        """Where a file is."""
        return str(self.folder / self.names[file])


def list_sounds(folder: str | os.PathLike[str]) -> list[str]:
    """List the sound files below a folder in natural order, as paths below it: track 2 comes before track 10.

    Folders are compared name by name, numbers in names as numbers, whatever else as text.

    Raises:
        ConfigError: it is no folder, or holds no sounds.
        ObjectMissing: there is no such folder.
        StoreError: it can't be listed.
    """
    text = os.fspath(folder)
    if "://" in text:
        raise ConfigError(f"path must be a folder on this machine, got {text!r}: fetch its files first")
    if not os.path.isdir(text):
        if os.path.exists(text):
            raise ConfigError(f"path must be a folder of sound files, {text} is a file: give the folder it is in")
        raise ObjectMissing(f"there is no folder {text}")
    names = sorted(_sounds_below(text), key=natural_key)
    if not names:
        raise ConfigError(f"{text} has no sound files, in it or below: names that end in {_shown_extensions()}")
    return names


def natural_key(name: str) -> tuple[object, ...]:
    """Give what a path is compared by, so that numbers count as numbers.

    >>> sorted(["a10.wav", "a9.wav", "a/1.wav", "b.wav"], key=natural_key)
    ['a/1.wav', 'a9.wav', 'a10.wav', 'b.wav']
    """
    # Text and numbers alternate, text first: like is always compared with like.
    parts = (_DIGITS.split(part) for part in name.split("/"))
    return (*(tuple(int(text) if j % 2 else text for j, text in enumerate(part)) for part in parts), (name,))


def take_range(names: Sequence[str], ratio_min: float, ratio_max: float, folder: str) -> list[str]:
    """Take the files from one share of them to another: of n files, those from floor(ratio · n) on.

    Raises:
        ConfigError: the range is none of [0, 1], or no file lies in it.

    >>> take_range(["a", "b", "c", "d"], 0.25, 0.75, "x")
    ['b', 'c']
    """
    for name, ratio in (("ratio_min", ratio_min), ("ratio_max", ratio_max)):
        if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio <= 1:
            raise ConfigError(f"{name} must be a number from 0 to 1, got {ratio!r}")
    if ratio_min >= ratio_max:
        raise ConfigError(f"ratio_min must be below ratio_max, got {ratio_min} and {ratio_max}")
    # A product such as 0.29 · 100 is a little less than it should be.
    start, stop = (math.floor(ratio * len(names) + 1e-9) for ratio in (ratio_min, ratio_max))
    if start == stop:
        raise ConfigError(
            f"no file of the {len(names)} in {folder} lies between ratio_min={ratio_min} and ratio_max={ratio_max}: "
            "widen the range, or add files"
        )
    return list(names[start:stop])


def read_headers(folder: str | os.PathLike[str], names: Sequence[str]) -> SoundFiles:
    """Read what the headers of sound files say: each file is opened once, several at a time.

    Raises:
        BadMedia, StoreError: the first of the files that can't be read; says how many there are.

    Cost: 0.05 to 0.5 ms a file that is in memory, by its format; of a file, its first and sometimes its last bytes.
    """
    base = Path(folder).absolute()
    turns = [names[start : start + _FILES_A_TURN] for start in range(0, len(names), _FILES_A_TURN)]
    if len(turns) == 1:
        found = _headers(base, turns[0])
    else:
        with ThreadPoolExecutor(min(_THREADS, len(turns)), thread_name_prefix="penstock-headers") as threads:
            found = list(chain.from_iterable(threads.map(_headers, [base] * len(turns), turns)))
    errors = [header for header in found if isinstance(header, PenstockError)]
    if errors:
        if len(errors) > 1:
            errors[0].add_note(f"{len(errors) - 1} more of the {len(names)} files in {base} cannot be read")
        raise errors[0]
    headers = np.array(found, np.int64).reshape(-1, 2)
    rates, frames = np.ascontiguousarray(headers.T)
    return SoundFiles(folder=base, names=tuple(names), sample_rates=rates, num_frames=frames)


def _headers(base: Path, names: Sequence[str]) -> list[tuple[int, int] | PenstockError]:
    return [_header(str(base / name)) for name in names]


def _header(path: str) -> tuple[int, int] | PenstockError:
    """Give the rate and the number of frames of a sound, or the error that says why not."""
    try:
        source = open_audio(path)
    except ConfigError:
        raise  # A package is missing: so it is for all of them.
    except PenstockError as error:
        return error
    rate, frames = source.sample_rate, source.num_frames
    source.close()
    if not frames:
        what = "has no frames" if frames == 0 else "does not say how many frames it has"
        return BadMedia(f"{path} {what}", path=path, reason="empty" if frames == 0 else "no-length")
    return rate, frames


def _sounds_below(folder: str) -> Iterator[str]:
    """Yield the paths of the sound files below a folder."""
    waiting = [""]
    while waiting:
        below = waiting.pop()
        try:
            with os.scandir(os.path.join(folder, below)) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(f"{below}{entry.name}/")
                    elif os.path.splitext(entry.name)[1][1:].lower() in EXTENSIONS and _is_file(entry):
                        yield f"{below}{entry.name}"
        except OSError as error:
            raise StoreError(f"{os.path.join(folder, below)} cannot be listed: {error.strerror or error}") from error


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a file, or a link to one; one whose file is gone is to be missed, not passed over."""
    return entry.is_file() or (entry.is_symlink() and not entry.is_dir())


def _shown_extensions() -> str:
    return " ".join(sorted(f".{extension}" for extension in EXTENSIONS))
