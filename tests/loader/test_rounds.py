"""Rounds of a loader: train some batches, validate, go on, through the whole dataset in cycles."""

import copy
import itertools
import json
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import subjects
from penstock.errors import ConfigError, LoaderClosed, SampleError, StateMismatch
from penstock.ledger.chunk_tracker import ChunkTracker
from penstock.loader.loader import StreamingDataLoader
from penstock.types import World

TESTS = Path(__file__).parent.parent


def loader_of(size=10, batch_size=1, round_batches=4, **options):
    options = {"num_workers": 0, **options}
    return StreamingDataLoader(subjects.Fetching(size), batch_size, round_batches=round_batches, **options)


def ids_of(batches):
    return [id_ for batch in batches for id_ in batch["id"].tolist()]


def in_a_fresh_process(jobs):
    done = subprocess.run(
        [sys.executable, str(TESTS / "round_worker.py")],
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class TestRounds:
    def test_five_rounds_of_four_are_two_cycles_of_ten(self):
        loader = loader_of(shuffle=True)
        found = []
        for round_ in loader.rounds(5):
            assert len(round_) == len(loader) == round_.num_batches == 4
            found.append(ids_of(round_))
        assert [len(ids) for ids in found] == [4] * 5
        stream = list(itertools.chain(*found))
        assert sorted(stream[:10]) == sorted(stream[10:]) == list(range(10))
        assert stream[:10] != stream[10:]
        assert (loader.round, loader.cycle, loader.batch_in_round, loader.total_rounds) == (5, 2, 0, 3)

    def test_twenty_five_batches_in_five_rounds_are_every_sample_once(self):
        loader = loader_of(100, 4, 5, shuffle=True, drop_last=True)
        found = [ids_of(round_) for round_ in loader.rounds(5)]
        assert sorted(itertools.chain(*found)) == list(range(100))
        assert {len(ids) for ids in found} == {20}

    def test_rounds_say_which_they_are(self):
        loader = loader_of()
        shown = [(one.number, one.cycle, one.num_batches, len(ids_of(one))) for one in loader.rounds(4)]
        assert shown == [(0, 0, 4, 4), (1, 0, 4, 4), (2, 0, 4, 4), (3, 1, 4, 4)]

    def test_rounds_in_a_list_say_what_the_first_does_and_give_one_after_another(self):
        listed = list(loader_of(shuffle=False).rounds(3))
        assert [(one.number, one.cycle) for one in listed] == [(0, 0)] * 3
        assert [ids_of(one) for one in listed] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1]]

    def test_a_round_left_early_goes_on_in_the_next_one_yielded(self):
        loader = loader_of(shuffle=False)
        found = []
        for round_ in loader.rounds(3):
            for batch in round_:
                found.append((round_.number, batch["id"].item()))
                if batch["id"].item() == 1:
                    break
        assert found == [(0, 0), (0, 1), (0, 2), (0, 3), *((1, id_) for id_ in range(4, 8))]

    def test_shuffling_within_rounds_keeps_their_samples(self):
        loader = loader_of(shuffle="within")
        found = [ids_of(round_) for round_ in loader.rounds(10)]
        for number, ids in enumerate(found):
            assert sorted(ids) == sorted(place % 10 for place in range(4 * number, 4 * number + 4))
        assert any(first != later for first, later in zip(found[:5], found[5:], strict=True))

    def test_iter_moves_nothing(self):
        loader = loader_of(shuffle=True)
        before = loader.state_dict()
        for _ in range(5):
            iter(loader)
        assert loader.state_dict() == before
        next(iter(loader))
        assert loader.batch_in_round == 1

    def test_the_last_batch_ends_the_round_without_anybody_asking_for_more(self):
        loader = loader_of(shuffle=False)
        batches = iter(loader)
        for done in (1, 2, 3):
            next(batches)
            assert (loader.round, loader.batch_in_round, loader.state_dict()["round"]) == (0, done, 0)
        next(batches)
        state = loader.state_dict()
        assert (loader.round, loader.batch_in_round, state["round"], state["batch"]) == (1, 0, 1, 0)
        # Nor does it matter whether the loader is looked at, or the iterator is dropped.
        assert ids_of(loader) == [4, 5, 6, 7]

    def test_the_batch_after_a_cycles_end_comes_of_the_next_cycle(self):
        loader = loader_of(10, 3, 2, shuffle=False)
        found = []
        for round_ in loader.rounds(2):
            for batch in round_:
                found.append((batch["id"].tolist(), loader.batch_info.epoch, loader.batch_info.repeats))
        assert found == [([0, 1, 2], 0, 0), ([3, 4, 5], 0, 0), ([6, 7, 8], 0, 0), ([9, 0, 1], 0, 0)]
        assert loader.state_dict()["epoch"], loader.state_dict()["samples"] == (1, 2)

    @pytest.mark.parametrize("remainder", ["pad", "wrap"])
    def test_a_padded_round_flags_whole_batches_of_repeats(self, remainder):
        loader = loader_of(10, 3, 3, remainder=remainder)
        found = []
        for round_ in loader.rounds(3):
            for batch in round_:
                found.append((batch["id"].tolist(), loader.batch_info.repeats))
        cycle = [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 0, 1], [2, 3, 4], [5, 6, 7]]
        repeats = [0, 0, 0, 2, 3, 3]
        assert found[:6] == list(zip(cycle, repeats, strict=True))
        assert found[6:] == [([0, 1, 2], 0), ([3, 4, 5], 0), ([6, 7, 8], 0)]

    def test_short_rounds_end_with_their_cycle_and_len_says_so_beforehand(self):
        loader = loader_of(10, 1, 4, remainder="short")
        lengths = []
        for _ in range(4):
            lengths.append(len(loader))
            assert len(list(loader)) == lengths[-1]
        assert lengths == [4, 4, 2, 4]

    def test_drop_last_leaves_out_the_incomplete_batch_of_a_short_round(self):
        loader = loader_of(10, 3, 2, remainder="short", drop_last=True)
        assert [ids_of(round_) for round_ in loader.rounds(3)] == [list(range(6)), [6, 7, 8], list(range(6))]

    def test_what_is_left_of_a_cycle_is_dropped_on_request(self):
        loader = loader_of(10, 1, 4, remainder="drop")
        assert [ids_of(round_) for round_ in loader.rounds(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 2, 3]]
        assert loader.total_rounds == 2

    def test_set_round_goes_there_and_begins_an_abandoned_one_anew(self):
        loader = loader_of(10, 1, 4, remainder="short")
        next(iter(loader))
        loader.set_round(0)
        assert ids_of(loader) == [0, 1, 2, 3]
        loader.set_round(5)
        assert (loader.round, loader.cycle, len(loader)) == (5, 1, 2)
        assert ids_of(loader) == [8, 9]
        loader.set_round(2)
        assert ids_of(loader) == [8, 9]

    def test_an_iterator_from_before_a_move_says_that_it_was_overtaken(self):
        loader = loader_of()
        batches = iter(loader)
        next(batches)
        loader.set_round(7)
        with pytest.raises(LoaderClosed, match="overtaken"):
            next(batches)

    def test_len_may_be_asked_before_the_process_group_is_there(self, monkeypatch):
        loader = loader_of(10, 1, 4, shuffle=False)
        assert (len(loader), loader.round, loader.state_dict()["samples"]) == (4, 0, 0)
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert ids_of(loader) == [1, 3, 5, 7]

    def test_a_copy_goes_its_own_way(self):
        loader = loader_of(shuffle=False)
        next(iter(loader))
        for twin in (copy.deepcopy(loader), pickle.loads(pickle.dumps(loader))):
            assert ids_of(twin) == [1, 2, 3]
        assert ids_of(loader) == [1, 2, 3]

    def test_explain_and_repr_say_where_it_stands(self):
        loader = loader_of(shuffle=True)
        ids_of(loader)
        assert "rounds of 4 batches, boundary carry; next: batch 0 of round 1, cycle 0" in loader.explain()
        assert "at sample 4 of epoch 0; batch 0 of round 1" in repr(loader)
        assert "shuffled within rounds" in repr(loader_of(shuffle="within"))


class TestWorkers:
    def test_threads_and_their_lead_survive_rounds_and_cycles(self):
        names = []

        class Watched(subjects.Fetching):
            def fetch(self, ids):
                names.append(threading.current_thread())
                return super().fetch(ids)

        with StreamingDataLoader(
            Watched(10), 1, round_batches=4, num_workers=2, worker_type="thread", prefetch=3, shuffle=False
        ) as loader:
            found = [ids_of(round_) for round_ in loader.rounds(6)]
        assert [id_ for ids in found for id_ in ids] == [place % 10 for place in range(24)]
        assert len(set(names)) <= 2
        # Made once each, with at most the three that were ahead in the end: nothing was thrown away in between.
        assert 24 <= len(names) <= 27

    def test_worker_processes_are_not_started_again(self):
        with StreamingDataLoader(
            subjects.Fetching(10), 1, round_batches=4, num_workers=2, worker_type="process", transform=subjects.pid_of
        ) as loader:
            pids = [{batch["pid"].item() for batch in round_} for round_ in loader.rounds(5)]
        assert len(set.union(*pids)) <= 2
        assert os.getpid() not in set.union(*pids)

    @pytest.mark.parametrize("workers", [0, 2])
    def test_what_comes_is_hinted_once_through_all_rounds(self, workers):
        dataset = subjects.Remote(400)
        with StreamingDataLoader(
            dataset, 4, round_batches=30, shuffle=True, num_workers=workers, worker_type="thread"
        ) as loader:
            read = [place for round_ in loader.rounds(9) for batch in round_ for place in batch["id"].tolist()]
            assert len(read) == 4 * 270
        # Across all ends of rounds and cycles, and nothing twice; threads may be ahead of their hints by a little.
        assert len(dataset.hinted) > 4 * 270 - 100
        assert set(dataset.hinted.values()) == {1}

    @pytest.mark.parametrize("remainder", ["carry", "short", "pad", "drop"])
    def test_no_lane_changes_a_batch(self, remainder):
        def read(**how):
            with loader_of(23, 2, 3, shuffle=True, remainder=remainder, **how) as loader:
                return [[batch["id"].tolist() for batch in round_] for round_ in loader.rounds(9)]

        expected = read()
        assert read(num_workers=2, worker_type="thread", prefetch=5) == expected
        assert read(num_workers=1, worker_type="process", prefetch=2) == expected


class TestResuming:
    def test_a_fresh_process_goes_on_after_every_batch(self):
        jobs, expected = [], []
        for shuffle, remainder in itertools.product([True, "within"], ["carry", "short", "pad", "drop"]):
            options = {"batch_size": 2, "round_batches": 3, "remainder": remainder, "shuffle": shuffle}
            reference = [ids_of(round_) for round_ in without_repeats(loader_of(13, **options), 6)]
            loader = loader_of(13, **options)
            for number, round_ in enumerate(loader.rounds(5)):
                done = 0
                batches = iter(round_)
                for step in range(len(round_)):
                    state = json.loads(json.dumps(loader.state_dict()))
                    assert (state["round"], state["batch"]) == (number, step)
                    jobs.append({"size": 13, "options": options, "state": state, "ranks": 1, "rounds": 2})
                    expected.append([[number, step, len(round_)], reference[number][done:], reference[number + 1]])
                    done += len(next(batches)["id"]) - loader.batch_info.repeats
        assert in_a_fresh_process(jobs) == expected

    def test_another_world_goes_on_at_the_position_and_keeps_the_batches_left(self):
        options = {"batch_size": 2, "round_batches": 5, "shuffle": True}
        stream = ids_of(itertools.chain(*loader_of(31, **options).rounds(20)))
        saved = [loader_of(31, **options, world=World(dp_rank=rank, dp_size=2)) for rank in range(2)]
        for loader in saved:
            batches = itertools.chain.from_iterable(loader.rounds())
            for _ in range(5 + 3):
                next(batches)
        states = [loader.state_dict() for loader in saved]
        assert states[0] == states[1]
        worlds = range(1, 5)
        jobs = [{"size": 31, "options": options, "state": states[0], "ranks": ranks, "rounds": 3} for ranks in worlds]
        for ranks, (where, *rounds) in zip(worlds, in_a_fresh_process(jobs), strict=True):
            assert where == [1, 3, 5]
            assert [len(ids) for ids in rounds] == [2 * 2 * ranks, 5 * 2 * ranks, 5 * 2 * ranks]
            found = list(itertools.chain(*rounds))
            assert found == stream[8 * 4 : 8 * 4 + len(found)]

    @given(
        size=st.integers(1, 40),
        before=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 6)),
        after=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 6)),
        steps=st.integers(0, 25),
    )
    @settings(deadline=None, max_examples=40)
    def test_no_sample_is_lost_or_moved_whatever_changes(self, size, before, after, steps):
        def world_of(ranks, batch_size, round_batches):
            return [
                loader_of(size, batch_size, round_batches, shuffle=True, world=World(dp_rank=rank, dp_size=ranks))
                for rank in range(ranks)
            ]

        def read(loaders, count):
            streams = [itertools.islice(itertools.chain.from_iterable(one.rounds()), count) for one in loaders]
            return [
                id_
                for batches in zip(*streams, strict=True)
                for row in zip(*(batch["id"].tolist() for batch in batches), strict=True)
                for id_ in row
            ]

        stream = read(world_of(1, 1, 7), 600)
        first = world_of(*before)
        found = read(first, steps)
        state = first[-1].state_dict()
        second = world_of(*after)
        for loader in second:
            loader.load_state_dict(json.loads(json.dumps(state)))
        number, done = divmod(steps, before[2])
        assert (second[0].round, second[0].batch_in_round) == (number, done)
        assert len(second[0]) == (before[2] if done else after[2])
        found += read(second, 12)
        assert found == stream[: len(found)]

    def test_a_state_is_small_and_the_same_on_every_rank(self):
        states = []
        for rank in range(2):
            loader = loader_of(10**15, 4, 1000, shuffle=True, world=World(dp_rank=rank, dp_size=2))
            loader.set_round(10**14 + 7)
            next(iter(loader))
            states.append(loader.state_dict())
        assert states[0] == states[1]
        assert len(json.dumps(states[0])) < 1000
        assert (states[0]["round"], states[0]["batch"], states[0]["round_batches"]) == (10**14 + 7, 1, 1000)

    def test_a_state_without_rounds_begins_one_where_it_stands(self):
        plain = StreamingDataLoader(subjects.Fetching(10), 3, shuffle=True, num_workers=0)
        order = ids_of(plain)
        next(iter(plain))
        state = plain.state_dict()
        loader = loader_of(10, 2, 2, shuffle=True)
        loader.load_state_dict(state)
        assert (loader.round, loader.batch_in_round, loader.cycle) == (0, 0, 1)
        whole = loader_of(10, 1, 10, shuffle=True)
        first, second = (ids_of(round_) for round_ in whole.rounds(2))
        assert first == order
        assert ids_of(loader) == second[3:7]

    def test_a_loader_without_rounds_goes_on_from_a_state_with_them(self):
        loader = loader_of(10, 1, 4, shuffle=True)
        second = ids_of(itertools.chain(*loader.rounds(5)))[10:]
        loader.set_round(3)
        next(iter(loader))
        plain = StreamingDataLoader(subjects.Fetching(10), 1, shuffle=True, num_workers=0)
        plain.load_state_dict(loader.state_dict())
        assert ids_of(plain) == second[3:]

    def test_a_padded_rounds_repeats_are_gone_on_with_or_left(self):
        loader = loader_of(10, 3, 3, remainder="pad")
        stream = itertools.chain.from_iterable(loader.rounds())
        for _ in range(5):
            next(stream)
        state = loader.state_dict()
        assert (state["epoch"], state["samples"], state["repeats"]) == (0, 10, 5)
        twin = loader_of(10, 3, 3, remainder="pad")
        twin.load_state_dict(state)
        assert ids_of(twin) == [5, 6, 7]
        assert ids_of(twin)[:3] == [0, 1, 2]
        plain = StreamingDataLoader(subjects.Fetching(10), 3, num_workers=0)
        plain.load_state_dict(state)
        assert ids_of(plain) == []
        assert ids_of(plain) == list(range(10))

    @pytest.mark.parametrize("shuffle", [False, True])
    @pytest.mark.parametrize(("size", "batch_size", "round_batches"), [(4, 2, 3), (6, 1, 4), (10, 3, 3), (8, 2, 4)])
    def test_a_padded_cycle_goes_on_from_everywhere_its_datasets_end_too(
        self, size, batch_size, round_batches, shuffle
    ):
        options = {"remainder": "pad", "shuffle": shuffle}
        stream = []
        loader = loader_of(size, batch_size, round_batches, **options)
        for round_ in loader.rounds(6):
            stream += [(round_.number, ids_of([batch])) for batch in round_]
        for done in range(4 * round_batches):
            loader = loader_of(size, batch_size, round_batches, **options)
            for _ in itertools.islice(itertools.chain.from_iterable(loader.rounds()), done):
                pass
            twin = loader_of(size, batch_size, round_batches, **options)
            twin.load_state_dict(json.loads(json.dumps(loader.state_dict())))
            rest = [(round_.number, ids_of([batch])) for round_ in twin.rounds(2) for batch in round_]
            assert rest == stream[done : done + len(rest)]

    def test_a_padded_cycle_cut_in_other_rounds_goes_on_at_its_datasets_end(self):
        first = loader_of(8, 2, 2, shuffle=False)
        for _ in itertools.islice(itertools.chain.from_iterable(first.rounds()), 3):
            pass
        loader = loader_of(8, 2, 3, shuffle=False, remainder="pad")
        loader.load_state_dict(first.state_dict())
        assert ids_of(loader) == [6, 7]
        twin = loader_of(8, 2, 3, shuffle=False, remainder="pad")
        twin.load_state_dict(loader.state_dict())
        assert [ids_of(twin), ids_of(twin)] == [ids_of(loader), ids_of(loader)] == [[0, 1, 2, 3], [0, 1, 2, 3, 4, 5]]

    def test_a_round_under_way_keeps_its_length_and_the_next_has_the_new_one(self):
        loader = loader_of(10, 1, 4, shuffle=False)
        next(iter(loader))
        other = loader_of(10, 1, 7, shuffle=False)
        other.load_state_dict(loader.state_dict())
        assert [len(other), ids_of(other), len(other), ids_of(other)] == [4, [1, 2, 3], 7, [4, 5, 6, 7, 8, 9, 0]]

    def test_samples_shuffled_within_rounds_cannot_change_rounds(self):
        loader = loader_of(20, 2, 4, shuffle="within")
        next(iter(loader))
        state = loader.state_dict()
        for changed in ({"round_batches": 5}, {"batch_size": 4, "round_batches": 2}, {"world": World(dp_size=2)}):
            other = loader_of(**{"size": 20, "batch_size": 2, "round_batches": 4, "shuffle": "within", **changed})
            with pytest.raises(StateMismatch, match="rounds stay what they were"):
                other.load_state_dict(state)
        halves = loader_of(20, None, 4, global_batch_size=2, shuffle="within", world=World(dp_rank=1, dp_size=2))
        halves.load_state_dict(state)
        rest = ids_of(loader)
        assert ids_of(halves) == rest[1::2]

    def test_a_state_of_other_data_or_an_edited_one_is_refused(self):
        loader = loader_of()
        next(iter(loader))
        state = loader.state_dict()
        with pytest.raises(StateMismatch, match="num_samples is 10 in the state, 11 here"):
            loader_of(11).load_state_dict(state)
        for edited in ({"batch": 4}, {"batch": -1}, {"round": "2"}, {"round_batches": None}, {"repeats": True}):
            with pytest.raises(StateMismatch, match="edited"):
                loader_of().load_state_dict({**state, **edited})

    def test_a_state_taken_by_another_thread_is_of_one_moment(self):
        loader = loader_of(10, 1, 4, shuffle=True)
        wrong, over = [], threading.Event()

        def watch():
            while not over.is_set():
                state = loader.state_dict()
                if 4 * state["round"] + state["batch"] != 10 * state["epoch"] + state["samples"]:
                    wrong.append(state)

        thread = threading.Thread(target=watch)
        thread.start()
        for round_ in loader.rounds(400):
            list(round_)
        over.set()
        thread.join()
        assert wrong == []
        assert (loader.round, loader.cycle) == (400, 160)

    def test_a_sample_that_fails_does_so_again_and_its_round_goes_on_behind_it(self):
        dataset = subjects.Broken(10, bad=(5,))
        loader = StreamingDataLoader(dataset, 1, round_batches=4, num_workers=0)
        assert ids_of(loader) == [0, 1, 2, 3]
        for _ in range(2):
            batches = iter(loader)
            if loader.batch_in_round == 0:
                next(batches)
            with pytest.raises(SampleError, match="sample 5"):
                next(batches)
            assert (loader.round, loader.batch_in_round) == (1, 1)
        dataset.bad = ()
        assert ids_of(loader) == [5, 6, 7]


class TestPolicy:
    def test_it_is_told_of_the_rounds_before_and_asked_once(self):
        asked = []

        def policy(history):
            asked.append([(one.number, one.num_batches, one.metrics) for one in history])
            return 2 + len(history)

        loader = loader_of(10, 1, policy, shuffle=False)
        found = []
        for round_ in loader.rounds(3):
            assert len(round_) == len(loader)
            found.append(ids_of(round_))
            loader.report(loss=1 / (1 + round_.number))
        assert found == [[0, 1], [2, 3, 4], [5, 6, 7, 8]]
        first, second = (0, 2, {"loss": 1.0}), (1, 3, {"loss": 0.5})
        assert asked == [[], [first], [first, second]]

    def test_its_answer_is_resumed_and_so_is_what_it_was_told(self):
        def never(history):
            raise AssertionError("asked again")

        loader = loader_of(10, 1, lambda history: 3 + len(history), shuffle=True)
        ids_of(loader)
        loader.report(loss=1 / 3)
        next(iter(loader))
        state = json.loads(json.dumps(loader.state_dict()))
        assert (state["round"], state["batch"], state["round_batches"]) == (1, 1, 4)
        twin = loader_of(10, 1, never, shuffle=True)
        twin.load_state_dict(state)
        assert len(twin) == 4
        assert ids_of(twin) == ids_of(loader)
        told = []
        third = loader_of(10, 1, lambda history: told.extend(history) or 5, shuffle=True)
        third.load_state_dict(twin.state_dict())
        assert len(third) == 5
        assert [(one.number, one.num_batches, one.metrics) for one in told] == [
            (0, 3, {"loss": 0.333333}),
            (1, 4, None),
        ]

    def test_a_state_between_rounds_leaves_the_asking_to_who_resumes(self):
        loader = loader_of(10, 1, lambda history: 3)
        ids_of(loader)
        state = loader.state_dict()
        assert state["round_batches"] is None
        twin = loader_of(10, 1, lambda history: 6)
        twin.load_state_dict(state)
        assert len(twin) == 6

    def test_a_state_that_was_saved_before_a_rounds_report_says_that_it_is_wanting(self):
        """Each state of a run, resumed by whoever heeds it, leads to the lengths of the run itself."""

        def policy(history):
            return 2 if not history or history[-1].metrics is None else 2 + int(history[-1].metrics["loss"])

        def train(loader, states):
            lengths = []
            if loader.awaits_report:
                loader.report(loss=loader.round)
            while loader.round < 4:
                lengths.append(len(loader))
                for _ in loader:
                    states.append(loader.state_dict())
                assert loader.awaits_report
                loader.report(loss=loader.round)
                assert not loader.awaits_report
                states.append(loader.state_dict())
            return lengths

        states = []
        whole = train(loader_of(10, 1, policy), states)
        assert whole == [2, 3, 4, 5]
        for state in json.loads(json.dumps(states)):
            twin = loader_of(10, 1, policy)
            assert not twin.awaits_report
            twin.load_state_dict(state)
            assert train(twin, []) == whole[state["round"] :]
        assert not loader_of(10, 1, 4).awaits_report

    def test_it_takes_the_history_and_nothing_else(self):
        def two(history, further):
            return 2

        for policy in (lambda: 3, two, lambda *, history: 3):
            with pytest.raises(ConfigError, match="is called with one argument, the history of rounds"):
                loader_of(round_batches=policy)
        for policy in (lambda history, least=2: least, lambda *told: 2, len):
            loader_of(round_batches=policy)

    def test_what_is_not_finite_is_kept_from_it_and_ends_nothing(self):
        told = []
        loader = loader_of(10, 1, lambda history: told.append([one.metrics for one in history]) or 2)
        for loss in (0.5, float("nan"), float("-inf")):
            ids_of(loader)
            if loss == 0.5:
                loader.report(loss=loss)
                continue
            with pytest.warns(UserWarning, match=rf"'loss': {loss}.* not finite"):
                loader.report(loss=loss)
            assert not loader.awaits_report
        with pytest.warns(UserWarning, match="'loss': inf"):
            loader.report(loss=float("inf"), accuracy=0.25)
        state = json.loads(json.dumps(loader.state_dict(), allow_nan=False))
        assert len(loader) == 2
        assert told[-1] == [{"loss": 0.5}, None, {"accuracy": 0.25}]
        twin = loader_of(10, 1, lambda history: told.append([one.metrics for one in history]) or 2)
        twin.load_state_dict(state)
        assert (len(twin), told[-1]) == (2, told[-2])

    def test_the_state_stays_small_however_long_it_goes_on(self):
        loader = loader_of(10**12, 1, lambda history: 1000 - len(history))
        for _ in range(12):
            list(loader)
            loader.report(val_loss=1.23456789, accuracy=0.000123456)
        assert len(json.dumps(loader.state_dict())) < 1000

    def test_answers_and_reports_that_cannot_work_are_refused(self):
        for answer in (0, -3, 2.0, None, True, sys.maxsize + 1):
            with pytest.raises(ConfigError, match="as the policy gives them"):
                len(loader_of(round_batches=lambda history, answer=answer: answer))
        loader = loader_of(round_batches=lambda history: 2)
        with pytest.raises(ConfigError, match="no round is complete"):
            loader.report(loss=1)
        ids_of(loader)
        with pytest.raises(ConfigError, match="a number"):
            loader.report(loss="high")
        with pytest.raises(ConfigError, match="bytes of JSON"):
            loader.report(**{f"metric_{number}": number for number in range(9)})
        with pytest.raises(ConfigError, match="no round's place is known"):
            loader.set_round(2)
        with pytest.raises(ConfigError, match="nothing would read"):
            loader_of().report(loss=1)
        for options in ({"remainder": "pad"}, {"remainder": "drop"}, {"shuffle": "within"}):
            with pytest.raises(ConfigError, match="answers that nobody has yet"):
                loader_of(round_batches=lambda history: 2, **options)


class TestClaims:
    def test_rounds_of_two_processes_complete_the_dataset_together(self, tmp_path):
        script = (
            "import sys, json, subjects\n"
            "from penstock import ChunkTracker, StreamingDataLoader\n"
            "tracker = ChunkTracker(sys.argv[1], 'brain', 'data')\n"
            "loader = StreamingDataLoader(subjects.Fetching(60), 2, assignment='claim', tracker=tracker,\n"
            "    dataset_chunk_size=4, round_batches=3, num_workers=0)\n"
            "print('ready', flush=True)\n"
            "for line in sys.stdin:\n"
            "    (round_,) = loader.rounds(1)\n"
            "    ids = [id_ for batch in round_ for id_ in batch['id'].tolist()]\n"
            "    print(json.dumps([round_.number, len(round_), ids]), flush=True)\n"
            "loader.close(); tracker.close()\n"
        )
        command = [sys.executable, "-c", script, str(tmp_path / "ledger.db")]
        workers = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=TESTS)
            for _ in range(2)
        ]
        try:
            assert [worker.stdout.readline() for worker in workers] == ["ready\n"] * 2
            found = []
            for number in range(5):
                for worker in workers:
                    worker.stdin.write("go\n")
                    worker.stdin.flush()
                for worker in workers:
                    where, length, ids = json.loads(worker.stdout.readline())
                    assert (where, length, len(ids)) == (number, 3, 6)
                    found += ids
            assert sorted(found) == list(range(60))
        finally:
            for worker in workers:
                worker.communicate(timeout=60)
        assert [worker.returncode for worker in workers] == [0, 0]

    def test_what_rounds_by_claims_cannot_do_is_said(self, tmp_path):
        with ChunkTracker(tmp_path / "ledger.db", "brain", "data") as tracker:
            claims = {"assignment": "claim", "tracker": tracker}
            loader = loader_of(**claims)
            assert (len(loader), loader.round, loader.cycle) == (4, 0, 0)
            for ask in (lambda: loader.set_round(1), lambda: loader.total_rounds, lambda: loader.batch_in_round):
                with pytest.raises(ConfigError, match="rounds by plan"):
                    ask()
            with pytest.raises(ConfigError, match="contradict each other"):
                loader_of(**claims, stop_after=7)
            with pytest.raises(ConfigError, match="of one length for every process"):
                loader_of(round_batches=lambda history: 1, **claims)


class TestArguments:
    @pytest.mark.parametrize("value", [0, -1, 1.5, 4.0, True, "4", 2**63])
    def test_lengths_that_are_no_positive_integer_are_refused(self, value):
        with pytest.raises(ConfigError, match="round_batches"):
            loader_of(round_batches=value)

    def test_what_needs_rounds_says_so(self):
        loader = StreamingDataLoader(subjects.Fetching(10), 2, num_workers=0)
        for ask in (
            loader.rounds,
            lambda: loader.round,
            lambda: loader.cycle,
            lambda: loader.total_rounds,
            lambda: loader.batch_in_round,
            lambda: loader.set_round(1),
            lambda: loader.report(loss=1),
        ):
            with pytest.raises(ConfigError, match="round_batches="):
                ask()
        with pytest.raises(ConfigError, match="round_batches="):
            StreamingDataLoader(subjects.Fetching(10), 2, shuffle="within")

    def test_rounds_too_far_to_be_counted_are_refused_where_they_are_asked_for(self):
        loader = loader_of(round_batches=2**58, batch_size=8, shuffle="within")
        before = loader.state_dict()
        with pytest.raises(ConfigError, match="counted up to"):
            loader.set_round(10**30)
        assert loader.state_dict() == before

    def test_epochs_follow_by_themselves(self):
        loader = loader_of()
        loader.set_epoch(0)
        with pytest.raises(ConfigError, match=r"set_epoch\(3\)"):
            loader.set_epoch(3)

    def test_rounds_that_cannot_be_are_refused(self):
        with pytest.raises(ConfigError, match="there would be none"):
            len(loader_of(10, 1, 11, remainder="drop"))
        with pytest.raises(ConfigError, match="remainder, with rounds"):
            loader_of(remainder="cut")
        with pytest.raises(ConfigError, match="length_bucket"):
            loader_of(shuffle="within", length_bucket=2)
        with pytest.raises(ConfigError, match="round_batches must be"):
            next(iter(loader_of(round_batches=2**62, batch_size=4)))


def without_repeats(loader, count):
    """Read rounds with flagged repeats left out."""
    for round_ in loader.rounds(count):
        kept = []
        for batch in round_:
            ids = batch["id"]
            kept.append({"id": ids[: len(ids) - loader.batch_info.repeats]})
        yield kept


def test_an_order_far_into_the_stream_costs_what_it_does_at_its_start():
    loader = loader_of(10**9, 8, 1000, shuffle="within", global_batch_size=None)
    loader.set_round(10**13)
    batch = next(iter(loader))["id"].numpy()
    places = np.arange(8) + 10**13 * 8000
    assert set(batch // 8000) == set(places % 10**9 // 8000)


class TestWeights:
    def test_heavy_chunks_come_more_often_and_nothing_is_given_up(self):
        loader = loader_of(100, 5, 10, shuffle=True, chunk_weights=[0, 0, 0, 1], weight_floor=0.2)
        ids = ids_of(itertools.chain(*loader.rounds(12)))
        counts = np.bincount(ids, minlength=100)
        # 0.2 for a weight of 0, and 0.2 + 0.8 · 4 for the one that has it all; six cycles of 100 were read.
        assert counts[:75].sum() == pytest.approx(6 * 75 * 0.2, abs=12)
        assert counts[75:].sum() == pytest.approx(6 * 25 * 3.4, abs=4)
        assert counts.min() >= 1

    def test_ranks_and_resuming_are_as_ever(self):
        options = {"size": 50, "shuffle": True, "chunk_weights": (1, 3), "round_batches": 7}
        alone = loader_of(**options, batch_size=4)
        stream = ids_of(itertools.chain(*alone.rounds(10)))
        saved = loader_of(**options, batch_size=4)
        batches = itertools.chain.from_iterable(saved.rounds())
        for _ in range(16):
            next(batches)
        state = json.loads(json.dumps(saved.state_dict()))
        pair = [loader_of(**options, batch_size=2, world=World(dp_rank=rank, dp_size=2)) for rank in range(2)]
        for loader in pair:
            loader.load_state_dict(state)
        dealt = [id_ for row in zip(*(ids_of(loader) for loader in pair), strict=True) for id_ in row]
        assert dealt == stream[64 : 64 + len(dealt)]
        assert len(dealt) == 4 * 5
        with pytest.raises(StateMismatch, match="order is"):
            loader_of(**{**options, "chunk_weights": (1, 4)}, batch_size=4).load_state_dict(state)

    def test_samples_that_come_again_have_randomness_of_their_own(self):
        loader = loader_of(20, 20, 1, chunk_weights=[9, 1], weight_floor=0.1, transform=subjects.jitter)
        batch = next(iter(loader))
        rows = list(zip(batch["id"].tolist(), batch["noise"].tolist(), strict=True))
        assert len({id_ for id_, _ in rows}) < len(rows) == len(set(rows))

    def test_what_has_no_meaning_is_refused(self):
        for options in ({"shuffle": "window"}, {"length_bucket": 4}, {"shuffle": "within"}):
            with pytest.raises(ConfigError, match="chunk_weights"):
                loader_of(chunk_weights=[1, 2], **options)
        with pytest.raises(ConfigError, match="weight_floor"):
            loader_of(chunk_weights=[1, 2], weight_floor=0)
