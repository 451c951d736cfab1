"""A checkpoint is whole or not there, and what it holds is enough to go on exactly."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from penstock import (
    ConfigError,
    ObjectMissing,
    StateMismatch,
    StreamingDataLoader,
    load_checkpoint,
    load_training_checkpoint,
    save_best,
    save_training_checkpoint,
)
from penstock.errors import BadBlock, StoreError
from penstock.train.checkpoints import BEST_NAME, best_val_loss


class Run:
    """A small training run with everything that has a state: dropout, momentum, a schedule, a shuffle."""

    def __init__(self, samples: int = 40, seed: int = 7) -> None:
        torch.manual_seed(seed)
        self.model = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, step_size=3, gamma=0.5)
        self.loader = StreamingDataLoader(np.arange(samples, dtype=np.float32), batch_size=4, shuffle=True, seed=seed)
        self.step = 0

    def train(self, steps: int) -> list[tuple[list[float], float, float]]:
        """Take steps; give each one's samples, loss and a draw from Python's and numpy's generators."""
        seen = []
        while len(seen) < steps:
            for batch in self.loader:
                noise = random.random() + np.random.rand()
                loss = (self.model(batch[:, None] / 40) - noise).square().mean()
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                self.scheduler.step()
                self.step += 1
                seen.append((batch.tolist(), loss.item(), noise))
                if len(seen) == steps:
                    break
        return seen

    def parts(self) -> dict:
        return {name: getattr(self, name) for name in ("model", "optimizer", "scheduler", "loader")}


def weights(run: Run) -> list[float]:
    return torch.cat([parameter.detach().flatten() for parameter in run.model.parameters()]).tolist()


@pytest.mark.parametrize("steps", [1, 7, 10, 13])
def test_a_resumed_run_goes_on_as_if_nothing_had_happened(tmp_path, steps):
    run = Run()
    run.train(steps)
    save_training_checkpoint(tmp_path / "last.pt", step=run.step, **run.parts(), note="before")
    rest = run.train(15)

    random.seed(99)
    np.random.seed(99)
    resumed = Run(seed=7)
    resumed.train(2)
    found = load_training_checkpoint(tmp_path / "last.pt", **resumed.parts())

    assert found == {"step": steps, "note": "before"}
    assert resumed.train(15) == rest
    assert weights(resumed) == weights(run)


def test_a_checkpoint_loads_without_running_code(tmp_path):
    run = Run()
    run.train(3)
    save_training_checkpoint(
        tmp_path / "last.pt", step=3, **run.parts(), losses=[1.5, 2.5], nested={"a": torch.ones(2)}
    )
    states = torch.load(tmp_path / "last.pt", weights_only=True)
    assert states["loader"] == run.loader.state_dict()
    assert states["extra"]["losses"] == [1.5, 2.5]


def test_what_could_not_be_loaded_is_not_saved_and_the_former_file_stays(tmp_path):
    run = Run()
    save_training_checkpoint(tmp_path / "last.pt", step=0, **run.parts())
    before = (tmp_path / "last.pt").read_bytes()
    with pytest.raises(ConfigError, match="weights_only=True"):
        save_training_checkpoint(tmp_path / "last.pt", step=1, **run.parts(), config=Run)
    assert (tmp_path / "last.pt").read_bytes() == before
    assert os.listdir(tmp_path) == ["last.pt"]


@pytest.mark.parametrize("kept", [0, 10, 0.5, -1])
def test_a_truncated_checkpoint_is_refused_and_changes_nothing(tmp_path, kept):
    run = Run()
    run.train(3)
    save_training_checkpoint(tmp_path / "last.pt", step=3, **run.parts())
    whole = (tmp_path / "last.pt").read_bytes()
    cut = int(len(whole) * kept) if isinstance(kept, float) else kept
    (tmp_path / "last.pt").write_bytes(whole[:cut])

    other = Run()
    other.train(1)
    before, cursor = weights(other), other.loader.state_dict()
    with pytest.raises(BadBlock, match=r"last\.pt .*truncated or damaged"):
        load_training_checkpoint(tmp_path / "last.pt", **other.parts())
    assert weights(other) == before
    assert other.loader.state_dict() == cursor


def test_a_checkpoint_of_other_data_is_refused_before_anything_changes(tmp_path):
    run = Run(samples=40)
    run.train(3)
    save_training_checkpoint(tmp_path / "last.pt", step=3, **run.parts())
    other = Run(samples=44)
    other.train(1)
    before = weights(other)
    with pytest.raises(StateMismatch, match="num_samples is 40 in the state, 44 here"):
        load_training_checkpoint(tmp_path / "last.pt", **other.parts())
    assert weights(other) == before


def test_a_checkpoint_of_another_model_names_the_difference(tmp_path):
    run = Run()
    save_training_checkpoint(tmp_path / "last.pt", step=0, **run.parts())
    with pytest.raises(ConfigError, match="size mismatch"):
        load_training_checkpoint(tmp_path / "last.pt", model=torch.nn.Sequential(torch.nn.Linear(2, 8)))


def test_a_scheduler_that_was_not_saved_is_missed(tmp_path):
    run = Run()
    parts = run.parts()
    scheduler = parts.pop("scheduler")
    save_training_checkpoint(tmp_path / "last.pt", step=0, **parts)
    with pytest.raises(ConfigError, match="without a scheduler"):
        load_training_checkpoint(tmp_path / "last.pt", **parts, scheduler=scheduler)


def test_a_missing_checkpoint_and_one_of_the_other_kind_say_so(tmp_path):
    model = torch.nn.Linear(1, 1)
    with pytest.raises(ObjectMissing, match=r"none\.pt does not exist"):
        load_training_checkpoint(tmp_path / "none.pt", model=model)
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path)
    save_best(tmp_path, model, 1.0)
    with pytest.raises(BadBlock, match="no training checkpoint"):
        load_training_checkpoint(tmp_path / BEST_NAME, model=model)


def test_every_rank_draws_its_own_randomness_from_one_checkpoint(tmp_path):
    """Rank 0 goes on exactly; the others must not share its dropout masks, and must be the same every time."""
    run = Run()
    save_training_checkpoint(tmp_path / "last.pt", step=0, **run.parts())
    program = (
        "import random, sys, numpy, torch\nfrom penstock import load_training_checkpoint\n"
        "model = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))\n"
        "load_training_checkpoint(sys.argv[1], model=model)\n"
        "print(torch.rand(1).item(), random.random(), numpy.random.rand())"
    )

    def draws(rank: int) -> str:
        environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": "3"}
        command = [sys.executable, "-c", program, str(tmp_path / "last.pt")]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True).stdout

    found = [draws(rank) for rank in (0, 1, 1, 2)]
    load_training_checkpoint(tmp_path / "last.pt", model=run.model)
    here = f"{torch.rand(1).item()} {random.random()} {np.random.rand()}\n"
    assert found[0] == here
    assert found[1] == found[2]
    numbers = [set(line.split()) for line in (found[0], found[1], found[3])]
    assert len(set.union(*numbers)) == 9


def test_the_best_model_is_kept_and_survives_a_restart(tmp_path):
    models = [torch.nn.Linear(3, 1) for _ in range(5)]
    losses = [3.0, float("nan"), 2.0, torch.tensor(2.5), 2.0]
    kept = [save_best(tmp_path, model, loss) for model, loss in zip(models, losses, strict=True)]
    assert kept == [True, False, True, False, False]
    program = "import sys; from penstock.train.checkpoints import best_val_loss; print(best_val_loss(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout == "2.0\n"
    torch.testing.assert_close(load_checkpoint(tmp_path), dict(models[2].state_dict()))
    assert os.listdir(tmp_path) == [BEST_NAME]


def test_the_best_model_is_a_plain_state_dict_for_anyone(tmp_path):
    model = torch.nn.Linear(3, 1)
    save_best(tmp_path / "deep" / "model.pt", model, 1.0)
    for options in ({}, {"mmap": True}):
        state = torch.load(tmp_path / "deep" / "model.pt", weights_only=True, **options)
        torch.nn.Linear(3, 1).load_state_dict(state)
        assert list(state) == ["weight", "bias"]


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # torch.compile, of itself
def test_wrappers_leave_no_trace_in_the_file(tmp_path):
    model = torch.nn.Linear(3, 1)
    save_best(tmp_path, torch.compile(model), 1.0)
    assert list(load_checkpoint(tmp_path)) == ["weight", "bias"]


def test_a_loss_of_infinity_can_be_improved_upon(tmp_path):
    model = torch.nn.Linear(3, 1)
    assert save_best(tmp_path, model, float("inf"))
    assert best_val_loss(tmp_path) == float("inf")
    assert save_best(tmp_path, model, 10.0)


def test_a_file_of_unknown_loss_is_not_overwritten(tmp_path):
    model = torch.nn.Linear(3, 1)
    torch.save(model.state_dict(), tmp_path / BEST_NAME)
    with pytest.raises(ConfigError, match="not written by save_best"):
        save_best(tmp_path, model, 1.0)


def test_a_folder_that_cannot_be_made_is_a_store_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError):
        save_best(tmp_path / "file" / "best.pt", torch.nn.Linear(1, 1), 1.0)


SAVER = """
import sys, torch
from penstock import StreamingDataLoader, save_best, save_training_checkpoint
model = torch.nn.Linear(1024, 1024)
optimizer, loader = torch.optim.AdamW(model.parameters()), StreamingDataLoader(list(range(10)))
step = int(sys.argv[2])
while True:
    step += 1
    torch.nn.init.constant_(model.weight, step)
    save_training_checkpoint(sys.argv[1] + "/last.pt", model=model, optimizer=optimizer, loader=loader, step=step)
    save_best(sys.argv[1], model, -step)
    print(step, flush=True)
"""


def test_killed_while_saving_leaves_the_former_checkpoint(tmp_path):
    """Nine kills spread over the writing; after each, both files are whole, of the last step or the next."""
    model = torch.nn.Linear(1024, 1024)
    step = 0
    for attempt in range(9):
        command = [sys.executable, "-c", SAVER, str(tmp_path), str(step)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as saver:
            said = [int(saver.stdout.readline()) for _ in range(2)]
            time.sleep(0.003 * attempt)
            saver.send_signal(signal.SIGKILL)
            said += [int(line) for line in saver.stdout.read().splitlines() if line]
        step = load_training_checkpoint(tmp_path / "last.pt", model=model)["step"]
        assert said[-1] <= step <= said[-1] + 1
        assert torch.all(model.weight == step)
        assert -best_val_loss(tmp_path) in (step, step - 1)
        assert torch.all(load_checkpoint(tmp_path)["weight"] == -best_val_loss(tmp_path))


def test_leftovers_of_killed_processes_go_and_files_in_use_stay(tmp_path):
    old, fresh = (tmp_path / f".{BEST_NAME}.{name}.tmp" for name in ("old", "fresh"))
    other = tmp_path / ".other.pt.old.tmp"
    for path in (old, fresh, other):
        path.write_bytes(b"half")
    for path in (old, other):
        os.utime(path, (0, 0))
    save_best(tmp_path, torch.nn.Linear(1, 1), 1.0)
    assert sorted(os.listdir(tmp_path)) == sorted([fresh.name, other.name, BEST_NAME])


def generators() -> tuple:
    return random.getstate()[1], np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def everything(run: Run) -> str:
    """All that a load may change, as text that compares by content."""
    torch.set_printoptions(profile="full", precision=20)
    try:
        return repr((run.model.state_dict(), run.optimizer.state_dict(), run.scheduler.state_dict()))
    finally:
        torch.set_printoptions(profile="default")


def flips(whole: bytes, count: int, seed: int) -> list[int]:
    """Places spread over a file, with its first and last bytes and each kind of the archive's own records."""
    marks = [whole.index(mark) for mark in (b"PK\3\4", b"PK\7\10", b"PK\1\2", b"PK\5\6")]
    structure = [mark + offset for mark in marks for offset in range(0, 30, 4)]
    # A member marked as a folder: to torch it is empty.
    structure.append(whole.index(b"PK\1\2", whole.index(b"archive/data/0", marks[2])) + 38)
    spread = random.Random(seed).sample(range(len(whole)), count)
    return [place for place in [*structure, *spread, len(whole) - 1] if place < len(whole)]


def test_a_flipped_bit_anywhere_is_refused_or_without_consequence(tmp_path):
    run = Run()
    run.train(3)
    path = tmp_path / "last.pt"
    save_training_checkpoint(path, step=3, **run.parts(), note="kept")
    whole = path.read_bytes()
    load_training_checkpoint(path, **run.parts())
    expected, drawn, cursor = everything(run), generators(), run.loader.state_dict()
    refused = 0
    for number, place in enumerate(flips(whole, count=60, seed=1)):
        damaged = bytearray(whole)
        damaged[place] ^= 16 if damaged[place] == 0 else 1 << number % 8
        path.write_bytes(damaged)
        try:
            found = load_training_checkpoint(path, **run.parts())
        except BadBlock:
            refused += 1
        else:
            assert found == {"step": 3, "note": "kept"}
        assert (everything(run), generators(), run.loader.state_dict()) == (expected, drawn, cursor), place
    assert refused > 40


def test_a_flipped_bit_in_a_tensor_names_the_damaged_member(tmp_path):
    model = torch.nn.Linear(64, 64)
    save_best(tmp_path, model, 1.0)
    path = tmp_path / BEST_NAME
    whole = path.read_bytes()
    place = whole.index(model.weight.detach().numpy().tobytes()) + 500
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(BadBlock, match=r"member archive/data/0 differs from its checksum"):
        load_checkpoint(tmp_path)


def test_a_flipped_bit_in_the_best_loss_is_noticed(tmp_path):
    save_best(tmp_path, torch.nn.Linear(1, 1), 3.0)
    path = tmp_path / BEST_NAME
    whole = path.read_bytes()
    for place in range(whole.rindex(b'{"val_loss"'), len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ConfigError, match="damaged"):
            best_val_loss(path)


def another_shape(run: Run) -> None:
    run.model = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 2))


def another_name(run: Run) -> None:
    run.model = torch.nn.ModuleDict({"0": torch.nn.Linear(1, 8), "last": torch.nn.Linear(8, 1)})


def another_optimizer_group(run: Run) -> None:
    run.optimizer = torch.optim.AdamW([{"params": [p]} for p in run.model.parameters()])


def another_parameter_order(run: Run) -> None:
    run.optimizer = torch.optim.AdamW(list(run.model.parameters())[::-1])


def other_data(run: Run) -> None:
    run.loader = StreamingDataLoader(np.arange(44, dtype=np.float32), batch_size=4, shuffle=True, seed=7)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (another_shape, ConfigError, "another model.*size mismatch"),
        (another_name, ConfigError, "another model.*Missing key"),
        (another_optimizer_group, ConfigError, "another optimizer.*parameter group"),
        (another_parameter_order, ConfigError, r"another optimizer.*exp_avg of parameter 0 is \(8, 1\) in it, \(1,\)"),
        (other_data, StateMismatch, "num_samples is 40"),
    ],
)
def test_a_checkpoint_that_does_not_fit_changes_nothing_at_all(tmp_path, change, error, said):
    run = Run()
    run.train(3)
    save_training_checkpoint(tmp_path / "last.pt", step=3, **run.parts())
    other = Run()
    other.train(1)
    change(other)
    next(iter(other.loader))
    before = everything(other), generators(), other.loader.state_dict()
    with pytest.raises(error, match=f"(?s){said}"):
        load_training_checkpoint(tmp_path / "last.pt", **other.parts())
    assert (everything(other), generators(), other.loader.state_dict()) == before


@pytest.mark.parametrize(
    "edit",
    [
        lambda states: states.pop("format_version"),
        lambda states: states.pop("extra"),
        lambda states: states.pop("scheduler"),
        lambda states: states.update(step="3"),
        lambda states: states["rng"].pop("numpy"),
        lambda states: states["rng"].update(torch=torch.zeros(3)),
        lambda states: states["rng"]["python"].__setitem__(1, [1, 2]),
    ],
)
def test_an_edited_checkpoint_is_refused_before_anything_changes(tmp_path, edit):
    run = Run()
    run.train(2)
    save_training_checkpoint(tmp_path / "last.pt", step=2, **run.parts())
    states = torch.load(tmp_path / "last.pt", weights_only=True)
    edit(states)
    torch.save(states, tmp_path / "last.pt")
    run.train(1)
    before = everything(run), generators(), run.loader.state_dict()
    with pytest.raises(BadBlock, match=r"last\.pt"):
        load_training_checkpoint(tmp_path / "last.pt", **run.parts())
    assert (everything(run), generators(), run.loader.state_dict()) == before


def test_a_function_among_the_extras_is_refused_and_the_former_file_stays(tmp_path):
    run = Run()
    save_training_checkpoint(tmp_path / "last.pt", step=0, **run.parts())
    before = (tmp_path / "last.pt").read_bytes()
    with pytest.raises(ConfigError, match="weights_only=True"):
        save_training_checkpoint(tmp_path / "last.pt", step=1, **run.parts(), extra=lambda: None)
    assert (tmp_path / "last.pt").read_bytes() == before
    assert os.listdir(tmp_path) == ["last.pt"]
