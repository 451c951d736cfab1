"""ChunkedDataLoader: a torch DataLoader until it is given a chunk size, and then the same data in rounds.

One argument turns rounds on, and without it nothing is ours: what comes back is torch's own object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from penstock.errors import ConfigError
from penstock.loader.loader import StreamingDataLoader
from penstock.plan.rounds import Boundary, check_boundary, check_round_size
from penstock.types import check_choice, check_int

MEANT_FOR_TORCH: dict[str, tuple[Callable[[Any], bool], str]] = {
    "sampler": (lambda value: value is None, "the order is that of the rounds; use shuffle=, or wrap the dataset"),
    "batch_sampler": (lambda value: value is None, "batches are cut from the rounds; use batch_size=, shuffle="),
    "generator": (lambda value: value is None, "use seed=, of which every shuffle is a function"),
    "worker_init_fn": (
        lambda value: value is None,
        "a transform with a parameter `rng` gets a generator, and a dataset builds what it needs when first asked",
    ),
    "multiprocessing_context": (lambda value: value is None, "workers are fresh interpreters, never forked"),
    "pin_memory_device": (lambda value: not value, "use device=, which copies batches there too"),
    "in_order": (lambda value: value is True, "batches always come in order, which makes rounds exact"),
    # Workers stay until close(), which is what True asks for; False is torch's default, and harmless.
    "persistent_workers": (lambda value: isinstance(value, bool), "it is True or False"),
}
"""torch's arguments that rounds have no other use for: what may be given, and what to do instead of anything else."""


OUR_NAMES = {"round_batches": "chunk_size", "remainder": "boundary"}
"""What a StreamingDataLoader calls two of our arguments."""


class ChunkedDataLoader(StreamingDataLoader):
    """Batches of a dataset in rounds of `chunk_size`; without one, a `torch.utils.data.DataLoader` and no more.

    Iterating gives the rest of the current round, and the next iteration the next round, through the whole dataset in
    cycles; `len()` is the batches of a round. `iter()` moves nothing: a round is over when its last batch has been
    handed out. Workers stay from one round to the next.

    Args:
        dataset: with `__len__` and `__getitem__`, as torch has it.
        batch_size: samples per batch of this rank.
        chunk_size: batches of this rank in a round. None: what is returned is `torch.utils.data.DataLoader(dataset,
            batch_size, **dataloader_kwargs)`, of exactly that type.
        boundary: what happens where a cycle ends within a round: "carry" goes on with the next cycle, "short" ends the
            round, "pad" (or "wrap") fills it from the cycle's start with flagged repeats, "drop" leaves it out.
            Without rounds it has no meaning, and may stay.
        restart: a round that is left before its end begins anew in the next iteration, as evaluation wants it; False:
            it goes on. Without rounds it has no meaning, and may stay.
        dataloader_kwargs: torch's own. With rounds also those of `StreamingDataLoader` (`shuffle="within"`, `seed`,
            `world`, `transform`, …), and of torch's these are refused, saying what to use: sampler, batch_sampler,
            generator, worker_init_fn, multiprocessing_context, pin_memory_device, in_order=False.
            `persistent_workers` may be either, workers stay anyway; `prefetch_factor` is per worker, as in torch;
            `timeout=0` is the loader's own deadline; `drop_last` has nothing to drop but with boundary "short".

    Raises:
        ConfigError: an argument cannot work with rounds, or only with them; `chunk_size` is no integer above 0.

    >>> loader = ChunkedDataLoader(list(range(10)), batch_size=2, chunk_size=3)
    >>> [batch.tolist() for batch in loader], [batch.tolist() for batch in loader]
    ([[0, 1], [2, 3], [4, 5]], [[6, 7], [8, 9], [0, 1]])
    >>> type(ChunkedDataLoader(list(range(10)), batch_size=2))
    <class 'torch.utils.data.dataloader.DataLoader'>
    """

    def __new__(
        cls, dataset: Any = None, batch_size: Any = 1, chunk_size: Any = None, *args: Any, **dataloader_kwargs: Any
    ) -> Any:
        """Make a torch DataLoader, unless there is a chunk size."""
        # Copies and pickles begin with nothing at all.
        if chunk_size is not None or (dataset is None and not dataloader_kwargs):
            return super().__new__(cls)
        return _without_rounds(dataset, batch_size, *args, **dataloader_kwargs)

    def __init__(
        self,
        dataset: Any,
        batch_size: int = 1,
        chunk_size: int | None = None,
        *,
        boundary: Boundary = "carry",
        restart: bool = False,
        **dataloader_kwargs: Any,
    ) -> None:
        check_round_size("chunk_size, in batches,", chunk_size)
        self._restart = _checked_restart(restart)
        if restart and dataloader_kwargs.get("assignment", "plan") != "plan":
            raise ConfigError("restart=True by claims: what a round got is another's by then. Leave out one of them")
        super().__init__(
            dataset,
            check_int("batch_size, with a chunk_size,", batch_size, minimum=1),
            round_batches=chunk_size,
            remainder=check_boundary("boundary", boundary),
            **_translated(dataloader_kwargs),
        )

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the rest of the round, or all of it if rounds restart; nothing before the first `next`."""
        return self._whole_round() if self._restart else super().__iter__()

    @property
    def total_chunks(self) -> int:
        """Rounds in a cycle."""
        return self.total_rounds

    @property
    def current_chunk(self) -> int:
        """The round that the next batch belongs to, counted through all cycles."""
        return self.round

    def _whole_round(self) -> Iterator[Any]:
        """Yield the batches of the round from its start."""
        if self.batch_in_round:
            self.set_round(self.round)
        yield from super().__iter__()


def _checked_restart(restart: Any) -> bool:
    check_choice("restart", restart, (True, False))
    return bool(restart)


def _without_rounds(dataset: Any, batch_size: Any, **dataloader_kwargs: Any) -> Any:
    """Make torch's own DataLoader."""
    from torch.utils.data import DataLoader

    if "boundary" in dataloader_kwargs:
        check_boundary("boundary", dataloader_kwargs.pop("boundary"))
    _checked_restart(dataloader_kwargs.pop("restart", False))
    if isinstance(shuffle := dataloader_kwargs.get("shuffle"), str):
        raise ConfigError(f"shuffle={shuffle!r} belongs to rounds: give chunk_size= too, or shuffle=True")
    try:
        return DataLoader(dataset, batch_size, **dataloader_kwargs)
    except TypeError as error:
        if "unexpected keyword" not in str(error):
            raise
        raise ConfigError(
            f"without chunk_size= this is a torch DataLoader, which says: {error}. Leave it out, or give chunk_size="
        ) from None


def _translated(dataloader_kwargs: dict[str, Any]) -> dict[str, Any]:
    """Say in our words what torch's arguments ask for."""
    options = dict(dataloader_kwargs)
    for name, (is_harmless, instead) in MEANT_FOR_TORCH.items():
        if name in options and not is_harmless(value := options.pop(name)):
            raise ConfigError(f"{name}={value!r} together with chunk_size: {instead}")
    for name, ours in OUR_NAMES.items():
        if (value := options.pop(name, None)) is not None:
            raise ConfigError(f"{name}={value!r} together with chunk_size: here it is called {ours}=")
    if (factor := options.pop("prefetch_factor", None)) is not None:
        workers = options.get("num_workers", 1)
        ahead = check_int("prefetch_factor", factor, minimum=1) * (workers if isinstance(workers, int) else 1)
        options.setdefault("prefetch", max(1, ahead))
    if options.get("timeout") == 0:
        del options["timeout"]
    return options
