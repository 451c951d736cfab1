"""The states of all global random generators, as a file of plain values can hold them.

Law: a state read back is tried on generators of nobody's before it is given to the global ones, so
one that does not fit changes none of them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.errors import BadBlock
from penstock.loader.world import detect_world
from penstock.seeds import uniform

if TYPE_CHECKING:
    import torch


def gather() -> dict[str, Any]:
    """Give the states of Python's, numpy's, torch's and the current CUDA device's generator, and the rank."""
    import torch

    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    on_cuda = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if on_cuda else None,
        "rank": detect_world().dp_rank,
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomStates:
    """States of all generators, each in the form its generator takes, and tried."""

    python: tuple[Any, ...]
    numpy: tuple[Any, ...]
    cpu: torch.Tensor
    cuda: torch.Tensor | None
    rank: int

    @classmethod
    def read(cls, states: Any) -> RandomStates:
        """Take what `gather` gave, changing no global generator.

        Raises:
            BadBlock: it is something else.
        """
        import torch

        try:
            version, numbers, gauss = states["python"]
            kind, keys, position, has_gauss, cached = states["numpy"]
            read = cls(
                python=(version, tuple(numbers), gauss),
                numpy=(kind, keys.numpy().astype(np.uint32), position, has_gauss, cached),
                cpu=states["torch"],
                cuda=states["cuda"],
                rank=int(states["rank"]),
            )
            random.Random().setstate(read.python)
            np.random.RandomState().set_state(read.numpy)
            torch.Generator().set_state(read.cpu)
            if read.cuda is not None and torch.cuda.is_available():
                torch.Generator("cuda").set_state(read.cuda)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RuntimeError) as error:
            raise BadBlock(f"its random states don't fit their generators: {error}") from error
        return read

    def restore(self) -> None:
        """Set the global generators; on another rank than the one that saved, to streams derived from these."""
        import torch

        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        if self.cuda is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(self.cuda)
        rank = detect_world().dp_rank
        if rank != self.rank:
            # Ranks that shared one state would draw the same dropout masks.
            words = *self.numpy[1][:4].tolist(), *self.python[1][:4], int(torch.randint(1 << 62, ()))
            seed = uniform(torch.initial_seed(), "rank", rank, *words)
            random.seed(seed)
            np.random.seed(seed % (1 << 32))
            torch.manual_seed(seed)
