"""A module that trains a round, validates, and stops there: rounds for a module in plain PyTorch, or under a Trainer.

    class Net(ChunkedTrainingMixin, torch.nn.Module):         (or LightningModule)
        training_step, validation_step, configure_optimizers

    Net(config) ──setup_chunked_training(data)──▶ loaders of the configuration's sizes
        ──train_epoch_with_chunking()──▶ one round, then validation ──▶ {"round", "cycle", "train_loss", "val_loss"}

Alone, the mixin is the loop: `train_epoch_with_chunking` does what a Trainer's epoch would. Under a Trainer the
Trainer is the loop: it takes the loaders from the hooks `train_dataloader` and `val_dataloader`, and the two methods
that would run a loop of their own refuse. Nothing of Lightning is imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from penstock.errors import ConfigError
from penstock.loader.loader import StreamingDataLoader
from penstock.train.round_bookmark import Bookmark
from penstock.train.round_config import RoundSizes, resolve_rounds
from penstock.train.sequence_dataset import ChunkedSequenceDataset


@dataclass(frozen=True, slots=True)
class _Source:
    """Where loaders come from. Copies of a module share it: weights are averaged by copying whole modules."""

    data: ChunkedSequenceDataset
    options: dict[str, Any]

    def __deepcopy__(self, memo: dict[int, Any]) -> _Source:
        return self


class ChunkedTrainingMixin:
    """Gives a `torch.nn.Module` or LightningModule rounds, as its configuration says. Stands before it among the bases.

    The module has Lightning's `training_step(batch, batch_idx)`, which returns the loss, a mapping with "loss", or None
    to take no step; `configure_optimizers()`, which returns an optimizer; and, to be validated,
    `validation_step(batch, batch_idx)`, which returns the loss, a mapping of metrics, or None. Without a Trainer,
    batches come as the loaders give them: with rounds `device=` moves them, else a step does.

    Args:
        config: anything `resolve_rounds` reads.
        *args: for the module's own constructor.
        **kwargs: for the module's own constructor.

    Raises:
        ConfigError: the sizes in config cannot work.
    """

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.round_sizes: RoundSizes = resolve_rounds(config)
        self._round_source: _Source | None = None
        self._round_loaders: dict[str, Any] = {}
        self._round_optimizer: torch.optim.Optimizer | None = None
        self._round_bookmark: Bookmark | None = None
        self._num_trained = 0

    def __getstate__(self) -> dict[str, Any]:
        # A copy has weights of its own, and loaders of its own if it is trained.
        begins_anew: dict[str, Any] = {"_round_loaders": {}, "_round_optimizer": None, "_round_bookmark": None}
        state: Any = super().__getstate__()
        return {**state, **begins_anew}

    @property
    def chunked_training_enabled(self) -> bool:
        """Tell whether the configuration asks for rounds."""
        return self.round_sizes.enabled

    def setup_chunked_training(self, data: ChunkedSequenceDataset, **options: Any) -> None:
        """Train on these partitions, in rounds of the configuration's sizes, or without rounds if it has none.

        Args:
            data: the partitions. It is given the sizes; nothing is read yet.
            **options: of the loaders, as `data.train_dataloader` takes them.

        Raises:
            ConfigError: data has sizes of its own and they are others.
        """
        sizes = self.round_sizes
        for name in ("train_chunk_size", "val_chunk_size"):
            given, asked = getattr(data, f"explicit_{name}"), getattr(sizes, name)
            if given is not None and given != asked:
                raise ConfigError(
                    f"{name} is {given} in the dataset and {asked} in the configuration: leave the former out"
                )
        data.set_chunk_sizes(sizes.train_chunk_size, sizes.val_chunk_size)
        self._round_source = _Source(data, options)
        self._round_loaders.clear()

    def train_dataloader(self) -> Any:
        """Give the loader of training batches, the same at each call. A Trainer calls this."""
        return self._loader("train")

    def val_dataloader(self) -> Any:
        """Give the loader of validation batches, the same at each call. A Trainer calls this."""
        return self._loader("val")

    def train_epoch_with_chunking(self) -> dict[str, float]:
        """Train for the rest of the current round, then validate on a round; without sizes, `standard_training_epoch`.

        The validation round is the number of completed training rounds, so it rotates, and is the same after a resume.
        Where a step fails, its error comes out, and the next call begins with that step's batch.

        Returns:
            "round" and "cycle", the round and the pass over the dataset that the first of these batches belongs to;
            "train_loss", the mean over them; "val_loss", or the means of what `validation_step` returns.

        Raises:
            ConfigError: a Trainer or several processes train this module, or there is nothing to train on.
        """
        if not self.chunked_training_enabled:
            return self.standard_training_epoch()
        self._refuse_others("train_epoch_with_chunking")
        train, val = self.train_dataloader(), self.val_dataloader()
        for name, loader in (("train", train), ("val", val)):
            if loader != [] and not hasattr(loader, "set_round"):
                raise ConfigError(
                    f"{name}_dataloader() gave a {type(loader).__name__}, which knows no rounds: give a "
                    "ChunkedDataLoader with a chunk_size, or a StreamingDataLoader with round_batches"
                )
        metrics: dict[str, float] = {"round": train.round, "cycle": train.cycle}
        metrics |= self._train_round(train)
        if val != []:
            val.set_round(train.round)
        return metrics | self._validate(val)

    def standard_training_epoch(self) -> dict[str, float]:
        """Train for an epoch of the loader and validate, with the limits of the configuration.

        Returns:
            "train_loss" and "val_loss", as `train_epoch_with_chunking` does.

        Raises:
            ConfigError: as above; a limit that is a share needs a loader with a length.
        """
        self._refuse_others("standard_training_epoch")
        train, val, sizes = self.train_dataloader(), self.val_dataloader(), self.round_sizes
        metrics = self._train(_limited(train, sizes.limit_train_batches, "limit_train_batches"))
        return metrics | self._validate(_limited(val, sizes.limit_val_batches, "limit_val_batches"))

    def chunked_training_state(self) -> dict[str, Any]:
        """Say where training stands beside the module's own weights: the loader's place and the optimizer's state.

        The place is after the last batch whose step was taken, so one that failed comes again. A torch DataLoader has
        none: without rounds, an epoch that was cut short begins anew.
        """
        bookmark = self._bookmark()
        place = None if bookmark is None else bookmark.states()[0]
        return {"train": place, "optimizer": self._optimizer().state_dict()}

    def load_chunked_training_state(self, state: Mapping[str, Any]) -> None:
        """Go on where a state was saved, on the same batch of the same round.

        Raises:
            StateMismatch: it belongs to other data or another order; says what differs.
        """
        if state["train"] is not None and (bookmark := self._bookmark()) is not None:
            bookmark.loaders[0].load_state_dict(state["train"])
            bookmark.mark()
        self._optimizer().load_state_dict(state["optimizer"])

    def _loader(self, partition: str) -> Any:
        """Open the loader of a partition, once."""
        if (source := self._round_source) is None:
            raise ConfigError(
                f"{type(self).__name__} has no data yet: call setup_chunked_training(data), or give it a method "
                f"{partition}_dataloader of its own"
            )
        if partition not in self._round_loaders:
            self._round_loaders[partition] = getattr(source.data, f"{partition}_dataloader")(**source.options)
        return self._round_loaders[partition]

    def _bookmark(self) -> Bookmark | None:
        """Keep a bookmark in the training loader, if it is one of ours."""
        train = self.train_dataloader()
        if self._round_bookmark is None or self._round_bookmark.loaders[0] is not train:
            has_place = isinstance(train, StreamingDataLoader)
            self._round_bookmark = Bookmark([train], lambda: self._num_trained) if has_place else None
        return self._round_bookmark

    def _optimizer(self) -> torch.optim.Optimizer:
        if self._round_optimizer is None:
            optimizer = self.configure_optimizers()  # type: ignore[attr-defined]
            if not isinstance(optimizer, torch.optim.Optimizer):
                raise ConfigError(
                    f"configure_optimizers() gave {type(optimizer).__name__}: without a Trainer it must give one "
                    "torch.optim.Optimizer; for schedulers or several, use a Trainer with RoundsCallback"
                )
            self._round_optimizer = optimizer
        return self._round_optimizer

    def _refuse_others(self, method: str) -> None:
        """Refuse to be a loop inside another's, or beside others that it would have to be in step with."""
        # Without a Trainer, asking a LightningModule for it raises.
        trainer = getattr(self, "_trainer", None)
        if trainer is not None and getattr(trainer.state, "status", None) == "running":
            raise ConfigError(
                f"{method}() is a training loop, and a Trainer is running this module already: leave the loop to it, "
                "with RoundsCallback among its callbacks"
            )
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            size = torch.distributed.get_world_size()
            if size > 1:
                raise ConfigError(
                    f"{method}() trains one process, and this is one of {size}: use a Trainer with RoundsCallback, or "
                    "wrap the module in DistributedDataParallel and loop over loader.rounds()"
                )

    def _train_round(self, train: Any) -> dict[str, float]:
        """Take a step for each batch left of the round; one whose step fails comes again in the next call."""
        if (bookmark := self._bookmark()) is not None:
            # Somebody may have moved the loader since: it is trained from where it stands now.
            bookmark.mark()
        try:
            return self._train(train, start=train.batch_in_round)
        except BaseException:
            if bookmark is not None and train.state_dict() != (place := bookmark.states()[0]):
                train.load_state_dict(place)
            raise

    def _train(self, batches: Iterable[Any], start: int = 0) -> dict[str, float]:
        """Take a step for each batch."""
        optimizer, bookmark = self._optimizer(), self._bookmark()
        self.train()  # type: ignore[attr-defined]
        total, count = 0.0, 0
        for index, batch in enumerate(batches, start=start):
            answer = self.training_step(batch, index)  # type: ignore[attr-defined]
            loss = answer["loss"] if isinstance(answer, Mapping) else answer
            if loss is not None:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                # Kept where it is: asking for its value here would make every step wait for the device.
                total, count = total + loss.detach(), count + 1
            self._num_trained += 1
            if bookmark is not None:
                bookmark.mark()
        return {"train_loss": float(total) / count} if count else {}

    @torch.no_grad()
    def _validate(self, batches: Iterable[Any]) -> dict[str, float]:
        """Take the means of what `validation_step` says of each batch."""
        if not hasattr(self, "validation_step"):
            return {}
        self.eval()  # type: ignore[attr-defined]
        totals: dict[str, Any] = {}
        counts: dict[str, int] = {}
        for index, batch in enumerate(batches):
            answer = self.validation_step(batch, index)
            if answer is None:
                continue
            for name, value in (answer if isinstance(answer, Mapping) else {"val_loss": answer}).items():
                totals[name] = totals.get(name, 0.0) + value
                counts[name] = counts.get(name, 0) + 1
        self.train()  # type: ignore[attr-defined]
        return {name: float(total) / counts[name] for name, total in totals.items()}


def _limited(loader: Any, limit: int | float | None, name: str) -> Iterable[Any]:
    """Give the first batches of a loader: a number of them, or a share of its length."""
    if limit is None:
        return loader
    if isinstance(limit, float):
        try:
            limit = int(len(loader) * limit)
        except TypeError:
            raise ConfigError(
                f"{name}={limit} is a share, and {type(loader).__name__} has no length: give a number"
            ) from None
    return islice(loader, limit)
