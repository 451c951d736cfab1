"""What happens to samples that fail, are filtered, or multiply: the same in every lane, counted, ranks in step."""

from __future__ import annotations

import threading
import time
from collections import Counter

import numpy as np
import pytest

import subjects
from penstock import LoaderTimeout, SampleError, StoreUnavailable, StreamingDataLoader, World
from penstock.testing import check_lanes, check_resume

LANES = {
    "inline": {"num_workers": 0},
    "thread": {"num_workers": 2, "worker_type": "thread"},
    "process": {"num_workers": 1, "worker_type": "process"},
}


@pytest.fixture(params=LANES.values(), ids=LANES)
def lane(request):
    return request.param


def ids(batches) -> list[list[int]]:
    return [batch["id"].tolist() for batch in batches]


class TestRaise:
    @pytest.mark.parametrize("arrays", [True, False], ids=["arrays", "samples"])
    def test_a_failing_fetch_names_the_sample(self, lane, arrays):
        dataset = subjects.Broken(20, bad=(7,), arrays=arrays)
        with StreamingDataLoader(dataset, 5, **lane) as loader, pytest.raises(SampleError) as raised:
            list(loader)
        error = raised.value
        assert (error.dataset, error.key, error.stage, error.reason) == ("Broken", 7, "fetch", "ValueError")
        assert "sample 7 of Broken failed in fetch: ValueError: sample 7 is broken" in str(error)
        assert 'on_error="skip" or "substitute" goes on without it' in str(error)
        assert isinstance(error.__cause__, ValueError)

    def test_of_several_failures_the_first_in_the_batch_is_raised(self, lane):
        """Whichever thread comes upon one first: sample 3 takes longer to fail than sample 40."""
        dataset = subjects.SlowToFail(64, slow=3, quick=40)
        for _ in range(3):
            with StreamingDataLoader(dataset, 64, **lane) as loader, pytest.raises(SampleError) as raised:
                next(iter(loader))
            assert raised.value.key == 3

    def test_a_failing_transform_names_the_sample(self, lane):
        loader = StreamingDataLoader(subjects.Plain(20), 5, transform=subjects.fail_on_seven, **lane)
        with (
            loader,
            pytest.raises(SampleError, match="sample 7 of Plain failed in transform: KeyError") as raised,
        ):
            list(loader)
        assert (raised.value.key, raised.value.stage) == (7, "transform")
        assert isinstance(raised.value.__cause__, KeyError)

    @pytest.mark.parametrize("policy", ["raise", "skip", "substitute"])
    def test_a_failing_collate_is_an_error_under_any_policy(self, lane, policy):
        """No sample is to blame, so none can be left out."""
        loader = StreamingDataLoader(subjects.Plain(20), 5, collate_fn=subjects.picky_collate, on_error=policy, **lane)
        with loader, pytest.raises(SampleError) as raised:
            list(loader)
        assert "samples [10, 11, 12, 13, 14] of Plain failed in collate" in str(raised.value)
        assert (raised.value.stage, raised.value.reason) == ("collate", "RuntimeError")

    def test_samples_that_do_not_stack_are_told_to_be_padded(self, lane):
        loader = StreamingDataLoader(subjects.Ragged(20), 5, **lane)
        with (
            loader,
            pytest.raises(SampleError, match="which do not stack: pass a collate_fn that pads"),
        ):
            list(loader)

    def test_an_error_from_a_worker_shows_where_it_happened(self):
        dataset = subjects.Broken(20, bad=(7,))
        with StreamingDataLoader(dataset, 5, **LANES["process"]) as loader, pytest.raises(SampleError) as raised:
            list(loader)
        assert any("In the worker:" in note and "subjects.py" in note for note in raised.value.__notes__)

    def test_an_error_that_cannot_be_pickled_arrives_in_words(self):
        dataset = subjects.Broken(20, bad=(7,), error=subjects.Picky)
        with StreamingDataLoader(dataset, 5, **LANES["process"]) as loader, pytest.raises(SampleError) as raised:
            list(loader)
        assert "Picky" in str(raised.value)
        assert "sample 7 is broken" in str(raised.value.__cause__)


class TestSkip:
    @pytest.mark.parametrize("arrays", [True, False], ids=["arrays", "samples"])
    def test_a_hole_shifts_nothing(self, lane, arrays):
        dataset = subjects.Broken(20, bad=(6, 7, 19), arrays=arrays)
        with StreamingDataLoader(dataset, 5, on_error="skip", **lane) as loader:
            found, skipped = [], []
            for batch in loader:
                found.append(batch["id"].tolist())
                skipped.append(loader.batch_info.skipped)
        assert found == [[0, 1, 2, 3, 4], [5, 8, 9], [10, 11, 12, 13, 14], [15, 16, 17, 18]]
        assert skipped == [(), (6, 7), (), (19,)]

    def test_what_is_skipped_is_counted_and_listed(self, lane):
        dataset = subjects.Broken(20, bad=(6, 19))
        options = {"transform": subjects.fail_on_seven, "on_error": "skip", **lane}
        with StreamingDataLoader(dataset, 5, **options) as loader:
            list(loader)
            stats = loader.stats
        assert stats.skipped == Counter({"ValueError": 2, "KeyError": 2})
        assert stats.samples == 16
        listed = {(entry.id, entry.epoch, entry.stage, entry.reason) for entry in stats.quarantine}
        assert listed == {
            (6, 0, "fetch", "ValueError"),
            (7, 0, "transform", "KeyError"),
            (17, 0, "transform", "KeyError"),
            (19, 0, "fetch", "ValueError"),
        }
        assert "sample 6 is broken" in next(entry.message for entry in stats.quarantine if entry.id == 6)

    def test_a_rank_left_empty_emits_one_flagged_substitute(self, lane):
        dataset = subjects.Broken(20, bad=(5, 6, 7, 8, 9))
        with StreamingDataLoader(dataset, 5, on_error="skip", **lane) as loader:
            stream = iter(loader)
            next(stream)
            batch, info = next(stream), loader.batch_info
            (stand_in,) = batch["id"].tolist()
            assert info.substitutes == {5: stand_in}
            assert info.skipped == (6, 7, 8, 9)
            assert stand_in not in dataset.bad
            assert (loader.stats.substituted, loader.stats.skipped["ValueError"]) == (1, 4)

    def test_ranks_stay_in_step(self):
        dataset = subjects.Broken(24, bad=tuple(range(0, 24, 2)))
        for size in (1, 2, 4):
            worlds = [World(dp_rank=rank, dp_size=size) for rank in range(size)]
            loaders = [StreamingDataLoader(dataset, 3, on_error="skip", world=world, num_workers=0) for world in worlds]
            assert {sum(1 for _ in loader) for loader in loaders} == {24 // (3 * size)}


class TestSubstitute:
    def test_another_sample_stands_in_its_place(self, lane):
        dataset = subjects.Broken(20, bad=(6, 19))
        with StreamingDataLoader(dataset, 5, on_error="substitute", **lane) as loader:
            for batch in loader:
                info = loader.batch_info
                expected = [info.substitutes.get(id_, id_) for id_ in info.sample_ids.tolist()]
                assert batch["id"].tolist() == expected
            assert loader.stats.substituted == 2
            assert not loader.stats.skipped

    def test_who_stands_in_depends_on_seed_epoch_and_id_only(self):
        def stand_ins(batch_size, seed=0):
            found = {}
            loader = StreamingDataLoader(
                subjects.Broken(40, bad=(6, 19)), batch_size, seed=seed, on_error="substitute", num_workers=0
            )
            for epoch in range(2):
                for _ in loader:
                    found.update({(epoch, old): new for old, new in loader.batch_info.substitutes.items()})
            return found

        assert stand_ins(5) == stand_ins(8)
        assert len(stand_ins(5)) == 4
        assert stand_ins(5) != stand_ins(5, seed=1)

    def test_when_everything_is_broken_it_gives_up_and_says_why(self, lane):
        dataset = subjects.Broken(4, bad=(0, 1, 2, 3))
        loader = StreamingDataLoader(dataset, 2, on_error="substitute", **lane)
        with loader, pytest.raises(SampleError) as raised:
            next(iter(loader))
        said = str(raised.value)
        assert "Broken: sample 0 was left out (ValueError: 1), and so were 16 others" in said
        assert "(ValueError: 16): ValueError: sample " in said
        assert "on_error" not in said
        assert isinstance(raised.value.__cause__, ValueError)


class TestFilter:
    @pytest.mark.parametrize("policy", ["raise", "skip", "substitute"])
    def test_none_leaves_a_sample_out_under_any_policy(self, lane, policy):
        options = {"transform": subjects.keep_even, "on_error": policy, **lane}
        with StreamingDataLoader(subjects.Plain(20), 5, **options) as loader:
            assert ids(loader) == [[0, 2, 4], [6, 8], [10, 12, 14], [16, 18]]
            assert loader.stats.skipped == Counter(filtered=10)
            assert {entry.reason for entry in loader.stats.quarantine} == {"filtered"}

    def test_a_rank_left_empty_by_a_filter_emits_a_substitute(self, lane):
        with StreamingDataLoader(subjects.Plain(20), 5, transform=subjects.drop_below_ten, **lane) as loader:
            batch = next(iter(loader))
            (stand_in,) = batch["id"].tolist()
            assert stand_in >= 10
            assert loader.batch_info.substitutes == {0: stand_in}

    def test_a_filter_that_leaves_nothing_is_an_error(self, lane):
        loader = StreamingDataLoader(subjects.Plain(20), 5, transform=subjects.drop_all, **lane)
        with loader, pytest.raises(SampleError) as raised:
            next(iter(loader))
        said = "Plain: all 5 samples of a batch, [0, 1, 2, 3, 4], were left out (filtered: 5), and so were 1016 others"
        assert str(raised.value).startswith(f"{said} tried in their place (filtered: 1016). Too few are left: look at")
        assert (raised.value.stage, raised.value.reason) == ("transform", "filtered")

    def test_skipping_and_filtering_all_is_told_by_reason_without_advising_to_skip(self, lane):
        dataset = subjects.Broken(20, bad=tuple(range(1, 20)))
        options = {"transform": subjects.drop_all, "on_error": "skip", **lane}
        with StreamingDataLoader(dataset, 5, **options) as loader, pytest.raises(SampleError) as raised:
            next(iter(loader))
        assert "were left out (ValueError: 4, filtered: 1)" in str(raised.value)
        assert "on_error" not in str(raised.value)


class TestFanOut:
    def test_a_step_emits_all_that_its_inputs_become(self, lane):
        with StreamingDataLoader(subjects.Plain(6), 3, transform=subjects.twice, **lane) as loader:
            assert len(loader) == 2
            assert ids(loader) == [[0, 0, 1, -1, 2, -2], [3, -3, 4, -4, 5, -5]]
            assert loader.stats.samples == 12

    def test_a_generator_adds_as_many_as_it_yields(self, lane):
        with StreamingDataLoader(subjects.Plain(6), 6, transform=subjects.as_many_as_id_mod_three, **lane) as loader:
            assert ids(loader) == [[1, 2, 2, 4, 5, 5]]
            # An input that yields nothing is left out like a filtered one.
            assert loader.stats.skipped == Counter(filtered=2)

    def test_a_chain_works_on_each_of_them(self, lane):
        with StreamingDataLoader(
            subjects.Plain(4), 4, transform=[subjects.twice, subjects.keep_even], **lane
        ) as loader:
            assert ids(loader) == [[0, 0, 2, -2]]


class TestKeyedRandomness:
    def noise(self, *, rounds=1, start=None, **options):
        found = {}
        with StreamingDataLoader(subjects.Plain(23), transform=subjects.jitter, **options) as loader:
            if start is not None:
                loader.load_state_dict(start)
            for _ in range(rounds):
                epoch = loader.epoch
                for batch in loader:
                    pairs = zip(batch["id"].tolist(), batch["noise"].tolist(), strict=True)
                    found.update({(epoch, id_): value for id_, value in pairs})
        return found

    def test_it_depends_on_seed_epoch_and_sample_only(self, lane):
        expected = self.noise(batch_size=4, num_workers=0, rounds=2)
        assert self.noise(batch_size=7, shuffle=True, rounds=2, **lane) == expected
        assert len(set(expected.values())) == 46

    def test_another_seed_gives_other_noise(self):
        assert self.noise(batch_size=4, seed=1) != self.noise(batch_size=4, seed=2)

    def test_a_resumed_run_draws_the_same(self, lane):
        with StreamingDataLoader(subjects.Plain(23), 4, transform=subjects.jitter, **lane) as loader:
            stream = iter(loader)
            next(stream)
            next(stream)
            state = loader.state_dict()
        whole = self.noise(batch_size=4)
        rest = self.noise(batch_size=3, start=state, **lane)
        assert rest == {place: value for place, value in whole.items() if place[1] >= 8}

    def test_each_transform_of_a_chain_draws_its_own(self):
        def second(sample, rng):
            return {**sample, "other": rng.integers(1 << 40)}

        loader = StreamingDataLoader(subjects.Plain(4), 4, transform=[subjects.jitter, second])
        (batch,) = loader
        assert not set(batch["noise"].tolist()) & set(batch["other"].tolist())

    def test_no_global_generator_is_read_or_moved(self):
        before = np.random.get_state()[1].tolist()
        self.noise(batch_size=4)
        assert np.random.get_state()[1].tolist() == before

    def test_samples_carried_over_keep_the_noise_of_their_own_epoch(self, lane):
        """Where batches are cut must not decide what a sample looks like: 23 samples in fours and in twenty-threes."""
        found = {}
        for size in (4, 23):
            options = {"transform": subjects.jitter, "remainder": "carry", **lane}
            with StreamingDataLoader(subjects.Plain(23), size, **options) as loader:
                read = [pair for _ in range(2) for batch in loader for pair in pairs_of(batch)]
            found[size] = read[:46]
        assert found[4] == found[23]


def pairs_of(batch):
    return list(zip(batch["id"].tolist(), batch["noise"].tolist(), strict=True))


@pytest.mark.parametrize("policy", ["skip", "substitute"])
def test_policies_keep_the_laws(policy):
    dataset = subjects.Broken(23, bad=(0, 1, 2, 3, 9, 22))
    options = {"shuffle": True, "on_error": policy, "transform": [subjects.fail_on_seven, subjects.jitter]}
    check_lanes(dataset, batch_size=4, workers=(0, 2), prefetch=(2,), **options)
    check_resume(lambda: StreamingDataLoader(dataset, 4, num_workers=0, **options))


def test_a_filter_may_keep_few_samples(lane):
    """One in fifty: most batches are left empty, and each of them gets one flagged substitute."""
    with StreamingDataLoader(subjects.Plain(2000), 4, transform=subjects.keep_one_in_fifty, **lane) as loader:
        batches = [(batch["id"].tolist(), len(loader.batch_info.substitutes)) for batch in loader]
    assert len(batches) == 500
    assert all(id_ % 50 == 0 for kept, _ in batches for id_ in kept)
    assert [kept for kept, substitutes in batches if not substitutes] == [[id_] for id_ in range(0, 2000, 50)]


class TestOutages:
    """A store that is away says nothing of its samples: what is lost by that is said, and soon ends a run."""

    @pytest.mark.parametrize("policy", ["skip", "substitute"])
    def test_what_is_left_out_for_it_is_warned_of_ever_less_often(self, lane, policy, caplog):
        dataset = subjects.Broken(200, bad=tuple(range(0, 200, 4)), arrays=False, error=StoreUnavailable)
        with StreamingDataLoader(dataset, 20, on_error=policy, **lane) as loader:
            list(loader)
        assert loader.stats.skipped.total() + loader.stats.substituted == 50
        told = [record.getMessage() for record in caplog.records if record.name == "penstock.loader"]
        assert [one.split()[0] for one in told] == ["1", "10"]
        assert "left out or replaced so far for what says nothing of them, the last one: sample 0, " in told[0]
        assert "StoreUnavailable: sample 0 is broken" in told[0]

    def test_of_what_is_wrong_with_samples_nobody_is_warned(self, lane, caplog):
        with StreamingDataLoader(subjects.Broken(20, bad=(7,), arrays=False), 5, on_error="skip", **lane) as loader:
            list(loader)
        assert loader.stats.skipped.total() == 1
        assert not [record for record in caplog.records if record.name == "penstock.loader"]

    @pytest.mark.parametrize("policy", ["skip", "substitute"])
    def test_four_substitutes_in_a_row_that_are_out_of_reach_end_it(self, policy):
        dataset = subjects.Broken(1000, bad=tuple(range(20, 1000)), arrays=False, error=StoreUnavailable)
        with StreamingDataLoader(dataset, 20, on_error=policy, num_workers=0) as loader:
            stream = iter(loader)
            assert next(stream)["id"].tolist() == list(range(20))
            with pytest.raises(
                SampleError, match=r"4 others tried in their place \(StoreUnavailable: 4\).*from the last"
            ):
                next(stream)
            assert loader.state_dict()["samples"] == 20

    def test_whoever_seeks_substitutes_ends_when_nobody_wants_them_any_more(self):
        """As quickly as one sample fails, not all that could be tried."""
        before = set(threading.enumerate())
        dataset = subjects.SlowlyFiltered(1000, seconds=0.05)
        loader = StreamingDataLoader(dataset, 4, on_error="substitute", num_workers=2, worker_type="thread", timeout=5)
        stream = iter(loader)
        with pytest.raises(LoaderTimeout, match="still put together, in collate or with samples for those that failed"):
            next(stream)
        began = time.monotonic()
        loader.close()
        assert time.monotonic() - began < 5
        assert set(threading.enumerate()) <= before
