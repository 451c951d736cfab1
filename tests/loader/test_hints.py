"""What a dataset that fetches from afar is told ahead, and what becomes of samples that fail to arrive."""

from __future__ import annotations

import threading
import time
from collections import Counter

import numpy as np
import pytest

import subjects
from penstock import ConfigError, SampleError, StreamingDataLoader, World
from penstock.loader.hints import HINTED_SAMPLES, SAMPLES_A_HINT
from penstock.transforms.chain import Chain

LANES = {
    "inline": {"num_workers": 0},
    "thread": {"num_workers": 2, "worker_type": "thread"},
    "process": {"num_workers": 2, "worker_type": "process"},
}


@pytest.fixture(params=LANES.values(), ids=LANES)
def lane(request):
    return request.param


def tell_after_hints(sample):
    """Give a hint thread the time to be first."""
    time.sleep(0.02)
    return sample


class TestHints:
    def test_every_sample_is_hinted_once_an_epoch_where_it_is_fetched(self, lane):
        dataset = subjects.Remote(200)
        with StreamingDataLoader(dataset, 6, shuffle=True, prefetch=3, **lane) as loader:
            for epoch in range(2):
                batches = [tell_after_hints(batch) for batch in loader]
                assert sorted(id_ for batch in batches for id_ in batch["id"].tolist()) == list(range(200))
                assert {e for batch in batches for e in batch["epoch"].tolist()} == {epoch}
                # Where two threads race, the very first may be fetched before its hint is taken.
                late = [batch["times"].tolist() for batch in batches[20:]]
                assert all(times == [1] * len(times) for times in late)

    def test_hints_run_some_hundred_samples_ahead_and_not_much_further(self):
        dataset = subjects.Remote(5000)
        with StreamingDataLoader(dataset, 4, num_workers=0) as loader:
            batches = iter(loader)
            assert next(batches)["hints"].max() <= 256
            for step in range(100, 200):
                hints = [next(batches)["hints"] for _ in range(100 if step == 100 else 1)][-1]
                assert abs(int(hints.min()) - 4 * step - HINTED_SAMPLES) <= SAMPLES_A_HINT

    def test_hints_reach_as_far_as_prefetch_where_that_is_further(self):
        dataset = subjects.Remote(5000)
        with StreamingDataLoader(dataset, 50, num_workers=0, prefetch=30) as loader:
            assert [batch["hints"].min().item() for batch in loader][2] >= 30 * 50

    def test_a_rank_hints_its_own_samples_only(self):
        dataset = subjects.Remote(100)
        with StreamingDataLoader(dataset, 5, num_workers=0, world=World(dp_rank=1, dp_size=2)) as loader:
            list(loader)
        assert {id_ for _, id_ in dataset.hinted} == set(range(1, 100, 2))

    def test_hints_follow_the_cursor(self, lane):
        dataset = subjects.Remote(4000)
        with StreamingDataLoader(dataset, 10, **lane) as loader:
            next(iter(loader))
            loader.load_state_dict({**loader.state_dict(), "samples": 3000})
            found = [tell_after_hints(batch) for batch in loader]
        assert [id_ for batch in found for id_ in batch["id"].tolist()] == list(range(3000, 4000))
        assert all(batch["times"].min() >= 1 for batch in found[60:])

    def test_a_dataset_that_cannot_take_hints_is_told_no_more(self, lane):
        if lane.get("worker_type") == "process":
            pytest.skip("the warning is shown by the worker process")
        with (
            StreamingDataLoader(subjects.Unhintable(100), 5, **lane) as loader,
            pytest.warns(
                RuntimeWarning, match=r"Unhintable.prefetch failed \(TimeoutError: the index does not"
            ) as said,
        ):
            assert [id_ for batch in loader for id_ in batch["id"].tolist()] == list(range(100))
        assert len(said) == 1

    def test_closing_leaves_no_thread(self):
        before = set(threading.enumerate())
        with StreamingDataLoader(subjects.Remote(5000), 5, num_workers=2) as loader:
            next(iter(loader))
        assert set(threading.enumerate()) <= before

    def test_both_workers_are_told_of_their_own_steps(self):
        with StreamingDataLoader(subjects.Remote(600), 5, num_workers=2, worker_type="process") as loader:
            batches = list(loader)
        steps = Counter(batch["pid"][0].item() for batch in batches)
        assert len(steps) == 2
        assert all((batch["times"] == 1).all() for batch in batches)


class TestSecondTry:
    def test_a_sample_that_fails_once_is_got_anew(self, lane):
        dataset = subjects.Remote(20, broken={3: 1, 17: 1})
        with StreamingDataLoader(dataset, 5, **lane) as loader:
            assert [id_ for batch in loader for id_ in batch["id"].tolist()] == list(range(20))
            assert not loader.stats.quarantine
        if lane["num_workers"] == 0:
            assert dataset.discarded == [3, 17]
            assert Counter(dataset.fetched)[3] == 2
            assert Counter(dataset.fetched)[4] == 1

    def test_a_sample_that_fails_to_decode_is_got_anew_once(self):
        attempts = Counter()

        def decode(sample):
            attempts[sample["id"]] += 1
            if sample["id"] == 8 or (sample["id"] == 6 and attempts[6] == 1):
                raise ValueError("truncated image")
            return sample

        dataset = subjects.Remote(10)
        with StreamingDataLoader(dataset, 5, transform=decode, on_error="skip", num_workers=0) as loader:
            assert [batch["id"].tolist() for batch in loader] == [[0, 1, 2, 3, 4], [5, 6, 7, 9]]
            assert [(entry.id, entry.stage) for entry in loader.stats.quarantine] == [(8, "transform")]
        assert dataset.discarded == [6, 8]
        assert Counter(dataset.fetched) == {**dict.fromkeys(range(10), 1), 6: 2, 8: 2}

    def test_a_sample_that_fails_twice_follows_the_policy(self, lane):
        dataset = subjects.Remote(20, broken={3: 9})
        with StreamingDataLoader(dataset, 5, on_error="skip", **lane) as loader:
            assert next(iter(loader))["id"].tolist() == [0, 1, 2, 4]
            assert loader.stats.skipped == {"ConnectionError": 1}
        dataset = subjects.Remote(20, broken={3: 9})
        with (
            StreamingDataLoader(dataset, 5, **lane) as loader,
            pytest.raises(SampleError, match="sample 3 of Remote failed in fetch: ConnectionError: sample 3 did not"),
        ):
            next(iter(loader))

    def test_a_dataset_that_cannot_get_it_anew_is_asked_once(self):
        dataset = subjects.Remote(20, broken={3: 1}, again=False)
        with StreamingDataLoader(dataset, 5, on_error="skip", num_workers=0) as loader:
            assert next(iter(loader))["id"].tolist() == [0, 1, 2, 4]
        assert Counter(dataset.fetched) == dict.fromkeys(range(5), 1)


class TestWhatADatasetBrings:
    def test_its_transforms_run_before_the_loaders_as_one_chain(self, lane):
        dataset = subjects.Remote(6, transforms=(subjects.as_many_as_id_mod_three, subjects.jitter))
        with StreamingDataLoader(dataset, 6, transform=subjects.keep_even, seed=5, **lane) as loader:
            batch = next(iter(loader))
        chain = Chain([*dataset.transforms, subjects.keep_even], seed=5)
        expected = [out["noise"] for id_ in range(6) for out in chain({"id": id_}, 0, id_)]
        assert batch["id"].tolist() == [2, 2, 4]
        assert batch["noise"].tolist() == expected

    def test_transforms_of_other_map_style_datasets_are_their_own_affair(self):
        dataset = subjects.Plain(6)
        dataset.transforms = (subjects.drop_all,)
        assert sum(len(batch["id"]) for batch in StreamingDataLoader(dataset, 2)) == 6

    def test_its_shuffle_seed_is_the_loaders(self):
        of_dataset = StreamingDataLoader(subjects.Remote(50, shuffle_seed=3), 50, num_workers=0)
        of_loader = StreamingDataLoader(subjects.Remote(50), 50, shuffle=True, seed=3, num_workers=0)
        first, second = next(iter(of_dataset)), next(iter(of_loader))
        assert first["id"].tolist() == second["id"].tolist() != list(range(50))
        assert of_dataset.state_dict() == of_loader.state_dict()

    @pytest.mark.parametrize(
        ("own", "given", "said"),
        [
            ({"shuffle_seed": 3}, {"seed": 4}, "seed=4 contradicts Remote's shuffle_seed=3"),
            ({"shuffle_seed": 0}, {"shuffle": False}, "shuffle=False contradicts Remote's shuffle_seed=0"),
            ({"on_error": "skip"}, {"on_error": "substitute"}, "on_error='substitute' contradicts Remote's on_error="),
            ({"on_error": "skip"}, {"on_error": "raise"}, "on_error='raise' contradicts Remote's on_error='skip'"),
        ],
    )
    def test_a_contradiction_is_refused(self, own, given, said):
        with pytest.raises(ConfigError, match=said):
            StreamingDataLoader(subjects.Remote(20, **own), 5, **given)

    def test_its_policy_is_the_loaders(self):
        dataset = subjects.Remote(20, broken={3: 9}, on_error="skip")
        with StreamingDataLoader(dataset, 5, num_workers=0) as loader:
            assert next(iter(loader))["id"].tolist() == [0, 1, 2, 4]

    def test_its_shuffle_is_the_default(self):
        parts = {"shuffle_seed": 3, "block_ends": np.array([20, 50])}
        of_dataset = StreamingDataLoader(subjects.Remote(50, default_shuffle="window", **parts), 50, num_workers=0)
        of_loader = StreamingDataLoader(subjects.Remote(50, **parts), 50, shuffle="window", num_workers=0)
        assert of_dataset.state_dict() == of_loader.state_dict()

    def test_its_list_of_failures_is_kept(self, lane):
        dataset = subjects.Remote(20, broken={3: 99, 12: 99}, on_error="substitute")
        with StreamingDataLoader(dataset, 5, **lane) as loader:
            assert sum(len(batch["id"]) for batch in loader) == 20
        assert dataset.listed == [([(3, "ConnectionError")], [3]), ([(12, "ConnectionError")], [12])]

    def test_its_numbers_are_defaults(self):
        dataset = subjects.Remote(200, num_downloading_workers=3, prefetch_tickets=7)
        assert "3 thread workers, 7 batches ahead" in StreamingDataLoader(dataset, 5).explain()
        given = StreamingDataLoader(dataset, 5, num_workers=1, prefetch=2)
        assert "1 thread workers, 2 batches ahead" in given.explain()


def test_hints_of_carried_samples_name_the_epoch_of_each():
    dataset = subjects.Remote(10)
    with StreamingDataLoader(dataset, 4, remainder="carry", num_workers=0) as loader:
        last = list(loader)[-1]
    assert last["epoch"].tolist() == [0, 0, 1, 1]
    assert dataset.hinted == {**{(0, id_): 1 for id_ in range(10)}, (1, 0): 1, (1, 1): 1}
    assert np.array_equal(last["times"], [1, 1, 1, 1])
