"""What a loader's arguments mean together: checked once, before anything is opened."""

from __future__ import annotations

import difflib
import inspect
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, get_args

import numpy as np

from penstock.errors import ConfigError
from penstock.plan.order import GlobalShuffle, LengthBuckets, Order, Sequential, WindowShuffle
from penstock.plan.plan import Remainder
from penstock.plan.weighted import WeightedChunks
from penstock.types import check_choice, check_int, check_number

MAX_AUTO_THREADS = 8
MAX_TIMEOUT_S = 1_000_000


INSTEAD = {
    "sampler": "order belongs to the loader: use shuffle=, or wrap the dataset in torch.utils.data.Subset",
    "batch_sampler": "batches belong to the loader: use batch_size=, shuffle= and drop_last=, length_bucket= for those "
    "of like length, or wrap the dataset in torch.utils.data.Subset",
    "prefetch_factor": "use prefetch=, the number of batches prepared ahead by all workers together",
    "persistent_workers": "leave it out: workers always stay until close()",
    "worker_init_fn": "leave it out: a transform with a parameter `rng` gets a generator of its own, and what a worker "
    "needs is built by the dataset when it is first asked",
    "generator": "use seed=",
    "multiprocessing_context": "leave it out: workers are fresh interpreters, whatever the start method",
    "pin_memory_device": "use device=, which copies batches there too",
    "in_order": "leave it out: batches always come in order",
}
"""What takes the place of torch's arguments that have no meaning here."""


def parameters_of(owner: type) -> dict[str, None]:
    """Name what the constructors of a class and of those it is made of take by name, its own first."""
    found: dict[str, None] = {}
    for each in owner.__mro__[:-1]:
        if "__init__" in vars(each):
            own = list(inspect.signature(vars(each)["__init__"]).parameters.values())[1:]
            found |= dict.fromkeys(one.name for one in own if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD))
    return found


def refuse_unknown(owner: type, unknown: Iterable[str], *passed_on: type) -> NoReturn:
    """Raise ConfigError for unknown arguments; says what to use in place of the first one.

    Args:
        owner: the class that was called.
        unknown: names that nobody knows.
        passed_on: classes whose arguments it takes too.
    """
    name = next(iter(unknown))
    if name in INSTEAD:
        raise ConfigError(f"{owner.__name__} takes no {name}: {INSTEAD[name]}")
    known = [parameter for each in (owner, *passed_on) for parameter in parameters_of(each)]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    raise ConfigError(f"{owner.__name__} takes no {name}{f'; did you mean {near[0]}?' if near else ''}")


def build_order(dataset: Any, shuffle: Any, seed: int, window: int, length_bucket: int | None) -> Order:
    """Build the order that the arguments ask for."""
    if isinstance(dataset, str | bytes | os.PathLike):
        raise ConfigError(
            f"dataset must hold samples, got {dataset!r}, a path: open it first, for a token bin with "
            "TokenDataset(path, seq_len)"
        )
    if dataset is None:
        raise ConfigError(
            "dataset is None, which has no __len__ and __getitem__: give a map-style dataset; where setup() makes it, "
            "as that of QuantizedAutoregressiveAudio does, call it first"
        )
    has_ids = hasattr(dataset, "__len__") and (hasattr(dataset, "fetch") or hasattr(dataset, "__getitem__"))
    # torch's base class gives an IterableDataset a __getitem__ that only raises.
    if not has_ids or _is_iterable_dataset(dataset):
        raise ConfigError(
            f"{type(dataset).__name__} has no __len__ and __getitem__: samples must have ids for their order to be "
            "exact, so give a map-style dataset"
        )
    size = len(dataset)
    if size == 0:
        raise ConfigError(f"{type(dataset).__name__} is empty: there is nothing to load")
    check_int("window", window, minimum=1)
    if shuffle == "within":
        raise ConfigError("shuffle='within' shuffles inside rounds, and there are none: give round_batches= too")
    if hasattr(dataset, "build_mixture"):
        return _build_mixture(dataset, shuffle, seed, window, length_bucket)
    check_choice("shuffle", shuffle, (False, True, None, "global", "window"))
    order: Order
    if shuffle == "window":
        if getattr(dataset, "block_ends", None) is None:
            raise ConfigError(
                f"shuffle='window' needs dataset.block_ends, {type(dataset).__name__} has none: use 'global'"
            )
        order = WindowShuffle(dataset.block_ends, seed, window)
        if order.num_samples != size:
            raise ConfigError(f"dataset.block_ends ends at {order.num_samples}, but the dataset has {size} samples")
    else:
        order = GlobalShuffle(size, seed) if shuffle else Sequential(size)
    if length_bucket is None:
        return order
    if getattr(dataset, "lengths", None) is None:
        raise ConfigError(f"length_bucket needs dataset.lengths, and {type(dataset).__name__} has none")
    check_int("length_bucket", length_bucket, minimum=1)
    lengths = np.asarray(dataset.lengths)
    return LengthBuckets(order, lengths, bucket=length_bucket, window=64 * length_bucket, seed=seed)


def build_weighted_order(
    dataset: Any, shuffle: Any, seed: int, length_bucket: int | None, weights: Any, floor: Any
) -> Order:
    """Build the order in which chunks of a dataset come by weight.

    Raises:
        ConfigError: an argument cannot work, or means another order.
    """
    if shuffle not in (None, False, True, "global") or length_bucket is not None or hasattr(dataset, "build_mixture"):
        raise ConfigError(
            "chunk_weights are an order of their own, shuffled or as stored: leave out length_bucket and "
            f"shuffle={shuffle!r}, and give a mix its own weights"
        )
    size = build_order(dataset, False, seed, 1, None).num_samples
    return WeightedChunks(size, weights, floor=floor, seed=seed if shuffle else None)


def _build_mixture(dataset: Any, shuffle: Any, seed: int, window: int, length_bucket: int | None) -> Order:
    """Build the order of a mix: its streams each shuffled as `shuffle` says, or as they say themselves."""
    if length_bucket is not None:
        raise ConfigError("length_bucket has no meaning for a mix, whose batches are what the proportions bring")
    asked = None if shuffle == "own" else shuffle
    shuffles = [choose_shuffle(asked, stream) for stream in dataset.streams.values()]

    def order_of(stream: Any, stream_seed: int) -> Order:
        return build_order(stream, choose_shuffle(asked, stream), stream_seed, window, None)

    return dataset.build_mixture(order_of, seed if any(shuffles) else None)


def check_assignment(assignment: Any, tracker: Any, stop_after: Any, uneven: Any) -> None:
    """Refuse what belongs to claims without claims, and claims without a tracker."""
    check_choice("assignment", assignment, ("plan", "claim"))
    check_choice("uneven", uneven, (True, False))
    if stop_after not in ("epoch", "block", None):
        check_int("stop_after, unless it is 'epoch', 'block' or None,", stop_after, minimum=1)
    if assignment == "plan":
        for name, given in (
            ("tracker", tracker is not None),
            ("stop_after", stop_after != "epoch"),
            ("uneven", uneven),
        ):
            if given:
                raise ConfigError(f"{name} belongs to claims: give assignment='claim' too, or leave it out")
    elif not hasattr(tracker, "reopen_after"):
        raise ConfigError(f"assignment='claim' needs tracker=penstock.ChunkTracker(…), got {tracker!r}")


def refuse_for_claims(
    shuffle: Any, remainder: Remainder, global_batch_size: Any, length_bucket: Any, chunk_weights: Any
) -> None:
    """Refuse what has no meaning where batches never cross the chunks of one process."""
    check_choice("shuffle, by claims,", shuffle, (False, True, None))
    if remainder in ("pad", "carry"):
        raise ConfigError(f"remainder={remainder!r}: by claims batches never cross chunks, so 'short' or 'drop'")
    for name, value in (
        ("global_batch_size", global_batch_size),
        ("length_bucket", length_bucket),
        ("chunk_weights", chunk_weights),
    ):
        if value is not None:
            raise ConfigError(f"{name}={value!r} has no meaning by claims, where every process cuts its own chunks")


def choose_seed(seed: Any, dataset: Any) -> int:
    """Choose the key of all randomness: the loader's or the dataset's, which must not contradict each other."""
    own = getattr(dataset, "shuffle_seed", None)
    if seed is not None and own is not None and seed != own:
        raise ConfigError(
            f"seed={seed!r} contradicts {type(dataset).__name__}'s shuffle_seed={own!r}: give it in one place only"
        )
    return check_int("seed", next((value for value in (seed, own) if value is not None), 0), minimum=0)


def choose_policy(on_error: Any, dataset: Any) -> Any:
    """Choose what a failing sample leads to: the loader's word, or the dataset's, where it says more than "raise"."""
    own = getattr(dataset, "on_error", None) or "raise"
    if on_error is not None and own not in ("raise", on_error):
        raise ConfigError(
            f"on_error={on_error!r} contradicts {type(dataset).__name__}'s on_error={own!r}: give it in one place only"
        )
    return on_error or own


def choose_shuffle(shuffle: Any, dataset: Any) -> Any:
    """Choose how to shuffle where it is left to the dataset: its `default_shuffle`, or globally if it has a seed.

    Raises:
        ConfigError: the dataset is to be shuffled, and the loader not.
    """
    own = getattr(dataset, "shuffle_seed", None)
    if shuffle is False and own is not None:
        raise ConfigError(
            f"shuffle=False contradicts {type(dataset).__name__}'s shuffle_seed={own!r}: leave out one of them"
        )
    return getattr(dataset, "default_shuffle", own is not None) if shuffle is None else shuffle


def choose_prefetch(prefetch: Any, dataset: Any, workers: int) -> int:
    """Choose how many batches to prepare ahead: the loader's word, else the dataset's, else two per worker."""
    if prefetch is None:
        prefetch = getattr(dataset, "prefetch_tickets", None)
    return 2 * max(1, workers) if prefetch is None else check_int("prefetch", prefetch, minimum=1)


def block_sizes_of(dataset: Any) -> tuple[int, ...]:
    """Give the samples of each block of a dataset; one that has no blocks is one."""
    ends = getattr(dataset, "block_ends", None)
    return (len(dataset),) if ends is None else tuple(np.diff(np.asarray(ends, np.int64), prepend=0).tolist())


def check_workers(dataset: Any, num_workers: Any, worker_type: Any) -> tuple[int, str]:
    """Choose how many workers of which kind."""
    check_choice("worker_type", worker_type, ("auto", "thread", "process"))
    fetches = hasattr(dataset, "fetch") and not getattr(dataset, "is_plain", False)
    if isinstance(num_workers, str) and num_workers != "auto":
        raise ConfigError(f"num_workers must be 'auto' or an integer >= 0, got {num_workers!r}")
    if num_workers == "auto":
        num_workers = getattr(dataset, "num_downloading_workers", None) or "auto"
    if num_workers == "auto":
        cores = os.cpu_count() or 1
        waits = fetches and not getattr(dataset, "inline", False)
        num_workers = min(MAX_AUTO_THREADS, 2 * cores) if waits else 0
    kind = ("thread" if fetches else "process") if worker_type == "auto" else worker_type
    return check_int("num_workers", num_workers, minimum=0), kind


def check_remainder(drop_last: bool, remainder: Any) -> Remainder:
    """Choose what happens to an incomplete last batch."""
    check_choice("drop_last", drop_last, (True, False))
    check_choice("remainder", remainder, (None, *get_args(Remainder)))
    if drop_last and remainder not in (None, "drop"):
        raise ConfigError(f"drop_last=True and remainder={remainder!r} contradict each other: give one of them")
    return "drop" if drop_last else remainder or "short"


def check_transforms(transform: Any) -> tuple[Callable[..., Any], ...]:
    """List the transforms."""
    if transform is None:
        return ()
    transforms = (transform,) if callable(transform) else transform
    if not isinstance(transforms, list | tuple) or not all(callable(one) for one in transforms):
        raise ConfigError(f"transform must be a callable or a list of them, got {transform!r}")
    return tuple(transforms)


def check_collate(collate: Any) -> None:
    """Raise ConfigError unless collate is a callable or None."""
    if collate is not None and not callable(collate):
        raise ConfigError(f"collate_fn must be None or a callable that makes a batch of a list, got {collate!r}")


def check_timeout(timeout: Any) -> float:
    """Return a deadline in seconds."""
    return check_number("timeout", timeout, above=0, maximum=MAX_TIMEOUT_S, unit="seconds")


def _is_iterable_dataset(dataset: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(dataset, torch.utils.data.IterableDataset)
