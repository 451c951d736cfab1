"""A check that cannot fail proves nothing: each is shown a subject that breaks its law."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import subjects
from penstock import StreamingDataLoader
from penstock.testing import (
    CountingDataset,
    LatencyDataset,
    check_close,
    check_elastic,
    check_epoch_is_permutation,
    check_fetch,
    check_lanes,
    check_order_law,
    check_resume,
    check_rounds,
    check_state_size,
    first_difference,
)


class Toy:
    """A loader of ten batches that keeps the laws; each subclass breaks one."""

    def __init__(self, world=None, batch_size=None):
        self.place = 0
        self.epoch = 0

    def __iter__(self):
        while self.place < 10:
            self.place += 1
            yield [self.place - 1]
        self.place, self.epoch = 0, self.epoch + 1

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place = state["place"]

    def close(self):
        pass


def reversed_rows(batches):
    for batch in batches:
        yield {name: values.flip(0) for name, values in batch.items()}


def always_the_first(batches):
    first = None
    for batch in batches:
        first = batch if first is None or len(first["id"]) != len(batch["id"]) else first
        yield first


def one_row_short(batches):
    for batch in batches:
        yield {name: values[1:] for name, values in batch.items()}


WRONG = {each.__name__: each for each in (reversed_rows, always_the_first, one_row_short)}


class TestChecksFail:
    def test_fetch_that_mixes_rows(self):
        class Mixing(subjects.Fetching):
            def fetch(self, ids):
                return {"id": np.sort(ids), "x": np.repeat(ids[:, None].astype(np.float32), 3, axis=1)}

        with pytest.raises(AssertionError, match="depends on what it is asked with"):
            check_fetch(Mixing())

    def test_fetch_that_is_not_getitem(self):
        class Other(subjects.Fetching):
            def __getitem__(self, index):
                return {**super().__getitem__(index), "id": index + 1}

        with pytest.raises(AssertionError, match=r"is not dataset\["):
            check_fetch(Other())

    def test_fetch_that_reuses_its_buffer(self):
        class Reusing(subjects.Fetching):
            buffer = np.zeros(100, dtype=np.int64)

            def fetch(self, ids):
                rows = super().fetch(ids)
                self.buffer[: len(ids)] = ids
                return {**rows, "id": self.buffer[: len(ids)]}

        with pytest.raises(AssertionError, match="overwritten"):
            check_fetch(Reusing())

    def test_fetch_that_gives_too_few_rows(self):
        class Short(subjects.Fetching):
            def fetch(self, ids):
                return super().fetch(ids[:-1])

        with pytest.raises(AssertionError, match="ids were asked for"):
            check_fetch(Short())

    def test_an_order_that_depends_on_a_setting(self):
        with pytest.raises(AssertionError, match=r"order: .*'seed': 1.*step 0"):
            check_order_law(
                lambda **how: StreamingDataLoader(subjects.Plain(), 4, shuffle=True, **how), [{"seed": 0}, {"seed": 1}]
            )

    def test_a_sample_that_depends_on_its_process(self):
        with pytest.raises(AssertionError, match=r"order: .*process.*'pid'"):
            check_lanes(subjects.Plain(), batch_size=4, workers=(0, 1), transform=subjects.pid_of)

    def test_a_loader_that_resumes_one_too_far(self):
        class Late(Toy):
            def state_dict(self):
                return {"place": self.place + (self.place == 6)}

        check_resume(Toy)
        with pytest.raises(AssertionError, match="after step 6"):
            check_resume(Late)

    def test_a_loader_that_forgets_on_the_second_resume(self):
        class Forgetful(Toy):
            offset = 0

            def load_state_dict(self, state):
                self.place, self.offset = state["place"], state["place"]

            def state_dict(self):
                return {"place": self.place - (1 if self.offset == 4 else 0)}

        with pytest.raises(AssertionError, match="resume of a resume"):
            check_resume(Forgetful)

    def test_ranks_that_read_the_same(self):
        with pytest.raises(AssertionError, match="repeats samples without a flag"):
            check_epoch_is_permutation(Toy, 10, world_sizes=(2,))

    def test_ranks_that_leave_samples_out(self):
        with pytest.raises(AssertionError, match=r"lacks 1 samples: \[10\]"):
            check_epoch_is_permutation(Toy, 11, world_sizes=(1,))

    def test_ranks_with_unequal_counts(self):
        class Uneven(Toy):
            def __init__(self, world):
                super().__init__()
                self.place = world.dp_rank

        with pytest.raises(AssertionError, match="would hang"):
            check_epoch_is_permutation(Uneven, 10, world_sizes=(2,))

    def test_a_state_that_counts_batches(self):
        class PerBatch(StreamingDataLoader):
            def load_state_dict(self, state):
                batches = state["samples"] // 8
                super().load_state_dict({**state, "samples": batches * self.batch_size * self.world.dp_size})

        def make(world, batch_size):
            return PerBatch(subjects.Plain(40), batch_size, world=world)

        with pytest.raises(AssertionError, match=r"elastic: 2 steps on 2 × 4, the rest on 1 × 3: position"):
            check_elastic(make, 40, saved_on=(2,), resumed_on=(1,))

    @pytest.mark.parametrize("deliver", WRONG.values(), ids=WRONG)
    def test_a_loader_that_delivers_other_samples_than_it_says(self, deliver):
        class Lying(StreamingDataLoader):
            def __iter__(self):
                return deliver(super().__iter__())

        def make(world, batch_size=4):
            return Lying(subjects.Fetching(40), batch_size, shuffle=True, world=world)

        with pytest.raises(AssertionError, match=r"delivered: the batch is not dataset\["):
            check_epoch_is_permutation(make, 40, world_sizes=(2,))
        with pytest.raises(AssertionError, match=r"delivered: the batch is not dataset\["):
            check_elastic(make, 40, saved_on=(1,), resumed_on=(2,))

    def test_a_fetch_that_gives_other_samples_than_the_dataset(self):
        class Shifted(subjects.Fetching):
            def fetch(self, ids):
                return super().fetch((ids + 1) % 40)

        with pytest.raises(AssertionError, match="delivered"):
            check_epoch_is_permutation(lambda world: StreamingDataLoader(Shifted(40), 4, world=world), 40)

    def test_batches_that_can_not_be_compared_need_ids_of(self):
        def make(world):
            return StreamingDataLoader(subjects.Plain(20), 4, world=world, transform=lambda sample: sample["x"])

        class Bare(Toy):
            batch_info = "the plan says so"

        with pytest.raises(AssertionError, match="give ids_of"):
            check_epoch_is_permutation(make, 20)
        check_epoch_is_permutation(make, 20, ids_of=lambda batch: batch[:, 0].tolist())
        with pytest.raises(AssertionError, match="no dataset to compare its batches with: give ids_of"):
            check_epoch_is_permutation(Bare, 10, world_sizes=(1,))

    def test_a_state_that_is_too_large_or_no_json(self):
        class Large(Toy):
            def state_dict(self):
                return {"seen": list(range(500))}

        class Tuples(Toy):
            def state_dict(self):
                return {"place": (1, 2)}

        with pytest.raises(AssertionError, match="bytes of JSON, 1000 are allowed"):
            check_state_size(Large())
        with pytest.raises(AssertionError, match="does not survive JSON"):
            check_state_size(Tuples())

    def test_a_close_that_leaves_something(self, tmp_path):
        kept = []

        class Leaky(Toy):
            def close(self):
                kept.append(threading.Thread(target=done.wait, daemon=True, name="left-behind"))
                kept.append(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))
                kept.append(open(tmp_path / "left", "wb"))  # noqa: SIM115
                kept[-3].start()

        done = threading.Event()
        try:
            with pytest.raises(AssertionError, match=r"left behind .*/left, .*process.*thread left-behind"):
                check_close(Leaky)
        finally:
            done.set()
            for thread, process, file in zip(kept[::3], kept[1::3], kept[2::3], strict=True):
                thread.join()
                process.communicate()
                file.close()

    def test_a_close_that_takes_long(self):
        class Slow(Toy):
            def close(self):
                time.sleep(0.2)

        with pytest.raises(AssertionError, match="are allowed"):
            check_close(Slow, within_s=0.01)


class TestSubjects:
    def test_every_read_is_counted_in_every_process(self, tmp_path):
        dataset = CountingDataset(50, tmp_path / "reads")
        assert dataset.reads().tolist() == []
        with StreamingDataLoader(dataset, 5, shuffle=True, num_workers=2, worker_type="process") as loader:
            for _ in loader:
                pass
        assert sorted(dataset.reads().tolist()) == list(range(50))

    def test_an_id_out_of_range_is_refused(self):
        with pytest.raises(IndexError, match="7 to 12"):
            CountingDataset(10).fetch(np.array([7, 12]))

    def test_latency_delays_and_passes_on_what_the_loader_asks_for(self):
        slow = LatencyDataset(subjects.Blocks([3, 4]), max_s=0.05)
        begun = time.monotonic()
        for index in range(7):
            assert slow[index]["id"] == index
        assert time.monotonic() - begun > 0.02
        assert slow.block_ends.tolist() == [3, 7]
        assert not hasattr(slow, "inline")


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ({"a": [1, 2]}, {"a": [1, 3]}, "['a'][1] is 3, not 2"),
        ({"a": 1}, {"b": 1}, "it has keys ['b'], not ['a']"),
        ([1], [1, 2], "it has 2 elements, not 1"),
        (np.zeros(2), np.zeros(3), "it is float64 (3,), not float64 (2,)"),
        (np.zeros(2), np.zeros(2, np.float32), "it is float32 (2,), not float64 (2,)"),
        (np.zeros(2), np.array([0.0, 1.0]), "it differs"),
        (1, 1.0, "it is a float, not a int"),
    ],
)
def test_a_difference_is_described(one, other, said):
    assert first_difference(one, one) is None
    found = first_difference(one, other)
    assert found is not None
    assert re.fullmatch(re.escape(said), found), found


class TestRoundChecksFail:
    def make(self, kind, **options):
        def make_loader(world):
            return kind(subjects.Fetching(10), 2, round_batches=3, world=world, num_workers=0, **options)

        return make_loader

    def check(self, kind, **options):
        check_rounds(self.make(kind, **options), 10)

    def test_a_round_that_is_over_only_when_more_is_asked_for(self):
        class Late(StreamingDataLoader):
            def state_dict(self):
                state = super().state_dict()
                if state["batch"] or not state["round"] or self._turn is None:
                    return state
                return {**state, "round": state["round"] - 1, "batch": 3}

        self.check(StreamingDataLoader)
        with pytest.raises(AssertionError, match="the state after batch 2 of round 0"):
            self.check(Late)

    def test_an_iterator_that_moves_before_it_is_asked(self):
        class Hasty(StreamingDataLoader):
            def __iter__(self):
                self.set_round(self.round + 1)
                return super().__iter__()

        with pytest.raises(AssertionError, match=r"iter\(\) alone moved"):
            self.check(Hasty)

    def test_a_length_that_is_not_kept(self):
        class Brief(StreamingDataLoader):
            def __iter__(self):
                return itertools.islice(super().__iter__(), 2)

        with pytest.raises(AssertionError, match="round 0 has 2 batches, len said 3"):
            self.check(Brief)

    def test_a_resumed_round_that_begins_anew(self):
        class Forgetful(StreamingDataLoader):
            def load_state_dict(self, state):
                super().load_state_dict(state)
                self.set_round(self.round)

        with pytest.raises(AssertionError, match="saved after batch 1"):
            self.check(Forgetful)

    def test_cycles_that_lack_samples(self):
        with pytest.raises(AssertionError, match="cycle 0 on 1 ranks lacks"):
            self.check(StreamingDataLoader, chunk_weights=[1, 4])
