"""One chain of transforms: sample → samples, each with randomness of its own.

Whoever runs transforms runs them here, so that a sample asked for by hand and the same sample in
a batch go one way.

    sample ──transform──▶ samples ──transform(sample, rng(seed, stream, epoch, id, place))──▶ samples
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from penstock.seeds import rng


class Chain:
    """Transforms, applied in turn.

    Args:
        transforms: each takes a sample and returns a sample, a list or generator of samples (fan-out), or None (the
            sample is left out). One that has a parameter `rng` is given a `numpy.random.Generator` keyed to (seed,
            stream, epoch, id, its place in the chain).
        seed: key of their randomness.
        stream: name of their randomness, so that two chains of one sample draw different numbers.

    >>> Chain([lambda x: [x, -x], lambda x: x + 1 if x else None])(1, epoch=0, id_=7)
    [2, 0]
    """

    def __init__(self, transforms: Sequence[Callable[..., Any]], *, seed: int = 0, stream: str = "transform") -> None:
        self._links = [(transform, takes(transform, "rng")) for transform in transforms]
        self._only = self._links[0][0] if len(self._links) == 1 and not self._links[0][1] else None
        """The transform, where there is but one and it draws no numbers: the way that most samples go."""
        self._seed = seed
        self._stream = stream

    def __len__(self) -> int:
        return len(self._links)

    def __call__(self, sample: Any, epoch: int, id_: int) -> list[Any]:
        """Run the chain on one sample: none, one or several come out.

        Raises:
            Exception: whatever a transform raises.
        """
        if self._only is None:
            return self._run(sample, epoch, id_)[0]
        result = self._only(_own(sample))
        return [result] if type(result) is dict else _several(result)[0]

    def one(self, sample: Any, epoch: int, id_: int) -> Any:
        """Run the chain on a sample asked for by itself: one comes out, a list if a transform gave several, or None.

        Raises:
            Exception: whatever a transform raises.
        """
        samples, fans_out = self._run(sample, epoch, id_)
        return samples if fans_out else samples[0] if samples else None

    def _run(self, sample: Any, epoch: int, id_: int) -> tuple[list[Any], bool]:
        """Give what comes out, and whether a transform gave several at a time, however many they were."""
        samples: list[Any] = [_own(sample)] if self._links else [sample]
        fans_out = False
        for place, (transform, takes_rng) in enumerate(self._links):
            keyed = {"rng": rng(self._seed, self._stream, epoch, id_, place)} if takes_rng else {}
            ready, samples = samples, []
            for one in ready:
                result = transform(one, **keyed)
                if type(result) is dict:
                    samples.append(result)
                    continue
                several, are_several = _several(result)
                samples += several
                fans_out |= are_several
        return samples, fans_out


def _several(result: Any) -> tuple[list[Any], bool]:
    """List what a transform gave, and tell whether it gave several at a time, however many they were."""
    if isinstance(result, list | Iterator):
        return list(result), True
    return ([] if result is None else [result]), False


def takes(function: Callable[..., Any], name: str) -> bool:
    """Whether a callable has a parameter of that name."""
    try:
        return name in inspect.signature(function).parameters
    except (ValueError, TypeError):  # built-ins without a signature
        return False


def _own(sample: Any) -> Any:
    """Give a transform arrays of its own, to change in place: those of `fetch` may share memory, as labels do."""
    if not isinstance(sample, dict):
        return sample
    own = {**sample}
    for name, value in sample.items():
        if isinstance(value, np.ndarray) and value.base is not None:
            own[name] = value.copy()
    return own
