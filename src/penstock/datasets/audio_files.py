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
from typing import Literal

import numpy as np

from penstock.errors import BadMedia, ConfigError, ObjectMissing, PenstockError, StoreError, reason_of
from penstock.transforms.audio_source import open_audio
from penstock.types import check_number

EXTENSIONS = frozenset(
    ["wav", "wave", "flac", "ogg", "oga", "opus", "mp3", "aif", "aiff", "aifc", "au", "caf", "w64", "rf64"]
)
"""Of the files that libsndfile reads."""

_THREADS = 8
_FILES_A_TURN = 32
_SHOWN = 10
_DIGITS = re.compile("([0-9]+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class BrokenSound:
    """A file that has a sound's name and is none."""

    name: str
    """Path below the folder, with slashes."""
    reason: str
    """What it is counted under: that of its `BadMedia` ("not-audio", "truncated", "empty", …), or "ObjectMissing"."""
    message: str


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
    broken: tuple[BrokenSound, ...] = ()
    """Those that were left out."""

    def path(self, file: int) -> str:
        """Where a file is."""
        return str(self.folder / self.names[file])

    def among(self, names: Sequence[str]) -> SoundFiles:
        """Give those of the files, and of the broken ones, that have these names."""
        wanted = set(names)
        chosen = np.array([file for file, name in enumerate(self.names) if name in wanted], np.int64)
        return SoundFiles(
            folder=self.folder,
            names=tuple(self.names[file] for file in chosen),
            sample_rates=self.sample_rates[chosen],
            num_frames=self.num_frames[chosen],
            broken=tuple(one for one in self.broken if one.name in wanted),
        )


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
        check_number(name, ratio, maximum=1)
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


def read_headers(
    folder: str | os.PathLike[str], names: Sequence[str], on_error: Literal["raise", "skip"] = "raise"
) -> SoundFiles:
    """Read what the headers of sound files say: each file is opened once, several at a time.

    Args:
        folder: where the files are.
        names: their paths below it.
        on_error: files that are no sounds, or not there, are refused all at once ("raise"), or left out ("skip").

    Raises:
        BadMedia, StoreError: files can't be read; says how many, and of the first ten what is wrong. What this process
            may not read, or the disk can't, is refused in any case: another process might have it.

    Cost: 0.05 to 0.5 ms a file that is in memory, by its format; of a file, its first and sometimes its last bytes.
    """
    base = Path(folder).absolute()
    turns = [names[start : start + _FILES_A_TURN] for start in range(0, len(names), _FILES_A_TURN)]
    if len(turns) == 1:
        found = _headers(base, turns[0])
    else:
        with ThreadPoolExecutor(min(_THREADS, len(turns)), thread_name_prefix="penstock-headers") as threads:
            found = list(chain.from_iterable(threads.map(_headers, [base] * len(turns), turns)))
    errors = {name: header for name, header in zip(names, found, strict=True) if isinstance(header, PenstockError)}
    final = [error for error in errors.values() if on_error == "raise" or not _is_broken(error)]
    if final:
        raise _refusal(base, len(names), final, on_error)
    headers = np.array([header for header in found if not isinstance(header, PenstockError)], np.int64).reshape(-1, 2)
    rates, frames = np.ascontiguousarray(headers.T)
    return SoundFiles(
        folder=base,
        names=tuple(name for name in names if name not in errors),
        sample_rates=rates,
        num_frames=frames,
        broken=tuple(
            BrokenSound(name=name, reason=reason_of(error), message=str(error)) for name, error in errors.items()
        ),
    )


def refuse_none_left(files: SoundFiles) -> None:
    """Raise BadMedia if all the files are broken."""
    if not files.names:
        messages = [one.message for one in files.broken]
        what = f"none of the {len(messages):,} sound files in {files.folder} can be read"
        raise BadMedia(_listed(what, messages), path=str(files.folder), reason=files.broken[0].reason)


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


def _is_broken(error: PenstockError) -> bool:
    """Whether a file is no sound for anyone, and not only for this process, now."""
    return isinstance(error, BadMedia | ObjectMissing)


def _refusal(base: Path, count: int, errors: Sequence[PenstockError], on_error: str) -> PenstockError:
    """Make one error of those of several files."""
    text = _listed(
        f"{len(errors):,} of the {count:,} sound files in {base} cannot be read", [str(one) for one in errors]
    )
    if on_error == "skip":
        text += '\non_error="skip" leaves out what is no sound; these may be, so see that they can be read'
    elif any(_is_broken(error) for error in errors):
        text += '\nWrite them again, take them away, or give on_error="skip", which leaves out those that are no sound'
    bad = next((error for error in errors if isinstance(error, BadMedia)), None)
    return BadMedia(text, path=bad.path, reason=bad.reason) if bad else type(errors[0])(text)


def _listed(what: str, messages: Sequence[str]) -> str:
    """Write a line for each of the first messages, and how many there are more."""
    more = [f"and {len(messages) - _SHOWN:,} more"] if len(messages) > _SHOWN else []
    return "\n  ".join([f"{what}:", *messages[:_SHOWN], *more])


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
