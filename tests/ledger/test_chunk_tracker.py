"""Laws of claims, for both kinds of ledger."""

from __future__ import annotations

import threading
import time

import pytest

from penstock import ChunkTracker, ConfigError, LedgerError, StaleClaim

CHUNKS = [3, 2]
ALL = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]


def claim_all(tracker, chunks=CHUNKS):
    claims = []
    while (claim := tracker.claim(chunks, 0)) is not None:
        claims.append(claim)
    return claims


def places(claims):
    return [(claim.block_id, claim.chunk_id) for claim in claims]


class TestGranting:
    def test_every_chunk_is_granted_once_in_order(self, open_tracker):
        one, two = open_tracker(), open_tracker()
        claims = [tracker.claim(CHUNKS, 0) for tracker in (one, two, one, one, two)]
        assert places(claims) == ALL
        assert one.claim(CHUNKS, 0) is None
        assert len({claim.token for claim in claims}) == 5

    def test_threads_of_one_tracker_get_different_chunks(self, open_tracker):
        tracker = open_tracker()
        claims = []
        threads = [threading.Thread(target=lambda: claims.extend(claim_all(tracker, [50, 50]))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(places(claims)) == [(block, chunk) for block in range(2) for chunk in range(50)]

    def test_one_block_at_a_time(self, open_tracker):
        tracker = open_tracker()
        assert [tracker.get_next_untrained_chunk(1, 2, gpu_id=0) for _ in range(3)] == [0, 1, None]
        tracker.mark_chunk_complete(1, 0, 0, optimizer_step=5, steps=20)
        assert not tracker.mark_block_complete(1)
        tracker.mark_chunk_complete(1, 1, 0, optimizer_step=7, steps=20)
        assert tracker.mark_block_complete(1)
        assert not tracker.mark_block_complete(0)
        assert tracker.is_chunk_trained(1, 1)
        assert not tracker.is_chunk_trained(0, 0)

    def test_nothing_before_the_start_is_granted_or_waited_for(self, open_tracker):
        late = open_tracker(start_block_id=0, start_chunk_id=2)
        claims = claim_all(late)
        assert places(claims) == [(0, 2), (1, 0), (1, 1)]
        assert not late.is_epoch_complete(CHUNKS)
        for claim in claims:
            late.complete(claim)
        assert late.is_epoch_complete(CHUNKS)
        early = open_tracker()
        assert not early.check_epoch_complete(CHUNKS)
        assert places(claim_all(early)) == [(0, 0), (0, 1)]
        assert open_tracker(start_block_id=1).get_next_untrained_chunk(0, 3, 0) is None

    @pytest.mark.parametrize("start", range(6))
    def test_wherever_the_start_is_in_a_block_all_that_follows_is_granted(self, open_tracker, start):
        late, early = open_tracker(start_chunk_id=start), open_tracker()
        assert places(claim_all(late, [5, 1])) == [(0, chunk) for chunk in range(start, 5)] + [(1, 0)]
        assert places(claim_all(early, [5, 1])) == [(0, chunk) for chunk in range(start)]

    def test_empty_blocks_are_passed_over(self, open_tracker):
        tracker = open_tracker()
        assert tracker.has_free_chunk([0, 0, 1, 0])
        claims = claim_all(tracker, [0, 0, 1, 0])
        assert places(claims) == [(2, 0)]
        assert not tracker.is_epoch_complete([0, 0, 1, 0])
        tracker.complete(claims[0])
        assert tracker.is_epoch_complete([0, 0, 1, 0])

    def test_another_chunk_size_is_refused(self, open_tracker):
        tracker = open_tracker()
        tracker.claim(CHUNKS, 0)
        with pytest.raises(LedgerError, match=r"block 0 has 3 chunks in the ledger .* but 6 are asked for"):
            tracker.claim([6, 4], 0)
        assert places([tracker.claim(CHUNKS, 0)]) == [(0, 1)]

    def test_a_ledger_belongs_to_one_brain_and_dataset(self, open_tracker):
        open_tracker()
        with pytest.raises(LedgerError, match="is of brain 'brain' and dataset 'data', not of 'other' and 'data'"):
            open_tracker(brain_id="other")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"lease_s": 0}, "lease_s must be a number of seconds above 0"),
            ({"start_block_id": -1}, "start_block_id must be an integer >= 0"),
            ({"brain_id": ""}, "brain_id must be a string"),
        ],
    )
    def test_arguments_are_checked(self, open_tracker, options, message):
        with pytest.raises(ConfigError, match=message):
            open_tracker(**options)

    def test_what_is_no_ledger_is_refused(self):
        with pytest.raises(ConfigError, match="state_file must be a path or a ledger"):
            ChunkTracker(7, "brain", "data")


class TestLeases:
    def test_a_chunk_whose_lease_ended_goes_to_another_and_the_first_holder_is_refused(self, open_tracker):
        slow, quick = open_tracker(lease_s=0.3), open_tracker(lease_s=30)
        lost = slow.claim([1], gpu_id=3)
        assert quick.claim([1], gpu_id=4) is None
        assert not quick.has_free_chunk([1])
        assert 0 < quick.next_expiry_s() <= 0.3
        assert "gpu 3 chunk 0 of block 0" in quick.describe_holders()
        time.sleep(0.4)
        assert quick.has_free_chunk([1])
        taken = quick.claim([1], gpu_id=4)
        for stale in (lambda: slow.complete(lost), lambda: slow.renew(lost), lambda: slow.release(lost)):
            with pytest.raises(StaleClaim, match=r"its lease of 0\.3 s ended and gpu 4 holds the chunk now"):
                stale()
        quick.complete(taken)
        with pytest.raises(StaleClaim, match="gpu 4 has completed it"):
            slow.complete(lost)
        assert quick.get_progress_stats()["total_chunks_trained"] == 1

    def test_who_comes_too_late_is_refused_even_if_nobody_took_the_chunk(self, open_tracker):
        tracker = open_tracker(lease_s=0.2)
        claim = tracker.claim([1], 0)
        time.sleep(0.3)
        for stale in (lambda: tracker.renew(claim), lambda: tracker.release(claim), lambda: tracker.complete(claim)):
            with pytest.raises(StaleClaim, match=r"its lease of 0\.2 s ended 0\.\d s ago"):
                stale()
        assert not tracker.is_chunk_trained(0, 0)
        tracker.has_free_chunk([1])
        time.sleep(0.3)
        tracker.complete(tracker.claim([1], 0))

    def test_heartbeats_keep_a_chunk_for_as_long_as_they_come(self, open_tracker):
        slow, other = open_tracker(lease_s=0.4), open_tracker(lease_s=0.4)
        slow.get_next_untrained_chunk(0, 1, gpu_id=0)
        for _ in range(8):
            time.sleep(0.1)
            slow.heartbeat(0, 0, gpu_id=0)
            assert other.claim([1], 1) is None
        slow.mark_chunk_complete(0, 0, gpu_id=0, optimizer_step=1, steps=1)

    def test_a_completion_counts_once(self, open_tracker):
        tracker = open_tracker()
        claim = tracker.claim(CHUNKS, 0)
        tracker.complete(claim)
        with pytest.raises(StaleClaim, match="gpu 0 has completed it"):
            tracker.complete(claim)
        with pytest.raises(StaleClaim, match="this tracker has not claimed the chunk"):
            tracker.mark_chunk_complete(0, 0, 0, 1, 1)

    def test_the_token_is_the_trackers_whatever_gpu_it_names(self, open_tracker):
        mine, other = open_tracker(), open_tracker()
        claim = mine.claim(CHUNKS, gpu_id=0)
        with pytest.raises(StaleClaim, match="another tracker made it"):
            other.complete(claim)
        with pytest.raises(StaleClaim, match="this tracker has not claimed the chunk"):
            other.mark_chunk_complete(0, 0, gpu_id=0, optimizer_step=1, steps=1)
        mine.complete(claim)

    def test_an_older_claim_of_the_same_tracker_is_stale_too(self, open_tracker):
        tracker = open_tracker()
        first = tracker.claim([1], 0)
        tracker.release(first)
        second = tracker.claim([1], 0)
        with pytest.raises(StaleClaim):
            tracker.complete(first)
        tracker.complete(second)


class TestPartialChunks:
    def test_a_released_chunk_is_continued_first_and_at_its_offset(self, open_tracker):
        tracker, other = open_tracker(), open_tracker()
        first, second = tracker.claim(CHUNKS, 0), tracker.claim(CHUNKS, 0)
        tracker.release(first)
        tracker.release(second, sample_offset=1200)
        again = other.claim(CHUNKS, 1)
        assert (again.chunk_id, again.sample_offset) == (1, 1200)
        assert other.sample_offset(0, 1) == 1200
        assert other.claim(CHUNKS, 1).chunk_id == 0

    def test_an_abandoned_chunk_is_continued_where_its_last_heartbeat_said(self, open_tracker):
        gone, other = open_tracker(lease_s=0.2), open_tracker()
        gone.renew(gone.claim([2], 0), sample_offset=77)
        assert other.claim([2], 1).chunk_id == 1
        assert other.claim([2], 1) is None
        time.sleep(0.3)
        again = other.claim([2], 1)
        assert (again.chunk_id, again.sample_offset) == (0, 77)
        other.release(again)
        assert other.claim([2], 1).sample_offset == 77

    def test_a_new_epoch_begins_chunks_at_their_beginning(self, open_tracker):
        tracker = open_tracker()
        tracker.release(tracker.claim([1], 0), sample_offset=5)
        tracker.start_new_epoch()
        assert tracker.claim([1], 0).sample_offset == 0


class TestEpochs:
    def test_an_epoch_is_complete_when_every_chunk_is_and_the_next_grants_all_again(self, open_tracker):
        tracker = open_tracker()
        for epoch in range(3):
            claims = claim_all(tracker)
            assert places(claims) == ALL
            for claim in claims:
                assert not tracker.is_epoch_complete(CHUNKS)
                assert claim.epoch == epoch == tracker.current_epoch
                tracker.complete(claim)
            assert tracker.is_epoch_complete(CHUNKS)
            assert tracker.claim(CHUNKS, 0) is None
            assert tracker.start_new_epoch() == epoch + 1

    def test_several_that_end_an_epoch_begin_the_next_one_only_once(self, open_tracker):
        trackers = [open_tracker() for _ in range(3)]
        assert [tracker.start_new_epoch() for tracker in trackers] == [1, 1, 1]
        assert [tracker.start_new_epoch(after=0) for tracker in trackers] == [1, 1, 1]
        assert [tracker.start_new_epoch() for tracker in trackers] == [2, 2, 2]

    def test_what_is_held_across_the_end_of_an_epoch_may_be_completed(self, open_tracker):
        tracker = open_tracker()
        claim = tracker.claim(CHUNKS, 0)
        tracker.start_new_epoch()
        tracker.complete(claim)
        assert not tracker.is_chunk_trained(0, 0)
        assert tracker.get_progress_stats()["total_chunks_trained"] == 1

    def test_iterating_anew_ends_all_claims_and_keeps_the_totals(self, open_tracker):
        tracker, other = open_tracker(), open_tracker()
        tracker.complete(tracker.claim(CHUNKS, 0), steps=9)
        held = other.claim(CHUNKS, 1)
        assert tracker.reset_for_iterate() == 1
        with pytest.raises(StaleClaim):
            other.complete(held)
        assert places(claim_all(tracker)) == ALL
        assert tracker.get_progress_stats()["total_steps"] == 9


class TestProgress:
    def test_counts(self, open_tracker):
        before = open_tracker()
        before.complete(before.claim(CHUNKS, 0), optimizer_step=10, steps=40)
        tracker = open_tracker()
        tracker.complete(tracker.claim(CHUNKS, 0), optimizer_step=25, steps=40)
        tracker.complete(tracker.claim(CHUNKS, 0), optimizer_step=20, steps=40)
        tracker.claim(CHUNKS, 0)
        assert tracker.get_progress_stats() == {
            "total_optimizer_steps": 25,
            "session_optimizer_steps": 15,
            "total_steps": 120,
            "session_steps": 80,
            "total_chunks_trained": 3,
            "session_chunks_trained": 2,
            "blocks_started": 2,
            "blocks_completed": 1,
            "current_epoch": 0,
            "blocks_this_epoch": 1,
            "total_blocks_in_dataset": 2,
        }
        tracker.start_new_epoch()
        tracker.refresh()
        stats = tracker.get_progress_stats()
        assert (stats["blocks_completed"], stats["blocks_this_epoch"], stats["current_epoch"]) == (1, 0, 1)

    def test_a_fresh_ledger_has_done_nothing(self, open_tracker):
        tracker = open_tracker()
        assert tracker.sequence == 0
        assert tracker.next_expiry_s() is None
        assert tracker.describe_holders() == "nobody holds anything"
        assert tracker.has_free_chunk(CHUNKS)
        assert not tracker.has_free_chunk([])
        assert tracker.claim([], 0) is None
        assert tracker.get_progress_stats()["total_blocks_in_dataset"] == 0
        tracker.save()


class TestGoingBack:
    def test_completions_after_the_number_are_open_again(self, open_tracker):
        tracker = open_tracker()
        claims = claim_all(tracker)
        tracker.complete(claims[0], optimizer_step=1, steps=4)
        number = tracker.complete(claims[3], optimizer_step=2, steps=4)
        assert number == tracker.sequence
        for claim in (claims[1], claims[4]):
            tracker.complete(claim, optimizer_step=9, steps=4)
        tracker.release(claims[2])
        assert tracker.reopen_after(number) == 2
        assert places(claim_all(tracker)) == [(0, 1), (0, 2), (1, 1)]
        stats = tracker.get_progress_stats()
        assert (stats["total_chunks_trained"], stats["total_steps"], stats["total_optimizer_steps"]) == (2, 8, 2)
        assert tracker.sequence > number + 2

    def test_going_back_over_the_start_of_an_epoch_returns_to_the_one_before(self, open_tracker):
        tracker = open_tracker()
        first, second = tracker.claim([2], 0), tracker.claim([2], 0)
        number = tracker.complete(first)
        tracker.complete(second)
        tracker.start_new_epoch()
        held = tracker.claim([2], 0)
        tracker.complete(tracker.claim([2], 0))
        assert tracker.reopen_after(number) == 2
        assert tracker.current_epoch == 0
        with pytest.raises(StaleClaim):
            tracker.complete(held)
        assert places(claim_all(tracker, [2])) == [(0, 1)]

    def test_an_epoch_that_was_undone_grants_everything_when_it_begins_again(self, open_tracker):
        tracker, other = open_tracker(), open_tracker()
        number = tracker.sequence
        tracker.start_new_epoch()
        assert places(claim_all(tracker)) == ALL
        other.reopen_after(number)
        assert other.start_new_epoch() == 1
        assert places(claim_all(tracker)) == ALL

    def test_offsets_after_the_number_are_forgotten(self, open_tracker):
        tracker = open_tracker()
        early, late, held = (tracker.claim([3], 0) for _ in range(3))
        tracker.release(early, sample_offset=10)
        number = tracker.sequence
        tracker.release(late, sample_offset=20)
        tracker.renew(held, sample_offset=30)
        tracker.reopen_after(number)
        tracker.release(held)
        assert [(claim.chunk_id, claim.sample_offset) for claim in claim_all(tracker, [3])] == [(0, 10), (1, 0), (2, 0)]

    def test_chunks_go_on_at_the_offsets_of_the_checkpoint_whatever_became_of_them(self, open_tracker):
        tracker = open_tracker()
        done, free, held, further, untouched = (tracker.claim([9], 0) for _ in range(5))
        for claim in (done, free, held, further):
            tracker.renew(claim, sample_offset=10 + claim.chunk_id)
        found = tracker.checkpoint([(0, 0, untouched.chunk_id, 99)])
        assert found.offsets == [(0, 0, 10), (0, 1, 11), (0, 2, 12), (0, 3, 13), (0, 4, 99)]
        tracker.complete(done)
        tracker.release(free)
        tracker.renew(further, sample_offset=50)
        tracker.renew(tracker.claim([9], 0), sample_offset=5)  # the free one, which goes on at 11
        late = tracker.claim([9], 0)
        tracker.renew(late, sample_offset=7)
        for _ in range(2):
            open_tracker().reopen_after(found.sequence, found.offsets)
            assert tracker.checkpoint().offsets == found.offsets
        # Who holds a chunk keeps it; a chunk begun since begins anew.
        tracker.release(further)
        tracker.release(late)
        tracker.release(untouched)
        regained = {claim.chunk_id: claim.sample_offset for claim in claim_all(tracker, [9])}
        assert regained == {0: 10, 3: 13, 4: 99, 5: 0, 6: 0, 7: 0, 8: 0}
        tracker.complete(held)
        with pytest.raises(StaleClaim):
            tracker.complete(done)

    def test_a_chunk_never_recorded_can_go_on_inside_a_block_of_free_ones(self, open_tracker):
        tracker = open_tracker()
        tracker.release(tracker.claim([5], 0))
        assert tracker.reopen_after(tracker.sequence, [(0, 2, 6)]) == 0
        assert [(claim.chunk_id, claim.sample_offset) for claim in claim_all(tracker, [5])] == [
            (2, 6), (0, 0), (1, 0), (3, 0), (4, 0),
        ]  # fmt: skip

    def test_what_a_trainer_had_is_forgotten_with_the_chunks_end_and_with_its_epoch(self, open_tracker):
        tracker = open_tracker()
        first, second = tracker.claim([2], 0), tracker.claim([2], 0)
        tracker.checkpoint([(0, 0, 0, 4), (0, 0, 1, 8)])
        assert tracker.checkpoint([(0, 0, 1, 6)]).offsets == [(0, 0, 4), (0, 1, 8)]
        tracker.complete(first)
        assert tracker.checkpoint([(0, 0, 0, 4)]).offsets == [(0, 1, 8)]
        tracker.start_new_epoch()
        assert tracker.checkpoint([(0, 0, 1, 8)]).offsets == []
        tracker.complete(second)

    def test_going_on_over_the_start_of_an_epoch_is_in_the_epoch_of_the_checkpoint(self, open_tracker):
        tracker = open_tracker()
        tracker.complete(tracker.claim([2], 0))
        begun = tracker.claim([2], 0)
        tracker.renew(begun, sample_offset=3)
        found = tracker.checkpoint()
        tracker.complete(begun)
        tracker.start_new_epoch()
        tracker.claim([2], 0)
        assert tracker.reopen_after(found.sequence, found.offsets) == 1
        (again,) = claim_all(tracker, [2])
        assert (again.epoch, again.chunk_id, again.sample_offset) == (0, 1, 3)

    @pytest.mark.parametrize("place", [(0, 3), (1, 0)])
    def test_an_offset_in_a_chunk_that_was_never_asked_for_is_another_ledgers(self, open_tracker, place):
        tracker = open_tracker()
        tracker.release(tracker.claim([3], 0))
        with pytest.raises(LedgerError, match=f"inside chunk {place[1]} of block {place[0]}, but this ledger knows"):
            tracker.reopen_after(tracker.sequence, [(*place, 4)])

    def test_a_ledger_that_has_not_come_so_far_is_another_one(self, open_tracker):
        with pytest.raises(LedgerError, match="asked to go back to number 5, but this ledger has only come to 0"):
            open_tracker().reopen_after(5)


def test_the_chunk_size_is_part_of_a_ledger_and_of_its_export(open_tracker, tmp_path):
    tracker = open_tracker()
    tracker.agree_on_chunk_size(4000)
    tracker.agree_on_chunk_size(4000)
    tracker.complete(tracker.claim([1]))
    tracker.export_json(tmp_path / "export.json")
    again = open_tracker("again")
    again.import_json(tmp_path / "export.json")
    for known in (tracker, open_tracker(), again):
        with pytest.raises(LedgerError, match="counts chunks of 4,000 samples, and chunks of 4,100 were asked for"):
            known.agree_on_chunk_size(4100)
