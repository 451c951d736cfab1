"""What is said of each stream of a MultiStreamDataLoader, and what it means together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from penstock.errors import ConfigError
from penstock.plan.ratios import as_written
from penstock.types import check_choice, check_int

Mixing = Literal["no_mixing", "mix_all", "custom"]

OF_A_STREAM = ("shuffle", "seed", "window", "transform", "collate_fn", "on_error")


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamOptions:
    """One stream: how often it is picked, and what its batches are.

    Raises:
        ConfigError: a value cannot work.
    """

    name: str
    ratio: float
    """How often it is picked beside the others, see the loader's `schedule`; 0 or less leaves it out."""
    batch_size: int | None = None
    """Samples of a whole pick: `batch_gpu × dp_size × num_accum_rounds`. Give this or `batch_gpu`."""
    batch_gpu: int | None = None
    """Samples of one batch of one rank."""
    mixing_group_id: str | int | None = None
    """Streams of one group mix among ranks, with `mixing="custom"`; None: a group of its own."""
    num_accum_rounds: int = 1
    """Batches in a pick, one after the other: rounds of gradient accumulation."""
    is_main: bool = False
    """The loader's epoch is this stream's. Without one it is the first stream's."""
    dataloader_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """What a StreamingDataLoader takes for its samples: shuffle, seed, window, transform, collate_fn, on_error."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ConfigError(f"a stream's name must be a text, got {self.name!r}")
        if (self.batch_size is None) is (self.batch_gpu is None):
            raise ConfigError(
                f"the stream {self.name!r} has batch_size={self.batch_size} and batch_gpu={self.batch_gpu}: give one "
                "of the two; batch_size = batch_gpu × dp_size × num_accum_rounds"
            )
        for name in ("batch_size", "batch_gpu"):
            if getattr(self, name) is not None:
                check_int(f"{name} of stream {self.name!r}", getattr(self, name), minimum=1)
        check_int(f"num_accum_rounds of stream {self.name!r}", self.num_accum_rounds, minimum=1)
        check_choice(f"is_main of stream {self.name!r}", self.is_main, (True, False))
        if not isinstance(self.dataloader_kwargs, Mapping):
            raise ConfigError(
                f"dataloader_kwargs of stream {self.name!r} must be a dict, got {self.dataloader_kwargs!r}"
            )
        for name in self.dataloader_kwargs:
            if name not in OF_A_STREAM:
                raise ConfigError(
                    f"dataloader_kwargs of stream {self.name!r} has {name!r}: a stream takes {', '.join(OF_A_STREAM)}; "
                    "all else is the loader's, and streams are endless, so that there is no last batch"
                )

    def batch_of(self, dp_size: int) -> int:
        """Give the samples of one batch of one rank among so many.

        Raises:
            ConfigError: `batch_size` is no multiple of what it is shared by.
        """
        if self.batch_gpu is not None:
            return self.batch_gpu
        assert self.batch_size is not None
        batch, uneven = divmod(self.batch_size, dp_size * self.num_accum_rounds)
        if uneven:
            raise ConfigError(
                f"batch_size={self.batch_size} of stream {self.name!r} is not a multiple of {dp_size} ranks × "
                f"{self.num_accum_rounds} rounds"
            )
        return batch


def pair_streams(datasets: Any, stream_opts: Any) -> tuple[list[StreamOptions], dict[str, Any]]:
    """Pair options with their datasets and drop those of ratio 0 or less.

    Raises:
        ConfigError: they do not go together, or nothing is left.
    """
    options = list(stream_opts) if isinstance(stream_opts, Sequence) else stream_opts
    if not isinstance(options, list) or not all(isinstance(one, StreamOptions) for one in options):
        raise ConfigError(f"stream_opts must be a list of StreamOptions, got {stream_opts!r}")
    names = [one.name for one in options]
    if len(set(names)) < len(names):
        raise ConfigError(f"streams must have names of their own, got {names}")
    if isinstance(datasets, Mapping):
        if set(datasets) != set(names):
            raise ConfigError(
                f"datasets are {sorted(datasets)}, stream_opts are {sorted(names)}: they must be the same"
            )
        paired = {name: datasets[name] for name in names}
    elif isinstance(datasets, list | tuple) and len(datasets) == len(names):
        paired = dict(zip(names, datasets, strict=True))
    else:
        raise ConfigError(f"datasets must be a dict by name, or a list as long as stream_opts ({len(names)})")
    for one in options:
        if isinstance(one.ratio, bool) or not isinstance(one.ratio, int | float) or one.ratio != one.ratio:
            raise ConfigError(f"the ratio of stream {one.name!r} must be a number, got {one.ratio!r}")
    kept = [one for one in options if one.ratio > 0]
    if not kept:
        raise ConfigError("no stream has a ratio above 0: there is nothing to load")
    if sum(one.is_main for one in kept) > 1:
        raise ConfigError(f"is_main may be one stream's, it is that of {[one.name for one in kept if one.is_main]}")
    return kept, {one.name: paired[one.name] for one in kept}


def group_streams(options: Sequence[StreamOptions], mixing: Mixing) -> dict[str, list[int]]:
    """Give the streams of each group, by the group's name.

    Raises:
        ConfigError: streams that mix have different numbers of rounds, so that ranks would fall out of step.
    """
    check_choice("mixing", mixing, get_args(Mixing))
    groups: dict[str, list[int]] = {}
    for number, one in enumerate(options):
        own = f"stream {one.name}" if one.mixing_group_id is None else f"group {one.mixing_group_id!r}"
        name = {"no_mixing": f"stream {one.name}", "mix_all": "all", "custom": own}[mixing]
        groups.setdefault(name, []).append(number)
    for members in groups.values():
        rounds = {options[number].name: options[number].num_accum_rounds for number in members}
        if len(set(rounds.values())) > 1:
            raise ConfigError(
                f"num_accum_rounds is {rounds}: ranks that draw different streams at a step must stay in step, so give "
                "streams that mix the same"
            )
    return groups


def summed(ratios: Sequence[float]) -> Any:
    """Add ratios as they are written: 0.1 and 0.2 are 0.3."""
    return sum(ratios) if all(isinstance(ratio, int) for ratio in ratios) else sum(map(as_written, ratios))
