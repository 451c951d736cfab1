"""Rounds in Lightning: one epoch of the Trainer's is one round, and validation comes after each.

    RoundsDataModule ──loaders──▶ Trainer ◀──hooks── RoundsCallback
                                     │                    ├── puts validation at the round whose turn it is
                                     ▼                    ├── round and cycle in bar, log and metrics
                                 checkpoint ◀────state────┘   exact: after the last batch trained on

Lightning saves the state of training loaders by itself, but loads it only where an epoch was under way, and
what it saves when a batch fails is one batch too far. The callback's own state is right in both cases, and wins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from penstock.errors import ConfigError
from penstock.train.evaluation_rounds import EvaluationRounds
from penstock.train.lightning_loaders import (
    ValidationMode,
    adapts,
    check_constant_length,
    check_in_step,
    check_is_over,
    check_validation,
    choose_mode,
    flat,
    has_rounds,
    label,
    placed,
    put_at_round,
    training_rounds,
    with_rounds,
)
from penstock.train.lightning_options import (
    check_options,
    lift_limits,
    metrics_to_report,
    rounds_between_validations,
    uneven_accumulation,
)
from penstock.train.lightning_restart import finish_epoch, mend_progress, take_loader_states
from penstock.train.lightning_source import PlacedSource
from penstock.train.round_bookmark import Bookmark, load_states
from penstock.train.sequence_dataset import ChunkedSequenceDataset, check_loader_options
from penstock.types import check_choice

try:
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
    from lightning.pytorch.utilities.combined_loader import CombinedLoader
    from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
except ImportError as error:
    raise ConfigError(
        "RoundsCallback and RoundsDataModule need lightning: pip install 'penstock[lightning]'"
    ) from error


class RoundsCallback(pl.Callback):  # type: ignore[misc]
    """Makes each epoch of a Lightning Trainer one round, with validation after it, and resumes exactly.

    For any LightningModule whose training loader has rounds: a `StreamingDataLoader` with `round_batches=`, a
    `ChunkedDataLoader` with a chunk size, or what `RoundsDataModule` gives, which brings this callback along.

    After each validation every logger is told `round`, the number of the round trained, and `cycle`, the pass over the
    dataset it began in, in the same row as the validation's metrics. `limit_train_batches` and `limit_val_batches` are
    lifted, with one warning. All other options of the Trainer work as meant or are refused before training begins; see
    the guide "rounds with Lightning".

    Args:
        val_mode: validation loaders that have rounds are put at the round of the number of training rounds completed
            ("rotate"), or always at the first ("fixed"). None: as the data module says, else "rotate".
        report: names of one or two metrics that a policy for `round_batches=` is told of after each validation.

    Raises:
        ConfigError: lightning is not installed, or an argument is not as above; from `Trainer.fit`, an option of the
            Trainer that cannot work with rounds, a training loader without rounds, or a checkpoint from the middle of
            a round of another length.
    """

    def __init__(self, *, val_mode: Literal["rotate", "fixed"] | None = None, report: Sequence[str] = ()) -> None:
        if val_mode is not None:
            check_choice("val_mode, of a callback,", val_mode, ("rotate", "fixed"))
        self._asked_mode = val_mode
        self._report = (report,) if isinstance(report, str) else tuple(report)
        self._is_on = True
        self._mode: ValidationMode = "rotate"
        self._every = 1
        """Rounds from one validation to the next."""
        self._bookmark: Bookmark | None = None
        self._saved: list[dict[str, Any]] | None = None
        """States that the loaders have not been given yet."""
        self._number = self._cycle = 0
        """The round under way, and the cycle it began in."""
        self._label = ""
        self._has_shown = self._has_logged = True
        self._is_validating = self._is_over = False
        """Over: the epoch that a checkpoint was written in has had its last batch, and has its end before it."""
        self._counted: tuple[Any, Any] | None = None
        """What the Trainer had counted for the epochs after that one."""

    def state_dict(self) -> dict[str, Any]:
        """Say where the training loaders stand: after the last batch trained on."""
        states = self._saved if self._bookmark is None else self._bookmark.states()
        if not states:
            return {}
        place = {"round": self._number, "cycle": self._cycle, "validating": self._is_validating}
        return {**place, "loaders": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep a checkpoint's states until the loaders are there."""
        self._bookmark, self._saved = None, state_dict["loaders"]
        self._number, self._cycle = state_dict["round"], state_dict["cycle"]

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """See that a round is gone on with where it was cut off, and does not stay without its validation."""
        if not self._is_on or trainer.state.fn != "fit":
            return
        state, saved = checkpoint["callbacks"].get(self.state_key), take_loader_states(checkpoint)
        if state:
            self._is_over = mend_progress(trainer, checkpoint, state["loaders"], is_validating=state["validating"])
        elif saved:
            # Written without this callback: what Lightning has of the loaders is right at least where an epoch ended.
            self._saved = saved

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what cannot work and lift the limits, before the trainer asks for loaders."""
        data = trainer.datamodule if isinstance(trainer.datamodule, RoundsDataModule) else None
        self._is_on = data is None or data.has_rounds
        if isinstance(trainer.fit_loop._data_source, PlacedSource):
            trainer.fit_loop._data_source = trainer.fit_loop._data_source.plain
        if not self._is_on:
            return
        self._mode = choose_mode(self._asked_mode, None if data is None else data.val_mode) or "rotate"
        if stage != "fit":
            return
        # Where an earlier fit left off is for its loaders to know, or for a checkpoint.
        self._bookmark, self._saved, self._counted = None, None, None
        self._is_validating = self._is_over = False
        # First of all, so that what others save in a hook is after what this one does in it.
        trainer.callbacks.sort(key=lambda callback: callback is not self)
        trainer.fit_loop._data_source = PlacedSource(trainer.fit_loop._data_source, self._place)
        check_options(trainer)
        if note := lift_limits(trainer):
            rank_zero_warn(note)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the loaders where the checkpoint says, and see that they fit the trainer."""
        if not self._is_on:
            return
        loaders, fit_loop = placed(flat(trainer.train_dataloader)), trainer.fit_loop
        if self._saved is not None:
            load_states(self._saved, loaders)
            self._saved = None
        self._bookmark = Bookmark(loaders, lambda: fit_loop.epoch_loop.batch_progress.total.processed)
        check_validation(flat(trainer.val_dataloaders), loaders, self._report)
        leader, num_batches = with_rounds(loaders)[0], fit_loop.max_batches
        if self._is_over and fit_loop.restarting:
            # The loader stands in the next round already, whose length a policy decides after the validation.
            self._counted = finish_epoch(trainer)
            num_batches = fit_loop.max_batches
        elif not trainer.fast_dev_run:
            check_constant_length(leader, num_batches, trainer.reload_dataloaders_every_n_epochs)
            if fit_loop.restarting:
                check_in_step(leader, fit_loop.epoch_loop.batch_progress.current.processed, num_batches)
        self._every = rounds_between_validations(trainer, num_batches, adapts=adapts(leader))
        if note := uneven_accumulation(trainer, num_batches, adapts=adapts(leader)):
            rank_zero_warn(note)
        # At the end of an epoch the round is still the one that was saved; the loader is ahead of it.
        if not fit_loop.restarting or leader.batch_in_round:
            self._begin_round(leader)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin a round."""
        if self._bookmark is None:
            return
        leader = with_rounds(self._bookmark.loaders)[0]
        if not trainer.fast_dev_run:
            fit_loop = trainer.fit_loop
            done = fit_loop.epoch_loop.batch_progress.current.processed if fit_loop.restarting else 0
            check_in_step(leader, done, fit_loop.max_batches)
            check_constant_length(leader, fit_loop.max_batches, trainer.reload_dataloaders_every_n_epochs)
        self._begin_round(leader)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Show the round, once the progress bars have begun theirs."""
        if self._bookmark is None or self._has_shown:
            return
        self._has_shown = True
        bar = trainer.progress_bar_callback
        if bar is None or bar.is_disabled:
            rank_zero_info(self._label)
        else:
            _show(bar, self._label)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bookmark."""
        if self._bookmark is not None:
            self._has_logged = False
            self._bookmark.mark()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the round, if there was no validation to log it with."""
        if self._counted is not None:
            trainer.fit_loop.max_batches, trainer.val_check_batch = self._counted
            self._counted = None
        if self._bookmark is not None and not self._has_logged:
            self._log(trainer, pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the validation loaders at the round of the training rounds completed."""
        if not self._is_on:
            return
        completed = 0
        if self._bookmark is not None:
            check_validation(flat(trainer.val_dataloaders), self._bookmark.loaders)
            completed = with_rounds(self._bookmark.loaders)[0].round
        elif self._saved:
            completed = next((state["round"] for state in self._saved if "round" in state), 0)
        self._is_validating = trainer.state.fn == "fit" and not trainer.sanity_checking
        put_at_round(flat(trainer.val_dataloaders), 0 if self._mode == "fixed" else completed // self._every)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the round beside the validation's metrics."""
        self._is_validating = False
        if self._bookmark is not None and not trainer.sanity_checking and trainer.state.fn == "fit":
            self._log(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the validation loaders back, and tell a policy what became of the round."""
        if self._is_on:
            # The Trainer asks for their length before a validation begins, and the first round is the longest.
            put_at_round(flat(trainer.val_dataloaders), 0)
        if not self._report or self._bookmark is None or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        # Ranks that have not reduced a metric have values of their own, and must not have policies of their own.
        metrics = trainer.strategy.broadcast(metrics_to_report(self._report, trainer.callback_metrics))
        for loader in with_rounds(self._bookmark.loaders):
            if loader.batch_in_round == 0 and adapts(loader):
                loader.report(**metrics)
        self._bookmark.mark()

    def _place(self, loaders: Any) -> None:
        """Put training loaders where they belong, before the Trainer counts their batches."""
        found = flat(loaders.iterables if isinstance(loaders, CombinedLoader) else loaders)
        training_rounds(found)
        if self._bookmark is not None:
            self._bookmark.move_to(placed(found))
        elif self._saved is not None and not self._is_over:
            # Where it is, a policy must not be asked for the next round before the last one has been validated.
            load_states(self._saved, placed(found))

    def _begin_round(self, leader: Any) -> None:
        assert self._bookmark is not None
        self._number, self._cycle = leader.round, leader.cycle
        self._label = label(leader)
        self._has_shown, self._has_logged = False, True
        self._bookmark.mark()

    def _log(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._has_logged = True
        if not trainer.barebones:
            pl_module.log_dict({"round": float(self._number), "cycle": float(self._cycle)}, sync_dist=True)


class RoundsDataModule(pl.LightningDataModule):  # type: ignore[misc]
    """Training and validation loaders that go by rounds if a size is given, and are plain torch DataLoaders if none is.

    Brings a `RoundsCallback` along unless the Trainer has one. Its state is part of the Trainer's checkpoints.

    Args:
        train: the training set, or a function without arguments that makes it when the Trainer sets up.
        val: the validation set, or such a function; None: there is none.
        test: the test set, or such a function; None: there is none. It is always read whole.
        batch_size: samples per batch of a process.
        train_chunk_size: batches per process in a round of training. None: a round is the whole training set, if
            `val_chunk_size` is given.
        val_chunk_size: batches per process in a round of validation. None: the whole set, if `train_chunk_size` is
            given.
        val_mode: with `val_chunk_size`, validate on the next round each time ("rotate") or on the first ("fixed");
            "full": on all of the set, without a size. None: "rotate" where there is a size, else "full".
        **options: of the loaders, see `ChunkedDataLoader`: `num_workers`, `collate_fn`, `pin_memory`, ….

    Raises:
        ConfigError: lightning is not installed, a size is no positive integer, `val_mode` contradicts the sizes, or no
            loader takes an option.
    """

    def __init__(
        self,
        train: Any,
        val: Any = None,
        test: Any = None,
        *,
        batch_size: int = 1,
        train_chunk_size: int | None = None,
        val_chunk_size: int | None = None,
        val_mode: ValidationMode | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        check_loader_options(type(self), options)
        choose_mode(val_mode)
        if val_mode == "full" and val_chunk_size is not None:
            raise ConfigError(
                f"val_mode='full' validates on the whole set, and val_chunk_size={val_chunk_size} on so many batches "
                "of it: give one of the two"
            )
        self.val_mode = val_mode
        self._given: dict[str, Any] = {"train": train, "val": val, "test": test}
        self._data = ChunkedSequenceDataset(train_chunk_size, val_chunk_size, batch_size=batch_size, **options)
        # Lightning looks for methods of its own that are overridden, and takes an empty list for a loader.
        if val is None:
            self.val_dataloader = super().val_dataloader  # type: ignore[method-assign]
        if test is None:
            self.test_dataloader = super().test_dataloader  # type: ignore[method-assign]
        self._loaders: dict[str, Any] = {}
        self._callback: RoundsCallback | None = None
        self._is_resuming = False

    @property
    def has_rounds(self) -> bool:
        """Tell whether there are rounds: either of the sizes is given."""
        return self._data.use_chunked_training

    def setup(self, stage: str) -> None:
        """Make the sets that a stage needs, and bring the callback along.

        Args:
            stage: "fit", "validate", "test" or "predict", as the Trainer says it.
        """
        needed = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}.get(stage, ())
        for name in needed:
            if callable(make := self._given[name]):
                self._given[name] = make()
            setattr(self._data, f"dataset_{name}", self._given[name])
        if not self.has_rounds or self.trainer is None:
            return
        found = [each for each in self.trainer.callbacks if isinstance(each, RoundsCallback)]
        self._callback = found[0] if found else self._callback or RoundsCallback()
        if not found:
            # Before all others, so that checkpoints that they write after a batch are after ours knows of it.
            self.trainer.callbacks.insert(0, self._callback)

    def state_dict(self) -> dict[str, Any]:
        """Say where the training loader stands."""
        return {} if self._callback is None else self._callback.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Note that there is a state; the callback puts the loader where it says."""
        self._is_resuming = True

    def train_dataloader(self) -> Any:
        """Give the training loader: with rounds the same at each call, else a new torch DataLoader."""
        loader = self._loader("train")
        if self._is_resuming and not self.has_rounds:
            check_is_over(self.trainer.fit_loop)
        return loader

    def val_dataloader(self) -> Any:
        """Give the validation loader: with rounds the same at each call."""
        return self._loader("val")

    def test_dataloader(self) -> Any:
        """Give the test loader, over all of the test set."""
        return self._loader("test")

    def teardown(self, stage: str) -> None:
        """End the loaders' workers.

        Args:
            stage: as the Trainer says it.
        """
        for loader in self._loaders.values():
            loader.close()

    def _loader(self, name: str) -> Any:
        """Open a partition's loader, once if it has rounds, which have a place to be kept."""
        if name in self._loaders:
            return self._loaders[name]
        if self.trainer is None:
            self.setup({"train": "fit", "val": "validate"}.get(name, name))
        loader = getattr(self._data, f"{name}_dataloader")()
        if has_rounds(loader):
            self._loaders[name] = loader = loader if name == "train" else EvaluationRounds(loader)
        return loader


def _show(bar: Any, text: str) -> None:
    """Name the training bar after the round."""
    if isinstance(bar, TQDMProgressBar):
        bar.train_progress_bar.set_description(text)
    elif isinstance(bar, RichProgressBar) and bar.progress is not None and bar.train_progress_bar_id is not None:
        bar.progress.update(bar.train_progress_bar_id, description=text)
