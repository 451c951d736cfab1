"""Files are whole or not there, locks end with their owner."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from penstock.errors import BadManifest, ObjectMissing, StoreError
from penstock.formats.files import atomic_write, lock_folder, read_json, remove_abandoned, store_errors, write_json


def test_a_file_is_not_seen_before_it_is_whole(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with atomic_write(path) as file:
        file.write(b"new and longer")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new and longer"
    assert os.listdir(tmp_path) == ["a.bin"]


def write_half(path, error):
    with atomic_write(path) as file:
        file.write(b"half")
        raise error


@pytest.mark.parametrize("error", [RuntimeError("in the middle"), KeyboardInterrupt()])
def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(type(error)):
        write_half(path, error)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_what_a_killed_writer_left_is_removed_and_what_is_being_written_is_not(tmp_path):
    path = tmp_path / "a[1].bin"
    code = (
        "import os, signal, sys\nfrom penstock.formats.files import atomic_write\n"
        "with atomic_write(sys.argv[1]) as file:\n    file.write(b'x' * 99)\n    file.flush()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=False, timeout=60)
    assert len(list(tmp_path.iterdir())) == 1, "it was killed in the middle"
    (tmp_path / ".a[1].bin.notes.tmp").touch()
    with atomic_write(path) as file:
        file.write(b"whole")
        assert remove_abandoned(path) == 1
    assert path.read_bytes() == b"whole"
    assert sorted(os.listdir(tmp_path)) == [".a[1].bin.notes.tmp", "a[1].bin"]


def test_a_file_that_is_swept_again_and_again_while_it_is_written_is_there(tmp_path):
    path, ended = tmp_path / "a.bin", threading.Event()
    swept = []

    def sweep() -> None:
        while not ended.is_set():
            swept.append(remove_abandoned(path))

    with ThreadPoolExecutor(2) as pool:
        sweepers = [pool.submit(sweep) for _ in range(2)]
        try:
            for number in range(300):
                with atomic_write(path, synced=False) as file:
                    file.write(b"%d" % number)
                assert path.read_bytes() == b"%d" % number
        finally:
            ended.set()
        for sweeper in sweepers:
            sweeper.result(60)
    assert swept
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(StoreError, match="nowhere does not exist; create it"), atomic_write(tmp_path / "nowhere" / "a"):
        pass


def test_a_full_disk_is_reported_with_what_to_do(tmp_path):
    advice = r"no space left .* free some, then run the same command again"
    with pytest.raises(StoreError, match=advice) as caught, store_errors(tmp_path / "a.bin"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.errno == errno.ENOSPC


def test_json_comes_back_and_damage_is_named(tmp_path):
    path = tmp_path / "a.json"
    value = {"z": 1, "a": ["é", None, 0.5]}
    write_json(path, value)
    assert read_json(path) == value
    assert list(read_json(path)) == ["z", "a"]
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(BadManifest, match="not valid JSON"):
        read_json(path)
    with pytest.raises(ObjectMissing):
        read_json(tmp_path / "b.json")


def test_a_locked_folder_refuses_a_second_owner_and_keeps_no_trace(tmp_path):
    with lock_folder(tmp_path), pytest.raises(StoreError, match="another process is writing"), lock_folder(tmp_path):
        pass
    with lock_folder(tmp_path):
        pass
    assert os.listdir(tmp_path) == []


def test_whoever_asks_while_an_owner_removes_its_lock_is_refused_or_owns_it(tmp_path):
    owned, inside, failures = [0] * 4, [], []

    def ask(asker):
        for _ in range(2000):
            try:
                with lock_folder(tmp_path):
                    inside.append(asker)
                    owned[asker] += 1
                    if len(inside) > 1:
                        failures.append(AssertionError(f"owned by {inside}"))
                    inside.pop()
            except StoreError as error:
                if "another process is writing" not in str(error):
                    failures.append(error)

    askers = [threading.Thread(target=ask, args=(asker,)) for asker in range(4)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert not failures
    assert sum(owned) > 1


def test_a_killed_owner_does_not_keep_its_lock(tmp_path):
    code = (
        "import sys, time\n"
        "from penstock.formats.files import lock_folder\n"
        "with lock_folder(sys.argv[1]):\n"
        "    print('locked', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as owner:
        assert owner.stdout.readline() == b"locked\n"
        with pytest.raises(StoreError, match="another process is writing"), lock_folder(tmp_path):
            pass
        owner.send_signal(signal.SIGKILL)
    with lock_folder(tmp_path):
        pass
    assert os.listdir(tmp_path) == []
