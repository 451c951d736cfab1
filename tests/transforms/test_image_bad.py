"""Files that are broken, lie, or are something else: refused with a reason, quickly, in little memory."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import zlib

import numpy as np
import pytest

from image_subjects import encoded, every_kind, jpeg_that_says, picture, png_that_says
from penstock import BadMedia, DecodeImage, StreamingDataLoader, StreamingDataset, image_size

KINDS = every_kind()
# The first frame of an animated GIF is whole where the file is cut off behind it; TGA has no header to speak of.
CUT = sorted(KINDS.keys() - {"animated gif", "tga"})


def reason(data, **options) -> str:
    with pytest.raises(BadMedia) as caught:
        DecodeImage(**options)({"image": data})
    assert str(caught.value).startswith(("<", "/"))
    return caught.value.reason


@pytest.mark.parametrize("kind", CUT)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
def test_a_file_that_is_cut_off_is_refused(kind, share):
    assert reason(KINDS[kind][: int(len(KINDS[kind]) * share)]) in ("truncated", "corrupt", "not-an-image")


@pytest.mark.parametrize("kind", ["jpeg", "progressive jpeg", "png", "webp", "bmp", "gif"])
def test_half_a_file_is_called_truncated(kind):
    assert reason(KINDS[kind][: len(KINDS[kind]) // 2]) == "truncated"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "empty"),
        (bytes(1000), "not-an-image"),
        (b"<!DOCTYPE html><html>404</html>", "not-an-image"),
        (b"RIFF\x00\x00\x00\x00WAVEfmt ", "not-an-image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not-an-image"),
        (b"\xff\xd8\xff", "truncated"),
        (b"\xff\xd8\xff\xd9", "corrupt"),
        (b"\x89PNG\r\n\x1a\n", "truncated"),
        (png_that_says(0, 5), "corrupt"),
        (png_that_says(60_000, 60_000), "too-large"),
        (jpeg_that_says(65_000, 65_000), "too-large"),
        (b"BM" + bytes(100), "corrupt"),
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_what_is_no_image_or_a_bomb_is_refused_by_its_header(data, expected, mode, tmp_path):
    assert reason(data, mode=mode) == expected
    (tmp_path / "file.jpg").write_bytes(data)
    assert reason(tmp_path / "file.jpg", mode=mode) == expected
    with pytest.raises(BadMedia):
        image_size(tmp_path / "file.jpg")


def test_limits_are_those_given():
    assert reason(KINDS["jpeg"], max_pixels=75 * 100 - 1) == "too-large"
    assert reason(KINDS["jpeg"], max_bytes=100) == "too-large"
    assert DecodeImage(max_pixels=75 * 100)({"image": KINDS["jpeg"]})["image"].shape == (75, 100, 3)


def test_any_byte_may_be_another_and_nothing_worse_happens():
    """Either pixels or BadMedia: no crash, no other error."""
    draw = np.random.default_rng(0)
    for kind, data in KINDS.items():
        for _ in range(12):
            broken = bytearray(data)
            for place in draw.integers(0, len(data), 4):
                broken[place] = draw.integers(256)
            for mode in ("RGB", "RGBA"):
                with contextlib.suppress(BadMedia):
                    assert DecodeImage(mode=mode, max_pixels=1 << 20)({"image": bytes(broken)})["image"].ndim == 3, kind


MEASURE = """
import resource, sys
from penstock import BadMedia, DecodeImage
decode = DecodeImage()
decode({"image": open(sys.argv[1], "rb").read()})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[2:]:
    try:
        decode({"image": path})
    except BadMedia as error:
        print(error.reason)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_bomb_takes_no_memory(tmp_path):
    (tmp_path / "good").write_bytes(KINDS["png"])
    # 30,000 × 30,000 pixels that unpack to 2.7 GB.
    bomb = png_that_says(30_000, 30_000)
    bomb = bomb[:33] + len(idat := zlib.compress(bytes(90_001 * 500))).to_bytes(4, "big") + b"IDAT" + idat + bomb[-16:]
    (tmp_path / "bomb").write_bytes(bomb)
    paths = [str(tmp_path / name) for name in ("good", "bomb")]
    done = subprocess.run([sys.executable, "-c", MEASURE, *paths], capture_output=True, text=True, check=True)
    said, grown_kb = done.stdout.split()
    assert said == "too-large"
    assert int(grown_kb) < 20_000


@pytest.mark.parametrize("lane", ["thread", "process"])
def test_a_loader_goes_on_without_the_images_that_fail(lane, tmp_path):
    rows = []
    for number in range(24):
        data = encoded(picture(seed=number), "JPEG")
        (tmp_path / f"{number}.jpg").write_bytes(
            {3: data[:400], 7: b"", 11: png_that_says(99_999, 99_999)}.get(number, data)
        )
        rows.append({"index": str(number), "image": f"{number}.jpg"})
    (tmp_path / "images.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"columns_to_download": ["image"], "transforms": [DecodeImage(size=16)], "on_error": "skip"}
    dataset = StreamingDataset(tmp_path / "images.jsonl", tmp_path / "stream", **options)
    with dataset, StreamingDataLoader(dataset, 8, num_workers=2, worker_type=lane) as loader:
        shapes = [tuple(batch["image"].shape) for batch in loader]
        assert shapes == [(6, 16, 16, 3), (7, 16, 16, 3), (8, 16, 16, 3)]
        assert loader.stats.skipped == {"truncated": 1, "empty": 1, "too-large": 1}
        assert {entry["reason"] for entry in dataset.quarantine.entries()} == {"truncated", "empty", "too-large"}
        listed = dataset.quarantine.path.read_text()
    assert "3.jpg is jpeg by its header" in listed
    assert "7.jpg is empty" in listed
    assert "at most 178,956,970 are allowed" in listed
