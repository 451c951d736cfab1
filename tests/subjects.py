"""Datasets, transforms and collates for the tests: plain ones, and ones that misbehave on purpose."""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np


class Plain:
    """A map-style dataset as anyone would write it: sample i is i and an array of it."""

    def __init__(self, size: int = 20) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int):
        if not 0 <= index < self.size:
            raise IndexError(index)
        return {"id": index, "x": np.full(3, index, dtype=np.float32)}


class Fetching(Plain):
    """The same with `fetch`, giving arrays or, with `arrays=False`, a list of samples."""

    def __init__(self, size: int = 20, *, arrays: bool = True) -> None:
        super().__init__(size)
        self.arrays = arrays
        self.fingerprint = f"fetching-{size}"

    def fetch(self, ids: np.ndarray):
        if not self.arrays:
            return [self[id_] for id_ in ids.tolist()]
        return {"id": ids.copy(), "x": np.repeat(ids[:, None].astype(np.float32), 3, axis=1)}


class Broken(Fetching):
    """`fetch` raises if it is asked for one of `bad`."""

    def __init__(self, size: int = 20, *, bad: tuple[int, ...] = (), arrays: bool = True, error=ValueError) -> None:
        super().__init__(size, arrays=arrays)
        self.bad = bad
        self.error = error

    def __getitem__(self, index: int):
        if index in self.bad:
            raise self.error(f"sample {index} is broken")
        return super().__getitem__(index)

    def fetch(self, ids: np.ndarray):
        for id_ in ids.tolist():
            self[id_]
        return super().fetch(ids)


class SlowlyFiltered(Fetching):
    """`fetch` leaves every sample out, one after the other."""

    filters = True

    def __init__(self, size: int, *, seconds: float) -> None:
        super().__init__(size, arrays=False)
        self.seconds = seconds

    def fetch(self, ids: np.ndarray):
        time.sleep(self.seconds * len(ids))
        return [None] * len(ids)


class Remote(Fetching):
    """Tells, in each sample, how many hints had come before it was fetched and whether it was among them.

    Its samples leave it through a chain of `transforms` that the loader runs, fail to be fetched where `broken` says
    how often, and are got anew after `discard`.
    """

    transforms = ()

    def __init__(self, size: int = 20, *, broken: dict[int, int] | None = None, again: bool = True, **settings) -> None:
        super().__init__(size, arrays=False)
        self.again = again
        self.failures_left = dict(broken or {})
        self.hinted: dict[tuple[int, int], int] = {}
        self.discarded: list[int] = []
        self.fetched: list[int] = []
        self.listed: list[tuple[list[tuple[int, str]], list[int]]] = []
        self.__dict__.update(settings)

    def prefetch(self, ids: np.ndarray, epochs: np.ndarray) -> None:
        for id_, epoch in zip(ids.tolist(), epochs.tolist(), strict=True):
            self.hinted[epoch, id_] = self.hinted.get((epoch, id_), 0) + 1

    def fetch(self, ids: np.ndarray, epochs: np.ndarray):
        return [self._row(id_, epoch) for id_, epoch in zip(ids.tolist(), epochs.tolist(), strict=True)]

    def discard(self, id_: int) -> bool:
        self.discarded.append(id_)
        return self.again

    def list_failures(self, failures, substitutes) -> None:
        self.listed.append(([(failure.id, failure.reason) for failure in failures], list(substitutes)))

    def _row(self, id_: int, epoch: int):
        self.fetched.append(id_)
        if self.failures_left.get(id_, 0):
            self.failures_left[id_] -= 1
            return ConnectionError(f"sample {id_} did not arrive")
        return {
            "id": id_,
            "epoch": epoch,
            "hints": len(self.hinted),
            "times": self.hinted.get((epoch, id_), 0),
            "pid": os.getpid(),
        }


class Unhintable(Remote):
    """Fails to take a hint."""

    def prefetch(self, ids: np.ndarray, epochs: np.ndarray) -> None:
        raise TimeoutError("the index does not answer")


class Blocks(Fetching):
    """Samples in blocks of given sizes, with lengths."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__(sum(sizes))
        self.block_ends = np.cumsum(sizes)
        self.lengths = np.arange(self.size) * 7 % 13 + 1


class Stuck(Plain):
    """Reading one sample takes far longer than anyone would wait."""

    def __init__(self, size: int = 20, *, at: int = 5, seconds: float = 3600.0) -> None:
        super().__init__(size)
        self.at = at
        self.seconds = seconds

    def __getitem__(self, index: int):
        if index == self.at:
            time.sleep(self.seconds)
        return super().__getitem__(index)


class SlowToFail(Plain):
    """Two samples fail, one of them only after a while."""

    def __init__(self, size: int, *, slow: int, quick: int) -> None:
        super().__init__(size)
        self.slow, self.quick = slow, quick

    def __getitem__(self, index: int):
        if index == self.slow:
            time.sleep(0.1)
        if index in (self.slow, self.quick):
            raise ValueError(f"sample {index} fails")
        return super().__getitem__(index)


class Deadly(Plain):
    """Reading one sample ends the process that does it, by a signal or with an exit status."""

    def __init__(self, size: int = 20, *, at: int = 5, exit_code: int | None = None) -> None:
        super().__init__(size)
        self.at = at
        self.exit_code = exit_code

    def __getitem__(self, index: int):
        if index == self.at:
            if self.exit_code is not None:
                os._exit(self.exit_code)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


class Unpicklable(Plain):
    """Holds something that cannot be sent to another process."""

    def __init__(self) -> None:
        super().__init__()
        self.handle = (step for step in ())


def jitter(sample, rng: np.random.Generator):
    """Add noise that is keyed to the sample."""
    return {**sample, "noise": rng.integers(1 << 40)}


def fail_on_seven(sample):
    if sample["id"] % 10 == 7:
        raise KeyError("seven")
    return sample


def keep_even(sample):
    return sample if sample["id"] % 2 == 0 else None


def drop_all(sample):
    return None


def drop_below_ten(sample):
    return None if sample["id"] < 10 else sample


def twice(sample):
    return [sample, {**sample, "id": -sample["id"]}]


def as_many_as_id_mod_three(sample):
    for _ in range(int(sample["id"]) % 3):
        yield sample


def pid_of(sample):
    return {**sample, "pid": os.getpid()}


def ids_only(samples):
    return [int(sample["id"]) for sample in samples]


def picky_collate(samples):
    if any(int(sample["id"]) == 13 for sample in samples):
        raise RuntimeError("thirteen does not go with the others")
    return ids_only(samples)


class Picky(Exception):
    """An error that pickle cannot rebuild."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "and more than one argument")


class Ragged(Plain):
    """Arrays of different lengths, which do not stack."""

    def __getitem__(self, index: int):
        return {"id": index, "x": np.zeros(index % 4)}


class Waiting(Fetching):
    """Reading one sample waits for an event of this process."""

    def __init__(self, size: int = 20, *, at: int = 5, event=None) -> None:
        super().__init__(size, arrays=False)
        self.at = at
        self.event = event

    def fetch(self, ids: np.ndarray):
        if self.at in ids.tolist():
            self.event.wait()
        return super().fetch(ids)


class Helped(Fetching):
    """Reading some samples waits until a later one is read."""

    def __init__(self, size: int, *, waiting: tuple[int, ...], helper: int) -> None:
        super().__init__(size, arrays=False)
        self.waiting, self.helper, self.event = waiting, helper, threading.Event()

    def fetch(self, ids: np.ndarray):
        if self.helper in ids.tolist():
            self.event.set()
        elif not set(self.waiting).isdisjoint(ids.tolist()):
            assert self.event.wait(60)
        return super().fetch(ids)


class Unloadable(Plain):
    """Can be sent to another process, and fails to arrive there."""

    def __setstate__(self, state) -> None:
        raise OSError("this machine lacks the decoder")


class Shifted(Plain):
    """Inputs, and labels that are the same memory shifted by one."""

    def fetch(self, ids: np.ndarray):
        tokens = np.arange(5) + 10 * (ids[:, None] + 1)
        return {"input_ids": tokens[:, :-1], "labels": tokens[:, 1:]}


def mask_in_place(sample):
    sample["input_ids"][1] = -1
    return sample


class Bare(Plain):
    """Its fetch gives an array that says nothing of which row is what."""

    def fetch(self, ids: np.ndarray):
        return ids * 2


class Layouts(Plain):
    """Big-endian arrays, seen through a view."""

    def __init__(self, size: int, view) -> None:
        super().__init__(size)
        self.view = view

    def fetch(self, ids: np.ndarray):
        return {"x": np.arange(100, dtype=">i8")[None].repeat(len(ids), 0)[self.view]}


def collate_to_a_function(samples):
    return lambda: samples


def keep_one_in_fifty(sample):
    return sample if sample["id"] % 50 == 0 else None
