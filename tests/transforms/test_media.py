"""Bytes say what they are; a field holds a path or bytes."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from image_subjects import encoded, picture
from penstock import BadMedia, ConfigError, FormatError
from penstock.transforms.media import check_finite, describe, head_of, read_bytes, sniff


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (encoded(picture(), "JPEG"), "jpeg"),
        (encoded(picture(), "PNG"), "png"),
        (encoded(picture(), "WEBP"), "webp"),
        (encoded(picture(), "AVIF"), "avif"),
        (encoded(picture(), "TIFF"), "tiff"),
        (encoded(picture(), "PPM"), "pnm"),
        (b"RIFF\x00\x00\x00\x00WAVEfmt ", "wav"),
        (b"\x00\x00\x00\x20ftypisom", "mp4"),
        (b"\xff\xfb\x90\x00", "mp3"),
        (b"\xff\xf1\x50\x80", "aac"),
        (b"\x93NUMPY\x01\x00", "npy"),
        (b"  <!DOCTYPE html>", "html"),
        (b'{"a": 1}', "json"),
        (b"P", None),
        (b"", None),
        (b"hello", None),
    ],
)
def test_first_bytes_say_what_a_file_is(head, kind):
    assert sniff(head) == kind
    assert sniff(memoryview(head)) == kind


def test_bytes_are_not_copied_and_a_path_is_read(tmp_path):
    data = np.arange(100, dtype=np.uint8)
    assert np.shares_memory(np.frombuffer(read_bytes(data), np.uint8), data)
    (tmp_path / "file").write_bytes(data.tobytes())
    assert read_bytes(tmp_path / "file") == data.tobytes()
    assert head_of(tmp_path / "file", 3) == b"\x00\x01\x02"
    assert describe(data) == "<100 bytes>"


def test_an_error_of_a_file_keeps_what_it_says_across_processes():
    error = pickle.loads(pickle.dumps(BadMedia("a.jpg is empty", path="a.jpg", reason="empty")))
    assert isinstance(error, FormatError)
    assert (str(error), error.path, error.reason) == ("a.jpg is empty", "a.jpg", "empty")
    with pytest.raises(BadMedia, match="12 bytes, at most 5"):
        read_bytes(b"hello, world", max_bytes=5)
    with pytest.raises(ConfigError, match="got list"):
        read_bytes([1, 2])


def test_numbers_that_are_none_are_counted():
    check_finite(np.arange(3), "a.npy")
    with pytest.raises(BadMedia, match="2 values of 3"):
        check_finite(np.array([np.nan, 0, np.inf], np.float16), "a.npy")
