"""Slabs: arrays cross processes on shared pages, which are used again only when nothing refers to them."""

from __future__ import annotations

import os
import socket

import numpy as np
import pytest
import torch

from penstock import StreamingDataLoader
from penstock.loader.sharing import IN_BAND_BYTES, MAX_BUSY_SLABS, SlabReader, SlabWriter, Wire
from penstock.testing import CountingDataset, first_difference

BIG = IN_BAND_BYTES


def passed(writer: SlabWriter, reader: SlabReader, value):
    """Send a value from one side to the other, as two processes do."""
    parcel, fds = writer.pack(value)
    return reader.unpack(parcel, list(fds))


@pytest.mark.parametrize("size", [3, 4 * BIG], ids=["small", "large"])
def test_whatever_is_packed_comes_out_equal(size):
    value = {
        "int": np.arange(size),
        "bytes": np.arange(size, dtype=np.uint8),
        "strided": np.arange(2 * size)[::2],
        "fortran": np.asfortranarray(np.arange(2 * size).reshape(2, size)),
        "tensor": torch.arange(size),
        "bfloat16": torch.ones(size, dtype=torch.bfloat16),
        "transposed": torch.arange(2 * size).reshape(2, size).T,
        "empty": np.zeros((0, 4)),
        "scalar": torch.tensor(7),
        "text": ["a", None, 3.5],
        "objects": np.array([None, "x"], dtype=object),
        "dates": np.array(["2020-01-01"], dtype="datetime64[D]"),
    }
    out = passed(SlabWriter(), SlabReader(), value)
    assert first_difference({**value, "objects": 0}, {**out, "objects": 0}) is None
    assert out["objects"].tolist() == [None, "x"]
    out["int"][0] = 5  # the trainer may write to what it was given
    out["tensor"][0] = 5


def test_a_slab_is_used_again_when_nothing_refers_to_it():
    writer, reader = SlabWriter(), SlabReader()
    for number in range(50):
        out = passed(writer, reader, np.full(4 * BIG, number % 100, dtype=np.uint8))
        assert (out == number % 100).all()
        del out
        writer.take_back(reader.released())
    assert len(writer._slabs) == 1


KEEPERS = {"all": lambda out: out, "a view": lambda out: out[5:9], "a tensor": torch.from_numpy}


@pytest.mark.parametrize("keep", KEEPERS.values(), ids=KEEPERS)
def test_a_slab_that_anything_refers_to_is_left_alone(keep):
    writer, reader = SlabWriter(), SlabReader()
    kept = []
    for number in range(2 * MAX_BUSY_SLABS):
        kept.append(keep(passed(writer, reader, np.full(4 * BIG, number, dtype=np.uint8))))
        writer.take_back(reader.released())
    assert [int(values[0]) for values in kept] == list(range(2 * MAX_BUSY_SLABS))
    assert all((np.asarray(values) == number).all() for number, values in enumerate(kept))


def test_the_number_of_slabs_is_bounded_however_much_is_kept():
    writer, reader = SlabWriter(), SlabReader()
    kept = []
    for number in range(5 * MAX_BUSY_SLABS):
        kept.append(passed(writer, reader, np.full(4 * BIG, number % 200, dtype=np.uint8)))
        writer.take_back(reader.released())
    assert len(writer._slabs) <= MAX_BUSY_SLABS + 1
    assert all((values == number % 200).all() for number, values in enumerate(kept))


def test_larger_batches_open_larger_slabs():
    writer, reader = SlabWriter(), SlabReader()
    for size in (BIG + 1, 3 * BIG, 9 * BIG, 2 * BIG):
        out = passed(writer, reader, np.full(size, 7, dtype=np.uint8))
        assert out.nbytes == size
        del out
        writer.take_back(reader.released())
    assert len(writer._slabs) == 3


def test_a_message_and_its_descriptors_arrive_whole():
    ours, theirs = (Wire(sock) for sock in socket.socketpair())
    read, write = os.pipe()
    ours.send({"n": 1}, (write,), timeout=5)
    ours.send(["x" * 100_000], timeout=5)
    message, (fd,) = theirs.receive(5)
    assert message == {"n": 1}
    os.write(fd, b"through")
    assert os.read(read, 10) == b"through"
    assert theirs.receive(5) == (["x" * 100_000], [])
    for fd_ in (read, write, fd):
        os.close(fd_)
    ours.close()
    with pytest.raises(EOFError):
        theirs.receive(5)
    theirs.close()


def test_a_wait_on_the_wire_ends():
    ours, theirs = (Wire(sock) for sock in socket.socketpair())
    with pytest.raises(TimeoutError):
        theirs.receive(0.05)
    with pytest.raises(TimeoutError):
        ours.send(bytes(50_000_000), timeout=0.05)
    ours.close()
    theirs.close()


def memory_files() -> int:
    """Descriptors and mappings of anonymous files in this process."""
    places = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    return sum("memfd:penstock" in os.readlink(place) for place in places if os.path.islink(place))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts descriptors in /proc")
def test_over_many_batches_the_number_of_slabs_stays_small():
    dataset = CountingDataset(4000, width=4096)
    with StreamingDataLoader(dataset, 8, num_workers=2, worker_type="process", prefetch=4) as loader:
        # For each worker: four results in flight, two in the trainer's hands, two it has not heard of being free.
        most, counts = memory_files() + 2 * (4 + 2 + 2), []
        for batch in loader:
            assert (batch["x"] == batch["id"][:, None]).all()
            counts.append(memory_files())
    assert len(counts) == 500
    assert max(counts) <= most


LANES = {
    "inline": {"num_workers": 0},
    "thread": {"num_workers": 2, "worker_type": "thread"},
    "process": {"num_workers": 2, "worker_type": "process"},
}


@pytest.mark.parametrize("lane", LANES.values(), ids=LANES)
def test_a_batch_that_is_kept_is_never_overwritten(lane):
    dataset = CountingDataset(2000, width=2048)
    with StreamingDataLoader(dataset, 8, shuffle=True, **lane) as loader:
        kept = list(loader)
        list(loader)
    assert sorted(id_ for batch in kept for id_ in batch["id"].tolist()) == list(range(2000))
    assert all((batch["x"] == batch["id"][:, None]).all() for batch in kept)
