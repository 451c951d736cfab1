"""Parts of an mp3, decoded by themselves: what they are in the whole, and always the same."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from penstock.errors import BadMedia
from penstock.seeds import rng
from penstock.transforms.audio_source import open_audio
from penstock.transforms.mp3_frames import find_frames

FRAMES = 90_000


def write_mp3(path, rate: int, channels: int, **options) -> np.ndarray:
    steps = rng(3, rate, channels).standard_normal((FRAMES, channels)) * np.linspace(0.02, 1.5, FRAMES)[:, None]
    soundfile.write(path, np.sin(np.cumsum(steps, axis=0)) * 0.6, rate, **options)
    return soundfile.read(path, dtype="float32", always_2d=True)[0]


@pytest.mark.parametrize(
    ("rate", "channels", "options"),
    [
        (44_100, 2, {}),
        (44_100, 1, {"bitrate_mode": "CONSTANT"}),
        (48_000, 2, {"compression_level": 0.0}),
        (32_000, 1, {"bitrate_mode": "CONSTANT", "compression_level": 0.95}),
        (22_050, 2, {"bitrate_mode": "AVERAGE", "compression_level": 0.9}),
        (16_000, 1, {}),
        (8000, 1, {"compression_level": 0.99}),
    ],
)
@pytest.mark.parametrize("head", [b"", b"ID3\x04\x00\x00\x00\x00\x02\x05" + bytes(261)])
def test_a_part_is_what_it_is_in_the_whole_and_always_the_same(tmp_path, rate, channels, options, head):
    path = tmp_path / "a.mp3"
    whole = write_mp3(path, rate, channels, **options)
    path.write_bytes(head + path.read_bytes())
    assert find_frames(path.read_bytes(), len(whole)) is not None
    starts = [0, 1, 575, 1152, 4000, *rng(0, "starts").integers(0, FRAMES - 3000, 30).tolist(), FRAMES - 3000]
    used = open_audio(path)
    for start in starts:
        found = used.read(start, start + 3000)
        np.testing.assert_allclose(found, whole[start : start + 3000], rtol=0, atol=1e-6, err_msg=str(start))
        fresh = open_audio(path)
        assert fresh.read(start, start + 3000).tobytes() == found.tobytes()
        fresh.close()
    with pytest.raises(BadMedia) as caught:
        used.read(FRAMES - 10, FRAMES + 10)
    assert caught.value.reason == "truncated"
    assert used.read(FRAMES - 10, FRAMES).shape == (10, channels)
    used.close()


@pytest.mark.parametrize("rate", [16_000, 44_100])
@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_an_mp3_without_a_tag_is_read_to_its_end(tmp_path, rate, mode):
    path = tmp_path / "a.mp3"
    whole = write_mp3(path, rate, 1, bitrate_mode=mode)
    tagged = path.read_bytes()
    found = find_frames(tagged, FRAMES)
    path.write_bytes(tagged[int(found.offsets[0]) :])
    source = open_audio(path)
    # Nothing says what the encoder added in front: of that, only what every decoder adds is left out.
    late = found.skipped - 529
    assert late + FRAMES <= source.num_frames == (len(found.offsets) - 1) * found.samples - 529
    for start in (50_000, 0, 7000, FRAMES - 500):
        part = source.read(start + late, start + late + 500)
        np.testing.assert_allclose(part, whole[start : start + 500], rtol=0, atol=1e-6)
        assert part.tobytes() == source.read(start + late, start + late + 500).tobytes()
    assert len(source.read(0, source.num_frames)) == source.num_frames
    source.close()


@pytest.mark.parametrize(
    "data", [b"", b"ID3", b"\xff\xfb", bytes(4000), b"\xff\xfb\x90\x64" + bytes(10), b"\xff" * 999]
)
def test_what_is_no_mp3_has_no_frames(data):
    assert find_frames(data, 1000) is None


def test_an_mp3_that_is_not_as_long_as_said_is_not_cut_up(tmp_path):
    write_mp3(tmp_path / "a.mp3", 16_000, 1)
    data = (tmp_path / "a.mp3").read_bytes()
    assert find_frames(data, FRAMES) is not None
    assert find_frames(data, FRAMES + 1) is None
    assert find_frames(data[:-5000], FRAMES) is None
