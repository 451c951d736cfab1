"""MultiStreamDataLoader: batches of several datasets by turns, each with settings of its own.

schedule ──pick──▶ group ──rank──▶ stream ──▶ rounds of batches, tagged with their stream
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from penstock.datasets.mix import stream_seed
from penstock.datasets.streams import Streams
from penstock.errors import ConfigError
from penstock.loader.recipe import Recipe, each_epoch
from penstock.loader.running import Lanes, Running
from penstock.loader.scheduled import Scheduled, StreamsRecipe
from penstock.loader.settings import (
    build_order,
    check_collate,
    check_timeout,
    check_transforms,
    check_workers,
    choose_policy,
    choose_prefetch,
    choose_shuffle,
)
from penstock.loader.stats import BatchInfo
from penstock.loader.stream_options import Mixing, StreamOptions, group_streams, pair_streams, summed
from penstock.loader.world import WorldOnce
from penstock.plan.order import Order
from penstock.plan.plan import Share
from penstock.plan.schedule import Kind, Schedule
from penstock.types import World, check_int


class StreamBatch(dict[str, Any]):
    """A batch that is a dict, with tags of the stream it is of."""

    stream_name: str
    """Name of the stream."""
    num_accum_rounds_left: int
    """Batches of the same pick that are still to come: 0 with the last, the one after which to step."""
    data_type: str | None
    """The dataset's `data_type`, if it has one."""


class StreamBatchList(list[Any]):
    """A batch that is a list, with the tags of a StreamBatch."""

    stream_name: str
    num_accum_rounds_left: int
    data_type: str | None


class MultiStreamDataLoader(Running):
    """Batches of several streams by turns, without end, in exact proportions.

    A pick chooses a stream by `schedule` and gives its `num_accum_rounds` next batches. Each batch carries the tags
    `.stream_name`, `.num_accum_rounds_left` and `.data_type`: dicts come as StreamBatch, which is a dict; tensors
    and objects are given them as attributes. Every stream goes through epochs of its own, each in another order, the
    last batch of one being filled from the next. To mix streams inside of batches, see `penstock.mix`; a mix may be
    a stream.

    Args:
        datasets: name → dataset, or a list of them in the order of `stream_opts`; any that a StreamingDataLoader takes.
        stream_opts: StreamOptions of each stream.
        schedule: the order of picks in a meta-iteration, which has as many picks as the ratios' whole numbers have in
            sum: "consecutive" (counts 2, 3, 4 → 001112222), "consecutive_interleaved" (→ 012012122),
            "fixed_random_order" (drawn once), "random_order" (another in each), "random" (the same, with a key of its
            own). Whole ratios are the counts; others become whole numbers to six decimals (0.4, 0.6 → 2, 3).
        mixing: "no_mixing": all ranks see the same stream at a step. "mix_all": every rank draws its own. "custom": all
            ranks see one group, in which every rank draws its own; see `StreamOptions.mixing_group_id`.
        num_workers: threads or processes that work ahead, for all streams together; 0 works in the trainer's thread.
        shuffle_seed: key of all randomness; None: streams are in stored order unless they say otherwise.
        worker_type: "thread", "process", or "auto": processes if a dataset has no `fetch`.
        prefetch: batches prepared ahead. None: the datasets' `prefetch_tickets`, else two per worker.
        pin_memory: copy batches to pinned memory; only where there is CUDA.
        device: copy batches there.
        world: this process's place. None detects it at first use. Tensor- and pipeline-parallel
            peers read the same plan.
        timeout: seconds a batch of a worker may take.

    Raises:
        ConfigError: an argument cannot work, or contradicts another.

    >>> from penstock import StreamOptions
    >>> streams = [
    ...     StreamOptions(name="even", ratio=1, batch_gpu=2),
    ...     StreamOptions(name="odd", ratio=2, batch_gpu=3),
    ... ]
    >>> loader = MultiStreamDataLoader([[0, 2, 4], [1, 3, 5]], streams, schedule="consecutive", shuffle_seed=None)
    >>> [(batch.stream_name, batch.tolist()) for _, batch in zip(range(3), loader)]
    [('even', [0, 2]), ('odd', [1, 3, 5]), ('odd', [1, 3, 5])]
    """

    def __init__(
        self,
        datasets: Mapping[str, Any] | Sequence[Any],
        stream_opts: Sequence[StreamOptions],
        *,
        schedule: Kind = "fixed_random_order",
        mixing: Mixing = "no_mixing",
        num_workers: int | Literal["auto"] = 0,
        shuffle_seed: int | None = 42,
        worker_type: Literal["auto", "thread", "process"] = "auto",
        prefetch: int | None = None,
        pin_memory: bool = False,
        device: Any = None,
        world: World | None = None,
        timeout: float = 300.0,
    ) -> None:
        options, named = pair_streams(datasets, stream_opts)
        if shuffle_seed is not None:
            check_int("shuffle_seed", shuffle_seed, minimum=0)
        if world is not None and not isinstance(world, World):
            raise ConfigError(f"world must be a penstock.World, got {world!r}")
        seed = shuffle_seed or 0
        streams = Streams(named)
        made = [_prepared(streams, number, one, shuffle_seed) for number, one in enumerate(options)]
        groups = group_streams(options, mixing)
        ratios = {name: summed([options[number].ratio for number in members]) for name, members in groups.items()}
        draws = [
            Schedule({options[number].name: options[number].ratio for number in members}, schedule, seed=seed)
            for members in groups.values()
        ]
        place = WorldOnce(world)
        self._options = options
        self._scheduled = Scheduled(
            streams,
            options,
            [order for _, order in made],
            schedule=Schedule(ratios, schedule, seed=seed),
            groups=list(groups.values()),
            draws=draws,
            seed=seed,
            world=place,
        )
        workers, kind = check_workers(streams, num_workers, worker_type)
        # Used by engine and lanes in a Recipe's place.
        recipe: Any = StreamsRecipe(streams, [recipe for recipe, _ in made])
        super().__init__(
            streams,
            recipe,
            self._scheduled,
            world=place,
            lane=Lanes(workers=workers, kind=kind, ahead=choose_prefetch(prefetch, streams, workers)),
            pin_memory=pin_memory,
            device=device,
            timeout=check_timeout(timeout),
        )

    def __repr__(self) -> str:
        return f"MultiStreamDataLoader({self._assignment.description})"

    def __iter__(self) -> Iterator[Any]:
        """Iterate without end, from where the schedule stands; nothing happens before the first `next`."""
        return self._batches()

    @property
    def batch_info(self) -> BatchInfo:
        """What the last batch handed out was made of: the ids and the epoch are its stream's own, `start` is its round.

        Raises:
            LoaderClosed: none has been handed out yet.
        """
        info = super().batch_info
        first = self.dataset.firsts[self.dataset.stream_of(int(info.sample_ids[0]))]
        last = self._assignment.at or self._assignment.last
        assert last is not None
        return replace(
            info,
            epoch=int(each_epoch(last[0].epochs(last[1]), info.sample_ids)[0]),
            sample_ids=info.sample_ids - first,
            skipped=tuple(id_ - first for id_ in info.skipped),
            substitutes={old - first: new - first for old, new in info.substitutes.items()},
        )

    def _marked(self, batch: Any, share: Share, step: int) -> Any:
        number = self._scheduled.stream_of(share)
        one = self._options[number]
        if type(batch) is dict:
            batch = StreamBatch(batch)
        elif type(batch) in (list, tuple):
            batch = StreamBatchList(batch)
        try:
            batch.stream_name = one.name
            batch.num_accum_rounds_left = one.num_accum_rounds - 1 - share.start - step
            batch.data_type = getattr(self.dataset.datasets[number], "data_type", None)
        except AttributeError:
            raise ConfigError(
                f"a batch of stream {one.name!r} is a {type(batch).__name__}, which takes no tags: let its collate_fn "
                "make a dict, a list or a tensor"
            ) from None
        return batch


def _prepared(streams: Streams, number: int, one: StreamOptions, shuffle_seed: int | None) -> tuple[Recipe, Order]:
    """Make a stream's recipe and its order."""
    dataset, chosen = streams.datasets[number], dict(one.dataloader_kwargs)
    seed = chosen.get("seed")
    seed = stream_seed(dataset, one.name, shuffle_seed or 0) if seed is None else check_int("seed", seed, minimum=0)
    shuffle = chosen.get("shuffle")
    if shuffle is None:
        shuffle = choose_shuffle(None, dataset) or shuffle_seed is not None
    else:
        shuffle = choose_shuffle(shuffle, dataset)
    order = build_order(dataset, shuffle, seed, chosen.get("window", 16), None)
    check_collate(chosen.get("collate_fn"))
    recipe = Recipe(
        dataset,
        transforms=check_transforms(chosen.get("transform")),
        collate=chosen.get("collate_fn"),
        on_error=choose_policy(chosen.get("on_error"), dataset),
        seed=seed,
    )
    return recipe, order
