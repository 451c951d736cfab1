"""A run that was cut off goes on with the very next batch, from any checkpoint that Lightning can write."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint

from lightning_subjects import Diary, Numbered, OwnLoaders, Unvalidated, fit, ten_in_fours, trainer
from penstock import ConfigError, RoundsCallback, RoundsDataModule, StateMismatch, StreamingDataLoader

# Lightning 2.6 compares tree specs in a way that torch 2.13 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")

ROUNDS = 7
WORKER = Path(__file__).resolve().parent.parent / "lightning_worker.py"


class Saving(pl.Callback):
    """Writes a checkpoint each time a hook is called, and notes how much had been done by then."""

    def __init__(self, hook: str, folder: Path) -> None:
        self.folder = folder
        self.written: list[tuple[Path, int, int]] = []
        setattr(self, hook, self._save)

    def _save(self, trainer: pl.Trainer, module: Diary, *_: Any) -> None:
        if not trainer.sanity_checking:
            path = self.folder / f"{len(self.written)}.ckpt"
            trainer.save_checkpoint(path)
            self.written.append((path, len(module.trained), len(module.validated)))


def check_rest(whole: Diary, path: Path, trained: int, validated: int, **settings: Any) -> None:
    """Resume from a checkpoint and compare with what the uninterrupted run did after it."""
    resumed, _ = fit(ckpt_path=path, **settings)
    assert resumed.trained == whole.trained[trained:], path
    assert resumed.validated == whole.validated[validated:], path


@pytest.mark.slow
@pytest.mark.parametrize("hook", ["on_validation_end", "on_train_epoch_end", "on_train_batch_end"])
def test_any_checkpoint_resumes_with_the_next_batch_and_no_validation_is_lost_or_repeated(tmp_path, hook):
    saving = Saving(hook, tmp_path)
    whole, _ = fit(max_epochs=ROUNDS, callbacks=[saving])
    assert len(saving.written) == (28 if hook == "on_train_batch_end" else ROUNDS)
    assert len(whole.validated) == ROUNDS
    for path, trained, validated in saving.written:
        check_rest(whole, path, trained, validated, max_epochs=ROUNDS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "hook", ["on_validation_start", "on_validation_end", "on_train_epoch_end", "on_train_batch_end"]
)
@pytest.mark.parametrize(
    "settings",
    [
        {"max_steps": 13},
        {"max_steps": 13, "check_val_every_n_epoch": 2},
        {"max_epochs": 4, "check_val_every_n_epoch": 2},
        {"max_epochs": 3, "val_check_interval": 2},
        {"max_epochs": 3, "reload_dataloaders_every_n_epochs": 1},
        {"max_epochs": 3, "accumulate_grad_batches": 2},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_so_it_does_whatever_the_trainers_options(tmp_path, hook, settings):
    saving = Saving(hook, tmp_path)
    whole, _ = fit(callbacks=[saving], **settings)
    assert saving.written
    for path, trained, validated in saving.written:
        check_rest(whole, path, trained, validated, **settings)


@pytest.mark.parametrize("hook", ["on_train_epoch_end", "on_train_end"])
@pytest.mark.parametrize("further", [{"max_steps": 18}, {"max_epochs": 5}])
def test_a_round_that_max_steps_cut_off_is_gone_on_with(tmp_path, hook, further):
    saving = Saving(hook, tmp_path)
    whole, _ = fit(**further)
    fit(max_steps=6, callbacks=[saving])
    path, trained, validated = saving.written[-1]
    assert (trained, validated) == (6, 1)
    check_rest(whole, path, trained, validated, **further)


def test_a_checkpoint_is_right_whichever_callback_comes_first(tmp_path):
    before, after = Saving("on_train_batch_end", tmp_path / "before"), Saving("on_train_batch_end", tmp_path / "after")
    whole, _ = fit(max_epochs=2, callbacks=[before, RoundsCallback(), after])
    for path, trained, validated in (before.written[5], after.written[5]):
        check_rest(whole, path, trained, validated, max_epochs=2)


def test_what_workers_have_ready_is_not_counted(tmp_path):
    saving = Saving("on_train_batch_end", tmp_path)
    workers = {"num_workers": 2, "worker_type": "thread", "prefetch": 6}
    whole, _ = fit(data=ten_in_fours(**workers), max_epochs=3, callbacks=[saving])
    assert whole.trained == fit(max_epochs=3)[0].trained
    for path, trained, validated in saving.written[5:8]:
        check_rest(whole, path, trained, validated, data=ten_in_fours(**workers), max_epochs=3)


def test_a_modules_own_loaders_resume_with_the_callback_alone(tmp_path):
    saving = Saving("on_train_epoch_end", tmp_path)
    whole, by = OwnLoaders(), trainer(max_epochs=3, callbacks=[RoundsCallback(), saving])
    by.fit(whole)
    path, trained, validated = saving.written[1]
    resumed, by = OwnLoaders(), trainer(max_epochs=3, callbacks=[RoundsCallback()])
    by.fit(resumed, ckpt_path=path)
    assert (resumed.trained, resumed.validated) == (whole.trained[trained:], whole.validated[validated:])


def test_several_training_loaders_resume_together(tmp_path):
    class Two(OwnLoaders):
        def train_dataloader(self) -> Any:
            return [super().train_dataloader(), StreamingDataLoader(Numbered(30), 1, shuffle=True, round_batches=4)]

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(torch.cat(batch), batch_idx)

    saving, at_end = Saving("on_train_batch_end", tmp_path), Saving("on_train_epoch_end", tmp_path / "end")
    whole, resumed = Two(), Two()
    trainer(max_epochs=3, callbacks=[RoundsCallback(), saving, at_end]).fit(whole)
    path, trained, _ = saving.written[5]
    trainer(max_epochs=3, callbacks=[RoundsCallback()]).fit(resumed, ckpt_path=path)
    assert resumed.trained == whole.trained[trained:]
    with pytest.raises(StateMismatch, match="states of 2 training loaders with rounds, and 1 such loaders"):
        trainer(max_epochs=3, callbacks=[RoundsCallback()]).fit(OwnLoaders(), ckpt_path=at_end.written[0][0])


EVERY_HOOK = ("on_train_batch_end", "on_validation_start", "on_validation_end", "on_train_epoch_end")
LENGTHS = (3, 4, 2, 4, 2)


class Adaptive(OwnLoaders):
    """Has rounds of the lengths above, and says which metrics its policy was told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: dict[int, Any] = {}

    def policy(self, history: Any) -> int:
        self.told |= {record.number: record.metrics for record in history}
        return LENGTHS[len(history)] if len(history) < len(LENGTHS) else 3

    def train_dataloader(self) -> Any:
        return StreamingDataLoader(Numbered(1000), 1, shuffle=True, round_batches=self.policy)


def run_adaptive(path: Path | None = None, **settings: Any) -> Adaptive:
    settings = {"max_epochs": len(LENGTHS), "reload_dataloaders_every_n_epochs": 1} | settings
    module = Adaptive()
    callbacks = [*settings.pop("callbacks", ()), RoundsCallback(report="val_loss")]
    trainer(callbacks=callbacks, **settings).fit(module, ckpt_path=path)
    return module


@pytest.mark.parametrize("hook", EVERY_HOOK)
def test_rounds_whose_length_a_policy_decides_resume_from_any_checkpoint(tmp_path, hook):
    saving = Saving(hook, tmp_path)
    whole = run_adaptive(callbacks=[saving])
    assert len(whole.trained) == sum(LENGTHS)
    for path, trained, validated in saving.written:
        resumed = run_adaptive(path)
        assert resumed.trained == whole.trained[trained:], path
        assert resumed.validated == whole.validated[validated:], path
        # What a policy is told it is told before the round after.
        assert {number: told for number, told in resumed.told.items() if number < 4} == (
            {number: told for number, told in whole.told.items() if number < 4} if resumed.told else {}
        ), path


@pytest.mark.parametrize("is_own", [False, True])
@pytest.mark.parametrize("hook", EVERY_HOOK)
def test_rounds_that_end_with_their_cycle_resume_from_any_checkpoint(tmp_path, hook, is_own):
    class Short(OwnLoaders):
        def train_dataloader(self) -> Any:
            return StreamingDataLoader(Numbered(10), 1, shuffle=True, round_batches=4, remainder="short")

    def run(path: Path | None = None, *callbacks: pl.Callback) -> Diary:
        settings = {"max_epochs": 5, "reload_dataloaders_every_n_epochs": 1}
        if not is_own:
            data = ten_in_fours(boundary="short")
            return fit(data=data, ckpt_path=path, callbacks=list(callbacks), **settings)[0]
        module = Short()
        trainer(callbacks=[*callbacks, RoundsCallback()], **settings).fit(module, ckpt_path=path)
        return module

    saving = Saving(hook, tmp_path)
    whole = run(None, saving)
    assert len(whole.trained) == 4 + 4 + 2 + 4 + 4
    for path, trained, validated in saving.written:
        resumed = run(path)
        assert resumed.trained == whole.trained[trained:], path
        assert resumed.validated == whole.validated[validated:], path


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_end", "on_train_epoch_end"])
def test_a_loader_without_rounds_beside_one_with_rounds_goes_on_too(tmp_path, hook):
    class Beside(OwnLoaders):
        def train_dataloader(self) -> Any:
            return [StreamingDataLoader(Numbered(3), 1), super().train_dataloader()]

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(torch.cat(batch), batch_idx)

    saving = Saving(hook, tmp_path)
    whole = Beside()
    trainer(max_epochs=3, callbacks=[RoundsCallback(), saving]).fit(whole)
    for path, trained, validated in saving.written[1::2]:
        resumed = Beside()
        trainer(max_epochs=3, callbacks=[RoundsCallback()]).fit(resumed, ckpt_path=path)
        assert resumed.trained == whole.trained[trained:], path
        assert resumed.validated == whole.validated[validated:], path


@pytest.mark.parametrize("is_first", [True, False])
def test_what_another_callback_saves_as_a_validation_begins_or_ends_is_right_wherever_it_stands(tmp_path, is_first):
    for hook, is_validated in (("on_validation_start", 0), ("on_validation_epoch_end", 1)):
        saving = Saving(hook, tmp_path / hook)
        whole, _ = fit(max_epochs=3, callbacks=[saving, RoundsCallback()] if is_first else [RoundsCallback(), saving])
        for number, (path, trained, _) in enumerate(saving.written):
            check_rest(whole, path, trained, number + is_validated, max_epochs=3)


class Trouble(Exception):
    """What goes wrong."""


# What Lightning says of any trainer with such a callback: that it looks for a checkpoint, and finds none.
with_exception_checkpoint = pytest.mark.filterwarnings(
    "ignore:.*was called without a model:UserWarning", "ignore:.*there is no last checkpoint:UserWarning"
)


@with_exception_checkpoint
@pytest.mark.parametrize("batch", [0, 2, 3])
def test_a_batch_that_failed_is_the_first_one_after_the_checkpoint_of_its_exception(tmp_path, batch):
    def fail(module: Diary, batch_idx: int) -> None:
        if (module.current_epoch, batch_idx) == (2, batch):
            raise Trouble

    whole, _ = fit(max_epochs=4)
    broken = Diary(before_step=fail)
    with pytest.raises(Trouble):
        fit(broken, max_epochs=4, callbacks=[OnExceptionCheckpoint(tmp_path)], enable_checkpointing=True)
    assert broken.trained == whole.trained[: 8 + batch]
    check_rest(whole, tmp_path / "on_exception.ckpt", 8 + batch, 2, max_epochs=4)


@with_exception_checkpoint
def test_a_round_that_failed_before_its_first_batch_is_trained_after_the_checkpoint_of_its_exception(tmp_path):
    class Failing(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
            if trainer.current_epoch == 1:
                raise Trouble

    whole, _ = fit(max_epochs=3)
    with pytest.raises(Trouble):
        fit(max_epochs=3, callbacks=[Failing(), OnExceptionCheckpoint(tmp_path)], enable_checkpointing=True)
    check_rest(whole, tmp_path / "on_exception.ckpt", 4, 1, max_epochs=3)


@with_exception_checkpoint
def test_a_validation_that_failed_is_done_again_from_its_start(tmp_path):
    class Failing(Diary):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            super().validation_step(batch, batch_idx)
            if len(self.validated) == 3 and batch_idx == 1:
                raise Trouble

    data = {"val_chunk_size": 3}
    whole, _ = fit(data=ten_in_fours(**data), max_epochs=5)
    saving = OnExceptionCheckpoint(tmp_path)
    with pytest.raises(Trouble):
        fit(Failing(), ten_in_fours(**data), max_epochs=5, callbacks=[saving], enable_checkpointing=True)
    check_rest(whole, tmp_path / "on_exception.ckpt", 12, 2, data=ten_in_fours(**data), max_epochs=5)


@pytest.mark.slow
def test_a_run_killed_after_batch_3_of_round_2_goes_on_with_batch_4(tmp_path):
    """Both are processes of their own; ids are counted by the dataset as it is read, and by the module as it trains."""
    reads, log = tmp_path / "reads", tmp_path / "log"
    told = {
        "log": str(log),
        "reads": str(reads),
        "size": 10,
        "val_size": 5,
        "data": {"batch_size": 1, "train_chunk_size": 4, "val_chunk_size": 2},
        "trainer": {"max_epochs": ROUNDS},
        "save": {
            "dirpath": str(tmp_path),
            "every_n_train_steps": 1,
            "filename": "last",
            "enable_version_counter": False,
        },
    }
    # The third batch of the third round is trained and saved; the process ends as the fourth begins.
    killed = work({**told, "kill": [2, 3]})
    assert killed.returncode == -9
    before = log.read_text().splitlines()
    assert before[-1].startswith("train 0 2 2 ")
    log.unlink()
    was_read = reads.read_text().split()
    reads.unlink()
    resumed = work({**told, "resume": str(tmp_path / "last.ckpt")})
    assert resumed.returncode == 0, resumed.stderr
    after = log.read_text().splitlines()
    assert after[0].startswith("train 0 2 3 ")

    whole, _ = fit(max_epochs=ROUNDS)
    lines = [line.split() for line in before + after]
    assert [[int(line[-1])] for line in lines if line[0] == "train"] == whole.trained
    assert [list(map(int, line[3:])) for line in lines if line[0] == "val"] == whole.validated
    # The one that was in the killed process's hands, and was not trained on, is read again; nothing else is.
    assert was_read[-1] == reads.read_text().split()[0]
    assert [[int(index)] for index in was_read[:-1] + reads.read_text().split()] == whole.trained


def work(*fits: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(WORKER), json.dumps(fits)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.filterwarnings("ignore:.*exists and is not empty:UserWarning")
def test_model_checkpoint_every_so_many_steps_resumes_within_a_round_and_at_its_end(tmp_path):
    def settings() -> dict[str, Any]:
        saving = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=2, save_top_k=-1, filename="{step}")
        return {"max_epochs": 3, "callbacks": [saving], "enable_checkpointing": True}

    whole, _ = fit(**settings())
    for steps in (2, 4, 6):
        check_rest(whole, tmp_path / f"step={steps}.ckpt", steps, (steps - 1) // 4, **settings())


def test_a_checkpoint_of_other_data_is_refused(tmp_path):
    _, by = fit(max_epochs=1)
    by.save_checkpoint(tmp_path / "a.ckpt")
    other = RoundsDataModule(Numbered(11), train_chunk_size=4)
    with pytest.raises(StateMismatch, match="num_samples is 10 in the state, 11 here"):
        fit(Unvalidated(), other, ckpt_path=tmp_path / "a.ckpt", max_epochs=2)


def test_a_run_that_began_without_rounds_goes_on_with_them_after_an_epochs_end(tmp_path):
    class Whole(OwnLoaders):
        def train_dataloader(self) -> Any:
            return StreamingDataLoader(Numbered(10), 1, shuffle=True)

    saving = [Saving("on_train_epoch_end", tmp_path / "end"), Saving("on_train_batch_end", tmp_path / "middle")]
    whole = Whole()
    trainer(max_epochs=2, callbacks=saving).fit(whole)
    resumed = OwnLoaders()
    by = trainer(max_epochs=3, callbacks=[RoundsCallback()])
    by.fit(resumed, ckpt_path=saving[0].written[0][0])
    assert resumed.trained == whole.trained[10:18]
    with pytest.raises(ConfigError, match="cannot be resumed with these"):
        trainer(max_epochs=3, callbacks=[RoundsCallback()]).fit(OwnLoaders(), ckpt_path=saving[1].written[2][0])


def test_rounds_of_another_length_begin_after_the_one_under_way_or_are_refused(tmp_path):
    saving = Saving("on_train_batch_end", tmp_path)
    whole, _ = fit(max_epochs=2, callbacks=[saving])
    path, trained, _ = saving.written[4]
    with pytest.raises(
        ConfigError, match=r"in the middle of a round of 4 batches, and rounds have 3 .*train_chunk_size="
    ):
        fit(data=ten_in_fours(train_chunk_size=3), ckpt_path=path, max_epochs=4)
    at_end, _ = fit(data=ten_in_fours(train_chunk_size=3), ckpt_path=saving.written[3][0], max_epochs=3)
    assert at_end.trained[:4] == whole.trained[4:]
    assert len(at_end.trained) == 2 * 3
    assert at_end.validated == [[2, 3], [4], [0, 1]]
    resumed, _ = fit(
        data=ten_in_fours(train_chunk_size=3), ckpt_path=path, max_epochs=4, reload_dataloaders_every_n_epochs=1
    )
    assert resumed.trained[:3] == whole.trained[trained:]
    assert len(resumed.trained) == 3 + 2 * 3
    assert len(resumed.validated) == 3


# What Lightning says of a checkpoint that was written with a callback, where it is left out.
@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided:UserWarning")
@pytest.mark.parametrize("callbacks", [[], [RoundsCallback()]], ids=["no callback", "callback"])
def test_a_run_that_gives_up_its_rounds_goes_on_after_an_epochs_end_and_is_refused_before(tmp_path, callbacks):
    middle, end = Saving("on_train_batch_end", tmp_path / "middle"), Saving("on_train_epoch_end", tmp_path / "end")
    fit(max_epochs=2, callbacks=[middle, end])
    plain = RoundsDataModule(Numbered(10), Numbered(5), batch_size=1)
    resumed, _ = fit(data=plain, ckpt_path=end.written[1][0], max_epochs=3, callbacks=list(callbacks))
    assert sorted(resumed.trained) == [[number] for number in range(10)]
    assert resumed.validated == [list(range(5))]
    for path in (middle.written[5][0], middle.written[7][0]):
        with pytest.raises(ConfigError, match=r"within a round, .* no rounds to go on with: resume with the sizes"):
            fit(data=plain, ckpt_path=path, max_epochs=3, callbacks=list(callbacks))
