from __future__ import annotations

import json
import pickle
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import subjects
from penstock import Collate, MultiStreamDataLoader, StreamingDataLoader, StreamOptions, TokenDataset, World, mix
from penstock.errors import ConfigError, SampleError, StateMismatch
from penstock.testing import (
    CountingDataset,
    LatencyDataset,
    check_close,
    check_epoch_is_permutation,
    check_fetch,
    check_order_law,
    check_resume,
    check_state_size,
)

LANES = [
    {"num_workers": 0},
    *({"num_workers": count, "worker_type": lane} for lane in ("thread", "process") for count in (1, 3)),
]


def counting(**sizes):
    return {name: CountingDataset(size) for name, size in sizes.items()}


def noisy(sample, rng):
    return {**sample, "noise": rng.integers(10**9)}


def doubled(sample):
    return [sample, {**sample, "again": True}]


def odd_only(sample):
    return sample if sample["id"] % 2 else None


class Noisy(subjects.Fetching):
    """Leaves a transform that draws numbers to the loader."""

    transforms = (noisy,)

    def __init__(self, size=20):
        super().__init__(size, arrays=False)


class Dying(subjects.Remote):
    """Every sample whose id ends in 3 can't be had."""

    def _row(self, id_, epoch):
        return ConnectionError("gone") if id_ % 10 == 3 else {"id": id_}


def ids_of(loader, key="id"):
    return [one for batch in loader for one in batch[key].tolist()]


def sample_ids(loader):
    found = []
    for _ in loader:
        found += loader.batch_info.sample_ids.tolist()
    return found


class TestLaws:
    def test_of_fetching(self):
        check_fetch(mix(counting(a=40, b=25), {"a": 1, "b": 2}))

    def test_of_lanes(self):
        slow = {name: LatencyDataset(dataset) for name, dataset in counting(a=40, b=25).items()}
        check_order_law(
            lambda **how: StreamingDataLoader(
                mix(slow, {"a": 1, "b": 2}, stop="all"), 4, shuffle=True, collate_fn=list, **how
            ),
            LANES,
        )

    def test_of_lanes_with_transforms(self):
        streams = {"quiet": subjects.Fetching(30, arrays=False), "loud": Noisy(20)}
        both = mix(streams, {"quiet": 1, "loud": 1}, stop="all")
        check_order_law(lambda **how: StreamingDataLoader(both, 4, shuffle=True, collate_fn=list, **how), LANES)

    def test_of_resuming(self):
        check_resume(lambda: StreamingDataLoader(mix(counting(a=40, b=25), {"a": 1, "b": 2}), 4, shuffle=True, seed=3))

    def test_of_a_permutation(self):
        both = mix(counting(a=40, b=25))

        check_epoch_is_permutation(lambda world: StreamingDataLoader(both, 4, shuffle=True, world=world), len(both))

    def test_of_closing(self):
        check_close(lambda: StreamingDataLoader(mix(counting(a=40, b=25)), 4, num_workers=2, worker_type="thread"))

    def test_of_the_size_of_a_state(self):
        streams = {f"a stream with quite a long name, number {j}": CountingDataset(10**9) for j in range(300)}
        loader = StreamingDataLoader(mix(streams, stop="never"), 300, shuffle=True)
        next(iter(loader))
        check_state_size(loader)

    @pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 3), (3, 1), (3, 2)])
    def test_of_any_number_of_ranks(self, before, after):
        """Two and three ranks, as values: what is left comes in the same order to any of them."""

        def loader(rank, size):
            world = World(dp_rank=rank, dp_size=size)
            made = mix(counting(a=100, b=60, c=40), {"a": 5, "b": 3, "c": 2}, stop="never")
            return StreamingDataLoader(made, global_batch_size=12, shuffle=True, seed=9, world=world)

        def read(loaders, steps):
            iterators = [iter(one) for one in loaders]
            read = []
            for _ in range(steps):
                for one, batches in zip(loaders, iterators, strict=True):
                    next(batches)
                    read.append(one.batch_info.sample_ids)
            rows = [np.stack(read[j : j + len(loaders)], axis=1).ravel() for j in range(0, len(read), len(loaders))]
            return np.concatenate(rows).tolist()

        whole = read([loader(0, 1)], 40)
        first = [loader(rank, before) for rank in range(before)]
        seen = read(first, 17)
        states = [json.dumps(one.state_dict()) for one in first]
        assert len(set(states)) == 1
        rest = [loader(rank, after) for rank in range(after)]
        for one in rest:
            one.load_state_dict(json.loads(states[0]))
        assert seen + read(rest, 23) == whole


@given(
    st.dictionaries(st.text("abc", min_size=1, max_size=2), st.integers(1, 30), min_size=1, max_size=4),
    st.integers(1, 9),
    st.data(),
)
@settings(deadline=None, max_examples=40)
def test_a_state_saved_anywhere_gives_the_rest(sizes, batch_size, data):
    def loader():
        return StreamingDataLoader(
            mix(counting(**sizes), dict.fromkeys(sizes, 1), stop="all"), batch_size, shuffle=True
        )

    whole = sample_ids(loader())
    steps = data.draw(st.integers(0, -(-len(whole) // batch_size)))
    one, other = loader(), loader()
    seen = []
    for _, _batch in zip(range(steps), one, strict=False):
        seen += one.batch_info.sample_ids.tolist()
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    rest = sample_ids(other) if len(seen) < len(whole) else []
    assert seen + rest == whole


class TestProportions:
    def test_four_and_six_tenths_of_a_thousand(self):
        both = mix(counting(a=2000, b=2000), {"a": 0.4, "b": 0.6})
        loader = StreamingDataLoader(both, 100, shuffle=True)
        ids = [loader.batch_info.sample_ids for _ in zip(range(10), loader, strict=False)]
        streams = [both.stream_of(id_) for id_ in np.concatenate(ids).tolist()]
        assert [streams.count(name) for name in ("a", "b")] == [400, 600]

    def test_weights_by_tokens_give_parts_of_the_tokens(self, tmp_path):
        for name, count in (("long", 4000), ("short", 4000)):
            np.arange(count, dtype=np.uint16).tofile(tmp_path / f"{name}.bin")
        streams = {"long": TokenDataset(tmp_path / "long.bin", 40), "short": TokenDataset(tmp_path / "short.bin", 10)}
        both = mix(streams, {"long": 0.5, "short": 0.5}, by="tokens", stop="never")
        loader = StreamingDataLoader(both, 10, shuffle=True, collate_fn=lambda samples: samples)
        tokens = {"long": 0, "short": 0}
        for _, batch in zip(range(100), loader, strict=False):
            for sample in batch:
                tokens["long" if len(sample["input_ids"]) == 40 else "short"] += len(sample["input_ids"])
        assert tokens == {"long": 8000, "short": 8000}

    def test_a_weight_of_nothing_leaves_a_stream_out(self):
        both = mix(counting(a=10, b=10), {"a": 1, "b": 0})
        assert sorted(sample_ids(StreamingDataLoader(both, 5, shuffle=True))) == list(range(10))

    def test_stratified_batches_hold_the_same_counts_on_all_ranks_together(self):
        both = mix(counting(a=100, b=100), {"a": 3, "b": 1}, batches="stratified", batch_size=8)
        worlds = [World(dp_rank=rank, dp_size=2) for rank in range(2)]
        ranks = [StreamingDataLoader(both, 4, shuffle=True, world=world) for world in worlds]
        for _ in zip(*ranks, strict=True):
            ids = np.concatenate([rank.batch_info.sample_ids for rank in ranks])
            assert [(ids < 100).sum(), (ids >= 100).sum()] == [6, 2]

    def test_per_stream_batches_are_of_one_stream_each(self):
        both = mix(counting(a=100, b=100), {"a": 3, "b": 1}, batches="per_stream", batch_size=8)
        loader = StreamingDataLoader(both, 8, shuffle=True)
        names = [{both.stream_of(id_) for id_ in loader.batch_info.sample_ids.tolist()} for _ in loader]
        assert all(len(name) == 1 for name in names)
        assert names[:8].count({"a"}) == 6

    def test_another_batch_size_than_the_loaders_is_refused(self):
        both = mix(counting(a=100, b=100), batches="stratified", batch_size=8)
        with pytest.raises(ConfigError, match="made for batches of 8 samples over all ranks"):
            next(iter(StreamingDataLoader(both, 4)))

    def test_what_is_not_shuffled_comes_as_it_is_stored(self):
        both = mix({"a": list(range(4)), "b": list(range(10, 14))})
        assert torch_ids(StreamingDataLoader(both, 3)) == [10, 0, 11, 1, 12, 2, 13, 3]


def torch_ids(loader):
    return [one for batch in loader for one in batch.tolist()]


class TestStreamsKeepTheirOwn:
    def test_another_stream_changes_neither_order_nor_randomness_of_the_others(self):
        def read(streams):
            loader = StreamingDataLoader(
                mix(streams, dict.fromkeys(streams, 1), stop="never"), 10, shuffle=True, collate_fn=list
            )
            rows = [row for _, batch in zip(range(30), loader, strict=False) for row in batch]
            return [(int(row["id"]), int(row["noise"])) for row in rows if "noise" in row]

        alone = read({"loud": Noisy(20), "other": subjects.Fetching(50)})
        among = read({"new": subjects.Fetching(70), "loud": Noisy(20), "other": subjects.Fetching(50)})
        assert len(among) >= 95
        assert alone[: len(among)] == among

    def test_transforms_draw_other_numbers_in_every_pass(self):
        both = mix(
            {"loud": Noisy(5), "quiet": subjects.Fetching(500, arrays=False)}, {"loud": 1, "quiet": 1}, stop="all"
        )
        rows = [row for batch in StreamingDataLoader(both, 10, shuffle=True, collate_fn=list) for row in batch]
        noise = [row["noise"] for row in rows if "noise" in row]
        assert len(noise) >= 499
        assert len(set(noise)) == len(noise)

    def test_streams_may_add_and_leave_out_samples(self):
        more, less = subjects.Fetching(10, arrays=False), subjects.Fetching(10, arrays=False)
        more.transforms, less.transforms = (doubled,), (odd_only,)
        loader = StreamingDataLoader(mix({"more": more, "less": less}), 20, collate_fn=list)
        (batch,) = loader
        assert len(batch) == 20 + 5
        assert loader.stats.skipped == {"filtered": 5}

    def test_one_stream_may_be_shuffled_and_another_not(self):
        shuffled = subjects.Fetching(50)
        shuffled.shuffle_seed = 4
        both = mix({"shuffled": shuffled, "stored": subjects.Fetching(50)})
        ids = sample_ids(StreamingDataLoader(both, 10))
        assert [id_ for id_ in ids if id_ >= 50] == list(range(50, 100))
        assert [id_ for id_ in ids if id_ < 50] != list(range(50))
        with pytest.raises(ConfigError, match="contradicts Fetching's shuffle_seed=4"):
            StreamingDataLoader(both, 10, shuffle=False)

    def test_blocks_stay_together_where_they_are_asked_to(self):
        both = mix({"a": subjects.Blocks([10, 10, 10]), "b": subjects.Blocks([10, 10, 10])})
        ids = np.array(sample_ids(StreamingDataLoader(both, 10, shuffle="window", window=1)))
        for mine in (ids[ids < 30], ids[ids >= 30] - 30):
            assert all(len(set((mine[start : start + 10] // 10).tolist())) == 1 for start in (0, 10, 20))


class TestOneCallForEachStream:
    def test_a_batch_asks_each_stream_once(self, tmp_path):
        class Asked(CountingDataset):
            calls = 0

            def fetch(self, ids):
                self.calls += 1
                return super().fetch(ids)

        streams = {"a": Asked(100, arrays=False), "b": Asked(100, arrays=False)}
        loader = StreamingDataLoader(mix(streams), 20, shuffle=True, num_workers=0)
        next(iter(loader))
        assert [stream.calls for stream in streams.values()] == [1, 1]

    def test_rows_of_equal_columns_become_one_table(self):
        both = mix({"a": CountingDataset(10), "b": CountingDataset(10)})
        rows = both.fetch(np.array([12, 3, 15, 0]))
        assert rows["id"].tolist() == [2, 3, 5, 0]
        assert rows["x"][:, 0].tolist() == [2.0, 3.0, 5.0, 0.0]

    def test_rows_of_unequal_columns_stay_samples(self):
        both = mix({"a": CountingDataset(10, width=2), "b": CountingDataset(10, width=3)})
        assert [row["x"].shape for row in both.fetch(np.array([12, 3]))] == [(3,), (2,)]

    def test_a_third_stream_of_other_columns_makes_samples_of_all(self):
        widths = {"a": 2, "b": 2, "c": 3}
        three = mix({name: CountingDataset(10, width=width) for name, width in widths.items()})
        rows = three.fetch(np.array([12, 25, 3, 10]))
        assert [(int(row["id"]), row["x"].shape, row["x"][0]) for row in rows] == [
            (2, (2,), 2.0),
            (5, (3,), 5.0),
            (3, (2,), 3.0),
            (0, (2,), 0.0),
        ]

    @pytest.mark.parametrize("arrays", [True, False])
    def test_a_stream_that_gives_too_few_rows_is_refused_by_name(self, arrays):
        class Short(CountingDataset):
            def fetch(self, ids):
                return super().fetch(ids[:1])

        both = mix({"whole": CountingDataset(10, arrays=arrays), "short": Short(10, arrays=arrays)})
        with pytest.raises(ConfigError, match=r"'short' gave \[1\] rows for 2 ids"):
            both.fetch(np.array([1, 12, 13]))

    def test_hints_reach_the_streams_they_are_for_with_their_passes(self):
        remote = subjects.Remote(20)
        both = mix({"near": CountingDataset(300, arrays=False), "far": remote}, {"near": 1, "far": 1}, stop="all")
        with StreamingDataLoader(both, 10, shuffle=True, num_workers=2, collate_fn=list) as loader:
            rows = [row for batch in loader for row in batch if "times" in row]
        assert len(rows) >= 299
        # The first may be fetched while their hint is on its way; none is hinted twice.
        assert {row["times"] for row in rows} <= {0, 1}
        assert all(row["times"] == 1 for row in rows[100:])
        assert set(remote.hinted.values()) == {1}
        assert {row["epoch"] for row in rows} == set(range(15))

    def test_hints_come_in_the_order_in_which_samples_are_wanted(self):
        class Told(list):
            def prefetch(self, ids, epochs):
                self.told = list(zip(ids.tolist(), epochs.tolist(), strict=True))

        near, far = Told(range(10)), Told(range(10))
        mix({"near": near, "far": far}).prefetch(np.array([7, 15, 3, 11]), np.array([0, 1, 2, 3]))
        assert near.told == [(7, 0), (3, 2)]
        assert far.told == [(5, 1), (1, 3)]

    def test_without_any_hint_nobody_is_asked_for_one(self):
        assert not hasattr(mix(counting(a=3)), "prefetch")


class TestFailures:
    def test_a_substitute_is_of_the_same_stream(self):
        streams = {"good": subjects.Fetching(40, arrays=False), "bad": Dying(40, on_error="substitute")}
        both = mix(streams)
        loader = StreamingDataLoader(both, 10, shuffle=True, collate_fn=list)
        seen = {}
        for _ in loader:
            seen |= loader.batch_info.substitutes
        assert sorted(seen) == [43, 53, 63, 73]
        assert all(40 <= new < 80 and new % 10 != 3 for new in seen.values())
        listed = [one for failures, _ in streams["bad"].listed for one in failures]
        assert sorted(listed) == [
            (3, "ConnectionError"),
            (13, "ConnectionError"),
            (23, "ConnectionError"),
            (33, "ConnectionError"),
        ]

    def test_what_failed_once_is_got_anew_from_its_stream(self):
        remote = subjects.Remote(20, broken={3: 1})
        both = mix({"near": subjects.Fetching(20, arrays=False), "far": remote})
        rows = [row for batch in StreamingDataLoader(both, 10, collate_fn=list) for row in batch]
        assert len(rows) == 40
        assert remote.discarded == [3]

    def test_streams_that_contradict_each_other_are_refused(self):
        streams = {"a": subjects.Remote(5, on_error="skip"), "b": subjects.Remote(5, on_error="substitute")}
        with pytest.raises(ConfigError, match="on_error is 'skip' and 'substitute'"):
            mix(streams)


def test_plain_datasets_are_mixed_in_processes_and_read_no_other_way():
    both = mix({"a": subjects.Plain(10), "b": subjects.Plain(10)})
    assert "process" in StreamingDataLoader(both, 4, num_workers=1).explain()
    with StreamingDataLoader(both, 4, shuffle=True, num_workers=1) as loader:
        apart = ids_of(loader)
    assert apart == ids_of(StreamingDataLoader(both, 4, shuffle=True, num_workers=0))


def test_torch_datasets_and_fetching_ones_mix():
    from torch.utils.data import Subset

    both = mix({"torch": Subset(subjects.Plain(10), [3, 4]), "ours": subjects.Fetching(4)})
    assert sorted(ids_of(StreamingDataLoader(both, 3))) == [0, 1, 2, 3, 3, 4]


def test_a_mix_is_a_dataset_like_any_other():
    both = mix(counting(a=10, b=5))
    assert len(both) == 15
    assert both[12]["id"] == 2
    assert both[-1]["id"] == 4
    assert both.stream_of(12) == "b"
    assert "a: 10, b: 5" in repr(both)
    with pytest.raises(IndexError, match="sample 15 of mix"):
        both[15]
    for index in (15, -1):
        with pytest.raises(IndexError, match="it has 15"):
            both.fetch(np.array([0, index]))
    again = pickle.loads(pickle.dumps(both))
    assert again.fingerprint == both.fingerprint
    assert np.array_equal(again.fetch(np.array([11]))["id"], [1])


def test_a_state_of_other_weights_or_streams_is_refused():
    def loader(streams, weights):
        return StreamingDataLoader(mix(counting(**streams), weights), 4, shuffle=True)

    state = loader({"a": 20, "b": 20}, {"a": 1, "b": 1}).state_dict()
    loader({"a": 20, "b": 20}, {"a": 2, "b": 2}).load_state_dict(state)
    with pytest.raises(StateMismatch, match="order is 'mix:"):
        loader({"a": 20, "b": 20}, {"a": 1, "b": 2}).load_state_dict(state)
    with pytest.raises(StateMismatch, match="fingerprint"):
        loader({"a": 20, "c": 20}, {"a": 1, "c": 1}).load_state_dict(state)


def test_samples_of_different_kinds_in_one_batch_are_refused_with_what_works():
    texts = [{"kind": "text", "ids": np.arange(4)} for _ in range(40)]
    images = [{"kind": "image", "pixels": np.zeros((2, 2))} for _ in range(40)]
    streams, one_of_each = {"texts": texts, "images": images}, {"texts": 1, "images": 1}
    with pytest.raises(SampleError) as refused:
        next(iter(StreamingDataLoader(mix(streams, one_of_each), 8, shuffle=True, num_workers=0)))
    assert all(
        way in str(refused.value) for way in ("batches='per_stream'", "MultiStreamDataLoader", "Collate(groups=…)")
    )

    apart = mix(streams, one_of_each, batches="per_stream", batch_size=8)
    options = [StreamOptions(name=name, ratio=0.5, batch_gpu=8) for name in streams]
    for loader in (
        StreamingDataLoader(apart, global_batch_size=8, shuffle=True, num_workers=0),
        MultiStreamDataLoader(streams, options, num_workers=0),
    ):
        assert {frozenset(batch) for batch in islice(loader, 8)} == {
            frozenset({"kind", "ids"}),
            frozenset({"kind", "pixels"}),
        }

    by_kind = Collate(groups="kind")
    for batch in StreamingDataLoader(mix(streams, one_of_each), 8, shuffle=True, num_workers=0, collate_fn=by_kind):
        assert len(batch["text"]["ids"]) + len(batch["image"]["pixels"]) == 8


@pytest.mark.parametrize(
    ("streams", "options", "message"),
    [
        ({}, {}, "streams must be a dict"),
        ([1, 2], {}, "streams must be a dict"),
        ({1: [1]}, {}, "a stream's name must be a text"),
        ({"a": 5}, {}, "has no __len__ and __getitem__"),
        ({"a": []}, {}, "holds no samples"),
        ({"a": [1]}, {"weights": {"b": 1}}, "a number for each of \\['a'\\]"),
        ({"a": [1]}, {"weights": {"a": -1}}, "must be a finite number, 0 or more, got -1"),
        ({"a": [1]}, {"by": "bytes"}, "by must be one of 'samples', 'tokens'"),
        ({"a": [1]}, {"by": "tokens", "weights": {"a": 1}}, "neither `lengths` nor `seq_len`"),
        ({"a": [1]}, {"stop": "soon"}, "stop must be one of"),
        ({"a": [1]}, {"batches": "stratified"}, "needs batch_size="),
        ({"a": mix({"b": [1]})}, {}, "is a mix itself"),
    ],
)
def test_what_cannot_work_is_refused(streams, options, message):
    with pytest.raises(ConfigError, match=message):
        mix(streams, **options)


def test_buckets_of_lengths_are_refused():
    with pytest.raises(ConfigError, match="length_bucket has no meaning for a mix"):
        StreamingDataLoader(mix({"a": subjects.Blocks([10])}), 4, length_bucket=4)
