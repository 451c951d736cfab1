"""Interrupted in one process and used again there, as in a notebook: nothing is lost, nothing comes twice."""

from __future__ import annotations

import copy
import signal
import threading
import time

import numpy as np
import pytest

import subjects
from penstock import ConfigError, LoaderClosed, StreamingDataLoader
from penstock.loader.processes import ProcessLane
from penstock.loader.threads import ThreadLane

LANES = {"thread": ThreadLane, "process": ProcessLane}


@pytest.fixture(params=LANES)
def kind(request):
    return request.param


@pytest.mark.parametrize("method", ["submit", "result"])
@pytest.mark.parametrize("at", [1, 2, 3, 5, 9])
def test_an_interrupt_inside_the_loader_loses_no_batch(kind, method, at, monkeypatch):
    lane, calls = LANES[kind], []
    real = getattr(lane, method)

    def interrupted(self, *args):
        value = real(self, *args)
        calls.append(1)
        if len(calls) == at:
            signal.raise_signal(signal.SIGINT)
        return value

    monkeypatch.setattr(lane, method, interrupted)
    read, interrupts = [], 0
    with StreamingDataLoader(subjects.Fetching(40), 4, num_workers=1, worker_type=kind, prefetch=2) as loader:
        while loader.epoch == 0:
            try:
                for batch in loader:
                    read += batch["id"].tolist()
            except KeyboardInterrupt:
                interrupts += 1
    assert read == list(range(40))
    assert interrupts == 1


@pytest.mark.parametrize("before", [True, False], ids=["before it has closed", "after it"])
def test_a_second_interrupt_while_the_first_one_closes_the_lane_loses_no_batch(kind, before, monkeypatch):
    lane, signals = LANES[kind], []
    submit, close = lane.submit, lane.close

    def interrupted(self, *args):
        submit(self, *args)
        signals.append(1)
        if len(signals) == 3:
            signal.raise_signal(signal.SIGINT)

    def interrupted_again(self):
        once = len(signals) >= 3 and not lane_closings
        lane_closings.append(1)
        if once and before:
            # What an interrupt leaves undone here ends with this process; the test ends it.
            left.append(self)
            signal.raise_signal(signal.SIGINT)
        close(self)
        if once:
            signal.raise_signal(signal.SIGINT)

    lane_closings, left = [], []
    monkeypatch.setattr(lane, "submit", interrupted)
    monkeypatch.setattr(lane, "close", interrupted_again)
    read, interrupts = [], 0
    with StreamingDataLoader(
        subjects.Fetching(40), 4, num_workers=1, worker_type=kind, prefetch=2, timeout=30
    ) as loader:
        while loader.epoch == 0:
            try:
                for batch in loader:
                    read += batch["id"].tolist()
            except KeyboardInterrupt:
                interrupts += 1
    for each in left:
        close(each)
    assert read == list(range(40))
    assert interrupts == 1


def test_counting_batches_instead_of_exhausting_the_iterator_gives_every_epoch():
    loader = StreamingDataLoader(subjects.Plain(8), 4, shuffle=True)
    counted = [[batch["id"].tolist() for _, batch in zip(range(len(loader)), loader, strict=False)] for _ in range(3)]
    exhausted = StreamingDataLoader(subjects.Plain(8), 4, shuffle=True)
    assert counted == [[batch["id"].tolist() for batch in exhausted] for _ in range(3)]


def test_closing_from_another_thread_ends_the_wait_at_once(kind):
    dataset = subjects.Waiting(20, at=0, event=threading.Event()) if kind == "thread" else subjects.Stuck(20, at=0)
    loader = StreamingDataLoader(dataset, 4, num_workers=1, worker_type=kind, timeout=60)
    closer = threading.Timer(1.0, loader.close)
    started = time.monotonic()
    closer.start()
    with pytest.raises(LoaderClosed, match="closed by another thread"):
        next(iter(loader))
    assert time.monotonic() - started < 20
    if kind == "thread":
        dataset.event.set()
    closer.join()


def test_batches_under_way_end_between_two_samples_when_the_loader_is_closed():
    """Each would take minutes to its end; no thread is left behind, of which a warning would tell."""
    begun = []

    def slowly(sample):
        begun.append(sample["id"])
        time.sleep(0.2)
        return sample

    loader = StreamingDataLoader(subjects.Plain(8000), 4000, transform=slowly, num_workers=2, worker_type="thread")
    closer = threading.Timer(1.0, loader.close)
    closer.start()
    with pytest.raises(LoaderClosed):
        next(iter(loader))
    closer.join()
    count = len(begun)
    time.sleep(0.5)
    assert len(begun) == count


def test_a_plain_dataset_is_asked_for_no_more_samples_once_the_loader_is_closed():
    begun = []

    class Slow(subjects.Plain):
        def __getitem__(self, index):
            begun.append(index)
            time.sleep(0.2)
            return super().__getitem__(index)

    loader = StreamingDataLoader(Slow(8000), 4000, num_workers=2, worker_type="thread")
    closer = threading.Timer(1.0, loader.close)
    closer.start()
    with pytest.raises(LoaderClosed):
        next(iter(loader))
    closer.join()
    count = len(begun)
    time.sleep(0.5)
    assert len(begun) == count


def test_a_copy_of_a_loader_stands_where_the_loader_stands(kind):
    with StreamingDataLoader(subjects.Plain(20), 4, num_workers=1, worker_type=kind) as loader:
        next(iter(loader))
        with copy.deepcopy(loader) as twin:
            assert twin.state_dict() == loader.state_dict()
            assert [batch["id"].tolist() for batch in twin] == [batch["id"].tolist() for batch in loader]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_transform_may_change_its_arrays_in_place(workers):
    """Inputs and labels of a dataset may be two views of one array."""
    loader = StreamingDataLoader(
        subjects.Shifted(12), 4, transform=subjects.mask_in_place, num_workers=workers, worker_type="thread"
    )
    with loader:
        for batch in loader:
            assert (batch["input_ids"][:, 1] == -1).all()
            assert (batch["labels"][:, 0] != -1).all()


def test_what_cannot_be_sent_from_a_process_is_refused_with_its_samples():
    options = {"num_workers": 1, "worker_type": "process", "collate_fn": subjects.collate_to_a_function}
    said = r"samples \[0, 1, 2, 3\] of Plain cannot be sent from a worker process"
    with StreamingDataLoader(subjects.Plain(20), 4, **options) as loader, pytest.raises(ConfigError, match=said):
        next(iter(loader))


def test_a_fetch_that_gives_neither_list_nor_dict_is_refused_alike_in_every_lane(kind):
    for workers in (0, 1):
        loader = StreamingDataLoader(subjects.Bare(20), 4, num_workers=workers, worker_type=kind)
        with loader, pytest.raises(ConfigError, match="gave a ndarray for 4 ids"):
            next(iter(loader))


@pytest.mark.parametrize("view", [np.s_[:, ::-1], np.s_[:, ::2]])
def test_arrays_of_any_layout_and_byte_order_become_tensors(kind, view):
    rows = []
    for workers in (0, 1):
        dataset = subjects.Layouts(40, view)
        with StreamingDataLoader(dataset, 20, num_workers=workers, worker_type=kind) as loader:
            rows.append([batch["x"].tolist() for batch in loader])
    assert rows[0] == rows[1]
    assert rows[0][0] == np.arange(100)[None].repeat(20, 0)[view].tolist()
