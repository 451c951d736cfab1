"""A bad argument is refused at once, with its name, its value and what is allowed."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch

import subjects
from penstock import ConfigError, StreamingDataLoader, World
from penstock.loader.settings import INSTEAD
from torch_subjects import Endless


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
        ({"batch_size": -4}, "batch_size must be an integer >= 1, got -4"),
        ({"batch_size": 2.0}, r"batch_size must be an integer >= 1, got 2.0 \(float\)"),
        ({"batch_size": True}, r"batch_size must be an integer >= 1, got True \(bool\)"),
        ({"batch_size": None, "global_batch_size": 0}, "global_batch_size must be an integer >= 1, got 0"),
        ({"global_batch_size": 8}, "batch_size=4 and global_batch_size=8: give one of the two"),
        ({"shuffle": "yes"}, "shuffle must be one of False, True, None, 'global', 'window'; got 'yes'"),
        ({"shuffle": 1}, "shuffle must be one of .*; got 1"),
        ({"shuffle": "window"}, "shuffle='window' needs dataset.block_ends, Plain has none: use 'global'"),
        ({"seed": -1}, "seed must be an integer >= 0, got -1"),
        ({"seed": 1.5}, r"seed must be an integer >= 0, got 1.5"),
        ({"drop_last": "no"}, "drop_last must be one of True, False; got 'no'"),
        ({"remainder": "wrap"}, "remainder must be one of None, 'short', 'drop', 'pad', 'carry'; got 'wrap'"),
        ({"drop_last": True, "remainder": "pad"}, "drop_last=True and remainder='pad' contradict each other"),
        ({"num_workers": -1}, "num_workers must be an integer >= 0, got -1"),
        ({"num_workers": "many"}, "num_workers must be 'auto' or an integer >= 0, got 'many'"),
        ({"worker_type": "fork"}, "worker_type must be one of 'auto', 'thread', 'process'; got 'fork'"),
        ({"prefetch": 0}, "prefetch must be an integer >= 1, got 0"),
        ({"transform": 3}, "transform must be a callable or a list of them, got 3"),
        ({"transform": [str, "upper"]}, r"transform must be a callable or a list of them, got \[.*'upper'\]"),
        ({"collate_fn": "stack"}, "collate_fn must be None or a callable that makes a batch of a list, got 'stack'"),
        ({"pin_memory": "yes"}, "pin_memory must be one of True, False; got 'yes'"),
        ({"device": "abacus"}, "device must be None, a torch.device or its name, got 'abacus'"),
        ({"world": 4}, "world must be a penstock.World, got 4"),
        ({"window": 0}, "window must be an integer >= 1, got 0"),
        ({"length_bucket": 4}, "length_bucket needs dataset.lengths, and Plain has none"),
        ({"on_error": "ignore"}, "on_error must be one of 'raise', 'skip', 'substitute'; got 'ignore'"),
        ({"timeout": 0}, "timeout must be a number of seconds above 0 and up to 1000000, got 0"),
        ({"timeout": float("nan")}, "timeout must be a number of seconds above 0 and up to 1000000, got nan"),
        ({"timeout": float("inf")}, "timeout must be a number of seconds above 0 and up to 1000000, got inf"),
        ({"timeout": None}, "timeout must be a number of seconds above 0 and up to 1000000, got None"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_bad_argument_is_named_with_what_is_allowed(arguments, said):
    with pytest.raises(ConfigError, match=said):
        StreamingDataLoader(subjects.Plain(), **{"batch_size": 4, **arguments})


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sampler", "order belongs to the loader: use shuffle=, or wrap the dataset in torch.utils.data.Subset"),
        ("batch_sampler", "use batch_size=, shuffle= and drop_last="),
        ("prefetch_factor", "use prefetch="),
        ("persistent_workers", "workers always stay until close"),
        ("worker_init_fn", "a transform with a parameter `rng`"),
        ("generator", "use seed="),
        ("multiprocessing_context", "workers are fresh interpreters"),
        ("pin_memory_device", "use device="),
        ("in_order", "batches always come in order"),
        ("num_worker", r"did you mean num_workers\?"),
        ("xyzzy", "$"),
    ],
)
def test_arguments_that_are_not_there_say_what_takes_their_place(name, said):
    with pytest.raises(ConfigError, match=f"StreamingDataLoader takes no {name}.*{said}"):
        StreamingDataLoader(subjects.Plain(), 4, **{name: None})


def test_torchs_loader_has_no_argument_that_is_unknown_here():
    named = set(inspect.signature(torch.utils.data.DataLoader.__init__).parameters) - {"self"}
    here = set(inspect.signature(StreamingDataLoader.__init__).parameters)
    assert named - here <= set(INSTEAD)


@pytest.mark.parametrize("path", ["bins/train.bin", b"bins/train.bin", Path("bins", "train.bin")])
def test_a_path_is_no_dataset(path):
    with pytest.raises(ConfigError, match=r"dataset must hold samples, got .*train.bin.*TokenDataset\(path, seq_len\)"):
        StreamingDataLoader(path, 2)


def test_a_length_bucket_must_be_positive():
    with pytest.raises(ConfigError, match="length_bucket must be an integer >= 1, got 0"):
        StreamingDataLoader(subjects.Blocks([4]), 2, length_bucket=0)


class NoIds:
    def __iter__(self):
        return iter(range(3))


@pytest.mark.parametrize("dataset", [NoIds(), iter(range(3)), Endless(), None, 5])
def test_a_dataset_without_ids_is_refused(dataset):
    with pytest.raises(ConfigError, match="give a map-style dataset"):
        StreamingDataLoader(dataset, 2)


def test_an_empty_dataset_is_refused():
    with pytest.raises(ConfigError, match="Plain is empty: there is nothing to load"):
        StreamingDataLoader(subjects.Plain(0), 2)


def test_blocks_that_do_not_end_with_the_dataset_are_refused():
    dataset = subjects.Blocks([4, 4])
    dataset.block_ends = np.array([4, 9])
    with pytest.raises(ConfigError, match="block_ends ends at 9, but the dataset has 8 samples"):
        StreamingDataLoader(dataset, 2, shuffle="window")


def test_dropping_the_only_batch_is_refused():
    loader = StreamingDataLoader(subjects.Plain(3), 4, drop_last=True)
    with pytest.raises(ConfigError, match="3 samples do not fill one global batch of 4"):
        len(loader)


def test_a_global_batch_that_ranks_cannot_share_is_refused():
    loader = StreamingDataLoader(subjects.Plain(), global_batch_size=10, world=World(dp_size=4))
    with pytest.raises(ConfigError, match="global_batch_size 10 is not a multiple of the 4 ranks"):
        next(iter(loader))


@pytest.mark.parametrize("epoch", [-1, 1.5, "2", None])
def test_an_epoch_is_a_count(epoch):
    with pytest.raises(ConfigError, match="epoch must be an integer >= 0"):
        StreamingDataLoader(subjects.Plain(), 2).set_epoch(epoch)


def test_fetch_must_give_one_row_per_id():
    class Short(subjects.Fetching):
        def fetch(self, ids):
            rows = super().fetch(ids)
            return {name: values[:-1] for name, values in rows.items()} if self.arrays else rows[:-1]

    for arrays in (True, False):
        with pytest.raises(ConfigError, match=r"Short gave \[3\] rows for 4 ids"):
            next(iter(StreamingDataLoader(Short(arrays=arrays), 4, num_workers=0)))


def test_what_the_arguments_leave_out_is_chosen_by_the_dataset():
    plain, waiting = StreamingDataLoader(subjects.Plain(), 2), StreamingDataLoader(subjects.Fetching(), 2)
    assert "in the trainer's own thread" in plain.explain()
    assert "thread workers" in waiting.explain()
    copying = subjects.Fetching()
    copying.inline = True
    assert "in the trainer's own thread" in StreamingDataLoader(copying, 2).explain()
    assert "process workers" in StreamingDataLoader(subjects.Plain(), 2, num_workers=2).explain()


def test_a_dataset_that_cannot_be_pickled_is_refused_for_processes_only():
    loader = StreamingDataLoader(subjects.Unpicklable(), 4, num_workers=1, worker_type="process")
    with pytest.raises(ConfigError, match=r"Unpicklable.*cannot be sent to worker processes.*worker_type='thread'"):
        next(iter(loader))
    with StreamingDataLoader(subjects.Unpicklable(), 4, num_workers=1, worker_type="thread") as loader:
        assert next(iter(loader))["id"].tolist() == [0, 1, 2, 3]


def test_a_transform_that_cannot_be_pickled_is_refused_for_processes():
    loader = StreamingDataLoader(subjects.Plain(), 4, num_workers=1, transform=lambda sample: sample)
    with pytest.raises(ConfigError, match="define them at a module's top level"):
        next(iter(loader))
