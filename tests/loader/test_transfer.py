"""Batches as tensors, pinned or on a device."""

from __future__ import annotations

from collections import namedtuple

import numpy as np
import pytest
import torch

import subjects
from penstock import ConfigError, StreamingDataLoader
from penstock.loader.transfer import as_steps, as_tensors, count_bytes
from penstock.testing import CountingDataset, check_order_law
from torch_subjects import Items

Pair = namedtuple("Pair", "a b")


def test_arrays_become_tensors_on_the_same_memory():
    values = np.arange(4)
    batch = as_tensors({"x": values, "deep": [(values, "text"), Pair(values, 3)]})
    values[0] = 9
    assert batch["x"][0] == batch["deep"][0][0][0] == batch["deep"][1].a[0] == 9
    assert isinstance(batch["deep"][1], Pair)
    assert batch["deep"][0][1] == "text"


def test_arrays_that_cannot_be_tensors_stay_arrays():
    texts, dates = np.array(["a", "b"]), np.array(["2020-01-01"], dtype="datetime64[D]")
    batch = as_tensors({"texts": texts, "dates": dates})
    assert batch["texts"] is texts
    assert batch["dates"] is dates


def test_read_only_arrays_are_copied_never_written_to():
    values = np.arange(4)
    values.flags.writeable = False
    tensor = as_tensors(values)
    tensor[0] = 9
    assert values.tolist() == [0, 1, 2, 3]


def test_a_table_is_cut_into_steps_without_a_copy():
    rows = {"x": np.arange(12).reshape(6, 2), "name": np.array(list("abcdef"))}
    steps = list(as_steps(rows, 3))
    assert [step["x"].tolist() for step in steps] == [[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8, 9], [10, 11]]]
    assert [step["name"].tolist() for step in steps] == [["a", "b"], ["c", "d"], ["e", "f"]]
    rows["x"][0, 0] = 99
    assert steps[0]["x"][0, 0] == 99


def test_bytes_are_those_of_tensors_and_arrays():
    batch = {"x": torch.zeros(4, dtype=torch.int64), "more": [np.zeros(3, np.uint8), "text", (torch.zeros(2),)]}
    assert count_bytes(batch) == 32 + 3 + 8


def test_a_device_that_the_machine_lacks_is_refused_before_anything_is_read():
    with pytest.raises(
        ConfigError, match=r"device='cuda:99', but torch finds (no CUDA device, only the CPU|CUDA devices)"
    ):
        StreamingDataLoader(subjects.Plain(), 4, device="cuda:99")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
def test_without_cuda_pinning_does_nothing():
    batch = next(iter(StreamingDataLoader(subjects.Plain(), 4, pin_memory=True)))
    assert not batch["x"].is_pinned()


def test_batches_go_to_the_device_that_is_asked_for():
    loader = StreamingDataLoader(Items([{"x": np.ones(2), "t": "a"}] * 4), 2, device="cpu")
    for batch in loader:
        assert batch["x"].device.type == "cpu"
        assert batch["t"] == ["a", "a"]


@pytest.mark.gpu
class TestCuda:
    def test_batches_arrive_on_the_device(self):
        loader = StreamingDataLoader(CountingDataset(64, width=1000), 8, device="cuda", shuffle=True)
        for batch in loader:
            assert batch["x"].is_cuda
            assert (batch["x"] == batch["id"][:, None]).all()

    def test_pinned_batches_are_pinned(self):
        for batch in StreamingDataLoader(CountingDataset(64), 8, pin_memory=True):
            assert batch["x"].is_pinned()

    def test_the_state_counts_what_was_handed_out_not_what_was_moved_ahead(self):
        loader = StreamingDataLoader(CountingDataset(64), 8, device="cuda")
        for step, _ in enumerate(loader, start=1):
            assert loader.state_dict()["samples"] == 8 * step

    def test_a_change_of_rounds_keeps_what_was_moved_ahead(self):
        dataset = subjects.Remote(40)
        with StreamingDataLoader(
            dataset, 2, round_batches=3, device="cuda", num_workers=2, worker_type="thread", prefetch=2
        ) as loader:
            found = [batch["id"].tolist() for round_ in loader.rounds(6) for batch in round_]
        assert found == [[start, start + 1] for start in range(0, 36, 2)]
        assert len(dataset.fetched) <= 36 + 2 * (2 + 1)

    def test_a_device_changes_no_batch(self):
        def make(**how):
            return OnCpu(StreamingDataLoader(CountingDataset(64, width=500), 8, shuffle=True, **how))

        check_order_law(make, [{}, {"device": "cuda"}, {"device": "cuda", "num_workers": 2}, {"pin_memory": True}])


class OnCpu:
    """A loader whose batches are brought back, so that they can be compared."""

    def __init__(self, loader):
        self.loader = loader

    def __iter__(self):
        for batch in self.loader:
            yield {name: values.cpu() for name, values in batch.items()}

    def close(self):
        self.loader.close()
