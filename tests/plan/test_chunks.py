"""Batches of claimed chunks: every sample of a chunk once, and none of another."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import ConfigError, PlanError
from penstock.plan.chunks import ChunkPlan
from penstock.plan.plan import Cursor

plans = st.builds(
    ChunkPlan,
    block_sizes=st.lists(st.integers(1, 40), min_size=1, max_size=5).map(tuple),
    chunk_size=st.integers(1, 15),
    batch_size=st.integers(1, 9),
    shuffle_seed=st.one_of(st.none(), st.integers(0, 3)),
)


def chunks_of(plan):
    return [(b, c) for b, count in enumerate(plan.chunks_per_block) for c in range(count)]


def batches_from(plan, position, epoch=0):
    return [row.tolist() for share in plan.walk(Cursor(epoch=epoch, samples=position)) for row in share.ids]


@given(plans)
def test_chunks_are_the_dataset_cut_up(plan):
    spans = [plan.span(*chunk) for chunk in chunks_of(plan)]
    assert [position for span in spans for position in range(*span)] == list(range(plan.num_samples))
    assert all(
        plan.chunk_at(position) == chunk
        for chunk, span in zip(chunks_of(plan), spans, strict=True)
        for position in range(*span)
    )


@given(plans, st.integers(0, 2))
def test_the_batches_of_a_chunk_hold_its_samples_once_each_and_no_others(plan, epoch):
    for chunk in chunks_of(plan):
        start, stop = plan.span(*chunk)
        batches = batches_from(plan, start, epoch)
        assert sorted(id_ for batch in batches for id_ in batch) == list(range(start, stop))
        assert all(len(batch) == plan.batch_size for batch in batches[:-1])


@given(plans, st.integers(0, 2), st.data())
def test_from_any_offset_a_chunk_goes_on_with_the_same_samples(plan, epoch, data):
    start, stop = plan.span(*data.draw(st.sampled_from(chunks_of(plan))))
    offset = data.draw(st.integers(0, stop - start - 1))
    whole = [id_ for batch in batches_from(plan, start, epoch) for id_ in batch]
    assert [id_ for batch in batches_from(plan, start + offset, epoch) for id_ in batch] == whole[offset:]


@given(plans)
def test_the_ids_of_a_step_follow_from_its_cursor_alone(plan):
    for share in plan.walk(Cursor(epoch=1)):
        for step, ids in enumerate(share.ids):
            again = plan.share(Cursor(epoch=1, samples=share.start + step * share.taken))
            np.testing.assert_array_equal(again.ids[0], ids)


def test_each_epoch_has_an_order_of_its_own_inside_a_chunk():
    plan = ChunkPlan(block_sizes=(100,), chunk_size=100, batch_size=100, shuffle_seed=0)
    assert batches_from(plan, 0, epoch=0) != batches_from(plan, 0, epoch=1)


def test_a_dropped_remainder_is_the_incomplete_batch_of_each_chunk():
    plan = ChunkPlan(block_sizes=(10, 3), chunk_size=5, batch_size=4, remainder="drop")
    assert [batches_from(plan, plan.span(*chunk)[0]) for chunk in chunks_of(plan)] == [
        [[0, 1, 2, 3]],
        [[5, 6, 7, 8]],
        [],
    ]
    assert [plan.num_usable(left) for left in (5, 4, 3)] == [4, 4, 0]


def test_a_plan_that_would_drop_everything_is_refused():
    with pytest.raises(ConfigError, match="chunks of 3 samples do not fill one batch of 4"):
        ChunkPlan(block_sizes=(3, 2), chunk_size=10, batch_size=4, remainder="drop")


def test_a_chunk_that_is_not_there_is_refused():
    plan = ChunkPlan(block_sizes=(10,), chunk_size=5, batch_size=4)
    with pytest.raises(PlanError, match="no chunk 2 of block 0"):
        plan.span(0, 2)
