"""What a configuration says of rounds: their sizes, and which limits are left to the trainer.

    train:                                                train:
      train_chunk_size: 2000   either of these two          limit_train_batches: 2000   no size: the limits hold
      val_chunk_size: 200      makes rounds               trainer:
    trainer:                                                limit_val_batches: 200
      limit_train_batches: 500     overridden, said once

Law: only a size makes rounds, and where there are rounds no limit applies. What a configuration says in
another place or by another name is taken as it is meant and a warning tells how to write it, or it is refused; of
what is only nearly one of the names a warning asks whether it was meant.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from penstock.errors import ConfigError
from penstock.plan.rounds import check_round_size
from penstock.train.round_names import LIMIT_NAMES, MEANT, SECTIONS, SIZE_NAMES, entries, near_misses, plain
from penstock.types import check_int


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundSizes:
    """Sizes of rounds in batches per device, and the limits that are left to the trainer.

    >>> RoundSizes(train_chunk_size=2000).enabled, RoundSizes(limit_train_batches=2000).enabled
    (True, False)
    """

    train_chunk_size: int | None = None
    """Batches of a training round. None with `enabled`: a round is the whole partition."""
    val_chunk_size: int | None = None
    """Batches of a validation round. None with `enabled`: a round is the whole partition."""
    limit_train_batches: int | float | None = None
    """What `limit_train_batches` of the trainer must be; None, where none is given or a size overrides it: no limit."""
    limit_val_batches: int | float | None = None
    """What `limit_val_batches` of the trainer must be; None as above."""
    warnings: tuple[str, ...] = ()
    """What was warned of."""

    @property
    def enabled(self) -> bool:
        """Tell whether there are rounds: either of the sizes is given."""
        return self.train_chunk_size is not None or self.val_chunk_size is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    """A value as it stands in a configuration."""

    name: str
    """Which of the four is meant."""
    key: str
    section: str | None
    """None: at the top level."""
    value: Any

    @property
    def where(self) -> str:
        return self.key if self.section is None else f"{self.section}.{self.key}"


def check_chunk_size(name: str, size: Any) -> int | None:
    """Return the size of a round in batches, or None if it is not given.

    Raises:
        ConfigError: it is no integer from 1 to 2**62, the bound of rounds.
    """
    if callable(size):
        raise ConfigError(
            f"{name} is a number; where a policy decides how long rounds are, make the loader yourself: "
            "StreamingDataLoader(…, round_batches=policy), under Lightning with RoundsCallback(report=…)"
        )
    return None if size is None else check_round_size(name, size)


def resolve_rounds(config: Any) -> RoundSizes:
    """Read the sizes of rounds, and the limits they override, from a configuration of any kind.

    Sizes stand under `train:`, limits under `trainer:`, or all of them at the top level of a configuration that has
    neither section, as argparse leaves them. None is as good as not given.

    Args:
        config: a dict or any other mapping (OmegaConf's too), an `argparse.Namespace` or any other plain object, a
            dataclass; with values or such objects in it.

    Warns:
        UserWarning: limits are overridden by a size (one warning, however many); a value stands in another place than
            the documented one or has another name; one nearly has one of the names, or stands where nobody looks, and
            changes nothing. The same texts are in the answer's `warnings`.

    Raises:
        ConfigError: a size is no integer from 1 to 2**62; a limit that would hold is neither a count nor a share;
            two places contradict each other; config is none of these kinds. Names the key.

    >>> resolve_rounds({"train": {"train_chunk_size": 2000}}).enabled
    True
    >>> resolve_rounds({"trainer": {"limit_train_batches": 2000}}) == RoundSizes(limit_train_batches=2000)
    True
    """
    found, sections = _find(config)
    sizes = [at for at in found if at.name in SIZE_NAMES]
    limits = [at for at in found if at.name in LIMIT_NAMES]
    values = _agreed(sizes, check_chunk_size)
    notes = _misplaced(sizes, "train" if sections else None)
    if not values:
        values = _agreed(limits, _check_limit)
        notes += _misplaced(limits, "trainer" if sections else None)
    # A limit of 1.0, which many configurations spell out, is none.
    elif overridden := [at for at in limits if not (isinstance(at.value, float) and at.value == 1.0)]:
        by = " and ".join(at.where for at in sizes)
        what = ", ".join(f"{at.where}={at.value!r}" for at in overridden)
        notes.append(f"{what}: ignored, because {by} makes rounds over the whole of both partitions; leave it out")
    notes += near_misses(config, {at.name for at in found}, has_sections=sections)
    for note in notes:
        warnings.warn(note, UserWarning, stacklevel=2)
    return RoundSizes(**values, warnings=tuple(notes))


def _find(config: Any) -> tuple[list[_Found], bool]:
    """Find every value that is given, and tell whether the configuration has sections."""
    found: list[_Found] = []
    sections = False
    top = entries(config)
    if top is None:
        raise ConfigError(
            f"a configuration must be a mapping, a namespace or a dataclass, got {type(config).__name__}: "
            "read a file first, for example with OmegaConf.load or yaml.safe_load"
        )
    for key, get in top:
        section, _, rest = key.rpartition(".")
        if section in SECTIONS:
            # `--train.val_chunk_size`, as command lines flatten sections.
            sections = True
            found += _given(section, rest, get)
        elif key in SECTIONS and (inside := entries(get())) is not None:
            sections = True
            for name, value in inside:
                found += _given(key, name, value)
        else:
            found += _given(None, key, get)
    return found, sections


def _given(section: str | None, key: str, get: Callable[[], Any]) -> Iterator[_Found]:
    """Yield a value if it is one of the four and is given; others are not even looked at."""
    if (name := MEANT.get(plain(key))) is not None and (value := get()) is not None:
        yield _Found(name=name, key=key, section=section, value=value)


def _agreed(found: list[_Found], check: Callable[[str, Any], Any]) -> dict[str, Any]:
    """Check values, and that several of one name are the same."""
    values: dict[str, Any] = {}
    first: dict[str, _Found] = {}
    for at in found:
        value = check(at.where, at.value)
        before = first.setdefault(at.name, at)
        if value != values.setdefault(at.name, value):
            raise ConfigError(
                f"{before.where} is {before.value!r} and {at.where} is {at.value!r}: leave one of the two"
            )
    return values


def _misplaced(found: list[_Found], home: str | None) -> list[str]:
    """Say of each value that is not where, or not called as, the documentation says, how to write it."""
    return [
        f"{at.where} is taken for {right}: write {right}"
        for at in found
        if at.where != (right := at.name if home is None else f"{home}.{at.name}")
    ]


def _check_limit(name: str, value: Any) -> int | float:
    """Check a limit as Lightning means it: an integer counts batches, a float is a share of them."""
    if isinstance(value, float) and 0 <= value <= 1:
        return value
    if isinstance(value, float | str):
        raise ConfigError(f"{name} must be a number of batches or a share from 0.0 to 1.0, got {value!r}")
    return check_int(name, value, minimum=0)
