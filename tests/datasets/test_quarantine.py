"""The list of samples that could not be used."""

from __future__ import annotations

import threading

import pytest

from penstock.datasets.quarantine import QuarantineLog


def entry(number, message="it is gone"):
    return {"epoch": 0, "id": number, "key": f"s{number}", "stage": "fetch", "reason": "x", "message": message}


def test_entries_are_read_back_in_order(tmp_path):
    log = QuarantineLog(tmp_path / "deep" / "log.jsonl")
    assert log.entries() == []
    log.add([entry(1), entry(2)])
    log.add([entry(3)])
    assert log.entries() == [entry(1), entry(2), entry(3)]


def test_many_writers_mix_no_lines(tmp_path):
    def write(writer):
        log = QuarantineLog(tmp_path / "log.jsonl")
        for number in range(50):
            log.add([entry(1000 * writer + number, "long " * 200)])

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = QuarantineLog(tmp_path / "log.jsonl").entries()
    assert sorted(one["id"] for one in found) == sorted(1000 * writer + n for writer in range(8) for n in range(50))


def test_a_line_cut_short_by_a_crash_costs_that_entry_only(tmp_path):
    log = QuarantineLog(tmp_path / "log.jsonl")
    log.add([entry(1), entry(2)])
    log.path.write_bytes(log.path.read_bytes()[:-20] + b"\n")
    log.add([entry(3)])
    assert log.entries() == [entry(1), entry(3)]


def test_secrets_of_urls_are_not_listed(tmp_path):
    log = QuarantineLog(tmp_path / "log.jsonl")
    log.add([entry(1, "GET https://me:hunter2@host/x?sig=abc failed")])
    assert log.entries()[0]["message"] == "GET https://host/x failed"


def test_a_list_that_cannot_be_written_warns_and_does_not_stop_training(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    log = QuarantineLog(tmp_path / "file" / "log.jsonl")
    with pytest.warns(RuntimeWarning, match="1 failed samples can't be listed"):
        log.add([entry(1)])
