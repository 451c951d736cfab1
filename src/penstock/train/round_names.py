"""What the sizes and limits of rounds are called in a configuration, and what was meant where they are not.

    train.train_chunk_size, train.trainChunkSize, trainer.train_round_batches     known, wherever `MEANT` is asked
    train.train_chunk_sise, train.chunk_size_train, train.chunk_size              nearly known: said by `near_misses`
    trian.train_chunk_size, experiment.train.train_chunk_size                     known, where nobody looks: said too

Law: what is nearly one of the names changes nothing but what is said, because it may well mean something else.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
import re
import sys
import types
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any

SIZE_NAMES = ("train_chunk_size", "val_chunk_size")
LIMIT_NAMES = ("limit_train_batches", "limit_val_batches")
SECTIONS = ("train", "trainer")
# How else the four are called, whatever is between the words and however they are capitalised.
_OTHER_NAMES = {
    "train_chunk_size": ("train_round_batches",),
    "val_chunk_size": ("valid_chunk_size", "validation_chunk_size", "eval_chunk_size", "val_round_batches"),
    "limit_train_batches": (),
    "limit_val_batches": ("limit_valid_batches", "limit_validation_batches", "limit_eval_batches"),
}
# Names that do not say which partition they are for; others may use them for other things, so they are the last guess.
_BARE_NAMES = ("chunksize", "roundbatches", "roundsize")
_LEVELS = 4
"""Of nesting that are looked through for what stands in the wrong place; a configuration may hold itself."""
_NEAR = 0.85
"""Likeness of one letter wrong in twelve; `val_batch_size` and `limit_test_batches` are not that near to any."""


def plain(name: str) -> str:
    """Give the letters of a name, which are the same however it is spelled.

    >>> plain("train-chunk_size"), plain("trainChunkSize")
    ('trainchunksize', 'trainchunksize')
    """
    return name.replace("-", "").replace("_", "").lower()


MEANT = {plain(name): known for known, others in _OTHER_NAMES.items() for name in (known, *others)}
"""Which of the four is meant by the letters of a name."""


def entries(config: Any) -> list[tuple[str, Callable[[], Any]]] | None:
    """List what a configuration holds, each with a way to get it; None if it is no kind of configuration.

    Values are got one by one, because getting one of OmegaConf's may fail or look others up.
    """
    if config is None or isinstance(config, type | str | bytes | os.PathLike | Sequence) or callable(config):
        return None
    if hasattr(config, "keys") and hasattr(config, "__getitem__"):
        return [(key, partial(config.__getitem__, key)) for key in config.keys() if isinstance(key, str)]  # noqa: SIM118
    if dataclasses.is_dataclass(config):
        return [(field.name, partial(getattr, config, field.name)) for field in dataclasses.fields(config)]
    if hasattr(config, "__dict__"):
        return [(key, partial(getattr, config, key)) for key in vars(config)]
    return None


def near_misses(config: Any, given: Collection[str], *, has_sections: bool) -> list[str]:
    """Say of each number that is nearly called as one of the four, or stands where it is not looked for, what is right.

    Args:
        config: as `entries` takes it.
        given: those of the four that were found; nothing else is taken for one of these.
        has_sections: sizes stand under `train:` and not at the top level.

    Returns:
        One text for each value.
    """
    notes = []
    for parent, key, value in _numbers(_unresolved(config)):
        is_read = not parent or parent in SECTIONS
        name = MEANT.get(plain(key))
        if name is None:
            name = _nearest(key, parent, given) if is_read or _is_like_section(parent) else None
        elif is_read or name not in SIZE_NAMES:
            continue
        if name is None or name in given:
            continue
        home = "train" if name in SIZE_NAMES else "trainer"
        right = f"{home}.{name}" if has_sections or parent else name
        where = f"{parent}.{key}" if parent else key
        outer = parent.rpartition(".")[0]
        aside = f" Give resolve_rounds what is under {outer}" if outer else ""
        notes.append(f"{where}={value!r} is not known and changes nothing; did you mean {right}?{aside}")
    return notes


def _nearest(key: str, parent: str, given: Collection[str]) -> str | None:
    """Give the one of the four that a name is nearly, if any."""
    if plain(key) in _BARE_NAMES:
        # Beside a size it is something else, such as tokens per chunk of a long sequence.
        return None if set(SIZE_NAMES) & set(given) or not _is_like_section(parent) else "train_chunk_size"
    for known in _OTHER_NAMES:
        if _words(key) == _words(known):
            return known
    near = difflib.get_close_matches(plain(key), MEANT, n=1, cutoff=_NEAR)
    return MEANT[near[0]] if near else None


def _words(name: str) -> list[str]:
    return sorted(re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()))


def _is_like_section(parent: str) -> bool:
    last = parent.rpartition(".")[2].lower()
    return bool(difflib.get_close_matches(last, (*SECTIONS, "training"), n=1, cutoff=0.75))


def _unresolved(config: Any) -> Any:
    """Give OmegaConf's containers as plain ones, in which nothing is looked up; others as they are."""
    omegaconf = sys.modules.get("omegaconf")
    if omegaconf is not None and isinstance(config, omegaconf.Container):
        return omegaconf.OmegaConf.to_container(config, resolve=False)
    return config


def _numbers(config: Any, parent: str = "", level: int = 1) -> Iterator[tuple[str, str, Any]]:
    """Yield the path, name and value of what may be meant for a count: numbers, and references to them."""
    is_plain = isinstance(config, dict) or not hasattr(config, "keys")
    for path, get in entries(config) or ():
        section, _, key = f"{parent}.{path}".strip(".").rpartition(".")
        if not is_plain and MEANT.get(plain(key)) is None and _nearest(key, section, ()) is None:
            # Whatever getting it costs, or fails with.
            continue
        value = _unresolved(get())
        if isinstance(value, dict | argparse.Namespace | types.SimpleNamespace) or dataclasses.is_dataclass(value):
            if level < _LEVELS:
                yield from _numbers(value, f"{parent}.{path}".strip("."), level + 1)
        elif _may_count(value):
            yield section, key, value


def _may_count(value: Any) -> bool:
    if isinstance(value, str):
        return value.isdigit() or value.startswith("${")
    return isinstance(value, int | float) and not isinstance(value, bool)
