"""Two text files, a tokenizer and a batch size → the loaders of a training run."""

from __future__ import annotations

import difflib
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypedDict, Unpack

from penstock.datasets.text import TextDataset
from penstock.datasets.transformer import TransformerDataset
from penstock.errors import ConfigError
from penstock.formats.sources import Source
from penstock.loader.loader import StreamingDataLoader
from penstock.loader.recipe import Policy
from penstock.loader.world import detect_world
from penstock.transforms.any_tokenizer import as_tokenizer
from penstock.transforms.tokenize_text import TokenizeText
from penstock.types import World, check_choice, check_int


class TextOptions(TypedDict, total=False):
    """What `create_dataloaders` takes by name; those of the first group are TransformerDataset's."""

    is_jsonl: bool | None
    text_field: str
    stride: int
    by_document: bool
    overlap: int
    pad_id: int
    cache_dir: str | os.PathLike[str] | None

    tokenize: Literal["ahead", "on_the_fly"]
    """ "ahead" (default) makes token bins once and trains from those. "on_the_fly" reads and tokenizes documents
    while training, one sample each, cut to seq_length tokens and padded."""
    length_bucket: int
    """Samples per bucket of like length, for training: batches are padded to their longest sample only. Needs
    documents: by_document=True or tokenize="on_the_fly"."""
    train_transform: Callable[..., Any] | Sequence[Callable[..., Any]]
    """Sample → sample, for the training loader only: augmentation. With a parameter `rng` it is given a generator
    keyed to the sample and epoch. Samples hold int64 arrays `input_ids` and `labels`."""

    seed: int
    drop_last: bool
    """Of the training loader; True by default."""
    world: World
    tp_size: int
    pp_size: int
    """Ranks per replica, where `world` is not given: peers of one replica get the same batches."""
    worker_type: Literal["auto", "thread", "process"]
    """ "process" by default."""
    force_workers: bool
    """Use workers on Windows too: threads there, unless worker_type says otherwise."""
    pin_memory: bool
    """True by default; without CUDA nothing is pinned."""
    prefetch: int
    device: Any
    on_error: Policy
    timeout: float


_OF_DATASET = ("is_jsonl", "text_field", "pad_id", "cache_dir", "timeout")
_OF_LOADER = ("seed", "prefetch", "device", "on_error", "timeout")


def create_dataloaders(
    train_path: Source,
    val_path: Source,
    tokenizer: Any,
    batch_size: int = 16,
    seq_length: int = 128,
    num_workers: int = 0,
    **options: Unpack[TextOptions],
) -> tuple[StreamingDataLoader, StreamingDataLoader]:
    """Make the loaders for training and validation of a causal language model on text files.

    Training is shuffled, in another order each epoch, and drops its last incomplete batch; validation
    is neither. Both can be saved and resumed at any batch, see `StreamingDataLoader`.

    Samples start at every token (stride=1), so of T tokens there are T - seq_length overlapping samples, and an epoch
    reads the text seq_length times. stride=seq_length makes an epoch one pass: each token after the first is a
    target once, in about T / seq_length samples.

    Args:
        train_path: JSON lines or text whose samples are separated by blank lines; see `TransformerDataset`.
        val_path: the same for validation.
        tokenizer: a path or name for `Tokenizer.from_pretrained`, or anything with `encode(text)`.
        batch_size: samples per batch of this rank.
        seq_length: tokens per sample.
        num_workers: worker processes of each loader; they start with its first batch and live until it is closed.
            With 0, batches are made when they are asked for, which for token bins costs next to nothing.
        options: see `TextOptions`.

    Returns:
        The training loader and the validation loader. Batches are dicts of int64 tensors `input_ids` and `labels`
        [batch_size, seq_length]; where samples differ in length also `attention_mask`.

    Raises:
        ConfigError: an argument cannot work; the text has too few tokens for one sample; an option
            does not exist, or has no meaning together with another.
        BadRecord, ObjectMissing, StoreError: as `TransformerDataset`.
    """
    _check_names(options)
    tokenizer = as_tokenizer(tokenizer)
    tokenize = options.get("tokenize", "ahead")
    check_choice("tokenize", tokenize, ("ahead", "on_the_fly"))
    shared = _picked(options, _OF_LOADER)
    shared["num_workers"], shared["worker_type"] = _workers(
        num_workers, options.get("worker_type"), force=options.get("force_workers", False), platform=sys.platform
    )
    shared |= {"world": _world(options), "pin_memory": options.get("pin_memory", True), "batch_size": batch_size}
    transforms: list[Callable[..., Any]] = []
    if tokenize == "on_the_fly":
        bucketed = options.get("length_bucket") is not None
        transforms.append(
            TokenizeText(tokenizer, seq_length, pad_to_length=not bucketed, pad_id=options.get("pad_id", 0))
        )
    chosen = options.get("train_transform", ())
    augmenting = [chosen] if callable(chosen) else list(chosen)
    drop_last = options.get("drop_last", True)
    train = _dataset(train_path, tokenizer, seq_length, options)
    val = _dataset(val_path, tokenizer, seq_length, options)
    return (
        StreamingDataLoader(
            train,
            shuffle=True,
            drop_last=drop_last,
            transform=transforms + augmenting,
            length_bucket=options.get("length_bucket"),
            **shared,
        ),
        StreamingDataLoader(val, transform=transforms, **shared),
    )


def _dataset(path: Source, tokenizer: Any, seq_length: int, options: TextOptions) -> TransformerDataset | TextDataset:
    chosen = _picked(options, _OF_DATASET)
    cuts = _picked(options, ("stride", "by_document", "overlap"))
    if options.get("tokenize") != "on_the_fly":
        if options.get("length_bucket") is not None and not options.get("by_document"):
            raise ConfigError(
                f"length_bucket={options['length_bucket']}: windows over a stream all have one length; give "
                'by_document=True, or tokenize="on_the_fly"'
            )
        return TransformerDataset(path, tokenizer, seq_length, **cuts, **chosen)
    if cuts:
        raise ConfigError(
            f'{", ".join(cuts)} cut token streams, which tokenize="on_the_fly" does not make: leave them out, or '
            'tokenize="ahead"'
        )
    return TextDataset(path, **chosen)


def _workers(
    num_workers: int, worker_type: str | None, *, force: bool, platform: str
) -> tuple[int, Literal["auto", "thread", "process"]]:
    """Choose how many workers of which kind on a platform."""
    check_int("num_workers", num_workers, minimum=0)
    check_choice("worker_type", worker_type, (None, "auto", "thread", "process"))
    on_windows = platform == "win32"
    if on_windows and num_workers and not force:
        warnings.warn(
            f"num_workers={num_workers} is taken as 0 on Windows, where worker processes cannot share memory with this "
            "one; force_workers=True uses threads",
            stacklevel=3,
        )
        num_workers = 0
    kind: Any = worker_type or ("thread" if on_windows else "process")
    return num_workers, kind


def _world(options: TextOptions) -> World | None:
    """Give this process's place; None leaves it to be detected at first use."""
    sizes = _picked(options, ("tp_size", "pp_size"))
    if (world := options.get("world")) is None:
        return detect_world(**sizes) if sizes else None
    if sizes:
        raise ConfigError(f"world={world} already says where {' and '.join(sizes)} are: give one or the other")
    return world


def _picked(options: TextOptions, names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name in names}


def _check_names(options: TextOptions) -> None:
    known = sorted(TextOptions.__annotations__)
    arguments = [name for name in inspect.signature(create_dataloaders).parameters if name != "options"]
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, [*arguments, *known], n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise ConfigError(f"create_dataloaders has no option {name!r}{hint} Its options: {', '.join(known)}")
