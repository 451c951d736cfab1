"""Latents of sounds, videos and texts: cut in time where they should be, drawn as those of images are."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from penstock import (
    BadMedia,
    Collate,
    ConfigError,
    CropLatent,
    StreamingDataLoader,
    StreamingDataset,
    audio_latent_pipeline,
    audio_pipeline,
    rng,
    text_latent_pipeline,
    video_latent_pipeline,
    video_pipeline,
)
from penstock.transforms.chain import Chain

COUNT = 30


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def timed(length: int, *shape: int) -> np.ndarray:
    """A mean [2, T, …] that says at each frame which it is, and a spread of zeros behind it."""
    frames = np.broadcast_to(
        np.arange(length, dtype=np.float32).reshape(1, length, *[1] * len(shape)), (2, length, *shape)
    )
    return np.concatenate([frames, np.zeros_like(frames)])


@pytest.mark.parametrize("shape", [(), (3, 2)], ids=["sound", "video"])
@pytest.mark.parametrize(("crop", "first"), [("start", 0), ("center", 4), ("random", None)])
def test_a_stretch_of_time_is_cut_out_whole(shape, crop, first):
    preset = video_latent_pipeline if shape else audio_latent_pipeline
    sample = Chain(preset(frames=5, crop=crop))({"latent": npy(timed(13, *shape))}, epoch=0, id_=3)[0]
    start = sample["latent_start"]
    assert (start == first) if first is not None else 0 <= start <= 8
    assert sample["latent_frames"] == 5
    assert (sample["latent"].shape, sample["latent"].dtype) == ((2, 5, *shape), np.float32)
    assert (sample["latent"] == timed(13, *shape)[:2, start : start + 5]).all()


def test_random_stretches_reach_both_ends():
    cut = CropLatent(frames=5)
    starts = [cut({"latent": timed(8)}, rng(0, "x", k))["latent_start"] for k in range(100)]
    assert set(starts) == {0, 1, 2, 3}
    with pytest.raises(ConfigError, match="draws from rng"):
        cut({"latent": timed(8)})


def test_mean_and_spread_of_their_own_are_cut_alike():
    spread = np.broadcast_to(np.array([0, 0, 0, 7.0])[None, :], (2, 4))
    data = npz(m=timed(4)[:2], s=spread)
    steps = audio_latent_pipeline(
        frames=1, crop="start", offset="at", key={"m": "latent", "s": "std"}, spread_field="std", scale=2.0
    )
    assert (Chain(steps)({"latent": data, "at": 2}, epoch=0, id_=0)[0]["latent"] == 4).all()
    drawn = Chain(steps)({"latent": data, "at": 3}, epoch=0, id_=0)[0]
    assert (drawn["latent"] != 6).all()
    assert sorted(drawn) == ["at", "latent", "latent_frames", "latent_start"]
    odd = {"latent": timed(4), "std": timed(3)}
    with pytest.raises(BadMedia, match="has 4 frames and a field to be cut alike has 3"):
        CropLatent(frames=1, along=("std",), crop="start")(odd)


@pytest.mark.parametrize(("short", "frames"), [("pad", [1, 2, 2, 2]), ("keep", [1, 2])])
def test_one_that_is_too_short_is_filled_or_kept(short, frames):
    made = CropLatent(frames=4, crop="start", offset=1, short=short)({"latent": timed(3)})
    assert made["latent"][0].tolist() == frames
    assert made["latent_frames"] == 2


def test_what_cannot_be_cut_is_said():
    with pytest.raises(BadMedia, match="has 3 frames, 4 from 0 on were asked for") as caught:
        CropLatent(frames=4, crop="start", short="error")({"latent": timed(3)})
    assert caught.value.reason == "too-short"
    with pytest.raises(BadMedia, match="has 3 frames, 4 from 3 on"):
        CropLatent(frames=4, crop="start", offset=3)({"latent": timed(3)})
    with pytest.raises(BadMedia, match="without an axis 1 of time"):
        CropLatent(frames=4, crop="start")({"latent": np.ones(3)})
    with pytest.raises(ConfigError, match='offset says where crop="start" begins'):
        CropLatent(frames=4, offset=2)
    empty = CropLatent(frames=4)({"latent": None})
    assert empty == {"latent": None, "latent_start": None, "latent_frames": None}


def test_latents_of_all_kinds_come_from_a_server_the_same_in_every_lane(web, tmp_path):
    files, rows = {}, ["index,video,audio,text"]
    for k in range(COUNT):
        draw = np.random.default_rng(k)
        files |= {
            f"{k}.video.npy": npy(draw.standard_normal((8, 6 + k % 3, 4, 4)).astype(np.float16) ** 2),
            f"{k}.audio.npy": npy(draw.standard_normal((8, 20 + k)).astype(np.float32) ** 2),
            f"{k}.text.npy": npy(draw.standard_normal((3, 4 + k % 4, 16)).astype(np.float32)),
        }
        rows.append(f"{k},{k}.video.npy,{k}.audio.npy,{k}.text.npy")
    web.add_files({**files, "index.csv": "\n".join(rows).encode()})
    steps = [
        *video_latent_pipeline("video", frames=4, scale=0.5),
        *audio_latent_pipeline("audio", frames=16, crop="center"),
        *text_latent_pipeline("text", length=5),
    ]
    lanes = [read(web, tmp_path, steps, lane) for lane in ("thread", "process", None)]
    assert lanes[0].keys() == {str(k) for k in range(COUNT)}
    for key, sample in lanes[0].items():
        shapes = {name: tuple(sample[name].shape) for name in ("video", "audio", "text", "text_mask")}
        assert shapes == {"video": (4, 4, 4, 4), "audio": (4, 16), "text": (5, 16), "text_mask": (5,)}
        assert all(sample[name].dtype == torch.float32 for name in ("video", "audio", "text"))
        assert sample["text_mask"].sum() == min(5, 4 + int(key) % 4)
        for other in lanes[1:]:
            assert all(torch.equal(sample[name], other[key][name]) for name in shapes)


def read(web, folder, steps, lane) -> dict[str, dict]:
    dataset = StreamingDataset(
        f"{web.url}/index.csv",
        folder / "stream",
        columns_to_download=["video", "audio", "text"],
        transforms=steps,
        shuffle_seed=3,
    )
    options = {} if lane is None else {"num_workers": 2, "worker_type": lane}
    found = {}
    with dataset, StreamingDataLoader(dataset, 8, collate_fn=Collate(), **options) as loader:
        for batch in loader:
            for j, key in enumerate(batch["__sample_key__"]):
                found[key] = {name: values[j] for name, values in batch.items()}
    return found


@pytest.mark.parametrize("lane", ["thread", "process"])
def test_a_loader_goes_on_without_the_latents_that_fail(web, tmp_path, lane):
    good = npy(timed(8))
    spoilt = timed(8)
    spoilt[0, 3] = np.nan
    pickled = io.BytesIO()
    np.save(pickled, np.array([{"a": 1}], object), allow_pickle=True)
    broken = {2: npy(spoilt), 3: pickled.getvalue(), 5: b"", 7: good[:200], 8: b"<html>no</html>" * 9, 9: npy(timed(2))}
    web.add_files({f"{k}.npy": broken.get(k, good) for k in range(12)})
    web.add_files({"index.csv": "\n".join(["index,npy", *(f"{k},{k}.npy" for k in range(12))]).encode()})
    steps = audio_latent_pipeline("npy", frames=4, crop="start", short="error")
    options = {"columns_to_download": ["npy"], "transforms": steps, "on_error": "skip"}
    dataset = StreamingDataset(f"{web.url}/index.csv", tmp_path / "stream", **options)
    with dataset, StreamingDataLoader(dataset, 4, num_workers=2, worker_type=lane) as loader:
        keys = sorted(int(key) for batch in loader for key in batch["__sample_key__"])
        skipped = dict(loader.stats.skipped)
        listed = {entry["key"]: entry["reason"] for entry in dataset.quarantine.entries()}
    assert keys == [0, 1, 4, 6, 10, 11]
    reasons = {"2": "not-finite", "3": "pickled", "5": "empty", "7": "truncated", "8": "not-arrays", "9": "too-short"}
    assert listed == reasons
    assert skipped == dict.fromkeys(reasons.values(), 1)


@pytest.mark.parametrize("preset", [audio_latent_pipeline, audio_pipeline, video_pipeline])
def test_an_option_that_is_none_is_refused_in_the_name_of_the_function_that_was_called(preset):
    with pytest.raises(ConfigError, match=f"^{preset.__name__} has no option 'nonsense': there are field"):
        preset("x", frames=4, nonsense=1)
