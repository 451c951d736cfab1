"""torch's own datasets are accepted everywhere, and their batches are what torch's DataLoader makes of them."""

from __future__ import annotations

from collections import namedtuple

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset

from penstock import StreamingDataLoader
from penstock.testing import CountingDataset, check_lanes, check_resume, first_difference
from torch_subjects import Ids, Items

LANES = [{"num_workers": 0}, {"num_workers": 2, "worker_type": "thread"}]
Point = namedtuple("Point", "x y")

TENSORS = TensorDataset(torch.arange(20), torch.randn(20, 3, generator=torch.Generator().manual_seed(0)))
DATASETS = {
    "integers": Ids(20),
    "tensors": TENSORS,
    "a subset": Subset(TENSORS, [3, 1, 4, 15, 9, 2, 6]),
    "several in a row": ConcatDataset([Ids(7), Ids(5), Subset(Ids(9), [8, 0])]),
    "a list": list(range(10)),
    "floats": Items([0.5, 1.5, 2.5]),
    "booleans": Items([True, False, True]),
    "numpy scalars": Items([np.float32(1), np.float32(2), np.float32(3)]),
    "small integers": Items([np.uint8(1), np.uint8(2)]),
    "texts": Items(["a", "bb", "ccc"]),
    "tuples": Items([(1, torch.ones(2)), (2, torch.zeros(2)), (3, torch.ones(2))]),
    "named tuples": Items([Point(1, 2.0), Point(3, 4.0), Point(5, 6.0)]),
    "dicts": Items([{"x": np.full((2, 2), j), "t": f"t{j}", "in": {"k": j}} for j in range(4)]),
    "half precision": Items([np.ones(3, np.float16), np.zeros(3, np.float16)]),
    "bfloat16 tensors": Items([torch.ones(3, dtype=torch.bfloat16), torch.zeros(3, dtype=torch.bfloat16)]),
    "empty arrays": Items([np.zeros(0), np.zeros(0)]),
}


@pytest.mark.parametrize("dataset", DATASETS.values(), ids=DATASETS)
@pytest.mark.parametrize("lane", LANES, ids=["inline", "thread"])
def test_batches_are_those_of_torchs_dataloader(dataset, lane):
    expected = list(DataLoader(dataset, batch_size=3))
    with StreamingDataLoader(dataset, batch_size=3, **lane) as loader:
        found = list(loader)
    assert first_difference(expected, found) is None
    assert len(loader) == len(expected)


def test_batches_from_processes_are_those_of_torchs_dataloader():
    kinds = [
        {
            "b": torch.full((3,), j, dtype=torch.bfloat16),
            "t": f"t{j}",
            "e": np.zeros(0),
            "in": (j, torch.arange(20_000)),
        }
        for j in range(7)
    ]
    with StreamingDataLoader(Items(kinds), batch_size=3, num_workers=1, worker_type="process") as loader:
        assert first_difference(list(DataLoader(Items(kinds), batch_size=3)), list(loader)) is None


def test_texts_are_lists_even_in_tuples_where_torch_gives_a_tuple():
    (found,) = StreamingDataLoader(Items([(1, "a"), (2, "b")]), 2)
    assert [column if isinstance(column, list) else column.tolist() for column in found] == [[1, 2], ["a", "b"]]


def test_drop_last_is_torchs():
    for drop_last in (True, False):
        expected = list(DataLoader(Ids(20), batch_size=6, drop_last=drop_last))
        assert first_difference(expected, list(StreamingDataLoader(Ids(20), 6, drop_last=drop_last))) is None


def test_torchs_collate_may_be_used():
    from torch.utils.data import default_collate

    loader = StreamingDataLoader(TENSORS, 4, collate_fn=default_collate)
    assert first_difference(list(DataLoader(TENSORS, batch_size=4)), list(loader)) is None


def test_a_collate_gets_samples_as_the_dataset_gives_them():
    seen = []
    for _ in StreamingDataLoader(Items([{"a": 1}, {"a": 2}, {"a": 3}]), 2, collate_fn=seen.append):
        pass
    assert seen == [[{"a": 1}, {"a": 2}], [{"a": 3}]]


def test_a_datasets_own_getitems_is_called_once_a_batch():
    class Batched(Ids):
        calls = 0

        def __getitems__(self, indices):
            self.calls += 1
            return list(indices)

    dataset = Batched(20)
    assert [batch.tolist() for batch in StreamingDataLoader(dataset, 10, num_workers=0)] == [
        list(range(10)),
        list(range(10, 20)),
    ]
    assert dataset.calls == 2


def test_arrays_from_fetch_may_hold_tensors_and_lists_too():
    class Mixed(Ids):
        def fetch(self, ids):
            return {"id": torch.from_numpy(ids.copy()), "name": [f"n{id_}" for id_ in ids.tolist()]}

    with StreamingDataLoader(Mixed(20), 4, num_workers=0) as loader:
        batches = list(loader)
    assert [batch["id"].tolist() for batch in batches][1] == [4, 5, 6, 7]
    assert batches[1]["name"] == ["n4", "n5", "n6", "n7"]


def test_torch_datasets_keep_the_laws():
    check_resume(lambda: StreamingDataLoader(DATASETS["several in a row"], 3, shuffle=True))
    check_lanes(Subset(TENSORS, range(11)), batch_size=3, shuffle=True, workers=(0, 2), prefetch=(2,))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_our_datasets_work_inside_torchs_dataloader(num_workers):
    """A dataset with `fetch` for us and `__getitem__` for torch gives both the same samples."""
    dataset = CountingDataset(12)
    options = {"multiprocessing_context": "forkserver"} if num_workers else {}
    expected = list(DataLoader(dataset, batch_size=5, num_workers=num_workers, **options))
    assert first_difference(expected, list(StreamingDataLoader(dataset, 5))) is None


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
def test_our_datasets_resume_inside_torchdatas_stateful_dataloader():
    stateful = pytest.importorskip("torchdata.stateful_dataloader")
    dataset = CountingDataset(20)
    loader = stateful.StatefulDataLoader(dataset, batch_size=4)
    stream = iter(loader)
    for _ in range(2):
        next(stream)
    resumed = stateful.StatefulDataLoader(dataset, batch_size=4)
    resumed.load_state_dict(loader.state_dict())
    assert first_difference(list(StreamingDataLoader(dataset, 4, num_workers=0))[2:], list(resumed)) is None
