"""A module that trains a round and validates, alone; and leaves the loop to a Trainer where there is one."""

from __future__ import annotations

import json
import pickle
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from torch.utils.data import DataLoader

from penstock import ChunkedSequenceDataset, ChunkedTrainingMixin, ConfigError, StateMismatch

TRAIN = [(torch.tensor([float(n)]), n) for n in range(24)]
VAL = [(torch.tensor([float(n)]), n) for n in range(100, 110)]


class Steps:
    """What a user's module has: it notes which samples it is given, and learns y = 2x."""

    def prepare(self) -> None:
        self.linear = torch.nn.Linear(1, 1)
        self.trained: list[tuple[int, list[int]]] = []
        self.validated: list[list[int]] = []

    def training_step(self, batch, batch_idx):
        assert torch.is_grad_enabled()
        assert self.training
        x, ids = batch
        self.trained.append((batch_idx, ids.tolist()))
        return torch.nn.functional.mse_loss(self.linear(x / 24), x / 12)

    def validation_step(self, batch, batch_idx):
        assert not torch.is_grad_enabled()
        assert not self.training
        x, ids = batch
        assert batch_idx == 0 or self.validated
        self.validated.append(ids.tolist())
        return torch.nn.functional.mse_loss(self.linear(x / 24), x / 12)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.3)


class Net(ChunkedTrainingMixin, Steps, torch.nn.Module):
    def __init__(self, config):
        super().__init__(config)
        torch.manual_seed(0)
        self.prepare()


def net(config, **options) -> Net:
    module = Net(config)
    data = ChunkedSequenceDataset(dataset_train=TRAIN, dataset_val=VAL)
    module.setup_chunked_training(data, **{"batch_size": 2, **options})
    return module


BOTH = {"train": {"train_chunk_size": 5, "val_chunk_size": 2}}


def test_seven_rounds_are_validated_seven_times_and_the_round_across_the_cycles_end_too():
    """12 batches a cycle: the third round crosses its end, the fifth that of the next."""
    module = net(BOTH)
    assert module.chunked_training_enabled
    found = [module.train_epoch_with_chunking() for _ in range(7)]
    assert [(metrics["round"], metrics["cycle"]) for metrics in found] == [
        (0, 0),
        (1, 0),
        (2, 0),
        (3, 1),
        (4, 1),
        (5, 2),
        (6, 2),
    ]
    assert all(set(metrics) == {"round", "cycle", "train_loss", "val_loss"} for metrics in found)
    assert [index for index, _ in module.trained] == list(range(5)) * 7
    seen = [value for _, ids in module.trained for value in ids]
    assert sorted(seen[:24]) == sorted(seen[24:48]) == list(range(24))
    # Five batches of validation, two a round: they rotate, in order, and the last is shorter.
    val = [value for ids in module.validated for value in ids]
    assert val[:6] == [104, 105, 106, 107, 108, 109]
    assert val[6:10] == [100, 101, 102, 103]
    assert set(val) == set(range(100, 110))
    assert found[6]["train_loss"] < found[0]["train_loss"] / 4
    assert found[6]["val_loss"] < found[0]["val_loss"] / 4


@pytest.mark.parametrize(
    ("config", "train_batches", "val_batches"),
    [
        ({"train": {"train_chunk_size": 5, "val_chunk_size": 1}}, 5, 1),
        ({"train": {"train_chunk_size": 5}, "trainer": {"limit_train_batches": 1, "limit_val_batches": 1}}, 5, 5),
        ({"train": {"val_chunk_size": 1}, "trainer": {"limit_train_batches": 1}}, 12, 1),
        ({"trainer": {"limit_train_batches": 3, "limit_val_batches": 1}}, 3, 1),
        ({"trainer": {"limit_train_batches": 0.5, "limit_val_batches": 0.41}}, 6, 2),
        ({"trainer": {"limit_val_batches": 0}}, 12, 0),
        ({}, 12, 5),
    ],
)
@pytest.mark.filterwarnings("ignore:trainer.limit:UserWarning")
def test_every_mode_trains_and_validates_on_as_much_as_it_says(config, train_batches, val_batches):
    module = net(config)
    for count in (1, 2):
        metrics = module.train_epoch_with_chunking()
        assert (len(module.trained), len(module.validated)) == (count * train_batches, count * val_batches)
        assert ("round" in metrics) == module.chunked_training_enabled
        assert ("val_loss" in metrics) == (val_batches > 0)


def test_without_sizes_it_is_the_loop_one_would_write_to_the_last_bit():
    module = net({})
    torch.manual_seed(7)
    epochs = [module.train_epoch_with_chunking() for _ in range(3)]
    assert type(module.train_dataloader()) is DataLoader

    by_hand = Net({})
    torch.manual_seed(7)
    optimizer = by_hand.configure_optimizers()
    train, val = DataLoader(TRAIN, batch_size=2, shuffle=True), DataLoader(VAL, batch_size=2)
    for metrics in epochs:
        total = 0.0
        for index, batch in enumerate(train):
            optimizer.zero_grad()
            loss = by_hand.training_step(batch, index)
            loss.backward()
            optimizer.step()
            total += loss.item()
        assert metrics["train_loss"] == pytest.approx(total / 12, rel=1e-6)
        by_hand.eval()
        with torch.no_grad():
            for index, batch in enumerate(val):
                by_hand.validation_step(batch, index)
        by_hand.train()
    assert module.trained == by_hand.trained
    assert module.validated == by_hand.validated
    assert torch.equal(module.linear.weight, by_hand.linear.weight)


def test_cut_in_a_round_it_goes_on_with_the_next_batch_and_ends_the_same():
    whole = net(BOTH)
    for _ in range(4):
        whole.train_epoch_with_chunking()

    class Cut(Exception):
        pass

    cut = net(BOTH)
    step = cut.training_step

    def failing(batch, index):
        if len(cut.trained) == 13:  # three batches of round 2 are done
            raise Cut
        return step(batch, index)

    cut.training_step = failing
    cut.train_epoch_with_chunking()
    cut.train_epoch_with_chunking()
    with pytest.raises(Cut):
        cut.train_epoch_with_chunking()
    saved = {"model": cut.state_dict(), "rounds": cut.chunked_training_state()}
    place = saved["rounds"]["train"]
    assert len(json.dumps(place)) < 1000

    resumed = net(BOTH)
    resumed.load_state_dict(saved["model"])
    resumed.load_chunked_training_state(saved["rounds"])
    metrics = resumed.train_epoch_with_chunking()
    # The batch that failed comes again: 13 of 12 a cycle are done.
    assert (metrics["round"], metrics["cycle"]) == (2, 1)
    assert resumed.trained == whole.trained[13:15]
    assert resumed.validated == whole.validated[3:5]
    assert resumed.train_epoch_with_chunking()["round"] == 3
    assert resumed.trained == whole.trained[13:20]
    assert torch.equal(resumed.linear.weight, whole.linear.weight)


@pytest.mark.parametrize("done", [10, 13, 14])
def test_a_batch_that_failed_comes_again_when_the_round_is_asked_for_again(done):
    """The first, a later and the last one of round 2: nothing is skipped, its validation neither."""
    whole, module = net(BOTH), net(BOTH)
    for _ in range(4):
        whole.train_epoch_with_chunking()
    step, failures = module.training_step, iter([MemoryError("no room")])

    def failing(batch, index):
        if len(module.trained) == done and (failure := next(failures, None)) is not None:
            raise failure
        return step(batch, index)

    module.training_step = failing
    for _ in range(2):
        module.train_epoch_with_chunking()
    with pytest.raises(MemoryError):
        module.train_epoch_with_chunking()
    found = [module.train_epoch_with_chunking()["round"] for _ in range(2)]
    assert found == [2, 3]
    assert module.trained == whole.trained
    assert module.validated == whole.validated
    assert torch.equal(module.linear.weight, whole.linear.weight)


def test_a_loader_that_was_moved_by_hand_is_trained_from_there():
    module = net(BOTH)
    module.train_epoch_with_chunking()
    module.train_dataloader().set_round(4)
    module.training_step, step = None, module.training_step
    with pytest.raises(TypeError):
        module.train_epoch_with_chunking()
    module.training_step = step
    assert module.train_epoch_with_chunking()["round"] == 4


def test_a_state_taken_amid_a_step_has_that_batch_still_to_come():
    class Saves(Net):
        def training_step(self, batch, batch_idx):
            if len(self.trained) == 7:
                self.saved = self.chunked_training_state()
            return super().training_step(batch, batch_idx)

    module = Saves(BOTH)
    module.setup_chunked_training(ChunkedSequenceDataset(dataset_train=TRAIN, dataset_val=VAL, batch_size=2))
    module.train_epoch_with_chunking()
    module.train_epoch_with_chunking()
    resumed = net(BOTH)
    resumed.load_chunked_training_state(module.saved)
    resumed.train_epoch_with_chunking()
    assert resumed.trained == module.trained[7:10]


def test_between_rounds_it_goes_on_to_the_same_weights():
    whole = net(BOTH)
    found = [whole.train_epoch_with_chunking() for _ in range(5)]
    first = net(BOTH)
    for _ in range(3):
        first.train_epoch_with_chunking()
    second = net(BOTH)
    second.load_state_dict(first.state_dict())
    second.load_chunked_training_state(first.chunked_training_state())
    assert [second.train_epoch_with_chunking() for _ in range(2)] == found[3:]
    assert torch.equal(second.linear.weight, whole.linear.weight)
    with pytest.raises(StateMismatch):
        net(BOTH, seed=9).load_chunked_training_state(first.chunked_training_state())


def test_a_step_may_say_nothing_or_much():
    class Talkative(Net):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return None if batch_idx % 2 else {"loss": loss, "more": 1}

        def validation_step(self, batch, batch_idx):
            x, ids = batch
            return {"val_mean": x.mean(), "val_count": float(len(ids))} if batch_idx else None

    module = Talkative(BOTH)
    data = ChunkedSequenceDataset(dataset_train=TRAIN, dataset_val=VAL, batch_size=2)
    module.setup_chunked_training(data)
    metrics = module.train_epoch_with_chunking()
    assert metrics["val_mean"] == pytest.approx(106.5)
    assert metrics["val_count"] == 2
    assert "val_loss" not in metrics
    steps = module.chunked_training_state()["optimizer"]["state"][0]["step"]
    assert int(steps) == 3


def test_without_a_validation_set_or_step_it_only_trains():
    module = Net({"train": {"train_chunk_size": 3}})
    module.setup_chunked_training(ChunkedSequenceDataset(dataset_train=TRAIN, batch_size=2))
    assert set(module.train_epoch_with_chunking()) == {"round", "cycle", "train_loss"}

    class Trains(ChunkedTrainingMixin, torch.nn.Module):
        def __init__(self, config):
            super().__init__(config)
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def training_step(self, batch, batch_idx):
            return (self.weight * batch[0]).mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Trains(BOTH)
    module.setup_chunked_training(ChunkedSequenceDataset(dataset_train=TRAIN, dataset_val=VAL, batch_size=2))
    assert set(module.train_epoch_with_chunking()) == {"round", "cycle", "train_loss"}


def test_what_is_missing_or_contradictory_is_said():
    with pytest.raises(ConfigError, match=r"^train.train_chunk_size must be an integer"):
        Net({"train": {"train_chunk_size": 0}})
    with pytest.raises(ConfigError, match=r"Net has no data yet: call setup_chunked_training\(data\)"):
        Net(BOTH).train_epoch_with_chunking()
    with pytest.raises(ConfigError, match="train_chunk_size is 4 in the dataset and 5 in the configuration"):
        Net(BOTH).setup_chunked_training(ChunkedSequenceDataset(4, dataset_train=TRAIN))

    class Own(Net):
        def train_dataloader(self):
            return DataLoader(TRAIN)

        def val_dataloader(self):
            return []

    with pytest.raises(ConfigError, match=r"train_dataloader\(\) gave a DataLoader, which knows no rounds"):
        Own(BOTH).train_epoch_with_chunking()
    assert len(Own({}).train_epoch_with_chunking()) == 1

    class Two(Net):
        def configure_optimizers(self):
            return [torch.optim.SGD(self.parameters()), torch.optim.SGD(self.parameters())]

    module = Two(BOTH)
    module.setup_chunked_training(ChunkedSequenceDataset(dataset_train=TRAIN, dataset_val=VAL))
    with pytest.raises(ConfigError, match=r"configure_optimizers\(\) gave list: without a Trainer it must give one"):
        module.train_epoch_with_chunking()


def test_a_copy_has_weights_of_its_own_and_shares_the_data():
    module = net(BOTH)
    module.train_epoch_with_chunking()
    averaged = torch.optim.swa_utils.AveragedModel(module)
    assert averaged.module._round_source is module._round_source
    module.train_epoch_with_chunking()
    assert not torch.equal(averaged.module.linear.weight, module.linear.weight)
    # In another process it would train from the start.
    sent = pickle.loads(pickle.dumps(module))
    sent.trained.clear()
    assert sent.train_epoch_with_chunking()["round"] == 0
    assert sent.trained == module.trained[:5]
    assert module.train_epoch_with_chunking()["round"] == 2


KILLED = """
    import os, signal, sys, torch
    from penstock import ChunkedSequenceDataset, ChunkedTrainingMixin

    class Net(ChunkedTrainingMixin, torch.nn.Module):
        def __init__(self, config):
            super().__init__(config)
            self.weight = torch.nn.Parameter(torch.ones(1))
            self.steps = 0

        def training_step(self, batch, batch_idx):
            if self.steps % 3 == 0:
                # As it was before this batch.
                state = {"model": self.state_dict(), "rounds": self.chunked_training_state(), "steps": self.steps}
                torch.save(state, path + ".new")
                os.replace(path + ".new", path)
            self.steps += 1
            print(self.steps, batch_idx, batch.tolist(), f"{self.weight.item():.6f}", flush=True)
            if self.steps == killed_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return (self.weight * batch / 100).square().mean()

        def validation_step(self, batch, batch_idx):
            print("validated", batch.tolist(), flush=True)

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.1)

    path, killed_at = sys.argv[1], int(sys.argv[2])
    net = Net({"train_chunk_size": 5, "val_chunk_size": 1})
    data = ChunkedSequenceDataset(dataset_train=range(24), dataset_val=range(100, 106), batch_size=2)
    net.setup_chunked_training(data)
    if os.path.exists(path):
        state = torch.load(path, weights_only=True)
        net.load_state_dict(state["model"])
        net.load_chunked_training_state(state["rounds"])
        net.steps = state["steps"]
    while net.train_dataloader().round < 6:
        net.train_epoch_with_chunking()
"""


@pytest.mark.slow
def test_killed_in_a_round_a_new_process_goes_on_from_what_was_saved(tmp_path):
    """Losing nothing but the steps since the last save, which it repeats: same batches, same weights."""
    command = [sys.executable, "-c", textwrap.dedent(KILLED)]

    def run(name: str, killed_at: int, returncode: int) -> list[str]:
        arguments = [*command, str(tmp_path / name), str(killed_at)]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == returncode, done.stderr
        return done.stdout.splitlines()

    whole = run("whole", 0, 0)
    assert len(whole) == 6 * 6
    # Step 14 is the fourth of round 2; what was saved before step 13 is its third still to come.
    first = run("cut", 14, -signal.SIGKILL)
    assert first == whole[: len(first)]
    assert first[-1].startswith("14 3 ")
    rest = run("cut", 0, 0)
    assert rest[0].startswith("13 2 ")
    assert rest == whole[len(first) - 2 :]


PROCESS = """
    import sys, torch
    from penstock import ChunkedSequenceDataset, ChunkedTrainingMixin, ConfigError

    class Net(ChunkedTrainingMixin, torch.nn.Module):
        pass

    torch.distributed.init_process_group("gloo", f"file://{sys.argv[1]}", rank=int(sys.argv[2]), world_size=2)
    for config in ({"train_chunk_size": 2}, {}):
        net = Net(config)
        net.setup_chunked_training(ChunkedSequenceDataset(dataset_train=range(8)))
        try:
            net.train_epoch_with_chunking()
        except ConfigError as error:
            print(error)
    torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_several_processes_are_left_to_what_keeps_them_in_step(tmp_path):
    """Each would train weights of its own, and nobody would notice."""
    command = [sys.executable, "-c", textwrap.dedent(PROCESS), str(tmp_path / "meet")]
    ranks = [subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, text=True) for rank in range(2)]
    for rank in ranks:
        printed, _ = rank.communicate(timeout=120)
        assert rank.returncode == 0
        assert (
            printed.count("trains one process, and this is one of 2: use a Trainer with RoundsCallback, or wrap") == 2
        )


UNDER_A_TRAINER = """
    import warnings
    warnings.simplefilter("ignore")
    import logging
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    import lightning
    import torch
    from penstock import ChunkedSequenceDataset, ChunkedTrainingMixin, ConfigError, RoundsCallback

    class Net(ChunkedTrainingMixin, lightning.LightningModule):
        def __init__(self, config):
            super().__init__(config)
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.seen, self.validated, self.refused = [], [], []

        def training_step(self, batch, batch_idx):
            self.seen += batch.tolist()
            if batch_idx == 0 and self._trainer is not None:
                for method in (self.train_epoch_with_chunking, self.standard_training_epoch):
                    try:
                        method()
                    except ConfigError as error:
                        self.refused.append(str(error))
            return (self.weight * batch).mean()

        def validation_step(self, batch, batch_idx):
            self.validated += batch.tolist()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def data():
        return ChunkedSequenceDataset(dataset_train=range(10), dataset_val=range(100, 104))

    net = Net({"train": {"train_chunk_size": 4, "val_chunk_size": 1}})
    net.setup_chunked_training(data())
    quiet = dict(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer = lightning.Trainer(max_epochs=5, callbacks=[RoundsCallback()], num_sanity_val_steps=0, **quiet)
    trainer.fit(net)
    assert sorted(net.seen) == sorted(2 * list(range(10))), net.seen
    assert sorted(net.seen[:10]) == list(range(10)), net.seen
    assert net.validated == [101, 102, 103, 100, 101], net.validated
    assert len(net.refused) == 10
    assert all("a Trainer is running this module already" in text for text in net.refused), net.refused

    plain = Net({})
    plain.setup_chunked_training(data())
    lightning.Trainer(max_epochs=2, num_sanity_val_steps=0, limit_val_batches=2, **quiet).fit(plain)
    assert type(plain.train_dataloader()) is torch.utils.data.DataLoader
    assert sorted(plain.seen) == sorted(2 * list(range(10))) and plain.validated == [100, 101, 100, 101]

    alone = Net({"train": {"train_chunk_size": 4}})
    alone.setup_chunked_training(data())
    metrics = alone.train_epoch_with_chunking()
    assert metrics["round"] == 0 and len(alone.seen) == 4 and len(alone.validated) == 4, metrics
    print("as told")
"""


@pytest.mark.slow
def test_under_a_trainer_the_trainer_is_the_loop_and_alone_the_module_is():
    pytest.importorskip("lightning")
    command = [sys.executable, "-c", textwrap.dedent(UNDER_A_TRAINER)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("as told\n")


def test_the_mixin_imports_nothing_of_lightning():
    program = "import sys, penstock; penstock.ChunkedTrainingMixin; assert 'lightning' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
