"""Loading by claims: each chunk once an epoch, whoever trains it, and nothing left out."""

import copy
import itertools
import json
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

import subjects
from penstock.errors import ConfigError, LedgerError, LoaderClosed, LoaderTimeout, StateMismatch
from penstock.ledger.chunk_tracker import ChunkTracker
from penstock.loader.loader import StreamingDataLoader
from penstock.types import World

SIZES = [25, 15, 7]
CHUNK = 10
ALL = list(range(sum(SIZES)))


@pytest.fixture
def open_tracker(tmp_path):
    """Open trackers of one ledger; all are closed at the end."""
    trackers = []

    def open_(lease_s=30.0, name="ledger.db"):
        trackers.append(ChunkTracker(tmp_path / name, "brain", "numbers", lease_s=lease_s))
        return trackers[-1]

    yield open_
    for tracker in trackers:
        tracker.close()


def claiming(tracker, **options):
    return StreamingDataLoader(
        subjects.Blocks(SIZES),
        **{"batch_size": 4, "dataset_chunk_size": CHUNK, "num_workers": 0, **options},
        assignment="claim",
        tracker=tracker,
    )


def ids_of(batches):
    return [batch["id"].tolist() for batch in batches]


def flat(batches):
    return [id_ for batch in batches for id_ in batch]


def chunk_of(id_):
    starts = [0, *itertools.accumulate(SIZES)]
    block = max(b for b, start in enumerate(starts) if start <= id_)
    return block, (id_ - starts[block]) // CHUNK


LANES = [(0, "thread"), (2, "thread"), (1, "process")]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(("num_workers", "worker_type"), LANES)
def test_one_process_alone_gets_every_sample_once_in_batches_that_cross_no_chunk(
    open_tracker, num_workers, worker_type, shuffle
):
    options = {"shuffle": shuffle, "seed": 5}
    expected = ids_of(claiming(open_tracker(name="other.db"), **options))
    with claiming(open_tracker(), num_workers=num_workers, worker_type=worker_type, **options) as loader:
        batches = ids_of(loader)
    assert sorted(flat(batches)) == ALL
    assert all(len({chunk_of(id_) for id_ in batch}) == 1 for batch in batches)
    assert batches == expected
    assert (flat(batches) != ALL) is shuffle


def test_every_epoch_grants_all_chunks_again_and_shuffles_them_anew(open_tracker):
    loader = claiming(open_tracker(), shuffle=True)
    epochs = [flat(ids_of(loader)) for _ in range(3)]
    assert all(sorted(ids) == ALL for ids in epochs)
    assert len({tuple(ids) for ids in epochs}) == 3
    assert loader.epoch == 3
    assert loader.batch_info.epoch == 2


def test_counting_by_the_loaders_epoch_trains_as_many_as_one_means(open_tracker):
    loader, seen = claiming(open_tracker()), []
    while loader.epoch < 2:
        seen += flat(ids_of(loader))
    assert sorted(seen) == sorted(ALL * 2)


def test_loaders_of_one_ledger_share_an_epoch_without_a_sample_twice(open_tracker):
    # All have begun before any goes on: one that came when all was done would begin the next epoch.
    begun = threading.Barrier(3)

    def read(loader):
        batches = iter(loader)
        first = next(batches)
        begun.wait(60)
        return ids_of([first, *batches])

    with ThreadPoolExecutor(3) as pool:
        shares = list(pool.map(read, [claiming(open_tracker()) for _ in range(3)]))
    assert sorted(flat(batch for share in shares for batch in share)) == ALL


@pytest.mark.parametrize(("num_workers", "worker_type"), LANES)
def test_after_a_break_only_the_batch_that_was_in_hand_comes_again(open_tracker, num_workers, worker_type):
    with claiming(open_tracker(), num_workers=num_workers, worker_type=worker_type, shuffle=True) as loader:
        before = list(itertools.islice(ids_of_each(loader), 4))
        after = ids_of(loader)
    counts = Counter(flat(before) + flat(after))
    assert sorted(counts) == ALL
    assert sorted(id_ for id_, count in counts.items() if count == 2) == sorted(before[-1])
    assert max(counts.values()) == 2


def ids_of_each(loader):
    for batch in loader:
        yield batch["id"].tolist()


@pytest.mark.parametrize(("num_workers", "worker_type"), LANES[:2])
def test_an_iterator_that_another_overtakes_holds_nothing(open_tracker, num_workers, worker_type):
    with claiming(open_tracker(), num_workers=num_workers, worker_type=worker_type, timeout=1) as loader:
        kept = iter(loader)
        next(kept)
        assert sorted(flat(ids_of(loader))) == ALL
        with pytest.raises(LoaderClosed, match="overtaken"):
            next(kept)


@pytest.mark.parametrize("trained", [1, 3, 6, 9])
@pytest.mark.parametrize(("num_workers", "worker_type"), LANES[:2])
def test_of_a_chunk_that_was_lost_nothing_prepared_is_handed_out_though_it_is_claimed_anew(
    open_tracker, num_workers, worker_type, trained
):
    tracker = open_tracker()
    with claiming(tracker, batch_size=1, num_workers=num_workers, worker_type=worker_type, prefetch=4) as loader:
        batches = iter(loader)
        for _ in range(trained):
            next(batches)
        open_tracker().reset_for_iterate()
        # Leases are renewed, and so their end is found out.
        loader.state_dict()
        with pytest.warns(RuntimeWarning, match="lease of chunk . of block 0 ended"):
            rest = flat(ids_of(batches))
        assert rest == ALL
        assert tracker.get_progress_stats()["total_chunks_trained"] == 6


def test_a_closed_loader_holds_nothing_though_its_iterator_is_kept(open_tracker):
    loader = claiming(open_tracker())
    kept = iter(loader)
    trained = next(kept)["id"].tolist()
    next(kept)
    loader.close()
    assert sorted(trained + flat(ids_of(claiming(open_tracker(), timeout=1)))) == ALL
    del kept


@pytest.mark.parametrize("chunk", [0, sum(-(-size // CHUNK) for size in SIZES) - 1])
@pytest.mark.parametrize(("num_workers", "worker_type"), LANES[:2])
def test_a_chunk_given_back_at_its_end_is_complete_and_the_others_are_read_whole(
    open_tracker, chunk, num_workers, worker_type
):
    tracker = open_tracker()
    with claiming(tracker, num_workers=num_workers, worker_type=worker_type) as loader:
        claims = [tracker.claim([3, 2, 1]) for _ in range(6)]
        done = [id_ for id_ in ALL if chunk_of(id_) == (claims[chunk].block_id, claims[chunk].chunk_id)]
        for claim in claims:
            tracker.release(claim, len(done) if claim is claims[chunk] else 0)
        assert sorted(flat(ids_of(loader)) + done) == ALL


def test_more_trained_samples_than_a_chunk_has_are_another_chunk_sizes(open_tracker):
    tracker = open_tracker()
    tracker.release(tracker.claim([3, 2, 1]), CHUNK + 1)
    with pytest.raises(LedgerError, match="11 samples of chunk 0 of block 0 are trained, but it has 10"):
        next(iter(claiming(tracker)))


def test_what_one_process_gave_up_another_goes_on_with_at_its_offset(open_tracker):
    begun = iter(claiming(open_tracker()))
    assert [next(begun)["id"].tolist() for _ in range(2)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    begun.close()
    assert ids_of(itertools.islice(claiming(open_tracker()), 2)) == [[4, 5, 6, 7], [8, 9]]


def test_an_iteration_can_end_after_a_block(open_tracker):
    loader = claiming(open_tracker(), stop_after="block")
    assert [sorted(flat(ids_of(loader))) for _ in range(4)] == [ALL[:25], ALL[25:40], ALL[40:], ALL[:25]]


def test_an_iteration_can_end_after_so_many_batches_and_go_through_epochs(open_tracker):
    loader = claiming(open_tracker(), stop_after=20)
    batches = ids_of(loader)
    per_epoch = len(ids_of(claiming(open_tracker(name="other.db"))))
    assert len(batches) == 20
    assert sorted(flat(batches[:per_epoch])) == ALL
    assert batches[per_epoch:] == batches[: 20 - per_epoch]
    # The last batch counts as trained, since the next one was asked for: nothing of it comes again.
    assert ids_of(loader)[0] not in batches[per_epoch:]


@pytest.mark.parametrize(("num_workers", "worker_type"), [(0, "thread"), (2, "thread")])
def test_a_round_ends_with_its_last_batch_and_one_that_was_left_is_gone_on_with(open_tracker, num_workers, worker_type):
    loader = claiming(open_tracker(), round_batches=5, num_workers=num_workers, worker_type=worker_type)
    numbers = []
    for round_ in loader.rounds(2):
        for _ in itertools.islice(round_, len(round_)):
            numbers.append(loader.round)
    assert numbers == [0, 0, 0, 0, 1, 1, 1, 1, 1, 2]
    # The batch in hand comes again, but it has been handed out: ranks of a group stay in step.
    assert len(list(itertools.islice(loader, 2))) == 2
    assert (loader.round, len(list(copy.copy(loader))), loader.round) == (2, 3, 2)
    state = loader.state_dict()
    assert (len(list(loader)), loader.round) == (3, 3)
    assert (len(list(loader)), loader.round) == (5, 4)
    next(iter(loader))
    loader.load_state_dict(state)
    assert (len(list(loader)), loader.round) == (5, 5)


def test_an_iteration_need_not_end(open_tracker):
    loader = claiming(open_tracker(), stop_after=None)
    batches = ids_of(itertools.islice(loader, 100))
    counts = Counter(flat(batches))
    assert set(counts) == set(ALL)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_dropped_remainders_are_those_of_the_chunks_and_complete_the_epoch_all_the_same(open_tracker):
    tracker = open_tracker()
    batches = ids_of(claiming(tracker, drop_last=True))
    assert {len(batch) for batch in batches} == {4}
    assert len(batches) == 2 + 2 + 1 + 2 + 1 + 1
    assert tracker.is_epoch_complete([3, 2, 1])


def test_a_chunk_is_complete_when_the_batch_after_its_last_is_asked_for(open_tracker):
    tracker = open_tracker()
    batches = iter(claiming(tracker))
    for _ in range(3):
        next(batches)
    assert not tracker.is_chunk_trained(0, 0)
    next(batches)
    assert tracker.is_chunk_trained(0, 0)


def test_a_restored_state_opens_again_what_was_completed_after_it(open_tracker):
    loader = claiming(open_tracker())
    batches = iter(loader)
    for _ in range(5):
        next(batches)
    state = loader.state_dict()
    assert sorted(flat(ids_of(batches))) == ALL[18:]
    again = claiming(open_tracker())
    again.load_state_dict(state)
    # The chunk of ten that was complete stays so; the one begun goes on after the batch in the trainer's hands.
    assert ids_of(itertools.islice(again, 1)) == [[18, 19]]
    again.load_state_dict(json.loads(json.dumps(state)))
    assert sorted(flat(ids_of(again))) == ALL[18:]


@pytest.mark.parametrize("batches", range(1, 14))
@pytest.mark.parametrize("left", [False, True])
def test_from_a_state_nothing_comes_again_and_nothing_is_left_out_wherever_it_was_saved(open_tracker, batches, left):
    loader = claiming(open_tracker(), shuffle=True)
    steps = iter(loader)
    seen = flat(ids_of(itertools.islice(steps, batches)))
    if left:
        steps.close()
    state = loader.state_dict()
    assert len(json.dumps(state)) < 1000
    if not left:
        list(steps)
    again = claiming(open_tracker(), shuffle=True)
    again.load_state_dict(state)
    assert sorted(seen + flat(ids_of(again))) == ALL


def test_a_state_holds_what_several_loaders_had_at_once(open_tracker):
    loaders = [claiming(open_tracker(), world=World(dp_rank=rank, dp_size=3), uneven=True) for rank in range(3)]
    running = [iter(loader) for loader in loaders]
    seen = flat(ids_of(next(batches) for batches in running for _ in range(2)))
    # As ranks that all say where they are, then meet, then save: any of them has it all.
    for loader in loaders:
        loader.state_dict()
    states = [loader.state_dict() for loader in loaders]
    assert states[0]["offsets"] == [[0, 0, 8], [0, 1, 8], [0, 2, 5]]
    assert states == [states[0]] * 3
    for batches in running:
        batches.close()
    again = claiming(open_tracker())
    again.load_state_dict(states[1])
    assert sorted(seen + flat(ids_of(again))) == ALL


def test_a_state_can_be_restored_again_and_an_older_one_after_it(open_tracker):
    loader = claiming(open_tracker())
    steps = iter(loader)
    seen, states = [], []
    for _ in range(6):
        seen.append(next(steps)["id"].tolist())
        states.append(loader.state_dict())
    steps.close()
    for number in (5, 3, 5, 1, 0):
        again = claiming(open_tracker())
        again.load_state_dict(states[number])
        assert sorted(flat(seen[: number + 1]) + flat(ids_of(again))) == ALL


def test_the_batch_in_hand_counts_in_a_state_but_not_for_whoever_claims_the_chunk(open_tracker):
    loader = claiming(open_tracker())
    steps = iter(loader)
    next(steps), next(steps)
    assert loader.state_dict()["offsets"] == [[0, 0, 8]]
    steps.close()
    assert next(iter(claiming(open_tracker())))["id"].tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize("offsets", [7, [[0, 0]], [[0, 0, -1]], [[0, 0, "4"]]])
def test_offsets_that_were_edited_are_refused(open_tracker, offsets):
    loader = claiming(open_tracker())
    state = {**loader.state_dict(), "offsets": offsets}
    with pytest.raises(StateMismatch, match="the state was edited"):
        loader.load_state_dict(state)


def test_a_copy_of_a_loader_claims_for_itself_and_leaves_the_others_chunks_alone(open_tracker):
    tracker = open_tracker()
    loader = claiming(tracker)
    steps = iter(loader)
    seen = flat(ids_of(itertools.islice(steps, 2)))
    twin = copy.copy(loader)
    assert ids_of(itertools.islice(twin, 1)) == [[10, 11, 12, 13]]
    twin.close()
    assert [(one.block_id, one.chunk_id) for one in tracker._ledger.holders()] == [(0, 0)]
    assert sorted(seen + flat(ids_of(steps))) == ALL


def test_saving_a_state_records_how_far_the_chunks_held_are(open_tracker, tmp_path):
    tracker = open_tracker()
    with claiming(tracker) as loader:
        batches = iter(loader)
        for _ in range(3):
            next(batches)
        loader.state_dict()
        found = json.loads(tracker.export_json(tmp_path / "state.json").read_text())["partial_chunks"]
    assert [(one["block_id"], one["chunk_id"], one["sample_offset"]) for one in found] == [(0, 0, 8)]


def test_a_state_is_small_and_says_so_when_it_belongs_to_another_ledger_or_other_data(open_tracker):
    loader = claiming(open_tracker())
    state = loader.state_dict()
    assert len(str(state)) < 1000
    with pytest.raises(StateMismatch, match="ledger"):
        claiming(open_tracker(name="other.db")).load_state_dict(state)
    with pytest.raises(StateMismatch, match="order is 'chunks10:sequential' in the state, 'chunks20:sequential' here"):
        claiming(open_tracker(), dataset_chunk_size=20).load_state_dict(state)
    with pytest.raises(StateMismatch, match="order"):
        StreamingDataLoader(subjects.Blocks(SIZES)).load_state_dict(state)


def test_who_waits_for_a_holder_that_makes_no_progress_is_told_whom(open_tracker):
    stuck = iter(claiming(open_tracker(lease_s=0.2), world=World(dp_rank=1, dp_size=2), uneven=True))
    next(stuck)
    waiting = claiming(open_tracker(lease_s=0.2), timeout=0.3)
    seen = []
    with pytest.raises(LoaderTimeout, match=r"all that is left of epoch 0 is held by others.*chunk 0 of block 0"):
        seen.extend(batch["id"].tolist() for batch in waiting)
    assert sorted(flat(seen)) == ALL[10:]
    stuck.close()
    # What was waited for came back, and nothing else.
    assert sorted(flat(ids_of(waiting))) == ALL[:10]


def test_waiting_ends_when_the_holder_completes(open_tracker):
    holder, waiting = iter(claiming(open_tracker())), claiming(open_tracker())
    next(holder)
    begun = threading.Event()

    def read():
        batches = []
        for batch in waiting:
            batches.append(batch["id"].tolist())
            begun.set()
        return batches

    with ThreadPoolExecutor(1) as pool:
        others = pool.submit(read)
        assert begun.wait(60)
        # Whoever is done first waits for the other's last chunk.
        rest = flat(ids_of(holder))
        assert sorted([*ALL[:4], *rest, *flat(others.result(timeout=60))]) == ALL


def test_waiting_goes_on_while_the_holder_gets_on(open_tracker):
    slow = open_tracker()
    held = slow.claim([3, 2, 1])
    waiting = claiming(open_tracker(lease_s=0.3), timeout=0.3)
    with ThreadPoolExecutor(1) as pool:
        others = pool.submit(lambda: flat(ids_of(waiting)))
        for trained in range(1, CHUNK):
            time.sleep(0.2)
            slow.renew(held, trained)
        slow.complete(held)
        assert sorted(others.result(timeout=60)) == ALL[CHUNK:]


def test_leases_that_cannot_be_kept_are_the_trainers_to_hear(open_tracker, tmp_path):
    batches = iter(claiming(open_tracker(lease_s=0.2), batch_size=1, dataset_chunk_size=25))
    next(batches)
    (tmp_path / "ledger.db").unlink()

    def train_to_the_chunks_end_but_for_one():
        for _ in range(23):
            time.sleep(0.05)
            next(batches)

    with pytest.raises(LedgerError, match="was deleted or replaced while it was in use"):
        train_to_the_chunks_end_but_for_one()


def test_failing_samples_follow_the_policy(open_tracker):
    class Broken(subjects.Broken):
        block_ends = (12, 20)

    loader = StreamingDataLoader(
        Broken(20, bad=(3,)),
        4,
        on_error="skip",
        assignment="claim",
        tracker=open_tracker(),
        dataset_chunk_size=5,
        num_workers=0,
    )
    assert sorted(flat(ids_of(loader))) == [id_ for id_ in range(20) if id_ != 3]
    assert loader.stats.skipped == {"ValueError": 1}


def test_a_dataset_without_blocks_is_one_block(open_tracker):
    loader = StreamingDataLoader(
        subjects.Fetching(9), 4, assignment="claim", tracker=open_tracker(), dataset_chunk_size=5, num_workers=0
    )
    assert ids_of(loader) == [[0, 1, 2, 3], [4], [5, 6, 7, 8]]


def test_set_epoch_takes_the_epoch_that_is_due_and_no_other(open_tracker):
    loader = claiming(open_tracker())
    for epoch in range(2):
        loader.set_epoch(epoch)
        assert sorted(flat(ids_of(loader))) == ALL
    with pytest.raises(ConfigError, match=r"set_epoch\(7\): the ledger is in epoch 1, which is complete"):
        loader.set_epoch(7)


def test_there_is_no_length_to_count_on(open_tracker):
    with pytest.raises(TypeError, match="no len"):
        len(claiming(open_tracker()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"remainder": "pad"}, "batches never cross chunks"),
        ({"remainder": "carry"}, "batches never cross chunks"),
        ({"shuffle": "window"}, "shuffle, by claims"),
        ({"global_batch_size": 8, "batch_size": None}, "global_batch_size=8 has no meaning by claims"),
        ({"length_bucket": 8}, "length_bucket=8 has no meaning by claims"),
        ({"stop_after": 0}, "stop_after.*>= 1, got 0"),
        ({"stop_after": "chunk"}, "stop_after.*'chunk'"),
        ({"dataset_chunk_size": 0}, "dataset_chunk_size"),
        ({"dataset_chunk_size": 3, "drop_last": True}, "chunks of 3 samples do not fill one batch of 4"),
    ],
)
def test_what_cannot_work_by_claims_is_refused(open_tracker, options, message):
    with pytest.raises(ConfigError, match=message):
        claiming(open_tracker(), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"assignment": "claim"}, r"needs tracker=penstock\.ChunkTracker"),
        ({"assignment": "claim", "tracker": "ledger.db"}, r"needs tracker=penstock\.ChunkTracker"),
        ({"assignment": "chunks"}, "assignment must be one of"),
        ({"stop_after": "block"}, "stop_after belongs to claims"),
        ({"uneven": True}, "uneven belongs to claims"),
    ],
)
def test_claims_without_a_tracker_and_their_options_without_claims_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        StreamingDataLoader(subjects.Plain(), 4, **options)


def test_a_tracker_without_claims_is_refused(open_tracker):
    with pytest.raises(ConfigError, match="tracker belongs to claims"):
        StreamingDataLoader(subjects.Plain(), 4, tracker=open_tracker())


def test_ranks_that_would_end_at_different_times_are_refused(open_tracker):
    world = World(dp_rank=0, dp_size=2)
    with pytest.raises(ConfigError, match=r"different numbers of batches.*stop_after"):
        next(iter(claiming(open_tracker(), world=world)))
    assert len(list(claiming(open_tracker(), world=world, stop_after=3))) == 3


def test_ranks_of_a_group_re_open_what_a_state_says_once(open_tracker):
    whole = claiming(open_tracker(), world=World(dp_rank=0, dp_size=2), stop_after=3)
    state = whole.state_dict()
    assert len(list(whole)) == 3
    second = claiming(open_tracker(), world=World(dp_rank=1, dp_size=2), stop_after=3)
    second.load_state_dict(state)
    assert 0 not in flat(ids_of(second))
    whole.load_state_dict(state)
    assert ids_of(whole)[0] == [0, 1, 2, 3]


def test_it_says_what_it_does(open_tracker):
    loader = claiming(open_tracker(), shuffle=True)
    assert (
        repr(loader) == "StreamingDataLoader(47 samples of Blocks, batch_size=4, order chunks10:feistel8-v1, by claims)"
    )
    assert "47 samples of Blocks in 6 chunks" in loader.explain()
    assert "an iteration ends after its epoch" in loader.explain()


def test_leaving_an_iteration_ends_its_thread(open_tracker):
    before = set(threading.enumerate())
    batches = iter(claiming(open_tracker()))
    next(batches)
    (thread,) = set(threading.enumerate()) - before
    assert thread.name == "penstock-leases"
    batches.close()
    thread.join(5)
    assert not thread.is_alive()


def test_chunks_of_another_size_are_refused_by_a_ledger_even_if_there_are_as_many(open_tracker):
    assert len(list(itertools.islice(claiming(open_tracker(), dataset_chunk_size=12), 5))) == 5
    with pytest.raises(LedgerError, match="chunks of 12 samples, and chunks of 13 were asked for"):
        next(iter(claiming(open_tracker(), dataset_chunk_size=13)))
