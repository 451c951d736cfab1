"""The law of rounds: stretches of one stream, as long as they say, over when their last batch has been handed out."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import numpy as np

from penstock.testing.comparing import expect_same, expect_same_batches
from penstock.testing.laws import IdsOf, RanksInStep
from penstock.types import World


def check_rounds(
    make_loader: Callable[[World], Any],
    num_samples: int,
    *,
    rounds: int = 6,
    world_sizes: Sequence[int] = (1, 2, 3),
    ids_of: IdsOf | None = None,
) -> None:
    """Check that rounds are as long as `len` says, move with their last batch, resume anywhere, and keep cycles whole.

    A loader in rounds gives the rest of its round when it is iterated, and says with `round` and `batch_in_round` where
    it stands. `iter()` moves nothing; a state taken after a round's last batch belongs to the next round; and one taken
    after any batch gives exactly the rest.

    Args:
        make_loader: makes the loader of one rank, afresh each time. With boundary "carry", "short" or "pad": "drop"
            leaves samples out.
        num_samples: samples in a cycle.
        rounds: how many are read; at least a cycle of them should be.
        world_sizes: numbers of ranks to try.
        ids_of: batch → ids of its samples. None takes those of `loader.batch_info`, if the batch is what the samples
            of `loader.dataset` of these ids make; give it if the loader has a transform or a collate_fn.
    """
    with closing(make_loader(World())) as loader:
        states, batches = _read(loader, rounds)
    for place, state in enumerate(states):
        with closing(make_loader(World())) as loader:
            loader.load_state_dict(json.loads(json.dumps(state)))
            where = f"rounds: saved after batch {place}"
            expect_same(
                {name: state[name] for name in ("round", "batch")},
                {"round": loader.round, "batch": loader.batch_in_round},
                f"{where}, where it says that it stands",
            )
            rest = list(itertools.islice(_stream(loader), min(len(batches) - place, 2 * len(loader) + 1)))
            expect_same_batches(batches[place : place + len(rest)], rest, where, start=place)
    for size in world_sizes:
        with RanksInStep(make_loader, size, ids_of) as world:
            found = list(itertools.chain.from_iterable(world.read() for _ in range(rounds)))
        for start in range(0, len(found) - num_samples + 1, num_samples):
            cycle = np.sort(np.array(found[start : start + num_samples], np.int64))
            missing = np.setdiff1d(np.arange(num_samples), cycle)
            assert not missing.size, (
                f"rounds: cycle {start // num_samples} on {size} ranks lacks {missing.size} samples, and so has others "
                f"twice: {missing[:8].tolist()}"
            )
        assert len(found) >= num_samples, f"rounds: {rounds} of them are no whole cycle, so none was compared"


def _read(loader: Any, rounds: int) -> tuple[list[dict[str, Any]], list[Any]]:
    """Read rounds, holding the loader to what it says of itself; give the state before each batch, and the batches."""
    states: list[dict[str, Any]] = []
    batches: list[Any] = []
    for number in range(rounds):
        length, before = len(loader), loader.state_dict()
        for _ in range(5):
            iter(loader)
        expect_same(before, loader.state_dict(), f"rounds: iter() alone moved the loader in round {number}")
        step = -1
        for step, batch in enumerate(loader):
            states.append(before)
            batches.append(batch)
            before = loader.state_dict()
            is_over = step + 1 == length
            expected = {"round": number + is_over, "batch": 0 if is_over else step + 1}
            found = {name: before.get(name) for name in expected}
            expect_same(expected, found, f"rounds: the state after batch {step} of round {number} of {length} batches")
        assert step + 1 == length, f"rounds: round {number} has {step + 1} batches, len said {length}"
    return states, batches


def _stream(loader: Any) -> Any:
    """Yield batches through rounds without end."""
    while True:
        yield from loader
