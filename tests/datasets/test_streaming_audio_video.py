"""Sounds and videos from a folder to batches: the same in every lane, and broken ones do no harm."""

from __future__ import annotations

import numpy as np
import pytest

from media_subjects import sound, write_sound, write_video
from penstock import (
    StreamingDataLoader,
    StreamingDataset,
    audio_pipeline,
    joint_video_audio_pipeline,
    text_to_video_pipeline,
    video_pipeline,
)

COUNT = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Videos of changing rates, every other one with sound, each with a text and a sound of its own."""
    folder = tmp_path_factory.mktemp("media")
    for number in range(COUNT):
        steps = np.random.default_rng(number).integers(20, 80, 60)
        times = [0, *np.cumsum(steps).tolist()]
        data = sound(2.0 + number / 10)
        write_video(folder / f"{number}.mp4", times, data=data if number % 2 else None)
        write_sound(folder / f"{number}.flac", data)
        (folder / f"{number}.txt").write_text(f"Video {number}")
    return folder


PRESETS = {
    "audio": (["flac"], audio_pipeline("flac", seconds=1.0), {"flac": ((1, 16_000), np.float32)}),
    "loud": (["flac"], audio_pipeline("flac", seconds=0.5, crop="random_loud"), {"flac": ((1, 8000), np.float32)}),
    "video": (["mp4"], video_pipeline("mp4", frames=4, size=(32, 40)), {"mp4": ((4, 32, 40, 3), np.uint8)}),
    "joint": (
        ["mp4"],
        joint_video_audio_pipeline("mp4", frames=4, fps=4, size=32),
        {"mp4": ((4, 32, 32, 3), np.uint8), "audio": ((1, 16_000), np.float32)},
    ),
    "beside": (
        ["mp4", "flac"],
        joint_video_audio_pipeline("mp4", audio_field="flac", frames=4, fps=4, size=32, mono=False),
        {"mp4": ((4, 32, 32, 3), np.uint8), "audio": ((2, 16_000), np.float32)},
    ),
    "text": (
        ["mp4", "txt"],
        text_to_video_pipeline("mp4", text_field="txt", frames=2, size=16, text_options={"files": True}),
        {"mp4": ((2, 16, 16, 3), np.uint8)},
    ),
}


def batches(folder, cache, preset, lane, **options):
    columns, transforms, _ = PRESETS[preset]
    dataset = StreamingDataset(
        str(folder), cache, columns_to_download=columns, transforms=transforms, shuffle_seed=3, **options
    )
    with StreamingDataLoader(dataset, batch_size=4, worker_type=lane, num_workers=2) as loader:
        return list(loader)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_gives_batches_of_its_shape(folder, tmp_path, preset):
    got = batches(folder, tmp_path / "cache", preset, "thread")
    assert sorted(key for batch in got for key in batch["__sample_key__"]) == sorted(map(str, range(COUNT)))
    for name, (shape, dtype) in PRESETS[preset][2].items():
        for batch in got:
            values = np.asarray(batch[name])
            assert values.shape[1:] == shape
            assert values.dtype == dtype
            assert values.any()
            assert np.abs(values.astype(np.float32)).max() <= (1 if dtype == np.float32 else 255)
    if preset == "text":
        assert all(text == f"Video {key}" for b in got for text, key in zip(b["txt"], b["__sample_key__"], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["loud", "joint"])
def test_threads_and_processes_give_the_same_samples(folder, tmp_path, preset):
    threads = batches(folder, tmp_path / "cache", preset, "thread")
    processes = batches(folder, tmp_path / "cache", preset, "process")
    assert len(threads) == len(processes) == 3
    for one, other in zip(threads, processes, strict=True):
        assert one["__sample_key__"] == other["__sample_key__"]
        for name in PRESETS[preset][2]:
            np.testing.assert_array_equal(np.asarray(one[name]), np.asarray(other[name]))


def test_broken_files_are_left_out_and_listed(folder, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for number in range(COUNT):
        data = (folder / f"{number}.flac").read_bytes()
        (broken / f"{number}.flac").write_bytes(
            {3: b"", 5: data[: len(data) // 3], 8: b"no sound" * 100}.get(number, data)
        )
    got = batches(broken, tmp_path / "cache", "audio", "thread", on_error="skip")
    keys = sorted(int(key) for batch in got for key in batch["__sample_key__"])
    assert keys == [0, 1, 2, 4, 6, 7, 9]
