"""StreamingDataLoader: epochs, cursors, and what it says of itself."""

from __future__ import annotations

import json

import pytest

import subjects
from penstock import LoaderClosed, SampleError, StateMismatch, StreamingDataLoader, World
from penstock.loader.stats import LoaderStats
from penstock.testing import CountingDataset

LANES = {
    "inline": {"num_workers": 0},
    "thread": {"num_workers": 2, "worker_type": "thread"},
    "process": {"num_workers": 1, "worker_type": "process"},
}
QUICK_LANES = [LANES["inline"], LANES["thread"]]


@pytest.fixture(params=QUICK_LANES, ids=["inline", "thread"])
def lane(request):
    return request.param


def ids(batches) -> list[list[int]]:
    return [batch["id"].tolist() for batch in batches]


def flat(batches: list[list[int]]) -> list[int]:
    return [id_ for batch in batches for id_ in batch]


@pytest.mark.parametrize(
    ("remainder", "counts"), [("short", [3, 3, 3]), ("drop", [2, 2, 2]), ("pad", [3, 3, 3]), ("carry", [3, 2, 3])]
)
def test_len_counts_the_batches_of_an_epoch(lane, remainder, counts):
    with StreamingDataLoader(subjects.Plain(10), 4, remainder=remainder, **lane) as loader:
        assert len(loader) == counts[0]
        assert [sum(1 for _ in loader) for _ in counts] == counts


def test_drop_last_is_torchs_name_for_drop():
    assert ids(StreamingDataLoader(subjects.Plain(10), 4, drop_last=True)) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert len(StreamingDataLoader(subjects.Plain(10), 4, drop_last=False)) == 3


def test_carry_fills_the_last_batch_from_the_next_epoch(lane):
    with StreamingDataLoader(subjects.Plain(6), 4, remainder="carry", **lane) as loader:
        assert ids(loader) == [[0, 1, 2, 3], [4, 5, 0, 1]]
        assert loader.epoch == 1
        assert ids(loader) == [[2, 3, 4, 5]]


def test_a_batch_larger_than_the_dataset(lane):
    whole = list(range(5))
    for remainder, expected in [("short", whole), ("pad", [*whole, *whole, 0, 1]), ("carry", [*whole, *whole, 0, 1])]:
        with StreamingDataLoader(subjects.Plain(5), 12, remainder=remainder, **lane) as loader:
            assert ids(loader) == [expected]
            assert loader.epoch == (2 if remainder == "carry" else 1)


def test_iter_moves_nothing(tmp_path, lane):
    dataset = CountingDataset(20, tmp_path / "reads")
    with StreamingDataLoader(dataset, 5, **lane) as loader:
        before = loader.state_dict()
        for _ in range(5):
            iter(loader)
        assert loader.state_dict() == before
        assert dataset.reads().size == 0
        assert ids(loader)[0] == [0, 1, 2, 3, 4]


def test_after_a_full_epoch_iter_starts_the_next(lane):
    with StreamingDataLoader(subjects.Plain(20), 6, shuffle=True, **lane) as loader:
        one, two = ids(loader), ids(loader)
        assert sorted(flat(one)) == sorted(flat(two)) == list(range(20))
        assert one != two
        assert loader.epoch == 2


def test_after_break_iter_goes_on_where_it_was(lane):
    with StreamingDataLoader(subjects.Plain(20), 5, **lane) as loader:
        seen = []
        for batch in loader:
            seen.append(batch["id"].tolist())
            if len(seen) == 2:
                break
        assert seen + ids(loader) == [[j, j + 1, j + 2, j + 3, j + 4] for j in (0, 5, 10, 15)]
        assert loader.epoch == 1


def test_set_epoch_of_the_cursors_own_epoch_does_nothing(lane):
    with StreamingDataLoader(subjects.Plain(20), 5, shuffle=True, **lane) as loader:
        stream = iter(loader)
        first = next(stream)["id"].tolist()
        loader.set_epoch(0)
        rest = ids(stream)
        assert sorted(first + flat(rest)) == list(range(20))


def test_set_epoch_goes_to_the_start_of_another(lane):
    with StreamingDataLoader(subjects.Plain(20), 5, shuffle=True, **lane) as loader:
        epochs = [ids(loader) for _ in range(3)]
        loader.set_epoch(1)
        assert loader.epoch == 1
        assert ids(loader) == epochs[1]
        next(iter(loader))
        loader.set_epoch(0)
        assert ids(loader) == epochs[0]


def test_set_epoch_before_each_epoch_as_trainers_call_it(lane):
    with StreamingDataLoader(subjects.Plain(20), 5, shuffle=True, **lane) as loader:
        expected = [ids(loader) for _ in range(3)]
    with StreamingDataLoader(subjects.Plain(20), 5, shuffle=True, **lane) as loader:
        found = []
        for epoch in range(3):
            loader.set_epoch(epoch)
            found.append(ids(loader))
    assert found == expected


def test_a_state_saved_after_the_last_batch_gives_an_empty_rest_and_then_the_next_epoch(lane):
    """An epoch ends when its iterator does, not when its last batch is handed out."""
    options = {"batch_size": 5, "shuffle": True, **lane}
    with StreamingDataLoader(subjects.Plain(20), **options) as loader:
        stream = iter(loader)
        for _ in range(4):
            next(stream)
        state = loader.state_dict()
        assert (state["epoch"], state["samples"]) == (0, 20)
        assert next(stream, None) is None
        following = ids(loader)
    with StreamingDataLoader(subjects.Plain(20), **options) as resumed:
        resumed.load_state_dict(state)
        assert resumed.epoch == 0
        assert ids(resumed) == []
        assert resumed.epoch == 1
        assert ids(resumed) == following


@pytest.mark.parametrize("mover", ["another iterator", "set_epoch", "load_state_dict", "close"])
@pytest.mark.parametrize("how", LANES.values(), ids=LANES)
def test_an_overtaken_iterator_says_so_and_disturbs_nobody(how, mover):
    with StreamingDataLoader(subjects.Plain(40), 5, **how) as loader:
        old = iter(loader)
        assert next(old)["id"].tolist() == [0, 1, 2, 3, 4]
        start = 5
        if mover == "another iterator":
            pass
        elif mover == "set_epoch":
            loader.set_epoch(1)
            start = 0
        elif mover == "load_state_dict":
            loader.load_state_dict({**loader.state_dict(), "samples": 15})
            start = 15
        else:
            loader.close()
        new = iter(loader)
        assert next(new)["id"].tolist() == list(range(start, start + 5))
        with pytest.raises(LoaderClosed, match="was overtaken"):
            next(old)
        assert next(new)["id"].tolist() == list(range(start + 5, start + 10))


def test_a_closed_loader_can_be_iterated_again(lane):
    loader = StreamingDataLoader(subjects.Plain(20), 5, **lane)
    next(iter(loader))
    loader.close()
    loader.close()
    assert ids(loader)[0] == [5, 6, 7, 8, 9]
    loader.close()


class TestBatchInfo:
    def test_it_says_what_the_last_batch_was_made_of(self, lane):
        with StreamingDataLoader(subjects.Plain(20), 6, shuffle=True, **lane) as loader:
            for step, batch in enumerate(loader):
                info = loader.batch_info
                assert (info.epoch, info.start, info.repeats) == (0, 6 * step, 0)
                assert info.sample_ids.tolist() == batch["id"].tolist()
                assert info.skipped == ()
                assert info.substitutes == {}

    def test_it_flags_the_repeat_of_a_rank_that_would_get_nothing(self, lane):
        world = World(dp_rank=1, dp_size=2)
        with StreamingDataLoader(subjects.Plain(5), 2, world=world, **lane) as loader:
            seen = [(batch["id"].tolist(), loader.batch_info.repeats) for batch in loader]
        assert seen == [([1, 3], 0), ([4], 1)]

    def test_after_the_epoch_it_still_tells_of_its_last_batch(self):
        loader = StreamingDataLoader(subjects.Plain(5), 2)
        assert len(list(loader)) == 3
        assert loader.batch_info.sample_ids.tolist() == [4]

    def test_before_the_first_batch_there_is_nothing_to_say(self):
        with pytest.raises(LoaderClosed, match="no batch"):
            _ = StreamingDataLoader(subjects.Plain(), 2).batch_info


class TestState:
    def test_it_is_rank_free_and_small(self):
        states = []
        for rank in range(4):
            loader = StreamingDataLoader(
                CountingDataset(10**9), 8, shuffle=True, seed=2**63, world=World(dp_rank=rank, dp_size=4), num_workers=0
            )
            next(iter(loader))
            states.append(json.dumps(loader.state_dict()))
        assert len(set(states)) == 1
        assert len(states[0]) < 1000
        assert json.loads(states[0])["samples"] == 32

    def test_each_difference_is_named(self):
        state = StreamingDataLoader(CountingDataset(20), 4, shuffle=True, seed=1).state_dict()
        other = StreamingDataLoader(CountingDataset(21), 4, seed=2)
        with pytest.raises(StateMismatch) as raised:
            other.load_state_dict(state)
        for said in (
            "order is 'global:feistel8-v1' in the state, 'sequential' here",
            "seed is 1 in the state, 2 here",
            "num_samples is 20 in the state, 21 here",
            "fingerprint is 'counting-20-4' in the state, 'counting-21-4' here",
        ):
            assert said in str(raised.value)

    def test_a_mismatch_leaves_the_loader_where_it_was(self):
        loader = StreamingDataLoader(subjects.Plain(20), 5)
        next(iter(loader))
        with pytest.raises(StateMismatch):
            loader.load_state_dict({**loader.state_dict(), "seed": 9})
        assert next(iter(loader))["id"].tolist() == [5, 6, 7, 8, 9]

    @pytest.mark.parametrize(
        ("state", "said"),
        [
            (None, "this is no loader state: .* got a NoneType"),
            ({"sampler": 1}, r"this is no loader state: .* got a dict with \['sampler'\]"),
            ({"version": 99}, "version 99, this penstock reads version 1"),
            ({"version": 1, "epoch": 0}, "the state lacks samples, order, seed, num_samples, fingerprint"),
        ],
    )
    def test_what_is_no_state_is_refused(self, state, said):
        with pytest.raises(StateMismatch, match=said):
            StreamingDataLoader(subjects.Plain(), 2).load_state_dict(state)

    @pytest.mark.parametrize("place", [{"epoch": -1}, {"epoch": True}, {"samples": 1.5}, {"samples": "3"}])
    def test_an_edited_place_is_refused(self, place):
        loader = StreamingDataLoader(subjects.Plain(), 2)
        with pytest.raises(StateMismatch, match=r"the state was edited: .* must be an integer >= 0"):
            loader.load_state_dict({**loader.state_dict(), **place})

    def test_a_place_far_beyond_the_epoch_is_refused(self):
        loader = StreamingDataLoader(subjects.Plain(), 2, remainder="carry")
        with pytest.raises(StateMismatch, match="it is at sample 999,999 of an epoch of 20"):
            loader.load_state_dict({**loader.state_dict(), "samples": 999_999})
        loader.load_state_dict({**loader.state_dict(), "samples": 21})
        assert loader.state_dict()["samples"] == 21

    def test_it_belongs_to_the_layout_that_a_window_shuffle_is_made_of(self):
        state = StreamingDataLoader(subjects.Blocks([5, 5]), 2, shuffle="window").state_dict()
        with pytest.raises(StateMismatch, match="order is 'window16"):
            StreamingDataLoader(subjects.Blocks([4, 6]), 2, shuffle="window").load_state_dict(state)

    def test_it_belongs_to_the_lengths_that_buckets_are_made_of(self):
        one, other = subjects.Blocks([50]), subjects.Blocks([50])
        other.lengths = other.lengths[::-1].copy()
        state = StreamingDataLoader(one, 2, length_bucket=5).state_dict()
        with pytest.raises(StateMismatch, match="order is 'lengths5"):
            StreamingDataLoader(other, 2, length_bucket=5).load_state_dict(state)

    def test_workers_lane_and_batch_size_do_not_belong_to_it(self):
        state = StreamingDataLoader(subjects.Fetching(20), 4, num_workers=0).state_dict()
        loader = StreamingDataLoader(subjects.Fetching(20), 7, num_workers=3, prefetch=9, on_error="skip")
        loader.load_state_dict(state)
        assert loader.state_dict() == state


class TestStats:
    def test_they_count_what_was_handed_out(self, lane):
        with StreamingDataLoader(subjects.Plain(20), 6, **lane) as loader:
            for _ in loader:
                pass
            stats = loader.stats
        assert (stats.batches, stats.samples) == (4, 20)
        assert stats.bytes == 20 * (8 + 3 * 4)
        assert 0 < stats.wait_s <= stats.elapsed_s
        assert 0 < stats.wait_share <= 1
        assert stats.samples_per_s > 0

    def test_before_the_first_batch_they_are_zero(self):
        stats = StreamingDataLoader(subjects.Plain(), 2).stats
        assert (stats.batches, stats.samples_per_s, stats.wait_share) == (0, 0.0, 0.0)

    def test_they_are_printed_in_one_line(self):
        stats = LoaderStats(batches=300, samples=2400, wait_s=1.0, elapsed_s=8.0, substituted=2)
        what = "300 batches of 2,400 samples, 300 samples/s, waited 12.5% of 8.0 s, 0 skipped, 2 substituted"
        assert str(stats) == f"LoaderStats({what})"


def test_a_loader_says_in_one_line_what_and_where_it_is():
    loader = StreamingDataLoader(CountingDataset(10_000), 8, shuffle=True)
    next(iter(loader))
    what = "10,000 samples of CountingDataset, batch_size=8, order global:feistel8-v1"
    assert repr(loader) == f"StreamingDataLoader({what}: at sample 8 of epoch 0)"
    assert "global_batch_size=8," in repr(StreamingDataLoader(CountingDataset(10), global_batch_size=8))


def test_explain_says_what_the_loader_does():
    loader = StreamingDataLoader(
        CountingDataset(10_000), 8, shuffle=True, seed=3, num_workers=2, world=World(dp_rank=1, dp_size=4)
    )
    next(iter(loader))
    assert loader.explain().splitlines() == [
        "10,000 samples of CountingDataset, 313 global batches of 32",
        "remainder short, order global:feistel8-v1, seed 3",
        "next: sample 32 of epoch 0",
        "data-parallel rank 1 of 4 takes rows 1::4, 8 a batch",
        "made by 2 thread workers, 4 batches ahead",
    ]
    loader.close()


@pytest.mark.parametrize("arrays", [True, False], ids=["arrays", "samples"])
def test_inline_each_sample_is_read_once(tmp_path, arrays):
    dataset = CountingDataset(200, tmp_path / "reads", arrays=arrays)
    for _ in StreamingDataLoader(dataset, 8, shuffle=True, num_workers=0):
        pass
    assert sorted(dataset.reads().tolist()) == list(range(200))


@pytest.mark.parametrize("how", LANES.values(), ids=LANES)
def test_an_error_surfaces_at_its_own_step(how):
    """Reading ahead, in groups or in workers, must not bring an error forward."""
    with StreamingDataLoader(subjects.Broken(200, bad=(150,)), 5, **how) as loader:
        stream = iter(loader)
        for _ in range(30):
            next(stream)
        with pytest.raises(SampleError, match="sample 150 of Broken failed in fetch"):
            next(stream)
        assert loader.state_dict()["samples"] == 150


def test_the_trainer_may_go_on_behind_an_error():
    """A failed step is not passed over: it is tried again, by whoever fixed it."""
    dataset = subjects.Broken(20, bad=(7,))
    with StreamingDataLoader(dataset, 5, num_workers=2) as loader:
        assert next(iter(loader))["id"].tolist() == [0, 1, 2, 3, 4]
        with pytest.raises(SampleError, match="sample 7 of Broken failed in fetch"):
            next(iter(loader))
        dataset.bad = ()
        assert next(iter(loader))["id"].tolist() == [5, 6, 7, 8, 9]


def test_peers_of_one_replica_read_the_same():
    worlds = [World.of(rank=rank, world_size=8, tp_size=2, pp_size=2) for rank in range(8)]
    read = [ids(StreamingDataLoader(subjects.Plain(20), 3, shuffle=True, world=world)) for world in worlds]
    assert read[0] == read[1] == read[2] == read[3]
    assert read[4] == read[5] == read[6] == read[7]
    assert read[0] != read[4]


def test_set_epoch_that_leaves_a_loaded_position_is_told_and_otherwise_says_nothing():
    first = StreamingDataLoader(range(100), 10)
    first.set_epoch(1)
    stream = iter(first)
    kept = [next(stream) for _ in range(4)] and first.state_dict()
    again = StreamingDataLoader(range(100), 10)
    again.load_state_dict(kept)
    again.set_epoch(1)
    with pytest.warns(
        RuntimeWarning, match=r"set_epoch\(0\) leaves the position that was loaded, sample 40 of epoch 1"
    ):
        again.set_epoch(0)
    again.load_state_dict(kept)
    for epoch in range(again.epoch, 3):
        again.set_epoch(epoch)
        assert len(list(again)) == (6 if epoch == 1 else 10)
