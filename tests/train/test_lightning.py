"""Rounds in Lightning: one epoch is one round, validation comes after each, and each option works or is refused."""

from __future__ import annotations

import copy
import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.utilities.combined_loader import CombinedLoader

from lightning_subjects import Diary, Numbered, OwnLoaders, Unvalidated, fit, ten_in_fours, trainer
from penstock import ConfigError, EvaluationRounds, RoundsCallback, RoundsDataModule, StreamingDataLoader

# Lightning 2.6 compares tree specs in a way that torch 2.13 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")


def own(module: Diary | None = None, callback: RoundsCallback | None = None, **settings: Any) -> Diary:
    """Train a module from its own loaders."""
    module = module or OwnLoaders()
    trainer(callbacks=[callback or RoundsCallback()], **settings).fit(module)
    return module


def cycles_of(trained: list[list[int]], size: int = 10) -> list[list[int]]:
    ids = [index for batch in trained for index in batch]
    return [sorted(ids[start : start + size]) for start in range(0, len(ids) - size + 1, size)]


def test_seven_rounds_are_validated_seven_times_also_where_a_round_crosses_the_end_of_a_cycle():
    module, by = fit(max_epochs=7)
    assert len(module.trained) == 7 * 4
    assert cycles_of(module.trained) == [list(range(10))] * 2
    assert module.trained[:10] != module.trained[10:20]
    assert len(module.validated) == 7
    assert by.current_epoch == 7


def test_validation_rotates_through_the_whole_set():
    module, _ = fit(max_epochs=4)
    assert module.validated == [[2, 3], [4], [0, 1], [2, 3]]
    assert own(max_epochs=4).validated == module.validated


def test_validation_can_be_fixed_or_full():
    module, _ = fit(data=ten_in_fours(val_mode="fixed"), max_epochs=3)
    assert module.validated == [[0, 1]] * 3
    assert own(callback=RoundsCallback(val_mode="fixed"), max_epochs=3).validated == [[0, 1]] * 3
    for settings in ({"val_mode": "full"}, {}):
        module, _ = fit(data=ten_in_fours(val_chunk_size=None, **settings), max_epochs=3)
        assert module.validated == [[0, 1, 2, 3, 4]] * 3


def test_a_size_for_validation_alone_makes_rounds_of_the_whole_training_set():
    module, _ = fit(data=ten_in_fours(train_chunk_size=None, batch_size=3), max_epochs=2)
    assert [len(batch) for batch in module.trained] == [3, 3, 3, 1] * 2
    assert cycles_of(module.trained) == [list(range(10))] * 2
    assert len(module.validated) == 2


def test_the_sanity_check_moves_nothing():
    checked, _ = fit(max_epochs=3, num_sanity_val_steps=1)
    unchecked, _ = fit(max_epochs=3, num_sanity_val_steps=0)
    assert checked.sanity == [[0]]
    assert (checked.trained, checked.validated) == (unchecked.trained, unchecked.validated)

    class Streaming(OwnLoaders):
        def val_dataloader(self) -> Any:
            return StreamingDataLoader(Numbered(5), 1)

    module = own(Streaming(), max_epochs=2)
    assert module.sanity == [[0, 1]]
    assert module.validated == [[0, 1, 2, 3, 4]] * 2


def test_validation_loaders_that_are_there_twice_see_the_same_round():
    class Twice(RoundsDataModule):
        def val_dataloader(self) -> Any:
            loader = super().val_dataloader()
            return [loader, loader]

    data = Twice(Numbered(10), Numbered(5), train_chunk_size=4, val_chunk_size=2)
    module, _ = fit(data=data, max_epochs=3)
    assert module.validated == [[2, 3, 2, 3], [4, 4], [0, 1, 0, 1]]


def test_loaders_of_a_modules_own_are_twice_what_they_are_once_or_are_refused():
    class Twice(OwnLoaders):
        def val_dataloader(self) -> Any:
            return self.twice(super().val_dataloader())

    module = Twice()
    module.twice = lambda loader: {"a": loader, "b": copy.copy(loader)}
    assert own(module, max_epochs=2).validated == [[2, 3, 2, 3], [4, 4]]
    module.twice = lambda loader: CombinedLoader([loader, copy.copy(loader)], "sequential")
    assert own(module, max_epochs=2).validated[2:] == [[2, 3, 2, 3], [4, 4]]
    module.twice = lambda loader: [EvaluationRounds(loader)] * 2
    assert own(module, max_epochs=2).validated[4:] == [[2, 3, 2, 3], [4, 4]]
    module.twice = lambda loader: [loader, loader]
    with pytest.raises(ConfigError, match="there twice, and the second time it would give the next round"):
        own(module, max_epochs=1)


class Lines(Logger):
    """A logger that writes a line of JSON for each call."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    name = version = "lines"

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(metrics) + "\n")

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """There are none."""


def test_every_logger_is_told_the_round_beside_the_metrics_of_its_validation(tmp_path):
    loggers = [CSVLogger(tmp_path, name="", version=""), Lines(tmp_path / "lines")]
    fit(max_epochs=4, logger=loggers, log_every_n_steps=1)
    with (tmp_path / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["val_loss"]]
    lines = [line for line in map(json.loads, (tmp_path / "lines").read_text().splitlines()) if "val_loss" in line]
    for told in (rows, lines):
        assert [(float(each["round"]), float(each["cycle"])) for each in told] == [(0, 0), (1, 0), (2, 0), (3, 1)]


def test_without_validation_the_round_is_logged_as_it_ends(tmp_path):
    data = RoundsDataModule(Numbered(10), train_chunk_size=4)
    fit(Unvalidated(), data, max_epochs=3, logger=Lines(tmp_path / "lines"), log_every_n_steps=1)
    lines = [json.loads(line) for line in (tmp_path / "lines").read_text().splitlines()]
    assert [line["round"] for line in lines] == [0, 1, 2]


@pytest.mark.parametrize("kind", [TQDMProgressBar, RichProgressBar])
def test_the_progress_bar_or_without_one_the_log_names_the_round(kind, caplog):
    shown = []

    class Looking(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            bar = trainer.progress_bar_callback.train_progress_bar
            shown.append(getattr(bar, "desc", None) or bar.description)

    fit(max_epochs=4, enable_progress_bar=True, callbacks=[kind(), Looking()])
    assert "round" not in caplog.text
    fit(max_epochs=4)
    rounds = ["round 1/3, cycle 0", "round 2/3, cycle 0", "round 3/3, cycle 0", "round 1/3, cycle 1"]
    assert [text.strip(": ") for text in shown[::4]] == rounds
    assert [record.getMessage() for record in caplog.records if record.getMessage().startswith("round")] == rounds


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"overfit_batches": 2}, "overfit_batches=2 repeats the same batches every epoch"),
        ({"val_check_interval": "00:00:01:00"}, "val_check_interval is a time"),
        ({"val_check_interval": 3}, "validates every 3 batches, which misses the end of a round of 4"),
        ({"val_check_interval": 0.8}, "validates every 3 batches, which misses the end of a round of 4"),
        (
            {"val_check_interval": 8, "check_val_every_n_epoch": None},
            "give it the number of rounds from one validation",
        ),
    ],
)
def test_options_that_cannot_work_with_rounds_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        fit(max_epochs=2, **settings)


@pytest.mark.parametrize(
    ("settings", "trained", "validated"),
    [
        ({"max_steps": 6}, 6, [[2, 3]]),
        ({"max_epochs": 9, "max_steps": 6}, 6, [[2, 3]]),
        ({"max_epochs": 2, "fast_dev_run": 2}, 2, [[0, 1]]),
        ({"max_epochs": 2, "val_check_interval": 0.5}, 8, [[0, 1], [2, 3], [2, 3], [4]]),
        ({"max_epochs": 2, "val_check_interval": 2}, 8, [[0, 1], [2, 3], [2, 3], [4]]),
        # Each validates on the round after the one before, so that none is left out.
        ({"max_epochs": 6, "check_val_every_n_epoch": 2}, 24, [[2, 3], [4], [0, 1]]),
        ({"max_epochs": 3, "reload_dataloaders_every_n_epochs": 1}, 12, [[2, 3], [4], [0, 1]]),
        ({"max_epochs": 3, "reload_dataloaders_every_n_epochs": 2}, 12, [[2, 3], [4], [0, 1]]),
        ({"max_epochs": 2, "num_sanity_val_steps": -1}, 8, [[2, 3], [4]]),
        ({"max_epochs": 2, "barebones": True, "num_sanity_val_steps": 0}, 8, [[2, 3], [4]]),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("is_own", [False, True])
@pytest.mark.filterwarnings("ignore:.*Trainer.barebones=True.:UserWarning")
def test_options_work_as_they_are_meant(settings, trained, validated, is_own):
    whole, _ = fit(max_epochs=7)
    module = own(**settings) if is_own else fit(**settings)[0]
    assert module.trained == whole.trained[:trained]
    assert module.validated == validated


@pytest.mark.parametrize(
    "limit",
    [{"limit_train_batches": 2}, {"limit_val_batches": 0.5, "limit_train_batches": 1}, {"limit_val_batches": 0}],
)
def test_limits_are_lifted_with_one_warning(limit):
    with pytest.warns(UserWarning, match="ignored, because rounds go over the whole") as warned:
        module, _ = fit(max_epochs=2, **limit)
    assert len([each for each in warned if "ignored" in str(each.message)]) == 1
    assert len(module.trained) == 8
    assert module.validated == [[2, 3], [4]]


def test_gradients_accumulate_within_a_round_and_a_step_ends_it():
    module, _ = fit(max_epochs=3, accumulate_grad_batches=2)
    assert module.steps == 6
    with pytest.warns(UserWarning, match="its last step is of 1 batches only"):
        module, _ = fit(max_epochs=3, accumulate_grad_batches=3)
    assert module.steps == 6


def test_a_policy_decides_how_long_the_next_round_is():
    asked = []

    def policy(history: Any) -> int:
        asked.append([(record.num_batches, record.metrics) for record in history])
        return 2 + len(history)

    class Adaptive(OwnLoaders):
        loader = None

        def train_dataloader(self) -> Any:
            self.loader = self.loader or StreamingDataLoader(Numbered(10), 1, shuffle=True, round_batches=policy)
            return self.loader

    settings = {"max_epochs": 3, "callback": RoundsCallback(report="val_loss")}
    module = own(Adaptive(), reload_dataloaders_every_n_epochs=1, **settings)
    assert len(module.trained) == 2 + 3 + 4
    assert module.validated == [[2, 3], [4], [0, 1]]
    assert asked[:3] == [[], [(2, {"val_loss": 2.5})], [(2, {"val_loss": 2.5}), (3, {"val_loss": 4.0})]]
    with pytest.raises(ConfigError, match=r"need Trainer\(reload_dataloaders_every_n_epochs=1\), got 0"):
        own(Adaptive(), **settings)


def test_rounds_of_several_lengths_need_a_trainer_that_asks_for_them():
    data = ten_in_fours(boundary="short")
    with pytest.raises(ConfigError, match="the last of each cycle has 2, which the Trainer is not told of"):
        fit(data=data, max_epochs=3)
    module, _ = fit(data=ten_in_fours(boundary="short"), max_epochs=4, reload_dataloaders_every_n_epochs=1)
    assert len(module.trained) == 4 + 4 + 2 + 4
    assert module.validated == [[2, 3], [4], [0, 1], [2, 3]]


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_several_training_loaders_go_round_by_round_together():
    class Two(OwnLoaders):
        second = 4

        def train_dataloader(self) -> Any:
            other = StreamingDataLoader(Numbered(20), 1, shuffle=True, round_batches=self.second)
            return {"a": super().train_dataloader(), "b": other, "c": torch.utils.data.DataLoader([7])}

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            self.seconds = [*getattr(self, "seconds", []), *batch["b"].tolist()]
            return super().training_step(batch["a"], batch_idx)

    module = own(Two(), max_epochs=5)
    assert cycles_of(module.trained) == [list(range(10))] * 2
    assert sorted(module.seconds) == list(range(20))
    module = Two()
    module.second = 5
    with pytest.raises(ConfigError, match=r"rounds of \[4, 5\] batches"):
        own(module, max_epochs=1)


@pytest.mark.parametrize(
    ("train", "val", "callback", "said"),
    [
        ("a", "a", {}, "the training loader is given for validation too"),
        ("a", "wrapped a", {}, "the training loader is given for validation too"),
        ("a", "policy", {}, "give its round_batches= a number|set_round.. needs rounds of one length"),
        ("a", "b", {"report": "val_loss"}, "no training loader has a policy that would read it"),
        (["a", "nine"], "b", {}, r"the Trainer expects 9, .* CombinedLoader\(loaders, 'min_size'\)"),
    ],
)
def test_what_would_go_wrong_after_a_round_is_refused_before_the_first_batch(train, val, callback, said):
    made: dict[str, Any] = {
        "a": StreamingDataLoader(Numbered(10), 1, round_batches=4),
        "b": StreamingDataLoader(Numbered(5), 1, round_batches=2),
        "nine": StreamingDataLoader(Numbered(9), 1),
        "policy": StreamingDataLoader(Numbered(5), 1, round_batches=lambda history: 2),
    }
    made["wrapped a"] = EvaluationRounds(made["a"])
    training = [made[name] for name in train] if isinstance(train, list) else made[train]
    for sanity in (0, 1):
        module = Diary()
        by = trainer(max_epochs=3, num_sanity_val_steps=sanity, callbacks=[RoundsCallback(**callback)])
        with pytest.raises(ConfigError, match=said):
            by.fit(module, training, made[val])
        assert module.trained == []


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_a_longer_loader_of_torchs_beside_one_with_rounds_is_read_as_long_as_those():
    class Beside(OwnLoaders):
        def train_dataloader(self) -> Any:
            return CombinedLoader([super().train_dataloader(), torch.utils.data.DataLoader(Numbered(9))], "min_size")

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return super().training_step(torch.cat(batch), batch_idx)

    module = own(Beside(), max_epochs=3)
    assert [second for _, second in module.trained] == [*range(4)] * 3


def test_a_second_fit_goes_on_at_a_rounds_start_and_is_refused_in_its_middle():
    data = ten_in_fours()
    whole, _ = fit(max_epochs=3)
    first, _ = fit(data=data, max_epochs=2)
    second, _ = fit(data=data, max_epochs=1)
    assert first.trained + second.trained == whole.trained
    fit(data=data, max_steps=2)
    with pytest.raises(ConfigError, match="the loader stands at batch 2 of round 3"):
        fit(data=data, max_epochs=1)


def test_a_callback_without_rounds_is_told_so():
    class Plain(OwnLoaders):
        def train_dataloader(self) -> Any:
            return StreamingDataLoader(Numbered(10), 1)

    with pytest.raises(ConfigError, match="found no training loader with rounds"):
        own(Plain(), max_epochs=1)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_without_sizes_all_is_as_lightning_has_it():
    def run(data: Any) -> tuple[Diary, pl.Trainer]:
        torch.manual_seed(0)
        module, by = Diary(), trainer(max_epochs=3, limit_train_batches=4, limit_val_batches=2, callbacks=callbacks)
        by.fit(module, **data)
        return module, by

    callbacks: list[pl.Callback] = []
    made = RoundsDataModule(Numbered(10), Numbered(5), batch_size=2, val_mode="rotate")
    ours, by = run({"datamodule": made})
    assert type(by.train_dataloader) is type(by.val_dataloaders) is torch.utils.data.DataLoader
    assert not any(isinstance(each, RoundsCallback) for each in by.callbacks)
    theirs, _ = run(
        {
            "train_dataloaders": torch.utils.data.DataLoader(Numbered(10), 2, shuffle=True),
            "val_dataloaders": torch.utils.data.DataLoader(Numbered(5), 2),
        }
    )
    assert (ours.trained, ours.validated) == (theirs.trained, theirs.validated)
    # A callback that was added all the same stands aside.
    callbacks = [RoundsCallback()]
    again, by = run({"datamodule": RoundsDataModule(Numbered(10), Numbered(5), batch_size=2)})
    assert (again.trained, again.validated) == (theirs.trained, theirs.validated)
    assert by.limit_train_batches == 4


def test_sets_are_made_when_they_are_needed():
    made = []

    def make(name: str, size: int) -> Any:
        return lambda: made.append(name) or Numbered(size)

    data = RoundsDataModule(make("train", 10), make("val", 5), make("test", 3), train_chunk_size=4)
    assert made == []
    module, by = fit(data=data, max_epochs=1)
    assert made == ["train", "val"]
    Diary.test_step = Diary.validation_step
    try:
        by.test(module, datamodule=data, verbose=False)
    finally:
        del Diary.test_step
    assert made == ["train", "val", "test"]
    assert sorted(index for batch in data.test_dataloader() for index in batch.tolist()) == [0, 1, 2]


def test_validating_alone_takes_the_round_that_training_is_at(tmp_path):
    module, by = fit(max_epochs=2)
    by.save_checkpoint(tmp_path / "a.ckpt")
    by.validate(module, datamodule=by.datamodule, verbose=False)
    assert module.validated[2:] == [[4]]
    fresh = Diary()
    trainer().validate(fresh, datamodule=ten_in_fours(), ckpt_path=tmp_path / "a.ckpt", verbose=False)
    assert fresh.validated == [[4]]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"val_mode": "full", "val_chunk_size": 2}, "give one of the two"),
        ({"val_mode": "all"}, "val_mode must be one of"),
        ({"train_chunk_size": 0}, "train_chunk_size must be an integer from 1"),
        ({"val_chunk_size": 2.0}, "val_chunk_size must be an integer"),
        (
            {"train_chunk_size": lambda history: 4},
            r"StreamingDataLoader\(…, round_batches=policy\), .* RoundsCallback\(rep",
        ),
        ({"val_mod": "full"}, r"^RoundsDataModule takes no val_mod; did you mean val_mode\?"),
        ({"num_worker": 2}, r"^RoundsDataModule takes no num_worker; did you mean num_workers\?"),
    ],
)
def test_what_cannot_work_is_refused_at_once(settings, said):
    with pytest.raises(ConfigError, match=said):
        ten_in_fours(**settings)
    with pytest.raises(ConfigError, match="val_mode, of a callback, must be one of"):
        RoundsCallback(val_mode="full")


def test_a_round_of_evaluation_is_as_often_the_same_as_it_is_asked_for():
    loader = EvaluationRounds(StreamingDataLoader(Numbered(5), 1, round_batches=2, remainder="short"))
    loader.set_round(2)
    batches = iter(loader)
    assert next(batches).tolist() == [4]
    assert len(loader) == 1, "asking in the middle moves nothing"
    assert list(batches) == []
    loader.set_round(1)
    next(iter(loader))
    assert [int(batch) for batch in loader] == [2, 3], "one that was broken off begins anew"
    assert (len(loader), loader.round, loader.total_rounds, loader.batch_size, len(loader.dataset)) == (2, 1, 3, 1, 5)
    loader.close()
    assert len(list(loader)) == 2


def test_two_words_for_the_same_thing_must_agree():
    with pytest.raises(ConfigError, match="'fixed' for the callback and 'rotate' for the data module"):
        fit(data=ten_in_fours(val_mode="rotate"), callbacks=[RoundsCallback(val_mode="fixed")], max_epochs=1)


def test_without_lightning_the_names_say_what_to_install():
    program = (
        "import sys; sys.modules['lightning'] = None\n"
        "import penstock\n"
        "try: from penstock import RoundsCallback\n"
        "except penstock.ConfigError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert "pip install 'penstock[lightning]'" in done.stdout
