"""Exports: what a ledger knows as JSON, and a ledger made of it."""

from __future__ import annotations

import json

import pytest

from penstock import BadManifest, ChunkTracker, ConfigError, LedgerError, ObjectMissing, StaleClaim, StoreLedger

CHUNKS = [3, 2]


@pytest.fixture
def busy(open_tracker):
    """A ledger in its second epoch, with chunks complete, begun and held."""
    tracker = open_tracker(lease_s=30)
    while (claim := tracker.claim(CHUNKS, gpu_id="node1:0")) is not None:
        tracker.complete(claim, optimizer_step=5, steps=20)
    tracker.start_new_epoch()
    tracker.complete(tracker.claim(CHUNKS, gpu_id=1), optimizer_step=6, steps=20)
    held, given_back = tracker.claim(CHUNKS), tracker.claim(CHUNKS)
    tracker.renew(held, sample_offset=44)
    tracker.release(given_back, sample_offset=55)
    return tracker


def test_an_export_reads_as_the_progress_and_the_chunks(busy, tmp_path):
    path = busy.export_json(tmp_path / "chunk_tracker_state.json")
    found = json.loads(path.read_text())
    assert {name: found[name] for name in ("brain_id", "dataset_name", "current_epoch", "total_chunks_trained")} == {
        "brain_id": "brain",
        "dataset_name": "data",
        "current_epoch": 1,
        "total_chunks_trained": 6,
    }
    stats = busy.get_progress_stats()
    assert {name: found[name] for name in stats if not name.startswith("session_")} == {
        name: value for name, value in stats.items() if not name.startswith("session_")
    }
    assert found["completed_chunks"][0] == {
        "epoch": 0,
        "block_id": 0,
        "chunk_id": 0,
        "gpu_id": "node1:0",
        "optimizer_step": 5,
        "steps": 20,
        "sequence": 1,
    }
    assert [(one["epoch"], one["chunk_id"], one["sample_offset"]) for one in found["partial_chunks"]] == [
        (1, 1, 44),
        (1, 2, 55),
    ]


def test_a_ledger_made_of_an_export_goes_on_and_exports_the_same(busy, open_tracker, tmp_path):
    path = busy.export_json(tmp_path / "export.json")
    copy = open_tracker("copy")
    copy.import_json(path)
    assert copy.ledger_id == busy.ledger_id
    assert copy.sequence == busy.sequence
    assert copy.export_json(tmp_path / "again.json").read_bytes() == path.read_bytes()
    rest = [copy.claim(CHUNKS) for _ in range(4)]
    assert [(claim.block_id, claim.chunk_id, claim.sample_offset) for claim in rest] == [
        (0, 1, 44),
        (0, 2, 55),
        (1, 0, 0),
        (1, 1, 0),
    ]
    assert copy.claim(CHUNKS) is None
    with pytest.raises(StaleClaim):
        copy.mark_chunk_complete(0, 0, 0, 1, 1)
    for claim in rest:
        copy.complete(claim)
    assert copy.is_epoch_complete(CHUNKS)


def test_an_old_checkpoint_can_go_back_in_a_ledger_made_of_an_export(busy, open_tracker, tmp_path):
    copy = open_tracker("copy")
    copy.import_json(busy.export_json(tmp_path / "export.json"))
    assert copy.reopen_after(3) == 3
    assert (copy.current_epoch, copy.claim(CHUNKS).block_id, copy.claim(CHUNKS).chunk_id) == (0, 1, 1)


def test_a_checkpoint_goes_on_inside_its_chunks_in_a_ledger_made_of_a_later_export(busy, open_tracker, tmp_path):
    point = busy.checkpoint()
    while (claim := busy.claim(CHUNKS)) is not None:
        busy.complete(claim)
    copy = open_tracker("copy")
    copy.import_json(busy.export_json(tmp_path / "export.json"))
    copy.reopen_after(point.sequence, point.offsets)
    claims = [copy.claim(CHUNKS) for _ in range(4)]
    assert [(one.epoch, one.block_id, one.chunk_id, one.sample_offset) for one in claims] == [
        (1, 0, 1, 44),
        (1, 0, 2, 55),
        (1, 1, 0, 0),
        (1, 1, 1, 0),
    ]


def test_a_ledger_in_use_is_not_overwritten(busy, open_tracker, tmp_path):
    path = busy.export_json(tmp_path / "export.json")
    other = open_tracker("other")
    other.claim(CHUNKS)
    with pytest.raises(LedgerError, match="has granted chunks already"):
        other.import_json(path)


def test_the_export_of_another_brain_is_refused(busy, open_tracker, tmp_path):
    path = busy.export_json(tmp_path / "export.json")
    with pytest.raises(LedgerError, match="is the export of brain 'brain' and dataset 'data'"):
        open_tracker("other", brain_id="else").import_json(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda found: found.pop("completed_chunks"), "no export of a ledger"),
        (lambda found: found.update(format_version=2), "has export format 2, this penstock reads 1"),
        (lambda found: found["completed_chunks"].append(found["completed_chunks"][0]), "a chunk is listed twice"),
        (lambda found: found["completed_chunks"][0].update(chunk_id=9), "block 0 of epoch 0 has no chunk 9"),
        (lambda found: found["completed_chunks"][0].update(sequence=99), "the sequence numbers are not in order"),
        (lambda found: found["completed_chunks"][0].pop("steps"), "KeyError: 'steps'"),
        (lambda found: found.update(current_epoch=7), "epoch 7 is not among the epochs"),
    ],
)
def test_an_export_that_contradicts_itself_is_refused(busy, open_tracker, tmp_path, damage, message):
    path = busy.export_json(tmp_path / "export.json")
    found = json.loads(path.read_text())
    damage(found)
    path.write_text(json.dumps(found))
    other = open_tracker("other")
    with pytest.raises(BadManifest, match=message):
        other.import_json(path)
    assert other.sequence == 0


def test_a_missing_export_is_an_error(open_tracker, tmp_path):
    with pytest.raises(ObjectMissing):
        open_tracker().import_json(tmp_path / "nothing.json")


def test_a_store_has_no_place_of_its_own_for_exports():
    from torch.distributed import HashStore

    tracker = ChunkTracker(StoreLedger(HashStore(), "run"), "brain", "data")
    for use in (tracker.export_json, tracker.import_json):
        with pytest.raises(ConfigError, match="give a path"):
            use()
