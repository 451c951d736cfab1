"""What fsspec has a driver for is a store like any other: whole bytes, deadlines, retries, no secrets shown."""

from __future__ import annotations

import pickle
import random
import socket
import subprocess
import sys
import textwrap
import threading
import time
import traceback

import pytest

from penstock.errors import AccessDenied, ConfigError, ObjectChanged, ObjectMissing, StoreUnavailable
from penstock.store.many import Fetcher
from penstock.store.store import open_store
from penstock.store.wanted import Wanted

DATA = random.Random(11).randbytes(300_000)


@pytest.fixture
def silent():
    """A port where connections are taken and nothing is ever said."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        yield listening.getsockname()[1]


def collected(fetcher, wanted):
    found = {}
    for piece in fetcher.get_many(wanted):
        assert piece.error is None, piece.error
        found.setdefault(piece.number, bytearray(piece.size if piece.last and not piece.offset else 0))
        end = piece.offset + len(piece.data)
        if len(found[piece.number]) < end:
            found[piece.number].extend(bytes(end - len(found[piece.number])))
        found[piece.number][piece.offset : end] = piece.data
    return [bytes(found[number]) for number in range(len(wanted))]


def test_many_objects_and_ranges_are_fetched_at_once(sftp):
    sftp.add_files({f"{number}.bin": DATA[number * 100 :] for number in range(30)})
    urls = [f"{sftp.url}/{number}.bin" for number in range(30)]
    wanted = [*(Wanted(url) for url in urls), *(Wanted(url, 1000, 1500) for url in urls)]
    fetcher = Fetcher(sftp.options)
    found = collected(fetcher, wanted)
    fetcher.close()
    assert found[:30] == [DATA[number * 100 :] for number in range(30)]
    assert found[30:] == [DATA[number * 100 :][1000:1500] for number in range(30)]


def test_long_objects_travel_in_parts_and_come_back_whole(sftp):
    data = random.Random(3).randbytes(18 << 20)
    sftp.add_files({"long.bin": data})
    store = open_store(sftp.url, **sftp.options)
    assert store.get("long.bin") == data
    assert store.get_range("long.bin", 5, 17 << 20) == data[5 : 17 << 20]
    store.close()


@pytest.mark.parametrize("kind", ["ftp", "sftp"])
def test_what_is_written_is_there_whole_and_nothing_beside_it(request, kind):
    server = request.getfixturevalue(kind)
    store = open_store(server.url, **getattr(server, "options", {}))
    store.put("new/folder/x.bin", DATA)
    store.put("new/folder/x.bin", DATA[:10])
    assert store.get("new/folder/x.bin") == DATA[:10]
    assert [path.name for path in server.folder.rglob("*") if path.is_file()] == ["x.bin"]
    store.close()


@pytest.mark.parametrize("kind", ["ftp", "sftp"])
def test_an_object_that_changed_is_not_read_as_if_it_had_not(request, kind):
    server = request.getfixturevalue(kind)
    server.add_files({"x.bin": DATA})
    store = open_store(server.url, **getattr(server, "options", {}))
    etag = store.head("x.bin").etag
    assert store.get_range("x.bin", 5, 10, etag=etag) == DATA[5:10]
    server.add_files({"x.bin": DATA[:-1]})
    with pytest.raises(ObjectChanged, match=r"x\.bin changed while it was read"):
        store.get_range("x.bin", 5, 10, etag=etag)
    store.close()


def test_folders_that_are_not_there_are_named(ftp):
    store = open_store(ftp.url)
    with pytest.raises(ObjectMissing, match=r"ftp://127\.0\.0\.1:\d+/nowhere does not exist"):
        list(store.list("nowhere"))
    store.close()


def test_a_wrong_password_is_denied_at_once_and_shown_nowhere(ftp):
    store = open_store(ftp.url.replace("s3cr3t", "wr0ngpass"))
    with pytest.raises(AccessDenied, match=r"may not be read: .*failed.*username, password") as caught:
        store.get("x.bin")
    shown = [repr(store), store.url, repr(vars(store)), *traceback.format_exception(caught.value)]
    assert "wr0ngpass" not in "".join(shown)
    given = open_store(ftp.url.replace("me:s3cr3t@", ""), username="me", password="wr0ngpass")
    with pytest.raises(AccessDenied) as caught:
        given.get("x.bin")
    shown = [repr(given), repr(vars(given)), *traceback.format_exception(caught.value)]
    assert "wr0ngpass" not in "".join(shown)


@pytest.mark.parametrize("kind", ["sftp", "ftp"])
def test_who_may_read_and_not_write_is_told_that_it_is_the_writing(request, kind):
    server = request.getfixturevalue(kind)
    if kind == "sftp":
        server.stop()
        server.start("-R")
        store = open_store(server.url, **server.options)
    else:
        store = open_store(server.url.replace("me:", "guest:"))
    server.add_files({"x.bin": DATA})
    assert store.get("x.bin") == DATA
    for write in (write_whole, write_in_pieces):
        with pytest.raises(AccessDenied, match=r"x\.bin may not be written: .*username, password"):
            write(store)
    assert store.get("x.bin") == DATA
    store.close()


def write_whole(store) -> None:
    store.put("x.bin", b"new")


def write_in_pieces(store) -> None:
    with store.upload("x.bin") as file:
        file.write(b"new")


def test_a_server_that_went_away_and_came_back_is_found_again(ftp):
    ftp.add_files({"x.bin": DATA})
    store = open_store(ftp.url)
    assert store.get("x.bin") == DATA
    ftp.stop()
    returned = threading.Thread(target=lambda: (time.sleep(0.5), ftp.start()))
    returned.start()
    assert store.get("x.bin") == DATA
    returned.join()
    store.close()


def test_a_silent_server_is_given_up_within_its_time(silent):
    store = open_store(f"ftp://127.0.0.1:{silent}", timeout_s=0.3, retries=1)
    started = time.monotonic()
    with pytest.raises(StoreUnavailable, match=r"HEAD ftp://.*x failed after 2 attempts .* no answer within"):
        store.head("x")
    assert time.monotonic() - started < 10


def test_a_process_ends_at_once_while_a_silent_server_is_waited_for(silent):
    program = """
        import sys, threading, time
        from penstock import open_store
        store = open_store(f"ftp://127.0.0.1:{sys.argv[1]}", timeout_s=100)
        threading.Thread(target=store.get, args=["x"], daemon=True).start()
        time.sleep(1)
        """
    command = [sys.executable, "-c", textwrap.dedent(program), str(silent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr


def test_a_driver_that_is_not_installed_is_named():
    store = open_store("smb://host/share")
    with pytest.raises(ConfigError, match=r"smb://host cannot be opened: .*smbprotocol"):
        store.get("z")


def test_without_fsspec_a_scheme_is_refused_with_what_to_install():
    program = """
        import sys
        sys.modules["fsspec"] = None
        from penstock import ConfigError, open_store
        try:
            open_store("sftp://host/x")
        except ConfigError as error:
            print(error)
        """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "pip install 'penstock[fsspec]'" in done.stdout


def test_a_place_without_a_host_keeps_its_url():
    store = pickle.loads(pickle.dumps(open_store("dbfs:///folder/x", instance="i", token="t0psecret")))
    assert store.url == "dbfs:///folder/x"
    assert "t0psecret" not in repr(store)
