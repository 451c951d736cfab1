"""StreamingDataLoader: the public face of the engine.

It says what its arguments mean: the recipe, which makes batches of ids, and the assignment, which decides what
comes next and remembers how far the trainer is. A checkpoint is what the assignment remembers, nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

from penstock.errors import ConfigError
from penstock.loader.assignment import Assignment, Planned
from penstock.loader.claims import Claimed, StopAfter
from penstock.loader.recipe import Policy, Recipe
from penstock.loader.round_assignment import RoundPlanned
from penstock.loader.round_policy import RoundPolicy
from penstock.loader.rounds import (
    Round,
    as_stored_where_within,
    check_round_batches,
    choose_boundary,
    choose_stop,
    iter_rounds,
)
from penstock.loader.running import Lanes, Running
from penstock.loader.settings import (
    block_sizes_of,
    build_order,
    build_weighted_order,
    check_assignment,
    check_collate,
    check_remainder,
    check_timeout,
    check_transforms,
    check_workers,
    choose_policy,
    choose_prefetch,
    choose_seed,
    choose_shuffle,
    refuse_for_claims,
    refuse_unknown,
)
from penstock.loader.world import WorldOnce
from penstock.plan.chunks import ChunkPlan
from penstock.plan.order import Order
from penstock.plan.rounds import Boundary
from penstock.types import World, check_choice, check_int

if TYPE_CHECKING:
    from penstock.ledger.chunk_tracker import ChunkTracker

Transform = Callable[..., Any]


class StreamingDataLoader(Running):
    """Batches of a dataset: the same samples in the same order on any number of ranks, workers and restarts.

    Names and meanings follow `torch.utils.data.DataLoader` wherever both have them. Any map-style
    dataset will do; one with `fetch(ids)` is asked for many samples at once.

    Iterating gives the rest of the current epoch. After a full epoch, `iter()` starts the next one; after
    `break` it goes on where it was. `iter()` itself does nothing: work begins with the first `next`.

    Args:
        dataset: `__len__` and `__getitem__`, or `fetch` (see `penstock.Dataset`).
        batch_size: samples per batch of this rank.
        shuffle: False, True or "global" (all samples), or "window" (near ones stay near; needs `dataset.block_ends`).
            "within" (inside each round only, which holds the samples that it would unshuffled). None: as the dataset
            says, else False.
        seed: key of all randomness: order, transforms' `rng`, substitutes. None: the dataset's `shuffle_seed`, else 0.
        drop_last: True is `remainder="drop"`.
        remainder: the last, incomplete global batch is handed out "short" (default), "drop"ped, "pad"ded from the
            epoch's start, or "carry"-filled from the next epoch. With rounds it is an epoch's incomplete last round
            that is "short", "drop"ped, "pad"ded (or "wrap"ped) or, by default, "carry"-filled; `drop_last` then leaves
            out the incomplete batch of a "short" one, and has nothing to drop from the others.
        round_batches: batches of this rank in a round, or a policy that is told of the last rounds before each and
            answers that number, the same on every rank. Iterating then gives the rest of the *round*, rounds follow
            each other through epochs (see `rounds()` and the guide "rounds"), and `len()` counts the round's batches.
        chunk_weights: how often samples come, of equal consecutive chunks of the dataset, one weight each: in exact
            proportion, a sample of a heavy chunk several times an epoch. They are part of the order, so other weights
            are another stream. None: every sample once an epoch.
        weight_floor: samples of a chunk with weight 0 come so many times an epoch, from just above 0 to 1, so that
            each is seen at least once in about 1 / `weight_floor` epochs; others have the rest, by weight.
        num_workers: threads or processes that work ahead; 0 works in the trainer's thread. "auto": 0 for datasets that
            say `inline = True` (their fetch is a memory copy) and for plain map-style ones, else two threads per core,
            at most eight; a dataset's own `num_downloading_workers` comes first.
        worker_type: "thread", "process" (fresh interpreters, never forked), or "auto": threads for datasets with
            `fetch`, whose contract makes it safe, processes for all others. It changes speed, never data.
        prefetch: batches prepared ahead, by all workers together. None: the dataset's `prefetch_tickets`, else two per
            worker. Without workers only arrays are gathered ahead, a few MB at most. A dataset with `prefetch` is told
            what comes at least that far ahead, and some hundred samples.
        transform: sample → sample, or a list of such, run after the dataset's own `transforms`. One with a parameter
            `rng` gets a generator keyed to the sample. A list or generator it returns adds several samples to the
            batch; None leaves the sample out.
        collate_fn: list of samples → batch. None: the dataset's own `collate`, else they are stacked, as torch does.
        pin_memory: copy batches to pinned memory; only where there is CUDA.
        device: copy batches there; with CUDA the copy overlaps the trainer's work.
        world: this process's place. None detects it at first use (`penstock.detect_world`).
        global_batch_size: samples per step over all ranks, in place of `batch_size`.
        window: blocks per group of a "window" shuffle.
        length_bucket: samples per bucket of like length (needs `dataset.lengths`); the global batch size or a multiple
            of it wastes least padding. It is part of the order, so it stays when the world changes.
        on_error: a sample that fails "raise"s a SampleError, is "skip"ped (its batch is smaller by one), or
            "substitute"d by another; counted in `stats`, listed in `stats.quarantine`. None: as the dataset's own
            `on_error` says, else "raise".
        assignment: "plan": the order above says who reads what. "claim": this process claims chunks of the dataset from
            `tracker`, as others that train it do, and each is completed exactly once an epoch. Batches never cross
            chunks, `shuffle=True` shuffles inside each, and there is no `len()`. See the guide "claims".
        tracker: the ChunkTracker to claim from.
        dataset_chunk_size: samples per claimed chunk; all processes on one ledger give the same.
        stop_after: where an iteration by claims ends: "epoch", when every chunk is complete, by whomever; "block", when
            the block it began with has no chunk left; a number of batches, through epochs; None: never.
        uneven: True lets the ranks of a data-parallel group claim different numbers of batches, for training under
            torch's `Join`; without it, claims in a group need a number for `stop_after`.
        timeout: seconds a batch of a worker may take; then LoaderTimeout says what it waits for.
        unknown: refused; for torch's arguments that are not here, the error says what to use instead.

    Raises:
        ConfigError: an argument cannot work, or contradicts another.

    >>> loader = StreamingDataLoader(list(range(10)), batch_size=4)
    >>> [batch.tolist() for batch in loader]
    [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    >>> state = loader.state_dict()
    >>> state["epoch"], state["samples"]
    (1, 0)
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int | None = None,
        *,
        shuffle: bool | Literal["global", "window", "within"] | None = None,
        seed: int | None = None,
        drop_last: bool = False,
        remainder: Boundary | None = None,
        round_batches: int | RoundPolicy | None = None,
        chunk_weights: Sequence[float] | None = None,
        weight_floor: float = 0.1,
        num_workers: int | Literal["auto"] = "auto",
        worker_type: Literal["auto", "thread", "process"] = "auto",
        prefetch: int | None = None,
        transform: Transform | Sequence[Transform] | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        pin_memory: bool = False,
        device: Any = None,
        world: World | None = None,
        global_batch_size: int | None = None,
        window: int = 16,
        length_bucket: int | None = None,
        on_error: Policy | None = None,
        assignment: Literal["plan", "claim"] = "plan",
        tracker: ChunkTracker | None = None,
        dataset_chunk_size: int = 4000,
        stop_after: StopAfter = "epoch",
        uneven: bool = False,
        timeout: float = 300.0,
        **unknown: Any,
    ) -> None:
        if unknown:
            refuse_unknown(type(self), unknown)
        self.batch_size = batch_size
        self.seed = choose_seed(seed, dataset)
        shuffle = choose_shuffle(shuffle, dataset)
        workers, kind = check_workers(dataset, num_workers, worker_type)
        on_error = choose_policy(on_error, dataset)
        check_choice("on_error", on_error, get_args(Policy))
        if world is not None and not isinstance(world, World):
            raise ConfigError(f"world must be a penstock.World, got {world!r}")
        if batch_size is not None and global_batch_size is not None:
            raise ConfigError(f"batch_size={batch_size} and global_batch_size={global_batch_size}: give one of the two")
        if global_batch_size is None:
            self.batch_size = check_int("batch_size", 1 if batch_size is None else batch_size, minimum=1)
        else:
            check_int("global_batch_size", global_batch_size, minimum=1)
        transforms = check_transforms(transform)
        check_collate(collate_fn)
        recipe = Recipe(dataset, transforms=transforms, collate=collate_fn, on_error=on_error, seed=self.seed)
        place = WorldOnce(world)
        leftover = check_remainder(drop_last, remainder) if round_batches is None or assignment == "claim" else "carry"
        assigned: Assignment
        if round_batches is not None:
            round_batches = check_round_batches(round_batches)
            if assignment == "claim":
                stop_after = choose_stop(round_batches, stop_after)
        check_assignment(assignment, tracker, stop_after, uneven)

        def order_of(shuffle: Any) -> Order:
            if chunk_weights is not None:
                return build_weighted_order(dataset, shuffle, self.seed, length_bucket, chunk_weights, weight_floor)
            return build_order(dataset, shuffle, self.seed, window, length_bucket)

        if tracker is not None:
            refuse_for_claims(shuffle, leftover, global_batch_size, length_bucket, chunk_weights)
            plan = ChunkPlan(
                block_sizes=block_sizes_of(dataset),
                chunk_size=check_int("dataset_chunk_size", dataset_chunk_size, minimum=1),
                batch_size=self.batch_size or 1,
                shuffle_seed=self.seed if shuffle else None,
                remainder="drop" if leftover == "drop" else "short",
            )
            assigned = Claimed(
                dataset,
                tracker,
                plan,
                seed=self.seed,
                stop_after=stop_after,
                uneven=uneven,
                world=place,
                timeout=check_timeout(timeout),
            )
        elif round_batches is not None:
            boundary = choose_boundary(round_batches, drop_last, remainder, shuffle)
            assigned = RoundPlanned(
                dataset,
                order_of(as_stored_where_within(shuffle, dataset, length_bucket, chunk_weights)),
                is_within=shuffle == "within",
                round_batches=round_batches,
                boundary=boundary,
                drop_last=drop_last,
                seed=self.seed,
                batch_size=self.batch_size,
                global_batch_size=global_batch_size,
                world=place,
            )
        else:
            assigned = Planned(
                dataset,
                order_of(shuffle),
                seed=self.seed,
                remainder=leftover,
                batch_size=self.batch_size,
                global_batch_size=global_batch_size,
                world=place,
            )
        super().__init__(
            dataset,
            recipe,
            assigned,
            world=place,
            lane=Lanes(workers=workers, kind=kind, ahead=choose_prefetch(prefetch, dataset, workers)),
            pin_memory=pin_memory,
            device=device,
            timeout=timeout,
        )

    def __len__(self) -> int:
        """Count the batches of a whole epoch, or with rounds of the current round, on this rank as on every other."""
        return self._assignment.num_batches()

    def __repr__(self) -> str:
        # Nothing that would detect the world, or count: a loader may be printed before its process group is there.
        return f"{type(self).__name__}({self._assignment.description})"

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch; does nothing if the cursor is in that epoch already.

        Raises:
            ConfigError: there are rounds, and it is another epoch: they go through epochs by themselves.
        """
        if self._assignment.set_epoch(check_int("epoch", epoch, minimum=0)):
            self._turn = None

    def rounds(self, n: int | None = None) -> Iterator[Round]:
        """Yield rounds, from the one under way on: of seven, the first is the rest of it.

        A round that is left before its end goes on in the next one yielded.

        Args:
            n: how many; None: without end.

        >>> loader = StreamingDataLoader(list(range(6)), batch_size=1, round_batches=4)
        >>> [[int(batch) for batch in round] for round in loader.rounds(3)]
        [[0, 1, 2, 3], [4, 5, 0, 1], [2, 3, 4, 5]]
        """
        self._in_rounds("rounds()")
        return iter_rounds(self, n)

    @property
    def round(self) -> int:
        """The round that the next batch belongs to: as many are complete, by claims of this process."""
        return self._in_rounds("round").number

    @property
    def cycle(self) -> int:
        """The pass over the dataset that the next batch begins in; another word for `epoch`."""
        self._in_rounds("cycle")
        return self.epoch

    @property
    def batch_in_round(self) -> int:
        """Batches of the current round that have been handed out."""
        return self._in_plan("batch_in_round").batch

    @property
    def total_rounds(self) -> int:
        """Rounds that begin in the first cycle; with a policy, as many of the current length as it takes."""
        return self._in_plan("total_rounds").total

    def set_round(self, number: int) -> None:
        """Go to the start of a round, counted from the stream's beginning; does nothing if the loader stands there.

        An evaluation that was given up begins anew this way, and one that rotates goes to the round of its turn.

        Raises:
            ConfigError: a policy decides how long rounds are, or there are none.
        """
        if self._in_plan("set_round()").set_round(number):
            self._turn = None

    @property
    def awaits_report(self) -> bool:
        """Whether a policy is still to be told, before the next batch, what became of the last round: see `report`.

        True where a state was saved between a round's last batch and its validation, so that it is to be done yet.
        """
        return self._in_plan("awaits_report").awaits_report

    def report(self, **metrics: float) -> None:
        """Tell the policy what became of the last completed round, before the next one begins; on all ranks the same.

        Args:
            metrics: one or two numbers; they are kept to six digits, and in the state.

        Raises:
            ConfigError: there is no policy, or no round is complete, or the metrics are no numbers or too many.
        """
        self._in_plan("report()").report(metrics)

    def _in_plan(self, what: str) -> RoundPlanned:
        """Give the assignment, if it is one in rounds by plan."""
        if not isinstance(self._assignment, RoundPlanned):
            raise ConfigError(f"{what} needs rounds by plan: give the loader round_batches=, the batches of a round")
        return self._assignment

    def _in_rounds(self, what: str) -> RoundPlanned | Claimed:
        """Give the assignment, if it is one in rounds."""
        if isinstance(self._assignment, Claimed) and isinstance(self._assignment.stop_after, int):
            return self._assignment
        return self._in_plan(what)
