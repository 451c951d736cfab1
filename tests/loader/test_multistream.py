from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import subjects
from penstock import ConfigError, MultiStreamDataLoader, StateMismatch, StreamOptions, World, mix
from penstock.loader.multistream import StreamBatch
from penstock.testing import CountingDataset, check_close

SIZES = {"image": 50, "video": 31, "text": 17}
OPTIONS = {
    "image": {"ratio": 0.5, "batch_gpu": 4},
    "video": {"ratio": 0.3, "batch_gpu": 2, "num_accum_rounds": 3},
    "text": {"ratio": 0.2, "batch_gpu": 3},
}


def loader_of(rank=0, ranks=1, *, options=OPTIONS, sizes=SIZES, **settings):
    streams = [StreamOptions(name=name, **given) for name, given in options.items()]
    datasets = {name: CountingDataset(size) for name, size in sizes.items()}
    return MultiStreamDataLoader(datasets, streams, world=World(dp_rank=rank, dp_size=ranks), **settings)


def seen(batch):
    return batch.stream_name, batch["id"].tolist(), batch.num_accum_rounds_left


def read(loader, steps):
    return [seen(batch) for _, batch in zip(range(steps), loader, strict=False)]


def read_together(loaders, steps):
    """One list per step, of what each rank saw."""
    return [list(step) for step in zip(*(read(loader, steps) for loader in loaders), strict=True)]


def taken(steps):
    """The samples of each stream, in the order in which (step, rank) took them."""
    found = {name: [] for name in SIZES}
    for name, ids, _ in itertools.chain.from_iterable(steps):
        found[name] += ids
    return found


MIXED = {name: {**given, "num_accum_rounds": 2} for name, given in OPTIONS.items()}
GROUPED = {
    "image": {"ratio": 0.5, "batch_gpu": 4, "mixing_group_id": "stills"},
    "text": {"ratio": 0.2, "batch_gpu": 3, "mixing_group_id": "stills"},
    "video": {"ratio": 0.3, "batch_gpu": 2, "num_accum_rounds": 3},
}
STRATEGIES = [("no_mixing", OPTIONS), ("mix_all", MIXED), ("custom", GROUPED)]


class TestSchedules:
    @pytest.mark.parametrize(
        ("schedule", "expected"), [("consecutive", "001112222"), ("consecutive_interleaved", "012012122")]
    )
    def test_counts_of_2_3_and_4(self, schedule, expected):
        ratios = {"image": 2, "video": 3, "text": 4}
        options = {name: {"ratio": ratio, "batch_gpu": 2} for name, ratio in ratios.items()}
        names = [name for name, *_ in read(loader_of(options=options, schedule=schedule), 18)]
        assert "".join(str(list(ratios).index(name)) for name in names) == expected * 2

    @pytest.mark.parametrize(
        "schedule", ["random", "consecutive", "consecutive_interleaved", "random_order", "fixed_random_order"]
    )
    @pytest.mark.parametrize("mixing", ["no_mixing", "mix_all"])
    def test_forty_and_sixty_of_a_thousand(self, schedule, mixing):
        options = {"image": {"ratio": 0.4, "batch_gpu": 1}, "text": {"ratio": 0.6, "batch_gpu": 1}}
        sizes = {"image": 50, "text": 17}
        names = [
            name for name, *_ in read(loader_of(options=options, sizes=sizes, schedule=schedule, mixing=mixing), 1000)
        ]
        assert [names.count(name) for name in options] == [400, 600]

    def test_a_pick_gives_all_its_rounds(self):
        rounds = [(name, left) for name, _, left in read(loader_of(), 60)]
        for (name, left), (following, then) in itertools.pairwise(rounds):
            assert left == 0 or (following, then) == (name, left - 1)
        assert {left for name, left in rounds if name == "video"} == {0, 1, 2}

    def test_a_stream_of_no_ratio_is_dropped(self):
        options = {**OPTIONS, "text": {"ratio": 0, "batch_gpu": 3}}
        assert {name for name, *_ in read(loader_of(options=options), 40)} == {"image", "video"}


class TestRanks:
    def test_without_mixing_all_ranks_see_one_stream_at_a_step(self):
        steps = read_together([loader_of(rank, 3) for rank in range(3)], 60)
        assert all(len({name for name, *_ in step}) == 1 for step in steps)

    def test_mixing_all_every_rank_draws_its_own(self):
        steps = read_together([loader_of(rank, 3, options=MIXED, mixing="mix_all") for rank in range(3)], 60)
        assert any(len({name for name, *_ in step}) == 3 for step in steps)
        assert all(len({left for *_, left in step}) == 1 for step in steps)
        names = [name for step in steps for name, *_ in step]
        assert [names.count(name) for name in SIZES] == [90, 54, 36]

    def test_custom_groups_mix_within_themselves_only(self):
        steps = read_together([loader_of(rank, 2, options=GROUPED, mixing="custom") for rank in range(2)], 120)
        kinds = [{name for name, *_ in step} for step in steps]
        assert {"image", "text"} in kinds
        assert {"video"} in kinds
        assert all("video" not in kind or kind == {"video"} for kind in kinds)

    @pytest.mark.parametrize(("mixing", "options"), STRATEGIES)
    @pytest.mark.parametrize("ranks", [1, 2, 3])
    def test_every_sample_of_a_stream_comes_once_before_any_comes_again(self, mixing, options, ranks):
        steps = read_together([loader_of(rank, ranks, options=options, mixing=mixing) for rank in range(ranks)], 200)
        alone = read_together([loader_of(options=options, mixing=mixing)], 200)
        for name, ids in taken(steps).items():
            for start in range(0, len(ids) - SIZES[name] + 1, SIZES[name]):
                one = ids[start : start + SIZES[name]]
                if mixing == "no_mixing":
                    assert len(set(one)) == SIZES[name]
            # Of mixed ranks, rounds of one pick stand beside each other, so only whole picks are in order.
            assert len(set(ids)) == SIZES[name]
            common = min(len(ids), len(taken(alone)[name]))
            assert ranks > 1 or ids[:common] == taken(alone)[name][:common]

    def test_parallel_peers_of_one_replica_read_the_same(self):
        options = [StreamOptions(name=name, **given) for name, given in OPTIONS.items()]
        datasets = {name: CountingDataset(size) for name, size in SIZES.items()}
        peers = [
            MultiStreamDataLoader(datasets, options, world=World.of(rank=rank, world_size=4, tp_size=2))
            for rank in range(4)
        ]
        whole = [read(peer, 30) for peer in peers]
        assert whole[0] == whole[1] != whole[2] == whole[3]

    def test_a_batch_size_is_of_all_ranks_and_rounds(self):
        options = {"image": {"ratio": 1, "batch_size": 24, "num_accum_rounds": 3}}
        (one,) = read(loader_of(0, 2, options=options, sizes={"image": 50}), 1)
        assert len(one[1]) == 4
        with pytest.raises(ConfigError, match="batch_size=24 of stream 'image' is not a multiple of 5 ranks × 3"):
            read(loader_of(0, 5, options=options, sizes={"image": 50}), 1)


class TestResuming:
    @pytest.mark.parametrize(("mixing", "options"), STRATEGIES)
    def test_at_every_step_of_a_meta_iteration(self, mixing, options):
        def loader():
            return loader_of(1, 2, options=options, mixing=mixing, schedule="random_order")

        whole = read(loader(), 60)
        one = loader()
        batches = iter(one)
        for step in range(30):
            other = loader()
            other.load_state_dict(json.loads(json.dumps(one.state_dict())))
            assert read(other, 20) == whole[step : step + 20], step
            # A resumed loader is resumed from as any other.
            third = loader()
            third.load_state_dict(other.state_dict())
            assert read(third, 5) == whole[step + 20 : step + 25], step
            next(batches)

    @pytest.mark.parametrize("mixing", ["no_mixing", "mix_all"])
    @pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 3), (3, 2)])
    @pytest.mark.parametrize("steps", [5, 6, 7])
    def test_on_another_number_of_ranks(self, mixing, before, after, steps):
        def loaders(ranks):
            return [loader_of(rank, ranks, options=MIXED, mixing=mixing) for rank in range(ranks)]

        first = loaders(before)
        head = read_together(first, steps)
        states = [json.dumps(one.state_dict()) for one in first]
        assert len(set(states)) == 1
        rest = loaders(after)
        for one in rest:
            one.load_state_dict(json.loads(states[0]))
        found = taken(head + read_together(rest, 150))
        for name, ids in found.items():
            # Nothing is lost or doubled over the change of ranks: whole epochs hold every sample once.
            epochs = len(ids) // SIZES[name]
            assert epochs >= 2
            counted = np.bincount(ids, minlength=SIZES[name])
            slack = 1 if mixing == "mix_all" else 0
            assert counted.min() >= epochs - slack
            assert counted.max() <= epochs + 1 + slack

    @given(
        st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=4),
        st.integers(1, 3),
        st.integers(0, 15),
        st.data(),
    )
    @settings(deadline=None, max_examples=30)
    def test_any_streams_anywhere(self, streams, ranks, steps, data):
        options = {
            f"s{j}": {"ratio": ratio, "batch_gpu": batch, "num_accum_rounds": rounds}
            for j, (ratio, batch, rounds) in enumerate(streams)
        }
        sizes = {name: 7 + j for j, name in enumerate(options)}
        rank = data.draw(st.integers(0, ranks - 1))
        kind = data.draw(st.sampled_from(["random", "consecutive", "consecutive_interleaved", "fixed_random_order"]))

        def loader():
            return loader_of(rank, ranks, options=options, sizes=sizes, schedule=kind)

        one, other = loader(), loader()
        head = read(one, steps)
        other.load_state_dict(one.state_dict())
        assert head + read(other, 10) == read(loader(), steps + 10)

    @pytest.mark.parametrize("mixing", ["no_mixing", "mix_all"])
    def test_a_state_stays_small(self, mixing):
        options = {f"stream {j}": {"ratio": j + 1, "batch_gpu": 2} for j in range(100)}
        loader = loader_of(options=options, sizes=dict.fromkeys(options, 10**9), mixing=mixing)
        read(loader, 300)
        assert len(json.dumps(loader.state_dict())) < 1000 + 32 * 100

    def test_a_far_position_is_as_near_as_any(self):
        state = loader_of().state_dict()
        far = loader_of()
        far.load_state_dict({**state, "pick": 10**12, "samples": [10**13, 10**13, 10**13]})
        assert far.epoch == 10**13 // 50
        assert read(far, 10) == read(far_again(state), 10)

    def test_states_of_something_else_are_refused(self):
        state = loader_of().state_dict()
        with pytest.raises(StateMismatch, match="no state of a MultiStreamDataLoader"):
            loader_of().load_state_dict({"epoch": 1, "samples": 3})
        with pytest.raises(StateMismatch, match="order is"):
            loader_of(schedule="consecutive").load_state_dict(state)
        with pytest.raises(StateMismatch, match="seed is 42 in the state, 7 here"):
            loader_of(shuffle_seed=7).load_state_dict(state)
        with pytest.raises(StateMismatch, match="fingerprint is"):
            loader_of(sizes={**SIZES, "text": 18}).load_state_dict(state)
        for broken in ({"samples": [1, 2]}, {"pick": -1}, {"round": None}, {"samples": [1, 2, "x"]}):
            with pytest.raises(StateMismatch, match="the state was edited"):
                loader_of().load_state_dict({**state, **broken})


def far_again(state):
    loader = loader_of()
    loader.load_state_dict({**state, "pick": 10**12, "samples": [10**13, 10**13, 10**13]})
    return loader


class TestEachStreamsOwn:
    def test_tags_transforms_and_collates(self):
        picture, sound = subjects.Fetching(10), subjects.Fetching(10, arrays=False)
        picture.data_type = "image"
        streams = [
            StreamOptions(
                name="picture", ratio=1, batch_gpu=2, dataloader_kwargs={"transform": tripled, "shuffle": False}
            ),
            StreamOptions(name="sound", ratio=1, batch_gpu=3, dataloader_kwargs={"collate_fn": list}),
        ]
        loader = MultiStreamDataLoader([picture, sound], streams, schedule="consecutive")
        first, second = itertools.islice(loader, 2)
        assert isinstance(first, StreamBatch)
        assert (first.stream_name, first.data_type, first.num_accum_rounds_left) == ("picture", "image", 0)
        assert first["id"].tolist() == [0, 1]
        assert torch.equal(first["x"][1], torch.full((3,), 3.0))
        assert (second.stream_name, second.data_type) == ("sound", None)
        assert isinstance(second, list)
        assert len(second) == 3

    def test_a_tensor_is_tagged_as_it_is(self):
        loader = MultiStreamDataLoader({"n": [5, 6, 7]}, [StreamOptions(name="n", ratio=1, batch_gpu=3)])
        batch = next(iter(loader))
        assert isinstance(batch, torch.Tensor)
        assert sorted(batch.tolist()) == [5, 6, 7]
        assert batch.stream_name == "n"

    def test_a_batch_that_takes_no_tags_is_refused(self):
        options = StreamOptions(name="n", ratio=1, batch_gpu=3, dataloader_kwargs={"collate_fn": sum})
        with pytest.raises(ConfigError, match="a batch of stream 'n' is a int, which takes no tags"):
            next(iter(MultiStreamDataLoader({"n": [5, 6, 7]}, [options])))

    def test_the_main_streams_epoch_is_the_loaders(self):
        options = {**OPTIONS, "text": {**OPTIONS["text"], "is_main": True}}
        loader = loader_of(options=options)
        samples = 0
        for batch in itertools.islice(loader, 100):
            samples += 3 * (batch.stream_name == "text")
            assert loader.epoch == samples // 17

    def test_there_is_no_length(self):
        with pytest.raises(TypeError, match="has no len"):
            len(loader_of())

    def test_failures_are_listed_where_they_belong(self):
        good, bad = (
            subjects.Fetching(10, arrays=False),
            subjects.Remote(10, broken={4: 9}, on_error="skip", again=False),
        )
        streams = [StreamOptions(name=name, ratio=1, batch_gpu=5) for name in ("good", "bad")]
        loader = MultiStreamDataLoader([good, bad], streams, shuffle_seed=None, schedule="consecutive")
        batches = list(itertools.islice(loader, 2))
        assert batches[1]["id"].tolist() == [0, 1, 2, 3]
        assert bad.listed == [([(4, "ConnectionError")], [])]
        assert loader.batch_info.skipped == (4,)
        assert loader.batch_info.sample_ids.tolist() == [0, 1, 2, 3, 4]

    def test_a_mix_may_be_a_stream(self):
        both = mix({"a": CountingDataset(30), "b": CountingDataset(30)}, {"a": 3, "b": 1}, stop="never")
        streams = [StreamOptions(name="mixed", ratio=1, batch_gpu=8), StreamOptions(name="alone", ratio=1, batch_gpu=8)]
        loader = MultiStreamDataLoader([both, CountingDataset(20)], streams, schedule="consecutive")
        for batch in itertools.islice(loader, 20):
            if batch.stream_name == "mixed":
                assert (loader.batch_info.sample_ids < 30).sum() == 6

    def test_another_stream_leaves_the_order_of_the_others(self):
        fewer = {name: OPTIONS[name] for name in ("image", "text")}
        sizes = {name: SIZES[name] for name in fewer}
        few, all_ = (
            taken([[one] for one in read(loader_of(options=fewer, sizes=sizes), 100)]),
            taken([[one] for one in read(loader_of(), 100)]),
        )
        for name in fewer:
            common = min(len(few[name]), len(all_[name]))
            assert few[name][:common] == all_[name][:common]


def tripled(sample):
    return {**sample, "x": sample["x"] * 3}


@pytest.mark.parametrize("lane", [{"num_workers": 2, "worker_type": kind} for kind in ("thread", "process")])
@pytest.mark.parametrize(("mixing", "options"), STRATEGIES)
def test_lanes_change_nothing(lane, mixing, options):
    whole = read(loader_of(1, 2, options=options, mixing=mixing), 40)
    loader = loader_of(1, 2, options=options, mixing=mixing, **lane)
    assert read(loader, 13) + read(loader, 27) == whole
    loader.close()
    assert read(loader, 5) == read(loader_at(whole, mixing, options), 5)
    loader.close()


def loader_at(whole, mixing, options):
    loader = loader_of(1, 2, options=options, mixing=mixing)
    read(loader, len(whole))
    return loader


def test_closing_leaves_nothing():
    check_close(lambda: loader_of(num_workers=2, worker_type="thread"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "batch_size=None and batch_gpu=None: give one"),
        ({"batch_size": 4, "batch_gpu": 4}, "batch_size=4 and batch_gpu=4: give one"),
        ({"batch_gpu": 0}, "batch_gpu of stream 'a' must be an integer >= 1"),
        ({"batch_gpu": 1, "num_accum_rounds": 0}, "num_accum_rounds of stream 'a' must be"),
        ({"batch_gpu": 1, "is_main": "yes"}, "is_main of stream 'a' must be one of"),
        ({"batch_gpu": 1, "dataloader_kwargs": {"drop_last": True}}, "has 'drop_last': a stream takes shuffle, seed"),
        ({"batch_gpu": 1, "dataloader_kwargs": 5}, "must be a dict, got 5"),
    ],
)
def test_options_that_cannot_work_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        StreamOptions(name="a", ratio=1, **given)


def option(name, **given):
    return StreamOptions(**{"name": name, "ratio": 1, "batch_gpu": 1, **given})


@pytest.mark.parametrize(
    ("datasets", "options", "settings", "message"),
    [
        ({"a": [1]}, [option("b")], {}, "they must be the same"),
        ([[1], [2]], [option("b")], {}, "a list as long as stream_opts"),
        ({"a": [1]}, {"a": 1}, {}, "stream_opts must be a list of StreamOptions"),
        ([[1], [2]], [option("b"), option("b")], {}, "names of their own"),
        ([[1]], [option("b", ratio=0)], {}, "no stream has a ratio above 0"),
        ([[1]], [option("b", ratio="x")], {}, "the ratio of stream 'b' must be a number"),
        ([[1], [2]], [option("a", is_main=True), option("b", is_main=True)], {}, "is_main may be one stream's"),
        ([[1]], [option("b")], {"mixing": "shaken"}, "mixing must be one of 'no_mixing', 'mix_all', 'custom'"),
        ([[1]], [option("b")], {"schedule": "never"}, "schedule must be one of"),
        ([[1]], [option("b")], {"shuffle_seed": -1}, "shuffle_seed must be an integer >= 0"),
        ([[1]], [option("b")], {"world": 3}, "world must be a penstock.World"),
        (
            [[1], [2]],
            [option("a"), option("b", num_accum_rounds=2)],
            {"mixing": "mix_all"},
            "ranks that draw different streams at a step must stay in step",
        ),
    ],
)
def test_arguments_that_cannot_work_are_refused(datasets, options, settings, message):
    with pytest.raises(ConfigError, match=message):
        MultiStreamDataLoader(datasets, options, **settings)
