"""Many objects at once: each ends in one last piece, right or with its error, whatever the others do."""

from __future__ import annotations

import random

import pytest

from penstock.errors import ObjectMissing, StoreError
from penstock.store.many import Fetcher
from penstock.store.wanted import Wanted

DRAW = random.Random(11)
FILES = {f"{number:03}.bin": DRAW.randbytes(DRAW.randrange(1, 3000)) for number in range(60)} | {"empty.bin": b""}


def gathered(pieces, count):
    """Put pieces together: bytes or an error for each Wanted, after checking that each ends once."""
    data, ended = [bytearray() for _ in range(count)], [0] * count
    found = [None] * count
    for piece in pieces:
        if piece.error is not None:
            found[piece.number] = piece.error
        else:
            have = data[piece.number]
            have.extend(b"\0" * (piece.offset + len(piece.data) - len(have)))
            have[piece.offset : piece.offset + len(piece.data)] = piece.data
            assert len(have) <= piece.size
        ended[piece.number] += piece.last
    assert ended == [1] * count
    return [error or bytes(have) for error, have in zip(found, data, strict=True)]


@pytest.fixture
def web(hub):
    """URLs of files on a plain web server."""
    sha = hub.add_dataset("org/name", FILES)
    hub.forget()
    return f"{hub.url}/datasets/org/name/resolve/{sha}"


@pytest.fixture
def fetcher():
    with_short_waits = Fetcher({"timeout_s": 2, "retries": 3})
    yield with_short_waits
    with_short_waits.close()


def test_all_that_is_asked_for_comes_once(hub, web, fetcher):
    wanted = [Wanted(f"{web}/{name}") for name in FILES]
    assert gathered(fetcher.get_many(wanted), len(wanted)) == list(FILES.values())
    assert len(hub.requests(r"\.bin")) == len(FILES) + 1  # nothing of an empty object can be asked for as a range


def test_a_missing_object_is_an_error_of_its_own(web, fetcher):
    wanted = [Wanted(f"{web}/000.bin"), Wanted(f"{web}/none.bin"), Wanted(f"{web}/001.bin")]
    first, second, third = gathered(fetcher.get_many(wanted), 3)
    assert (first, third) == (FILES["000.bin"], FILES["001.bin"])
    assert isinstance(second, ObjectMissing)
    assert "none.bin does not exist" in str(second)


@pytest.mark.parametrize("name", ["../etc/passwd", "a//b.bin", "a\0b.bin"])
def test_a_name_that_no_store_can_have_is_an_error_of_its_own(web, fetcher, name):
    first, second = gathered(fetcher.get_many([Wanted(f"{web}/{name}"), Wanted(f"{web}/000.bin")]), 2)
    assert isinstance(first, StoreError)
    assert second == FILES["000.bin"]
